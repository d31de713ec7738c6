//! Reading and adding at indices. Every index is checked before a kernel sees it.

use burn_backend::ops::FloatTensorOps;
use burn_dispatch::{Dispatch, DispatchTensor};

use super::{FLOATS, check_axis, check_indices, check_rank};
use crate::autodiff::Reads;
use crate::kernel::device::segment::Table;
use crate::tensor::{Sizes, checked_bytes};
use crate::{DType, Misuse, Tensor, kernel, memory};

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
    let copy = copied_for_device(NAME, a, indices)?;
    let (places, used) = (indices.clone(), indices.clone());
    let run = move |[a]: [&Tensor; 1], _: &[usize]| match copy {
        Some(copy) => Dispatch::float_select(a.value(), axis, copy).into(),
        None => kernel::index::select(a, axis, &used),
    };
    Tensor::compute(NAME, &shape, a.dtype(), [a], run, Reads::Nothing, move |step| {
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
    let table = a.is_on_device().then(|| indices.table_for(NAME, a, size)).transpose()?;
    let (places, used) = (indices.clone(), indices.clone());
    Tensor::compute(
        NAME,
        &shape,
        a.dtype(),
        [a],
        move |[a], shape| match &table {
            Some(table) => kernel::device::index_add(a, axis, table, shape).into(),
            None => kernel::index::index_add(a, axis, &used, shape),
        },
        Reads::Nothing,
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
    let copy = copied_for_device(NAME, a, indices)?;
    let (places, used) = (indices.clone(), indices.clone());
    let run = move |[a]: [&Tensor; 1], _: &[usize]| match copy {
        Some(copy) => Dispatch::float_gather(axis, a.value(), copy).into(),
        None => kernel::index::gather(a, axis, &used),
    };
    Tensor::compute(NAME, indices.shape(), a.dtype(), [a], run, Reads::Nothing, move |step| {
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
    let table = if a.is_on_device() {
        // Every element has a segment of its own.
        let count = checked_bytes(NAME, &shape, a.dtype())? / a.dtype().size();
        drop(memory::reserve(NAME, checked_bytes(NAME, a.shape(), DType::Int64)?)?);
        let places = kernel::device::scatter_places(a, axis, indices, &shape);
        Some(Table::new(NAME, &places, count, &a.device())?)
    } else {
        None
    };
    let (places, used) = (indices.clone(), indices.clone());
    Tensor::compute(
        NAME,
        &shape,
        a.dtype(),
        [a],
        move |[a], shape| match &table {
            Some(table) => kernel::device::scatter_add(a, table, shape).into(),
            None => kernel::index::scatter_add(a, axis, &used, shape),
        },
        Reads::Nothing,
        move |step| step.gradients(&[&|g| gather(g, axis, &places)]),
    )
}

/// The indices for the kernels of `a`'s device, if they are to work on it.
fn copied_for_device(operation: &'static str, a: &Tensor, indices: &Tensor) -> Result<Option<DispatchTensor>, Misuse> {
    let is_needed = a.dtype().is_float() && a.is_on_device() && indices.count() > 0;
    is_needed.then(|| indices.copied_for(operation, a)).transpose()
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
