//! The limits of a session, met by a real architecture: each ends the run, with words that say which, and nothing else suffers.

use std::error::Error;
use std::time::Instant;

use kilnbox_host::{Engine, EngineOptions, HostError, Limits, Session};
use kilnbox_tensor::DType;
use kilnbox_tests::{Nobody, Training, on_processor, repository};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Trains SOAP-BPNN on the ethanol fixture within these limits.
fn train(limits: Limits, epochs: u32) -> Fallible<Result<usize, HostError>> {
    let overrides = [
        format!("architecture.training.num_epochs={epochs}"),
        "architecture.model.soap.max_angular=2".to_owned(),
        "architecture.model.bpnn.num_neurons_per_layer=8".to_owned(),
    ];
    let training = Training::read(&repository().join("fixtures/ethanol/options.yaml"), &overrides, 0)?;
    let component = Engine::new(&EngineOptions::default())?.load(&training.component)?;
    Ok((|| {
        let options = on_processor(limits);
        let mut session = Session::start(&component, options, Box::new(Nobody))?;
        let model = session.new_model(&training.hypers["model"].to_string(), &training.info, DType::Float32)?;
        let trainer = session.new_trainer(&training.hypers["training"].to_string())?;
        let device = ["cpu".to_owned()];
        session.train(&trainer, &model, DType::Float32, &device, training.training, training.validation)?;
        Ok(session.peak_tensor_bytes())
    })())
}

/// The words of the limit that ended it.
fn limit(limits: Limits) -> Fallible<String> {
    match train(limits, 1)? {
        Err(HostError::Limit { limit, message }) => Ok(format!("{limit}: {message}")),
        other => Err(format!("expected a limit, found {other:?}").into()),
    }
}

#[test]
fn tensor_memory_is_limited_to_the_byte() -> Fallible {
    let peak = train(Limits::default(), 1)?? as u64;
    assert!(peak > 1 << 20, "{peak} bytes");
    assert_eq!(train(Limits { tensor_bytes: peak, ..Limits::default() }, 1)?? as u64, peak);
    let message = limit(Limits { tensor_bytes: peak - 1, ..Limits::default() })?;
    assert!(message.contains(&format!("of {} are in use", peak - 1)), "{message}");
    Ok(())
}

#[test]
fn handles_and_the_guests_own_memory_are_limited() -> Fallible {
    let message = limit(Limits { handles: 20, ..Limits::default() })?;
    assert!(message.starts_with("handles: ") && message.contains("20 handles"), "{message}");
    let message = limit(Limits { guest_memory_bytes: 1 << 20, ..Limits::default() })?;
    assert!(message.contains("at most 1048576"), "{message}");
    let message = limit(Limits { table_entries: 1, ..Limits::default() })?;
    assert!(message.contains("at most 1"), "{message}");
    Ok(())
}

#[test]
fn a_training_ends_at_its_deadline() -> Fallible {
    let start = Instant::now();
    let outcome = train(Limits { seconds_per_run: 0.5, ..Limits::default() }, 1_000_000)?;
    assert!(matches!(outcome, Err(HostError::Limit { limit: "seconds_per_run", .. })), "{outcome:?}");
    // The clock ticks every 50 ms, and the machine may be busy with other tests.
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 10.0, "{seconds} s");
    Ok(())
}

#[test]
fn a_run_after_one_that_met_its_limit_is_not_disturbed() -> Fallible {
    let peak = train(Limits::default(), 1)??;
    limit(Limits { tensor_bytes: 1 << 20, ..Limits::default() })?;
    assert_eq!(train(Limits::default(), 1)??, peak);
    Ok(())
}
