//! Reductions over axes, in a fixed order of summation.

use super::{FLOATS, NUMBERS, check_axis, elementwise, index, shape};
use crate::autodiff::Reads;
use crate::kernel::reduce::Extreme;
use crate::kernel::{self, kernel};
use crate::tensor::Sizes;
use crate::{DType, Misuse, Tensor};

/// The axes that a caller means (none: all), checked, and the shapes with and without them.
fn reduced(operation: &'static str, a: &Tensor, axes: &[usize]) -> Result<(Vec<bool>, Sizes, Sizes), Misuse> {
    let mut is_reduced = vec![axes.is_empty(); a.shape().len()];
    for &axis in axes {
        check_axis(operation, a, axis)?;
        if std::mem::replace(&mut is_reduced[axis], true) {
            return Err(Misuse::new(operation, format!("axis {axis} is given twice")));
        }
    }
    let kept = a.shape().iter().zip(&is_reduced).map(|(&size, &gone)| if gone { 1 } else { size }).collect();
    let left = a.shape().iter().zip(&is_reduced).filter(|(_, gone)| !**gone).map(|(&size, _)| size).collect();
    Ok((is_reduced, kept, left))
}

/// Sums over `axes`, all of them if empty; `keep_axes` leaves them with size 1. The sum of nothing is 0.
///
/// # Errors
/// An axis is out of range or given twice, or `a` is boolean.
pub fn sum(a: &Tensor, axes: &[usize], keep_axes: bool) -> Result<Tensor, Misuse> {
    const NAME: &str = "reduce.sum";
    a.expect_dtype(NAME, NUMBERS)?;
    let (is_reduced, kept, left) = reduced(NAME, a, axes)?;
    let result = if keep_axes { &kept } else { &left };
    let stretch = kept.clone();
    Tensor::compute(
        NAME,
        result,
        a.dtype(),
        [a],
        move |[a], result| kernel!(a => reduce::sum(a, &is_reduced, result)),
        Reads::Nothing,
        move |step| step.gradients(&[&|g| shape::broadcast_to(&shape::reshape(g, &stretch)?, step.inputs[0].shape())]),
    )
}

/// Means over `axes`, all of them if empty. The mean of nothing is NaN.
///
/// # Errors
/// As [`sum`], or `a` is not floating-point.
pub fn mean(a: &Tensor, axes: &[usize], keep_axes: bool) -> Result<Tensor, Misuse> {
    const NAME: &str = "reduce.mean";
    a.expect_dtype(NAME, FLOATS)?;
    let (is_reduced, ..) = reduced(NAME, a, axes)?;
    let count: usize = a.shape().iter().zip(&is_reduced).filter(|(_, gone)| **gone).map(|(&size, _)| size).product();
    let total = sum(a, axes, keep_axes)?;
    // 0 * inf is NaN, as the mean of nothing should be.
    elementwise::multiply_scalar(&total, 1.0 / count as f64)
}

/// The largest element along `axis`; the gradient goes to the first of equal ones. NaN wins.
///
/// # Errors
/// The axis is out of range or empty, or `a` is not floating-point.
pub fn maximum(a: &Tensor, axis: usize, keep_axes: bool) -> Result<Tensor, Misuse> {
    extreme("reduce.maximum", Extreme::Largest, a, axis, keep_axes)
}

/// The smallest element along `axis`; the gradient goes to the first of equal ones. NaN wins.
///
/// # Errors
/// The axis is out of range or empty, or `a` is not floating-point.
pub fn minimum(a: &Tensor, axis: usize, keep_axes: bool) -> Result<Tensor, Misuse> {
    extreme("reduce.minimum", Extreme::Smallest, a, axis, keep_axes)
}

fn extreme(
    operation: &'static str,
    which: Extreme,
    a: &Tensor,
    axis: usize,
    keep_axes: bool,
) -> Result<Tensor, Misuse> {
    a.expect_dtype(operation, FLOATS)?;
    check_axis(operation, a, axis)?;
    if a.shape()[axis] == 0 {
        return Err(Misuse::new(operation, format!("axis {axis} of shape {:?} is empty", a.shape())));
    }
    let (_, kept, left) = reduced(operation, a, &[axis])?;
    let taken = if a.is_on_device() {
        // Where it is matters to the gradient alone, and integers are with the host.
        let run = move |[a]: [&Tensor; 1], _: &[usize]| kernel::device::reduce::extreme(a, axis, which).into();
        let shape = kept.clone();
        Tensor::compute(operation, &kept, a.dtype(), [a], run, Reads::Inputs, move |step| {
            let a = &step.inputs[0];
            let places = places(operation, which, a, axis, &shape)?;
            step.gradients(&[&|g| index::scatter_add(g, axis, &places, a.shape()[axis])])
        })?
    } else {
        index::gather(a, axis, &places(operation, which, a, axis, &kept)?)?
    };
    shape::reshape(&taken, if keep_axes { &kept } else { &left })
}

/// Where along `axis` the extreme elements are.
fn places(operation: &'static str, which: Extreme, a: &Tensor, axis: usize, shape: &[usize]) -> Result<Tensor, Misuse> {
    Tensor::constant(operation, shape, DType::Int64, [a], move |[a], _| kernel::reduce::extreme_places(a, axis, which))
}

/// Whether all elements of a boolean tensor are true; true if there are none.
///
/// # Errors
/// `a` is not boolean.
pub fn all(a: &Tensor) -> Result<Tensor, Misuse> {
    a.expect_dtype("reduce.all", &[DType::Boolean])?;
    let all = !a.host().bytes().contains(&0);
    Tensor::from_boolean(&a.device(), &[], &[all])
}

/// Whether any element of a boolean tensor is true; false if there are none.
///
/// # Errors
/// `a` is not boolean.
pub fn any(a: &Tensor) -> Result<Tensor, Misuse> {
    a.expect_dtype("reduce.any", &[DType::Boolean])?;
    let any = a.host().bytes().iter().any(|&byte| byte != 0);
    Tensor::from_boolean(&a.device(), &[], &[any])
}
