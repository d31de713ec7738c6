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
    /// The square root, rounded correctly.
    fn sqrt(self) -> Self;
    /// Without its sign.
    fn abs(self) -> Self;
    /// Whether it is no number.
    fn is_nan(self) -> bool;
    // The functions below are right to within five units in the last place, and branch-free, so that loops over them are vectorised.
    /// e to this power.
    fn exp(self) -> Self;
    /// e to this power where that is no more than 1, in fewer steps; 0 where it would be below the smallest normal number.
    fn exp_of_negative(self) -> Self;
    /// The natural logarithm.
    fn log(self) -> Self;
    /// The same of a finite number that [`Self::is_positive_normal`], in half as many steps.
    fn log_of_normal(self) -> Self;
    /// Whether it is at least the smallest normal number, and finite.
    fn is_positive_normal(self) -> bool;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The sine of radians up to [`Self::LARGEST_ANGLE`] in size.
    fn sin(self) -> Self;
    /// The cosine of such.
    fn cos(self) -> Self;
    /// Both, in fewer steps than one after the other.
    fn sin_cos(self) -> (Self, Self);
    /// Beyond this angle digits would be lost.
    const LARGEST_ANGLE: f64;
    /// As the standard library has them: for what is rare, one at a time.
    fn sin_cos_of_any(self) -> (Self, Self);
}

/// Taylor's coefficients of the exponential without its constant, highest first: enough of them for `|r| <= ln(2) / 2` in each precision.
const EXP32: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
const EXP64: [f64; 13] = [
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
];

/// `(ln(1 + x) - x) / x^2`, highest power first: fitted from `1 / sqrt(2) - 1` to `sqrt(2) - 1`, where it makes a relative error of 6e-9 at most. The series of `LOG64` has
/// fewer terms, and a division.
const LOG32: [f32; 9] = [
    -7.634_43e-2,
    1.276_155e-1,
    -1.316_019_4e-1,
    1.420_176_2e-1,
    -1.662_335_7e-1,
    2.000_122_7e-1,
    -2.500_082_3e-1,
    3.333_333e-1,
    -0.5,
];
/// Coefficients of `artanh(f) / f - 1` in `f^2`, without the constant, which is 0: `1/3, 1/5, ..`, highest first, for `f <= (sqrt(2) - 1) / (sqrt(2) + 1)`.
const LOG64: [f64; 10] = [
    1.0 / 21.0,
    1.0 / 19.0,
    1.0 / 17.0,
    1.0 / 15.0,
    1.0 / 13.0,
    1.0 / 11.0,
    1.0 / 9.0,
    1.0 / 7.0,
    1.0 / 5.0,
    1.0 / 3.0,
];

/// Taylor's coefficients of `sin(r) / r - 1` and of `cos(r) - 1` in `r^2`, without constants, highest first, for `|r| <= pi / 4`.
const SIN32: [f32; 4] = [1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0];
const COS32: [f32; 5] = [-1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5];
// Without the first two, whose terms are below the last digit there.
const SIN64: [f64; 8] = *SIN_OF_HALF64.last_chunk().expect("there are more of them");
const COS64: [f64; 8] = [
    1.0 / 20_922_789_888_000.0,
    -1.0 / 87_178_291_200.0,
    1.0 / 479_001_600.0,
    -1.0 / 3_628_800.0,
    1.0 / 40_320.0,
    -1.0 / 720.0,
    1.0 / 24.0,
    -0.5,
];

/// Those of `sin(r) / r - 1` for `|r| <= pi / 2`. In single precision 1/120 makes up for what 1/6 is rounded by, so that the cosine of 0 is 1.
const SIN_OF_HALF32: [f32; 6] =
    [1.0 / 6_227_020_800.0, -1.0 / 39_916_800.0, 1.0 / 362_880.0, -1.0 / 5040.0, 8.333_335e-3, -1.0 / 6.0];
const SIN_OF_HALF64: [f64; 10] = [
    1.0 / 51_090_942_171_709_440_000.0,
    -1.0 / 121_645_100_408_832_000.0,
    1.0 / 355_687_428_096_000.0,
    -1.0 / 1_307_674_368_000.0,
    1.0 / 6_227_020_800.0,
    -1.0 / 39_916_800.0,
    1.0 / 362_880.0,
    -1.0 / 5040.0,
    1.0 / 120.0,
    -1.0 / 6.0,
];

/// Taylor's coefficients of `erf(x) sqrt(pi) / (2 x)` in `x^2`, highest first, for `|x|` below [`ERF_SERIES`].
const ERF32: [f32; 8] =
    [-1.0 / 75_600.0, 1.0 / 9360.0, -1.0 / 1320.0, 1.0 / 216.0, -1.0 / 42.0, 1.0 / 10.0, -1.0 / 3.0, 1.0];
pub(super) const ERF64: [f64; 15] = [
    1.0 / 2_528_170_444_800.0,
    -1.0 / 168_129_561_600.0,
    1.0 / 11_975_040_000.0,
    -1.0 / 918_086_400.0,
    1.0 / 76_204_800.0,
    -1.0 / 6_894_720.0,
    1.0 / 685_440.0,
    -1.0 / 75_600.0,
    1.0 / 9360.0,
    -1.0 / 1320.0,
    1.0 / 216.0,
    -1.0 / 42.0,
    1.0 / 10.0,
    -1.0 / 3.0,
    1.0,
];
/// From here on the error function is `1 - exp(-x^2) p(t)` with `t = (x - 2) / (x + 2)`.
pub(super) const ERF_SERIES: f64 = 0.75;
/// `p`, highest power first: fitted to `exp(x^2) erfc(x)`, with errors weighted by `exp(-x^2)`, up to where `erfc` is below the last digit of 1. The largest error of
/// `erf` is 2e-10 in single precision, and 2e-18 in double.
const ERFC32: [f32; 7] =
    [5.936_564e-4, 7.828_657e-3, 3.957_977e-3, -7.895_36e-2, 2.416_58e-1, -4.271_860_5e-1, 2.553_956_7e-1];
pub(super) const ERFC64: [f64; 14] = [
    -3.102_943_577_091_326e-6,
    -1.671_645_995_459_796_4e-5,
    -2.835_850_803_296_366e-5,
    2.755_003_246_455_415_5e-5,
    1.744_428_872_630_791_3e-4,
    4.357_502_566_779_62e-5,
    -9.819_770_259_341_701e-4,
    -8.471_439_029_765_687e-4,
    6.997_461_659_965_396e-3,
    3.732_892_406_969_172e-3,
    -7.897_858_101_479_59e-2,
    2.416_581_942_424_965_8e-1,
    -4.271_858_474_139_599_1e-1,
    2.553_956_763_105_057e-1,
];

/// What each precision needs to know of itself.
struct Constants<R> {
    /// `1.5 * 2^(digits - 1)`: adding it to a number leaves the nearest integer in the lowest bits of the sum.
    magic: R,
    /// Where the exponential is 0 and where it is infinite.
    ends: [R; 2],
    /// Where the exponential is about to leave the normal numbers.
    lowest: R,
    /// ln(2) in two parts, the first of which has so few digits that its product with an exponent is exact.
    ln2: [R; 2],
    /// pi / 2 in three parts.
    half_pi: [R; 3],
    /// The power of two that brings every number below the smallest normal one up, and its exponent.
    lift: (R, R),
}

/// The `magic` of double precision: the sum with a number below 2^51 has its units in the last place.
pub(super) const MAGIC64: f64 = 6_755_399_441_055_744.0;

const CONSTANTS32: Constants<f32> = Constants {
    magic: 12_582_912.0,
    ends: [-104.0, 89.0],
    lowest: -87.0,
    ln2: [0.693_359_4, -2.121_944_4e-4],
    half_pi: [1.570_796_4, -4.371_139e-8, -1.715_124_5e-15],
    lift: (33_554_432.0, 25.0),
};
const CONSTANTS64: Constants<f64> = Constants {
    magic: MAGIC64,
    ends: [-746.0, 710.0],
    lowest: -708.0,
    ln2: [0.693_147_180_369_123_8, 1.908_214_929_270_587_7e-10],
    half_pi: [std::f64::consts::FRAC_PI_2, 6.123_233_995_736_766e-17, -1.497_384_904_859_183_3e-33],
    lift: (18_014_398_509_481_984.0, 54.0),
};

/// The polynomial with these coefficients, highest power first.
macro_rules! polynomial {
    ($coefficients:ident, $x:expr) => {{
        let mut value = $coefficients[0];
        for coefficient in &$coefficients[1..] {
            value = value.mul_add($x, *coefficient);
        }
        value
    }};
}

macro_rules! real {
    ($type:ident, $bits:ident, $mantissa:literal, $bias:literal, $largest_angle:literal, $constants:ident, [$exp:ident, $log:ident, $sin:ident, $cos:ident, $sin_of_half:ident, $erf:ident, $erfc:ident]) => {
        impl Real for $type {
            const LARGEST_ANGLE: f64 = $largest_angle;

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
            fn sqrt(self) -> Self {
                self.sqrt()
            }

            #[inline(always)]
            fn abs(self) -> Self {
                self.abs()
            }

            #[inline(always)]
            fn is_nan(self) -> bool {
                self.is_nan()
            }

            #[inline(always)]
            fn exp(self) -> Self {
                // Beyond the ends the result is 0 or infinite all the same; a NaN passes both comparisons.
                let bounded = if self < $constants.ends[0] { $constants.ends[0] } else { self };
                let bounded = if bounded > $constants.ends[1] { $constants.ends[1] } else { bounded };
                let (rest, exponent) = <$type as Parts>::parts(bounded);
                let value = polynomial!($exp, rest).mul_add(rest, 1.0);
                // Two factors, because one alone cannot have the exponent of the smallest and largest results. Half of the exponent is found without a shift of signed
                // numbers, which vector units lack for 64 bits.
                const EVEN: $bits = 1 << 12;
                let half = (exponent.wrapping_add(EVEN) >> 1).wrapping_sub(EVEN >> 1);
                value
                    * <$type as Parts>::power_of_two(half)
                    * <$type as Parts>::power_of_two(exponent.wrapping_sub(half))
            }

            #[inline(always)]
            fn exp_of_negative(self) -> Self {
                let lowest = $constants.lowest;
                let (rest, exponent) = <$type as Parts>::parts(if self < lowest { lowest } else { self });
                let value = polynomial!($exp, rest).mul_add(rest, 1.0) * <$type as Parts>::power_of_two(exponent);
                if self < lowest { 0.0 } else { value }
            }

            #[inline(always)]
            fn log(self) -> Self {
                let (lift, exponent) = $constants.lift;
                let is_tiny = self < $type::MIN_POSITIVE;
                let value = (if is_tiny { self * lift } else { self }).log_of_normal();
                let value = if is_tiny { value - exponent * std::$type::consts::LN_2 } else { value };
                let value = if self < $type::INFINITY { value } else { self };
                let value = if self == 0.0 { $type::NEG_INFINITY } else { value };
                if self < 0.0 { $type::NAN } else { value }
            }

            #[inline(always)]
            fn log_of_normal(self) -> Self {
                let bits = self.to_bits();
                // self = m 2^e with m between the roots of 1/2 and 2; e with the bias, so that the shift needs no sign.
                let e = bits.wrapping_sub(std::$type::consts::FRAC_1_SQRT_2.to_bits()).wrapping_add($bias << $mantissa)
                    >> $mantissa;
                let m = $type::from_bits(bits.wrapping_sub(e.wrapping_sub($bias) << $mantissa));
                let e =
                    $type::from_bits($constants.magic.to_bits().wrapping_add(e).wrapping_sub($bias)) - $constants.magic;
                let (first, factor, rest) = $log(m);
                e.mul_add($constants.ln2[0], first + factor.mul_add(rest, e * $constants.ln2[1]))
            }

            #[inline(always)]
            fn is_positive_normal(self) -> bool {
                // As integers, such numbers are next to each other; all others wrap around to larger ones.
                let first = $type::MIN_POSITIVE.to_bits();
                self.to_bits().wrapping_sub(first) < $type::INFINITY.to_bits() - first
            }

            #[inline(always)]
            fn tanh(self) -> Self {
                // tanh(|x|) = -t / (t + 2) with t = exp(-2 |x|) - 1, which is found without the loss of digits that the subtraction would bring. Beyond 22 it is 1.
                let doubled = -2.0 * self.abs();
                let bounded = if doubled < -44.0 { -44.0 } else { doubled };
                let (rest, exponent) = <$type as Parts>::parts(bounded);
                let power = <$type as Parts>::power_of_two(exponent);
                let t = (polynomial!($exp, rest) * rest).mul_add(power, power - 1.0);
                (-t / (t + 2.0)).copysign(self)
            }

            #[inline(always)]
            fn erf(self) -> Self {
                let x = self.abs();
                let square = x * x;
                let near = polynomial!($erf, square) * x * std::$type::consts::FRAC_2_SQRT_PI;
                // Beyond 6 it is 1.
                let bounded = if x > 6.0 { 6.0 } else { x };
                let far = 1.0 - Real::exp(-bounded * bounded) * polynomial!($erfc, (bounded - 2.0) / (bounded + 2.0));
                (if x < ERF_SERIES as $type { near } else { far }).copysign(self)
            }

            #[inline(always)]
            fn sin(self) -> Self {
                let shifted = self.mul_add(std::$type::consts::FRAC_1_PI, $constants.magic);
                let halves = shifted - $constants.magic;
                <$type as Parts>::sine_after(self, halves, shifted.to_bits())
            }

            #[inline(always)]
            fn cos(self) -> Self {
                // The sine half of pi further on; each half of a turn changes its sign.
                let shifted = self.mul_add(std::$type::consts::FRAC_1_PI, -0.5) + $constants.magic;
                let halves = (shifted - $constants.magic) + 0.5;
                <$type as Parts>::sine_after(self, halves, shifted.to_bits() ^ 1)
            }

            #[inline(always)]
            fn sin_cos(self) -> (Self, Self) {
                let shifted = self.mul_add(std::$type::consts::FRAC_2_PI, $constants.magic);
                let quarter = shifted - $constants.magic;
                let r = quarter.mul_add(-$constants.half_pi[0], self);
                let r = quarter.mul_add(-$constants.half_pi[1], r);
                let r = quarter.mul_add(-$constants.half_pi[2], r);
                let square = r * r;
                let sine = (polynomial!($sin, square) * square).mul_add(r, r);
                let cosine = polynomial!($cos, square).mul_add(square, 1.0);
                // Each quarter of a turn swaps them and changes one sign.
                let turns = shifted.to_bits();
                let (first, second) = if turns & 1 == 0 { (sine, cosine) } else { (cosine, sine) };
                let first = if turns & 2 == 0 { first } else { -first };
                let second = if turns.wrapping_add(1) & 2 == 0 { second } else { -second };
                (first, second)
            }

            #[inline(always)]
            fn sin_cos_of_any(self) -> (Self, Self) {
                self.sin_cos()
            }
        }

        impl Parts for $type {
            type Bits = $bits;

            #[inline(always)]
            fn parts(self) -> (Self, $bits) {
                let shifted = self.mul_add(std::$type::consts::LOG2_E, $constants.magic);
                let power = shifted - $constants.magic;
                let rest = power.mul_add(-$constants.ln2[0], self);
                let rest = power.mul_add(-$constants.ln2[1], rest);
                (rest, shifted.to_bits().wrapping_sub($constants.magic.to_bits()))
            }

            #[inline(always)]
            fn power_of_two(exponent: $bits) -> Self {
                $type::from_bits(exponent.wrapping_add($bias) << $mantissa)
            }

            #[inline(always)]
            fn sine_after(self, halves: Self, turns: $bits) -> Self {
                let r = halves.mul_add(-2.0 * $constants.half_pi[0], self);
                let r = halves.mul_add(-2.0 * $constants.half_pi[1], r);
                let r = halves.mul_add(-2.0 * $constants.half_pi[2], r);
                let square = r * r;
                let sine = (polynomial!($sin_of_half, square) * square).mul_add(r, r);
                $type::from_bits(sine.to_bits() ^ turns << ($bits::BITS - 1))
            }
        }
    };
}

/// `ln(m) = first + factor rest` between the roots of 1/2 and 2.
#[inline(always)]
fn log_near_one32(m: f32) -> (f32, f32, f32) {
    let x = m - 1.0;
    (x, x * x, polynomial!(LOG32, x))
}

/// The same, by `ln(m) = 2 artanh(f)`: a polynomial in `m` would need twice as many terms.
#[inline(always)]
fn log_near_one64(m: f64) -> (f64, f64, f64) {
    let f = (m - 1.0) / (m + 1.0);
    let (twice, square) = (f + f, f * f);
    (twice, twice, polynomial!(LOG64, square) * square)
}

/// `x = n ln(2) + r` with `|r| <= ln(2) / 2`, which the exponentials begin with.
trait Parts: Sized {
    type Bits;

    /// `r` and `n`; the latter in two's complement.
    fn parts(self) -> (Self, Self::Bits);

    /// `2^n`, a normal number.
    fn power_of_two(exponent: Self::Bits) -> Self;

    /// The sine of what is left after so many times pi, which is pi / 2 at most in size; with the other sign if `turns` is odd.
    fn sine_after(self, halves: Self, turns: Self::Bits) -> Self;
}

real!(f32, u32, 23, 127, 10_000.0, CONSTANTS32, [EXP32, log_near_one32, SIN32, COS32, SIN_OF_HALF32, ERF32, ERFC32]);
real!(f64, u64, 52, 1023, 100_000.0, CONSTANTS64, [EXP64, log_near_one64, SIN64, COS64, SIN_OF_HALF64, ERF64, ERFC64]);

/// The vectors that tiles are made of, in whose registers sums stay. Where it is used it is a constant of the code at hand, so that a choice by it costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// 256 bits at most, sixteen registers.
    Narrow,
    /// 512 bits, 32 registers.
    Wide,
}

/// The vectors of 512 bits, if this processor multiplies more numbers in them than in those of 256.
#[cfg(target_arch = "x86_64")]
pub(super) fn wide_vectors() -> Option<pulp::x86::V4> {
    use std::arch::x86_64::__cpuid;
    use std::sync::LazyLock;

    // The one generation that takes them half by half: tiles made for them are no faster there, and fit fewer sizes.
    static IS_ZEN_4: LazyLock<bool> = LazyLock::new(|| {
        let (vendor, version) = (__cpuid(0), __cpuid(1).eax);
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx] == [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        let family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
        is_amd && family == 0x19
    });
    pulp::x86::V4::try_new().filter(|_| !*IS_ZEN_4)
}

/// Runs `body` compiled for the vectors in which this processor multiplies the most numbers, and tells it which: tiles are larger where there are more and wider registers. The closure must be
/// marked `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<T>(body: impl FnOnce(Vectors) -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        use pulp::{Scalar, Simd, x86::V3};
        if let Some(vectors) = wide_vectors() {
            return vectors.vectorize(
                #[inline(always)]
                || body(Vectors::Wide),
            );
        }
        match V3::try_new() {
            Some(vectors) => vectors.vectorize(
                #[inline(always)]
                || body(Vectors::Narrow),
            ),
            None => Scalar::new().vectorize(
                #[inline(always)]
                || body(Vectors::Narrow),
            ),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || body(Vectors::Narrow),
    )
}

/// Runs `body` compiled for the widest vectors of this processor: for functions of one element after the other, whose constants also find room in the registers that come with vectors of 512 bits.
/// The closure must be marked `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised_widely<T>(body: impl FnOnce() -> T) -> T {
    pulp::Arch::new().dispatch(body)
}

/// The bytes of a line of a cache: [`fetch`] brings one.
pub(super) const LINE: usize = 64;

/// Asks for the memory that begins `place` elements after the first of `values` to be brought into the nearest cache, because it will be read soon. The place may lie beyond
/// their end: nothing is read by this, and no result depends on it.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "other processors look ahead by themselves"))]
pub(super) fn fetch<R>(values: &[R], place: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(sse) = pulp::core_arch::x86::Sse::try_new() {
        sse._mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(values.as_ptr().wrapping_add(place).cast());
    }
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

    /// How far the vectorised functions are from those of the standard library, in both precisions, for numbers of both signs and all sizes up to `largest`.
    fn check(name: &str, largest: f64, tolerances: [f64; 2], pair: [fn(f64) -> f64; 2], single: fn(f32) -> f32) {
        let [found, expected] = pair;
        for k in -200_000..=200_000 {
            // Cubes are dense around 0.
            let x = largest * (f64::from(k) / 200_000.0 + 1e-7).powi(3);
            let close = |found: f64, expected: f64, tolerance: f64| {
                found == expected
                    || (found - expected).abs() <= tolerance * expected.abs()
                    || found.is_nan() && expected.is_nan()
            };
            assert!(close(found(x), expected(x), tolerances[1]), "{name}({x}): {:e} {:e}", found(x), expected(x));
            let x = x as f32;
            let (found, expected) = (f64::from(single(x)), expected(f64::from(x)));
            assert!(close(found, expected, tolerances[0]), "{name}({x}) in single precision: {found:e} {expected:e}");
        }
    }

    #[test]
    fn functions_are_right_to_the_last_digits() {
        // Five units in the last place, which are 1.2e-7 and 2.2e-16 of the number at most.
        let five = [6e-7, 1.1e-15];
        check("log", 1e6, five, [Real::log, f64::ln], Real::log);
        let falling = |x: f64| if x > 0.0 { 1.0 } else { Real::exp_of_negative(x) };
        let single = |x: f32| if x > 0.0 { 1.0 } else { Real::exp_of_negative(x) };
        check("exp_of_negative", 80.0, five, [falling, |x| x.min(0.0).exp()], single);
        check("tanh", 30.0, five, [Real::tanh, f64::tanh], Real::tanh);
        // Near a multiple of pi the result is small, and what the standard library is asked in double precision is not the single-precision number rounded.
        check("sin", 9000.0, five, [Real::sin, f64::sin], Real::sin);
        check("cos", 9000.0, five, [Real::cos, f64::cos], Real::cos);
        check("sin of both", 9000.0, five, [|x| Real::sin_cos(x).0, f64::sin], |x| Real::sin_cos(x).0);
        check("cos of both", 9000.0, five, [|x| Real::sin_cos(x).1, f64::cos], |x| Real::sin_cos(x).1);
        check("sqrt", 1e6, five, [Real::sqrt, f64::sqrt], Real::sqrt);
    }

    #[test]
    fn the_error_function_is_right_at_known_points() {
        // Abramowitz and Stegun, table 7.1, and their asymptotic series for the last.
        let known = [
            (0.0, 0.0),
            (1e-300, 1.128_379_167_095_512_6e-300),
            (0.5, 0.520_499_877_813_046_5),
            (0.75, 0.711_155_633_653_515_1),
            (1.0, 0.842_700_792_949_714_9),
            (1.5, 0.966_105_146_475_310_8),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
            (9.0, 1.0),
            (f64::INFINITY, 1.0),
        ];
        for (x, expected) in known {
            for sign in [1.0, -1.0] {
                let found = [Real::erf(sign * x), f64::from(Real::erf((sign * x) as f32))];
                assert!((found[0] - sign * expected).abs() <= 3.4e-16 * expected, "{x}: {:e}", found[0]);
                // The smallest one is 0 in single precision.
                assert!((found[1] - sign * expected).abs() <= 1.8e-7 * expected + 1e-45, "{x}: {:e}", found[1]);
            }
        }
        assert!(Real::erf(f64::NAN).is_nan() && Real::erf(f32::NAN).is_nan());
    }

    #[test]
    fn functions_are_right_at_their_ends() {
        let tiny = f64::from_bits(1);
        assert!((Real::log(tiny) - tiny.ln()).abs() < 1e-12 && Real::log(1.0_f64) == 0.0);
        assert_eq!((Real::log(0.0_f64), Real::log(-0.0_f32)), (f64::NEG_INFINITY, f32::NEG_INFINITY));
        assert_eq!((Real::log(f64::INFINITY), Real::log(f32::INFINITY)), (f64::INFINITY, f32::INFINITY));
        assert!(Real::log(-1.0_f64).is_nan() && Real::log(-1e-45_f32).is_nan() && Real::log(f64::NAN).is_nan());
        for usual in [f64::MIN_POSITIVE, 0.3, f64::MAX] {
            assert!(usual.is_positive_normal() && usual.log_of_normal() == Real::log(usual));
        }
        let others = [f64::MIN_POSITIVE / 2.0, 0.0, -0.0, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -f64::NAN];
        assert!(!others.into_iter().any(Real::is_positive_normal));
        assert_eq!((Real::exp_of_negative(f64::NEG_INFINITY), Real::exp_of_negative(-88.0_f32)), (0.0, 0.0));
        assert!(Real::exp_of_negative(f64::NAN).is_nan() && Real::exp_of_negative(-0.0_f32) == 1.0);
        assert_eq!((Real::tanh(f64::INFINITY), Real::tanh(-100.0_f32)), (1.0, -1.0));
        assert!(Real::tanh(f64::NAN).is_nan() && Real::tanh(-0.0_f64).is_sign_negative());
        assert_eq!((Real::sin_cos(0.0_f64), Real::sin_cos(0.0_f32)), ((0.0, 1.0), (0.0, 1.0)));
        assert_eq!((Real::sin(0.0_f64), Real::cos(0.0_f64)), (0.0, 1.0));
        assert_eq!((Real::sin(0.0_f32), Real::cos(0.0_f32)), (0.0, 1.0));
    }
}
