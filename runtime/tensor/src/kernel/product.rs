//! Products of the small and the tall matrices that segments are made of.
//!
//! Library routines are made for large matrices: packing both operands costs them more than the products here take. This one keeps a tile of the
//! result in registers and streams over the inner axis; the right operand is packed in blocks that stay in the nearest cache. Every
//! element is a sum of the sums of these blocks, in the order of the inner axis, whatever the tile it falls into.

use std::ops::Range;

use super::{Real, vectorised};
use crate::context::Stop;

/// The rows of a tile.
const HEIGHT: usize = 4;
/// The columns of a tile. In single precision a tile takes 8 vector registers of 16, in double precision all of them.
const WIDE: usize = 16;
/// The columns of a tile where no more than these are left.
const NARROW: usize = 8;

/// The part of the inner axis that is summed at a time: a packed block of the right operand then stays in the nearest cache.
const DEPTH: usize = 256;

/// A matrix in a slice: element `(i, j)` is at `i * row_stride + j * column_stride`. One of the strides is 1.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, R> {
    values: &'a [R],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, R: Real> Matrix<'a, R> {
    /// Row-major, without gaps.
    pub(crate) fn new(values: &'a [R], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "shapes were checked");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The rows from `start` on, `rows` of them.
    pub(crate) fn strip(self, start: usize, rows: usize) -> Self {
        // A matrix without columns has no values to begin from.
        Self { values: self.values.get(start * self.row_stride..).unwrap_or_default(), rows, ..self }
    }
}

/// `out = left right`, row-major, on this thread.
pub(crate) fn product<R: Real>(left: Matrix<'_, R>, right: Matrix<'_, R>, out: &mut [R], stop: &Stop) {
    assert!(left.columns == right.rows && out.len() == left.rows * right.columns, "shapes were checked");
    if right.rows == 0 {
        out.fill(R::default());
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            let depth = DEPTH.min(right.rows);
            let (mut wide, mut narrow) = (Vec::with_capacity(depth), Vec::new());
            let mut factors = Vec::new();
            for start in (0..right.rows).step_by(DEPTH) {
                let inner = start..(start + DEPTH).min(right.rows);
                if left.column_stride != 1 {
                    gather(left, inner.clone(), &mut factors);
                }
                let mut column = 0;
                while column < right.columns {
                    stop.check();
                    if right.columns - column > NARROW {
                        add_panel::<R, WIDE>(left, right, inner.clone(), column, &factors, &mut wide, out);
                        column += WIDE;
                    } else {
                        add_panel::<R, NARROW>(left, right, inner.clone(), column, &factors, &mut narrow, out);
                        column += NARROW;
                    }
                }
            }
        },
    );
}

/// Brings the factors of each tile of a transposed left operand together: its columns lie as far apart as the rows of the whole are long.
#[inline(always)]
fn gather<R: Real>(left: Matrix<'_, R>, inner: Range<usize>, factors: &mut Vec<[R; HEIGHT]>) {
    let count = inner.len();
    factors.clear();
    factors.resize(left.rows.div_ceil(HEIGHT) * count, [R::default(); HEIGHT]);
    for (k, column) in inner.enumerate() {
        let column = &left.values[column * left.column_stride..][..left.rows];
        for (tile, values) in column.chunks(HEIGHT).enumerate() {
            match values.first_chunk() {
                Some(values) => factors[tile * count + k] = *values,
                None => factors[tile * count + k][..values.len()].copy_from_slice(values),
            }
        }
    }
}

/// Adds to the columns of the result from `column` on what a block of the inner axis gives.
#[inline(always)]
fn add_panel<R: Real, const WIDTH: usize>(
    left: Matrix<'_, R>,
    right: Matrix<'_, R>,
    inner: Range<usize>,
    column: usize,
    factors: &[[R; HEIGHT]],
    panel: &mut Vec<[R; WIDTH]>,
    out: &mut [R],
) {
    let columns = column..(column + WIDTH).min(right.columns);
    pack(right, inner.clone(), columns.clone(), panel);
    for row in (0..left.rows).step_by(HEIGHT) {
        let factors = factors.get(row / HEIGHT * inner.len()..).unwrap_or_default();
        let tile = Tile { left, inner: inner.clone(), row, factors, columns: columns.clone(), stride: right.columns };
        // A tile of fixed height is what the compiler keeps in registers.
        match left.rows - row {
            1 => tile.add::<1, WIDTH>(panel, out),
            2 => tile.add::<2, WIDTH>(panel, out),
            3 => tile.add::<3, WIDTH>(panel, out),
            _ => tile.add::<HEIGHT, WIDTH>(panel, out),
        }
    }
}

/// Copies a block of the right operand side by side, with zeros up to the width of a tile.
#[inline(always)]
fn pack<R: Real, const WIDTH: usize>(
    right: Matrix<'_, R>,
    inner: Range<usize>,
    columns: Range<usize>,
    panel: &mut Vec<[R; WIDTH]>,
) {
    panel.clear();
    panel.resize(inner.len(), [R::default(); WIDTH]);
    if right.column_stride == 1 {
        for (row, k) in panel.iter_mut().zip(inner) {
            let values = &right.values[k * right.row_stride..][columns.clone()];
            match values.first_chunk() {
                Some(values) => *row = *values,
                None => row[..values.len()].copy_from_slice(values),
            }
        }
    } else {
        for (offset, column) in columns.enumerate() {
            let values = &right.values[column * right.column_stride..][inner.clone()];
            for (row, value) in panel.iter_mut().zip(values) {
                row[offset] = *value;
            }
        }
    }
}

/// A tile of the result, and what goes into it.
struct Tile<'a, R> {
    left: Matrix<'a, R>,
    inner: Range<usize>,
    row: usize,
    /// The factors of a transposed left operand.
    factors: &'a [[R; HEIGHT]],
    columns: Range<usize>,
    /// The columns of the whole result.
    stride: usize,
}

impl<R: Real> Tile<'_, R> {
    #[inline(always)]
    fn add<const ROWS: usize, const WIDTH: usize>(self, panel: &[[R; WIDTH]], out: &mut [R]) {
        let Self { left, inner, row, factors, columns, stride } = self;
        let is_first = inner.start == 0;
        let totals: [[R; WIDTH]; ROWS] = if left.column_stride == 1 {
            let rows: [&[R]; ROWS] =
                std::array::from_fn(|r| &left.values[(row + r) * left.row_stride..][inner.clone()]);
            let rows = rows.map(|row| &row[..panel.len()]);
            let factors = (0..panel.len()).map(
                #[inline(always)]
                |k| std::array::from_fn(|r| rows[r][k]),
            );
            sums(panel, factors)
        } else {
            let factors = factors.iter().map(
                #[inline(always)]
                |factors| std::array::from_fn(|r| factors[r]),
            );
            sums(panel, factors)
        };
        for (r, totals) in totals.iter().enumerate() {
            let values = &mut out[(row + r) * stride..][columns.clone()];
            match values.first_chunk_mut::<WIDTH>() {
                Some(values) if is_first => *values = *totals,
                Some(values) => (0..WIDTH).for_each(|c| values[c] += totals[c]),
                None if is_first => values.copy_from_slice(&totals[..values.len()]),
                None => values.iter_mut().zip(totals).for_each(|(value, total)| *value += *total),
            }
        }
    }
}

/// Sums the products of rows of factors and of the panel. Nothing in the loop can panic: it would keep the totals out of registers.
#[inline(always)]
pub(super) fn sums<R: Real, const ROWS: usize, const WIDTH: usize>(
    panel: &[[R; WIDTH]],
    factors: impl Iterator<Item = [R; ROWS]>,
) -> [[R; WIDTH]; ROWS] {
    let mut totals = [[R::default(); WIDTH]; ROWS];
    for (values, factors) in panel.iter().zip(factors) {
        for r in 0..ROWS {
            for c in 0..WIDTH {
                totals[r][c] = factors[r].mul_add(values[c], totals[r][c]);
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f64> {
        (0..count).map(|k| ((k * 7919 + seed * 104_729) % 1009) as f64 / 1009.0 - 0.5).collect()
    }

    #[test]
    fn products_of_all_arrangements_equal_plain_loops() {
        for [m, k, n] in
            [[1, 1, 1], [4, 3, 16], [5, 2, 17], [7, 0, 3], [9, 33, 40], [3, 5, 1], [13, 15, 15], [6, 600, 18]]
        {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let element = |at: usize| {
                let term = |sum: f64, t: usize| a[at / n * k + t].mul_add(b[t * n + at % n], sum);
                (0..k).step_by(DEPTH).map(|start| (start..(start + DEPTH).min(k)).fold(0.0, term)).sum::<f64>()
            };
            let expected: Vec<f64> = (0..m * n).map(element).collect();
            let turned = |values: &[f64], rows: usize, columns: usize| -> Vec<f64> {
                (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
            };
            let (a_turned, b_turned) = (turned(&a, m, k), turned(&b, k, n));
            for left in [Matrix::new(&a, m, k), Matrix::new(&a_turned, k, m).transposed()] {
                for right in [Matrix::new(&b, k, n), Matrix::new(&b_turned, n, k).transposed()] {
                    let mut out = vec![f64::NAN; m * n];
                    product(left, right, &mut out, &Stop::current());
                    assert_eq!(out, expected, "{m} {k} {n}");
                }
            }
        }
    }
}
