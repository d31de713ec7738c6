//! Attention within segments.
//!
//! Like the operations of `segment`, it is made of the partial derivatives of one trilinear form,
//! `sum over s, h, i, j, d of w[s, h, i, j] * x[i, h, d] * y[j, h, d]`, of `w` spread from values of rows, and of the softmax of `w`'s rows. Each of these is one
//! kernel, and the derivative of each is made of the others, to any order.

use std::sync::Arc;

use super::super::{check_indices, check_rank};
use super::{FLOATS, check_dtypes, elementwise};
use crate::autodiff::{Reads, gradients_by_parts};
use crate::context::check_cost;
use crate::kernel::attention::{self as processor, Neighbourhoods};
use crate::kernel::device::attention::{self as device, Classes};
use crate::tensor::{Elements, check_devices, checked_bytes};
use crate::{DType, Misuse, Tensor, memory};

const NAME: &str = "neural.attention";

/// Which rows attend to one another, as the kernels of the processor or of other devices have it.
#[derive(Clone)]
enum Pairs {
    Processor(Arc<Neighbourhoods>),
    Device(Arc<Classes>),
}

/// Calls the kernel of this name for where the rows are.
macro_rules! kernel {
    ($of:expr => $function:ident ( $($argument:expr),* )) => {
        match &$of {
            Pairs::Processor(of) => processor::$function($($argument,)* of),
            Pairs::Device(of) => Elements::from(device::$function($($argument,)* of)),
        }
    };
}

impl Pairs {
    fn new(segments: &Tensor, count: usize, heads: usize, rows: &Tensor) -> Result<Self, Misuse> {
        // What says where each segment is, before anything of that size is allocated; a history of gradients keeps it.
        let shape = [count.saturating_add(rows.shape()[0]), 2];
        let tables = memory::reserve(NAME, checked_bytes(NAME, &shape, DType::Int64)?)?;
        let found = match rows.is_on_device() {
            false => Neighbourhoods::new(segments, count, heads, tables)
                .map(|neighbourhoods| Self::Processor(Arc::new(neighbourhoods))),
            true => {
                Classes::new(NAME, segments, count, heads, rows, tables)?.map(|classes| Self::Device(Arc::new(classes)))
            }
        };
        found.ok_or_else(|| Misuse::new(NAME, "the segments have more pairs of rows than can be counted"))
    }

    /// The number of entries of a matrix of weights.
    fn entries(&self) -> usize {
        match self {
            Self::Processor(of) => of.entries(),
            Self::Device(of) => of.entries(),
        }
    }

    /// How many multiplications it takes to go through all pairs of rows of `features` elements.
    fn multiplications(&self, features: usize) -> f64 {
        match self {
            Self::Processor(of) => of.multiplications(features),
            Self::Device(of) => of.multiplications(features),
        }
    }
}

/// Each row attends to the rows of its own segment (Vaswani and others 2017): `out[i, h] = sum over j of softmax over j (scale * queries[i, h] . keys[j, h] +
/// bias[j]) * values[j, h]`. `queries`, `keys` and `values` are `[rows, heads * width]`, `bias` is `[rows]`, and row `p` belongs to segment `segments[p]`
/// below `count`; the result is `[rows, heads * width]`.
///
/// # Errors
/// The shapes do not fit, `heads` is 0 or does not divide the features, `scale` is not finite, a segment is not below `count`, or the dtypes differ.
#[expect(clippy::too_many_arguments, reason = "an operation of the contract has the arguments that it has there")]
pub fn attention(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    bias: &Tensor,
    segments: &Tensor,
    count: usize,
    heads: usize,
    scale: f64,
) -> Result<Tensor, Misuse> {
    check_dtypes(NAME, &[queries, keys, values, bias], FLOATS)?;
    check_rank(NAME, "`queries`", queries, 2)?;
    check_rank(NAME, "`segments`", segments, 1)?;
    let shape = queries.shape();
    if keys.shape() != shape
        || values.shape() != shape
        || bias.shape() != &shape[..1]
        || segments.shape() != &shape[..1]
    {
        return Err(Misuse::new(
            NAME,
            format!(
                "queries, keys, values, bias and segments have the shapes {shape:?}, {:?}, {:?}, {:?} and {:?}, expected three of [rows, features] and two of [rows]",
                keys.shape(),
                values.shape(),
                bias.shape(),
                segments.shape()
            ),
        ));
    }
    if heads == 0 || !shape[1].is_multiple_of(heads) {
        return Err(Misuse::new(NAME, format!("{heads} heads do not share {} features evenly", shape[1])));
    }
    if !scale.is_finite() {
        return Err(Misuse::new(NAME, format!("scale is {scale}, expected a finite number")));
    }
    check_devices(NAME, &queries.node.device, &[keys, values, bias])?;
    check_indices(NAME, segments, count)?;
    let of = Pairs::new(segments, count, heads, queries)?;
    let weights = softmax(&scores(queries, keys, &of)?, bias, scale, &of)?;
    mix(&weights, values, &of, false)
}

/// The form's derivative by `w`: products of the rows of `x` with those of `y`.
fn scores(x: &Tensor, y: &Tensor, of: &Pairs) -> Result<Tensor, Misuse> {
    check_cost(NAME, of.multiplications(x.shape()[1]))?;
    let (used, within) = (of.clone(), of.clone());
    let run = move |[x, y]: [&Tensor; 2], _: &[usize]| kernel!(used => scores(x, y));
    Tensor::compute(NAME, &[of.entries()], x.dtype(), [x, y], run, Reads::Others, move |step| {
        step.gradients(&[&|g| mix(g, &step.inputs[1], &within, false), &|g| mix(g, &step.inputs[0], &within, true)])
    })
}

/// The form's derivative by `x`, or with `transposed` that by `y`: sums of rows, weighted by `w`.
fn mix(weights: &Tensor, rows: &Tensor, of: &Pairs, transposed: bool) -> Result<Tensor, Misuse> {
    check_cost(NAME, of.multiplications(rows.shape()[1]))?;
    let (used, within) = (of.clone(), of.clone());
    let run = move |[weights, rows]: [&Tensor; 2], _: &[usize]| match &used {
        Pairs::Processor(of) => processor::mix(weights, rows, of, transposed),
        Pairs::Device(of) => device::mix(weights, rows, of, transposed).into(),
    };
    Tensor::compute(NAME, rows.shape(), rows.dtype(), [weights, rows], run, Reads::Others, move |step| {
        let (weights, rows) = (&step.inputs[0], &step.inputs[1]);
        let by_weights = |g: &Tensor| if transposed { scores(rows, g, &within) } else { scores(g, rows, &within) };
        step.gradients(&[&by_weights, &|g| mix(weights, g, &within, !transposed)])
    })
}

/// `w[h, i, j] = values[j]`.
fn columns(values: &Tensor, of: &Pairs) -> Result<Tensor, Misuse> {
    let (used, within) = (of.clone(), of.clone());
    let run = move |[values]: [&Tensor; 1], _: &[usize]| kernel!(used => columns(values));
    Tensor::compute(NAME, &[of.entries()], values.dtype(), [values], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| column_sums(g, step.inputs[0].shape(), &within)])
    })
}

/// The transpose of [`columns`].
fn column_sums(weights: &Tensor, shape: &[usize], of: &Pairs) -> Result<Tensor, Misuse> {
    let (used, within) = (of.clone(), of.clone());
    let run = move |[weights]: [&Tensor; 1], _: &[usize]| kernel!(used => column_sums(weights));
    Tensor::compute(NAME, shape, weights.dtype(), [weights], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| columns(g, &within)])
    })
}

/// The softmax over `j` of `scale * w[s, h, i, j] + bias[j]`: on the processor one kernel, on other devices put together, because their kernels are bound by other things
/// than by how often they read weights.
fn softmax(scores: &Tensor, bias: &Tensor, scale: f64, of: &Pairs) -> Result<Tensor, Misuse> {
    let (within, shape, dtype) = (of.clone(), scores.shape(), scores.dtype());
    match of.clone() {
        Pairs::Processor(of) => {
            let run = move |[scores, bias]: [&Tensor; 2], _: &[usize]| processor::softmax(scores, bias, scale, &of);
            Tensor::compute(NAME, shape, dtype, [scores, bias], run, Reads::Output, move |step| {
                let g = softmax_product(step.output, step.gradient, &within)?;
                let by_bias = |_: &Tensor| column_sums(&g, step.inputs[1].shape(), &within);
                step.gradients(&[&|_| elementwise::multiply_scalar(&g, scale), &by_bias])
            })
        }
        Pairs::Device(classes) => {
            let scores = elementwise::add(&elementwise::multiply_scalar(scores, scale)?, &columns(bias, of)?)?;
            let run = move |[scores]: [&Tensor; 1], _: &[usize]| device::softmax(scores, &classes).into();
            Tensor::compute(NAME, shape, dtype, [&scores], run, Reads::Output, move |step| {
                step.gradients(&[&|g| softmax_product(step.output, g, &within)])
            })
        }
    }
}

/// `y (g - <y, g>)` for each row: the product of the softmax's Jacobian, which is symmetric, with `g`.
fn softmax_product(y: &Tensor, g: &Tensor, of: &Pairs) -> Result<Tensor, Misuse> {
    let (used, within) = (of.clone(), of.clone());
    let run = move |[y, g]: [&Tensor; 2], _: &[usize]| kernel!(used => softmax_product(y, g));
    Tensor::compute(NAME, y.shape(), y.dtype(), [y, g], run, Reads::Inputs, move |step| {
        let (y, g) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|u| softmax_curvature(y, g, u, &within), &|u| softmax_product(y, u, &within)])
    })
}

/// `u g - u <y, g> - g <y, u>` for each row. Its own derivatives are of an order that is asked for rarely.
fn softmax_curvature(y: &Tensor, g: &Tensor, u: &Tensor, of: &Pairs) -> Result<Tensor, Misuse> {
    use elementwise::{multiply, subtract};
    let (used, within) = (of.clone(), of.clone());
    let run = move |operands: [&Tensor; 3], _: &[usize]| kernel!(used => softmax_curvature(operands));
    Tensor::compute(NAME, y.shape(), y.dtype(), [y, g, u], run, Reads::Inputs, move |step| {
        gradients_by_parts(step, |inputs| {
            let [y, g, u] = inputs else { unreachable!("a curvature has three inputs") };
            let overlap = |x: &Tensor| row_sums(&multiply(y, x)?, &within);
            subtract(&multiply(u, &subtract(g, &overlap(g)?)?)?, &multiply(g, &overlap(u)?)?)
        })
    })
}

/// Each entry of `w` becomes the sum of its row: a symmetric operation, and so its own transpose.
fn row_sums(weights: &Tensor, of: &Pairs) -> Result<Tensor, Misuse> {
    let (used, within) = (of.clone(), of.clone());
    let run = move |[weights]: [&Tensor; 1], _: &[usize]| kernel!(used => row_sums(weights));
    Tensor::compute(NAME, weights.shape(), weights.dtype(), [weights], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| row_sums(g, &within)])
    })
}
