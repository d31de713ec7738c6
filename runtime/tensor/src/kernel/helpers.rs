//! The threads that share kernels: how the parts of a kernel are handed out, and who looks for them.
//!
//! Between two shared kernels of a step lie some microseconds. A thread that finds no work falls asleep within less than that, and to wake it takes as long as many
//! a kernel. So whoever shares a kernel out has some others look for work for a while longer, and then much smaller kernels are worth sharing.
//!
//! Those that are awake look at two places, as a run computes two operations at the same time at most (`promise.rs`), where whoever computes puts a kernel. Each of them begins with the same share of every kernel, so that what it reads is often what it has written,
//! and takes from the others' shares when its own is done. A queue that threads steal from, and the calls of the system of those that wait at it, took a tenth of the time of PET's molecule.
//!
//! That is so while processors have nothing else to do. A thread that other programs have taken the processor from keeps the caller waiting for its part, so threads that notice it
//! while they look leave off for a while. (With a caller that did so, too, when it had to wait long for a helper, SOAP-BPNN's training took a tenth longer.)

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Instant;
use std::{hint, ptr, thread};

use rayon::prelude::*;

use crate::context;

/// Below this many elements a second thread costs more than it gives, if it is awake.
pub(super) const SHARED: usize = 1 << 14;
/// The same where they would have to be woken: processors are busy with something else, or the caller is none of the threads.
const SHARED_WITH_SLEEPERS: usize = 1 << 16;
/// With so many elements a kernel lasts long enough for all threads to be woken.
const SHARED_BY_ALL: usize = 1 << 18;
/// How long a thread looks for work before it may fall asleep, in nanoseconds.
const PATIENCE: u64 = 100_000;
/// So many times a thread looks for a kernel before it looks for other work, and lets others have its processor: one or two microseconds.
const LOOKS: usize = 32;
/// A thread that has not run for so long while it looked for work has lost its processor to others, in nanoseconds.
const INTERRUPTION: u64 = 200_000;
/// How long small kernels are not shared after that, in nanoseconds.
const PAUSE: u64 = 100_000_000;
/// The most groups that the parts of a kernel are handed out in: so many that threads end at about the same time, and what is left to wait for is short.
const GROUPS: usize = 64;
/// The most threads that look for work at a time. What is small enough to end before others are awake is not for more than these.
const MOST: usize = 3;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When a kernel was shared out last, in nanoseconds after [`START`].
static LAST: AtomicU64 = AtomicU64::new(0);
/// Until when processors are taken to be busy with something else, in nanoseconds after [`START`].
static BUSY_UNTIL: AtomicU64 = AtomicU64::new(0);
/// The threads that look for work, or have been asked to.
static AWAKE: AtomicUsize = AtomicUsize::new(0);
/// Where kernels are put. One that finds both taken, by other runs or by kernels within kernels, is computed by its caller.
static COUNTERS: [Counter; 2] = [const { Counter::new() }; 2];

/// Calls `run` for each of `parts`, which have this many elements to compute together: in order, or on several threads at once if that is worth it. Results must not depend on which.
pub(super) fn for_each<T: Send>(
    elements: usize,
    parts: impl ExactSizeIterator<Item = T>,
    run: impl Fn(T) + Send + Sync,
) {
    let sharing = if parts.len() < 2 { Sharing::None } else { sharing(elements) };
    if sharing == Sharing::None {
        return parts.for_each(run);
    }
    let mut parts: Vec<Option<T>> = parts.map(Some).collect();
    // Parts can be as short as it takes to hand one out.
    let together = parts.len().div_ceil(GROUPS);
    let groups: Vec<Mutex<&mut [Option<T>]>> = parts.chunks_mut(together).map(Mutex::new).collect();
    // Each group is locked once, by whoever computes it.
    let run = |group: &Mutex<&mut [Option<T>]>| {
        let mut group = group.lock().unwrap_or_else(PoisonError::into_inner);
        group.iter_mut().filter_map(Option::take).for_each(&run);
    };
    match sharing {
        Sharing::Awake { threads } => {
            let is_done = |counter: &Counter| counter.share(groups.len(), threads, &|group| run(&groups[group]));
            if !COUNTERS.iter().any(is_done) {
                groups.iter().for_each(run);
            }
        }
        _ => groups.par_iter().for_each(run),
    }
}

/// Whether a kernel with this many elements to compute should be shared out. If so, it is about to be, and others are asked to be awake. Results must not
/// depend on the answer.
pub(super) fn are_worth(elements: usize) -> bool {
    sharing(elements) != Sharing::None
}

/// Who computes a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// The caller.
    None,
    /// So many threads: the caller and those that are awake, or about to be.
    Awake { threads: usize },
    /// All threads, which are woken for it.
    All,
}

fn sharing(elements: usize) -> Sharing {
    if context::is_alone() {
        return Sharing::None;
    }
    let threads = rayon::current_num_threads();
    let with_sleepers = if threads > 1 && elements >= SHARED_WITH_SLEEPERS { Sharing::All } else { Sharing::None };
    let Some(caller) = rayon::current_thread_index() else { return with_sleepers };
    if threads == 1 || elements < SHARED {
        return Sharing::None;
    }
    let time = now();
    if time < BUSY_UNTIL.load(Ordering::Relaxed) {
        return with_sleepers;
    }
    LAST.store(time, Ordering::Relaxed);
    let helpers = (threads - 1).min(MOST);
    // The thread that promises, or that keeps promises, has the first seat and need not be asked.
    let partner = context::current(|context| context.queue().partner(caller)).filter(|&partner| partner != caller);
    let others = helpers - usize::from(partner.is_some());
    // They leave at about the same time, so it is enough to ask when all have left.
    if others > 0 && AWAKE.compare_exchange(0, others, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        rayon::spawn_broadcast(move |thread| {
            // Those that come after the caller, in the circle of all threads.
            let place = |thread: usize| (thread + threads - caller) % threads;
            let seat = match partner.map(place) {
                None => place(thread.index()),
                Some(partner) if place(thread.index()) == partner => return,
                Some(partner) => place(thread.index()) + usize::from(place(thread.index()) < partner),
            };
            if (helpers - others + 1..=helpers).contains(&seat) {
                look_for_work(seat, || false);
                AWAKE.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    match elements < SHARED_BY_ALL || threads == helpers + 1 {
        true => Sharing::Awake { threads: helpers + 1 },
        false => Sharing::All,
    }
}

fn now() -> u64 {
    START.elapsed().as_nanos() as u64
}

/// Whether processors are taken to be busy with something else.
pub(crate) fn are_processors_busy() -> bool {
    now() < BUSY_UNTIL.load(Ordering::Relaxed)
}

/// Helps with kernels from this seat, and with what `others` have that is no kernel, until there has been nothing to do for a while.
pub(crate) fn look_for_work(seat: usize, others: impl Fn() -> bool) {
    let mut helper = Helper::new(seat);
    let mut looked = now();
    let mut worked = looked;
    loop {
        if helper.looks(&others) || rayon::yield_now() == Some(rayon::Yield::Executed) {
            worked = now();
            looked = worked;
            continue;
        }
        // Whoever else wants this processor has it.
        thread::yield_now();
        let time = now();
        if time - looked > INTERRUPTION {
            BUSY_UNTIL.store(time + PAUSE, Ordering::Relaxed);
            return;
        }
        if time.saturating_sub(worked.max(LAST.load(Ordering::Relaxed))) > PATIENCE {
            return;
        }
        looked = time;
    }
}

/// A thread that helps with kernels.
pub(crate) struct Helper {
    seat: usize,
    /// At each counter.
    last_turns: [Option<u64>; COUNTERS.len()],
}

impl Helper {
    /// One that begins with the share of this seat; the first one is 1.
    pub(crate) fn new(seat: usize) -> Self {
        Self { seat, last_turns: [None; COUNTERS.len()] }
    }

    /// Looks for a kernel a few times, or for something else. Whether there was either.
    pub(crate) fn looks(&mut self, others: impl Fn() -> bool) -> bool {
        (0..LOOKS).any(|_| {
            let mut places = COUNTERS.iter().zip(&mut self.last_turns);
            let has_helped = others() || places.any(|(counter, last_turn)| counter.help(self.seat, last_turn));
            if !has_helped {
                hint::spin_loop();
            }
            has_helped
        })
    }
}

/// Where one kernel at a time is put for others to help with.
struct Counter {
    /// Whether somebody has it.
    is_taken: AtomicBool,
    /// Whether there is a kernel ([`OPEN`]), how many helpers are at it, in units of [`HELPER`], and whose turn it is, in units of [`TURN`].
    state: AtomicU64,
    /// To be read only by a helper that has been counted while it was open.
    kernel: AtomicPtr<Kernel<'static>>,
}

const OPEN: u64 = 1;
const HELPER: u64 = 1 << 1;
const TURN: u64 = 1 << 16;
const HELPERS: u64 = TURN - HELPER;

/// A kernel on the counter. It lives on the stack of its caller, who stays until no helper is at it.
struct Kernel<'a> {
    run: &'a (dyn Fn(usize) + Sync),
    /// One for each thread that may be at it.
    shares: [Share; MOST + 1],
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Some parts of a kernel, in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Kernel<'_> {
    /// Runs what is left: first of the share of this seat, then of the others'.
    fn work(&self, seat: usize) {
        for turn in 0..self.shares.len() {
            let share = &self.shares[(seat + turn) % self.shares.len()];
            loop {
                let part = share.next.fetch_add(1, Ordering::Relaxed);
                if part >= share.end {
                    break;
                }
                (self.run)(part);
            }
        }
    }
}

impl Counter {
    const fn new() -> Self {
        Self { is_taken: AtomicBool::new(false), state: AtomicU64::new(0), kernel: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Runs so many parts with the help of those that are looking, `threads` at most with this one; false, and none of them, if another kernel is on the counter. Panics if a part does, when all helpers have left.
    fn share(&self, parts: usize, threads: usize, run: &(dyn Fn(usize) + Sync)) -> bool {
        if self.is_taken.swap(true, Ordering::Acquire) {
            return false;
        }
        let share = |seat: usize| match seat < threads {
            true => Share { next: AtomicUsize::new(parts * seat / threads), end: parts * (seat + 1) / threads },
            false => Share::default(),
        };
        let kernel = Kernel { run, shares: std::array::from_fn(share), panic: Mutex::new(None) };
        {
            let _opened = Opened::new(self, &kernel);
            kernel.work(0);
        }
        if let Some(panic) = kernel.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(panic);
        }
        true
    }

    /// Whether helpers are at a kernel still, after a few looks.
    fn are_helping(&self) -> bool {
        (0..LOOKS).all(|_| {
            let are_helping = self.state.load(Ordering::Acquire) & HELPERS != 0;
            if are_helping {
                hint::spin_loop();
            }
            are_helping
        })
    }

    /// Helps with the kernel that is on the counter, if there is one with which this thread has not helped yet.
    fn help(&self, seat: usize, last_turn: &mut Option<u64>) -> bool {
        let turn = |state: u64| Some(state / TURN);
        let state = self.state.load(Ordering::Relaxed);
        if state & OPEN == 0 || turn(state) == *last_turn {
            return false;
        }
        let state = self.state.fetch_add(HELPER, Ordering::Acquire);
        let is_open = state & OPEN != 0;
        if is_open {
            *last_turn = turn(state);
            // SAFETY: this helper was counted while the counter was open. Its caller put the kernel there before it opened the counter, which was seen here, and after closing it waits until no helper is
            // counted, which this one is until the end of this function. So what the pointer shows to lives until then.
            #[expect(unsafe_code, reason = "threads that outlive a kernel help with it")]
            let kernel = unsafe { &*self.kernel.load(Ordering::Relaxed) };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| kernel.work(seat))) {
                *kernel.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
        }
        self.state.fetch_sub(HELPER, Ordering::Release);
        is_open
    }
}

/// While it lives, a kernel is on the counter. It ends when no helper is at it any more.
struct Opened<'a>(&'a Counter);

impl<'a> Opened<'a> {
    fn new(counter: &'a Counter, kernel: &Kernel<'_>) -> Self {
        counter.kernel.store(ptr::from_ref(kernel).cast_mut().cast(), Ordering::Relaxed);
        counter.state.fetch_add(TURN | OPEN, Ordering::Release);
        Self(counter)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        let Self(counter) = self;
        counter.state.fetch_and(!OPEN, Ordering::Relaxed);
        while counter.are_helping() {
            // A helper that has lost its processor may be waiting for this one.
            thread::yield_now();
        }
        counter.is_taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn threads_that_look_for_work_do_it_and_stop_looking() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
        pool.install(|| {
            assert!(!are_worth(SHARED - 1));
            for _ in 0..100 {
                // Whether it is worth it depends on what else runs here.
                are_worth(SHARED);
                let sum: usize = (0..64_usize).into_par_iter().with_min_len(1).map(|k| k * k).sum();
                assert_eq!(sum, 63 * 64 * 127 / 6);
            }
        });
        // Other tests may have asked other threads in the meantime, but nobody looks forever.
        let start = Instant::now();
        while AWAKE.load(Ordering::Relaxed) > 0 && start.elapsed().as_secs() < 60 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(start.elapsed().as_secs() < 60, "a thread still looks for work");
    }

    /// As many as may be at one kernel, and none of them rayon's.
    fn with_helpers(counter: &Counter, work: impl FnOnce()) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for seat in 1..=MOST {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut last_turn = None;
                    while !is_over.load(Ordering::Relaxed) {
                        if !counter.help(seat, &mut last_turn) {
                            thread::yield_now();
                        }
                    }
                });
            }
            let ended = catch_unwind(AssertUnwindSafe(work));
            is_over.store(true, Ordering::Relaxed);
            ended.unwrap_or_else(|panic| resume_unwind(panic));
        });
    }

    #[test]
    fn each_part_on_the_counter_is_computed_once_and_is_done_when_the_caller_goes_on() {
        let counter = Counter::new();
        with_helpers(&counter, || {
            for round in 0..3000_usize {
                let parts: Vec<AtomicUsize> = (0..round % 23).map(|_| AtomicUsize::new(0)).collect();
                let run = |part: usize| {
                    if part % 7 == round % 7 {
                        thread::yield_now();
                    }
                    parts[part].fetch_add(part + 1, Ordering::Relaxed);
                };
                assert!(counter.share(parts.len(), 1 + round % (MOST + 1), &run));
                assert!(parts.into_iter().enumerate().all(|(part, sum)| sum.into_inner() == part + 1));
            }
        });
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_whoever_computes_it_and_the_counter_is_free_again() {
        let counter = Counter::new();
        with_helpers(&counter, || {
            for round in 0..200_usize {
                let run = |part: usize| {
                    thread::yield_now();
                    if part == round % 40 {
                        resume_unwind(Box::new(part));
                    }
                };
                let ended = catch_unwind(AssertUnwindSafe(|| counter.share(40, MOST + 1, &run)));
                let panic = ended.expect_err("a part panics");
                assert_eq!(panic.downcast_ref::<usize>(), Some(&(round % 40)));
            }
            assert!(counter.share(1, 1, &|_| ()));
        });
    }

    #[test]
    fn a_kernel_that_finds_the_counters_taken_is_computed_all_the_same() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
        pool.install(|| {
            let sum = AtomicUsize::new(0);
            for_each(SHARED, 0..10_usize, |outer| {
                for_each(SHARED, 0..10_usize, |middle| {
                    for_each(SHARED, 0..10_usize, |inner| {
                        sum.fetch_add(100 * outer + 10 * middle + inner, Ordering::Relaxed);
                    });
                });
            });
            assert_eq!(sum.into_inner(), 999 * 1000 / 2);
        });
    }

    #[test]
    fn one_thread_does_it_alone() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
        assert!(pool.install(|| !are_worth(usize::MAX)));
    }

    #[test]
    fn a_run_that_computes_alone_shares_nothing_and_others_do() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
        let alone = crate::context::Context::new(usize::MAX, f64::INFINITY);
        alone.compute_alone();
        pool.install(|| {
            {
                let _entered = alone.enter();
                assert!(!are_worth(usize::MAX));
            }
            assert!(are_worth(usize::MAX));
        });
    }
}
