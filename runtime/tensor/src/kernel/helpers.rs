//! The threads that share kernels, kept awake from one kernel to the next.
//!
//! Between two shared kernels of a step lie some microseconds. A thread that finds no work falls asleep within less than that, and to wake it takes as long as many
//! a kernel. So whoever shares a kernel out has some others look for work for a while longer, and then much smaller kernels are worth sharing.
//!
//! That is so while processors have nothing else to do. A thread that other programs have taken the processor from keeps the caller waiting for its part, so threads that notice it
//! leave off for a while.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use crate::context;

/// Below this many elements a second thread costs more than it gives, if it is awake.
pub(super) const SHARED: usize = 1 << 14;
/// The same where they would have to be woken: processors are busy with something else, or the caller is none of the threads.
const SHARED_WITH_SLEEPERS: usize = 1 << 16;
/// How long a thread looks for work before it may fall asleep, in nanoseconds.
const PATIENCE: u64 = 100_000;
/// A thread that has not run for so long while it looked for work has lost its processor to others, in nanoseconds.
const INTERRUPTION: u64 = 200_000;
/// How long nobody looks for work after that, in nanoseconds.
const PAUSE: u64 = 100_000_000;
/// The most threads that look for work at a time. What is small enough to end before others are awake is not for more than these.
const MOST: usize = 3;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When a kernel was shared out last, in nanoseconds after [`START`].
static LAST: AtomicU64 = AtomicU64::new(0);
/// Until when processors are taken to be busy with something else, in nanoseconds after [`START`].
static BUSY_UNTIL: AtomicU64 = AtomicU64::new(0);
/// The threads that look for work, or have been asked to.
static AWAKE: AtomicUsize = AtomicUsize::new(0);

/// Whether a kernel with this many elements to compute should be shared out. If so, it is about to be, and others are asked to be awake. Results must not
/// depend on the answer.
pub(super) fn are_worth(elements: usize) -> bool {
    if context::is_alone() {
        return false;
    }
    let threads = rayon::current_num_threads();
    let Some(caller) = rayon::current_thread_index() else { return threads > 1 && elements >= SHARED_WITH_SLEEPERS };
    if threads == 1 || elements < SHARED {
        return false;
    }
    let time = now();
    if time < BUSY_UNTIL.load(Ordering::Relaxed) {
        return elements >= SHARED_WITH_SLEEPERS;
    }
    LAST.store(time, Ordering::Relaxed);
    let helpers = (threads - 1).min(MOST);
    // They leave at about the same time, so it is enough to ask when all have left.
    if AWAKE.compare_exchange(0, helpers, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        rayon::spawn_broadcast(move |thread| {
            // Those that come after the caller, in the circle of all threads.
            if (1..=helpers).contains(&((thread.index() + threads - caller) % threads)) {
                look_for_work();
                AWAKE.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    true
}

fn now() -> u64 {
    START.elapsed().as_nanos() as u64
}

fn look_for_work() {
    let mut looked = now();
    let mut worked = looked;
    loop {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            worked = now();
            looked = worked;
            continue;
        }
        // Whoever else wants this processor has it.
        std::thread::yield_now();
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
