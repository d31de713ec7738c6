//! Products of two matrices, either of which may be taken transposed, through the library that burn uses for them.

use burn_dispatch::DispatchTensor;

use super::fill::in_parts;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::from_host;

/// Below this many multiplications a second thread costs more than it gives.
const PARALLEL: usize = 1 << 21;

/// A row-major matrix in a slice, or its transpose.
#[derive(Clone, Copy)]
struct Operand<'a, R> {
    values: &'a [R],
    /// Rows and columns of the operand as it is multiplied.
    size: [usize; 2],
    strides: [isize; 2],
}

impl<'a, R> Operand<'a, R> {
    fn new(values: &'a [R], shape: &[usize], transposed: bool) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        match transposed {
            false => Self { values, size: [rows, columns], strides: [columns as isize, 1] },
            true => Self { values, size: [columns, rows], strides: [1, columns as isize] },
        }
    }
}

/// `left right`, plus `bias` in every row if there is one. `left` is seen as one matrix: all its axes but the last are rows. `shape` is that of the
/// result.
pub(crate) fn product(
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    bias: Option<&Tensor>,
    shape: &[usize],
) -> DispatchTensor {
    let dtype = left.0.dtype();
    let (left_host, right_host, bias_host) = (left.0.host(), right.0.host(), bias.map(Tensor::host));
    for_float!(dtype, R => {
        let left = Operand::<R>::new(left_host.values(), left.0.shape(), left.1);
        let right = Operand::<R>::new(right_host.values(), right.0.shape(), right.1);
        from_host(multiply(left, right, bias_host.as_ref().map(|bias| bias.values::<R>())), shape, dtype)
    })
}

fn multiply<R: Real>(left: Operand<'_, R>, right: Operand<'_, R>, bias: Option<&[R]>) -> Vec<R> {
    let ([rows, inner], [other, columns]) = (left.size, right.size);
    assert!(
        inner == other
            && left.values.len() == rows * inner
            && right.values.len() == inner * columns
            && bias.is_none_or(|bias| bias.len() == columns),
        "shapes were checked"
    );
    let count = rows * columns;
    let mut out: Vec<R> = match bias {
        Some(bias) => in_parts(
            count,
            columns,
            #[inline(always)]
            |_, row| row.copy_from_slice(bias),
        ),
        None if inner == 0 => vec![R::default(); count],
        None => Vec::with_capacity(count),
    };
    if inner == 0 {
        return out;
    }
    let parallelism =
        if rows * columns * inner < PARALLEL { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the operands have `rows * inner` and `inner * columns` elements, and their strides address each of these once, as does the result's
    // stride in its `rows * columns` reserved elements. The result is read only if a bias was written into all of them; otherwise every
    // element is written without being read. `R` is `f32` or `f64`, which the library has kernels for.
    #[expect(unsafe_code, reason = "the library takes pointers")]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            columns as isize,
            bias.is_some(),
            left.values.as_ptr(),
            left.strides[1],
            left.strides[0],
            right.values.as_ptr(),
            right.strides[1],
            right.strides[0],
            R::from_f64(1.0),
            R::from_f64(1.0),
            false,
            false,
            false,
            parallelism,
        );
        out.set_len(count);
    }
    out
}
