//! What all operations of a run have in common: a quota of memory, a bound on the cost of one operation, whether histories are recorded, and a
//! way to stop them from outside.
//!
//! A context belongs to a run, and is in force on a thread while a [`Entered`] lives: a run that another one interrupts on the same thread (as
//! when a thread that waits for a kernel takes up other work) finds its own context when it goes on.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::Misuse;
use crate::memory::Quota;
use crate::promise::Queue;

/// The name of the limit on the cost of one operation.
const COST_LIMIT: &str = "operation_cost";

/// The bounds and switches of a run.
#[derive(Debug)]
pub struct Context {
    quota: Arc<Quota>,
    operation_cost: f64,
    recording: AtomicBool,
    stopped: AtomicBool,
    alone: AtomicBool,
    /// How often it has been entered and not left.
    entered: AtomicUsize,
    queue: Queue,
}

/// The payload of the panic that ends an operation of a run that was stopped. Whoever calls operations for a guest catches it.
#[derive(Clone, Copy, Debug)]
pub struct Stopped;

/// The payload of the panic that ends an operation because the device failed: its memory is exhausted, or it was lost. What the device holds is not to
/// be relied on afterwards, so the run is over.
#[derive(Clone, Debug)]
pub struct DeviceFailed {
    /// The device's name.
    pub device: &'static str,
    /// What its driver says.
    pub message: String,
}

impl Context {
    /// A context whose tensors have `tensor_bytes` bytes at most, and whose operations cost at most `operation_cost` each: the number of
    /// multiplications of a product, which is what makes an operation last longer than reading its operands does.
    pub fn new(tensor_bytes: usize, operation_cost: f64) -> Arc<Self> {
        Arc::new(Self {
            quota: Quota::new(tensor_bytes),
            operation_cost,
            recording: AtomicBool::new(true),
            stopped: AtomicBool::new(false),
            alone: AtomicBool::new(false),
            entered: AtomicUsize::new(0),
            queue: Queue::new(),
        })
    }

    /// The quota of memory.
    pub fn quota(&self) -> &Arc<Quota> {
        &self.quota
    }

    /// Has all kernels from now on run on the thread that asks for them, and not be shared with others: for runs that go on side by side. Results are the same.
    pub fn compute_alone(&self) {
        self.alone.store(true, Ordering::Relaxed);
    }

    /// Puts it in force on this thread until the answer is dropped, which waits for whatever operations were asked for and are not computed.
    pub fn enter(self: &Arc<Self>) -> Entered {
        self.entered.fetch_add(1, Ordering::Relaxed);
        Entered { before: CURRENT.replace(self.clone()), waits: true, _not_send: std::marker::PhantomData }
    }

    /// Waits for all operations that were asked for.
    ///
    /// # Panics
    /// With [`Stopped`], if it was stopped.
    pub fn finish(&self) {
        self.queue.finish();
        self.go_on();
    }

    /// Goes on, or ends the operation: a panic with [`Stopped`], if the context was stopped.
    #[inline(always)]
    fn go_on(&self) {
        if self.is_stopped() {
            end();
        }
    }

    /// Puts it in force on a thread that computes for another one.
    pub(crate) fn serve(self: &Arc<Self>) -> Entered {
        Entered { before: CURRENT.replace(self.clone()), waits: false, _not_send: std::marker::PhantomData }
    }

    /// The one in force on this thread.
    pub(crate) fn in_force() -> Arc<Self> {
        CURRENT.with_borrow(Arc::clone)
    }

    /// The operations that are to be computed.
    pub(crate) fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Whether an operation of this thread should be promised, rather than computed at once.
    pub(crate) fn promises(&self) -> bool {
        self.entered.load(Ordering::Relaxed) > 0 && !self.alone.load(Ordering::Relaxed) && self.queue.is_worth_it()
    }

    /// Ends the operation that runs, if there is one, and every later one: they panic with [`Stopped`] within a fraction of a second.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether it was stopped.
    #[inline]
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// While it lives, a context is in force on its thread.
#[derive(Debug)]
pub struct Entered {
    before: Arc<Context>,
    waits: bool,
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let context = Context::in_force();
        if self.waits {
            context.queue.finish();
            context.entered.fetch_sub(1, Ordering::Relaxed);
        }
        CURRENT.set(self.before.clone());
    }
}

thread_local! {
    static CURRENT: RefCell<Arc<Context>> = RefCell::new(Context::new(usize::MAX, f64::INFINITY));
}

/// Something of the context in force.
pub(crate) fn current<T>(look: impl FnOnce(&Context) -> T) -> T {
    CURRENT.with_borrow(|context| look(context))
}

/// Whether kernels are not to be shared with other threads.
pub(crate) fn is_alone() -> bool {
    current(|context| context.alone.load(Ordering::Relaxed))
}

pub(crate) fn recording() -> bool {
    current(|context| context.recording.load(Ordering::Relaxed))
}

pub(crate) fn set_recording(enabled: bool) -> bool {
    current(|context| context.recording.swap(enabled, Ordering::Relaxed))
}

/// Refuses an operation that would cost more than one may. Estimates are in floating point, so that they cannot overflow.
pub(crate) fn check_cost(operation: &'static str, multiplications: f64) -> Result<(), Misuse> {
    let most = current(|context| context.operation_cost);
    if multiplications <= most {
        return Ok(());
    }
    Err(Misuse::limit(
        COST_LIMIT,
        operation,
        format!("it needs {multiplications:.2e} multiplications, at most {most:.2e}"),
    ))
}

/// What a long kernel asks now and then: whether to go on. It is taken where the kernel starts, and works on every thread that helps.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<Context>);

impl Stop {
    /// The switch of the context in force on this thread.
    pub(crate) fn current() -> Self {
        Self(Context::in_force())
    }

    /// Goes on, or ends the operation. It costs as much as reading a number, so it may be asked every few microseconds.
    ///
    /// # Panics
    /// With [`Stopped`], if the context was stopped.
    #[inline(always)]
    pub(crate) fn check(&self) {
        self.0.go_on();
    }
}

/// As [`Stop::check`], once.
pub(crate) fn check_stopped() {
    current(Context::go_on);
}

/// Unwinds without the message of a panic: nothing is wrong with the program.
#[cold]
#[inline(never)]
fn end() -> ! {
    std::panic::resume_unwind(Box::new(Stopped))
}

/// Ends the operation, and the run, because the device failed. Unwinds without the message of a panic, as [`end`] does.
pub(crate) fn device_failed(device: &'static str, message: impl Into<String>) -> ! {
    std::panic::resume_unwind(Box::new(DeviceFailed { device, message: message.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_in_force_until_it_is_left_and_others_are_not_touched() {
        let (outer, inner) = (Context::new(1, 1.0), Context::new(2, 2.0));
        let limit = || current(|context| context.quota.limit());
        let entered = outer.enter();
        set_recording(false);
        {
            let _inner = inner.enter();
            assert_eq!((limit(), recording()), (2, true));
        }
        assert_eq!((limit(), recording()), (1, false));
        drop(entered);
        assert_eq!((limit(), recording()), (usize::MAX, true));
    }

    #[test]
    fn cost_is_bounded_at_the_bound() {
        let _entered = Context::new(usize::MAX, 100.0).enter();
        assert_eq!(check_cost("test", 100.0), Ok(()));
        assert!(check_cost("test", 100.5).is_err_and(|misuse| misuse.limit == Some(COST_LIMIT)));
        assert!(check_cost("test", f64::NAN).is_err(), "what cannot be estimated is refused");
    }
}
