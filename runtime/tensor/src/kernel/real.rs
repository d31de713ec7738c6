//! The floating-point types, and code for the vector units at hand.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

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
    + Div<Output = Self>
    + Neg<Output = Self>
    + PartialOrd
    + AddAssign
    + MulAssign
{
    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// e to this power, to within two units in the last place; branch-free, so that loops over it are vectorised.
    fn exp(self) -> Self;
}

/// Taylor's coefficients of the exponential, highest first: enough of them for `|r| <= ln(2) / 2` in each precision.
const TAYLOR32: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
const TAYLOR64: [f64; 14] = [
    1.0 / 6_227_020_800.0,
    1.0 / 479_001_600.0,
    1.0 / 39_916_800.0,
    1.0 / 3_628_800.0,
    1.0 / 362_880.0,
    1.0 / 40_320.0,
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

macro_rules! real {
    ($type:ident, $bits:ident, $taylor:ident, $mantissa:expr, $bias:expr, $magic:expr, $lowest:expr, $highest:expr, $ln2:expr) => {
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

            #[inline(always)]
            fn exp(self) -> Self {
                // Beyond these bounds the result is 0 or infinite all the same; a NaN passes both comparisons.
                let bounded = if self < $lowest { $lowest } else { self };
                let bounded = if bounded > $highest { $highest } else { bounded };
                // Adding this number leaves the nearest integer in the lowest bits of the sum.
                let shifted = bounded.mul_add(std::$type::consts::LOG2_E, $magic);
                let power = shifted - $magic;
                // ln(2) in two parts, the first of which has so few digits that its product is exact.
                let rest = power.mul_add(-$ln2[0], bounded);
                let rest = power.mul_add(-$ln2[1], rest);
                let mut value = $taylor[0];
                for coefficient in &$taylor[1..] {
                    value = value.mul_add(rest, *coefficient);
                }
                // Two factors, because one alone cannot have the exponent of the smallest and largest results.
                let exponent = shifted.to_bits().wrapping_sub(($magic as $type).to_bits());
                let half = ((exponent as i32) >> 1) as $bits;
                let factor = |exponent: $bits| $type::from_bits(exponent.wrapping_add($bias) << $mantissa);
                value * factor(half) * factor(exponent.wrapping_sub(half))
            }
        }
    };
}

real!(f32, u32, TAYLOR32, 23, 127, 12_582_912.0, -104.0, 89.0, [0.693_359_4_f32, -2.121_944_4e-4]);
real!(
    f64,
    u64,
    TAYLOR64,
    52,
    1023,
    6_755_399_441_055_744.0,
    -746.0,
    710.0,
    [0.693_147_180_369_123_8_f64, 1.908_214_929_270_587_7e-10]
);

/// Runs `body` compiled for the widest vector unit of this processor. The closure must be marked `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<T>(body: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_digits_and_at_the_ends() {
        for k in -75_000..=71_000 {
            let x = f64::from(k) * 0.01 + 1e-4;
            // Below the smallest normal number digits are lost by nature.
            let tolerance = if x < -708.0 { 1e-1 } else { 5e-16 };
            let (found, expected) = (Real::exp(x), x.exp());
            let close = (found - expected).abs() <= tolerance * expected + f64::MIN_POSITIVE * 1e-12;
            assert!(close || found == expected, "{x}: {found:e} {expected:e}");
            let x = (x * 0.14) as f32;
            let tolerance = if x < -87.0 { 1e-1 } else { 2.5e-7 };
            let (found, expected) = (Real::exp(x), x.exp());
            let close = (found - expected).abs() <= tolerance * expected + 1e-45;
            assert!(close || found == expected, "{x}: {found:e} {expected:e}");
        }
        assert_eq!((Real::exp(0.0_f64), Real::exp(0.0_f32)), (1.0, 1.0));
        assert_eq!((Real::exp(f64::INFINITY), Real::exp(f32::INFINITY)), (f64::INFINITY, f32::INFINITY));
        assert_eq!((Real::exp(f64::NEG_INFINITY), Real::exp(f32::NEG_INFINITY)), (0.0, 0.0));
        assert!(Real::exp(f64::NAN).is_nan() && Real::exp(f32::NAN).is_nan());
    }
}
