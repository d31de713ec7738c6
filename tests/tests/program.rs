//! The whole life of a model through the real program: trained, interrupted, continued, fine-tuned, exported and evaluated.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use kilnbox_tests::{Outcome, Workplace, ethanol_structures, repository};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// SOAP-BPNN small enough to train in a second.
const OPTIONS: &str = "\
seed: 7
architecture:
  name: soap_bpnn
  model:
    soap: {max_angular: 2, max_radial: 2, cutoff: {radius: 4.0, width: 0.5}}
    bpnn: {num_hidden_layers: 2, num_neurons_per_layer: 8}
  training:
    num_epochs: 6
    batch_size: 4
    learning_rate: 0.01
    log_interval: 1
    checkpoint_interval: 1
training_set:
  systems:
    read_from: ethanol.xyz
    length_unit: angstrom
  targets:
    energy:
      key: energy
      unit: eV
      forces:
        key: forces
validation_set: 0.2
test_set: 0.2
";

/// The same for PET, which draws random rotations in each step.
const PET: &str = "  name: pet
  model: {d_pet: 64, d_head: 16, d_node: 96, d_feedforward: 64, num_heads: 4, num_attention_layers: 1}
";

/// The options with PET instead of SOAP-BPNN.
fn pet_options() -> Fallible<String> {
    let (start, rest) = OPTIONS.split_once("  name: soap_bpnn").ok_or("no name")?;
    let (_, training) = rest.split_once("  training:").ok_or("no training")?;
    Ok(format!("{start}{PET}  training:{training}"))
}

/// A place with these options and the first 40 structures of the ethanol fixture.
fn ethanol() -> Fallible<Workplace> {
    ethanol_with(OPTIONS)
}

fn ethanol_with(options: &str) -> Fallible<Workplace> {
    let place = Workplace::new()?;
    place.write("options.yaml", options)?;
    place.write("ethanol.xyz", &ethanol_structures(40)?)?;
    Ok(place)
}

#[track_caller]
fn assert_success(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.output, outcome.errors);
}

/// The folder of the one run of a place.
fn run_folder(place: &Workplace) -> Fallible<PathBuf> {
    let entries = place.entries()?;
    let mut logs = entries.iter().filter(|entry| entry.ends_with("train.log"));
    let log = logs.next().ok_or("there is no run")?;
    assert!(logs.next().is_none(), "there is more than one run: {entries:?}");
    Ok(place.path(log).parent().ok_or("a log has no folder")?.to_owned())
}

/// The number after `label` in the line after the last one that contains `below`.
fn number(text: &str, below: &str, label: &str) -> Fallible<f64> {
    let start = text.rfind(below).ok_or_else(|| format!("`{below}` is not in\n{text}"))?;
    let after =
        text[start..].split_once(label).ok_or_else(|| format!("`{label}` is not below `{below}` in\n{text}"))?.1;
    Ok(after.split_whitespace().next().unwrap_or_default().parse()?)
}

#[test]
fn a_training_leaves_what_metatrain_leaves() -> Fallible {
    let place = ethanol()?;
    let outcome = place.run(&["train", "options.yaml", "-o", "ethanol.kiln"])?;
    assert_success(&outcome);
    assert!(outcome.errors.is_empty(), "{}", outcome.errors);
    let folder = run_folder(&place)?;
    let mut expected = vec!["train.log", "train.csv", "options_restart.yaml", "ethanol.ckpt", "ethanol.kiln"];
    expected.extend(["indices/training.txt", "indices/validation.txt", "indices/test.txt"]);
    expected.extend(["model_0.ckpt", "model_5.ckpt"]);
    for name in expected {
        assert!(folder.join(name).is_file(), "{name} is missing: {:?}", place.entries()?);
    }
    assert!(place.path("ethanol.ckpt").is_file() && place.path("ethanol.kiln").is_file());

    let table = fs::read_to_string(folder.join("train.csv"))?;
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].starts_with("Epoch,learning rate,training loss,training energy RMSE (per atom)"), "{}", rows[0]);
    assert_eq!(rows.len(), 2 + 6, "a row of names, one of units, one for each epoch:\n{table}");
    let loss = |row: &str| row.split(',').nth(2).and_then(|field| field.trim().parse::<f64>().ok());
    assert!(loss(rows[7]) < loss(rows[2]), "nothing was learned:\n{table}");

    let log = fs::read_to_string(folder.join("train.log"))?;
    for words in
        ["Running on cpu in float32 with seed 7", "Epoch:    5 |", "Evaluating test dataset", "The model is in"]
    {
        assert!(log.contains(words) && outcome.output.contains(words), "`{words}` is missing in\n{log}");
    }
    let indices =
        ["training", "validation", "test"].map(|set| fs::read_to_string(folder.join(format!("indices/{set}.txt"))));
    let mut all: Vec<usize> =
        indices.into_iter().flatten().flat_map(|text| text.lines().flat_map(str::parse).collect::<Vec<_>>()).collect();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<_>>(), "every structure is in one set");

    // The options in full start the same run.
    let again = Workplace::new()?;
    fs::copy(folder.join("options_restart.yaml"), again.path("options.yaml"))?;
    fs::copy(place.path("ethanol.xyz"), again.path("ethanol.xyz"))?;
    assert_success(&again.run(&["train", "options.yaml", "-o", "ethanol.kiln"])?);
    assert_eq!(fs::read(place.path("ethanol.ckpt"))?, fs::read(again.path("ethanol.ckpt"))?);
    Ok(())
}

#[test]
fn the_number_of_threads_changes_no_bit() -> Fallible {
    for options in [OPTIONS, &pet_options()?] {
        let checkpoints = ["1", "2", "5"]
            .iter()
            .map(|threads| -> Fallible<Vec<u8>> {
                let place = ethanol_with(options)?;
                let short = "architecture.training.num_epochs=3";
                assert_success(&place.run(&["--threads", threads, "train", "options.yaml", "-r", short])?);
                Ok(fs::read(place.path("model.ckpt"))?)
            })
            .collect::<Fallible<Vec<_>>>()?;
        assert!(checkpoints.iter().all(|checkpoint| *checkpoint == checkpoints[0]), "checkpoints differ:\n{options}");
    }
    Ok(())
}

/// The structures of the fixture, in which each atom has the length of its force, then the force, as a property `s`.
fn ethanol_with_spherical_property() -> Fallible<String> {
    let structures = ethanol_structures(40)?.replace("forces:R:3", "s:R:4");
    let line = |line: &str| -> Fallible<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [species, x, y, z, force @ ..] = &words[..] else { return Ok(line.to_owned()) };
        let (Ok(_), [_, _, _]) = (x.parse::<f64>(), force) else { return Ok(line.to_owned()) };
        let force = force.iter().map(|word| word.parse()).collect::<Result<Vec<f64>, _>>()?;
        let length = force.iter().map(|component| component * component).sum::<f64>().sqrt();
        Ok(format!("{species} {x} {y} {z} {length} {} {} {}", force[0], force[1], force[2]))
    };
    Ok(structures.lines().map(line).collect::<Fallible<Vec<_>>>()?.join("\n") + "\n")
}

#[test]
fn errors_of_blocks_are_told_apart_where_that_is_asked_for() -> Fallible {
    let target = "    mtt::s: {key: s, sample_kind: atom, type: {spherical: {irreps: [{o3_lambda: 0, o3_sigma: 1}, {o3_lambda: 1, o3_sigma: 1}]}}}";
    let options = pet_options()?;
    let (start, rest) = options.split_once("    energy:").ok_or("no target")?;
    let (_, end) = rest.split_once("validation_set").ok_or("no validation set")?;
    let place = Workplace::new()?;
    place.write("options.yaml", &format!("{start}{target}\nvalidation_set{end}"))?;
    place.write("ethanol.xyz", &ethanol_with_spherical_property()?)?;
    let printed = |separate: bool| -> Fallible<String> {
        let separate = format!("architecture.training.log_separate_blocks={separate}");
        let run = format!("train options.yaml -r architecture.training.num_epochs=1 -r {separate}");
        let outcome = place.run(&run.split(' ').collect::<Vec<_>>())?;
        assert_success(&outcome);
        Ok(outcome.output)
    };
    let (together, apart) = (printed(false)?, printed(true)?);
    let of_block = |lambda: u32| format!("training mtt::s (o3_lambda={lambda},o3_sigma=1) RMSE (per atom): ");
    for lambda in [0, 1] {
        assert!(apart.contains(&of_block(lambda)) && !together.contains(&of_block(lambda)), "{together}\n{apart}");
    }
    // Squared errors of the whole are those of its blocks, one component and three, weighed by how many they are.
    let below = "Epoch:    0 |";
    let whole = number(&together, below, "training mtt::s RMSE (per atom): ")?;
    let [scalar, vector] = [0, 1].map(|lambda| number(&apart, below, &of_block(lambda)));
    let expected = ((scalar?.powi(2) + 3.0 * vector?.powi(2)) / 4.0).sqrt();
    // Four decimals are printed.
    assert!((whole - expected).abs() < 2e-4, "{whole}, and {expected} of the blocks");
    Ok(())
}

/// Kills a training once it has printed `line`.
fn kill_after(place: &Workplace, arguments: &[&str], line: &str) -> Fallible {
    let mut child = place.command(arguments).stdout(Stdio::piped()).spawn()?;
    let output = BufReader::new(child.stdout.take().ok_or("the output is not read")?);
    let reached = output.lines().map_while(Result::ok).any(|printed| printed.contains(line));
    child.kill()?;
    let status = child.wait()?;
    assert!(reached, "`{line}` was not printed");
    assert!(!status.success(), "the training had ended before it was killed");
    Ok(())
}

#[test]
fn a_killed_run_continues_to_the_same_bits() -> Fallible {
    // Enough epochs that a busy machine kills it before the last one.
    kill_and_continue(OPTIONS, "architecture.training.num_epochs=60")?;
    kill_and_continue(&pet_options()?, "architecture.training.num_epochs=12")
}

fn kill_and_continue(options: &str, epochs: &str) -> Fallible {
    let through = ethanol_with(options)?;
    assert_success(&through.run(&["train", "options.yaml", "-r", epochs])?);

    let killed = ethanol_with(options)?;
    kill_after(&killed, &["train", "options.yaml", "-r", epochs], "Epoch:    2 |")?;
    assert!(!killed.path("model.ckpt").exists(), "a killed run leaves no model");
    for entry in killed.entries()?.iter().filter(|entry| entry.ends_with(".ckpt")) {
        let copy = killed.path(entry);
        assert!(fs::metadata(&copy)?.len() > 1000, "{entry} is half-written");
    }
    let outcome = killed.run(&["train", "options.yaml", "-r", epochs, "--restart", "auto"])?;
    assert_success(&outcome);
    assert!(outcome.output.contains("Continuing the run of `outputs/"), "{}", outcome.output);
    assert!(!outcome.output.contains("Epoch:    1 |"), "it began anew:\n{}", outcome.output);
    assert_eq!(fs::read(through.path("model.ckpt"))?, fs::read(killed.path("model.ckpt"))?);

    // With nothing to continue, it starts, and says so.
    let fresh = ethanol_with(options)?;
    let outcome = fresh.run(&["train", "options.yaml", "-r", epochs, "--restart", "auto"])?;
    assert_success(&outcome);
    assert!(outcome.output.contains("no checkpoint") || outcome.errors.contains("no checkpoint"), "{outcome:?}");
    assert_eq!(fs::read(through.path("model.ckpt"))?, fs::read(fresh.path("model.ckpt"))?);
    Ok(())
}

#[test]
fn an_exported_model_gives_the_errors_of_the_training() -> Fallible {
    let place = ethanol()?;
    let trained = place.run(&["train", "options.yaml"])?;
    assert_success(&trained);

    // The test set as a file of its own.
    let indices = fs::read_to_string(run_folder(&place)?.join("indices/test.txt"))?;
    let frames: Vec<String> = fs::read_to_string(place.path("ethanol.xyz"))?
        .lines()
        .collect::<Vec<_>>()
        .chunks(11)
        .map(|lines| lines.join("\n"))
        .collect();
    let test =
        indices.lines().map(|index| Ok(frames[index.parse::<usize>()?].as_str())).collect::<Fallible<Vec<_>>>()?;
    place.write("test.xyz", &format!("{}\n", test.join("\n")))?;
    place.write(
        "eval.yaml",
        &fs::read_to_string(repository().join("fixtures/ethanol/eval.yaml"))?
            .replace("fixtures/ethanol/ethanol.xyz", "test.xyz"),
    )?;
    place.write("metadata.yaml", "name: Ethanol\nauthors: [A. Nonymous]\nreferences: {model: [none yet]}\n")?;

    let exported = place.run(&["export", "model.ckpt", "-o", "again.kiln", "-m", "metadata.yaml"])?;
    assert_success(&exported);
    let mut predictions = Vec::new();
    for (model, batch) in [("model.kiln", "3"), ("again.kiln", "3"), ("model.kiln", "64")] {
        let outcome = place.run(&["eval", model, "eval.yaml", "-o", "predicted.xyz", "-b", batch])?;
        assert_success(&outcome);
        for label in ["energy RMSE (per atom): ", "forces RMSE: "] {
            let expected = number(&trained.output, "Evaluating test dataset", label)?;
            let found = number(&outcome.output, "Evaluating dataset", label)?;
            // Both are printed with five digits; batches of another size add in another order.
            assert!((found - expected).abs() <= 2e-4 * expected, "{label}{found}, in the training {expected}");
        }
        predictions.push(fs::read_to_string(place.path("predicted.xyz"))?);
    }
    assert_eq!(predictions[0], predictions[1], "the exported model is another one");
    let frames = predictions[0].lines().collect::<Vec<_>>();
    assert_eq!(frames.len(), test.len() * 11, "one structure for each");
    assert!(frames[1].contains("energy=") && frames[1].contains("forces:R:3"), "{}", frames[1]);

    // Nothing but the model is needed: no architecture, no options of the training, no cache.
    let elsewhere = Workplace::new()?;
    for name in ["model.kiln", "test.xyz"] {
        fs::copy(place.path(name), elsewhere.path(name))?;
    }
    elsewhere.write("eval.yaml", "systems: test.xyz\n")?;
    let output = elsewhere
        .command(&["eval", "model.kiln", "eval.yaml", "-o", "predicted.xyz", "-b", "3"])
        .env("KILNBOX_ARCHITECTURES", elsewhere.path("nothing"))
        .env("XDG_CACHE_HOME", elsewhere.path("cache"))
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(elsewhere.path("predicted.xyz"))?, predictions[0]);
    Ok(())
}

#[test]
fn a_model_is_fine_tuned_to_a_new_target() -> Fallible {
    let place = ethanol()?;
    assert_success(&place.run(&["train", "options.yaml", "-o", "base.kiln"])?);
    let options = OPTIONS.replace("    energy:\n", "    mtt::other:\n      quantity: energy\n");
    let options = options.replace("  training:\n", "  training:\n    finetune: {read_from: base.ckpt}\n");
    place.write("finetune.yaml", &options)?;
    let outcome = place.run(&["train", "finetune.yaml", "-o", "tuned.kiln"])?;
    assert_success(&outcome);
    assert!(outcome.output.contains("Fine-tuning the model of `base.ckpt`"), "{}", outcome.output);
    place.write("eval.yaml", "systems: {read_from: ethanol.xyz, length_unit: angstrom}\n")?;
    assert_success(&place.run(&["eval", "tuned.kiln", "eval.yaml", "-o", "predicted.xyz"])?);
    let predicted = fs::read_to_string(place.path("predicted.xyz"))?;
    assert!(predicted.contains(" other="), "{}", predicted.lines().nth(1).unwrap_or_default());

    // On its own data, fine-tuning starts where the training ended.
    let same = OPTIONS.replace("  training:\n", "  training:\n    finetune: {read_from: base.ckpt}\n");
    place.write("same.yaml", &same.replace("num_epochs: 6", "num_epochs: 1"))?;
    let outcome = place.run(&["train", "same.yaml", "-o", "same.kiln"])?;
    assert_success(&outcome);
    let base = fs::read_to_string(run_log(&place, "base.ckpt")?)?;
    let (first, last) = (
        number(&base, "Epoch:    0 |", "training loss: ")?,
        number(&outcome.output, "Epoch:    0 |", "training loss: ")?,
    );
    assert!(last < first, "fine-tuning began with a loss of {last}, the training with {first}");
    Ok(())
}

/// The log of the run that left this file.
fn run_log(place: &Workplace, name: &str) -> Fallible<PathBuf> {
    let entries = place.entries()?;
    let file = entries.iter().find(|entry| entry.starts_with("outputs/") && Path::new(entry).ends_with(name));
    Ok(place.path(file.ok_or("no run left it")?).with_file_name("train.log"))
}

#[test]
fn stress_of_crystals_is_learned() -> Fallible {
    let place = Workplace::new()?;
    let soap_bpnn = [
        "architecture.model.soap.max_angular=2",
        "architecture.model.soap.max_radial=2",
        "architecture.model.bpnn.num_neurons_per_layer=8",
    ];
    let pet = [
        "architecture.name=pet",
        "architecture.model.d_pet=16",
        "architecture.model.d_node=24",
        "architecture.model.num_heads=2",
        "architecture.model.num_attention_layers=1",
    ];
    let training = [
        "architecture.training.num_epochs=8",
        "architecture.training.learning_rate=0.01",
        "architecture.training.log_interval=1",
    ];
    for small in [&soap_bpnn[..], &pet] {
        let mut arguments = vec!["train", "fixtures/copper/options.yaml"];
        arguments.extend(small.iter().chain(&training).flat_map(|option| ["-r", option]));
        let outcome = place.run(&arguments)?;
        assert_success(&outcome);
        for label in ["training forces RMSE: ", "training virial RMSE (per atom): "] {
            let (first, last) =
                (number(&outcome.output, "Epoch:    0 |", label)?, number(&outcome.output, "Epoch:    7 |", label)?);
            assert!(last < first, "{label}{first} at first, {last} in the end\n{}", outcome.output);
        }
    }
    Ok(())
}

#[test]
fn the_smallest_architecture_trains_as_well() -> Fallible {
    let place = ethanol()?;
    let rest = OPTIONS.split_once("training_set:").ok_or("no training set")?.1;
    let rest = rest.replace("      forces:\n        key: forces\n", "      forces: false\n");
    place.write("options.yaml", &format!("seed: 7\narchitecture: {{name: composition}}\ntraining_set:{rest}"))?;
    let outcome = place.run(&["train", "options.yaml"])?;
    assert_success(&outcome);
    // One composition: the mean is all that can be learned, so the error is the spread of the energies.
    let energies: Vec<f64> = fs::read_to_string(place.path("ethanol.xyz"))?
        .lines()
        .filter_map(|line| line.split_once(" energy=")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    let mean = energies.iter().sum::<f64>() / energies.len() as f64;
    let spread =
        (energies.iter().map(|energy| (energy - mean).powi(2)).sum::<f64>() / energies.len() as f64).sqrt() / 9.0;
    let found = number(&outcome.output, "Evaluating training dataset", "energy RMSE (per atom): ")?;
    assert!(found < 1.2 * spread && found > 0.5 * spread, "{found}, the spread is {spread}");
    Ok(())
}

/// Three runs at once in one folder do not disturb each other.
#[test]
fn runs_side_by_side_keep_apart() -> Fallible {
    let place = ethanol()?;
    let mut children = Vec::new();
    for k in 0..3 {
        let output = format!("m{k}.kiln");
        let arguments = ["train", "options.yaml", "-o", &output, "-r", "architecture.training.num_epochs=1"];
        children.push(place.command(&arguments).stdout(Stdio::null()).spawn()?);
    }
    for mut child in children {
        assert!(child.wait()?.success());
    }
    let checkpoints = (0..3).map(|k| fs::read(place.path(&format!("m{k}.ckpt")))).collect::<Result<Vec<_>, _>>()?;
    assert!(checkpoints.iter().all(|checkpoint| *checkpoint == checkpoints[0]));
    let logs = place.entries()?.iter().filter(|entry| entry.ends_with("train.log")).count();
    assert_eq!(logs, 3);
    Ok(())
}
