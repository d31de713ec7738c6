//! Products of few rows with many weights, such as layers have of a single molecule.
//!
//! Most of their time goes by until the weights are there, and the library reads some of them badly: the columns of a transposed operand number by number, and rows whose
//! distance is a multiple of 4 KiB, which the nearest cache can hold eight of, strip by strip. Here both are read in the order in which they lie in memory.

use std::array;

use super::dot::{Rows, dots};
use super::fill::in_uneven_parts;
use super::product::is_single;
use super::real::{LINE, fetch};
use super::{MULTIPLICATIONS, Real, Vectors, matrix, vectorised};

/// With more rows than these the library is as fast, because bringing weights into order pays.
const MOST_ROWS_OF_DOTS: usize = 40;
const MOST_ROWS_OF_STRIPS: usize = 16;
/// The least numbers in a row that are worth being summed in lanes.
const LEAST: usize = 32;
/// The rows of weights that are read side by side where their distance is that of [`ALIKE`].
const DEPTH: usize = 8;
/// The most rows of a tile over a strip of weights.
const HEIGHT: usize = 6;
/// The columns of the widest strip.
const WIDTH: usize = 32;
/// The least columns of a block that is read in strips: pieces of a row that are much shorter do not let the processor see what it will need next.
const LEAST_COLUMNS: usize = 256;
/// So many columns before they are multiplied, weights of strips are asked for.
const AHEAD: usize = 64;
/// Addresses that lie so many bytes apart share a place in the nearest cache.
const ALIKE: usize = 4096;

/// Whether these products are made here: of `inner` numbers in each of `rows` rows with weights that are given as `[inner, columns]`, or transposed.
pub(super) fn is_for<R>([rows, inner, columns]: [usize; 3], is_transposed: bool) -> bool {
    if is_transposed {
        return rows <= MOST_ROWS_OF_DOTS && inner >= LEAST;
    }
    let is_even = inner.is_multiple_of(DEPTH) && columns.is_multiple_of(WIDTH);
    rows <= MOST_ROWS_OF_STRIPS && is_even && (columns * size_of::<R>()).is_multiple_of(ALIKE)
}

/// `left right + bias`, in blocks of columns that threads share. `right` has the rows of the operand in memory: `[columns, inner]` if it is transposed. The sizes
/// are such as [`is_for`] said.
pub(super) fn product<R: Real>(
    left: &[R],
    (right, is_transposed): (&[R], bool),
    bias: Option<&[R]>,
    [rows, inner, columns]: [usize; 3],
) -> Vec<R> {
    let least = if is_transposed { 1 } else { LEAST_COLUMNS };
    let block = matrix::block(rows * inner * columns, columns).max(least).min(columns);
    let tiles = is_transposed.then(|| {
        vectorised(
            #[inline(always)]
            |vectors| Rows::new(vectors, left, inner),
        )
    });
    let blocks = || (0..columns).step_by(block).map(|start| start..(start + block).min(columns));
    let values = in_uneven_parts(
        blocks().map(|columns| rows * columns.len()),
        rows * inner * columns / MULTIPLICATIONS,
        #[inline(always)]
        |vectors, number, out: &mut [R]| {
            let start = number * block;
            let count = out.len() / rows;
            if let Some(tiles) = &tiles {
                dots(vectors, tiles, &right[start * inner..][..count * inner], out);
            } else {
                // Two registers of each row of weights.
                let right = &right[start..];
                match (vectors, is_single::<R>()) {
                    (Vectors::Wide, true) => strips::<R, 32>(left, right, [inner, columns], out),
                    (Vectors::Wide, false) | (Vectors::Narrow, true) => {
                        strips::<R, 16>(left, right, [inner, columns], out);
                    }
                    (Vectors::Narrow, false) => strips::<R, 8>(left, right, [inner, columns], out),
                }
            }
        },
    );
    if block >= columns && bias.is_none() {
        return values;
    }
    // Blocks lie one after another.
    let mut out = Vec::with_capacity(values.len());
    for row in 0..rows {
        for columns in blocks() {
            let values = &values[columns.start * rows + row * columns.len()..][..columns.len()];
            match bias {
                Some(bias) => out.extend(values.iter().zip(&bias[columns]).map(|(value, bias)| *value + *bias)),
                None => out.extend_from_slice(values),
            }
        }
    }
    out
}

/// `left right`, where `right` begins at the first column that is asked for, of `columns` in all. Some rows of weights are read side by side from front to back, and what they give is added
/// to sums that are kept strip by strip.
#[inline(always)]
fn strips<R: Real, const WIDTH: usize>(left: &[R], right: &[R], [inner, columns]: [usize; 2], out: &mut [R]) {
    let rows = left.len() / inner;
    let count = out.len() / rows;
    let mut sums = vec![[R::default(); WIDTH]; out.len() / WIDTH];
    for start in (0..inner).step_by(DEPTH) {
        for (strip, sums) in sums.chunks_exact_mut(rows).enumerate() {
            let place = strip * WIDTH + AHEAD;
            // After the last column of this block come its first ones, of the rows that are next.
            let place = if place < count { place } else { place - count + DEPTH * columns };
            for k in 0..DEPTH {
                for line in (0..WIDTH).step_by(LINE / size_of::<R>()) {
                    fetch(right, (start + k) * columns + place + line);
                }
            }
            let weights: [&[R; WIDTH]; DEPTH] = array::from_fn(
                #[inline(always)]
                |k| chunk(&right[(start + k) * columns + strip * WIDTH..]),
            );
            let mut row = 0;
            while row < rows {
                let rest = rows - row;
                let height = match rest {
                    ..=HEIGHT => rest,
                    rest if rest < 2 * HEIGHT => rest.div_ceil(2),
                    _ => HEIGHT,
                };
                let (left, sums) = (&left[row * inner + start..], &mut sums[row..]);
                match height {
                    1 => add_strip::<R, WIDTH, 1>(left, inner, weights, sums),
                    2 => add_strip::<R, WIDTH, 2>(left, inner, weights, sums),
                    3 => add_strip::<R, WIDTH, 3>(left, inner, weights, sums),
                    4 => add_strip::<R, WIDTH, 4>(left, inner, weights, sums),
                    5 => add_strip::<R, WIDTH, 5>(left, inner, weights, sums),
                    _ => add_strip::<R, WIDTH, HEIGHT>(left, inner, weights, sums),
                }
                row += height;
            }
        }
    }
    for (strip, sums) in sums.chunks_exact(rows).enumerate() {
        for (row, sums) in sums.iter().enumerate() {
            out[row * count + strip * WIDTH..][..WIDTH].copy_from_slice(sums);
        }
    }
}

#[inline(always)]
fn add_strip<R: Real, const WIDTH: usize, const ROWS: usize>(
    left: &[R],
    stride: usize,
    weights: [&[R; WIDTH]; DEPTH],
    sums: &mut [[R; WIDTH]],
) {
    let factors: [&[R; DEPTH]; ROWS] = array::from_fn(
        #[inline(always)]
        |row| chunk(&left[row * stride..]),
    );
    let Some(sums) = sums.first_chunk_mut::<ROWS>() else { unreachable!("there are so many rows") };
    let mut totals = *sums;
    for k in 0..DEPTH {
        let weights = *weights[k];
        for row in 0..ROWS {
            for column in 0..WIDTH {
                totals[row][column] = factors[row][k].mul_add(weights[column], totals[row][column]);
            }
        }
    }
    *sums = totals;
}

#[inline(always)]
fn chunk<R, const SIZE: usize>(values: &[R]) -> &[R; SIZE] {
    values.first_chunk().expect("operands are cut along these sizes")
}
