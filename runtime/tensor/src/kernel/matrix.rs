//! Products of matrices, either of which may be taken transposed, through the library that burn uses for them.

use std::sync::atomic::{AtomicPtr, Ordering};

use super::fill::{copied, in_parts};
#[cfg(target_arch = "x86_64")]
use super::panels;
use super::product::{Matrix, Packed, product as small_product};
use super::{MULTIPLICATIONS, Real, few, for_float, helpers, vectorised};
use crate::Tensor;
use crate::context::Stop;
use crate::tensor::Elements;

/// Up to this many multiplications a product is cut into blocks of columns, which threads compute without waiting for each other. Larger ones are left to the
/// library as a whole: its threads share what they bring into order, which pays as soon as operands do not fit the nearest caches.
const IN_BLOCKS: usize = 1 << 23;
/// The least multiplications of a block: enough to make handing it to another thread cheap.
const LEAST: usize = 1 << 17;
/// The most blocks. The left operand is brought into order once for each.
const BLOCKS: usize = 16;
/// Blocks have a multiple of these columns: four of the widest registers, which the library's widest tiles have. Narrower blocks bring the left operand into order more often, and read rows of weights in shorter pieces.
const COLUMNS: usize = 64;
/// The most multiplications of one call of the library, which cannot be stopped: some hundredths of a second. Larger products are cut.
const LARGEST: usize = 1 << 31;
/// Up to this many multiplications a product of a batch is left to our own kernel, which begins at once.
const SMALL: usize = 1 << 14;

/// A row-major matrix in a slice, or its transpose.
#[derive(Clone, Copy)]
struct Operand<'a, R> {
    values: &'a [R],
    /// Rows and columns of the operand as it is multiplied.
    size: [usize; 2],
    strides: [usize; 2],
}

impl<'a, R> Operand<'a, R> {
    fn new(values: &'a [R], shape: &[usize], transposed: bool) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        match transposed {
            false => Self { values, size: [rows, columns], strides: [columns, 1] },
            true => Self { values, size: [columns, rows], strides: [1, columns] },
        }
    }

    /// As our own kernel takes it, if it is not transposed.
    fn rows(self) -> Matrix<'a, R>
    where
        R: Real,
    {
        Matrix::new(self.values, self.size[0], self.size[1])
    }

    /// `size` rows (axis 0) or columns (axis 1) from `start` on.
    fn part(self, axis: usize, start: usize, size: usize) -> Self {
        let mut part = Self { values: &self.values[start * self.strides[axis]..], ..self };
        part.size[axis] = size;
        part
    }
}

/// `left right`, plus `bias` in every row if there is one. `left` is seen as one matrix: all its axes but the last are rows. `shape` is that of the
/// result.
pub(crate) fn product(
    left: (&Tensor, bool),
    right: (&Tensor, bool),
    bias: Option<&Tensor>,
    _shape: &[usize],
) -> Elements {
    let dtype = left.0.dtype();
    #[cfg(target_arch = "x86_64")]
    if let Some(values) = in_strips(left, right, bias) {
        return values;
    }
    let (left_host, right_host, bias_host) = (left.0.host(), right.0.host(), bias.map(Tensor::host));
    for_float!(dtype, R => {
        let left = Operand::<R>::new(left_host.values(), left.0.shape(), left.1);
        let right = Operand::<R>::new(right_host.values(), right.0.shape(), right.1);
        Elements::new(multiply(left, right, bias_host.as_ref().map(|bias| bias.values::<R>())))
    })
}

/// As [`product`], in strips of weights, if that is the better way on this processor.
#[cfg(target_arch = "x86_64")]
fn in_strips(left: (&Tensor, bool), right: (&Tensor, bool), bias: Option<&Tensor>) -> Option<Elements> {
    let [rows, inner] = Operand::<f32>::new(&[], left.0.shape(), left.1).size;
    let [_, columns] = Operand::<f32>::new(&[], right.0.shape(), right.1).size;
    let sizes = [rows, inner, columns];
    let is_other = left.1 || left.0.dtype() != crate::DType::Float32 || few::is_for::<f32>(sizes, right.1);
    if is_other || !panels::are_for(sizes) {
        return None;
    }
    let (left_host, bias_host) = (left.0.host(), bias.map(Tensor::host));
    let bias = bias_host.as_ref().map(|bias| bias.values());
    Some(Elements::new(panels::product(left_host.values(), right, bias, sizes)))
}

/// The products of the matrices in the last two axes; the axes before broadcast to those of `shape`, the shape of the result. A matrix that meets
/// many others is read where it lies: stretching it in memory could take more than both operands and the result.
pub(crate) fn batched(left: &Tensor, right: &Tensor, shape: &[usize]) -> Elements {
    let dtype = left.dtype();
    let (left_host, right_host) = (left.host(), right.host());
    let count = shape.iter().rev().take(2).product();
    for_float!(dtype, R => {
        let (left_values, right_values) = (left_host.values::<R>(), right_host.values::<R>());
        let stop = Stop::current();
        let values = in_parts(shape.iter().product(), count, #[inline(always)] |number, out: &mut [R]| {
            let left = matrix(left, left_values, shape, number);
            let right = matrix(right, right_values, shape, number);
            if count * left.size[1] <= SMALL {
                vectorised(#[inline(always)] |vectors| {
                    small_product(vectors, left.rows(), right.rows(), &mut Packed::default(), out, &stop);
                });
            } else {
                out.copy_from_slice(&multiply(left, right, None));
            }
        });
        Elements::new(values)
    })
}

/// The matrix of `operand` that goes into matrix `number` of the result.
fn matrix<'a, R>(operand: &Tensor, values: &'a [R], shape: &[usize], number: usize) -> Operand<'a, R> {
    let (batch, size) = operand.shape().split_at(operand.shape().len() - 2);
    let (mut rest, mut place, mut stride) = (number, 0, 1);
    for (&own, &whole) in batch.iter().rev().zip(shape.iter().rev().skip(2)) {
        // An axis of size 1 is stretched: every place along it is the first.
        place += if own == 1 { 0 } else { rest % whole * stride };
        (rest, stride) = (rest / whole, stride * own);
    }
    let count = size[0] * size[1];
    Operand::new(&values[place * count..][..count], size, false)
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
    let sizes = [rows, inner, columns];
    let right_is_transposed = right.strides[1] != 1;
    let multiplications = count.saturating_mul(inner);
    let is_row_major = left.strides[1] == 1;
    if (1..=LARGEST).contains(&multiplications) && is_row_major && few::is_for::<R>(sizes, right_is_transposed) {
        return few::product(left.values, (right.values, right_is_transposed), bias, sizes);
    }
    let mut out: Vec<R> = match bias {
        Some(bias) => copied(bias, count, columns, |_| 0),
        None if inner == 0 => vec![R::default(); count],
        None => Vec::with_capacity(count),
    };
    if count == 0 || inner == 0 {
        return out;
    }
    let in_blocks = multiplications <= IN_BLOCKS;
    let (height, width) = if in_blocks { (rows, block(multiplications, columns)) } else { part(rows, inner, columns) };
    let (down, across) = (rows.div_ceil(height), columns.div_ceil(width));
    let work = multiplications / MULTIPLICATIONS;
    let parallelism =
        if !in_blocks && helpers::are_worth(work) { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    let stop = Stop::current();
    let start = AtomicPtr::new(out.as_mut_ptr());
    let compute = |number: usize| {
        stop.check();
        let (row, column) = (number / across * height, number % across * width);
        let (height, width) = (height.min(rows - row), width.min(columns - column));
        let (left, right) = (left.part(0, row, height), right.part(1, column, width));
        // SAFETY: the operands have `rows * inner` and `inner * columns` elements, a part of them begins at one of its own elements, and their strides
        // address each of these once, as does the result's stride in its `rows * columns` reserved elements, of which this part begins
        // at `(row, column)`. No two parts overlap, so threads write elements of their own. The result is read only if a bias was written into all of
        // them; otherwise every element of the part is written without being read. `R` is `f32` or `f64`, which the library has kernels for.
        #[expect(unsafe_code, reason = "the library takes pointers")]
        unsafe {
            gemm::gemm(
                height,
                width,
                inner,
                start.load(Ordering::Relaxed).add(row * columns + column),
                1,
                columns as isize,
                bias.is_some(),
                left.values.as_ptr(),
                left.strides[1] as isize,
                left.strides[0] as isize,
                right.values.as_ptr(),
                right.strides[1] as isize,
                right.strides[0] as isize,
                R::from_f64(1.0),
                R::from_f64(1.0),
                false,
                false,
                false,
                parallelism,
            );
        }
    };
    match in_blocks {
        true => helpers::for_each(work, 0..down * across, compute),
        false => (0..down * across).for_each(compute),
    }
    // SAFETY: the parts cover all `count` elements, and each wrote its own; had one been stopped, this line would not be reached.
    #[expect(unsafe_code, reason = "the vector was filled through its pointer")]
    unsafe {
        out.set_len(count);
    }
    out
}

/// The columns of the result that a block of a small product has. They depend on sizes alone, because the order in which the library adds may depend on them.
pub(super) fn block(multiplications: usize, columns: usize) -> usize {
    let blocks = (multiplications / LEAST).clamp(1, BLOCKS);
    columns.div_ceil(blocks).next_multiple_of(COLUMNS).min(columns)
}

/// The rows and columns of the result that one call computes of a large product: all of them, but where that would last.
fn part(rows: usize, inner: usize, columns: usize) -> (usize, usize) {
    let most = (LARGEST / inner).max(1);
    if rows.saturating_mul(columns) <= most {
        return (rows, columns);
    }
    let width = columns.min(most.isqrt().max(64));
    ((most / width).clamp(1, rows), width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_products_are_cut_and_ordinary_ones_are_not() {
        assert_eq!(part(40_000, 256, 128), (40_000, 128));
        for [rows, inner, columns] in [[65_536; 3], [1, 1 << 20, 1 << 20], [1 << 20, 1 << 20, 1], [3, 1 << 33, 3]] {
            let (height, width) = part(rows, inner, columns);
            let is_small = (1..=rows).contains(&height) && (1..=columns).contains(&width);
            // Where one row or 64 columns alone exceed a part, it is as small as it can be.
            assert!(is_small && (height == 1 || height * width * inner <= LARGEST), "{height} {width}");
        }
    }

    #[test]
    fn small_products_are_shared_out_where_it_pays() {
        assert_eq!(block(9 * 128 * 64, 64), 64);
        assert_eq!(block(81 * 128 * 384, 384), 64);
        assert_eq!(block(IN_BLOCKS, 100), 64);
        assert_eq!(block(IN_BLOCKS, 40), 40);
        assert_eq!(block(IN_BLOCKS, 3), 3);
    }

    fn check_all_arrangements<R: Real + std::fmt::Debug>() {
        // Integers, whose sums are exact in any order.
        let number = |k: usize| R::from_f64((k * 7919 % 13) as f64 - 6.0);
        for [rows, inner, columns] in [
            [1, 1, 1],
            [7, 3000, 90],
            [500, 70, 50],
            [61, 64, 611],
            [97, 1, 4001],
            [300, 200, 177],
            [9, 256, 1024],
            [10, 47, 31],
            [1, 40, 512],
            [16, 8, 2048],
            [7, 24, 1024],
        ] {
            let left: Vec<R> = (0..rows * inner).map(number).collect();
            let right: Vec<R> = (0..inner * columns).map(|k| number(k + 5)).collect();
            let bias: Vec<R> = (0..columns).map(number).collect();
            let turned = |values: &[R], rows: usize, columns: usize| -> Vec<R> {
                (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
            };
            let (left_turned, right_turned) = (turned(&left, rows, inner), turned(&right, inner, columns));
            let element = |at: usize| {
                let term =
                    |sum: R, k: usize| left[at / columns * inner + k].mul_add(right[k * columns + at % columns], sum);
                (0..inner).fold(R::default(), term)
            };
            let expected: Vec<R> = (0..rows * columns).map(element).collect();
            for left in [Operand::new(&left, &[rows, inner], false), Operand::new(&left_turned, &[inner, rows], true)] {
                for right in [
                    Operand::new(&right, &[inner, columns], false),
                    Operand::new(&right_turned, &[columns, inner], true),
                ] {
                    assert_eq!(multiply(left, right, None), expected, "{rows} {inner} {columns}");
                    let with_bias = multiply(left, right, Some(&bias));
                    let is_right = |(at, value): (usize, &R)| *value == expected[at] + bias[at % columns];
                    assert!(with_bias.iter().enumerate().all(is_right), "{rows} {inner} {columns}");
                }
            }
        }
    }

    #[test]
    fn products_in_blocks_equal_plain_loops() {
        check_all_arrangements::<f32>();
        check_all_arrangements::<f64>();
    }
}
