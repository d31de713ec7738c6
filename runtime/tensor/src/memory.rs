//! Counting the bytes of tensors against a quota.
//!
//! Every tensor counts with its full size, views too, from before its operation runs until its value is freed; what a gradient's history
//! keeps alive therefore counts as well. The quota belongs to the thread that runs the operations: a session sets its own.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Misuse;

/// A bound on the bytes of all tensors of a session, and how many there are.
#[derive(Debug)]
pub struct Quota {
    limit: usize,
    used: AtomicUsize,
    peak: AtomicUsize,
}

impl Quota {
    /// A quota of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0), peak: AtomicUsize::new(0) })
    }

    /// The bytes counted now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever counted at once.
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// The bound in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

thread_local! {
    static CURRENT: RefCell<Arc<Quota>> = RefCell::new(Quota::new(usize::MAX));
}

/// Makes `quota` count what this thread allocates from now on; without one there is no bound.
pub fn set_quota(quota: Arc<Quota>) {
    CURRENT.with(|current| *current.borrow_mut() = quota);
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    quota: Arc<Quota>,
    bytes: usize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Counts `bytes` for `operation`, or refuses.
pub(crate) fn reserve(operation: &'static str, bytes: usize) -> Result<Reservation, Misuse> {
    CURRENT.with(|current| {
        let quota = current.borrow().clone();
        let before = quota.used.fetch_add(bytes, Ordering::Relaxed);
        match before.checked_add(bytes).filter(|&after| after <= quota.limit) {
            Some(after) => {
                quota.peak.fetch_max(after, Ordering::Relaxed);
                Ok(Reservation { quota, bytes })
            }
            None => {
                quota.used.fetch_sub(bytes, Ordering::Relaxed);
                Err(Misuse::limit(
                    operation,
                    format!("the result needs {bytes} bytes; {before} of {} are in use", quota.limit),
                ))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_holds_at_the_bound_and_refuses_one_byte_past_it() {
        let quota = Quota::new(100);
        set_quota(quota.clone());
        let held = reserve("test", 100);
        assert!(held.is_ok());
        assert!(reserve("test", 1).is_err_and(|misuse| misuse.limit));
        drop(held);
        assert_eq!((quota.used(), quota.peak()), (0, 100));
        assert!(reserve("test", 101).is_err());
        assert!(reserve("test", usize::MAX).is_err());
        assert_eq!(quota.used(), 0);
    }
}
