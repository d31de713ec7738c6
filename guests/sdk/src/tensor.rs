//! Tensors: handles to arrays of numbers that live with the host.
//!
//! Every operation is one call into the host, which runs it natively and records it for differentiation. A [`Tensor`] is immutable and frees
//! its value when dropped. Misuse (shapes that do not fit, mixed dtypes, an index out of range) ends the architecture with a message
//! that names the operation and the shapes, so operations return plain tensors and not `Result`.
//!
//! ```ignore
//! let x = Tensor::from_vec_f64(&[2, 2], vec![1.0, 2.0, 3.0, 4.0], DType::Float32).track();
//! let y = (&x * &x).sum_all() * 0.5;
//! let dy_dx = grad(&[&y], &[&x], false); // x itself
//! ```

use std::ops::{Add, Div, Mul, Neg, Range, Sub};

use crate::{
    Error, Result,
    contract::{
        autodiff, elementwise, index, linalg, neural, reduce, segment, shape, spherical,
        tensor::{self, Tensor as Handle},
    },
};

pub use crate::info::DType;

/// An immutable array of rank 0 to 8 on the run's device.
pub struct Tensor(Handle);

fn sizes(shape: &[usize]) -> Vec<u32> {
    shape.iter().map(|&size| size as u32).collect()
}

/// The handles behind some tensors, as the contract takes them.
pub(crate) fn handles<'a>(tensors: &[&'a Tensor]) -> Vec<&'a Handle> {
    tensors.iter().map(|tensor| &tensor.0).collect()
}

/// Which rows belong together.
#[derive(Clone)]
pub struct Segments {
    /// The segment of each row, `int64` `[rows]`.
    pub indices: Tensor,
    /// The number of segments, above every index.
    pub count: usize,
}

/// Making tensors and looking at them.
impl Tensor {
    /// Every element is 0.
    pub fn zeros(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::full(shape, 0.0, dtype)
    }

    /// Every element is 1.
    pub fn ones(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::full(shape, 1.0, dtype)
    }

    /// Every element is `value`, converted to `dtype`.
    pub fn full(shape: &[usize], value: f64, dtype: DType) -> Tensor {
        Tensor(tensor::full(&sizes(shape), value, dtype.into()))
    }

    /// A floating-point tensor with these row-major values, rounded to `dtype`.
    pub fn from_vec_f64(shape: &[usize], values: Vec<f64>, dtype: DType) -> Tensor {
        Tensor(tensor::from_float64(&sizes(shape), &values, dtype.into()))
    }

    /// A `float32` tensor with these row-major values.
    pub fn from_vec_f32(shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor(tensor::from_float32(&sizes(shape), &values))
    }

    /// An `int64` tensor with these row-major values: the dtype of every index.
    pub fn from_vec_i64(shape: &[usize], values: Vec<i64>) -> Tensor {
        Tensor(tensor::from_int64(&sizes(shape), &values))
    }

    /// A boolean tensor with these row-major values.
    pub fn from_vec_bool(shape: &[usize], values: Vec<bool>) -> Tensor {
        Tensor(tensor::from_boolean(&sizes(shape), &values))
    }

    /// `[0, 1, .., count - 1]`, `int64`.
    pub fn arange(count: usize) -> Tensor {
        Tensor(tensor::arange(count as u32))
    }

    /// The sizes of its axes; empty for a scalar. A call into the host: keep the answer where it is needed often.
    pub fn shape(&self) -> Vec<usize> {
        self.0.shape().into_iter().map(|size| size as usize).collect()
    }

    /// The size of one axis.
    pub fn size(&self, axis: usize) -> usize {
        self.shape()[axis]
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype().into()
    }

    /// The same numbers as another dtype; differentiable between floating-point types.
    pub fn cast(&self, dtype: DType) -> Tensor {
        Tensor(tensor::cast(&self.0, dtype.into()))
    }

    /// All elements of a floating-point tensor, row-major. Waits for the device: not for the inside of a training step.
    pub fn to_vec_f64(&self) -> Vec<f64> {
        self.0.read_float64()
    }

    /// All elements of a `float32` tensor, row-major.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        self.0.read_float32()
    }

    /// All elements of an integer tensor, row-major.
    pub fn to_vec_i64(&self) -> Vec<i64> {
        self.0.read_int64()
    }

    /// All elements of a boolean tensor, row-major.
    pub fn to_vec_bool(&self) -> Vec<bool> {
        self.0.read_boolean()
    }

    /// The only element of a floating-point tensor; NaN if there is none.
    pub fn item(&self) -> f64 {
        self.to_vec_f64().first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn from_handle(handle: Handle) -> Tensor {
        Tensor(handle)
    }

    pub(crate) fn into_handle(self) -> Handle {
        self.0
    }
}

impl Clone for Tensor {
    /// Another handle to the same tensor, differentiable like this one. No numbers are copied.
    fn clone(&self) -> Tensor {
        Tensor(self.0.share())
    }
}

/// Operations on each element. Binary ones follow numpy's broadcasting rule; both operands have the same dtype.
impl Tensor {
    /// The larger of the two.
    pub fn maximum(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::maximum(&self.0, &other.0))
    }

    /// The smaller of the two.
    pub fn minimum(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::minimum(&self.0, &other.0))
    }

    /// Limited to `[low, high]`; the gradient is 0 outside.
    pub fn clamp(&self, low: f64, high: f64) -> Tensor {
        Tensor(elementwise::clamp(&self.0, low, high))
    }

    /// To the power `exponent`.
    pub fn power(&self, exponent: f64) -> Tensor {
        Tensor(elementwise::power_scalar(&self.0, exponent))
    }

    /// Times itself.
    pub fn square(&self) -> Tensor {
        Tensor(elementwise::multiply(&self.0, &self.0))
    }

    /// `1 / a`.
    pub fn reciprocal(&self) -> Tensor {
        Tensor(elementwise::reciprocal(&self.0))
    }

    /// The absolute value; its gradient at 0 is 0.
    pub fn abs(&self) -> Tensor {
        Tensor(elementwise::absolute(&self.0))
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> Tensor {
        Tensor(elementwise::sign(&self.0))
    }

    /// e to this power.
    pub fn exp(&self) -> Tensor {
        Tensor(elementwise::exp(&self.0))
    }

    /// The natural logarithm.
    pub fn log(&self) -> Tensor {
        Tensor(elementwise::log(&self.0))
    }

    /// The square root; its gradient at 0 is infinite.
    pub fn sqrt(&self) -> Tensor {
        Tensor(elementwise::sqrt(&self.0))
    }

    /// The sine of radians.
    pub fn sin(&self) -> Tensor {
        Tensor(elementwise::sin(&self.0))
    }

    /// The cosine of radians.
    pub fn cos(&self) -> Tensor {
        Tensor(elementwise::cos(&self.0))
    }

    /// The hyperbolic tangent.
    pub fn tanh(&self) -> Tensor {
        Tensor(elementwise::tanh(&self.0))
    }

    /// The error function.
    pub fn erf(&self) -> Tensor {
        Tensor(elementwise::erf(&self.0))
    }

    /// `1 / (1 + exp(-a))`.
    pub fn sigmoid(&self) -> Tensor {
        Tensor(elementwise::sigmoid(&self.0))
    }

    /// `a * sigmoid(a)`.
    pub fn silu(&self) -> Tensor {
        Tensor(elementwise::silu(&self.0))
    }

    /// Boolean `a == b`; NaN equals nothing.
    pub fn equal(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::equal(&self.0, &other.0))
    }

    /// Boolean `a < b`.
    pub fn less(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::less(&self.0, &other.0))
    }

    /// Boolean `a <= b`.
    pub fn less_equal(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::less_equal(&self.0, &other.0))
    }

    /// Boolean: neither NaN nor infinite.
    pub fn is_finite(&self) -> Tensor {
        Tensor(elementwise::is_finite(&self.0))
    }

    /// Both are true.
    pub fn and(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::logical_and(&self.0, &other.0))
    }

    /// At least one is true.
    pub fn or(&self, other: &Tensor) -> Tensor {
        Tensor(elementwise::logical_or(&self.0, &other.0))
    }

    /// It is false.
    pub fn not(&self) -> Tensor {
        Tensor(elementwise::logical_not(&self.0))
    }

    /// `yes` where this (boolean) is true, else `no`. Nothing flows back to the side that was not taken, not even a NaN.
    pub fn choose(&self, yes: &Tensor, no: &Tensor) -> Tensor {
        Tensor(elementwise::where_(&self.0, &yes.0, &no.0))
    }
}

/// Reductions, summed in a fixed order. The axes given are gone from the result, or kept with size 1 by the `_keeping` variants.
impl Tensor {
    /// The sum over all axes, a scalar.
    pub fn sum_all(&self) -> Tensor {
        self.sum(&[])
    }

    /// Sums over `axes`; none means all.
    pub fn sum(&self, axes: &[usize]) -> Tensor {
        Tensor(reduce::sum(&self.0, &sizes(axes), false))
    }

    /// Sums over `axes`, which stay with size 1.
    pub fn sum_keeping(&self, axes: &[usize]) -> Tensor {
        Tensor(reduce::sum(&self.0, &sizes(axes), true))
    }

    /// The mean over all axes, a scalar; NaN if there are no elements.
    pub fn mean_all(&self) -> Tensor {
        self.mean(&[])
    }

    /// Means over `axes`; none means all.
    pub fn mean(&self, axes: &[usize]) -> Tensor {
        Tensor(reduce::mean(&self.0, &sizes(axes), false))
    }

    /// Means over `axes`, which stay with size 1.
    pub fn mean_keeping(&self, axes: &[usize]) -> Tensor {
        Tensor(reduce::mean(&self.0, &sizes(axes), true))
    }

    /// The largest element along `axis`.
    pub fn maximum_along(&self, axis: usize) -> Tensor {
        Tensor(reduce::maximum(&self.0, axis as u32, false))
    }

    /// The smallest element along `axis`.
    pub fn minimum_along(&self, axis: usize) -> Tensor {
        Tensor(reduce::minimum(&self.0, axis as u32, false))
    }

    /// Whether all elements (boolean) are true, a boolean scalar.
    pub fn all(&self) -> Tensor {
        Tensor(reduce::all(&self.0))
    }

    /// Whether any element (boolean) is true, a boolean scalar.
    pub fn any(&self) -> Tensor {
        Tensor(reduce::any(&self.0))
    }
}

/// The same elements in another arrangement.
impl Tensor {
    /// The same elements, row-major, in another shape.
    pub fn reshape(&self, shape: &[usize]) -> Tensor {
        Tensor(shape::reshape(&self.0, &sizes(shape)))
    }

    /// Axis `i` of the result is axis `axes[i]` of this tensor.
    pub fn permute(&self, axes: &[usize]) -> Tensor {
        Tensor(shape::permute(&self.0, &sizes(axes)))
    }

    /// With its last two axes exchanged.
    pub fn transpose(&self) -> Tensor {
        let rank = self.shape().len();
        let mut axes: Vec<usize> = (0..rank).collect();
        axes.swap(rank - 2, rank - 1);
        self.permute(&axes)
    }

    /// Stretched to `shape` by the broadcasting rule.
    pub fn broadcast_to(&self, shape: &[usize]) -> Tensor {
        Tensor(shape::broadcast_to(&self.0, &sizes(shape)))
    }

    /// One after another along `axis`; at least one tensor.
    pub fn concatenate(tensors: &[&Tensor], axis: usize) -> Tensor {
        Tensor(shape::concatenate(&handles(tensors), axis as u32))
    }

    /// The elements of `range` along `axis`.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Tensor {
        Tensor(shape::slice(&self.0, axis as u32, range.start as u32, range.end as u32))
    }
}

/// Picking and adding rows.
impl Tensor {
    /// `out[.., k, ..] = a[.., indices[k], ..]` along `axis`.
    pub fn select(&self, axis: usize, indices: &Tensor) -> Tensor {
        Tensor(index::select(&self.0, axis as u32, &indices.0))
    }

    /// The transpose of [`select`](Tensor::select): adds `a[.., k, ..]` to row `indices[k]` of a tensor of zeros with `size` rows along `axis`.
    pub fn index_add(&self, axis: usize, indices: &Tensor, size: usize) -> Tensor {
        Tensor(index::index_add(&self.0, axis as u32, &indices.0, size as u32))
    }

    /// `out[.., k, ..] = a[.., indices[.., k, ..], ..]`: one index per element.
    pub fn gather(&self, axis: usize, indices: &Tensor) -> Tensor {
        Tensor(index::gather(&self.0, axis as u32, &indices.0))
    }

    /// The transpose of [`gather`](Tensor::gather).
    pub fn scatter_add(&self, axis: usize, indices: &Tensor, size: usize) -> Tensor {
        Tensor(index::scatter_add(&self.0, axis as u32, &indices.0, size as u32))
    }

    /// The sum of `left[p, i] * right[p, j]` over the rows `p` of each segment: `[rows, m]`, `[rows, n]` give `[count, m, n]`.
    pub fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, count: usize) -> Tensor {
        Tensor(segment::outer_sum(&left.0, &right.0, &segments.0, count as u32))
    }

    /// Each row times the matrix of its segment: `[rows, m]` with `blocks` `[count, m, n]` give `[rows, n]`.
    pub fn contract_left(&self, blocks: &Tensor, segments: &Tensor) -> Tensor {
        Tensor(segment::contract_left(&self.0, &blocks.0, &segments.0))
    }

    /// Each row times the transposed matrix of its segment: `[rows, n]` with `blocks` `[count, m, n]` give `[rows, m]`.
    pub fn contract_right(&self, blocks: &Tensor, segments: &Tensor) -> Tensor {
        Tensor(segment::contract_right(&self.0, &blocks.0, &segments.0))
    }
}

/// Linear algebra, norms and functions of directions.
impl Tensor {
    /// The product of matrices over the last two axes.
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        Tensor(linalg::matmul(&self.0, &other.0))
    }

    /// The `x` of `a x = b`.
    ///
    /// # Errors
    /// When `a` is singular to working precision or not finite.
    pub fn solve(&self, right: &Tensor) -> Result<Tensor> {
        linalg::solve(&self.0, &right.0).map(Tensor).map_err(|error| {
            Error::Other(match error {
                linalg::LinalgError::Singular(row) => {
                    format!("a system of linear equations is singular at row {row}")
                }
                linalg::LinalgError::NotFinite => {
                    "a system of linear equations has a coefficient that is NaN or infinite".to_owned()
                }
            })
        })
    }

    /// `exp(a) / sum(exp(a))` along `axis`.
    pub fn softmax(&self, axis: usize) -> Tensor {
        Tensor(neural::softmax(&self.0, axis as u32))
    }

    /// `self weight`, plus `bias` in every row: `[.., inputs]`, `[inputs, outputs]` and `[outputs]` to `[.., outputs]`.
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        Tensor(neural::linear(&self.0, &weight.0, bias.map(|bias| &bias.0)))
    }

    /// `values * sigmoid(gates)`, where the first half of the last axis are values and the second half are gates.
    pub fn gated_linear_unit(&self) -> Tensor {
        Tensor(neural::gated_linear_unit(&self.0))
    }

    /// Attention within segments: these rows, the queries, attend to the keys and values of their own segment. For each head it is
    /// `softmax(scale * queries . keys + bias) * values`. Queries, keys and values are `[rows, heads * width]`, `bias` and the segments' `int64`
    /// indices are `[rows]`.
    pub fn attention(
        &self,
        keys: &Tensor,
        values: &Tensor,
        bias: &Tensor,
        segments: &Segments,
        heads: usize,
        scale: f64,
    ) -> Tensor {
        let (indices, count) = (&segments.indices.0, segments.count as u32);
        Tensor(neural::attention(&self.0, &keys.0, &values.0, &bias.0, indices, count, heads as u32, scale))
    }

    /// Centred and scaled to unit variance over the last axis, with no affine part.
    pub fn layer_norm(&self, epsilon: f64) -> Tensor {
        Tensor(neural::layer_norm(&self.0, epsilon))
    }

    /// Scaled to unit mean square over the last axis, with no affine part.
    pub fn rms_norm(&self, epsilon: f64) -> Tensor {
        Tensor(neural::rms_norm(&self.0, epsilon))
    }

    /// Real solid harmonics of `[rows, 3]` vectors up to `max_degree`: `[rows, (max_degree + 1)^2]`, entry `l^2 + l + m`.
    pub fn solid_harmonics(&self, max_degree: usize) -> Tensor {
        Tensor(spherical::solid_harmonics(&self.0, max_degree as u32))
    }

    /// Functions tabulated as polynomials on equal intervals of `[lower, upper]`, 0 outside: `[rows]` with `coefficients`
    /// `[intervals, degree + 1, functions]` give `[rows, functions]`. The local coordinate runs from -1 to 1.
    pub fn piecewise_polynomial(&self, coefficients: &Tensor, lower: f64, upper: f64) -> Tensor {
        Tensor(spherical::piecewise_polynomial(&self.0, &coefficients.0, lower, upper))
    }
}

/// Differentiation.
impl Tensor {
    /// A leaf with these values: operations on it are recorded.
    pub fn track(&self) -> Tensor {
        Tensor(autodiff::track(&self.0))
    }

    /// These values without their history.
    pub fn detach(&self) -> Tensor {
        Tensor(autodiff::detach(&self.0))
    }

    /// Whether operations on it are recorded.
    pub fn is_tracked(&self) -> bool {
        autodiff::is_tracked(&self.0)
    }
}

/// The gradients of the sum of all elements of `outputs` with respect to each of `inputs`, zero where nothing connects. With
/// `create_graph` they can be differentiated again, which training on forces needs.
pub fn grad(outputs: &[&Tensor], inputs: &[&Tensor], create_graph: bool) -> Vec<Tensor> {
    grad_weighted(outputs, inputs, &[], create_graph)
}

/// As [`grad`], of `sum_k <outputs[k], weights[k]>`; each weight has its output's shape and dtype.
pub fn grad_weighted(outputs: &[&Tensor], inputs: &[&Tensor], weights: &[&Tensor], create_graph: bool) -> Vec<Tensor> {
    autodiff::grad(&handles(outputs), &handles(inputs), &handles(weights), create_graph)
        .into_iter()
        .map(Tensor)
        .collect()
}

/// As [`grad`] without `create_graph`, of outputs that are not needed any more: their history, most of the memory of a training step, is freed while the
/// gradients are found.
pub fn grad_and_release(outputs: Vec<Tensor>, inputs: &[&Tensor]) -> Vec<Tensor> {
    let outputs = outputs.into_iter().map(|output| output.0).collect();
    autodiff::grad_and_release(outputs, &handles(inputs), &[]).into_iter().map(Tensor).collect()
}

/// Runs `work` without recording its operations: nothing in it can be differentiated, and its intermediate results are freed at once.
pub fn without_recording<T>(work: impl FnOnce() -> T) -> T {
    let before = autodiff::set_recording(false);
    let result = work();
    autodiff::set_recording(before);
    result
}

/// Every combination of owned and borrowed operands of one operator, with tensors and with scalars.
macro_rules! operator {
    ($trait:ident, $method:ident, $function:ident, |$tensor:ident, $scalar:ident| $right:expr, $left:expr) => {
        impl $trait<&Tensor> for &Tensor {
            type Output = Tensor;
            fn $method(self, other: &Tensor) -> Tensor {
                Tensor(elementwise::$function(&self.0, &other.0))
            }
        }
        impl $trait<Tensor> for &Tensor {
            type Output = Tensor;
            fn $method(self, other: Tensor) -> Tensor {
                $trait::$method(self, &other)
            }
        }
        impl $trait<&Tensor> for Tensor {
            type Output = Tensor;
            fn $method(self, other: &Tensor) -> Tensor {
                $trait::$method(&self, other)
            }
        }
        impl $trait<Tensor> for Tensor {
            type Output = Tensor;
            fn $method(self, other: Tensor) -> Tensor {
                $trait::$method(&self, &other)
            }
        }
        impl $trait<f64> for &Tensor {
            type Output = Tensor;
            fn $method(self, $scalar: f64) -> Tensor {
                let $tensor = self;
                Tensor($right)
            }
        }
        impl $trait<f64> for Tensor {
            type Output = Tensor;
            fn $method(self, scalar: f64) -> Tensor {
                $trait::$method(&self, scalar)
            }
        }
        impl $trait<&Tensor> for f64 {
            type Output = Tensor;
            fn $method(self, $tensor: &Tensor) -> Tensor {
                let $scalar = self;
                Tensor($left)
            }
        }
        impl $trait<Tensor> for f64 {
            type Output = Tensor;
            fn $method(self, tensor: Tensor) -> Tensor {
                $trait::$method(self, &tensor)
            }
        }
    };
}

operator!(
    Add,
    add,
    add,
    |tensor, scalar| elementwise::add_scalar(&tensor.0, scalar),
    elementwise::add_scalar(&tensor.0, scalar)
);
operator!(
    Sub,
    sub,
    subtract,
    |tensor, scalar| elementwise::add_scalar(&tensor.0, -scalar),
    elementwise::add_scalar(&elementwise::negative(&tensor.0), scalar)
);
operator!(
    Mul,
    mul,
    multiply,
    |tensor, scalar| elementwise::multiply_scalar(&tensor.0, scalar),
    elementwise::multiply_scalar(&tensor.0, scalar)
);
// Dividing by a scalar multiplies with its reciprocal: one operation, and the last bit may differ from a division.
operator!(
    Div,
    div,
    divide,
    |tensor, scalar| elementwise::multiply_scalar(&tensor.0, 1.0 / scalar),
    elementwise::multiply_scalar(&elementwise::reciprocal(&tensor.0), scalar)
);

impl Neg for &Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        Tensor(elementwise::negative(&self.0))
    }
}

impl Neg for Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        -&self
    }
}
