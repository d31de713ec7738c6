//! Normalisation over the last axis, and products with its Jacobian.

use burn_dispatch::DispatchTensor;
use rayon::prelude::*;

use super::{PARALLEL, Real, for_float, vectorised};
use crate::Tensor;
use crate::tensor::from_host;

/// The mean (0 if not centred) and the root of a row, in double precision.
#[inline(always)]
fn moments<R: Real>(row: &[R], epsilon: f64, centred: bool) -> (f64, f64) {
    let count = row.len() as f64;
    let mean = if centred { lanes(row, row, |a, _| a) / count } else { 0.0 };
    let variance = lanes(row, row, |a, _| (a - mean) * (a - mean)) / count;
    (mean, (variance + epsilon).sqrt())
}

/// `sum term(a, b)` over two rows in eight lanes.
#[inline(always)]
fn lanes<R: Real>(a: &[R], b: &[R], term: impl Fn(f64, f64) -> f64) -> f64 {
    let mut totals = [0.0_f64; 8];
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (left, right) in (&mut left).zip(&mut right) {
        for k in 0..8 {
            totals[k] += term(left[k].to_f64(), right[k].to_f64());
        }
    }
    for (k, (left, right)) in left.remainder().iter().zip(right.remainder()).enumerate() {
        totals[k] += term(left.to_f64(), right.to_f64());
    }
    ((totals[0] + totals[4]) + (totals[2] + totals[6])) + ((totals[1] + totals[5]) + (totals[3] + totals[7]))
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
            let gradient_mean = if centred { lanes(gradient, gradient, |g, _| g) / count } else { 0.0 };
            let overlap = lanes(row, gradient, |a, g| (a - mean) * g) / (count * root * root);
            let (mean, scale) = (R::from_f64(mean), R::from_f64(1.0 / root));
            let (gradient_mean, overlap) = (R::from_f64(gradient_mean), R::from_f64(overlap));
            for (value, (a, g)) in result.iter_mut().zip(row.iter().zip(gradient)) {
                *value = (*g - gradient_mean - (*a - mean) * overlap) * scale;
            }
        });
        from_host(values, a.shape(), a.dtype())
    })
}
