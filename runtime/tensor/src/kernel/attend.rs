//! Attention as a whole, for results that no gradient will be asked for: no weights are kept.
//!
//! Some queries at a time, each in a lane of a register, meet all keys of their segment, so that a softmax needs nothing from other lanes. Each step is a function of its own, because compilers
//! give up on vectors where there is too much code.

use std::hint;
use std::ops::Range;

use smallvec::SmallVec;

use super::attention::{FEW, NARROW, Neighbourhoods, ROWS, WIDE, has_room, tiles};
use super::product::{copy_few, rows_of_tile, sums};
use super::square::{SQUARE, registers, transposed};
use super::{Real, for_float, vectorised};
use crate::Tensor;
use crate::context::Stop;
use crate::tensor::Elements;

/// Some numbers side by side, which no line of a cache cuts: each register would be read in two parts.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line<R, const WIDTH: usize>([R; WIDTH]);

type Lines<R, const WIDTH: usize> = SmallVec<[Line<R, WIDTH>; FEW]>;

fn lines<R: Real, const WIDTH: usize>(count: usize) -> Lines<R, WIDTH> {
    smallvec::smallvec![Line([R::default(); WIDTH]); count]
}

/// Calls `$function::<R, HEIGHT, WIDTH>` for a tile of this height.
macro_rules! for_height {
    ($height:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $height {
            1 => $function::<R, 1, WIDTH>($($argument),*),
            2 => $function::<R, 2, WIDTH>($($argument),*),
            3 => $function::<R, 3, WIDTH>($($argument),*),
            4 => $function::<R, 4, WIDTH>($($argument),*),
            5 => $function::<R, 5, WIDTH>($($argument),*),
            _ => $function::<R, ROWS, WIDTH>($($argument),*),
        }
    };
}

/// `out[i, h] = sum over j of softmax over j (scale * queries[i, h] . keys[j, h] + bias[j]) * values[j, h]` for rows `i` and `j` of each segment. There is a row, and features.
pub(crate) fn attention(inputs: [&Tensor; 4], scale: f64, neighbourhoods: &Neighbourhoods) -> Elements {
    let features = inputs[0].shape()[1];
    let hosts = inputs.map(Tensor::host);
    let (width, stop) = (features / neighbourhoods.heads(), Stop::current());
    for_float!(inputs[0].dtype(), R => {
        let [queries, keys, values, bias] = hosts.each_ref().map(|host| host.values::<R>());
        let work = (2.0 * neighbourhoods.multiplications(features)) as usize;
        let results = neighbourhoods.by_rows::<R>(features, work, #[inline(always)] |vectors, segment, out| {
            let of = Segment {
                queries: neighbourhoods.lines(segment, queries, features),
                keys: neighbourhoods.lines(segment, keys, features),
                values: neighbourhoods.lines(segment, values, features),
                bias: neighbourhoods.rows(segment).map(|row| bias[row]).collect(),
                scale: R::from_f64(scale),
            };
            if of.keys.len() > NARROW && has_room::<R>(vectors) {
                of.attend::<WIDE>(width, out, &stop);
            } else {
                of.attend::<NARROW>(width, out, &stop);
            }
        });
        Elements::new(results)
    })
}

/// The bytes that [`attention`] works in, of rows of `features` numbers of this size.
pub(crate) fn room(features: usize, size: usize, neighbourhoods: &Neighbourhoods) -> usize {
    // Two lines for each row of a segment, and one for each number of a head.
    let lines = neighbourhoods.largest().saturating_mul(2).saturating_add(features / neighbourhoods.heads());
    let threads = rayon::current_num_threads().min(neighbourhoods.segments());
    lines.saturating_mul(WIDE * size).saturating_mul(threads)
}

/// The rows of one segment.
struct Segment<'a, R> {
    queries: SmallVec<[&'a [R]; FEW]>,
    keys: SmallVec<[&'a [R]; FEW]>,
    values: SmallVec<[&'a [R]; FEW]>,
    bias: SmallVec<[R; FEW]>,
    scale: R,
}

impl<R: Real> Segment<'_, R> {
    /// Writes all rows of `out`, in heads of `width` numbers. `WIDTH` queries are worked on together.
    #[inline(always)]
    fn attend<const WIDTH: usize>(&self, width: usize, out: &mut [R], stop: &Stop) {
        let size = self.keys.len();
        let features = self.keys.first().map_or(0, |row| row.len());
        let (mut turned, mut weights, mut panel) = (lines::<R, WIDTH>(width), lines(size), lines(size));
        for head in (0..features).step_by(width) {
            let columns = head..head + width;
            for first in (0..size).step_by(WIDTH) {
                stop.check();
                let queries = first..size.min(first + WIDTH);
                turn(&self.queries[queries.clone()], columns.clone(), &mut turned);
                multiply(&self.keys, columns.clone(), &turned, &mut weights);
                let shares = soften(&mut weights, &self.bias, self.scale);
                for start in columns.clone().step_by(WIDTH) {
                    let part = start..columns.end.min(start + WIDTH);
                    collect(&self.values, part.clone(), &mut panel);
                    mix(&weights, &panel, &shares, part, features, &mut out[first * features..queries.end * features]);
                }
            }
        }
    }
}

/// Some columns of rows, of which there are one to `WIDTH`, as lines: what the rows have in one column lies side by side. What lies beyond the last row is of no account.
#[inline(never)]
fn turn<R: Real, const WIDTH: usize>(rows: &[&[R]], columns: Range<usize>, out: &mut [Line<R, WIDTH>]) {
    vectorised(
        #[inline(always)]
        |_| {
            let (registers, last, count) = (registers(), rows.len() - 1, columns.len() / SQUARE);
            // What would lie beyond the last row is that row once more.
            let mut cut: [&[R]; WIDTH] = [&[]; WIDTH];
            let mut squares: [&[[R; SQUARE]]; WIDTH] = [&[]; WIDTH];
            for (row, (cut, squares)) in cut.iter_mut().zip(&mut squares).enumerate() {
                *cut = &rows[row.min(last)][columns.clone()];
                *squares = &cut.as_chunks().0[..count];
            }
            let (blocks, rest) = out.split_at_mut(count * SQUARE);
            for (k, block) in blocks.as_chunks_mut::<SQUARE>().0.iter_mut().enumerate() {
                // Lines are written as a whole: a processor waits where it reads at once what was written in pieces.
                let mut lines = [[R::default(); WIDTH]; SQUARE];
                for side in 0..WIDTH / SQUARE {
                    if side * SQUARE > last {
                        continue;
                    }
                    let mut square = [[R::default(); SQUARE]; SQUARE];
                    for row in 0..SQUARE {
                        square[row] = squares[side * SQUARE + row][k];
                    }
                    let square = transposed(square, registers);
                    for line in 0..SQUARE {
                        for lane in 0..SQUARE {
                            lines[line][side * SQUARE + lane] = square[line][lane];
                        }
                    }
                }
                for line in 0..SQUARE {
                    block[line] = Line(lines[line]);
                }
            }
            for (k, Line(line)) in (count * SQUARE..columns.len()).zip(rest) {
                for lane in 0..WIDTH {
                    line[lane] = cut[lane][k];
                }
            }
        },
    );
}

/// `out[j][lane] = sum over d of rows[j][d] * turned[d][lane]`.
#[inline(never)]
fn multiply<R: Real, const WIDTH: usize>(
    rows: &[&[R]],
    columns: Range<usize>,
    turned: &[Line<R, WIDTH>],
    out: &mut [Line<R, WIDTH>],
) {
    vectorised(
        #[inline(always)]
        |_| {
            for tile in tiles(rows.len()) {
                let (rows, out) = (&rows[tile.clone()], &mut out[tile.clone()]);
                for_height!(tile.len(), multiply_tile(rows, columns.clone(), turned, out));
            }
        },
    );
}

#[inline(always)]
fn multiply_tile<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    rows: &[&[R]],
    columns: Range<usize>,
    turned: &[Line<R, WIDTH>],
    out: &mut [Line<R, WIDTH>],
) {
    let count = turned.len();
    // Rows are cut one by one to one length, which compilers lose sight of in functions of arrays: they would look at it for each number.
    let mut cut: [&[R]; HEIGHT] = [&[]; HEIGHT];
    for (row, own) in cut.iter_mut().enumerate() {
        *own = &rows[row][columns.clone()][..count];
    }
    let factors = (0..count).map(
        #[inline(always)]
        |k| {
            let mut factors = [R::default(); HEIGHT];
            for row in 0..HEIGHT {
                factors[row] = cut[row][k];
            }
            factors
        },
    );
    let tile = sums::<R, HEIGHT, WIDTH>(numbers(turned), factors);
    rows_of_tile!(tile, |row, values| {
        // Where compilers see that lines follow each other they make registers of the end of one and the beginning of the next.
        let Line(line) = hint::black_box(&mut out[row]);
        *line = *values;
    });
}

/// What [`sums`] goes through.
#[inline(always)]
fn numbers<R, const WIDTH: usize>(lines: &[Line<R, WIDTH>]) -> impl Iterator<Item = &[R; WIDTH]> {
    lines.iter().map(
        #[inline(always)]
        |Line(numbers)| numbers,
    )
}

/// `lines[j]`, of scores before, becomes the exponential that the softmax over `j` has, for each lane; what comes back is what all of them are multiplied by then.
#[inline(never)]
fn soften<R: Real, const WIDTH: usize>(lines: &mut [Line<R, WIDTH>], biases: &[R], scale: R) -> [R; WIDTH] {
    vectorised(
        #[inline(always)]
        |_| {
            let mut largest = [R::from_f64(f64::NEG_INFINITY); WIDTH];
            for (Line(line), bias) in lines.iter_mut().zip(biases) {
                let mut scores = *line;
                scores.iter_mut().for_each(|score| *score = *score * scale + *bias);
                for lane in 0..WIDTH {
                    largest[lane] = if scores[lane] > largest[lane] { scores[lane] } else { largest[lane] };
                }
                *line = scores;
            }
            let mut total = [R::default(); WIDTH];
            for Line(line) in lines {
                let mut values = *line;
                for lane in 0..WIDTH {
                    values[lane] = (values[lane] - largest[lane]).exp_of_negative();
                }
                for lane in 0..WIDTH {
                    total[lane] += values[lane];
                }
                *line = values;
            }
            let one = R::from_f64(1.0);
            total.iter_mut().for_each(|total| *total = one / *total);
            total
        },
    )
}

/// Some columns of rows, at most `WIDTH`, side by side.
#[inline(always)]
fn collect<R: Real, const WIDTH: usize>(rows: &[&[R]], columns: Range<usize>, out: &mut [Line<R, WIDTH>]) {
    for (Line(line), row) in out.iter_mut().zip(rows) {
        let values = &row[columns.clone()];
        match values.first_chunk() {
            Some(values) => *line = *values,
            None => copy_few(values, &mut line[..values.len()]),
        }
    }
}

/// `out[lane][columns] = shares[lane] * sum over j of weights[j][lane] * panel[j]`, in rows of `features` numbers, of which there are no more than lanes.
#[inline(never)]
fn mix<R: Real, const WIDTH: usize>(
    weights: &[Line<R, WIDTH>],
    panel: &[Line<R, WIDTH>],
    shares: &[R; WIDTH],
    columns: Range<usize>,
    features: usize,
    out: &mut [R],
) {
    vectorised(
        #[inline(always)]
        |_| {
            for tile in tiles(out.len() / features) {
                let (first, out) = (tile.start, &mut out[tile.start * features..]);
                for_height!(tile.len(), mix_tile(weights, panel, (first, shares), columns.clone(), features, out));
            }
        },
    );
}

#[inline(always)]
fn mix_tile<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    weights: &[Line<R, WIDTH>],
    panel: &[Line<R, WIDTH>],
    (first, shares): (usize, &[R; WIDTH]),
    columns: Range<usize>,
    features: usize,
    out: &mut [R],
) {
    let factors = weights.iter().filter_map(
        #[inline(always)]
        |Line(weights)| weights.get(first..)?.first_chunk().copied(),
    );
    let tile = sums::<R, HEIGHT, WIDTH>(numbers(panel), factors);
    rows_of_tile!(tile, |row, values| {
        let (mut values, share) = (*values, shares[first + row]);
        values.iter_mut().for_each(|value| *value *= share);
        let out = &mut out[row * features..][columns.clone()];
        match out.first_chunk_mut() {
            Some(out) => *out = values,
            None => copy_few(&values[..out.len()], out),
        }
    });
}
