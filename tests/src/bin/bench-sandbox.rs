//! What the sandbox costs, and what its limits do: SOAP-BPNN trained by the same SDK code, linked natively, as a component with the default limits, and as
//! a component without limits and without deadlines, in turn in one process.
//!
//! `cargo xtask bench sandbox [OPTIONS.yaml]`. All sides use the same kernels, services and threads; only the boundary differs. They must
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
use kilnbox_tensor::allocator::Allocator;
use kilnbox_tensor::context::Context;
use kilnbox_tensor::{DType, Device};
use kilnbox_tests::{Training, reference, repository};

/// As in the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;
type NativeTrainer = soap_bpnn::trainer::Trainer;
type NativeModel = <NativeTrainer as kilnbox_sdk::architecture::Trainer>::Model;

const EPOCHS: usize = 15;
/// Rounds of one run of each side; each side goes first in every third one. Sides are compared within a round, which takes a few seconds: what else the
/// machine does changes from minute to minute.
const ROUNDS: usize = 36;
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

/// All sides, on the same data.
struct Work(Training);

impl Work {
    fn natively(&self) -> Fallible<Clock> {
        let clock = Clock::default();
        native::enter(Device::cpu(), SEED, Box::new(clock.clone()));
        // Within a context operations are promised, as they are for the sandbox.
        let _entered = Context::new(usize::MAX, f64::INFINITY).enter();
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

    fn sandboxed(&self, component: &Component, limits: Limits) -> Fallible<Clock> {
        let clock = Clock::default();
        let options = SessionOptions { device: Device::cpu(), seed: SEED, limits, on_overrun: None };
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
    let bytes = training.component.clone();
    let load = |limits: Limits| Engine::new(&EngineOptions { limits, ..EngineOptions::default() })?.load(&bytes);
    let (guarded, unguarded) = (load(Limits::default())?, load(Limits::none())?);
    let work = Work(training);
    let sides: [&dyn Fn() -> Fallible<Clock>; 3] =
        [&|| work.natively(), &|| work.sandboxed(&guarded, Limits::default()), &|| {
            work.sandboxed(&unguarded, Limits::none())
        }];
    let mut rounds: Vec<[f64; 3]> = Vec::with_capacity(ROUNDS);
    let mut numbers: Option<Vec<Vec<f64>>> = None;
    for round in 0..ROUNDS {
        let mut seconds = [0.0; 3];
        for place in 0..sides.len() {
            let side = (round + place) % sides.len();
            let (epochs, learned) = sides[side]()?.read()?;
            if numbers.get_or_insert_with(|| learned.clone()) != &learned {
                return Err("the same training learned other numbers in and out of the sandbox".into());
            }
            seconds[side] = median(epochs);
        }
        rounds.push(seconds);
    }
    let of_rounds = |number: &dyn Fn(&[f64; 3]) -> f64| median(rounds.iter().map(number).collect());
    let [plain, guarded, unguarded] = [0, 1, 2].map(|side| of_rounds(&|seconds| seconds[side]));
    eprintln!(
        "soap-bpnn train epoch: native {plain:.4} s, sandboxed {guarded:.4} s, sandboxed without limits {unguarded:.4} s, medians over {ROUNDS} runs each"
    );
    #[expect(clippy::print_stdout, reason = "the results of a benchmark")]
    {
        let over_native = of_rounds(&|[plain, guarded, _]| guarded / plain);
        let over_none = of_rounds(&|[_, guarded, unguarded]| guarded / unguarded);
        println!("ratio soap-bpnn train epoch, sandboxed over native = {over_native:.3}");
        println!("ratio soap-bpnn train epoch, default limits over none = {over_none:.3}");
    }
    Ok(())
}

fn main() -> Fallible {
    let options = std::env::args_os().nth(1).map(PathBuf::from);
    let options = options.or_else(|| reference("soap-bpnn-ethanol.yaml"));
    let options = options.unwrap_or_else(|| repository().join("fixtures/ethanol/options.yaml"));
    kilnbox_host::on_worker(None, || bench(&options))?
}
