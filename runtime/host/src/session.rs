//! One instance of an architecture, from its first call to its last.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use kilnbox_data::{Dataset, DatasetInfo};
use kilnbox_tensor::allocator::keep_freed_memory;
use kilnbox_tensor::{DType, Device};
use wasmtime::Store;
use wasmtime::component::{Resource, ResourceAny};

use crate::deadline::OnOverrun;
use crate::engine::Component;
use crate::error::HostError;
use crate::instance::Instance;
use crate::limits::Limits;
use crate::serve::bindings::kilnbox::architecture::errors::ArchitectureError;
use crate::serve::bindings::{Architecture, exports::kilnbox::architecture as exports};
use crate::serve::{CheckpointFolder, State};
use crate::service::checkpoint::{Checkpoint, Context};
use crate::service::data;
use crate::service::model::{About, Capabilities, ModelOutput};
use crate::service::report::Observer;

/// The stack of a thread that sessions run on: the guest's own, and a host that is called from deep inside it.
pub(crate) const THREAD_STACK: usize = 64 << 20;

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
    instance: Instance<Architecture>,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("limits", self.instance.limits()).finish_non_exhaustive()
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
        let instance = Instance::start(&component.engine, options, observer, |store| component.pre.instantiate(store))?;
        Ok(Self { instance })
    }

    /// The bytes of tensors that are alive now: none after the instance is gone and what it gave out has been dropped.
    pub fn tensor_bytes(&self) -> usize {
        self.instance.context().quota().used()
    }

    /// The most bytes of tensors that were alive at one time.
    pub fn peak_tensor_bytes(&self) -> usize {
        self.instance.context().quota().peak()
    }

    /// Its kernels run on its own thread from here on, and are not shared with others.
    pub(crate) fn compute_alone(&self) {
        self.instance.context().compute_alone();
    }

    /// What its limits leave to others that shall use no more together.
    pub(crate) fn limits_left(&self) -> Limits {
        let limits = self.instance.limits();
        Limits {
            tensor_bytes: limits.tensor_bytes.saturating_sub(self.tensor_bytes() as u64),
            seconds_per_run: self.instance.seconds_left(),
            ..limits.clone()
        }
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
        let trained = self.instance.within(f64::INFINITY, |architecture, store| {
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
        });
        trained?.map_err(HostError::from)
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

    /// Whether it has not failed.
    pub(crate) fn is_alive(&self) -> bool {
        self.instance.is_alive()
    }

    /// The architecture broke the contract with an answer: like one that traps, it is of no more use.
    pub(crate) fn broken<T>(&mut self, message: &str) -> Result<T, HostError> {
        self.instance.broken(message)
    }

    /// Work on the state between calls.
    pub(crate) fn host<T>(&mut self, work: impl FnOnce(&mut State) -> wasmtime::Result<T>) -> Result<T, HostError> {
        self.call(|_, store| work(store.data_mut()))
    }

    /// A call into the architecture that answers.
    pub(crate) fn call<T>(
        &mut self,
        call: impl FnOnce(&Architecture, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, HostError> {
        self.instance.within(self.instance.limits().seconds_per_call, call)
    }

    /// A call into the architecture that may refuse.
    pub(crate) fn ask<T>(
        &mut self,
        call: impl FnOnce(&Architecture, &mut Store<State>) -> Answer<T>,
    ) -> Result<T, HostError> {
        self.call(call)?.map_err(HostError::from)
    }
}

fn models(architecture: &Architecture) -> exports::model::GuestModel<'_> {
    architecture.kilnbox_architecture_model().model()
}

fn trainers(architecture: &Architecture) -> exports::trainer::GuestTrainer<'_> {
    architecture.kilnbox_architecture_trainer().trainer()
}

/// Starts the threads that kernels share, and runs `work` on one of them. If no number is given there is one for each core, or as many as fit where the address space of the process
/// is bounded. For the start of a program: from here on it also [keeps the memory that it frees](keep_freed_memory).
///
/// A session belongs on such a thread: its stack is large enough for the deepest guest and the host that it calls, and a kernel that shares out its work
/// does a part itself, where any other thread would hand over all of it and wait. The first call in a process decides the number. It is the calling thread that becomes one of
/// them if it is the main thread and may have such a stack, because glibc by itself does best by the main thread. While a
/// session waits for the rest of a kernel, its thread may take up another `work` that is waiting, and goes on when that is done: where several
/// sessions run at once, [`on_own_thread`] is for each but one of them.
///
/// # Errors
/// The threads cannot be started ([`HostError::Threads`]), or `work` panicked ([`HostError::Bug`]).
pub fn on_worker<T: Send>(threads: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, HostError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        keep_freed_memory();
        let mut pool = rayon::ThreadPoolBuilder::new();
        if enlarge_main_stack() {
            pool = pool.use_current_thread();
        }
        pool.num_threads(threads.or_else(most_that_fit).unwrap_or(0))
            .stack_size(THREAD_STACK)
            .thread_name(|number| format!("worker {number}"))
            .build_global()
            .map_err(|error| error.to_string())
    });
    started.clone().map_err(|message| HostError::Threads { count: threads, message })?;
    catch_unwind(AssertUnwindSafe(|| rayon::scope(|_| work()))).map_err(|_| panicked())
}

/// How many threads there may be where the address space is bounded, as batch systems and shells do it (`ulimit -v`); none where it is not, or has room for all.
#[cfg(target_os = "linux")]
fn most_that_fit() -> Option<usize> {
    use rustix::process::{Resource, getrlimit};
    let room = getrlimit(Resource::As).current?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Some(fitting(room)).filter(|&fitting| fitting < cores)
}

#[cfg(not(target_os = "linux"))]
fn most_that_fit() -> Option<usize> {
    None
}

/// How many threads fit into an address space of so many bytes, if half of it is left to everything else. A thread takes its stack, and as much again for the heap that the allocator
/// reserves for it; and evaluations side by side have as many threads of their own.
#[cfg(target_os = "linux")]
fn fitting(room: u64) -> usize {
    usize::try_from(room / 2 / (4 * THREAD_STACK as u64)).unwrap_or(usize::MAX).max(1)
}

/// Lets the stack of this thread grow to the size of a session's, if it is the main thread, which lives as long as the process; says whether it may. Linux looks at the limit when the
/// stack grows, and leaves 128 MiB for that, so a process may raise it for itself.
#[cfg(target_os = "linux")]
fn enlarge_main_stack() -> bool {
    use rustix::process::{Resource, Rlimit, getpid, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Stack);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= THREAD_STACK as u64);
    let larger = Rlimit { current: Some(THREAD_STACK as u64), maximum: limit.maximum };
    rustix::thread::gettid() == getpid()
        && (is_enough(limit.current) || is_enough(limit.maximum) && setrlimit(Resource::Stack, larger).is_ok())
}

#[cfg(not(target_os = "linux"))]
fn enlarge_main_stack() -> bool {
    false
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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn threads_get_half_of_a_bounded_address_space_and_one_there_is_always() {
        let sizes = [(0, 1), (512 << 20, 1), (8 << 30, 16), (u64::MAX, usize::MAX / (8 * THREAD_STACK))];
        for (room, threads) in sizes {
            assert_eq!(fitting(room), threads, "{room} bytes");
        }
    }
}
