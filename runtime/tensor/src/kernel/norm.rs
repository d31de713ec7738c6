//! Normalisation over the last axis, and products with its Jacobian.

use super::fill::from_values;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

/// The lanes that sums are kept in.
const LANES: usize = 16;

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
    [one, two].map(|mut lanes| {
        let mut count = LANES;
        while count > 1 {
            count /= 2;
            (0..count).for_each(|lane| lanes[lane] += lanes[lane + count]);
        }
        lanes[0]
    })
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

/// What a row's normalisation and a gradient have in common: the row's mean and root, the gradient's mean (0 both if not centred), and the sum of their products about the row's mean.
struct Overlap {
    mean: f64,
    root: f64,
    gradient_mean: f64,
    overlap: f64,
}

#[inline(always)]
fn overlap<R: Real>(row: &[R], gradient: &[R], epsilon: f64, centred: bool) -> Overlap {
    if centred {
        let (mean, root) = moments(row, epsilon, centred);
        let (gradient_mean, overlap) = mean_and_overlap(row, gradient, mean, centred);
        return Overlap { mean, root, gradient_mean, overlap };
    }
    // Nothing waits for a mean, so both are read once.
    let [square, overlap] = sums(
        row,
        gradient,
        #[inline(always)]
        |a, _| a * a,
        #[inline(always)]
        |a, g| a * g,
    );
    Overlap { mean: 0.0, root: (square / row.len() as f64 + epsilon).sqrt(), gradient_mean: 0.0, overlap }
}

/// The mean of a gradient (0 if not centred), and the sum of its products with what a row has beyond its mean.
#[inline(always)]
fn mean_and_overlap<R: Real>(row: &[R], gradient: &[R], mean: f64, centred: bool) -> (f64, f64) {
    let [sum, overlap] = sums(
        row,
        gradient,
        #[inline(always)]
        |_, g| g,
        #[inline(always)]
        |a, g| (a - mean) * g,
    );
    (if centred { sum / row.len() as f64 } else { 0.0 }, overlap)
}

pub(crate) fn forward(a: &Tensor, epsilon: f64, centred: bool) -> Elements {
    let width = a.shape().last().copied().unwrap_or(1);
    let host = a.host();
    for_float!(a.dtype(), R => {
        let a_values = host.values::<R>();
        let values = from_values(a_values.len(), width, #[inline(always)] |k, _| {
            let row = &a_values[k * width..(k + 1) * width];
            let (mean, root) = moments(row, epsilon, centred);
            let (mean, scale) = (R::from_f64(mean), R::from_f64(1.0 / root));
            row.iter().map(#[inline(always)] move |a| (*a - mean) * scale)
        });
        Elements::new(values)
    })
}

/// `(g - mean(g) - y mean(y g)) / s`, without the mean if not centred.
pub(crate) fn jacobian_product(a: &Tensor, g: &Tensor, epsilon: f64, centred: bool) -> Elements {
    let width = a.shape().last().copied().unwrap_or(1);
    let (a_host, g_host) = (a.host(), g.host());
    for_float!(a.dtype(), R => {
        let (a_values, g_values) = (a_host.values::<R>(), g_host.values::<R>());
        let values = from_values(a_values.len(), width, #[inline(always)] |k, _| {
            let (row, gradient) = (&a_values[k * width..(k + 1) * width], &g_values[k * width..(k + 1) * width]);
            let count = width as f64;
            let Overlap { mean, root, gradient_mean, overlap } = overlap(row, gradient, epsilon, centred);
            let overlap = overlap / (count * root * root);
            let (mean, scale) = (R::from_f64(mean), R::from_f64(1.0 / root));
            let (gradient_mean, overlap) = (R::from_f64(gradient_mean), R::from_f64(overlap));
            row.iter().zip(gradient).map(#[inline(always)] move |(a, g)| (*g - gradient_mean - (*a - mean) * overlap) * scale)
        });
        Elements::new(values)
    })
}

/// The gradient of `u . J(a) g` by `a`, with `y` the normalised row, `s` its root and `n` its size:
/// `-(y (u . J g) + J u (y . g) + J g (y . u)) / (n s)`.
pub(crate) fn curvature(a: &Tensor, g: &Tensor, u: &Tensor, epsilon: f64, centred: bool) -> Elements {
    let width = a.shape().last().copied().unwrap_or(1);
    let (a_host, g_host, u_host) = (a.host(), g.host(), u.host());
    for_float!(a.dtype(), R => {
        let (a_values, g_values, u_values) = (a_host.values::<R>(), g_host.values::<R>(), u_host.values::<R>());
        let values = from_values(a_values.len(), width, #[inline(always)] |k, _| {
            let range = k * width..(k + 1) * width;
            let (row, g, u) = (&a_values[range.clone()], &g_values[range.clone()], &u_values[range]);
            let count = width as f64;
            let Overlap { mean, root, gradient_mean: g_mean, overlap: y_g } = overlap(row, g, epsilon, centred);
            let (u_mean, y_u) = mean_and_overlap(row, u, mean, centred);
            let [u_g, _] = sums(u, g, #[inline(always)] |u, g| u * g, #[inline(always)] |_, _| 0.0);
            let (y_g, y_u) = (y_g / root, y_u / root);
            // `s u . J g`; so `y` has the factor `u . J g - 2 (y . g) (y . u) / (n s)` when both Jacobians are written out.
            let through = u_g - count * g_mean * u_mean - y_g * y_u / count;
            let scale = -1.0 / (count * root * root);
            let by_y = R::from_f64(scale * (through - 2.0 * y_g * y_u / count) / root);
            let (by_u, by_g) = (R::from_f64(scale * y_g), R::from_f64(scale * y_u));
            let constant = R::from_f64(-scale * (y_g * u_mean + y_u * g_mean));
            let mean = R::from_f64(mean);
            row.iter().zip(g.iter().zip(u)).map(
                #[inline(always)]
                move |(a, (g, u))| (*a - mean).mul_add(by_y, by_u.mul_add(*u, by_g.mul_add(*g, constant))),
            )
        });
        Elements::new(values)
    })
}
