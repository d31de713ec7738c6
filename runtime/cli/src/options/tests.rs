//! YAML text in; options, or the text of an error, out.

use super::*;

/// The least that a file of options must hold.
const BASE: &str = "\
architecture:
  name: soap-bpnn
training_set: train.xyz
validation_set: 0.1
";

/// The options as `options_restart.yaml` would hold them (with no hypers), or the error.
fn check(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    match TrainOptions::parse(text, "options.yaml", &overrides) {
        Ok(options) => options.to_json(&json!({})).to_string(),
        Err(error) => error.to_string(),
    }
}

/// The options of a file whose training set is this text, indented by two.
fn dataset(text: &str) -> Result<DatasetOptions, String> {
    let text = format!("architecture: {{name: x}}\nvalidation_set: 0.1\ntraining_set:\n{text}");
    TrainOptions::parse(&text, "o.yaml", &[])
        .map(|mut options| options.training_set.remove(0))
        .map_err(|error| error.to_string())
}

fn target(text: &str) -> Result<TargetOptions, String> {
    dataset(&format!("  systems: s.xyz\n  targets:\n{text}")).map(|mut dataset| dataset.targets.remove(0))
}

#[test]
fn a_file_name_stands_for_energies_with_forces_and_stress_if_there_are_any() {
    let dataset = TrainOptions::parse(BASE, "o.yaml", &[]).expect("the options are read").training_set.remove(0);
    let [energy] = dataset.targets.as_slice() else { panic!("one target is expected") };
    assert_eq!((energy.name.as_str(), energy.key.as_str(), energy.is_energy()), ("energy", "energy", true));
    assert_eq!(energy.read_from, Path::new("train.xyz"));
    for gradient in [&energy.forces, &energy.stress] {
        assert!(!gradient.as_ref().expect("the gradient is tried").required);
    }
    assert!(energy.virial.is_none());
}

#[test]
fn the_options_of_metatrains_ethanol_example_are_read() {
    let text = "\
seed: 0
architecture:
  name: soap_bpnn
  training: {num_epochs: 100, batch_size: 8, log_mae: true}
training_set:
  systems:
    read_from: ethanol_reduced_100.xyz
    length_unit: angstrom
  targets:
    energy:
      key: energy
      unit: kcal/mol
      forces:
        key: forces
      stress: false
  indices: ethanol_split/training.txt
validation_set:
  indices: ethanol_split/validation.txt
test_set:
  indices: ethanol_split/test.txt
";
    let options = TrainOptions::parse(text, "options.yaml", &[]).expect("the options are read");
    assert_eq!(options.seed, Some(0));
    assert_eq!(options.training_set[0].systems.length_unit, "angstrom");
    let energy = &options.training_set[0].targets[0];
    assert!(energy.forces.as_ref().expect("forces are on").required);
    assert!(energy.stress.is_none());
    assert_eq!(options.test_set, SplitOptions::Indices(IndicesOptions::File("ethanol_split/test.txt".into())));
}

#[test]
fn the_expanded_options_are_read_back_as_the_same() {
    let text = "\
architecture: {name: soap-bpnn, atomic_types: [8, 1, 6]}
device: cpu
base_precision: 64
seed: 3
final_eval: off
training_set:
  - systems: {read_from: a.xyz, reader: ase, length_unit: angstrom}
    targets:
      energy: {key: U0, unit: eV, virial: true}
      mtt::dos: {num_subtargets: 4000, sample_kind: atom, description: density of states}
      mtt::dipole: {type: {cartesian: {rank: 1}}, read_from: d.xyz}
      mtt::l: {type: {spherical: {irreps: [{o3_lambda: 2, o3_sigma: -1, num: 3}], product: coupled}}}
    extra_data: {mtt::dos_mask: mask.xyz}
    indices: [0, 2]
validation_set: {systems: v.xyz, targets: {energy: {unit: eV}}}
test_set: 0
";
    // Lengths must agree, so the validation set names its unit too.
    let text = text.replace("systems: v.xyz", "systems: {read_from: v.xyz, length_unit: angstrom}");
    let options = TrainOptions::parse(&text, "o.yaml", &[]).expect("the options are read");
    let hypers = json!({"model": {"cutoff": 5.0, "one": 1}, "training": {"name": "null", "none": null}});
    let yaml = options.to_yaml(&hypers).expect("the options are written");

    let again = TrainOptions::parse(&yaml, "options_restart.yaml", &[]).expect("the options are read again");

    assert_eq!(again.to_json(&hypers), options.to_json(&hypers), "{yaml}");
    let section = again.architecture.node.to_json();
    assert_eq!((&section["model"], &section["training"]), (&hypers["model"], &hypers["training"]));
}

#[test]
fn unknown_keys_are_refused_with_place_and_hint() {
    let cases = [
        ("seeed: 1\n", "error: options.yaml:5:1: unknown key `seeed`\n  hint: use `seed`"),
        (
            "zzz: 1\n",
            "error: options.yaml:5:1: unknown key `zzz`\n  hint: the keys here are `architecture`, `base_precision`, \
             `device`, `final_eval`, `print_stats`, `seed`, `test_set`, `training_set`, `validation_set`, `wandb`",
        ),
    ];
    for (addition, expected) in cases {
        assert_eq!(check(&format!("{BASE}{addition}"), &[]), expected);
    }
    let text = BASE.replace("  name: soap-bpnn", "  name: soap-bpnn\n  trainning: {}");
    assert_eq!(
        check(&text, &[]),
        "error: options.yaml:3:3: unknown key `architecture.trainning`\n  hint: use `training`"
    );
}

#[test]
fn wrong_values_are_refused_with_what_was_expected() {
    let cases = [
        ("seed: -1", "5:7: `seed` must be an integer from 0 to 4294967295, and is the integer `-1`"),
        ("seed: true", "5:7: `seed` must be an integer, and is `true`"),
        ("seed: 8.0", "5:7: `seed` must be an integer, and is the number `8.0`"),
        ("seed: '8'", "5:7: `seed` must be an integer, and is the text `8`"),
        ("base_precision: 31", "`base_precision` must be 16, 32 or 64"),
        ("device: cdua", "hint: use `cuda`"),
        ("device: ${default_device:}", "`${...}` is not replaced by kilnbox"),
        (
            "test_set: {systems: a.xyz, targets: {\"mtt::${u}\": {}}}",
            "the key `test_set.targets.mtt::${u}`: `${...}` is not",
        ),
        ("final_eval: 1", "`final_eval` must be `true` or `false`, and is the integer `1`"),
        ("print_stats: 3", "`print_stats` must be `true`, `false` or `auto`"),
        ("wandb: {}", "`wandb` is not supported"),
        ("test_set: 1.0", "`test_set` must be a fraction of the training set, at least 0 and below 1"),
        ("test_set: 0.95", "4:17: `validation_set` and `test_set` together take 1.05 of the structures"),
        ("test_set: true", "5:11: `test_set` must be a file name, a dataset or a list of datasets, and is `true`"),
        ("test_set: [a.xyz, b.xyz]", "`test_set` has 2 datasets and `training_set` has 1"),
        ("test_set: {indices: [0, -1]}", "`test_set.indices[1]` must be an integer from 0"),
        ("test_set: []", "`test_set` is an empty list of datasets"),
    ];
    for (addition, expected) in cases {
        let message = check(&format!("{BASE}{addition}\n"), &[]);
        assert!(message.starts_with("error: options.yaml:") && message.contains(expected), "{addition}: {message}");
    }
}

#[test]
fn what_must_be_there_is_asked_for() {
    let without = |line: &str| {
        BASE.lines().filter(|other| !other.contains(line)).map(|line| format!("{line}\n")).collect::<String>()
    };
    assert!(check(&without("training_set"), &[]).contains("options.yaml:1:1: `training_set` is missing"));
    assert!(check(&without("validation_set"), &[]).contains("`validation_set` is missing"));
    assert!(check(&without("name"), &[]).contains("`architecture` is missing"));
    assert!(check("- a\n", &[]).contains("the file must be a section with keys, and is a list"));
    assert!(
        dataset("  systems: a.xyz\n").expect_err("targets are missing").contains("`training_set.targets` is missing")
    );
    assert!(dataset("  systems: a.xyz\n  targets: {}\n").expect_err("no targets").contains("nothing to learn"));
}

#[test]
fn overrides_win_and_are_named_in_errors() {
    assert!(check(BASE, &["seed=7", "architecture.name=pet"]).contains(r#""name":"pet"},"seed":7"#));
    assert_eq!(check(BASE, &["sed=7"]), "error: in override `-r sed=7`: unknown key `sed`\n  hint: use `seed`");
    assert!(check(BASE, &["seed=x"]).starts_with("error: in override `-r seed=x`: `seed` must be an integer"));
}

#[test]
fn targets_take_every_key_and_their_defaults() {
    let plain = target("    mtt::U0: {}\n").expect("the target is read");
    assert_eq!((plain.key.as_str(), plain.quantity.as_str(), plain.num_subtargets), ("mtt::U0", "", 1));
    assert!(plain.forces.is_none() && plain.stress.is_none());

    let energy = target("    mtt::U0: {quantity: energy, forces: f.xyz, stress: off}\n").expect("the target is read");
    let forces = energy.forces.expect("forces are on");
    assert_eq!(
        (forces.read_from.as_path(), forces.key.as_str(), forces.required),
        (Path::new("f.xyz"), "forces", true)
    );
    assert!(energy.stress.is_none());

    let virial = target("    energy/pbe: {virial: {key: w}}\n").expect("the target is read");
    assert!(virial.stress.is_none() && virial.virial.expect("the virial is on").key == "w");

    let file = target("    energy: e.xyz\n").expect("the target is read");
    assert_eq!(file.forces.expect("forces are tried").read_from, Path::new("e.xyz"));
}

#[test]
fn wrong_targets_are_refused() {
    let cases = [
        ("    enrgy: {}\n", "hint: use `energy`, or `mtt::enrgy` for a quantity of your own"),
        ("    U0: {}\n", "hint: use `mtt::U0`"),
        ("    energy: {stress: true, virial: true}\n", "the same derivative"),
        ("    mtt::a: {forces: true}\n", "only energies do"),
        ("    energy: {forces: true, num_subtargets: 2}\n", "must be one scalar per system"),
        ("    energy: {forces: 3}\n", "`training_set.targets.energy.forces` must be `true`, `false`, a file name"),
        ("    energy: {forces: {kee: a}}\n", "unknown key `training_set.targets.energy.forces.kee`\n  hint: use `key`"),
        ("    energy: {type: vector}\n", "a vector is `{cartesian: {rank: 1}}`"),
        ("    mtt::a: {type: {cartesian: {rank: 0}}}\n", "at least 1"),
        ("    mtt::a: {type: {spherical: {irreps: {1: []}}}}\n", "atomic basis are not supported yet"),
        ("    mtt::a: {type: {spherical: {irreps: [{o3_lambda: 1, o3_sigma: 2}]}}}\n", "must be 1 or -1"),
        ("    mtt::a: {per_atom: true, sample_kind: atom}\n", "both given"),
        ("    mtt::energy: {}\n    energy: {}\n", "are the same name"),
        ("    energy: {reader: asse}\n", "hint: use `ase`"),
    ];
    for (text, expected) in cases {
        let message = target(text).expect_err("the target is refused");
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn old_names_are_read_with_a_warning() {
    let text = "\
architecture: {name: x}
validation_set: 0.1
training_set:
  systems: s.xyz
  targets:
    non_conservative_forces: {per_atom: true, type: {cartesian: {rank: 1}}}
";
    let options = TrainOptions::parse(text, "o.yaml", &[]).expect("the options are read");
    assert_eq!(options.training_set[0].targets[0].name, "non_conservative_force");
    assert_eq!(options.warnings.len(), 2, "{:?}", options.warnings);
}

#[test]
fn units_must_agree_across_sets() {
    let text = "\
architecture: {name: x}
training_set: {systems: a.xyz, targets: {energy: {unit: eV}}}
validation_set: {systems: b.xyz, targets: {energy: {unit: meV}}}
";
    assert!(
        check(text, &[])
            .contains("`validation_set` has target `energy` in `meV`, and the first training dataset in `eV`")
    );
}

#[test]
fn evaluation_needs_no_targets() {
    let options =
        EvalOptions::parse("- systems: a.xyz\n- b.xyz\n- systems: c.xyz\n  targets: {energy: {}}\n", "eval.yaml")
            .expect("the options are read");
    let numbers: Vec<_> = options.datasets.iter().map(|dataset| dataset.targets.len()).collect();
    assert_eq!(numbers, [0, 0, 1]);
    let message = EvalOptions::parse("system: a.xyz\n", "eval.yaml").expect_err("the key is unknown").to_string();
    assert_eq!(message, "error: eval.yaml:1:1: unknown key `system`\n  hint: use `systems`");
}
