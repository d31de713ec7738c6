//! Training and evaluating on a device other than the processor, with the real program. `cargo xtask test --device NAME` runs it on one.

use std::error::Error;

use kilnbox_tests::{Workplace, ethanol_structures};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const OPTIONS: &str = "\
seed: 7
architecture:
  name: NAME
  model: MODEL
  training: {num_epochs: 2, batch_size: 4, log_interval: 1, learning_rate: 0.001}
training_set:
  systems: {read_from: data.xyz, length_unit: angstrom}
  targets:
    energy: {key: energy, unit: eV, forces: {key: forces}}
validation_set: 0.25
test_set: 0
";

/// The architectures that are trained. PET is a small one: a device in software takes minutes for a step of it at its own size.
const ARCHITECTURES: [(&str, &str); 2] = [
    ("soap-bpnn", "{}"),
    (
        "pet",
        "{d_pet: 16, d_head: 16, d_node: 32, d_feedforward: 32, num_heads: 2, num_attention_layers: 1, num_gnn_layers: 2}",
    ),
];

/// The options with an architecture put in.
fn options((name, model): (&str, &str)) -> String {
    OPTIONS.replace("NAME", name).replace("MODEL", model)
}

/// The device that was asked for; says so where none was.
fn device() -> Option<String> {
    let name = std::env::var("KILNBOX_TEST_DEVICE").ok().filter(|name| name != "cpu");
    if name.is_none() {
        eprintln!("no device but the processor: `cargo xtask test --device NAME` tests one");
    }
    name
}

/// All numbers of a file of predictions.
fn numbers(text: &str) -> Vec<f64> {
    let is_separator = |letter: char| letter.is_whitespace() || "=\"".contains(letter);
    text.split(is_separator).filter(|word| word.contains('.')).filter_map(|word| word.parse().ok()).collect()
}

/// Compares what single precision on two devices gives: sums in another order, through some layers, and their derivatives.
fn assert_near(what: &str, found: &[f64], expected: &[f64]) {
    /// Of the largest number.
    const TOLERANCE: f64 = 1e-4;
    assert!(found.len() == expected.len() && expected.len() > 50, "{what}: {} and {}", found.len(), expected.len());
    for (k, (found, expected)) in found.iter().zip(expected).enumerate() {
        let near = (found - expected).abs() <= TOLERANCE * (1.0 + expected.abs());
        assert!(near, "{what}: number {k} is {found}, expected {expected}");
    }
}

/// The numbers of the line of an epoch in `train.csv`: number and learning rate, losses and errors.
fn epochs(place: &Workplace) -> Fallible<Vec<Vec<f64>>> {
    let name =
        place.entries()?.into_iter().rfind(|entry| entry.ends_with("train.csv")).ok_or("there is no train.csv")?;
    let text = std::fs::read_to_string(place.path(&name))?;
    Ok(text.lines().map(|line| line.split(',').filter_map(|cell| cell.parse().ok()).collect()).collect())
}

#[test]
fn models_are_trained_and_evaluated_on_a_device_as_on_the_processor() -> Fallible {
    let Some(device) = device() else { return Ok(()) };
    for whole in ARCHITECTURES {
        let architecture = whole.0;
        let train = |device: &str| -> Fallible<Workplace> {
            let place = Workplace::new()?;
            place.write("options.yaml", &options(whole))?;
            place.write("data.xyz", &ethanol_structures(16)?)?;
            place.write("eval.yaml", "systems: {read_from: data.xyz, length_unit: angstrom}\n")?;
            let outcome = place.run(&["train", "options.yaml", "--device", device])?;
            assert_eq!(outcome.code, Some(0), "{architecture} on {device}: {}", outcome.errors);
            Ok(place)
        };
        let (there, here) = (train(&device)?, train("cpu")?);
        for (line, (found, expected)) in epochs(&there)?.iter().zip(&epochs(&here)?).enumerate() {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                // Steps of an optimizer carry differences in the last digits on: after a few, three digits are left.
                let near = (found - expected).abs() <= 1e-3 * expected.abs() + 1e-9;
                assert!(near, "{architecture}, line {line} of train.csv: {found}, on the processor {expected}");
            }
        }
        // The model that was trained on the device runs on either.
        let mut predictions = Vec::new();
        for on in [device.as_str(), "cpu"] {
            let outcome = there.run(&["eval", "model.kiln", "eval.yaml", "--device", on])?;
            assert_eq!(outcome.code, Some(0), "{architecture} on {on}: {}", outcome.errors);
            predictions.push(numbers(&std::fs::read_to_string(there.path("output.xyz"))?));
        }
        assert_near(architecture, &predictions[0], &predictions[1]);
    }
    Ok(())
}

#[test]
fn a_device_without_double_precision_says_so() -> Fallible {
    let Some(device) = device().filter(|device| device != "cuda") else { return Ok(()) };
    let place = Workplace::new()?;
    place.write("options.yaml", &format!("base_precision: 64\ndevice: {device}\n{}", options(ARCHITECTURES[0])))?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    let outcome = place.run(&["train", "options.yaml"])?;
    assert_eq!(outcome.code, Some(1), "{}", outcome.errors);
    assert!(outcome.errors.contains("does not compute in float64"), "{}", outcome.errors);
    assert!(outcome.errors.contains("base_precision: 32"), "{}", outcome.errors);
    Ok(())
}

#[test]
fn a_device_that_is_not_in_the_program_or_does_not_exist_is_refused() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", &options(ARCHITECTURES[0]))?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    for (device, words) in [("cdua", "use `cuda`"), ("abacus", "there are `cpu`, `gpu`"), ("mps", "metal")] {
        let outcome = place.run(&["train", "options.yaml", "--device", device])?;
        assert_eq!(outcome.code, Some(1), "{device}: {}", outcome.errors);
        assert!(outcome.errors.contains(words), "{device}: {}", outcome.errors);
    }
    Ok(())
}
