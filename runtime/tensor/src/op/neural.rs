//! What neural networks repeat so often that one kernel pays.

mod attention;

use smallvec::SmallVec;

use super::{FLOATS, check_axis, check_dtypes, elementwise, linalg, reduce, shape};
use crate::autodiff::{Reads, gradients_by_parts};
use crate::context::check_cost;
use crate::kernel::kernel;
use crate::tensor::Sizes;
use crate::{Misuse, Tensor};

pub use attention::attention;

/// `a weight`, plus `bias` in every row: `[.., inputs]`, `[inputs, outputs]` and `[outputs]` to `[.., outputs]`.
///
/// # Errors
/// The sizes do not fit, `a` has no axis, or the dtypes differ.
pub fn linear(a: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, Misuse> {
    const NAME: &str = "neural.linear";
    let operands: SmallVec<[&Tensor; 3]> = [a, weight].into_iter().chain(bias).collect();
    check_dtypes(NAME, &operands, FLOATS)?;
    let fits = weight.shape().len() == 2
        && a.shape().last() == Some(&weight.shape()[0])
        && bias.is_none_or(|bias| bias.shape() == &weight.shape()[1..]);
    if !fits {
        let bias = bias.map(|bias| format!(" and the bias {:?}", bias.shape())).unwrap_or_default();
        return Err(Misuse::new(
            NAME,
            format!(
                "`a` has shape {:?}, the weight {:?}{bias}, expected [.., inputs], [inputs, outputs] and [outputs]",
                a.shape(),
                weight.shape()
            ),
        ));
    }
    let mut shape = Sizes::from_slice(a.shape());
    shape[a.shape().len() - 1] = weight.shape()[1];
    check_cost(NAME, linalg::multiplications(&shape, weight.shape()[0]))?;
    let run = |operands: &[&Tensor], shape: &[usize]| {
        let (a, weight, bias) = (operands[0], operands[1], operands.get(2).copied());
        kernel!(a => matrix::product((a, false), (weight, false), bias, shape))
    };
    Tensor::compute_list(NAME, &shape, a.dtype(), &operands, run, Reads::Others, |step| {
        let (a, weight) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[
            &|g| linalg::product(NAME, g, false, weight, true, a.shape()),
            &|g| linalg::product(NAME, a, true, g, false, weight.shape()),
            &|g| {
                let axes: Sizes = (0..g.shape().len() - 1).collect();
                // No axes would mean all of them.
                if axes.is_empty() { Ok(g.clone()) } else { reduce::sum(g, &axes, false) }
            },
        ])
    })
}

/// A gated linear unit: `values * sigmoid(gates)`, where the first half of the last axis are values and the second gates (Dauphin and others 2017).
///
/// # Errors
/// The last axis is missing or of odd size, or `a` is not floating-point.
pub fn gated_linear_unit(a: &Tensor) -> Result<Tensor, Misuse> {
    a.expect_dtype(GATED, FLOATS)?;
    let mut shape = Sizes::from_slice(a.shape());
    match shape.last_mut() {
        Some(size) if *size % 2 == 0 => *size /= 2,
        _ => {
            return Err(Misuse::new(
                GATED,
                format!("shape is {:?}, expected a last axis of values and as many gates", a.shape()),
            ));
        }
    }
    let run = |[a]: [&Tensor; 1], shape: &[usize]| kernel!(a => activation::gated(a, shape));
    Tensor::compute(GATED, &shape, a.dtype(), [a], run, Reads::Inputs, |step| {
        step.gradients(&[&|g| gated_gradient(&step.inputs[0], g)])
    })
}

const GATED: &str = "neural.gated-linear-unit";

/// With `J(a)` the Jacobian of the unit: its transpose times `c`, which has the shape of the unit's output.
fn gated_gradient(a: &Tensor, c: &Tensor) -> Result<Tensor, Misuse> {
    let run = |[a, c]: [&Tensor; 2], _: &[usize]| kernel!(a => activation::gated_gradient(a, c));
    Tensor::compute(GATED, a.shape(), a.dtype(), [a, c], run, Reads::Inputs, |step| {
        let (a, c) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|u| gated_curvature(a, c, u), &|u| gated_tangent(a, u)])
    })
}

/// `J(a) u` for a `u` of `a`'s shape.
fn gated_tangent(a: &Tensor, u: &Tensor) -> Result<Tensor, Misuse> {
    let mut shape = Sizes::from_slice(a.shape());
    if let Some(size) = shape.last_mut() {
        *size /= 2;
    }
    let run = |[a, u]: [&Tensor; 2], shape: &[usize]| kernel!(a => activation::gated_tangent(a, u, shape));
    Tensor::compute(GATED, &shape, a.dtype(), [a, u], run, Reads::Inputs, |step| {
        let (a, u) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|c| gated_curvature(a, c, u), &|c| gated_gradient(a, c)])
    })
}

/// The gradient of `c . J(a) u` by `a`. Its own derivatives are of an order that is asked for rarely.
fn gated_curvature(a: &Tensor, c: &Tensor, u: &Tensor) -> Result<Tensor, Misuse> {
    use elementwise::{add, add_scalar, multiply, multiply_scalar, sigmoid};
    let run = |[a, c, u]: [&Tensor; 3], _: &[usize]| kernel!(a => activation::gated_curvature(a, c, u));
    Tensor::compute(GATED, a.shape(), a.dtype(), [a, c, u], run, Reads::Inputs, |step| {
        gradients_by_parts(step, |inputs| {
            let [a, c, u] = inputs else { unreachable!("a curvature has three inputs") };
            let axis = a.shape().len() - 1;
            let half = a.shape()[axis] / 2;
            let halves = |x: &Tensor| Ok((shape::slice(x, axis, 0, half)?, shape::slice(x, axis, half, 2 * half)?));
            let ((values, gates), (u_values, u_gates)) = (halves(a)?, halves(u)?);
            // s' = s (1 - s) and s'' = s' (1 - 2 s).
            let s = sigmoid(&gates)?;
            let rest = add_scalar(&multiply_scalar(&s, -2.0)?, 1.0)?;
            let slope = multiply(c, &multiply(&s, &add_scalar(&multiply_scalar(&s, -1.0)?, 1.0)?)?)?;
            let bend = multiply(&multiply(&u_gates, &values)?, &rest)?;
            let parts = [multiply(&slope, &u_gates)?, multiply(&slope, &add(&u_values, &bend)?)?];
            shape::concatenate(&parts.iter().collect::<Vec<_>>(), axis)
        })
    })
}

/// `exp(a) / sum(exp(a))` along `axis`, shifted by the maximum.
///
/// # Errors
/// The axis is out of range or empty, or `a` is not floating-point.
pub fn softmax(a: &Tensor, axis: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "neural.softmax";
    a.expect_dtype(NAME, FLOATS)?;
    check_axis(NAME, a, axis)?;
    let last = a.shape().len() - 1;
    if axis == last {
        return softmax_of_rows(a);
    }
    // The axis changes places with the last one, and back.
    let mut axes: Vec<usize> = (0..=last).collect();
    axes.swap(axis, last);
    shape::permute(&softmax_of_rows(&shape::permute(a, &axes)?)?, &axes)
}

fn softmax_of_rows(a: &Tensor) -> Result<Tensor, Misuse> {
    let run = |[a]: [&Tensor; 1], _: &[usize]| kernel!(a => softmax::softmax(a));
    Tensor::compute("neural.softmax", a.shape(), a.dtype(), [a], run, Reads::Output, |step| {
        step.gradients(&[&|g| softmax_product(step.output, g)])
    })
}

/// `y (g - <y, g>)` for each row: the product of the softmax's Jacobian, which is symmetric, with `g`.
fn softmax_product(y: &Tensor, g: &Tensor) -> Result<Tensor, Misuse> {
    let run = |[y, g]: [&Tensor; 2], _: &[usize]| kernel!(y => softmax::softmax_product(y, g));
    Tensor::compute("neural.softmax", y.shape(), y.dtype(), [y, g], run, Reads::Inputs, |step| {
        let (y, g) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|u| softmax_curvature(y, g, u), &|u| softmax_product(y, u)])
    })
}

/// `u g - u <y, g> - g <y, u>` for each row. Its own derivatives are of an order that is asked for rarely.
fn softmax_curvature(y: &Tensor, g: &Tensor, u: &Tensor) -> Result<Tensor, Misuse> {
    use elementwise::{multiply, subtract};
    let run = |[y, g, u]: [&Tensor; 3], _: &[usize]| kernel!(y => softmax::softmax_curvature(y, g, u));
    Tensor::compute("neural.softmax", y.shape(), y.dtype(), [y, g, u], run, Reads::Inputs, |step| {
        gradients_by_parts(step, |inputs| {
            let [y, g, u] = inputs else { unreachable!("a curvature has three inputs") };
            let overlap = |x: &Tensor| reduce::sum(&multiply(y, x)?, &[y.shape().len() - 1], true);
            subtract(&multiply(u, &subtract(g, &overlap(g)?)?)?, &multiply(g, &overlap(u)?)?)
        })
    })
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
    let run = move |[a]: [&Tensor; 1], _: &[usize]| kernel!(a => norm::forward(a, epsilon, centred));
    Tensor::compute(operation, a.shape(), a.dtype(), [a], run, Reads::Inputs, move |step| {
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
    let run = move |[a, g]: [&Tensor; 2], _: &[usize]| kernel!(a => norm::jacobian_product(a, g, epsilon, centred));
    Tensor::compute(operation, a.shape(), a.dtype(), [a, g], run, Reads::Inputs, move |step| {
        let (a, g, u) = (&step.inputs[0], &step.inputs[1], step.gradient);
        step.gradients(&[&|_| curvature(operation, a, g, u, epsilon, centred), &|u| {
            jacobian_product(operation, a, u, epsilon, centred)
        }])
    })
}

/// The gradient of `u . J(a) g` by `a`. Its own derivatives are of an order that is asked for rarely.
fn curvature(
    operation: &'static str,
    a: &Tensor,
    g: &Tensor,
    u: &Tensor,
    epsilon: f64,
    centred: bool,
) -> Result<Tensor, Misuse> {
    let run = move |[a, g, u]: [&Tensor; 3], _: &[usize]| kernel!(a => norm::curvature(a, g, u, epsilon, centred));
    Tensor::compute(operation, a.shape(), a.dtype(), [a, g, u], run, Reads::Inputs, move |step| {
        gradients_by_parts(step, |inputs| composed_curvature(operation, inputs, epsilon, centred))
    })
}

/// With `y` the normalised input, `s` its root and `n` the size of the axis, `u . J g = (u' . g' - (y . u)(y . g) / n) / s`, where `'` centres; and
/// `ds/da = y / n`, `dy/da = J`. So the gradient is `-(y / (n s)) (u . J g) - ((y . g) J u + (y . u) J g) / (n s)`.
fn composed_curvature(
    operation: &'static str,
    inputs: &[Tensor],
    epsilon: f64,
    centred: bool,
) -> Result<Tensor, Misuse> {
    use elementwise::{add, divide, multiply, multiply_scalar};
    let [a, g, u] = inputs else { unreachable!("a curvature has three inputs") };
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
