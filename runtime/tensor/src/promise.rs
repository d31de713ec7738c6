//! Values that are promised: a thread that asks for operations goes on at once, and another one computes them. Where the first one waits it computes, too: whoever is free takes the oldest operation whose
//! operands are there, so that two that do not depend on each other are computed at the same time.
//!
//! Between two kernels lie the guest's own code, its calls, and the engine's checks and bookkeeping: a fifth of a step on small structures, during which processors had nothing to compute. A
//! value that is promised is waited for where somebody looks at it, which for most is never. Whoever waits helps, by computing what can be computed or with the kernel that is being computed, so that
//! nothing depends on another thread being there.
//!
//! What cannot wait is done at once: checks, refusals, the counting of memory. So a caller cannot tell the difference, but by the time it takes: each kernel has the same operands, and gives the same bits. A
//! kernel that panics leaves its panic in place of its value, for everything that is computed from it and for whoever looks at it.
//!
//! Operations are promised within a context that has been entered, on a thread of the pool, if there is another one. When it is left everything promised has been computed.

use std::any::Any;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::context::{self, Context, Stopped};
use crate::kernel::helpers;

/// So many operations are promised at most before the one who asks for more helps with them. Each takes a few hundred bytes that no quota counts.
const MOST: usize = 512;
/// One that can be computed is looked for among so many operations, the oldest.
const WINDOW: usize = 32;

/// A value that is there, or will be.
pub(crate) struct Promised<T>(OnceLock<Result<T, Failure>>);

/// Why a value will never be there.
#[derive(Clone)]
enum Failure {
    Stopped,
    /// The kernel panicked, and said this.
    Panicked(Arc<str>),
}

impl<T> Promised<T> {
    /// A value that is there.
    pub(crate) fn kept(value: T) -> Self {
        Self(OnceLock::from(Ok(value)))
    }

    /// One that will be.
    pub(crate) fn open() -> Self {
        Self(OnceLock::new())
    }

    /// Whether it is there, or never will be.
    pub(crate) fn is_settled(&self) -> bool {
        self.0.get().is_some()
    }

    /// The value, when it is there. Panics as its kernel did.
    pub(crate) fn get(&self) -> &T {
        loop {
            match self.0.get() {
                Some(Ok(value)) => return value,
                Some(Err(Failure::Stopped)) => resume_unwind(Box::new(Stopped)),
                Some(Err(Failure::Panicked(message))) => resume_unwind(Box::new(message.to_string())),
                None => Context::in_force().queue().wait(|| self.is_settled()),
            }
        }
    }
}

/// Keeps promises by what `compute` gives for them, or settles them by its panic.
pub(crate) fn settle<T, const N: usize>(promises: [&Promised<T>; N], compute: impl FnOnce() -> [T; N]) {
    let settlements = match catch_unwind(AssertUnwindSafe(compute)) {
        Ok(values) => values.map(Ok),
        Err(panic) => {
            let failure = Failure::from(panic);
            promises.map(|_| Err(failure.clone()))
        }
    };
    for (Promised(place), settlement) in promises.into_iter().zip(settlements) {
        let is_first = place.set(settlement).is_ok();
        debug_assert!(is_first, "a promise is settled once");
    }
}

impl From<Box<dyn Any + Send>> for Failure {
    fn from(panic: Box<dyn Any + Send>) -> Self {
        if panic.is::<Stopped>() {
            return Self::Stopped;
        }
        Self::Panicked(crate::tensor::panic_message(&*panic).into())
    }
}

/// What was promised in a context and is to be computed.
#[derive(Debug)]
pub(crate) struct Queue {
    /// Those that nobody has taken, in the order of asking.
    operations: Mutex<VecDeque<Box<dyn Operation>>>,
    /// How often one was promised or computed, which is when another one may be ready.
    changes: AtomicUsize,
    /// [`Self::changes`] when none was ready, so that it is not asked of each again and again.
    unready: AtomicUsize,
    /// The operations that have been promised and not computed.
    pending: AtomicUsize,
    /// Whether a thread has been asked to compute, and has not left.
    is_served: AtomicBool,
    /// The thread of the pool that asked another one to compute, and the one that does; counted from 1, as 0 is none.
    promiser: AtomicUsize,
    server: AtomicUsize,
}

/// What is to be computed.
pub(crate) trait Operation: Send {
    /// Whether all that it needs is settled.
    fn is_ready(&self) -> bool;

    /// Computes it. MUST NOT panic, nor wait for what [`Self::is_ready`] does not speak of.
    fn run(self: Box<Self>);
}

impl std::fmt::Debug for dyn Operation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Operation").finish_non_exhaustive()
    }
}

thread_local! {
    /// Whether this thread waits for a promised value, or computes one: what it takes up meanwhile must not keep it.
    static IS_ENGAGED: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, its thread is engaged.
struct Engaged {
    before: bool,
}

impl Engaged {
    fn new() -> Self {
        Self { before: IS_ENGAGED.replace(true) }
    }
}

impl Drop for Engaged {
    fn drop(&mut self) {
        IS_ENGAGED.set(self.before);
    }
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            operations: Mutex::new(VecDeque::new()),
            changes: AtomicUsize::new(0),
            unready: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            is_served: AtomicBool::new(false),
            promiser: AtomicUsize::new(0),
            server: AtomicUsize::new(0),
        }
    }

    /// Whether operations of this thread should be promised, rather than computed at once.
    pub(crate) fn is_worth_it(&self) -> bool {
        rayon::current_thread_index().is_some()
            && rayon::current_num_threads() > 1
            && (self.is_served.load(Ordering::Relaxed) || !helpers::are_processors_busy())
    }

    /// Whether something has been promised and not computed.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst) > 0
    }

    /// The thread that computes for this one, or that this one computes for.
    pub(crate) fn partner(&self, thread: usize) -> Option<usize> {
        let server = self.server.load(Ordering::Relaxed);
        let partner = if server == thread + 1 { self.promiser.load(Ordering::Relaxed) } else { server };
        partner.checked_sub(1)
    }

    /// Whether an operation may be promised now.
    fn has_room(&self) -> bool {
        self.pending.load(Ordering::Relaxed) < MOST
    }

    fn operations(&self) -> MutexGuard<'_, VecDeque<Box<dyn Operation>>> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, operation: Box<dyn Operation>) {
        self.pending.fetch_add(1, Ordering::SeqCst);
        self.operations().push_back(operation);
        self.changes.fetch_add(1, Ordering::Release);
        if !self.is_served.load(Ordering::SeqCst) {
            self.ask_for_server();
        }
    }

    /// Has a thread of the pool compute what is promised, if none does.
    #[cold]
    fn ask_for_server(&self) {
        let Some(index) = rayon::current_thread_index() else { return };
        if self.is_served.swap(true, Ordering::SeqCst) {
            return;
        }
        self.promiser.store(index + 1, Ordering::Relaxed);
        let context = Context::in_force();
        rayon::spawn(move || serve(&context));
    }

    /// Goes on when `is_there`, and helps until then.
    #[cold]
    pub(crate) fn wait(&self, is_there: impl Fn() -> bool) {
        let _engaged = Engaged::new();
        let mut helper = helpers::Helper::new(1);
        while !is_there() {
            if self.compute(&is_there) {
                continue;
            }
            // Somebody else computes what is needed.
            let has_helped = helper.looks(&is_there);
            if !has_helped && rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::yield_now();
            }
            // What is needed may have been promised in another context, where nobody says so when it is computed.
            self.unready.store(usize::MAX, Ordering::Relaxed);
        }
        if self.is_pending() && !self.is_served.load(Ordering::SeqCst) {
            self.ask_for_server();
        }
    }

    /// Waits for everything that was promised.
    pub(crate) fn finish(&self) {
        if self.is_pending() {
            self.wait(|| !self.is_pending());
        }
    }

    /// Takes the oldest operation that can be computed.
    fn next(&self) -> Option<Box<dyn Operation>> {
        let changes = self.changes.load(Ordering::Acquire);
        if changes == self.unready.load(Ordering::Relaxed) {
            return None;
        }
        let mut operations = self.operations();
        let ready = operations.iter().take(WINDOW).position(|operation| operation.is_ready());
        if ready.is_none() {
            self.unready.store(changes, Ordering::Relaxed);
        }
        operations.remove(ready?)
    }

    /// Computes what can be computed until there is no more or `is_enough`. False if nothing was computed: there is nothing, or somebody else is at what it needs.
    fn compute(&self, is_enough: impl Fn() -> bool) -> bool {
        if !self.is_pending() {
            return false;
        }
        let _engaged = Engaged::new();
        let mut has_computed = false;
        while let Some(operation) = self.next() {
            operation.run();
            self.changes.fetch_add(1, Ordering::Release);
            self.pending.fetch_sub(1, Ordering::SeqCst);
            has_computed = true;
            if is_enough() {
                break;
            }
        }
        has_computed
    }
}

/// Promises in the context in force that this operation will be computed when all that it needs, which was promised there before, is settled.
pub(crate) fn promise(operation: impl Operation + 'static) {
    if !context::current(|context| context.queue().has_room()) {
        // Nothing of this thread's may be borrowed by one who waits, and may take up something else.
        let context = Context::in_force();
        context.queue().wait(|| context.queue().has_room());
    }
    context::current(|context| context.queue().add(Box::new(operation)));
}

/// Computes what is promised in this context until nothing has been for a while.
fn serve(context: &Arc<Context>) {
    let queue = context.queue();
    let thread = rayon::current_thread_index().map_or(0, |index| index + 1);
    // A thread that is engaged, or that promises itself, has something of its own to come back to. Then whoever promises computes when it waits, or asks again.
    if IS_ENGAGED.get() || thread == queue.promiser.load(Ordering::Relaxed) {
        return queue.is_served.store(false, Ordering::SeqCst);
    }
    let _entered = context.serve();
    loop {
        queue.server.store(thread, Ordering::Relaxed);
        helpers::look_for_work(1, || queue.compute(|| false));
        queue.server.store(0, Ordering::Relaxed);
        queue.is_served.store(false, Ordering::SeqCst);
        // What was promised in between has asked nobody else.
        if !queue.is_pending() || queue.is_served.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` on a thread of a pool of two, within a context.
    fn within<T: Send>(work: impl FnOnce(&Queue) -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
        let context = Context::new(usize::MAX, f64::INFINITY);
        pool.install(|| {
            let _entered = context.enter();
            work(context.queue())
        })
    }

    /// An operation for tests: what it needs, and what it does.
    struct Task<R, W>(R, W);

    impl<R: Fn() -> bool + Send, W: FnOnce() + Send> Operation for Task<R, W> {
        fn is_ready(&self) -> bool {
            self.0()
        }

        fn run(self: Box<Self>) {
            self.1();
        }
    }

    #[test]
    fn each_promise_is_kept_once_and_after_what_it_needs() {
        const COUNT: usize = 20_000;
        let sums: Arc<[Promised<usize>]> = (0..COUNT).map(|_| Promised::open()).collect();
        let computed = Arc::new(AtomicUsize::new(0));
        // Each needs one that is near and one that is far, or none.
        let needs = |k: usize| match k % 5 {
            0 => [None, None],
            near => [Some(k - near / 2 - 1), Some(k / 3)],
        };
        let sum = move |k: usize, value: &dyn Fn(usize) -> usize| {
            needs(k).into_iter().flatten().fold(k, |sum, need| sum.wrapping_add(value(need)))
        };
        within(|queue| {
            for k in 0..COUNT {
                let (known, settled, count) = (sums.clone(), sums.clone(), computed.clone());
                let is_ready = move || needs(k).into_iter().flatten().all(|need| known[need].is_settled());
                let work = move || {
                    count.fetch_add(1, Ordering::Relaxed);
                    let value = |need: usize| {
                        assert!(settled[need].is_settled(), "{k} came before {need}");
                        *settled[need].get()
                    };
                    settle([&settled[k]], || [sum(k, &value)]);
                };
                promise(Task(is_ready, work));
                assert!(queue.pending.load(Ordering::Relaxed) <= MOST);
                if k % 701 == 0 {
                    sums[k].get();
                }
            }
        });
        let mut expected = Vec::new();
        for k in 0..COUNT {
            expected.push(sum(k, &|need| expected[need]));
            assert_eq!(*sums[k].get(), expected[k]);
        }
        assert_eq!(computed.load(Ordering::Relaxed), COUNT);
    }

    #[test]
    fn what_does_not_depend_on_each_other_is_computed_at_the_same_time() {
        let come = Arc::new(AtomicUsize::new(0));
        within(|queue| {
            let start = std::time::Instant::now();
            for round in 1..=100 {
                for _ in 0..2 {
                    let come = come.clone();
                    let meet = move || {
                        come.fetch_add(1, Ordering::Relaxed);
                        while come.load(Ordering::Relaxed) < 2 * round && start.elapsed().as_secs() < 60 {
                            std::thread::yield_now();
                        }
                    };
                    promise(Task(|| true, meet));
                }
                queue.finish();
            }
            assert!(start.elapsed().as_secs() < 60, "one waited for the other");
        });
    }

    #[test]
    fn a_panic_is_told_to_whoever_looks_and_to_what_depends_on_it_alone() {
        let promises: [Arc<Promised<usize>>; 3] = std::array::from_fn(|_| Arc::new(Promised::open()));
        let [broken, depending, other] = promises.clone();
        within(|_| {
            let place = broken.clone();
            promise(Task(|| true, move || settle([&place], || resume_unwind(Box::new("it broke")))));
            let (place, needed) = (depending.clone(), broken.clone());
            promise(Task(move || needed.is_settled(), move || settle([&place], || [broken.get() + 1])));
            let place = other.clone();
            promise(Task(|| true, move || settle([&place], || [7])));
            assert_eq!(*other.get(), 7);
            for promise in [&promises[0], &promises[1], &promises[1]] {
                let panic = catch_unwind(AssertUnwindSafe(|| *promise.get())).expect_err("there is no value");
                assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("it broke"));
            }
        });
    }
}
