//! What neural networks repeat so often that one kernel pays.

use super::{FLOATS, check_axis, elementwise, reduce};
use crate::{Misuse, Tensor, kernel};

/// `exp(a) / sum(exp(a))` along `axis`, shifted by the maximum.
///
/// # Errors
/// The axis is out of range or empty, or `a` is not floating-point.
pub fn softmax(a: &Tensor, axis: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "neural.softmax";
    a.expect_dtype(NAME, FLOATS)?;
    check_axis(NAME, a, axis)?;
    // The shift cancels, so no gradient needs to flow through it.
    let shift = crate::autodiff::detach(&reduce::maximum(a, axis, true)?)?;
    let weights = elementwise::exp(&elementwise::subtract(a, &shift)?)?;
    elementwise::divide(&weights, &reduce::sum(&weights, &[axis], true)?)
}

/// `(a - mean) / sqrt(variance + epsilon)` over the last axis, biased variance, no affine part (Ba, Kiros and Hinton 2016).
///
/// # Errors
/// `epsilon` is negative or not finite, `a` has no last axis or it is empty, or `a` is not floating-point.
pub fn layer_norm(a: &Tensor, epsilon: f64) -> Result<Tensor, Misuse> {
    normalise("neural.layer-norm", a, epsilon, true)
}

/// `a / sqrt(mean(a^2) + epsilon)` over the last axis, no affine part (Zhang and Sennrich 2019).
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm(a: &Tensor, epsilon: f64) -> Result<Tensor, Misuse> {
    normalise("neural.rms-norm", a, epsilon, false)
}

fn normalise(operation: &'static str, a: &Tensor, epsilon: f64, centred: bool) -> Result<Tensor, Misuse> {
    a.expect_dtype(operation, FLOATS)?;
    if !(epsilon.is_finite() && epsilon >= 0.0) {
        return Err(Misuse::new(operation, format!("epsilon is {epsilon}, expected a finite number of at least 0")));
    }
    if a.shape().last().is_none_or(|&size| size == 0) {
        return Err(Misuse::new(operation, format!("shape {:?} has no last axis to average over", a.shape())));
    }
    let run = || kernel::norm::forward(a, epsilon, centred);
    Tensor::compute(operation, a.shape(), a.dtype(), &[a], run, move |step| {
        step.gradients(&[&|g| jacobian_product(operation, &step.inputs[0], g, epsilon, centred)])
    })
}

/// `J(a) g`, where `J = (I - 1 1^T / n - y y^T / n) / s` (without the middle term if not centred) is the Jacobian of the normalisation
/// `y` with root `s`. `J` is symmetric, so this is also the way back.
fn jacobian_product(
    operation: &'static str,
    a: &Tensor,
    g: &Tensor,
    epsilon: f64,
    centred: bool,
) -> Result<Tensor, Misuse> {
    let run = || kernel::norm::jacobian_product(a, g, epsilon, centred);
    Tensor::compute(operation, a.shape(), a.dtype(), &[a, g], run, move |step| {
        let (a, g, u) = (&step.inputs[0], &step.inputs[1], step.gradient);
        step.gradients(&[&|_| curvature(operation, a, g, u, epsilon, centred), &|u| {
            jacobian_product(operation, a, u, epsilon, centred)
        }])
    })
}

/// The gradient of `u . J(a) g` by `a`. With `y` the normalised input, `s` its root and `n` the size of the axis,
/// `u . J g = (u' . g' - (y . u)(y . g) / n) / s`, where `'` centres; and `ds/da = y / n`, `dy/da = J`. So it is
/// `-(y / (n s)) (u . J g) - ((y . g) J u + (y . u) J g) / (n s)`.
fn curvature(
    operation: &'static str,
    a: &Tensor,
    g: &Tensor,
    u: &Tensor,
    epsilon: f64,
    centred: bool,
) -> Result<Tensor, Misuse> {
    use elementwise::{add, divide, multiply, multiply_scalar};
    let last = a.shape().len() - 1;
    let size = a.shape()[last] as f64;
    let dot = |x: &Tensor, z: &Tensor| reduce::sum(&multiply(x, z)?, &[last], true);
    let y = normalise(operation, a, epsilon, centred)?;
    let s = root(a, epsilon, centred)?;
    let (through_g, through_u) =
        (jacobian_product(operation, a, g, epsilon, centred)?, jacobian_product(operation, a, u, epsilon, centred)?);
    let first = multiply(&y, &dot(u, &through_g)?)?;
    let second = multiply(&through_u, &dot(&y, g)?)?;
    let third = multiply(&through_g, &dot(&y, u)?)?;
    let total = add(&first, &add(&second, &third)?)?;
    multiply_scalar(&divide(&total, &s)?, -1.0 / size)
}

/// `sqrt(variance + epsilon)` or `sqrt(mean square + epsilon)` over the last axis, which is kept.
fn root(a: &Tensor, epsilon: f64, centred: bool) -> Result<Tensor, Misuse> {
    let last = a.shape().len() - 1;
    let deviation = if centred { elementwise::subtract(a, &reduce::mean(a, &[last], true)?)? } else { a.clone() };
    let variance = reduce::mean(&elementwise::multiply(&deviation, &deviation)?, &[last], true)?;
    elementwise::sqrt(&elementwise::add_scalar(&variance, epsilon)?)
}
