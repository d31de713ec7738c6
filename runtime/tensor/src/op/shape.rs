//! The same elements in another arrangement. Any dtype.

use super::{broadcast_shape, check_axis, sum_to};
use crate::autodiff::{Contribution, Reads};
use crate::kernel::kernel;
use crate::tensor::Sizes;
use crate::{MAX_RANK, Misuse, Tensor, memory};

/// The same elements, row-major, in another shape with as many.
///
/// # Errors
/// The shape has another number of elements.
pub fn reshape(a: &Tensor, shape: &[usize]) -> Result<Tensor, Misuse> {
    const NAME: &str = "shape.reshape";
    if shape == a.shape() {
        return Ok(a.clone());
    }
    let count = crate::tensor::checked_bytes(NAME, shape, a.dtype())? / a.dtype().size();
    if count != a.count() {
        return Err(Misuse::new(
            NAME,
            format!("shape {:?} has {} elements, {shape:?} has {count}", a.shape(), a.count()),
        ));
    }
    a.view(NAME, shape, |step| step.gradients(&[&|g| reshape(g, step.inputs[0].shape())]))
}

/// Axis `i` of the result is axis `axes[i]` of `a`.
///
/// # Errors
/// `axes` is not a permutation of all axes.
pub fn permute(a: &Tensor, axes: &[usize]) -> Result<Tensor, Misuse> {
    const NAME: &str = "shape.permute";
    let mut inverse = vec![usize::MAX; a.shape().len()];
    for (position, &axis) in axes.iter().enumerate() {
        if let Some(entry) = inverse.get_mut(axis) {
            *entry = position;
        }
    }
    if axes.len() != inverse.len() || inverse.contains(&usize::MAX) {
        // A list may be as long as a caller likes.
        let (listed, more) =
            (&axes[..axes.len().min(MAX_RANK + 1)], if axes.len() > MAX_RANK + 1 { " and more" } else { "" });
        let problem = format!("{listed:?}{more} is no permutation of the axes of shape {:?}", a.shape());
        return Err(Misuse::new(NAME, problem));
    }
    let shape: Sizes = axes.iter().map(|&axis| a.shape()[axis]).collect();
    let order = Sizes::from_slice(axes);
    let run = move |[a]: [&Tensor; 1], shape: &[usize]| kernel!(a => shape::permute(a, &order, shape));
    Tensor::compute(NAME, &shape, a.dtype(), [a], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| permute(g, &inverse)])
    })
}

/// `a` stretched to `shape` by the broadcasting rule.
///
/// # Errors
/// `a` does not stretch to `shape`.
pub fn broadcast_to(a: &Tensor, shape: &[usize]) -> Result<Tensor, Misuse> {
    const NAME: &str = "shape.broadcast-to";
    if shape == a.shape() {
        return Ok(a.clone());
    }
    crate::tensor::checked_bytes(NAME, shape, a.dtype())?;
    if broadcast_shape(NAME, a.shape(), shape)?.as_slice() != shape {
        return Err(Misuse::new(NAME, format!("shape {:?} does not stretch to {shape:?}", a.shape())));
    }
    let mut aligned = vec![1; shape.len() - a.shape().len()];
    aligned.extend_from_slice(a.shape());
    let a = &reshape(a, &aligned)?;
    let run = |[a]: [&Tensor; 1], shape: &[usize]| kernel!(a => shape::broadcast(a, shape));
    Tensor::compute(NAME, shape, a.dtype(), [a], run, Reads::Nothing, |step| {
        step.gradients(&[&|g| sum_to(g, step.inputs[0].shape())])
    })
}

/// The tensors one after another along `axis`.
///
/// # Errors
/// There are none, or another axis or the dtypes differ.
pub fn concatenate(tensors: &[&Tensor], axis: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "shape.concatenate";
    let first = tensors.first().ok_or_else(|| Misuse::new(NAME, "there is no tensor"))?;
    check_axis(NAME, first, axis)?;
    for tensor in tensors {
        let fits = tensor.shape().len() == first.shape().len()
            && (0..first.shape().len()).all(|k| k == axis || tensor.shape()[k] == first.shape()[k]);
        if !fits || tensor.dtype() != first.dtype() {
            return Err(Misuse::new(NAME, format!("{tensor:?} does not fit {first:?} along axis {axis}")));
        }
    }
    let mut shape = Sizes::from_slice(first.shape());
    shape[axis] = tensors
        .iter()
        .try_fold(0_usize, |sum, tensor| sum.checked_add(tensor.shape()[axis]))
        .ok_or_else(|| Misuse::new(NAME, "the axis becomes too long"))?;
    // A history of gradients keeps the list, which can be far longer than the result is large.
    let list = memory::reserve(NAME, tensors.len().saturating_mul(size_of::<Tensor>()))?;
    let run = move |tensors: &[&Tensor], shape: &[usize]| {
        // Tensors without elements are on no device.
        let first = tensors.iter().find(|tensor| tensor.count() > 0).unwrap_or(&tensors[0]);
        kernel!(first => shape::concatenate(tensors, axis, shape))
    };
    Tensor::compute_list(NAME, &shape, first.dtype(), tensors, run, Reads::Nothing, move |step| {
        let _kept = &list;
        let mut start = 0;
        let mut gradients = crate::autodiff::Gradients::new();
        for (k, input) in step.inputs.iter().enumerate() {
            let end = start + input.shape()[axis];
            let part = step.needs(k).then(|| slice(step.gradient, axis, start, end)).transpose()?;
            gradients.push(part.map(Contribution::Whole));
            start = end;
        }
        Ok(gradients)
    })
}

/// The elements `start <= i < end` along `axis`.
///
/// # Errors
/// `start <= end <= size` does not hold.
pub fn slice(a: &Tensor, axis: usize, start: usize, end: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "shape.slice";
    check_axis(NAME, a, axis)?;
    let size = a.shape()[axis];
    if start > end || end > size {
        return Err(Misuse::new(NAME, format!("{start} .. {end} of an axis of size {size}")));
    }
    let mut shape = Sizes::from_slice(a.shape());
    shape[axis] = end - start;
    let run = move |[a]: [&Tensor; 1], shape: &[usize]| kernel!(a => shape::slice(a, axis, start, shape));
    Tensor::compute(NAME, &shape, a.dtype(), [a], run, Reads::Nothing, move |step| {
        Ok([Some(Contribution::Part { axis, start, value: step.gradient.clone() })].into_iter().collect())
    })
}

/// The transpose of several slices: `pieces`, each with its start along `axis`, in order and without overlap, among zeros.
pub(crate) fn place(pieces: &[(usize, Tensor)], axis: usize, shape: &[usize]) -> Result<Tensor, Misuse> {
    let mut row = Vec::with_capacity(2 * pieces.len() + 1);
    let mut end = 0;
    let zeros = |like: &Tensor, count: usize| {
        let mut shape = Sizes::from_slice(shape);
        shape[axis] = count;
        Tensor::full(&like.device(), &shape, 0.0, like.dtype())
    };
    for (start, piece) in pieces {
        if *start > end {
            row.push(zeros(piece, start - end)?);
        }
        row.push(piece.clone());
        end = start + piece.shape()[axis];
    }
    if let Some((_, last)) = pieces.last()
        && end < shape[axis]
    {
        row.push(zeros(last, shape[axis] - end)?);
    }
    concatenate(&row.iter().collect::<Vec<_>>(), axis)
}
