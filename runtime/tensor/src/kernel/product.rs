//! Products of the small and the tall matrices that segments are made of.
//!
//! Library routines are made for large matrices: packing both operands costs them more than the products here take. This one keeps a tile of the
//! result in registers and streams over the inner axis; the right operand is packed in blocks that stay in the nearest cache. Every
//! element is a sum of the sums of these blocks, in the order of the inner axis, whatever the tile it falls into.

use std::ops::Range;

use super::square::{SQUARE, registers, transposed};
use super::{Real, Vectors};
use crate::context::Stop;

/// The rows of a tile. It is two registers wide, and twelve sums at a time hide how long each takes; with more of them compilers keep the tile in memory.
pub(super) const HEIGHT: usize = 6;
/// The columns of a tile in single precision, of which wide vectors hold [`WIDEST`]; in double precision half as many of each.
const WIDE: usize = 16;
const WIDEST: usize = 2 * WIDE;
/// The columns of a tile of narrow vectors in double precision, and where no more than these are left.
const NARROW: usize = 8;

/// With no more rows of the left operand than these, rows of the right one are read where they lie: to pack them would take as long as to multiply.
const FEW: usize = 8;

/// The part of the inner axis that is summed at a time: a packed block of the right operand then stays in the nearest cache.
const DEPTH: usize = 256;

/// Whether a vector has twice as many of these numbers as of those of double precision.
pub(super) const fn is_single<R>() -> bool {
    size_of::<R>() == size_of::<f32>()
}

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

/// `$body` for each row of a tile, of which there are [`HEIGHT`] at most. Rows are named one by one: a tile that a loop goes through is kept in memory from the beginning, as is one whose address is
/// taken, so that what needs a slice of a row should make it of a copy.
macro_rules! rows_of_tile {
    ($tile:expr, |$number:ident, $row:ident| $body:block) => {
        const { assert!($crate::kernel::product::HEIGHT == 6, "all rows are named below") };
        rows_of_tile!($tile, |$number, $row| $body, 0 1 2 3 4 5)
    };
    ($tile:expr, |$number:ident, $row:ident| $body:block, $($place:literal)*) => {$(
        if let Some($row) = $tile.get($place) {
            let $number: usize = $place;
            $body
        }
    )*};
}
pub(super) use rows_of_tile;

/// Room for what is packed, to be used again: products of a few hundred multiplications take less time than memory for it.
#[derive(Default)]
pub(crate) struct Packed<R> {
    widest: Vec<[R; WIDEST]>,
    wide: Vec<[R; WIDE]>,
    narrow: Vec<[R; NARROW]>,
    factors: Vec<[R; HEIGHT]>,
}

/// `out = left right`, row-major, on this thread. It is part of the caller's code, which must be [`vectorised`](super::vectorised) for these vectors.
#[inline(always)]
pub(crate) fn product<R: Real>(
    vectors: Vectors,
    left: Matrix<'_, R>,
    right: Matrix<'_, R>,
    packed: &mut Packed<R>,
    out: &mut [R],
    stop: &Stop,
) {
    assert!(left.columns == right.rows && out.len() == left.rows * right.columns, "shapes were checked");
    if right.rows == 0 {
        out.fill(R::default());
        return;
    }
    let Packed { widest, wide, narrow, factors } = packed;
    let (is_wide, is_single) = (vectors == Vectors::Wide, is_single::<R>());
    for start in (0..right.rows).step_by(DEPTH) {
        let inner = start..(start + DEPTH).min(right.rows);
        if left.column_stride != 1 {
            gather(left, inner.clone(), factors);
        }
        let mut column = 0;
        while column < right.columns {
            stop.check();
            let rest = right.columns - column;
            if rest > WIDE && is_single && is_wide {
                add_panel::<R, WIDEST>(left, right, inner.clone(), column, factors, widest, out);
                column += WIDEST;
            } else if rest > NARROW && (is_single || is_wide) {
                add_panel::<R, WIDE>(left, right, inner.clone(), column, factors, wide, out);
                column += WIDE;
            } else {
                add_panel::<R, NARROW>(left, right, inner.clone(), column, factors, narrow, out);
                column += NARROW;
            }
        }
    }
}

/// Copies fewer than 32 elements, in pieces of fixed size: a call of the library's routine would take longer.
#[inline(always)]
pub(super) fn copy_few<R: Copy>(from: &[R], to: &mut [R]) {
    let mut start = 0;
    macro_rules! piece {
        ($($size:literal)*) => {$(
            if let (Some(from), Some(to)) = (from[start..].first_chunk::<$size>(), to[start..].first_chunk_mut()) {
                *to = *from;
                start += $size;
            }
        )*};
    }
    piece!(16 8 4 2 1);
    debug_assert!(start == from.len() && start == to.len(), "fewer than 32 elements are copied");
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
                None => copy_few(values, &mut factors[tile * count + k][..values.len()]),
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
    let tiles = Tiles { left, inner: inner.clone(), factors, columns: columns.clone(), stride: right.columns };
    if right.column_stride == 1 && columns.len() == WIDTH && left.rows <= FEW {
        let start = inner.start * right.row_stride + column;
        let panel = (0..inner.len()).filter_map(
            #[inline(always)]
            |k| right.values.get(start + k * right.row_stride..).and_then(<[R]>::first_chunk::<WIDTH>),
        );
        tiles.add(panel, out);
    } else {
        pack(right, inner.clone(), columns, panel);
        tiles.add(panel[..inner.len()].iter(), out);
    }
}

/// Copies a block of the right operand side by side. What lies beyond its last column is of no account.
#[inline(always)]
fn pack<R: Real, const WIDTH: usize>(
    right: Matrix<'_, R>,
    inner: Range<usize>,
    columns: Range<usize>,
    panel: &mut Vec<[R; WIDTH]>,
) {
    if panel.len() < inner.len() {
        panel.resize(inner.len(), [R::default(); WIDTH]);
    }
    let panel = &mut panel[..inner.len()];
    if right.column_stride == 1 {
        for (row, k) in panel.iter_mut().zip(inner) {
            let values = &right.values[k * right.row_stride..][columns.clone()];
            match values.first_chunk() {
                Some(values) => *row = *values,
                None => copy_few(values, &mut row[..values.len()]),
            }
        }
    } else {
        let registers = registers();
        let mut start = 0;
        while start < columns.len() {
            let values = &right.values[(columns.start + start) * right.column_stride..];
            let mut k = 0;
            if columns.len() - start >= SQUARE {
                while inner.len() - k >= SQUARE {
                    let rows = std::array::from_fn(
                        #[inline(always)]
                        |column| {
                            let values = &values[column * right.column_stride + inner.start + k..];
                            *values.first_chunk().unwrap_or(&[R::default(); SQUARE])
                        },
                    );
                    for (row, values) in panel[k..k + SQUARE].iter_mut().zip(transposed(rows, registers)) {
                        row[start..start + SQUARE].copy_from_slice(&values);
                    }
                    k += SQUARE;
                }
            }
            for column in 0..SQUARE.min(columns.len() - start) {
                let values = &values[column * right.column_stride..][inner.clone()];
                for (row, value) in panel[k..].iter_mut().zip(&values[k..]) {
                    row[start + column] = *value;
                }
            }
            start += SQUARE;
        }
    }
}

/// Some columns of the result, and what goes into them.
struct Tiles<'a, R> {
    left: Matrix<'a, R>,
    inner: Range<usize>,
    /// The factors of a transposed left operand.
    factors: &'a [[R; HEIGHT]],
    columns: Range<usize>,
    /// The columns of the whole result.
    stride: usize,
}

impl<R: Real> Tiles<'_, R> {
    /// `panel` has a row for each place of the inner axis.
    #[inline(always)]
    fn add<'p, const WIDTH: usize>(self, panel: impl Iterator<Item = &'p [R; WIDTH]> + Clone, out: &mut [R])
    where
        R: 'p,
    {
        for row in (0..self.left.rows).step_by(HEIGHT) {
            // A tile of fixed height is what the compiler keeps in registers.
            match self.left.rows - row {
                1 => self.add_tile::<1, WIDTH>(row, panel.clone(), out),
                2 => self.add_tile::<2, WIDTH>(row, panel.clone(), out),
                3 => self.add_tile::<3, WIDTH>(row, panel.clone(), out),
                4 => self.add_tile::<4, WIDTH>(row, panel.clone(), out),
                5 => self.add_tile::<5, WIDTH>(row, panel.clone(), out),
                _ => self.add_tile::<HEIGHT, WIDTH>(row, panel.clone(), out),
            }
        }
    }

    #[inline(always)]
    fn add_tile<'p, const ROWS: usize, const WIDTH: usize>(
        &self,
        row: usize,
        panel: impl Iterator<Item = &'p [R; WIDTH]>,
        out: &mut [R],
    ) where
        R: 'p,
    {
        let Self { left, inner, factors, columns, stride } = self;
        let is_first = inner.start == 0;
        let totals: [[R; WIDTH]; ROWS] = if left.column_stride == 1 {
            let factors = factors_of_rows(
                inner.len(),
                #[inline(always)]
                |r| &left.values[(row + r) * left.row_stride + inner.start..],
            );
            sums(panel, factors)
        } else {
            let factors = factors[row / HEIGHT * inner.len()..][..inner.len()].iter().map(
                #[inline(always)]
                |factors| match factors.first_chunk() {
                    Some(factors) => *factors,
                    None => unreachable!("a tile has no more rows"),
                },
            );
            sums(panel, factors)
        };
        rows_of_tile!(totals, |r, totals| {
            let values = &mut out[(row + r) * stride..][columns.clone()];
            match values.first_chunk_mut::<WIDTH>() {
                Some(values) if is_first => *values = *totals,
                Some(values) => (0..WIDTH).for_each(
                    #[inline(always)]
                    |c| values[c] += totals[c],
                ),
                None => {
                    let totals = *totals;
                    if is_first {
                        copy_few(&totals[..values.len()], values);
                    } else {
                        for (value, total) in values.iter_mut().zip(&totals) {
                            *value += *total;
                        }
                    }
                }
            }
        });
    }
}

/// The first `count` numbers of some rows, those at one place together. `from(r)` is row `r`, which may go on.
#[inline(always)]
pub(super) fn factors_of_rows<'r, R: Real, const ROWS: usize>(
    count: usize,
    from: impl Fn(usize) -> &'r [R],
) -> impl Iterator<Item = [R; ROWS]> {
    // Rows are cut one by one to one length, which compilers lose sight of in functions of arrays: they would look at it for each number.
    let mut rows: [&[R]; ROWS] = [&[]; ROWS];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = &from(r)[..count];
    }
    (0..count).map(
        #[inline(always)]
        move |k| {
            let mut factors = [R::default(); ROWS];
            for r in 0..ROWS {
                factors[r] = rows[r][k];
            }
            factors
        },
    )
}

/// Sums the products of rows of factors and of the panel. Nothing in the loop can panic: it would keep the totals out of registers.
#[inline(always)]
pub(super) fn sums<'p, R: Real + 'p, const ROWS: usize, const WIDTH: usize>(
    panel: impl Iterator<Item = &'p [R; WIDTH]>,
    factors: impl Iterator<Item = [R; ROWS]>,
) -> [[R; WIDTH]; ROWS] {
    let mut totals = [[R::default(); WIDTH]; ROWS];
    for (values, factors) in panel.zip(factors) {
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
    use crate::kernel::vectorised;

    fn numbers<R: Real>(count: usize, seed: usize) -> Vec<R> {
        (0..count).map(|k| R::from_f64(((k * 7919 + seed * 104_729) % 1009) as f64 / 1009.0 - 0.5)).collect()
    }

    fn check_all_arrangements<R: Real + std::fmt::Debug>() {
        for [m, k, n] in [
            [1, 1, 1],
            [4, 3, 16],
            [5, 2, 17],
            [3, 1, 40],
            [7, 0, 3],
            [9, 33, 40],
            [3, 5, 1],
            [13, 15, 15],
            [6, 600, 18],
            [11, 1, 20],
            [12, 9, 70],
        ] {
            let (a, b) = (numbers::<R>(m * k, 1), numbers::<R>(k * n, 2));
            let zero = R::default();
            let element = |at: usize| {
                let term = |sum: R, t: usize| a[at / n * k + t].mul_add(b[t * n + at % n], sum);
                let block = |start: usize| (start..(start + DEPTH).min(k)).fold(zero, term);
                (0..k).step_by(DEPTH).map(block).fold(zero, |sum, block| sum + block)
            };
            let expected: Vec<R> = (0..m * n).map(element).collect();
            let turned = |values: &[R], rows: usize, columns: usize| -> Vec<R> {
                (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
            };
            let (a_turned, b_turned) = (turned(&a, m, k), turned(&b, k, n));
            for left in [Matrix::new(&a, m, k), Matrix::new(&a_turned, k, m).transposed()] {
                for right in [Matrix::new(&b, k, n), Matrix::new(&b_turned, n, k).transposed()] {
                    let mut packed = Packed::default();
                    // Tiles of each shape, whatever vectors this processor has.
                    for vectors in [Vectors::Narrow, Vectors::Wide] {
                        let mut out = vec![R::from_f64(f64::NAN); m * n];
                        vectorised(
                            #[inline(always)]
                            |_| product(vectors, left, right, &mut packed, &mut out, &Stop::current()),
                        );
                        assert_eq!(out, expected, "{m} {k} {n}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_all_arrangements_equal_plain_loops() {
        check_all_arrangements::<f32>();
        check_all_arrangements::<f64>();
    }
}
