//! Counting the bytes of tensors against a quota.
//!
//! Every tensor counts with its full size, but for views of another one's value, and with what it takes to keep it, from before its operation is asked for until its value is
//! freed; what a gradient's history keeps alive therefore counts as well. The quota is that of the context in force, see [`crate::context`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn_dispatch::DispatchTensor;

use crate::Misuse;
use crate::context::{Context, current};

/// The name of the limit.
const LIMIT: &str = "tensor_bytes";
/// What a tensor counts beside its elements: its node, its place in the history with the derivative's captures, and the allocations around
/// them. A history of scalars would otherwise fill the memory without being noticed. It takes up to
/// 340 bytes, see `tests/bookkeeping.rs`, and what the allocator keeps beside each allocation.
pub const BOOKKEEPING: usize = 400 + OF_A_DEVICE;
/// A value's handle, and what a device's driver and its pool of memory keep for it on the host, in builds that have one.
const OF_A_DEVICE: usize = if cfg!(feature = "accelerator") { 1024 + size_of::<DispatchTensor>() } else { 0 };

/// A bound on the bytes of all tensors of a run, and how many there are.
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

    /// Counts `bytes` more, if there are no more than `most` then; else says how many there are.
    fn reserve(self: Arc<Self>, bytes: usize, most: usize) -> Result<Reservation, usize> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let Some(after) = before.checked_add(bytes).filter(|&after| after <= most) else {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(before);
        };
        // Mostly it is no new one, and looking costs less than asking for a place to write.
        if after > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(after, Ordering::Relaxed);
        }
        Ok(Reservation { quota: self, bytes })
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    quota: Arc<Quota>,
    bytes: usize,
}

impl Reservation {
    /// Two that count the same together, the second one `bytes`; if there are fewer, all.
    pub(crate) fn split(mut self, bytes: usize) -> (Self, Self) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let second = Self { quota: self.quota.clone(), bytes };
        (self, second)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Counts a tensor of `bytes` bytes for `operation`, or refuses.
pub(crate) fn reserve(operation: &'static str, bytes: usize) -> Result<Reservation, Misuse> {
    let quota = current(|context| context.quota().clone());
    let (asked, limit) = (bytes, quota.limit);
    let bytes = bytes.saturating_add(BOOKKEEPING);
    quota.reserve(bytes, limit).or_else(|before| {
        // What has been dropped is counted until what is computed from it is there.
        if current(|context| context.queue().is_pending()) {
            Context::in_force().queue().finish();
            return reserve(operation, asked);
        }
        let problem = format!("it needs {bytes} bytes; {before} of {limit} are in use");
        Err(Misuse::limit(LIMIT, operation, problem))
    })
}

/// Counts `bytes` bytes of what a run can do without, if half of its quota is free then: tensors to come are not to be refused because of it. It waits for nothing, so it may be asked while
/// operations are computed.
#[cfg(target_arch = "x86_64")]
pub(crate) fn reserve_spare(bytes: usize) -> Option<Reservation> {
    let quota = current(|context| context.quota().clone());
    let most = quota.limit / 2;
    quota.reserve(bytes.saturating_add(BOOKKEEPING), most).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_holds_at_the_bound_and_refuses_one_byte_past_it() {
        let context = Context::new(BOOKKEEPING + 100, f64::INFINITY);
        let _entered = context.enter();
        let quota = context.quota();
        let held = reserve("test", 100);
        assert!(held.is_ok());
        assert!(reserve("test", 1).is_err_and(|misuse| misuse.limit == Some(LIMIT)));
        let (kept, freed) = held.map(|held| held.split(60)).ok().unzip();
        drop(freed);
        assert_eq!(quota.used(), BOOKKEEPING + 40);
        drop(kept);
        assert_eq!((quota.used(), quota.peak()), (0, BOOKKEEPING + 100));
        assert!(reserve("test", 101).is_err());
        assert!(reserve("test", usize::MAX).is_err());
        assert_eq!(quota.used(), 0);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_can_be_done_without_leaves_half_of_the_quota() {
        let context = Context::new(2 * (BOOKKEEPING + 100), f64::INFINITY);
        let _entered = context.enter();
        assert!(reserve_spare(101).is_none() && context.quota().used() == 0);
        let kept = reserve_spare(100);
        assert!(kept.is_some() && reserve_spare(0).is_none());
        assert!(reserve("test", 100).is_ok());
    }
}
