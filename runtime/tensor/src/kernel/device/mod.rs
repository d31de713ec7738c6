//! The kernels of devices other than the processor: each operation put together from burn's, through whichever runtime the device has.
//!
//! For every kernel of the processor's that a device needs there is a function of the same name, module and arguments here, and an operation takes
//! the one or the other by where its operands are, see [`kernel`](crate::kernel::kernel). A kernel written for devices replaces the body of such a function.
//!
//! Arguments have been checked, and no operand is empty. A scalar has the shape `[1]`. Sums have a fixed order here, too: rows of one segment are brought
//! together by copying them, not by atomic additions.

/// Returns what a kernel of ours gives, in builds that have them: every function asks for its kernel before it puts its operation together.
macro_rules! own_kernel {
    ($kernel:expr) => {
        #[cfg(feature = "accelerator")]
        if let Some(result) = $kernel {
            return result;
        }
    };
}

pub(crate) mod activation;
pub(crate) mod attention;
#[cfg(feature = "accelerator")]
mod compiled;
pub(crate) mod elementwise;
pub(crate) mod harmonics;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod reduce;
pub(crate) mod segment;
pub(crate) mod shape;
pub(crate) mod softmax;
mod value;

use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_backend::{Scalar, Shape};
use burn_dispatch::{Dispatch, DispatchTensor};

use self::segment::Table;
use self::value::Value;
use crate::op::optimizer::AdamOptions;
use crate::tensor::device_shape;
use crate::{DType, Tensor};

/// The products of the matrices in the last two axes, as the device has them, right or wrong.
pub(crate) fn product_as_it_is(left: DispatchTensor, right: DispatchTensor) -> DispatchTensor {
    own_kernel!(compiled::matrix::product(&left, &right));
    Dispatch::float_matmul(left, right)
}

/// Between dtypes that the device holds: whatever else there is, the processor converts.
pub(crate) fn cast(a: &Tensor, dtype: DType) -> DispatchTensor {
    match (a.dtype(), dtype) {
        (DType::Boolean, _) => Dispatch::bool_into_float(a.value(), dtype.burn().into()),
        // Not by asking what differs from 0: drivers say that NaN does not.
        (_, DType::Boolean) => {
            Dispatch::bool_not(Dispatch::float_equal_elem(a.value(), Scalar::Float(0.0), a.device().booleans()))
        }
        _ => Dispatch::float_cast(a.value(), dtype.burn().into()),
    }
}

/// `a` where `condition` is true, else `b`.
pub(crate) fn select_where(condition: &Tensor, a: &Tensor, b: &Tensor, shape: &[usize]) -> DispatchTensor {
    let whole = device_shape(shape);
    let aligned = |operand: &Tensor| {
        let mut sizes = vec![1; whole.num_dims() - operand.shape().len()];
        sizes.extend_from_slice(operand.shape());
        Shape::from(sizes)
    };
    let mask = Dispatch::bool_expand(Dispatch::bool_reshape(condition.value(), aligned(condition)), whole.clone());
    if a.dtype() == DType::Boolean {
        let side = |operand: &Tensor| {
            Dispatch::bool_expand(Dispatch::bool_reshape(operand.value(), aligned(operand)), whole.clone())
        };
        let not_taken = Dispatch::bool_and(Dispatch::bool_not(mask.clone()), side(b));
        return Dispatch::bool_or(Dispatch::bool_and(mask, side(a)), not_taken);
    }
    let side = |operand: &Tensor| {
        Dispatch::float_expand(Dispatch::float_reshape(operand.value(), aligned(operand)), whole.clone())
    };
    Dispatch::float_mask_where(side(b), mask, side(a))
}

/// `out[.., indices[k], ..] += a[.., k, ..]`.
pub(crate) fn index_add(a: &Tensor, axis: usize, table: &Table, shape: &[usize]) -> DispatchTensor {
    let (outer, _, inner) = super::around(shape, axis);
    let size = shape[axis];
    let rows = Value::of(a).reshaped(&[outer, a.shape()[axis], inner]).permuted(&[1, 0, 2]);
    let sums = table.sums(rows.reshaped(&[a.shape()[axis], outer * inner]));
    sums.reshaped(&[size, outer, inner]).permuted(&[1, 0, 2]).reshaped(shape).0
}

/// Where each element of a [`scatter_add`] goes in the result, row-major.
pub(crate) fn scatter_places(a: &Tensor, axis: usize, indices: &Tensor, shape: &[usize]) -> Vec<i64> {
    let (_, size, inner) = super::around(shape, axis);
    let count = a.shape()[axis];
    let host = indices.host();
    let place = |(position, &index): (usize, &i64)| {
        let (row, column) = (position / (count * inner), position % inner);
        ((row * size + index as usize) * inner + column) as i64
    };
    host.values::<i64>().iter().enumerate().map(place).collect()
}

/// `out[.., indices[.., k, ..], ..] += a[.., k, ..]`, with a table of [`scatter_places`].
pub(crate) fn scatter_add(a: &Tensor, table: &Table, shape: &[usize]) -> DispatchTensor {
    table.sums(Value::of(a).reshaped(&[a.count(), 1])).reshaped(shape).0
}

/// Horner's scheme in the local coordinate of each interval, for the derivative of this order.
pub(crate) fn polynomial(
    x: &Tensor,
    coefficients: &Tensor,
    [lower, upper]: [f64; 2],
    order: usize,
    shape: &[usize],
) -> DispatchTensor {
    let &[intervals, terms, functions] = coefficients.shape() else { unreachable!("the rank was checked") };
    let rows = shape[0];
    let width = (upper - lower) / intervals as f64;
    let booleans = x.device().booleans();
    let column = Value::of(x).reshaped(&[rows, 1]);
    let scaled = column.plus(-lower).times(1.0 / width);
    // These indices are the device's own, and nobody has checked them: they are brought into range twice, because a NaN may pass the first time.
    let last = intervals as f64 - 1.0;
    let within =
        Dispatch::float_clamp(Dispatch::float_floor(scaled.0.clone()), Scalar::Float(0.0), Scalar::Float(last));
    let interval = value::clamped_indices(within, rows, intervals - 1);
    let start = value::float_of(interval.clone(), x.dtype());
    let t = (scaled - Value(start).reshaped(&[rows, 1])).times(2.0).plus(-1.0);
    let table = Value::of(coefficients);
    let mut sum: Option<Value> = None;
    for power in (order..terms).rev() {
        let term = table
            .part(1, power, 1)
            .reshaped(&[intervals, functions])
            .times(super::derivative_factor(power, order, width));
        let term = Value(Dispatch::float_select(term.0, 0, interval.clone()));
        sum = Some(match sum {
            Some(sum) => sum * t.clone() + term,
            None => term,
        });
    }
    let sum = sum.unwrap_or_else(|| Value::zeros(x, &[rows, functions]));
    let whole = |mask: DispatchTensor| Dispatch::bool_expand(mask, Shape::from(vec![rows, functions]));
    let below = Dispatch::float_lower_elem(column.0.clone(), Scalar::Float(lower), booleans);
    let above = Dispatch::float_greater_elem(column.0.clone(), Scalar::Float(upper), booleans);
    let inside = Dispatch::float_mask_fill(sum.0, whole(Dispatch::bool_or(below, above)), Scalar::Float(0.0));
    // A NaN must not look like a distance beyond the cutoff.
    let nan = Dispatch::float_is_nan(column.0, booleans);
    Dispatch::float_mask_fill(inside, whole(nan), Scalar::Float(f64::NAN))
}

/// One step for one parameter: its new value and moments.
pub(crate) fn adam(four: [&Tensor; 4], options: &AdamOptions) -> [DispatchTensor; 3] {
    own_kernel!(compiled::optimizer::adam(four, options));
    let [parameter, gradient, first, second] = four.map(Value::of);
    let (rate, correction) = options.corrected();
    let decay = if options.decoupled { 0.0 } else { options.weight_decay };
    let keep = if options.decoupled { 1.0 - options.learning_rate * options.weight_decay } else { 1.0 };
    let gradient = if decay == 0.0 { gradient } else { parameter.times(decay) + gradient };
    let first = first.times(options.beta1) + gradient.times(1.0 - options.beta1);
    let square = gradient.clone() * gradient;
    let second = second.times(options.beta2) + square.times(1.0 - options.beta2);
    let step = first.times(rate) / second.root().times(1.0 / correction).plus(options.epsilon);
    [(parameter.times(keep) - step).0, first.0, second.0]
}
