//! Attention within segments: products of the rows of each segment with one another, and softmax over them.
//!
//! A *matrix of weights* has one entry for each head and each pair of rows of one segment. It is stored as one row of numbers: segment by segment,
//! and within a segment `[heads, rows, rows]`, row-major. No entry is padding, however much the segments differ in size.

use std::array;
use std::ops::Range;

use smallvec::SmallVec;

use super::fill::in_uneven_parts;
use super::product::{HEIGHT, copy_few, factors_of_rows, is_single, sums};
use super::real::{LINE, fetch};
use super::segment::Groups;
use super::square::{SQUARE, registers, transposed};
use super::{Real, Vectors, for_float, softmax};
use crate::Tensor;
use crate::context::Stop;
use crate::memory::Reservation;
use crate::tensor::Elements;

/// The most rows that are worked on together, which share what is read.
const ROWS: usize = HEIGHT;
/// The numbers in each of these rows that are worked on together.
const WIDE: usize = 16;
/// The same of narrow vectors in double precision, and where there are few.
const NARROW: usize = 8;

/// Segments of so many rows need no memory of their own for where their rows lie.
const FEW: usize = 16;

/// The most bytes of a segment that are asked for before it is worked on, so that they have room beside those of the one before in the nearest cache.
const AHEAD: usize = 8192;

/// Which rows attend to one another.
#[derive(Debug)]
pub(crate) struct Neighbourhoods {
    groups: Groups,
    heads: usize,
    /// Where the entries of each segment begin, and where the last one's end.
    starts: Vec<usize>,
    /// Counts the tables for as long as they are kept.
    _bytes: Reservation,
}

impl Neighbourhoods {
    /// None if there are more entries than can be counted. `bytes` are those of the tables.
    pub(crate) fn new(segments: &Tensor, count: usize, heads: usize, bytes: Reservation) -> Option<Self> {
        let groups = Groups::new(segments.host().values(), count);
        let mut starts = Vec::with_capacity(count + 1);
        let mut end = 0_usize;
        starts.push(end);
        for segment in 0..count {
            let rows = groups.rows(segment).len();
            end = end.checked_add(rows.checked_mul(rows)?.checked_mul(heads)?)?;
            starts.push(end);
        }
        Some(Self { groups, heads, starts, _bytes: bytes })
    }

    /// The number of entries of a matrix of weights.
    pub(crate) fn entries(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// How many multiplications it takes to go through all pairs of rows of `features` elements.
    pub(crate) fn multiplications(&self, features: usize) -> f64 {
        self.entries() as f64 / self.heads as f64 * features as f64
    }

    fn segments(&self) -> usize {
        self.starts.len() - 1
    }

    fn size(&self, segment: usize) -> usize {
        self.groups.rows(segment).len()
    }

    fn range(&self, segment: usize) -> Range<usize> {
        self.starts[segment]..self.starts[segment + 1]
    }

    /// The row at each place of a segment.
    fn rows(&self, segment: usize) -> impl Iterator<Item = usize> + '_ {
        self.groups.rows(segment).map(|place| self.groups.row(place))
    }

    /// The `width` values of each row of a segment. Those of the next one are asked for: heads take pieces of all rows in turn, in which the processor does not see what comes.
    fn lines<'a, R>(&self, segment: usize, values: &'a [R], width: usize) -> SmallVec<[&'a [R]; FEW]> {
        let next = segment + 1;
        if next < self.segments() && self.size(next) * width * size_of::<R>() <= AHEAD {
            for row in self.rows(next) {
                (0..width).step_by(LINE / size_of::<R>()).for_each(|place| fetch(values, row * width + place));
            }
        }
        self.rows(segment).map(|row| &values[row * width..][..width]).collect()
    }

    /// A matrix of weights, each segment's part filled on its own.
    fn weights<R: Real>(&self, work: usize, fill: impl Fn(Vectors, usize, &mut [R]) + Send + Sync) -> Vec<R> {
        in_uneven_parts((0..self.segments()).map(|segment| self.range(segment).len()), work, fill)
    }

    /// Rows of `width` numbers, each segment's filled on their own, in the order of its places.
    fn by_rows<R: Real>(
        &self,
        width: usize,
        work: usize,
        fill: impl Fn(Vectors, usize, &mut [R]) + Send + Sync,
    ) -> Vec<R> {
        let sizes = (0..self.segments()).map(|segment| self.size(segment) * width);
        self.groups.scattered(in_uneven_parts(sizes, work, fill), width)
    }
}

/// `out[h, i, j] = sum over d of left[i, h, d] * right[j, h, d]` for rows `i` and `j` of each segment; `left` and `right` are `[rows, heads * width]`.
pub(crate) fn scores(left: &Tensor, right: &Tensor, neighbourhoods: &Neighbourhoods) -> Elements {
    let (features, dtype) = (left.shape()[1], left.dtype());
    let (left_host, right_host) = (left.host(), right.host());
    let (width, stop) = (features / neighbourhoods.heads, Stop::current());
    for_float!(dtype, R => {
        let work = neighbourhoods.entries().saturating_mul(width);
        let values = neighbourhoods.weights::<R>(work, #[inline(always)] |vectors, segment, part| {
            let left = neighbourhoods.lines(segment, left_host.values::<R>(), features);
            let right = neighbourhoods.lines(segment, right_host.values::<R>(), features);
            if left.len() > NARROW && are_wide::<R>(vectors, left.len()) {
                scores_of_segment::<R, WIDE>(&left, &right, width, part, &stop);
            } else {
                scores_of_segment::<R, NARROW>(&left, &right, width, part, &stop);
            }
        });
        Elements::new(values)
    })
}

/// Whether tiles of [`WIDE`] numbers in each row are the faster ones for a segment of so many rows. In double precision their sums are stored at each step, although there are registers for
/// them; that pays only where narrow tiles would take what the segment has in two turns.
#[inline(always)]
fn are_wide<R>(vectors: Vectors, rows: usize) -> bool {
    is_single::<R>() || vectors == Vectors::Wide && rows <= WIDE
}

/// For each head the products of its columns in all rows of `left` with those in all rows of `right`, `WIDTH` of which are worked on together.
#[inline(always)]
fn scores_of_segment<R: Real, const WIDTH: usize>(
    left: &[&[R]],
    right: &[&[R]],
    width: usize,
    out: &mut [R],
    stop: &Stop,
) {
    let size = left.len();
    let mut panel = vec![[R::default(); WIDTH]; width];
    for (head, out) in out.chunks_exact_mut((size * size).max(1)).enumerate() {
        let columns = head * width..(head + 1) * width;
        for first in (0..size).step_by(WIDTH) {
            stop.check();
            turn(&right[first..size.min(first + WIDTH)], columns.clone(), &mut panel);
            for rows in tiles(size) {
                let (left, out) = (&left[rows.clone()], &mut out[rows.start * size + first..]);
                let (columns, panel, count) = (columns.clone(), &panel, size - first);
                match rows.len() {
                    1 => store(products::<R, 1, WIDTH>(left, columns, panel), out, count, size),
                    2 => store(products::<R, 2, WIDTH>(left, columns, panel), out, count, size),
                    3 => store(products::<R, 3, WIDTH>(left, columns, panel), out, count, size),
                    4 => store(products::<R, 4, WIDTH>(left, columns, panel), out, count, size),
                    5 => store(products::<R, 5, WIDTH>(left, columns, panel), out, count, size),
                    _ => store(products::<R, ROWS, WIDTH>(left, columns, panel), out, count, size),
                }
            }
        }
    }
}

/// The products of some columns of rows with those of `panel`, which has them one below another.
#[inline(always)]
fn products<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    left: &[&[R]],
    columns: Range<usize>,
    panel: &[[R; WIDTH]],
) -> [[R; WIDTH]; HEIGHT] {
    let factors = factors_of_rows(
        panel.len(),
        #[inline(always)]
        |row| &left[row][columns.clone()],
    );
    sums(panel.iter(), factors)
}

/// Some columns of rows as rows of `panel`: what the rows, at most `WIDTH` of them, have in one column lies side by side.
#[inline(always)]
fn turn<R: Real, const WIDTH: usize>(rows: &[&[R]], columns: Range<usize>, panel: &mut [[R; WIDTH]]) {
    let registers = registers();
    let whole = columns.len() - columns.len() % SQUARE;
    for (side, rows) in rows.chunks(SQUARE).enumerate() {
        for start in (0..whole).step_by(SQUARE) {
            // What lies beyond the last row is of no account.
            let square = array::from_fn(
                #[inline(always)]
                |row| {
                    let values = rows.get(row).and_then(
                        #[inline(always)]
                        |row| row.get(columns.start + start..)?.first_chunk(),
                    );
                    values.copied().unwrap_or_default()
                },
            );
            for (row, values) in panel[start..].iter_mut().zip(transposed(square, registers)) {
                row[side * SQUARE..][..SQUARE].copy_from_slice(&values);
            }
        }
        for (k, row) in panel.iter_mut().enumerate().skip(whole) {
            row[side * SQUARE..].iter_mut().zip(rows).for_each(|(value, row)| *value = row[columns.start + k]);
        }
    }
}

/// `out[i, h, d] = sum over j of weights[h, i, j] * rows[j, h, d]`, or with `transposed` the sum over `i` of `weights[h, i, j] * rows[i, h, d]`.
pub(crate) fn mix(weights: &Tensor, rows: &Tensor, neighbourhoods: &Neighbourhoods, transposed: bool) -> Elements {
    let features = rows.shape()[1];
    let (width, stop) = (features / neighbourhoods.heads, Stop::current());
    let (weights_host, rows_host) = (weights.host(), rows.host());
    for_float!(rows.dtype(), R => {
        let all_weights = weights_host.values::<R>();
        let work = neighbourhoods.entries().saturating_mul(width);
        let results = neighbourhoods.by_rows::<R>(features, work, #[inline(always)] |vectors, segment, part| {
            let rows = neighbourhoods.lines(segment, rows_host.values::<R>(), features);
            let weights = &all_weights[neighbourhoods.range(segment)];
            if width.is_multiple_of(WIDE) && are_wide::<R>(vectors, rows.len()) {
                mix_of_segment::<R, WIDE>(weights, &rows, width, transposed, part, &stop);
            } else {
                mix_of_segment::<R, NARROW>(weights, &rows, width, transposed, part, &stop);
            }
        });
        Elements::new(results)
    })
}

/// For each head the weighted sums of its columns in all rows, `WIDTH` of which are worked on together.
#[inline(always)]
fn mix_of_segment<R: Real, const WIDTH: usize>(
    weights: &[R],
    rows: &[&[R]],
    width: usize,
    transposed: bool,
    out: &mut [R],
    stop: &Stop,
) {
    let (size, features) = (rows.len(), rows.first().map_or(0, |row| row.len()));
    let mut panel = vec![[R::default(); WIDTH]; size];
    for (head, weights) in weights.chunks_exact((size * size).max(1)).enumerate() {
        let columns = head * width..(head + 1) * width;
        for start in columns.clone().step_by(WIDTH) {
            stop.check();
            let count = WIDTH.min(columns.end - start);
            for (line, row) in panel.iter_mut().zip(rows) {
                let values = &row[start..start + count];
                match values.first_chunk() {
                    Some(values) => *line = *values,
                    None => copy_few(values, &mut line[..count]),
                }
            }
            for tile in tiles(size) {
                let (first, panel, out) = (tile.start, &panel, &mut out[tile.start * features + start..]);
                match (tile.len(), transposed) {
                    (1, false) => store(along::<R, 1, WIDTH>(weights, first, panel), out, count, features),
                    (2, false) => store(along::<R, 2, WIDTH>(weights, first, panel), out, count, features),
                    (3, false) => store(along::<R, 3, WIDTH>(weights, first, panel), out, count, features),
                    (4, false) => store(along::<R, 4, WIDTH>(weights, first, panel), out, count, features),
                    (5, false) => store(along::<R, 5, WIDTH>(weights, first, panel), out, count, features),
                    (_, false) => store(along::<R, ROWS, WIDTH>(weights, first, panel), out, count, features),
                    (1, true) => store(across::<R, 1, WIDTH>(weights, first, panel), out, count, features),
                    (2, true) => store(across::<R, 2, WIDTH>(weights, first, panel), out, count, features),
                    (3, true) => store(across::<R, 3, WIDTH>(weights, first, panel), out, count, features),
                    (4, true) => store(across::<R, 4, WIDTH>(weights, first, panel), out, count, features),
                    (5, true) => store(across::<R, 5, WIDTH>(weights, first, panel), out, count, features),
                    (_, true) => store(across::<R, ROWS, WIDTH>(weights, first, panel), out, count, features),
                }
            }
        }
    }
}

/// Sums of the rows of `panel`, weighted by the numbers in each of some rows of a square of weights.
#[inline(always)]
fn along<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    weights: &[R],
    first: usize,
    panel: &[[R; WIDTH]],
) -> [[R; WIDTH]; HEIGHT] {
    let factors = factors_of_rows(
        panel.len(),
        #[inline(always)]
        |row| &weights[(first + row) * panel.len()..],
    );
    sums(panel.iter(), factors)
}

/// The same with the numbers in some columns of the square.
#[inline(always)]
fn across<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    weights: &[R],
    first: usize,
    panel: &[[R; WIDTH]],
) -> [[R; WIDTH]; HEIGHT] {
    let rows = weights.chunks_exact(panel.len());
    sums(
        panel.iter(),
        rows.filter_map(
            #[inline(always)]
            |row| row.get(first..)?.first_chunk().copied(),
        ),
    )
}

/// The rows of a segment in tiles of about the same height.
#[inline(always)]
fn tiles(size: usize) -> impl Iterator<Item = Range<usize>> {
    let height = size.div_ceil(size.div_ceil(ROWS).max(1)).max(1);
    (0..size).step_by(height).map(move |start| start..size.min(start + height))
}

/// Writes a tile, or the first `count` columns of it if it has more, into rows of `out` that are `stride` apart.
#[inline(always)]
fn store<R: Real, const HEIGHT: usize, const WIDTH: usize>(
    tile: [[R; WIDTH]; HEIGHT],
    out: &mut [R],
    count: usize,
    stride: usize,
) {
    let count = count.min(WIDTH);
    for (row, values) in tile.iter().enumerate() {
        let out = &mut out[row * stride..];
        match out.first_chunk_mut() {
            Some(out) if count == WIDTH => *out = *values,
            _ => copy_few(&values[..count], &mut out[..count]),
        }
    }
}

/// `out[h, i, j] = values[j]`.
pub(crate) fn columns(values: &Tensor, neighbourhoods: &Neighbourhoods) -> Elements {
    let host = values.host();
    for_float!(values.dtype(), R => {
        let values_of_rows = host.values::<R>();
        let weights = neighbourhoods.weights::<R>(0, #[inline(always)] |_, segment, part| {
            let row: Vec<R> = neighbourhoods.rows(segment).map(|row| values_of_rows[row]).collect();
            for out in part.chunks_exact_mut(row.len().max(1)) {
                if row.len() < WIDE { copy_few(&row, out) } else { out.copy_from_slice(&row) }
            }
        });
        Elements::new(weights)
    })
}

/// The transpose of [`columns`]: `out[j]` is the sum over `h` and `i` of `weights[h, i, j]`.
pub(crate) fn column_sums(weights: &Tensor, neighbourhoods: &Neighbourhoods) -> Elements {
    let host = weights.host();
    for_float!(weights.dtype(), R => {
        let weights_values = host.values::<R>();
        let sums = neighbourhoods.by_rows::<R>(1, 0, #[inline(always)] |_, segment, part| {
            for row in weights_values[neighbourhoods.range(segment)].chunks_exact(part.len().max(1)) {
                part.iter_mut().zip(row).for_each(|(sum, weight)| *sum += *weight);
            }
        });
        Elements::new(sums)
    })
}

/// Calls `row` with each row of a matrix of weights, and the same rows of others.
fn for_each_row<R: Real, const N: usize>(
    inputs: [&[R]; N],
    neighbourhoods: &Neighbourhoods,
    row: impl Fn([&[R]; N], &mut [R]) + Send + Sync,
) -> Vec<R> {
    neighbourhoods.weights::<R>(
        neighbourhoods.entries(),
        #[inline(always)]
        |_, segment, part| {
            let size = neighbourhoods.size(segment);
            let range = neighbourhoods.range(segment);
            for (k, out) in part.chunks_exact_mut(size.max(1)).enumerate() {
                row(inputs.map(|input| &input[range.start + k * size..][..size]), out);
            }
        },
    )
}

/// The sum of a row, in a fixed order.
#[inline(always)]
fn total<R: Real>(values: impl Iterator<Item = R>) -> R {
    values.fold(
        R::default(),
        #[inline(always)]
        |sum, value| sum + value,
    )
}

/// Softmax of every row, whose numbers are multiplied by `scale` first, and moved by the bias of the row that they are of: the softmax over `j` of
/// `scale * scores[h, i, j] + bias[j]`.
pub(crate) fn softmax(scores: &Tensor, bias: &Tensor, scale: f64, neighbourhoods: &Neighbourhoods) -> Elements {
    let (scores_host, bias_host, stop) = (scores.host(), bias.host(), Stop::current());
    for_float!(scores.dtype(), R => {
        let (all_scores, bias, scale) = (scores_host.values::<R>(), bias_host.values::<R>(), R::from_f64(scale));
        let values = neighbourhoods.weights::<R>(neighbourhoods.entries(), #[inline(always)] |_, segment, part| {
            let bias: Vec<R> = neighbourhoods.rows(segment).map(|row| bias[row]).collect();
            let scores = &all_scores[neighbourhoods.range(segment)];
            let size = bias.len().max(1);
            let block = softmax::PART.div_ceil(size) * size;
            for (out, scores) in part.chunks_mut(block).zip(scores.chunks(block)) {
                stop.check();
                for (out, scores) in out.chunks_exact_mut(size).zip(scores.chunks_exact(size)) {
                    for ((out, score), bias) in out.iter_mut().zip(scores).zip(&bias) {
                        *out = *score * scale + *bias;
                    }
                }
                softmax::of_rows(out, size);
            }
        });
        Elements::new(values)
    })
}

/// The product of every row with the Jacobian of the softmax `y`.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor, neighbourhoods: &Neighbourhoods) -> Elements {
    let (y_host, g_host) = (y.host(), g.host());
    for_float!(y.dtype(), R => {
        let inputs = [y_host.values(), g_host.values()];
        #[expect(clippy::redundant_closure, reason = "the function itself would be called, not compiled for the vector unit at hand")]
        let values = for_each_row::<R, 2>(inputs, neighbourhoods, #[inline(always)] |rows, out| softmax::product(rows, out));
        Elements::new(values)
    })
}

/// For every row, the gradient by `y` of that product's with `u`.
pub(crate) fn softmax_curvature([y, g, u]: [&Tensor; 3], neighbourhoods: &Neighbourhoods) -> Elements {
    let hosts = [y, g, u].map(Tensor::host);
    for_float!(y.dtype(), R => {
        let inputs = [hosts[0].values(), hosts[1].values(), hosts[2].values()];
        #[expect(clippy::redundant_closure, reason = "the function itself would be called, not compiled for the vector unit at hand")]
        let values = for_each_row::<R, 3>(inputs, neighbourhoods, #[inline(always)] |rows, out| softmax::curvature(rows, out));
        Elements::new(values)
    })
}

/// Every entry becomes the sum of its row.
pub(crate) fn row_sums(weights: &Tensor, neighbourhoods: &Neighbourhoods) -> Elements {
    let host = weights.host();
    for_float!(weights.dtype(), R => {
        let values = for_each_row::<R, 1>([host.values()], neighbourhoods, #[inline(always)] |[row], out| {
            out.fill(total(row.iter().copied()));
        });
        Elements::new(values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::vectorised;

    /// A row of each size before, and so many numbers in a head, that tiles and blocks are whole or cut anywhere.
    fn check_all_sizes<R: Real + std::fmt::Debug>() {
        // Integers, whose sums are exact in any order.
        let number = |k: usize| R::from_f64((k * 7919 % 13) as f64 - 6.0);
        for (size, width) in (1..=20).flat_map(|size| [1, 3, 8, 12, 16, 20, 48].map(|width| (size, width))) {
            let (heads, features) = (2, 2 * width);
            let (left, right) = ((0..size * features).map(number), (5..size * features + 5).map(number));
            let (left, right): (Vec<R>, Vec<R>) = (left.collect(), right.collect());
            let weights: Vec<R> = (0..heads * size * size).map(|k| number(k + 3)).collect();
            let lines = |values| <[R]>::chunks_exact(values, features).collect::<Vec<_>>();
            let (left_lines, right_lines) = (lines(&left), lines(&right));
            let stop = Stop::current();
            let sum = |term: &dyn Fn(usize) -> [R; 2], count: usize| {
                (0..count).map(term).fold(R::default(), |sum, [a, b]| a.mul_add(b, sum))
            };
            let mut found = vec![R::from_f64(f64::NAN); heads * size * size];
            for is_wide in [true, false] {
                vectorised(
                    #[inline(always)]
                    |_| match is_wide {
                        true => scores_of_segment::<R, WIDE>(&left_lines, &right_lines, width, &mut found, &stop),
                        false => scores_of_segment::<R, NARROW>(&left_lines, &right_lines, width, &mut found, &stop),
                    },
                );
                for (at, found) in found.iter().enumerate() {
                    let (head, i, j) = (at / (size * size), at / size % size, at % size);
                    let column = |d| head * width + d;
                    let expected = sum(&|d| [left_lines[i][column(d)], right_lines[j][column(d)]], width);
                    assert_eq!(*found, expected, "{size} {width}");
                }
            }
            for transposed in [false, true] {
                let mut found = vec![R::from_f64(f64::NAN); size * features];
                for is_wide in [width.is_multiple_of(WIDE), false] {
                    vectorised(
                        #[inline(always)]
                        |_| match is_wide {
                            true => {
                                mix_of_segment::<R, WIDE>(&weights, &left_lines, width, transposed, &mut found, &stop)
                            }
                            false => {
                                mix_of_segment::<R, NARROW>(&weights, &left_lines, width, transposed, &mut found, &stop)
                            }
                        },
                    );
                    for (at, found) in found.iter().enumerate() {
                        let (i, column) = (at / features, at % features);
                        let weights = &weights[column / width * size * size..];
                        let weight = |j| if transposed { weights[j * size + i] } else { weights[i * size + j] };
                        let expected = sum(&|j| [weight(j), left_lines[j][column]], size);
                        assert_eq!(*found, expected, "{size} {width} {transposed}");
                    }
                }
            }
        }
    }

    #[test]
    fn segments_and_heads_of_all_sizes_equal_plain_loops() {
        check_all_sizes::<f32>();
        check_all_sizes::<f64>();
    }
}
