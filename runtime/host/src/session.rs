//! One instance of an architecture, from its first call to its last.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use kilnbox_data::{Dataset, DatasetInfo};
use kilnbox_tensor::context::Context as TensorContext;
use kilnbox_tensor::{DType, Device, Misuse, autodiff};
use wasmtime::component::{Resource, ResourceAny};
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::deadline::{Allowance, Deadline, OnOverrun, TICK};
use crate::engine::Component;
use crate::error::{DeviceLost, HostError, HostPanic, LimitReached, TimeIsUp, printable};
use crate::limits::Limits;
use crate::serve::bindings::kilnbox::architecture::errors::ArchitectureError;
use crate::serve::bindings::{Architecture, exports::kilnbox::architecture as exports};
use crate::serve::{CheckpointFolder, State, guarded};
use crate::service::checkpoint::{Checkpoint, Context};
use crate::service::data;
use crate::service::model::{About, Capabilities, ModelOutput};
use crate::service::report::{Observer, Reporter};

/// The stack of a thread that sessions run on: the guest's own, and a host that is called from deep inside it.
const THREAD_STACK: usize = 64 << 20;
/// The most frames of a backtrace that are shown.
const MOST_FRAMES: usize = 24;

/// How a session runs.
#[derive(Clone)]
pub struct SessionOptions {
    /// Where tensors live.
    pub device: Device,
    /// The seed of the run's random stream.
    pub seed: u64,
    /// What it may use.
    pub limits: Limits,
    /// What to do about an operation that goes on after its deadline and cannot be stopped. Without anything, the call ends when the operation does.
    pub on_overrun: Option<OnOverrun>,
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, seed, limits, on_overrun: _ } = self;
        let mut shown = formatter.debug_struct("SessionOptions");
        shown.field("device", device).field("seed", seed).field("limits", limits).finish_non_exhaustive()
    }
}

/// A model of a session.
#[derive(Debug)]
pub struct Model(pub(crate) ResourceAny);

/// A trainer of a session.
#[derive(Debug)]
pub struct Trainer(ResourceAny);

/// One instance of an architecture in a store of its own. After a trap or a limit the instance and everything that it held are gone, and every
/// later call fails.
pub struct Session {
    live: Option<Live>,
    limits: Limits,
    context: Arc<TensorContext>,
    deadline: Arc<Deadline>,
    started: Instant,
}

/// An instance that has not failed.
struct Live {
    store: Store<State>,
    architecture: Architecture,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("limits", &self.limits).finish_non_exhaustive()
    }
}

type Answer<T> = wasmtime::Result<Result<T, ArchitectureError>>;

impl Session {
    /// Instantiates `component`. Its messages and checkpoints go to `observer`.
    ///
    /// # Errors
    /// A limit is too small for the component to start, or it traps at once.
    pub fn start(
        component: &Component,
        options: SessionOptions,
        observer: Box<dyn Observer>,
    ) -> Result<Self, HostError> {
        let SessionOptions { device, seed, limits, on_overrun } = options;
        let tensor_bytes = limits.tensor_bytes.min(most_on(&device));
        let context = TensorContext::new(usize::try_from(tensor_bytes).unwrap_or(usize::MAX), limits.operation_cost);
        let reporter = Reporter::new(observer, &limits);
        let mut store = Store::new(&component.engine, State::new(device, seed, reporter, limits.clone()));
        store.limiter(|state| state);
        // Beside those that are handed out, the guest has handles of its own and lends each while it calls.
        let handles = limits.handles.saturating_mul(2).saturating_add(1024);
        store.set_max_component_handles(usize::try_from(handles).unwrap_or(usize::MAX));
        store.set_hostcall_fuel(usize::try_from(limits.call_bytes).unwrap_or(usize::MAX));
        let deadline = Deadline::new(context.clone(), on_overrun);
        let mut session = Self { live: None, limits, context, deadline, started: Instant::now() };
        let allowance = session.allowance(session.limits.seconds_per_call);
        let architecture = session.run(allowance, &mut store, |store| component.pre.instantiate(store))?;
        session.live = Some(Live { store, architecture });
        Ok(session)
    }

    /// The bytes of tensors that are alive now: none after the instance is gone and what it gave out has been dropped.
    pub fn tensor_bytes(&self) -> usize {
        self.context.quota().used()
    }

    /// The most bytes of tensors that were alive at one time.
    pub fn peak_tensor_bytes(&self) -> usize {
        self.context.quota().peak()
    }

    /// What the architecture says of itself.
    ///
    /// # Errors
    /// As every call: it traps, or exceeds a limit.
    pub fn about(&mut self) -> Result<About, HostError> {
        self.call(|architecture, store| architecture.kilnbox_architecture_about().call_describe(store)).map(Into::into)
    }

    /// A model with fresh weights. `hypers` is JSON.
    ///
    /// # Errors
    /// The architecture refuses hypers or data; as every call.
    pub fn new_model(&mut self, hypers: &str, info: &DatasetInfo, dtype: DType) -> Result<Model, HostError> {
        let info = info.into();
        self.ask(|architecture, store| models(architecture).call_new(store, hypers, &info, dtype.into())).map(Model)
    }

    /// A model from a checkpoint, which is first brought to the architecture's present version.
    ///
    /// # Errors
    /// The architecture cannot use the checkpoint; as every call.
    pub fn load_model(&mut self, checkpoint: &Checkpoint, context: Context) -> Result<Model, HostError> {
        let current = self.about()?.model_checkpoint_version;
        let mut given = self.give(checkpoint)?;
        if checkpoint.model_version != current {
            given = self.ask(|architecture, store| models(architecture).call_upgrade_checkpoint(store, &given))?;
        }
        self.ask(|architecture, store| models(architecture).call_load_checkpoint(store, &given, context.into()))
            .map(Model)
    }

    /// Makes a loaded model ready for a run on `info`.
    ///
    /// # Errors
    /// The architecture cannot take this data up; as every call.
    pub fn restart_model(&mut self, model: &Model, info: &DatasetInfo) -> Result<(), HostError> {
        let info = info.into();
        self.ask(|architecture, store| models(architecture).call_restart(store, model.0, &info))
    }

    /// The model's part of a checkpoint.
    ///
    /// # Errors
    /// As every call; or what it hands out breaks the contract.
    pub fn model_checkpoint(&mut self, model: &Model) -> Result<Checkpoint, HostError> {
        let given = self.ask(|architecture, store| models(architecture).call_get_checkpoint(store, model.0))?;
        self.receive(given)
    }

    /// What the model can do.
    ///
    /// # Errors
    /// As every call.
    pub fn export_model(&mut self, model: &Model) -> Result<Capabilities, HostError> {
        self.ask(|architecture, store| models(architecture).call_export(store, model.0)).map(Into::into)
    }

    /// All outputs that the model can compute.
    ///
    /// # Errors
    /// As every call.
    pub fn supported_outputs(&mut self, model: &Model) -> Result<Vec<ModelOutput>, HostError> {
        let outputs = self.call(|architecture, store| models(architecture).call_supported_outputs(store, model.0))?;
        Ok(outputs.into_iter().map(Into::into).collect())
    }

    /// A fresh training run. `hypers` is JSON.
    ///
    /// # Errors
    /// The architecture refuses the hypers; as every call.
    pub fn new_trainer(&mut self, hypers: &str) -> Result<Trainer, HostError> {
        self.ask(|architecture, store| trainers(architecture).call_new(store, hypers)).map(Trainer)
    }

    /// A training run that continues or starts from a checkpoint, which is first brought to the architecture's present version.
    ///
    /// # Errors
    /// The architecture cannot use the checkpoint; as every call.
    pub fn load_trainer(
        &mut self,
        checkpoint: &Checkpoint,
        hypers: &str,
        context: Context,
    ) -> Result<Trainer, HostError> {
        let current = self.about()?.trainer_checkpoint_version;
        let mut given = self.give(checkpoint)?;
        if checkpoint.trainer_version != current {
            given = self.ask(|architecture, store| trainers(architecture).call_upgrade_checkpoint(store, &given))?;
        }
        self.ask(|architecture, store| {
            trainers(architecture).call_load_checkpoint(store, &given, hypers, context.into())
        })
        .map(Trainer)
    }

    /// Trains `model` to the end.
    ///
    /// # Errors
    /// The architecture cannot learn this, or fails; as every call, but that it may take as long as the whole run.
    pub fn train(
        &mut self,
        trainer: &Trainer,
        model: &Model,
        dtype: DType,
        devices: &[String],
        train: Vec<Dataset>,
        validation: Vec<Dataset>,
    ) -> Result<(), HostError> {
        let train = self.hand_over(train)?;
        let validation = self.hand_over(validation)?;
        let folder = self.host(|state| state.hand_out(CheckpointFolder))?;
        self.ask_within(f64::INFINITY, |architecture, store| {
            trainers(architecture).call_train(
                store,
                trainer.0,
                model.0,
                dtype.into(),
                devices,
                &train,
                &validation,
                folder,
            )
        })
    }

    /// Everything needed to continue, export or fine-tune.
    ///
    /// # Errors
    /// As every call; or what it hands out breaks the contract.
    pub fn save_checkpoint(&mut self, trainer: &Trainer, model: &Model) -> Result<Checkpoint, HostError> {
        let given =
            self.ask(|architecture, store| trainers(architecture).call_save_checkpoint(store, trainer.0, model.0))?;
        self.receive(given)
    }

    fn hand_over(&mut self, datasets: Vec<Dataset>) -> Result<Vec<Resource<data::Dataset>>, HostError> {
        self.host(|state| {
            let device = state.device.clone();
            datasets.into_iter().map(|dataset| state.hand_out(data::Dataset::new(dataset, device.clone()))).collect()
        })
    }

    fn give(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<crate::serve::bindings::kilnbox::architecture::checkpoint::Checkpoint, HostError> {
        self.host(|state| state.give_checkpoint(checkpoint))
    }

    fn receive(
        &mut self,
        given: crate::serve::bindings::kilnbox::architecture::checkpoint::Checkpoint,
    ) -> Result<Checkpoint, HostError> {
        self.host(|state| state.receive_checkpoint(given))?.or_else(|message| self.broken(&message))
    }

    /// The architecture broke the contract with an answer: like one that traps, it is of no more use.
    pub(crate) fn broken<T>(&mut self, message: &str) -> Result<T, HostError> {
        self.live = None;
        Err(HostError::Trapped { message: printable(message), backtrace: String::new() })
    }

    /// Whether it has not failed.
    pub(crate) fn is_alive(&self) -> bool {
        self.live.is_some()
    }

    /// Work on the state between calls.
    pub(crate) fn host<T>(&mut self, work: impl FnOnce(&mut State) -> wasmtime::Result<T>) -> Result<T, HostError> {
        self.within(self.limits.seconds_per_call, |_, store| work(store.data_mut()))
    }

    /// A call into the architecture that answers.
    pub(crate) fn call<T>(
        &mut self,
        call: impl FnOnce(&Architecture, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, HostError> {
        self.within(self.limits.seconds_per_call, call)
    }

    /// A call into the architecture that may refuse.
    pub(crate) fn ask<T>(
        &mut self,
        call: impl FnOnce(&Architecture, &mut Store<State>) -> Answer<T>,
    ) -> Result<T, HostError> {
        self.ask_within(self.limits.seconds_per_call, call)
    }

    fn ask_within<T>(
        &mut self,
        seconds: f64,
        call: impl FnOnce(&Architecture, &mut Store<State>) -> Answer<T>,
    ) -> Result<T, HostError> {
        self.within(seconds, call)?.map_err(HostError::from)
    }

    /// Everything that runs the guest or operations for it goes through here. An instance that fails is dropped at once, with all it held.
    fn within<T>(
        &mut self,
        seconds: f64,
        work: impl FnOnce(&Architecture, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, HostError> {
        let Some(mut live) = self.live.take() else {
            return Err(HostError::Bug("a call into an architecture that has already failed".to_owned()));
        };
        let architecture = &live.architecture;
        let result = self.run(self.allowance(seconds), &mut live.store, |store| {
            let result = work(architecture, store);
            store.data_mut().end_lines();
            result
        });
        if result.is_ok() {
            self.live = Some(live);
        }
        result
    }

    /// How long a call may take that is given this time: no longer than what is left of the run.
    fn allowance(&self, seconds: f64) -> Allowance {
        let call = Allowance::new("seconds_per_call", seconds, Instant::now());
        let run = Allowance::new("seconds_per_run", self.limits.seconds_per_run, self.started);
        if run.left < call.left { run } else { call }
    }

    fn run<T>(
        &self,
        allowance: Allowance,
        store: &mut Store<State>,
        work: impl FnOnce(&mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, HostError> {
        set_epoch_deadline(store, allowance);
        self.deadline.set(allowance);
        let result = {
            let _entered = self.context.enter();
            autodiff::set_recording(true);
            guarded(|| work(store))
        };
        self.deadline.clear();
        result.map_err(|error| explain(&error, store, &self.limits, allowance))
    }
}

/// The most bytes that tensors of a run on this device may have, whatever its limits say: exhausting a device's memory fails in ways that end the
/// run, and kernels need some beside tensors.
fn most_on(device: &Device) -> u64 {
    device.memory().map_or(u64::MAX, |bytes| bytes / 4 * 3)
}

fn models(architecture: &Architecture) -> exports::model::GuestModel<'_> {
    architecture.kilnbox_architecture_model().model()
}

fn trainers(architecture: &Architecture) -> exports::trainer::GuestTrainer<'_> {
    architecture.kilnbox_architecture_trainer().trainer()
}

fn set_epoch_deadline(store: &mut Store<State>, allowance: Allowance) {
    /// More ticks than a machine lives, few enough that adding the present tick cannot overflow.
    const NEVER: u128 = u64::MAX as u128 / 2;
    let ticks = allowance.left.as_nanos().div_ceil(TICK.as_nanos()) + 1;
    store.set_epoch_deadline(ticks.min(NEVER) as u64);
}

/// What an error of wasmtime means for the user.
fn explain(error: &wasmtime::Error, store: &mut Store<State>, limits: &Limits, allowance: Allowance) -> HostError {
    let last_words = store.data_mut().reporter.take_last_words();
    if let Some(panic) = error.downcast_ref::<HostPanic>() {
        return HostError::Bug(panic.to_string());
    }
    if let Some(DeviceLost { device, message }) = error.downcast_ref() {
        return HostError::Device { device, message: message.clone() };
    }
    if error.is::<TimeIsUp>() {
        return allowance.error();
    }
    if let Some(LimitReached { limit, message }) = error.downcast_ref() {
        return HostError::Limit { limit, message: message.clone() };
    }
    let backtrace = error.downcast_ref::<WasmBacktrace>().map(frames).unwrap_or_default();
    if let Some(misuse) = error.downcast_ref::<Misuse>() {
        return match misuse.limit {
            Some(limit) => HostError::Limit { limit, message: misuse.to_string() },
            None => HostError::Trapped { message: misuse.to_string(), backtrace },
        };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => allowance.error(),
        Some(Trap::StackOverflow) => HostError::Limit {
            limit: "stack_bytes",
            message: format!("its call stack is deeper than {} bytes", limits.stack_bytes),
        },
        Some(trap) => HostError::Trapped { message: last_words.unwrap_or_else(|| trap.to_string()), backtrace },
        // Above its cause, the error only repeats the backtrace.
        None => {
            let cause = error.root_cause().to_string();
            limit_of_the_engine(&cause, limits)
                .unwrap_or_else(|| HostError::Trapped { message: printable(&cause), backtrace })
        }
    }
}

/// The engine has limits of its own, set to ours; it tells of them in words only. Tests meet each of them, since the words may change with its version.
fn limit_of_the_engine(cause: &str, limits: &Limits) -> Option<HostError> {
    let (limit, message) = if cause.contains("fuel allocated for hostcalls") {
        ("call_bytes", format!("it copies more than {} bytes in one call", limits.call_bytes))
    } else if cause.contains("store handle limit") {
        ("handles", format!("it would hold more than {} handles", limits.handles))
    } else if cause.contains("count too high") {
        ("instances", format!("it has more than {} instances, memories or tables", limits.instances))
    } else {
        return None;
    };
    Some(HostError::Limit { limit, message })
}

fn frames(backtrace: &WasmBacktrace) -> String {
    let names: Vec<String> = backtrace
        .frames()
        .iter()
        .take(MOST_FRAMES)
        .map(|frame| match frame.func_name() {
            Some(name) => printable(name),
            None => format!("function {}", frame.func_index()),
        })
        .collect();
    names.join("\n")
}

/// Starts the threads that kernels share, one for each core if no number is given, and runs `work` on one of them.
///
/// A session belongs on such a thread: its stack is large enough for the deepest guest and the host that it calls, and a kernel that shares out its work
/// does a part itself, where any other thread would hand over all of it and wait. The first call in a process decides the number. While a
/// session waits for the rest of a kernel, its thread may take up another `work` that is waiting, and goes on when that is done: where several
/// sessions run at once, [`on_own_thread`] is for each but one of them.
///
/// # Errors
/// The threads cannot be started, or `work` panicked ([`HostError::Bug`]).
pub fn on_worker<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.unwrap_or(0))
            .stack_size(THREAD_STACK)
            .thread_name(|number| format!("worker {number}"))
            .build_global()
            .map_err(|error| error.to_string())
    });
    started.clone().map_err(|error| HostError::Bug(format!("the threads cannot be started: {error}")))?;
    catch_unwind(AssertUnwindSafe(|| rayon::scope(|_| work()))).map_err(|_| panicked())
}

/// Runs `work` on a thread of its own, with a stack that is large enough for any guest, and waits for it.
///
/// # Errors
/// The thread cannot be started, or `work` panicked ([`HostError::Bug`]).
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(THREAD_STACK).name("session".into());
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|error| HostError::Bug(format!("the thread cannot be started: {error}")))?;
        thread.join().map_err(|_| panicked())
    })
}

fn panicked() -> HostError {
    HostError::Bug("the thread that ran the architecture panicked".to_owned())
}
