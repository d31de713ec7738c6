//! Sums and extremes over axes.

use burn_backend::Scalar;
use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_dispatch::{Dispatch, DispatchTensor};

use crate::Tensor;
use crate::kernel::reduce::Extreme;
use crate::tensor::device_shape;

/// Sums over axes.
pub(crate) fn sum(a: &Tensor, is_reduced: &[bool], result: &[usize]) -> DispatchTensor {
    #[cfg(feature = "accelerator")]
    if let Some(sums) = side_by_side(a, is_reduced) {
        return Dispatch::float_reshape(sums, device_shape(result));
    }
    let axes: Vec<usize> = (0..is_reduced.len()).filter(|&axis| is_reduced[axis]).collect();
    let value = if axes.is_empty() { a.value() } else { Dispatch::float_sum_dims(a.value(), &axes) };
    Dispatch::float_reshape(value, device_shape(result))
}

/// Sums over axes between which there are no others.
#[cfg(feature = "accelerator")]
fn side_by_side(a: &Tensor, is_reduced: &[bool]) -> Option<DispatchTensor> {
    let first = is_reduced.iter().position(|&is_reduced| is_reduced)?;
    let end = is_reduced.iter().rposition(|&is_reduced| is_reduced)? + 1;
    if is_reduced[first..end].contains(&false) {
        return None;
    }
    let sizes = [0..first, first..end, end..is_reduced.len()].map(|axes| a.shape()[axes].iter().product());
    super::compiled::reduce::sum(&a.value(), sizes)
}

/// The extreme element along `axis`, which is kept; NaN where there is one.
pub(crate) fn extreme(a: &Tensor, axis: usize, which: Extreme) -> DispatchTensor {
    let (value, booleans) = (a.value(), a.device().booleans());
    let extreme = match which {
        Extreme::Largest => Dispatch::float_max_dim(value.clone(), axis),
        Extreme::Smallest => Dispatch::float_min_dim(value.clone(), axis),
    };
    let nan = Dispatch::bool_into_float(Dispatch::float_is_nan(value, booleans), a.dtype().burn().into());
    let has_nan = Dispatch::float_greater_elem(Dispatch::float_sum_dim(nan, axis), Scalar::Float(0.0), booleans);
    Dispatch::float_mask_fill(extreme, has_nan, Scalar::Float(f64::NAN))
}
