//! `kilnbox run`: programs that use trained models.

use std::error::Error;

use kilnbox_tests::{Workplace, client};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// A place with a model of ethanol that has learnt a little.
fn place() -> Fallible<Workplace> {
    let place = Workplace::new()?;
    // In double precision: a simulation in single precision is as good, but its total energy is rounded to 3e-5 eV.
    let outcome = place.run(&[
        "train",
        "fixtures/ethanol/options.yaml",
        "-o",
        "model.kiln",
        "-r",
        "base_precision=64",
        "-r",
        "architecture.training.num_epochs=8",
        "-r",
        "architecture.model.soap.max_angular=2",
        "-r",
        "architecture.model.bpnn.num_neurons_per_layer=8",
    ])?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    Ok(place)
}

/// The standard deviations of the total and of the potential energy, of the last line.
fn deviations(output: &str) -> Fallible<[f64; 2]> {
    let line = output.lines().last().ok_or("no line")?;
    let numbers: Vec<f64> =
        line.split_whitespace().filter(|word| word.contains('e')).filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().map_err(|_| format!("no two numbers: {line}").into())
}

#[test]
fn a_simulation_runs_and_conserves_energy() -> Fallible {
    let place = place()?;
    let client = client("molecular_dynamics.wasm");
    let client = client.to_str().ok_or("a path that is no text")?;
    let simulate = |time_step: &str, steps: &str| -> Fallible<[f64; 2]> {
        let arguments = [
            "run",
            "--model",
            "ethanol=model.kiln",
            client,
            "--time-step",
            time_step,
            "--steps",
            steps,
            "--temperature",
            "100",
        ];
        let outcome = place.run(&arguments)?;
        assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.output, outcome.errors);
        assert!(outcome.output.lines().count() >= 5, "{}", outcome.output);
        deviations(&outcome.output)
    };
    let (coarse, fine) = (simulate("0.4", "100")?, simulate("0.2", "200")?);
    assert!(coarse[0] < 0.05 * coarse[1], "{coarse:?}");
    // The integrator is of second order: forces that were not those of the energy would leave the same error with any step.
    assert!((3.0..5.0).contains(&(coarse[0] / fine[0])), "{coarse:?} {fine:?}");

    let in_a_box =
        ["run", "-m", "model.kiln", client, "--model", "model", "--molecules", "8", "--steps", "2", "--every", "0"];
    let outcome = place.run(&in_a_box)?;
    assert_eq!((outcome.code, outcome.errors.as_str()), (Some(0), ""), "{}", outcome.output);
    assert!(outcome.output.contains("72 atoms, 2 steps"), "{}", outcome.output);
    Ok(())
}

#[test]
fn what_is_wrong_is_said_in_a_sentence() -> Fallible {
    let place = place()?;
    let client = client("molecular_dynamics.wasm");
    let client = client.to_str().ok_or("a path that is no text")?;
    let architecture = std::env::var("KILNBOX_ARCHITECTURES")?;
    let architecture = format!("{}/composition/architecture.wasm", architecture.split(':').next().unwrap_or_default());
    place.write("no.wasm", "no component")?;
    let cases: [(&[&str], i32, &[&str]); 9] = [
        // What the client says itself, through its standard error.
        (
            &["-m", "other=model.kiln", client],
            3,
            &["there is no model `ethanol", "there are `other`", "says that it failed"],
        ),
        (&["-m", "ethanol=model.kiln", client, "--steps"], 3, &["`--steps` has no value", "says that it failed"]),
        (&[client], 3, &["there are none"]),
        (&["-m", "a=model.kiln", "-m", "a=model.kiln", client], 1, &["two models are called `a`"]),
        (&["-m", "a#b=model.kiln", client], 1, &["names no model", "--model NAME=FILE"]),
        (&["-m", "missing.kiln", client], 1, &["missing.kiln"]),
        (&["-m", "ethanol=model.kiln", "no.wasm"], 1, &["`no.wasm`", "not a WebAssembly component"]),
        (
            &[&architecture],
            1,
            &["it asks for `kilnbox:architecture/", "a client is given `wasi:nn@0.2.0-rc-2024-10-28`"],
        ),
        (
            &["-m", "ethanol=model.kiln", "--limit", "seconds_per_run=0.3", client, "--steps", "1000000"],
            4,
            &["exceeded the limit `seconds_per_run`"],
        ),
    ];
    for (arguments, code, words) in cases {
        let outcome = place.run(&[&["run"], arguments].concat())?;
        assert_eq!(outcome.code, Some(code), "{arguments:?}: {}", outcome.errors);
        for word in words {
            assert!(outcome.errors.contains(word), "{arguments:?}: `{word}` is not in {}", outcome.errors);
        }
    }
    Ok(())
}
