//! What the sandbox costs: SOAP-BPNN trained by the same SDK code, linked natively and as a component, in turn in one process.
//!
//! `cargo xtask bench sandbox [OPTIONS.yaml]`. Both sides use the same kernels, services and threads; only the boundary differs. The two must
//! learn the very same numbers, or the comparison means nothing.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kilnbox_data::Dataset;
use kilnbox_host::{
    Checkpoint, Component, Engine, EngineOptions, Level, Limits, Metric, Observer, Session, SessionOptions,
};
use kilnbox_sdk::architecture::{Model as _, Trainer as _, TrainingRun};
use kilnbox_sdk::native;
use kilnbox_tensor::{DType, Device};
use kilnbox_tests::{Training, reference, repository};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;
type NativeTrainer = soap_bpnn::trainer::Trainer;
type NativeModel = <NativeTrainer as kilnbox_sdk::architecture::Trainer>::Model;

const EPOCHS: usize = 30;
/// Pairs of runs: every other time the sandbox goes first, so that neither side has the quieter half of a busy machine.
const PAIRS: usize = 10;
const SEED: u64 = 0;

/// When each epoch ended, and the numbers it reported.
#[derive(Clone, Debug, Default)]
struct Clock(Arc<Mutex<Vec<(Instant, Vec<f64>)>>>);

impl Observer for Clock {
    fn log(&mut self, _: Level, _: &str) {}
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, metrics: &[Metric]) {
        let values = metrics.iter().map(|metric| metric.value).collect();
        if let Ok(mut epochs) = self.0.lock() {
            epochs.push((Instant::now(), values));
        }
    }
    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Ok(())
    }
}

impl Clock {
    /// The seconds of each epoch, the first left out, and everything that was reported.
    fn read(&self) -> Fallible<(Vec<f64>, Vec<Vec<f64>>)> {
        let epochs = self.0.lock().map_err(|_| "the clock was poisoned")?;
        let seconds = epochs.windows(2).map(|pair| (pair[1].0 - pair[0].0).as_secs_f64()).collect();
        Ok((seconds, epochs.iter().map(|(_, values)| values.clone()).collect()))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The two sides, on the same data.
struct Work(Training);

impl Work {
    fn natively(&self) -> Fallible<Clock> {
        let clock = Clock::default();
        native::enter(Device::cpu(), SEED, Box::new(clock.clone()));
        let datasets = |sets: &[Dataset]| sets.iter().cloned().map(native::dataset).collect::<Vec<_>>();
        let run = TrainingRun {
            dtype: DType::Float32.into(),
            devices: vec!["cpu".to_owned()],
            train: datasets(&self.0.training),
            validation: datasets(&self.0.validation),
            folder: native::checkpoint_folder(),
        };
        let info = run.train.first().ok_or("there is no training set")?.info();
        let mut model = NativeModel::new(&self.0.hypers["model"].to_string(), info, DType::Float32.into())?;
        let mut trainer = NativeTrainer::new(&self.0.hypers["training"].to_string())?;
        trainer.train(&mut model, run)?;
        Ok(clock)
    }

    fn sandboxed(&self, component: &Component) -> Fallible<Clock> {
        let clock = Clock::default();
        let options = SessionOptions { device: Device::cpu(), seed: SEED, limits: Limits::default(), on_overrun: None };
        let mut session = Session::start(component, options, Box::new(clock.clone()))?;
        let model = session.new_model(&self.0.hypers["model"].to_string(), &self.0.info, DType::Float32)?;
        let trainer = session.new_trainer(&self.0.hypers["training"].to_string())?;
        let (training, validation) = (self.0.training.clone(), self.0.validation.clone());
        session.train(&trainer, &model, DType::Float32, &["cpu".to_owned()], training, validation)?;
        Ok(clock)
    }
}

fn bench(options: &Path) -> Fallible {
    let epochs = format!("architecture.training.num_epochs={EPOCHS}");
    let overrides = [epochs, "architecture.training.log_interval=1".to_owned()];
    let training = Training::read(options, &overrides, SEED)?;
    let component = Engine::new(&EngineOptions::default())?.load(&training.component)?;
    let work = Work(training);
    let (mut natively, mut sandboxed) = (Vec::new(), Vec::new());
    let mut numbers: Option<Vec<Vec<f64>>> = None;
    for pair in 0..PAIRS {
        for is_sandboxed in [pair % 2 == 1, pair % 2 == 0] {
            let clock = if is_sandboxed { work.sandboxed(&component)? } else { work.natively()? };
            let (seconds, learned) = clock.read()?;
            if numbers.get_or_insert_with(|| learned.clone()) != &learned {
                return Err("the sandboxed training learned other numbers than the native one".into());
            }
            if is_sandboxed { &mut sandboxed } else { &mut natively }.extend(seconds);
        }
    }
    let (plain, guarded) = (median(natively), median(sandboxed));
    eprintln!("soap-bpnn train epoch: native {plain:.4} s, sandboxed {guarded:.4} s, medians over {PAIRS} runs each");
    #[expect(clippy::print_stdout, reason = "the result of a benchmark")]
    {
        println!("ratio soap-bpnn train epoch, sandboxed over native = {:.3}", guarded / plain);
    }
    Ok(())
}

fn main() -> Fallible {
    let options = std::env::args_os().nth(1).map(PathBuf::from);
    let options = options.or_else(|| reference("soap-bpnn-ethanol.yaml"));
    let options = options.unwrap_or_else(|| repository().join("fixtures/ethanol/options.yaml"));
    kilnbox_host::on_worker(None, || bench(&options))?
}
