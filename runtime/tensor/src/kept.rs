//! What is kept with a matrix that many products are made with.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{self, Reservation};

/// So many times it is made anew for each use. A training step takes the weights of a layer that it applies once less often than that, and keeps nothing of what the next one replaces.
const USES: u32 = 8;

/// Something that is made of a value for each use of it, until it has been used so often that it is kept.
pub(crate) struct Kept<T> {
    uses: AtomicU32,
    value: OnceLock<Box<(T, Reservation)>>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { uses: AtomicU32::new(0), value: OnceLock::new() }
    }
}

impl<T> Kept<T> {
    /// What is kept, or what `make` makes to be kept, of so many bytes; none as long as it has hardly been used, or where memory is short.
    pub(crate) fn get(&self, bytes: usize, make: impl FnOnce() -> T) -> Option<&T> {
        if self.value.get().is_none() {
            if self.uses.fetch_add(1, Ordering::Relaxed) < USES {
                return None;
            }
            let reservation = memory::reserve_spare(bytes)?;
            // Another thread may have been faster. It is not waited for: threads that compute for this run wait for nothing but values.
            let _ = self.value.set(Box::new((make(), reservation)));
        }
        self.value.get().map(|kept| &kept.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;

    #[test]
    fn it_is_kept_from_the_ninth_use_on_if_there_is_room() {
        let narrow = Context::new(1 << 12, f64::INFINITY);
        let wide = Context::new(1 << 14, f64::INFINITY);
        let kept = Kept::default();
        let of_use = |context: &std::sync::Arc<Context>, number: u32| {
            let _entered = context.enter();
            kept.get(1 << 11, || number).copied()
        };
        assert!((0..USES).all(|number| of_use(&wide, number).is_none()));
        assert_eq!(of_use(&narrow, 8), None, "half of the quota is to be free");
        assert_eq!((of_use(&wide, 9), of_use(&wide, 10), of_use(&narrow, 11)), (Some(9), Some(9), Some(9)));
        assert!(wide.quota().used() > 1 << 11 && narrow.quota().used() == 0);
        drop(kept);
        assert_eq!(wide.quota().used(), 0);
    }
}
