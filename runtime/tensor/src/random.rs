//! The run's one stream of random numbers, the same on every device.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::context::Stop;
use crate::kernel::fill::in_parts;
use crate::kernel::{Real, for_float, vectorised_widely};
use crate::tensor::checked_bytes;
use crate::{DType, Device, Misuse, Tensor};

/// The words of a stream: 2^64 blocks of 16.
const STREAM_WORDS: u128 = 1 << 68;
/// The elements that are made together; even.
const PART: usize = 1 << 12;

/// A stream of random numbers that can be kept and continued.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    generator: ChaCha8Rng,
}

impl Random {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, generator: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Another stream of this seed, which has no number in common with the one above but by chance.
    pub fn beside(seed: u64) -> Self {
        let mut random = Self::new(seed);
        random.generator.set_stream(1);
        random
    }

    /// Bytes, each as likely as the others.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.generator.fill_bytes(&mut bytes);
        bytes
    }

    /// A number of 64 bits, each as likely as the others.
    pub fn word(&mut self) -> u64 {
        self.generator.next_u64()
    }

    /// Uniform in `[low, high)`.
    ///
    /// # Errors
    /// The bounds are not finite or not in order, or `dtype` is not floating-point.
    pub fn uniform(
        &mut self,
        device: &Device,
        shape: &[usize],
        low: f64,
        high: f64,
        dtype: DType,
    ) -> Result<Tensor, Misuse> {
        const NAME: &str = "random.uniform";
        if !(low.is_finite() && high.is_finite() && low <= high) {
            return Err(Misuse::new(NAME, format!("bounds are {low} and {high}, expected finite and in order")));
        }
        self.fill(NAME, device, shape, dtype, Distribution::Uniform { low, high })
    }

    /// Normal with this mean and standard deviation, by the method of Box and Muller: two at a time.
    ///
    /// # Errors
    /// A number is not finite, the deviation is negative, or `dtype` is not floating-point.
    pub fn normal(
        &mut self,
        device: &Device,
        shape: &[usize],
        mean: f64,
        standard_deviation: f64,
        dtype: DType,
    ) -> Result<Tensor, Misuse> {
        const NAME: &str = "random.normal";
        if !(mean.is_finite() && standard_deviation.is_finite() && standard_deviation >= 0.0) {
            return Err(Misuse::new(
                NAME,
                format!(
                    "mean {mean} and deviation {standard_deviation}, expected finite ones and no negative deviation"
                ),
            ));
        }
        self.fill(NAME, device, shape, dtype, Distribution::Normal { mean, standard_deviation })
    }

    /// The numbers `0 .. count` in random order (Fisher and Yates).
    pub fn permutation(&mut self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        let stop = Stop::current();
        for last in (1..order.len()).rev() {
            stop.check();
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }

    /// Where the stream stands: the seed and the number of words drawn, little-endian.
    pub fn state(&self) -> Vec<u8> {
        [&self.seed.to_le_bytes()[..], &self.generator.get_word_pos().to_le_bytes()[..]].concat()
    }

    /// Continues from a kept state.
    ///
    /// # Errors
    /// These bytes are none.
    pub fn set_state(&mut self, state: &[u8]) -> Result<(), String> {
        let parts =
            state.split_first_chunk::<8>().and_then(|(seed, rest)| Some((seed, <[u8; 16]>::try_from(rest).ok()?)));
        let (seed, position) = parts.ok_or_else(|| format!("a random state has 24 bytes, found {}", state.len()))?;
        let position = u128::from_le_bytes(position);
        if position >= STREAM_WORDS {
            return Err(format!("a random state stands at word {position} of a stream of {STREAM_WORDS}"));
        }
        *self = Self::new(u64::from_le_bytes(*seed));
        self.generator.set_word_pos(position);
        Ok(())
    }

    /// Uniform in `0 .. bound` without bias: draws that would favour small numbers are rejected.
    fn below(&mut self, bound: u64) -> u64 {
        let accepted = u64::MAX - u64::MAX % bound;
        loop {
            let drawn = self.generator.next_u64();
            if drawn < accepted {
                return drawn % bound;
            }
        }
    }

    /// A tensor of numbers with this distribution. Every element has its own place in the stream, so that threads can share them out.
    fn fill(
        &mut self,
        operation: &'static str,
        device: &Device,
        shape: &[usize],
        dtype: DType,
        distribution: Distribution,
    ) -> Result<Tensor, Misuse> {
        if !dtype.is_float() {
            return Err(Misuse::new(operation, format!("dtype is {dtype}, expected float32 or float64")));
        }
        let bytes = checked_bytes(operation, shape, dtype)?;
        drop(crate::memory::reserve(operation, bytes)?);
        let count = bytes / dtype.size();
        let start = self.generator.get_word_pos();
        for_float!(dtype, R => {
            let position = |element: usize| (start + R::WORDS * element as u128) % STREAM_WORDS;
            let values = in_parts::<R>(count, PART, |part, out| {
                let mut generator = self.generator.clone();
                generator.set_word_pos(position(part * PART));
                let mut units = R::units(&mut generator, out.len().next_multiple_of(2));
                vectorised_widely(#[inline(always)] || distribution.shape(&mut units));
                out.copy_from_slice(&units[..out.len()]);
            });
            let tensor = Tensor::from_values(operation, device, shape, values, dtype);
            self.generator.set_word_pos(position(count.next_multiple_of(2)));
            tensor
        })
    }
}

/// How numbers spread.
#[derive(Clone, Copy, Debug)]
enum Distribution {
    Uniform { low: f64, high: f64 },
    Normal { mean: f64, standard_deviation: f64 },
}

impl Distribution {
    /// Makes numbers of this distribution of units, an even number of them.
    #[inline(always)]
    fn shape<R: Real>(self, units: &mut [R]) {
        let real = R::from_f64;
        match self {
            Self::Uniform { low, high } => {
                let width = real(high - low);
                let (low, high, one) = (real(low), real(high), real(1.0));
                if width.to_f64().is_finite() {
                    for unit in units {
                        *unit = unit.mul_add(width, low);
                    }
                } else {
                    // Bounds so far apart that their difference is no number.
                    for unit in units {
                        *unit = low * (one - *unit) + high * *unit;
                    }
                }
            }
            Self::Normal { mean, standard_deviation } => {
                let (mean, deviation, one, turn) =
                    (real(mean), real(standard_deviation), real(1.0), real(std::f64::consts::TAU));
                let minus_two = real(-2.0);
                let half = units.len() / 2;
                let (first, second) = units.split_at_mut(half);
                for (first, second) in first.iter_mut().zip(second) {
                    // 1 - u is never 0, so the logarithm is finite.
                    let radius = deviation * (minus_two * (one - *first).log()).sqrt();
                    let (sine, cosine) = (turn * *second).sin_cos();
                    (*first, *second) = (radius.mul_add(cosine, mean), radius.mul_add(sine, mean));
                }
            }
        }
    }
}

/// Numbers that are drawn as bits.
trait Unit: Real {
    /// The words of the stream that one takes.
    const WORDS: u128;

    /// Uniform in `[0, 1)`, with as many bits as the fraction has.
    fn units(generator: &mut ChaCha8Rng, count: usize) -> Vec<Self>;
}

macro_rules! unit {
    ($type:ident, $word:ident, $words:literal) => {
        impl Unit for $type {
            const WORDS: u128 = $words;

            fn units(generator: &mut ChaCha8Rng, count: usize) -> Vec<Self> {
                let mut words = vec![0 as $word; count];
                generator.fill_bytes(bytemuck::cast_slice_mut(&mut words));
                let step = 1.0 / (1_u64 << Self::MANTISSA_DIGITS) as Self;
                let unit =
                    |word: &$word| ($word::from_le(*word) >> ($word::BITS - Self::MANTISSA_DIGITS)) as Self * step;
                words.iter().map(unit).collect()
            }
        }
    };
}

unit!(f32, u32, 1);
unit!(f64, u64, 2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_state_continues_with_the_same_numbers() {
        let mut random = Random::new(7);
        random.permutation(11);
        let state = random.state();
        let expected = random.permutation(100);
        let mut other = Random::new(0);
        assert_eq!(other.set_state(&state), Ok(()));
        assert_eq!(other.permutation(100), expected);
        assert!(other.set_state(&state[1..]).is_err());
        // A place that no stream has would be taken for another one.
        assert!(other.set_state(&[0xff; 24]).is_err());
        assert!(other.set_state(&[[0; 8], [0; 8], [16, 0, 0, 0, 0, 0, 0, 0]].concat()).is_err());
    }

    #[test]
    fn a_permutation_has_every_number_once() {
        let mut order = Random::new(1).permutation(1000);
        order.sort_unstable();
        assert!(order.iter().enumerate().all(|(place, &number)| place == number as usize));
    }

    #[test]
    fn the_stream_goes_on_behind_what_was_drawn() {
        for count in [0, 1, 2, PART - 1, PART, 3 * PART + 5] {
            for (dtype, bytes) in [(DType::Float32, 4), (DType::Float64, 8)] {
                let mut random = Random::new(9);
                random.uniform(&Device::cpu(), &[count], 0.0, 1.0, dtype).unwrap();
                let mut expected = Random::new(9);
                expected.bytes(bytes * count.next_multiple_of(2));
                assert_eq!(random.state(), expected.state(), "{count} of {dtype}");
            }
        }
    }

    #[test]
    fn normal_numbers_have_the_moments_asked_for() {
        let values = Random::new(3).normal(&Device::cpu(), &[100_000], 2.0, 3.0, DType::Float64);
        let values = values.and_then(|tensor| tensor.read_float64()).unwrap_or_default();
        // Sine and cosine of one angle lie half a part apart.
        let overlap = values.chunks(PART).flat_map(|part| part.iter().zip(&part[part.len() / 2..]));
        let correlation = overlap.map(|(a, b)| (a - 2.0) * (b - 2.0)).sum::<f64>() / 5e4;
        assert!(correlation.abs() < 5.0 * 9.0 / 5e4_f64.sqrt(), "{correlation}");
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 1e5;
        // Five standard errors of the mean (3 / sqrt(1e5)) and of the variance (9 sqrt(2 / 1e5)).
        assert!((mean - 2.0).abs() < 0.048 && (variance - 9.0).abs() < 0.21, "{mean} {variance}");
    }
}
