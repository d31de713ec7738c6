//! Reading and adding at indices. Every index is checked before a kernel sees it.

use burn_backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn_dispatch::Dispatch;

use super::{FLOATS, check_axis, check_indices, check_rank};
use crate::tensor::Sizes;
use crate::{DType, Misuse, Tensor, kernel};

/// `out[.., k, ..] = a[.., indices[k], ..]` along `axis`.
///
/// # Errors
/// An index is out of range; `indices` is not a row of `int64`.
pub fn select(a: &Tensor, axis: usize, indices: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "index.select";
    check_axis(NAME, a, axis)?;
    check_rank(NAME, "`indices`", indices, 1)?;
    let size = a.shape()[axis];
    check_indices(NAME, indices, size)?;
    let mut shape = Sizes::from_slice(a.shape());
    shape[axis] = indices.count();
    let run = || match a.dtype() {
        DType::Boolean => kernel::booleans(&Dispatch::bool_select(a.value(), axis, indices.value()), &shape),
        dtype if dtype.is_integer() => Dispatch::int_select(a.value(), axis, indices.value()),
        _ => Dispatch::float_select(a.value(), axis, indices.value()),
    };
    let places = indices.clone();
    Tensor::compute(NAME, &shape, a.dtype(), &[a], run, move |step| {
        step.gradients(&[&|g| index_add(g, axis, &places, size)])
    })
}

/// The transpose of [`select`]: zeros with `size` entries along `axis`, then `out[.., indices[k], ..] += a[.., k, ..]` in the order of `k`.
///
/// # Errors
/// An index is out of range; `indices` does not have one entry per entry of the axis; `a` is not floating-point.
pub fn index_add(a: &Tensor, axis: usize, indices: &Tensor, size: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "index.index-add";
    a.expect_dtype(NAME, FLOATS)?;
    check_axis(NAME, a, axis)?;
    check_rank(NAME, "`indices`", indices, 1)?;
    check_indices(NAME, indices, size)?;
    if indices.count() != a.shape()[axis] {
        return Err(Misuse::new(NAME, format!("{} indices for axis {axis} of shape {:?}", indices.count(), a.shape())));
    }
    let mut shape = Sizes::from_slice(a.shape());
    shape[axis] = size;
    let places = indices.clone();
    Tensor::compute(
        NAME,
        &shape,
        a.dtype(),
        &[a],
        || kernel::index_add(a, axis, indices, &shape),
        move |step| step.gradients(&[&|g| select(g, axis, &places)]),
    )
}

/// `out[.., k, ..] = a[.., indices[.., k, ..], ..]`, one index per element of the result.
///
/// # Errors
/// An index is out of range; `indices` differs from `a` in an axis other than `axis`.
pub fn gather(a: &Tensor, axis: usize, indices: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "index.gather";
    check_axis(NAME, a, axis)?;
    check_indices(NAME, indices, a.shape()[axis])?;
    check_other_axes(NAME, a, axis, indices)?;
    let size = a.shape()[axis];
    let run = || match a.dtype() {
        DType::Boolean => kernel::booleans(&Dispatch::bool_gather(axis, a.value(), indices.value()), indices.shape()),
        dtype if dtype.is_integer() => Dispatch::int_gather(axis, a.value(), indices.value()),
        _ => Dispatch::float_gather(axis, a.value(), indices.value()),
    };
    let places = indices.clone();
    Tensor::compute(NAME, indices.shape(), a.dtype(), &[a], run, move |step| {
        step.gradients(&[&|g| scatter_add(g, axis, &places, size)])
    })
}

/// The transpose of [`gather`]: zeros with `size` entries along `axis`, then `out[.., indices[.., k, ..], ..] += a[.., k, ..]`, row-major.
///
/// # Errors
/// An index is out of range; `indices` does not have `a`'s shape; `a` is not floating-point.
pub fn scatter_add(a: &Tensor, axis: usize, indices: &Tensor, size: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "index.scatter-add";
    a.expect_dtype(NAME, FLOATS)?;
    check_axis(NAME, a, axis)?;
    check_indices(NAME, indices, size)?;
    if indices.shape() != a.shape() {
        return Err(Misuse::new(NAME, format!("indices have shape {:?}, values {:?}", indices.shape(), a.shape())));
    }
    let mut shape = Sizes::from_slice(a.shape());
    shape[axis] = size;
    let places = indices.clone();
    Tensor::compute(
        NAME,
        &shape,
        a.dtype(),
        &[a],
        || kernel::scatter_add(a, axis, indices, &shape),
        move |step| step.gradients(&[&|g| gather(g, axis, &places)]),
    )
}

fn check_other_axes(operation: &'static str, a: &Tensor, axis: usize, indices: &Tensor) -> Result<(), Misuse> {
    let fits = a.shape().len() == indices.shape().len()
        && (0..a.shape().len()).all(|k| k == axis || a.shape()[k] == indices.shape()[k]);
    if fits {
        return Ok(());
    }
    Err(Misuse::new(
        operation,
        format!("indices of shape {:?} do not fit {:?} along axis {axis}", indices.shape(), a.shape()),
    ))
}
