//! Normalisation over the last axis, and products with its Jacobian.

use burn_dispatch::DispatchTensor;
use rayon::prelude::*;

use super::{PARALLEL, Real, for_float, vectorised};
use crate::Tensor;
use crate::tensor::from_host;

/// The lanes that sums are kept in.
const LANES: usize = 8;

/// The sums over a row of two terms of `a` and `b`, in double precision and in lanes that are added up in a fixed order.
#[inline(always)]
fn sums<R: Real>(a: &[R], b: &[R], first: impl Fn(f64, f64) -> f64, second: impl Fn(f64, f64) -> f64) -> [f64; 2] {
    let (mut one, mut two) = ([0.0_f64; LANES], [0.0_f64; LANES]);
    let (mut left, mut right) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (left, right) in (&mut left).zip(&mut right) {
        // One loop for each step, so that each becomes an instruction on whole registers.
        let left: [f64; LANES] = std::array::from_fn(|lane| left[lane].to_f64());
        let right: [f64; LANES] = std::array::from_fn(|lane| right[lane].to_f64());
        (0..LANES).for_each(|lane| one[lane] += first(left[lane], right[lane]));
        (0..LANES).for_each(|lane| two[lane] += second(left[lane], right[lane]));
    }
    for (lane, (left, right)) in left.remainder().iter().zip(right.remainder()).enumerate() {
        one[lane] += first(left.to_f64(), right.to_f64());
        two[lane] += second(left.to_f64(), right.to_f64());
    }
    [one, two].map(|t| ((t[0] + t[4]) + (t[2] + t[6])) + ((t[1] + t[5]) + (t[3] + t[7])))
}

/// The mean (0 if not centred) and the root of a row, in double precision. The row is read once: it is shifted by its first element, so that a mean far
/// from 0 does not cost the variance its digits.
#[inline(always)]
fn moments<R: Real>(row: &[R], epsilon: f64, centred: bool) -> (f64, f64) {
    let count = row.len() as f64;
    if !centred {
        let [square, _] = sums(
            row,
            row,
            #[inline(always)]
            |a, _| a * a,
            #[inline(always)]
            |_, _| 0.0,
        );
        return (0.0, (square / count + epsilon).sqrt());
    }
    let shift = row.first().map_or(0.0, |first| first.to_f64());
    let [sum, square] = sums(
        row,
        row,
        #[inline(always)]
        |a, _| a - shift,
        #[inline(always)]
        |a, _| (a - shift) * (a - shift),
    );
    let mean = sum / count;
    (mean + shift, ((square / count - mean * mean).max(0.0) + epsilon).sqrt())
}

fn by_rows<R: Real>(count: usize, width: usize, row: impl Fn(usize, &mut [R]) + Send + Sync) -> Vec<R> {
    let mut values = vec![R::default(); count];
    let run = |(k, chunk): (usize, &mut [R])| {
        vectorised(
            #[inline(always)]
            || row(k, chunk),
        )
    };
    if count < PARALLEL {
        values.chunks_exact_mut(width).enumerate().for_each(run);
    } else {
        values.par_chunks_exact_mut(width).enumerate().for_each(run);
    }
    values
}

pub(crate) fn forward(a: &Tensor, epsilon: f64, centred: bool) -> DispatchTensor {
    let width = a.shape().last().copied().unwrap_or(1);
    let host = a.host();
    for_float!(a.dtype(), R => {
        let a_values = host.values::<R>();
        let values = by_rows::<R>(a_values.len(), width, #[inline(always)] |k, result| {
            let row = &a_values[k * width..(k + 1) * width];
            let (mean, root) = moments(row, epsilon, centred);
            let (mean, scale) = (R::from_f64(mean), R::from_f64(1.0 / root));
            result.iter_mut().zip(row).for_each(|(value, a)| *value = (*a - mean) * scale);
        });
        from_host(values, a.shape(), a.dtype())
    })
}

/// `(g - mean(g) - y mean(y g)) / s`, without the mean if not centred.
pub(crate) fn jacobian_product(a: &Tensor, g: &Tensor, epsilon: f64, centred: bool) -> DispatchTensor {
    let width = a.shape().last().copied().unwrap_or(1);
    let (a_host, g_host) = (a.host(), g.host());
    for_float!(a.dtype(), R => {
        let (a_values, g_values) = (a_host.values::<R>(), g_host.values::<R>());
        let values = by_rows::<R>(a_values.len(), width, #[inline(always)] |k, result| {
            let (row, gradient) = (&a_values[k * width..(k + 1) * width], &g_values[k * width..(k + 1) * width]);
            let (mean, root) = moments(row, epsilon, centred);
            let count = width as f64;
            let [sum, overlap] = sums(row, gradient, #[inline(always)] |_, g| g, #[inline(always)] |a, g| (a - mean) * g);
            let gradient_mean = if centred { sum / count } else { 0.0 };
            let overlap = overlap / (count * root * root);
            let (mean, scale) = (R::from_f64(mean), R::from_f64(1.0 / root));
            let (gradient_mean, overlap) = (R::from_f64(gradient_mean), R::from_f64(overlap));
            for (value, (a, g)) in result.iter_mut().zip(row.iter().zip(gradient)) {
                *value = (*g - gradient_mean - (*a - mean) * overlap) * scale;
            }
        });
        from_host(values, a.shape(), a.dtype())
    })
}
