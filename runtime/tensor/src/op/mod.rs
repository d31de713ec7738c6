//! The operations, one module per interface of the contract.

pub mod elementwise;
pub mod index;
pub mod linalg;
pub mod neural;
pub mod optimizer;
pub mod reduce;
pub mod segment;
pub mod shape;
pub mod spherical;

use crate::autodiff::Reads;
use crate::tensor::Sizes;
use crate::{DType, Misuse, Tensor};

pub(crate) const FLOATS: &[DType] = &[DType::Float32, DType::Float64];
pub(crate) const NUMBERS: &[DType] = &[DType::Float32, DType::Float64, DType::Int32, DType::Int64];

/// The same elements as another dtype. Between floating-point types it is differentiable; to an integer it truncates towards zero and
/// saturates (NaN becomes 0); to boolean it is `a != 0`.
///
/// # Errors
/// The quota is exceeded.
pub fn cast(a: &Tensor, dtype: DType) -> Result<Tensor, Misuse> {
    if dtype == a.dtype() {
        return Ok(a.clone());
    }
    Tensor::compute(
        "tensor.cast",
        a.shape(),
        dtype,
        [a],
        move |[a], _| match a.is_on_device() && a.device().holds(dtype) {
            true => crate::kernel::device::cast(a, dtype).into(),
            false => crate::kernel::cast(a, dtype),
        },
        Reads::Nothing,
        |step| step.gradients(&[&|gradient| cast(gradient, step.inputs[0].dtype())]),
    )
}

/// Checks that all operands have the first one's dtype, and that it is among `expected`.
pub(crate) fn check_dtypes(operation: &'static str, operands: &[&Tensor], expected: &[DType]) -> Result<(), Misuse> {
    let first = operands[0];
    first.expect_dtype(operation, expected)?;
    match operands.iter().find(|operand| operand.dtype() != first.dtype()) {
        None => Ok(()),
        Some(other) => Err(Misuse::new(
            operation,
            format!("operands are {} and {}: convert one with `cast`", first.dtype(), other.dtype()),
        )),
    }
}

/// The shape that both stretch to.
pub(crate) fn broadcast_shape(operation: &'static str, a: &[usize], b: &[usize]) -> Result<Sizes, Misuse> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Misuse::new(operation, format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

pub(crate) fn check_axis(operation: &'static str, a: &Tensor, axis: usize) -> Result<(), Misuse> {
    if axis < a.shape().len() {
        return Ok(());
    }
    Err(Misuse::new(operation, format!("axis {axis} of a tensor of shape {:?}", a.shape())))
}

/// Checks the indices themselves: burn's kernels on GPUs do not.
pub(crate) fn check_indices(operation: &'static str, indices: &Tensor, size: usize) -> Result<(), Misuse> {
    indices.expect_dtype(operation, &[DType::Int64])?;
    match indices.index_range() {
        Some((low, high)) if low < 0 || high >= size as i64 => {
            let wrong = if low < 0 { low } else { high };
            Err(Misuse::new(operation, format!("index {wrong} is outside of 0 .. {size}")))
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_rank(operation: &'static str, what: &str, a: &Tensor, rank: usize) -> Result<(), Misuse> {
    if a.shape().len() == rank {
        return Ok(());
    }
    Err(Misuse::new(operation, format!("{what} has shape {:?}, expected rank {rank}", a.shape())))
}

/// The transpose of broadcasting: sums a gradient back to the shape of the operand.
pub(crate) fn sum_to(gradient: &Tensor, shape: &[usize]) -> Result<Tensor, Misuse> {
    if gradient.shape() == shape {
        return Ok(gradient.clone());
    }
    let extra = gradient.shape().len() - shape.len();
    let axes: Vec<usize> = (0..gradient.shape().len())
        .filter(|&axis| axis < extra || (shape[axis - extra] == 1 && gradient.shape()[axis] != 1))
        .collect();
    let summed = if axes.is_empty() { gradient.clone() } else { reduce::sum(gradient, &axes, true)? };
    shape::reshape(&summed, shape)
}
