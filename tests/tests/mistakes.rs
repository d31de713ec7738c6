//! A user's mistakes: each gets one clear sentence, exit code 1, and leaves nothing behind.

use std::error::Error;

use kilnbox_tests::{Workplace, ethanol_structures};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const OPTIONS: &str = "\
seed: 7
architecture:
  name: soap_bpnn
  training: {num_epochs: 1, batch_size: 2}
training_set:
  systems: {read_from: data.xyz, length_unit: angstrom}
  targets:
    energy: {key: energy, unit: eV, forces: {key: forces}}
validation_set: 0.25
test_set: 0
";

/// One mistake: what to change in the options and in the data, and the words that the error must have.
struct Mistake {
    name: &'static str,
    options: fn(String) -> String,
    data: fn(String) -> String,
    words: &'static [&'static str],
}

fn same(text: String) -> String {
    text
}

/// Replaces the first occurrence, which must exist.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "`{from}` is not in\n{text}");
    text.replacen(from, to, 1)
}

const MISTAKES: &[Mistake] = &[
    Mistake {
        name: "a missing data file",
        options: |text| replaced(&text, "data.xyz", "absent.xyz"),
        data: same,
        words: &["absent.xyz", "No such file"],
    },
    Mistake {
        name: "a missing key in the data",
        options: |text| replaced(&text, "key: energy", "key: enrgy"),
        data: same,
        words: &["enrgy", "data.xyz", "frame 0", "energy"],
    },
    Mistake {
        name: "missing forces",
        options: |text| replaced(&text, "key: forces", "key: force"),
        data: same,
        words: &["`force`", "data.xyz"],
    },
    Mistake {
        name: "an unknown option",
        options: |text| replaced(&text, "batch_size", "batch_sice"),
        data: same,
        words: &["options.yaml:4", "batch_sice", "batch_size"],
    },
    Mistake {
        name: "an option of the wrong kind",
        options: |text| replaced(&text, "batch_size: 2", "batch_size: many"),
        data: same,
        words: &["batch_size", "many"],
    },
    Mistake {
        name: "an unknown architecture",
        options: |text| replaced(&text, "soap_bpnn", "soap_bpn"),
        data: same,
        words: &["`soap_bpn`", "use `soap-bpnn`"],
    },
    Mistake {
        name: "a batch larger than the set",
        options: |text| replaced(&text, "batch_size: 2", "batch_size: 100"),
        data: same,
        words: &["100", "batch_size"],
    },
    Mistake { name: "an empty data file", options: same, data: |_| String::new(), words: &["data.xyz"] },
    Mistake {
        name: "an empty training set",
        options: |text| replaced(&text, "validation_set: 0.25", "validation_set: 0.99"),
        data: same,
        words: &["training set"],
    },
    Mistake {
        name: "a position that is no number",
        options: same,
        data: |text| replaced(&text, "-0.36005829", "nan"),
        words: &["data.xyz", "frame 0", "line 3", "`nan`", "pos"],
    },
    Mistake {
        name: "a cell without volume",
        options: same,
        data: |text| replaced(&text, "pbc=\"F F F\"", "pbc=\"T T T\" Lattice=\"4.0 0.0 0.0 0.0 4.0 0.0 4.0 4.0 0.0\""),
        words: &["data.xyz", "frame 0", "no volume"],
    },
    Mistake {
        name: "an element that does not exist",
        options: same,
        data: |text| replaced(&text, "C  ", "Qq "),
        words: &["data.xyz", "Qq"],
    },
    Mistake {
        name: "a structure that breaks off",
        options: same,
        data: |text| text[..text.len() - 300].to_owned(),
        words: &["data.xyz"],
    },
    Mistake {
        name: "an unknown unit",
        options: |text| replaced(&text, "unit: eV", "unit: eVV"),
        data: same,
        words: &["eVV"],
    },
    Mistake {
        name: "a device that is not there",
        options: |text| format!("device: cuda\n{text}"),
        data: same,
        words: &["cuda"],
    },
    Mistake {
        name: "text that is no YAML",
        options: |text| replaced(&text, "seed: 7", "seed: [7"),
        data: same,
        words: &["options.yaml"],
    },
    Mistake {
        name: "hypers that the architecture refuses",
        options: |text| replaced(&text, "  training:", "  model: {soap: {cutoff: {radius: -1.0}}}\n  training:"),
        data: same,
        words: &["radius", "-1"],
    },
    Mistake {
        name: "a cut-off that no table can follow",
        options: |text| replaced(&text, "  training:", "  model: {soap: {cutoff: {radius: 1.0e+9}}}\n  training:"),
        data: same,
        words: &["`model.soap.cutoff.width` is 0.5", "at least 1000000"],
    },
    Mistake {
        name: "a target that the architecture cannot learn",
        options: |text| {
            replaced(
                &text,
                "energy: {key: energy, unit: eV, forces: {key: forces}}",
                "mtt::f: {key: forces, sample_kind: atom, type: {cartesian: {rank: 1}}}",
            )
        },
        data: same,
        words: &["mtt::f", "does not support"],
    },
];

#[test]
fn each_mistake_gets_a_sentence_and_leaves_nothing() -> Fallible {
    let mut problems = Vec::new();
    for mistake in MISTAKES {
        let place = Workplace::new()?;
        place.write("options.yaml", &(mistake.options)(OPTIONS.to_owned()))?;
        place.write("data.xyz", &(mistake.data)(ethanol_structures(8)?))?;
        let before = place.entries()?;
        let outcome = place.run(&["train", "options.yaml"])?;
        let name = mistake.name;
        let mut demand = |holds: bool, what: &str| {
            if !holds {
                problems.push(format!("{name}: {what} (exit code {:?})\n{}", outcome.code, outcome.errors));
            }
        };
        demand(outcome.code == Some(1), "exit code 1 is expected");
        demand(outcome.errors.starts_with("error: "), "an error is expected first");
        for words in mistake.words {
            demand(outcome.errors.contains(words), &format!("`{words}` is missing"));
        }
        for words in ["panicked", "RUST_BACKTRACE", "stack backtrace", "kilnbox:architecture/", "wasm"] {
            demand(!outcome.errors.contains(words), &format!("`{words}` means nothing to a user"));
        }
        // What the architecture itself refuses is found when the run has begun: its folder tells the story.
        let left =
            place.entries()?.into_iter().filter(|entry| !before.contains(entry) && !entry.starts_with("outputs"));
        demand(left.clone().next().is_none(), &format!("{:?} was left", left.collect::<Vec<_>>()));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
    Ok(())
}

#[test]
fn mistakes_on_the_command_line_are_told_as_well() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", OPTIONS)?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    place.write("not-a-model.kiln", "hello")?;
    place.write("empty.ckpt", "")?;
    place.write("eval.yaml", "systems: data.xyz\n")?;
    let before = place.entries()?;
    let cases: &[(&[&str], &[&str])] = &[
        (&["train", "absent.yaml"], &["absent.yaml", "No such file"]),
        (&["train", "options.yaml", "-o", "model.txt"], &["model.txt", ".kiln"]),
        (&["train", "options.yaml", "-o", "absent/model.kiln"], &["absent"]),
        (&["train", "options.yaml", "-r", "no-equals-sign"], &["no-equals-sign"]),
        (&["train", "options.yaml", "-r", "architecture.training.num_epoch=3"], &["num_epoch", "num_epochs"]),
        (&["train", "options.yaml", "--restart", "absent.ckpt"], &["absent.ckpt"]),
        (&["train", "options.yaml", "--restart", "empty.ckpt"], &["empty.ckpt"]),
        (&["--threads", "0", "train", "options.yaml"], &["threads"]),
        (&["train"], &["OPTIONS"]),
        (&["trian", "options.yaml"], &["train"]),
        (&["eval", "not-a-model.kiln", "eval.yaml"], &["not-a-model.kiln"]),
        (&["eval", "data.xyz", "eval.yaml"], &["data.xyz", "tar archive", "*.kiln"]),
        (&["eval", "absent.kiln", "eval.yaml"], &["absent.kiln"]),
        (&["eval", "not-a-model.kiln", "eval.yaml", "-b", "0"], &["batch size"]),
        (&["export", "empty.ckpt"], &["empty.ckpt"]),
        (&["export", "options.yaml"], &["options.yaml"]),
    ];
    for (arguments, expected) in cases {
        let outcome = place.run(arguments)?;
        assert_eq!(outcome.code, Some(1), "{arguments:?}: {}", outcome.errors);
        for words in *expected {
            assert!(outcome.errors.contains(words), "{arguments:?}: `{words}` is missing in\n{}", outcome.errors);
        }
        assert!(!outcome.errors.contains("panicked"), "{arguments:?}: {}", outcome.errors);
    }
    assert_eq!(place.entries()?, before);
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn a_bounded_address_space_has_as_many_threads_as_fit() -> Fallible {
    let place = Workplace::new()?;
    let bounded = "ulimit -v 524288";
    let outcome = place.run_after(bounded, &["limits"])?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    let outcome = place.run_after(bounded, &["--threads", "64", "limits"])?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
    for words in ["64 threads", "--threads", "ulimit"] {
        assert!(outcome.errors.contains(words), "`{words}` is missing in\n{}", outcome.errors);
    }
    Ok(())
}

#[cfg(target_os = "linux")]
#[test]
fn addresses_that_a_sandbox_cannot_reserve_are_not_called_a_mistake_of_the_architecture() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", OPTIONS)?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    let outcome = place.run_after("ulimit -v 2097152", &["train", "options.yaml"])?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
    for words in ["the system does not give the memory", "4 GiB of addresses", "`ulimit -v`"] {
        assert!(outcome.errors.contains(words), "`{words}` is missing in\n{}", outcome.errors);
    }
    Ok(())
}

#[test]
fn an_element_that_the_model_does_not_know_is_named() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", OPTIONS)?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    let trained = place.run(&["train", "options.yaml"])?;
    assert_eq!(trained.code, Some(0), "{}", trained.errors);
    place.write("other.xyz", &replaced(&ethanol_structures(2)?, "O  ", "S  "))?;
    place.write("eval.yaml", "systems: {read_from: other.xyz, length_unit: angstrom}\n")?;
    let outcome = place.run(&["eval", "model.kiln", "eval.yaml"])?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
    assert!(
        outcome.errors.contains("structure 0 has the element S") && outcome.errors.contains("it knows H, C, O"),
        "{}",
        outcome.errors
    );
    assert!(!place.path("output.xyz").exists());

    // A training restricted to other types than its data has.
    place.write("options.yaml", &replaced(OPTIONS, "  training:", "  atomic_types: [1, 6]\n  training:"))?;
    let outcome = place.run(&["train", "options.yaml", "-o", "other.kiln"])?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
    assert!(outcome.errors.contains('O'), "{}", outcome.errors);
    Ok(())
}

#[test]
fn a_checkpoint_of_another_model_is_not_continued() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", OPTIONS)?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    assert_eq!(place.run(&["train", "options.yaml"])?.code, Some(0));
    for (options, words) in [
        (replaced(OPTIONS, "  training:", "  model: {soap: {max_radial: 3}}\n  training:"), "max_radial"),
        (
            replaced(OPTIONS, "soap_bpnn", "composition")
                .replace("  training: {num_epochs: 1, batch_size: 2}\n", "")
                .replace(", forces: {key: forces}", ""),
            "soap",
        ),
    ] {
        place.write("other.yaml", &options)?;
        let outcome = place.run(&["train", "other.yaml", "--restart", "model.ckpt", "-o", "other.kiln"])?;
        assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
        assert!(outcome.errors.contains(words), "{}", outcome.errors);
    }
    assert!(!place.path("other.kiln").exists());
    Ok(())
}
