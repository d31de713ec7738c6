//! Fine-tuning through the real program: what a trained model keeps, learns and forgets.

use std::error::Error;
use std::fs;

use kilnbox_tests::{Outcome, Workplace, ethanol_structures};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// An architecture small enough to train in a second.
struct Architecture {
    name: &'static str,
    model: &'static str,
    /// Adapters of some of its layers.
    lora: &'static str,
}

const SOAP_BPNN: Architecture = Architecture {
    name: "soap_bpnn",
    model: "{soap: {max_angular: 2, max_radial: 2, cutoff: {radius: 4.0, width: 0.5}}, bpnn: {num_hidden_layers: 2, num_neurons_per_layer: 8}, \
            heads: {energy: mlp, 'mtt::other': mlp}}",
    lora: "method: lora, config: {rank: 2, target_modules: [hidden.layers.0, hidden.layers.1]}, inherit_heads: {'mtt::other': energy}",
};

const PET: Architecture = Architecture {
    name: "pet",
    model: "{d_pet: 16, d_head: 8, d_node: 24, d_feedforward: 16, num_heads: 2, num_attention_layers: 1}",
    // The layers are those that metatrain adapts unless it is told otherwise.
    lora: "method: lora, inherit_heads: {'mtt::other': energy}",
};

/// Options for a target of this name that is the energy of the fixture.
fn options(architecture: &Architecture, target: &str, finetune: &str) -> String {
    let Architecture { name, model, .. } = architecture;
    format!(
        "\
seed: 7
architecture:
  name: {name}
  model: {model}
  training:
    num_epochs: 4
    batch_size: 4
    learning_rate: 0.01
    log_interval: 1
    checkpoint_interval: 1
    finetune: {finetune}
training_set:
  systems:
    read_from: ethanol.xyz
    length_unit: angstrom
  targets:
    {target}:
      quantity: energy
      key: energy
      unit: eV
      forces:
        key: forces
validation_set: 0.2
test_set: 0.2
"
    )
}

/// A place with the first 40 structures of the ethanol fixture, and a model of their energies in `base.kiln`.
fn with_base(architecture: &Architecture) -> Fallible<Workplace> {
    let place = Workplace::new()?;
    place.write("ethanol.xyz", &ethanol_structures(40)?)?;
    place.write("eval.yaml", "systems: {read_from: ethanol.xyz, length_unit: angstrom}\n")?;
    place.write("base.yaml", &options(architecture, "energy", "{read_from: null}"))?;
    assert_success(&place.run(&["train", "base.yaml", "-o", "base.kiln"])?);
    Ok(place)
}

/// Fine-tunes `base.ckpt` to another target.
fn finetune(place: &Workplace, architecture: &Architecture, name: &str, method: &str) -> Fallible<Outcome> {
    let finetune = format!("{{read_from: base.ckpt, {method}}}");
    place.write(&format!("{name}.yaml"), &options(architecture, "mtt::other", &finetune))?;
    Ok(place.run(&["train", &format!("{name}.yaml"), "-o", &format!("{name}.kiln")])?)
}

/// What a model predicts for each structure: the line of its quantities.
fn predictions(place: &Workplace, model: &str) -> Fallible<Vec<String>> {
    assert_success(&place.run(&["eval", model, "eval.yaml", "-o", "predicted.xyz"])?);
    let text = fs::read_to_string(place.path("predicted.xyz"))?;
    Ok(text.lines().skip(1).step_by(11).map(str::to_owned).collect())
}

/// The number of a quantity in such a line.
fn quantity<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[track_caller]
fn assert_success(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.output, outcome.errors);
}

#[test]
fn adapters_are_part_of_the_model_and_survive_an_interruption() -> Fallible {
    adapt(&SOAP_BPNN)?;
    adapt(&PET)
}

fn adapt(architecture: &Architecture) -> Fallible {
    let place = with_base(architecture)?;
    let outcome = finetune(&place, architecture, "tuned", architecture.lora)?;
    assert_success(&outcome);
    let expected = "fine-tuning with the method `lora` trains ";
    assert!(outcome.output.contains(expected), "`{expected}` is not in\n{}", outcome.output);
    let predicted = predictions(&place, "tuned.kiln")?;
    assert!(
        quantity(&predicted[0], "other").is_some() && quantity(&predicted[0], "energy").is_none(),
        "{}",
        predicted[0]
    );

    let folder = outcome.output.rsplit_once("The run is in `").and_then(|(_, rest)| rest.split('`').next());
    let interrupted = format!("{}/model_1.ckpt", folder.ok_or("the run does not say where it is")?);
    let outcome = place.run(&["train", "tuned.yaml", "-o", "again.kiln", "--restart", &interrupted])?;
    assert_success(&outcome);
    assert!(!outcome.output.contains("Epoch:    1 |"), "it began anew:\n{}", outcome.output);
    assert_eq!(fs::read(place.path("tuned.ckpt"))?, fs::read(place.path("again.ckpt"))?);
    Ok(())
}

#[test]
fn training_heads_leaves_other_targets_as_they_were() -> Fallible {
    for architecture in [&SOAP_BPNN, &PET] {
        let place = with_base(architecture)?;
        let method = "method: heads, inherit_heads: {'mtt::other': energy}";
        assert_success(&finetune(&place, architecture, "tuned", method)?);
        let (before, after) = (predictions(&place, "base.kiln")?, predictions(&place, "tuned.kiln")?);
        assert_eq!(before.len(), 40);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(quantity(before, "energy"), quantity(after, "energy"));
            assert!(quantity(after, "other").is_some(), "{after}");
        }
    }
    Ok(())
}

#[test]
fn with_nothing_to_continue_it_starts_from_the_model() -> Fallible {
    let base = with_base(&SOAP_BPNN)?;
    let place = Workplace::new()?;
    for name in ["ethanol.xyz", "base.ckpt"] {
        fs::copy(base.path(name), place.path(name))?;
    }
    place.write("options.yaml", &options(&SOAP_BPNN, "energy", "{read_from: base.ckpt}"))?;
    let outcome = place.run(&["train", "options.yaml", "--restart", "auto"])?;
    assert_success(&outcome);
    assert!(outcome.output.contains("Fine-tuning the model of `base.ckpt`"), "{}", outcome.output);
    // The second time there is a run to continue.
    let outcome = place.run(&["train", "options.yaml", "--restart", "auto"])?;
    assert_success(&outcome);
    assert!(outcome.output.contains("Continuing the run of `outputs/"), "{}", outcome.output);
    Ok(())
}

#[test]
fn mistakes_are_found_by_name() -> Fallible {
    let place = with_base(&SOAP_BPNN)?;
    let cases = [
        ("method: half", "architecture.training.finetune.method"),
        ("method: lora, config: {rnk: 3}", "rank"),
        ("method: lora", "`training.finetune.config.target_modules` has `input_linear`"),
        (
            "method: heads, config: {head_modules: [node_heads]}",
            "`training.finetune.config` names the module `node_heads`, which the model does not have",
        ),
        (
            "inherit_heads: {'mtt::other': 'mtt::missing'}",
            "`training.finetune.inherit_heads` names the target `mtt::missing`, which neither the model nor the data have",
        ),
    ];
    for (finetuning, expected) in cases {
        let outcome = finetune(&place, &SOAP_BPNN, "tuned", finetuning)?;
        assert_eq!(outcome.code, Some(1), "{finetuning}: {}\n{}", outcome.output, outcome.errors);
        assert!(outcome.errors.contains(expected), "{finetuning}: `{expected}` is not in\n{}", outcome.errors);
    }
    Ok(())
}
