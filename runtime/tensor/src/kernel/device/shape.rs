//! The same elements in another arrangement.

use burn_backend::Slice;
use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_dispatch::{Dispatch, DispatchTensor};

use crate::context::Stop;
use crate::tensor::device_shape;
use crate::{DType, Tensor};

/// Axis `i` of the result is axis `axes[i]` of `a`.
pub(crate) fn permute(a: &Tensor, axes: &[usize], _shape: &[usize]) -> DispatchTensor {
    match a.dtype() {
        _ if axes.is_empty() => a.value(),
        DType::Boolean => Dispatch::bool_permute(a.value(), axes),
        _ => Dispatch::float_permute(a.value(), axes),
    }
}

/// `a`, of the rank of `shape`, stretched to it.
pub(crate) fn broadcast(a: &Tensor, shape: &[usize]) -> DispatchTensor {
    match a.dtype() {
        DType::Boolean => Dispatch::bool_expand(a.value(), device_shape(shape)),
        _ => Dispatch::float_expand(a.value(), device_shape(shape)),
    }
}

/// How many tensors are put together at once: a launch for each of a million of them could not be stopped.
const AT_ONCE: usize = 1000;

/// The tensors one after another. Those without elements are not on the device.
pub(crate) fn concatenate(tensors: &[&Tensor], axis: usize, _shape: &[usize]) -> DispatchTensor {
    let mut values: Vec<DispatchTensor> =
        tensors.iter().filter(|tensor| tensor.is_on_device()).map(|tensor| tensor.value()).collect();
    let stop = Stop::current();
    while values.len() > AT_ONCE {
        let parts = values.chunks(AT_ONCE).map(|part| {
            stop.check();
            joined(part.to_vec(), axis, tensors[0].dtype())
        });
        values = parts.collect();
    }
    joined(values, axis, tensors[0].dtype())
}

fn joined(mut values: Vec<DispatchTensor>, axis: usize, dtype: DType) -> DispatchTensor {
    match (values.len(), dtype) {
        (1, _) => values.remove(0),
        (_, DType::Boolean) => Dispatch::bool_cat(values, axis),
        _ => Dispatch::float_cat(values, axis),
    }
}

/// The elements from `start` on along `axis`.
pub(crate) fn slice(a: &Tensor, axis: usize, start: usize, shape: &[usize]) -> DispatchTensor {
    let range = |k: usize| if k == axis { start..start + shape[axis] } else { 0..a.shape()[k] };
    let ranges: Vec<Slice> = (0..shape.len()).map(|k| Slice::from(range(k))).collect();
    match a.dtype() {
        DType::Boolean => Dispatch::bool_slice(a.value(), &ranges),
        _ => Dispatch::float_slice(a.value(), &ranges),
    }
}
