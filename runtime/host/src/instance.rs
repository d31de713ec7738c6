//! One instance of a component in a store of its own: the limits, the deadlines, and what an error of the engine means.

use std::sync::Arc;
use std::time::Instant;

use kilnbox_tensor::context::Context as TensorContext;
use kilnbox_tensor::{Device, Misuse, autodiff};
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::deadline::{Allowance, Deadline, TICK};
use crate::error::{DeviceLost, HostError, HostPanic, LimitReached, TimeIsUp, printable};
use crate::limits::Limits;
use crate::serve::{State, guarded};
use crate::service::report::{Observer, Reporter};
use crate::session::SessionOptions;

/// The most frames of a backtrace that are shown.
const MOST_FRAMES: usize = 24;

/// An instance, with what it exports. After a trap or a limit it and everything that it held are gone, and every later call fails.
pub(crate) struct Instance<Exports> {
    live: Option<Live<Exports>>,
    limits: Limits,
    context: Arc<TensorContext>,
    deadline: Arc<Deadline>,
    started: Instant,
}

/// An instance that has not failed.
struct Live<Exports> {
    store: Store<State>,
    exports: Exports,
    /// After the store, which has the tensors.
    _memory: Memory,
}

/// A device's memory, which is given back when an instance ends: what others need there is not for a pool to keep.
struct Memory(Device);

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.release_unused();
    }
}

impl<Exports> Instance<Exports> {
    /// Starts what `instantiate` puts into a fresh store. Its messages and checkpoints go to `observer`.
    ///
    /// # Errors
    /// A limit is too small for the component to start, or it traps at once.
    pub(crate) fn start(
        engine: &wasmtime::Engine,
        options: SessionOptions,
        observer: Box<dyn Observer>,
        instantiate: impl FnOnce(&mut Store<State>) -> wasmtime::Result<Exports>,
    ) -> Result<Self, HostError> {
        let SessionOptions { device, seed, limits, on_overrun } = options;
        let tensor_bytes = limits.tensor_bytes.min(most_on(&device));
        let context = TensorContext::new(usize::try_from(tensor_bytes).unwrap_or(usize::MAX), limits.operation_cost);
        let reporter = Reporter::new(observer, &limits);
        let memory = Memory(device.clone());
        let mut store = Store::new(engine, State::new(device, seed, reporter, limits.clone()));
        store.limiter(|state| state);
        // Beside those that are handed out, the guest has handles of its own and lends each while it calls.
        let handles = limits.handles.saturating_mul(2).saturating_add(1024);
        store.set_max_component_handles(usize::try_from(handles).unwrap_or(usize::MAX));
        store.set_hostcall_fuel(usize::try_from(limits.call_bytes).unwrap_or(usize::MAX));
        let deadline = Deadline::new(context.clone(), on_overrun);
        let mut instance = Self { live: None, limits, context, deadline, started: Instant::now() };
        let allowance = instance.allowance(instance.limits.seconds_per_call);
        let exports = instance.run(allowance, &mut store, instantiate)?;
        instance.live = Some(Live { store, exports, _memory: memory });
        Ok(instance)
    }

    /// What it may use.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many seconds are left of its run.
    pub(crate) fn seconds_left(&self) -> f64 {
        (self.limits.seconds_per_run - self.started.elapsed().as_secs_f64()).max(0.0)
    }

    /// What bounds its operations.
    pub(crate) fn context(&self) -> &TensorContext {
        &self.context
    }

    /// Whether it has not failed.
    pub(crate) fn is_alive(&self) -> bool {
        self.live.is_some()
    }

    /// It broke its contract with an answer: like one that traps, it is of no more use.
    pub(crate) fn broken<T>(&mut self, message: &str) -> Result<T, HostError> {
        self.live = None;
        Err(HostError::Trapped { message: printable(message), backtrace: String::new() })
    }

    /// Everything that runs the guest or operations for it goes through here. An instance that fails is dropped at once, with all it held.
    pub(crate) fn within<T>(
        &mut self,
        seconds: f64,
        work: impl FnOnce(&Exports, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<T, HostError> {
        let Some(mut live) = self.live.take() else {
            return Err(HostError::Bug("a call into a component that has already failed".to_owned()));
        };
        let exports = &live.exports;
        let result = self.run(self.allowance(seconds), &mut live.store, |store| {
            let result = work(exports, store);
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
            guarded(|| {
                let result = work(store)?;
                // What the guest asked for belongs to its call, and to the time that it has.
                self.context.finish();
                Ok(result)
            })
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
            let cause = error.root_cause();
            let message = cause.to_string();
            if is_lack_of_memory(cause) {
                return HostError::Reservation { message };
            }
            limit_of_the_engine(&message, limits)
                .unwrap_or_else(|| HostError::Trapped { message: printable(&message), backtrace })
        }
    }
}

/// Whether the system has refused memory, or addresses. A guest that asks for more of its own is told so by its own instruction, so this is none of its doing.
fn is_lack_of_memory(cause: &(dyn std::error::Error + 'static)) -> bool {
    #[cfg(unix)]
    if let Some(number) = cause.downcast_ref::<rustix::io::Errno>() {
        return *number == rustix::io::Errno::NOMEM;
    }
    cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::OutOfMemory)
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
