//! Ends calls that last too long.
//!
//! Three things stop a call whose time is up, each where the one before does not reach. The engine's epochs trap a guest that runs its own code.
//! The run's context stops an operation of the host between its parts. And an operation that has no parts and goes on for longer than
//! [`GRACE`] is reported to whoever started the session, who can end the process.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use kilnbox_tensor::context::Context;

use crate::error::HostError;

/// How often is looked whether a deadline has passed.
pub(crate) const TICK: Duration = Duration::from_millis(50);
/// How long an operation may go on after its deadline before it counts as one that cannot be stopped.
const GRACE: Duration = Duration::from_secs(1);

/// What is done about an operation that cannot be stopped: it gets the error that the call would have ended with, on another thread.
pub type OnOverrun = Arc<dyn Fn(HostError) + Send + Sync>;

/// How long a call may take, and which limit says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    pub(crate) limit: &'static str,
    /// The value of the limit, which is more than what is left of it.
    pub(crate) seconds: f64,
    pub(crate) left: Duration,
}

impl Allowance {
    /// No bound at all is a bound of centuries.
    pub(crate) fn new(limit: &'static str, seconds: f64, since: Instant) -> Self {
        const CENTURIES: Duration = Duration::from_secs(1 << 36);
        let whole = Duration::try_from_secs_f64(seconds).unwrap_or(CENTURIES).min(CENTURIES);
        Self { limit, seconds, left: whole.saturating_sub(since.elapsed()) }
    }

    /// The error of a call that took longer.
    pub(crate) fn error(&self) -> HostError {
        let seconds = self.seconds;
        let what = if self.limit == "seconds_per_run" { "the run" } else { "a call" };
        HostError::Limit { limit: self.limit, message: format!("{what} did not finish within {seconds} s") }
    }
}

/// The deadline of a session's present call.
pub(crate) struct Deadline {
    context: Arc<Context>,
    on_overrun: Option<OnOverrun>,
    present: Mutex<Option<(Instant, Allowance)>>,
}

impl Deadline {
    /// A deadline that stops operations of `context`, watched from now on.
    pub(crate) fn new(context: Arc<Context>, on_overrun: Option<OnOverrun>) -> Arc<Self> {
        let deadline = Arc::new(Self { context, on_overrun, present: Mutex::new(None) });
        watch(&deadline);
        deadline
    }

    /// A call begins.
    pub(crate) fn set(&self, allowance: Allowance) {
        *self.present() = Instant::now().checked_add(allowance.left).map(|at| (at, allowance));
    }

    /// The call has ended.
    pub(crate) fn clear(&self) {
        *self.present() = None;
    }

    fn present(&self) -> MutexGuard<'_, Option<(Instant, Allowance)>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        let mut present = self.present();
        let Some((at, allowance)) = *present else { return };
        let now = Instant::now();
        if now >= at {
            self.context.stop();
        }
        if now >= at + GRACE {
            // Reported once.
            *present = None;
            drop(present);
            if let Some(report) = &self.on_overrun {
                report(allowance.error());
            }
        }
    }
}

/// One thread looks after the deadlines of all sessions.
fn watch(deadline: &Arc<Deadline>) {
    static WATCHED: OnceLock<Mutex<Vec<Weak<Deadline>>>> = OnceLock::new();
    let watched = || WATCHED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let is_first = WATCHED.get().is_none();
    watched().push(Arc::downgrade(deadline));
    if is_first {
        // Two threads that look do no more than one, should two sessions start at once. If none can be had, epochs alone keep deadlines.
        let _ = std::thread::Builder::new().name("deadlines".into()).spawn(move || {
            loop {
                std::thread::sleep(TICK);
                let alive: Vec<Arc<Deadline>> = {
                    let mut all = watched();
                    all.retain(|deadline| deadline.strong_count() > 0);
                    all.iter().filter_map(Weak::upgrade).collect()
                };
                alive.iter().for_each(|deadline| deadline.look());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_context_is_stopped_at_its_deadline_and_an_overrun_is_reported_once() {
        let context = Context::new(usize::MAX, f64::INFINITY);
        let (sender, receiver) = channel();
        let sender = Mutex::new(sender);
        let report: OnOverrun = Arc::new(move |error| {
            let _ = sender.lock().map(|sender| sender.send(error.to_string()));
        });
        let deadline = Deadline::new(context.clone(), Some(report));
        let start = Instant::now();
        deadline.set(Allowance::new("seconds_per_call", 0.1, start));
        assert!(!context.is_stopped());
        let message = receiver.recv_timeout(Duration::from_secs(30)).unwrap_or_default();
        assert!(message.contains("within 0.1 s"), "{message}");
        assert!(context.is_stopped() && start.elapsed() >= GRACE);
        assert!(receiver.recv_timeout(4 * TICK).is_err(), "reported twice");
    }

    #[test]
    fn a_call_that_ended_in_time_is_left_alone() {
        let context = Context::new(usize::MAX, f64::INFINITY);
        let deadline = Deadline::new(context.clone(), None);
        deadline.set(Allowance::new("seconds_per_call", 0.05, Instant::now()));
        deadline.clear();
        std::thread::sleep(4 * TICK);
        assert!(!context.is_stopped());
    }

    #[test]
    fn no_bound_is_no_deadline() {
        let allowance = Allowance::new("seconds_per_run", f64::INFINITY, Instant::now());
        assert!(allowance.left > Duration::from_secs(1 << 35));
    }
}
