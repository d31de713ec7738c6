//! Floating-point values of burn's as formulas have them.

use std::ops::{Add, Div, Mul, Sub};

use burn_backend::ops::{FloatTensorOps, IntTensorOps};
use burn_backend::{Backend, IntDType, Scalar, Slice, TensorMetadata};
use burn_dispatch::{Dispatch, DispatchTensor};

use crate::context::Stop;
use crate::tensor::device_shape;
use crate::{DType, Tensor};

/// A value on a device. Operands of one rank stretch over one another.
#[derive(Clone)]
pub(super) struct Value(pub(super) DispatchTensor);

impl Value {
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self(tensor.value())
    }

    /// Zeros where `like` is, of its dtype.
    pub(super) fn zeros(like: &Tensor, sizes: &[usize]) -> Self {
        Self(Dispatch::float_zeros(device_shape(sizes), &like.device().dispatch(), like.dtype().burn().into()))
    }

    /// Numbers where `like` is, of its dtype.
    pub(super) fn numbers(like: &Tensor, sizes: &[usize], numbers: &[f64]) -> Self {
        let data = burn_backend::TensorData::new(numbers.to_vec(), device_shape(sizes));
        let data = data.convert_dtype(like.dtype().burn());
        Self(Dispatch::float_from_data(data, &like.device().dispatch()))
    }

    pub(super) fn sizes(&self) -> Vec<usize> {
        self.0.shape().to_vec()
    }

    pub(super) fn plus(&self, scalar: f64) -> Self {
        Self(Dispatch::float_add_scalar(self.0.clone(), Scalar::Float(scalar)))
    }

    pub(super) fn times(&self, scalar: f64) -> Self {
        Self(Dispatch::float_mul_scalar(self.0.clone(), Scalar::Float(scalar)))
    }

    pub(super) fn reciprocal(self) -> Self {
        Self(Dispatch::float_recip(self.0))
    }

    pub(super) fn exp(self) -> Self {
        let Some(booleans) = crate::device::loses_nan(&self.0.device()) else {
            return Self(Dispatch::float_exp(self.0));
        };
        let nan = Dispatch::float_is_nan(self.0.clone(), booleans);
        Self(Dispatch::float_mask_fill(Dispatch::float_exp(self.0), nan, Scalar::Float(f64::NAN)))
    }

    pub(super) fn root(&self) -> Self {
        Self(Dispatch::float_sqrt(self.0.clone()))
    }

    pub(super) fn floor(&self) -> Self {
        Self(Dispatch::float_floor(self.0.clone()))
    }

    pub(super) fn reshaped(self, sizes: &[usize]) -> Self {
        Self(Dispatch::float_reshape(self.0, device_shape(sizes)))
    }

    pub(super) fn permuted(self, axes: &[usize]) -> Self {
        Self(Dispatch::float_permute(self.0, axes))
    }

    /// The last two axes in the other order.
    pub(super) fn transposed(self) -> Self {
        let rank = self.0.rank();
        Self(Dispatch::float_swap_dims(self.0, rank - 2, rank - 1))
    }

    /// `count` entries of an axis from `start` on.
    pub(super) fn part(&self, axis: usize, start: usize, count: usize) -> Self {
        let sizes = self.sizes();
        let range = |k: usize| if k == axis { start..start + count } else { 0..sizes[k] };
        let ranges: Vec<Slice> = (0..sizes.len()).map(|k| Slice::from(range(k))).collect();
        Self(Dispatch::float_slice(self.0.clone(), &ranges))
    }

    /// The entries with these numbers of an axis.
    pub(super) fn selected(self, axis: usize, indices: &DispatchTensor) -> Self {
        Self(Dispatch::float_select(self.0, axis, indices.clone()))
    }

    /// The sum along an axis, which is kept.
    pub(super) fn sum(&self, axis: usize) -> Self {
        #[cfg(feature = "accelerator")]
        {
            let mut sizes = self.sizes();
            let around = [0..axis, axis..axis + 1, axis + 1..sizes.len()].map(|axes| sizes[axes].iter().product());
            sizes[axis] = 1;
            if let Some(sums) = super::compiled::reduce::sum(&self.0, around) {
                return Self(sums).reshaped(&sizes);
            }
        }
        Self(Dispatch::float_sum_dim(self.0.clone(), axis))
    }

    /// The mean along an axis, which is kept.
    pub(super) fn mean(&self, axis: usize) -> Self {
        Self(Dispatch::float_mean_dim(self.0.clone(), axis))
    }

    /// The largest along an axis, which is kept.
    pub(super) fn largest(&self, axis: usize) -> Self {
        Self(Dispatch::float_max_dim(self.0.clone(), axis))
    }

    /// Products of matrices in the last two axes.
    pub(super) fn product(self, right: Self) -> Self {
        if crate::device::multiplies_matrices(&self.0.device()) || self.0.shape().num_elements() == 0 {
            return Self(super::product_as_it_is(self.0, right.0));
        }
        self.product_by_sums(right)
    }

    /// The same where burn's products are wrong: all products of elements, added up, some rows at a time.
    fn product_by_sums(self, right: Self) -> Self {
        /// Numbers that are made at once.
        const AT_ONCE: usize = 1 << 22;
        let (left_sizes, right_sizes) = (self.sizes(), right.sizes());
        let before = left_sizes.len() - 2;
        let (rows, inner, columns) = (left_sizes[before], left_sizes[before + 1], right_sizes[before + 1]);
        let stretched: Vec<usize> = (0..before).map(|axis| left_sizes[axis].max(right_sizes[axis])).collect();
        let with = |sizes: &[usize], last: &[usize]| [sizes, last].concat();
        let right = right.reshaped(&with(&right_sizes[..before], &[1, inner, columns]));
        let of_row = stretched.iter().product::<usize>() * inner * columns;
        let at_once = (AT_ONCE / of_row.max(1)).max(1);
        let stop = Stop::current();
        let device = self.0.device();
        let strip = |start: usize| {
            // What has been launched is not stopped, so no more is launched than a fraction of a second's work.
            if start > 0 {
                let _ = Dispatch::sync(&device);
            }
            stop.check();
            let count = at_once.min(rows - start);
            let left = self.part(before, start, count).reshaped(&with(&left_sizes[..before], &[count, inner, 1]));
            (left * right.clone()).sum(before + 1).reshaped(&with(&stretched, &[count, columns]))
        };
        Self::joined((0..rows).step_by(at_once).map(strip).collect(), before)
    }

    /// One after another along an axis.
    pub(super) fn joined(parts: Vec<Self>, axis: usize) -> Self {
        let mut parts: Vec<DispatchTensor> = parts.into_iter().map(|part| part.0).collect();
        Self(if parts.len() == 1 { parts.remove(0) } else { Dispatch::float_cat(parts, axis) })
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident, $function:ident) => {
        impl $trait for Value {
            type Output = Self;

            fn $method(self, right: Self) -> Self {
                Self(Dispatch::$function(self.0, right.0))
            }
        }
    };
}

operator!(Add, add, float_add);
operator!(Sub, sub, float_sub);
operator!(Mul, mul, float_mul);
operator!(Div, div, float_div);

/// Whole numbers as `rows` indices of at most `last`, whatever they were.
pub(super) fn clamped_indices(numbers: DispatchTensor, rows: usize, last: usize) -> DispatchTensor {
    let whole = Dispatch::float_into_int(numbers, IntDType::I32);
    let last = i64::try_from(last).unwrap_or(i64::from(i32::MAX));
    Dispatch::int_reshape(Dispatch::int_clamp(whole, Scalar::Int(0), Scalar::Int(last)), device_shape(&[rows]))
}

/// Indices as numbers to compute with.
pub(super) fn float_of(indices: DispatchTensor, dtype: DType) -> DispatchTensor {
    Dispatch::int_into_float(indices, dtype.burn().into())
}
