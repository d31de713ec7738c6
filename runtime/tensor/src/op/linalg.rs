//! Linear algebra.

use thiserror::Error;

use super::{FLOATS, broadcast_shape, check_dtypes, check_rank, elementwise, shape, sum_to};
use crate::autodiff::Reads;
use crate::context::check_cost;
use crate::kernel::kernel;
use crate::tensor::Sizes;
use crate::{Misuse, Tensor, kernel};

/// Why a system of equations has no solution.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum SolveError {
    /// Elimination found no pivot in this row.
    #[error("the matrix is singular: no pivot in row {0}")]
    Singular(usize),
    /// An element is NaN or infinite.
    #[error("the matrix has an element that is not finite")]
    NotFinite,
}

/// Products of matrices over the last two axes; leading axes broadcast.
///
/// # Errors
/// A rank is below 2, the inner sizes differ, or the leading axes do not broadcast.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "linalg.matmul";
    check_dtypes(NAME, &[a, b], FLOATS)?;
    let (rank_a, rank_b) = (a.shape().len(), b.shape().len());
    if rank_a < 2 || rank_b < 2 {
        return Err(Misuse::new(
            NAME,
            format!("shapes are {:?} and {:?}, expected rank 2 or more", a.shape(), b.shape()),
        ));
    }
    let (columns, rows) = (a.shape()[rank_a - 1], b.shape()[rank_b - 2]);
    if columns != rows {
        return Err(Misuse::new(
            NAME,
            format!(
                "columns of a ({columns}) differ from rows of b ({rows}); a is {:?}, b is {:?}",
                a.shape(),
                b.shape()
            ),
        ));
    }
    let batch = broadcast_shape(NAME, &a.shape()[..rank_a - 2], &b.shape()[..rank_b - 2])?;
    let mut result = batch;
    result.extend([a.shape()[rank_a - 2], b.shape()[rank_b - 1]]);
    if rank_b == 2 {
        // The rows of all matrices of `a` are those of one.
        return product(NAME, a, false, b, false, &result);
    }
    check_cost(NAME, multiplications(&result, columns))?;
    let run = |[a, b]: [&Tensor; 2], shape: &[usize]| kernel!(a => matrix::batched(a, b, shape));
    Tensor::compute(NAME, &result, a.dtype(), [a, b], run, Reads::Others, |step| {
        let (a, b) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|g| sum_to(&matmul(g, &transpose(b)?)?, a.shape()), &|g| {
            sum_to(&matmul(&transpose(a)?, g)?, b.shape())
        }])
    })
}

/// The product of two matrices, either of which may be taken transposed; all axes of an operand but the last are its rows. The derivatives of such a product are
/// such products, whose results lie in memory as the operands do: transposing a view would leave that to each kernel after it.
pub(crate) fn product(
    operation: &'static str,
    a: &Tensor,
    a_transposed: bool,
    b: &Tensor,
    b_transposed: bool,
    shape: &[usize],
) -> Result<Tensor, Misuse> {
    let inner = if a_transposed {
        a.count() / a.shape().last().copied().unwrap_or(1).max(1)
    } else {
        a.shape().last().copied().unwrap_or(1)
    };
    check_cost(operation, multiplications(shape, inner))?;
    let run = move |[a, b]: [&Tensor; 2], shape: &[usize]| kernel!(a => matrix::product((a, a_transposed), (b, b_transposed), None, shape));
    Tensor::compute(operation, shape, a.dtype(), [a, b], run, Reads::Others, move |step| {
        let (a, b) = (&step.inputs[0], &step.inputs[1]);
        let by_a = |g: &Tensor| match a_transposed {
            false => product(operation, g, false, b, !b_transposed, a.shape()),
            true => product(operation, b, b_transposed, g, true, a.shape()),
        };
        let by_b = |g: &Tensor| match b_transposed {
            false => product(operation, a, !a_transposed, g, false, b.shape()),
            true => product(operation, g, true, a, a_transposed, b.shape()),
        };
        step.gradients(&[&by_a, &by_b])
    })
}

/// How many multiplications a product takes whose result has this shape.
pub(crate) fn multiplications(shape: &[usize], inner: usize) -> f64 {
    shape.iter().map(|&size| size as f64).product::<f64>() * inner as f64
}

fn transpose(a: &Tensor) -> Result<Tensor, Misuse> {
    let rank = a.shape().len();
    let mut axes: Sizes = (0..rank).collect();
    axes.swap(rank - 1, rank - 2);
    shape::permute(a, &axes)
}

/// The `x` of `a x = b` by LU decomposition with partial pivoting; `a` is `[n, n]`, `b` and `x` are `[n, k]`.
///
/// # Errors
/// Outside: the shapes or dtypes do not fit. Inside: the matrix is singular or not finite.
pub fn solve(a: &Tensor, b: &Tensor) -> Result<Result<Tensor, SolveError>, Misuse> {
    const NAME: &str = "linalg.solve";
    check_dtypes(NAME, &[a, b], FLOATS)?;
    crate::tensor::check_devices(NAME, &a.node.device, &[b])?;
    check_rank(NAME, "`a`", a, 2)?;
    check_rank(NAME, "`b`", b, 2)?;
    let n = a.shape()[0];
    if a.shape()[1] != n || b.shape()[0] != n {
        return Err(Misuse::new(
            NAME,
            format!("a is {:?} and b {:?}, expected [n, n] and [n, k]", a.shape(), b.shape()),
        ));
    }
    check_cost(NAME, multiplications(&[n, n], n.max(b.shape()[1])))?;
    let solution = match kernel::solve(&a.read_float64()?, &b.read_float64()?, n, b.shape()[1]) {
        Ok(solution) => solution,
        Err(error) => return Ok(Err(error)),
    };
    let run = |[a, _]: [&Tensor; 2], _: &[usize]| kernel::from_float64(solution, a.dtype());
    Tensor::compute(NAME, b.shape(), a.dtype(), [a, b], run, Reads::All, |step| {
        // x = A^-1 b, so db = A^-T g and dA = -db x^T. Where that has no solution, as for a `g` that is not finite, the gradient is no number.
        let gradient_b = match solve(&transpose(&step.inputs[0])?, step.gradient)? {
            Ok(gradient) => gradient,
            Err(_) => Tensor::full(&step.output.device(), step.output.shape(), f64::NAN, step.output.dtype())?,
        };
        step.gradients(&[&|_| elementwise::negative(&matmul(&gradient_b, &transpose(step.output)?)?), &|_| {
            Ok(gradient_b.clone())
        }])
    })
    .map(Ok)
}
