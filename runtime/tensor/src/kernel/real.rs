//! The floating-point types, and code for the vector units at hand.

use std::ops::{Add, AddAssign, Mul, Sub};

use burn_backend::Element;

/// `f32` or `f64`.
pub(crate) trait Real:
    Element
    + bytemuck::Pod
    + Default
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + AddAssign
{
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
}

macro_rules! real {
    ($type:ty) => {
        impl Real for $type {
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn mul_add(self, factor: Self, term: Self) -> Self {
                self.mul_add(factor, term)
            }
        }
    };
}

real!(f32);
real!(f64);

/// Runs `body` compiled for the widest vector unit of this processor. The closure must be marked `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<T>(body: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(body)
}
