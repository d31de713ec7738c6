//! Sums over rows that belong together.
//!
//! Segments with several rows and large blocks go through a matrix product; small ones through loops that the compiler vectorises. Which
//! way is taken depends on sizes alone, and the terms of a sum are always added in the order of the rows.

use std::ops::Range;

use burn_dispatch::DispatchTensor;
use rayon::prelude::*;

use super::dense::{Matrix, product};
use super::{PARALLEL, Real, for_float, vectorised};
use crate::Tensor;
use crate::tensor::from_host;

/// From this many elements in a block, and two rows, a matrix product beats loops.
const PRODUCT: usize = 1 << 10;
/// A large block is computed in strips of this many rows, which may run on several threads.
const STRIP: usize = 256;

/// The rows of each segment, in order.
struct Groups {
    order: Vec<usize>,
    starts: Vec<usize>,
    sorted: bool,
}

impl Groups {
    fn new(segments: &[i64], count: usize) -> Self {
        let sorted = segments.is_sorted();
        let mut starts = vec![0; count + 1];
        segments.iter().for_each(|&segment| starts[segment as usize + 1] += 1);
        (0..count).for_each(|segment| starts[segment + 1] += starts[segment]);
        let mut next = starts.clone();
        let mut order = vec![0; segments.len()];
        for (row, &segment) in segments.iter().enumerate() {
            order[next[segment as usize]] = row;
            next[segment as usize] += 1;
        }
        Self { order, starts, sorted }
    }

    fn rows(&self, segment: usize) -> Range<usize> {
        self.starts[segment]..self.starts[segment + 1]
    }

    /// `values`' rows of `width` elements, grouped; the values themselves if they are in order already.
    fn grouped<'a, R: Real>(&self, values: &'a [R], width: usize) -> std::borrow::Cow<'a, [R]> {
        if self.sorted {
            return values.into();
        }
        self.order.iter().flat_map(|&row| &values[row * width..(row + 1) * width]).copied().collect::<Vec<_>>().into()
    }
}

pub(crate) fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, shape: &[usize; 3]) -> DispatchTensor {
    let &[count, m, n] = shape;
    let (left_host, right_host, segments) = (left.host(), right.host(), segments.host());
    let groups = Groups::new(segments.values(), count);
    let dtype = left.dtype();
    for_float!(dtype, R => {
        let left = groups.grouped::<R>(left_host.values(), m);
        let right = groups.grouped::<R>(right_host.values(), n);
        let mut blocks = vec![R::default(); count * m * n];
        if m * n > 0 {
            let work = groups.order.len() * m * n;
            let one = |(segment, block): (usize, &mut [R])| {
                let rows = groups.rows(segment);
                let (left, right) = (&left[rows.start * m..rows.end * m], &right[rows.start * n..rows.end * n]);
                outer_sum_one(left, right, [rows.len(), m, n], block);
            };
            if work < PARALLEL || count == 1 {
                blocks.chunks_exact_mut(m * n).enumerate().for_each(one);
            } else {
                blocks.par_chunks_exact_mut(m * n).enumerate().for_each(one);
            }
        }
        from_host(blocks, shape, dtype)
    })
}

/// `block = left^T right` for one segment.
fn outer_sum_one<R: Real>(left: &[R], right: &[R], [rows, m, n]: [usize; 3], block: &mut [R]) {
    if m * n >= PRODUCT && rows > 1 {
        let right = Matrix::new(right, rows, n);
        block.par_chunks_mut(STRIP * n).enumerate().for_each(|(strip, out)| {
            let columns = out.len() / n;
            let part = Matrix {
                values: &left[strip * STRIP..],
                rows: columns,
                columns: rows,
                row_stride: 1,
                column_stride: m,
            };
            product(part, right, out);
        });
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for (left, right) in left.chunks_exact(m).zip(right.chunks_exact(n)) {
                for (out, factor) in block.chunks_exact_mut(n).zip(left) {
                    out.iter_mut().zip(right).for_each(|(total, value)| *total = factor.mul_add(*value, *total));
                }
            }
        },
    );
}

/// `out[p] = rows[p] blocks[segment]`, or `rows[p] blocks[segment]^T` if `transposed`.
pub(crate) fn contract(
    rows: &Tensor,
    blocks: &Tensor,
    segments: &Tensor,
    transposed: bool,
    shape: &[usize; 2],
) -> DispatchTensor {
    let &[count, m, n] = blocks.shape() else { unreachable!("the rank was checked") };
    let (rows_host, blocks_host, segments) = (rows.host(), blocks.host(), segments.host());
    let groups = Groups::new(segments.values(), count);
    let (width_in, width_out) = if transposed { (n, m) } else { (m, n) };
    for_float!(rows.dtype(), R => {
        let values = groups.grouped::<R>(rows_host.values(), width_in);
        let blocks = blocks_host.values::<R>();
        let mut results = vec![R::default(); shape.iter().product()];
        if width_in * width_out > 0 {
            // Each segment's rows are one slice of the result.
            let mut parts = Vec::with_capacity(count);
            let mut rest = results.as_mut_slice();
            for segment in 0..count {
                let (part, after) = rest.split_at_mut(groups.rows(segment).len() * width_out);
                parts.push((segment, part));
                rest = after;
            }
            let one = |(segment, out): (usize, &mut [R])| {
                let rows = groups.rows(segment);
                let values = &values[rows.start * width_in..rows.end * width_in];
                let block = &blocks[segment * m * n..(segment + 1) * m * n];
                contract_one(values, block, [rows.len(), m, n], transposed, out);
            };
            if groups.order.len() * m * n < PARALLEL {
                parts.into_iter().for_each(one);
            } else {
                parts.into_par_iter().for_each(one);
            }
        }
        if !groups.sorted {
            let mut scattered = vec![R::default(); results.len()];
            for (&row, values) in groups.order.iter().zip(results.chunks_exact(width_out.max(1))) {
                scattered[row * width_out..(row + 1) * width_out].copy_from_slice(values);
            }
            results = scattered;
        }
        from_host(results, shape, rows.dtype())
    })
}

fn contract_one<R: Real>(values: &[R], block: &[R], [rows, m, n]: [usize; 3], transposed: bool, out: &mut [R]) {
    if m * n >= PRODUCT && rows > 1 {
        let block = Matrix::new(block, m, n);
        if transposed {
            product(Matrix::new(values, rows, n), block.transposed(), out);
        } else {
            product(Matrix::new(values, rows, m), block, out);
        }
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            if transposed {
                for (out, values) in out.chunks_exact_mut(m).zip(values.chunks_exact(n)) {
                    for (out, row) in out.iter_mut().zip(block.chunks_exact(n)) {
                        *out = row.iter().zip(values).fold(R::default(), |sum, (a, b)| a.mul_add(*b, sum));
                    }
                }
            } else {
                for (out, values) in out.chunks_exact_mut(n).zip(values.chunks_exact(m)) {
                    for (factor, row) in values.iter().zip(block.chunks_exact(n)) {
                        out.iter_mut().zip(row).for_each(|(total, value)| *total = factor.mul_add(*value, *total));
                    }
                }
            }
        },
    );
}
