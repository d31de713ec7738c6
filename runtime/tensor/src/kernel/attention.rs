//! Attention within segments: products of the rows of each segment with one another, and softmax over them.
//!
//! A *matrix of weights* has one entry for each head and each pair of rows of one segment. It is stored as one row of numbers: segment by segment,
//! and within a segment `[heads, rows, rows]`, row-major. No entry is padding, however much the segments differ in size.

use std::ops::Range;

use burn_dispatch::DispatchTensor;

use super::fill::in_uneven_parts;
use super::product::sums;
use super::segment::Groups;
use super::{Real, for_float, softmax};
use crate::Tensor;
use crate::context::Stop;
use crate::memory::Reservation;
use crate::tensor::from_host;

/// The numbers that are worked on together.
const LANES: usize = 8;
/// The rows that are worked on together, which share what is read.
const ROWS: usize = 4;

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

    /// The row at a place of a segment.
    #[inline(always)]
    fn row(&self, segment: usize, place: usize) -> usize {
        self.groups.row(self.groups.rows(segment).start + place)
    }

    /// The row at each place of a segment.
    fn rows(&self, segment: usize) -> impl Iterator<Item = usize> + '_ {
        self.groups.rows(segment).map(|place| self.groups.row(place))
    }

    /// A matrix of weights, each segment's part filled on its own.
    fn weights<R: Real>(&self, work: usize, fill: impl Fn(usize, &mut [R]) + Send + Sync) -> Vec<R> {
        in_uneven_parts((0..self.segments()).map(|segment| self.range(segment).len()), work, fill)
    }

    /// Rows of `width` numbers, each segment's filled on their own, in the order of its places.
    fn by_rows<R: Real>(&self, width: usize, work: usize, fill: impl Fn(usize, &mut [R]) + Send + Sync) -> Vec<R> {
        let sizes = (0..self.segments()).map(|segment| self.size(segment) * width);
        self.groups.scattered(in_uneven_parts(sizes, work, fill), width)
    }
}

/// `out[h, i, j] = sum over d of left[i, h, d] * right[j, h, d]` for rows `i` and `j` of each segment; `left` and `right` are `[rows, heads * width]`.
pub(crate) fn scores(left: &Tensor, right: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let (features, dtype) = (left.shape()[1], left.dtype());
    let (left_host, right_host) = (left.host(), right.host());
    let (width, stop) = (features / neighbourhoods.heads, Stop::current());
    for_float!(dtype, R => {
        let (left, right) = (left_host.values::<R>(), right_host.values::<R>());
        let work = neighbourhoods.entries().saturating_mul(width);
        let values = neighbourhoods.weights::<R>(work, #[inline(always)] |segment, part| {
            let size = neighbourhoods.size(segment);
            let blocks = size.div_ceil(LANES);
            // One head's part of the right rows, turned: LANES rows side by side.
            let mut turned = vec![[R::default(); LANES]; blocks * width];
            // Those of ROWS left rows, side by side.
            let mut factors = vec![[R::default(); ROWS]; width];
            for head in 0..neighbourhoods.heads {
                let columns = head * width..(head + 1) * width;
                for (place, row) in neighbourhoods.rows(segment).enumerate() {
                    let block = &mut turned[place / LANES * width..][..width];
                    for (values, value) in block.iter_mut().zip(&right[row * features..][columns.clone()]) {
                        values[place % LANES] = *value;
                    }
                }
                for (tile, out) in part[head * size * size..][..size * size].chunks_mut((ROWS * size).max(1)).enumerate() {
                    stop.check();
                    for r in 0..ROWS.min(size - tile * ROWS) {
                        let row = &left[neighbourhoods.row(segment, tile * ROWS + r) * features..][columns.clone()];
                        factors.iter_mut().zip(row).for_each(|(factors, value)| factors[r] = *value);
                    }
                    for (block, turned) in turned.chunks_exact(width.max(1)).enumerate() {
                        let totals = sums(turned.iter(), factors.iter().copied());
                        let columns = block * LANES..size.min((block + 1) * LANES);
                        for (out, totals) in out.chunks_exact_mut(size).zip(&totals) {
                            out[columns.clone()].copy_from_slice(&totals[..columns.len()]);
                        }
                    }
                }
            }
        });
        from_host(values, &[neighbourhoods.entries()], dtype)
    })
}

/// `out[i, h, d] = sum over j of weights[h, i, j] * rows[j, h, d]`, or with `transposed` the sum over `i` of `weights[h, i, j] * rows[i, h, d]`.
pub(crate) fn mix(
    weights: &Tensor,
    rows: &Tensor,
    neighbourhoods: &Neighbourhoods,
    transposed: bool,
) -> DispatchTensor {
    let features = rows.shape()[1];
    let (width, stop) = (features / neighbourhoods.heads, Stop::current());
    let (weights_host, rows_host) = (weights.host(), rows.host());
    for_float!(rows.dtype(), R => {
        let (all_weights, values) = (weights_host.values::<R>(), rows_host.values::<R>());
        let work = neighbourhoods.entries().saturating_mul(width);
        let results = neighbourhoods.by_rows::<R>(features, work, #[inline(always)] |segment, part| {
            let size = neighbourhoods.size(segment);
            let weights = &all_weights[neighbourhoods.range(segment)];
            // Between the weights of a row's neighbours, and of neighbouring rows.
            let (step, stride) = if transposed { (size, 1) } else { (1, size) };
            let blocks = width.div_ceil(LANES);
            // One head's part of the rows, LANES columns of all rows one below another.
            let mut panel = vec![[R::default(); LANES]; blocks * size];
            // The weights of ROWS rows, side by side.
            let mut factors = vec![[R::default(); ROWS]; size];
            for (head, weights) in weights.chunks_exact((size * size).max(1)).enumerate() {
                for (place, row) in neighbourhoods.rows(segment).enumerate() {
                    let values = &values[row * features + head * width..][..width];
                    for (block, values) in values.chunks(LANES).enumerate() {
                        panel[block * size + place][..values.len()].copy_from_slice(values);
                    }
                }
                for (tile, out) in part.chunks_mut((ROWS * features).max(1)).enumerate() {
                    stop.check();
                    for r in 0..ROWS.min(size - tile * ROWS) {
                        let row = weights[(tile * ROWS + r) * stride..].iter().step_by(step);
                        factors.iter_mut().zip(row).for_each(|(factors, weight)| factors[r] = *weight);
                    }
                    for (block, panel) in panel.chunks_exact(size).enumerate() {
                        let totals = sums(panel.iter(), factors.iter().copied());
                        let columns = head * width + block * LANES..head * width + width.min((block + 1) * LANES);
                        for (out, totals) in out.chunks_exact_mut(features).zip(&totals) {
                            out[columns.clone()].copy_from_slice(&totals[..columns.len()]);
                        }
                    }
                }
            }
        });
        from_host(results, rows.shape(), rows.dtype())
    })
}

/// `out[h, i, j] = values[j]`.
pub(crate) fn columns(values: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let host = values.host();
    for_float!(values.dtype(), R => {
        let values_of_rows = host.values::<R>();
        let weights = neighbourhoods.weights::<R>(0, #[inline(always)] |segment, part| {
            let row: Vec<R> = neighbourhoods.rows(segment).map(|row| values_of_rows[row]).collect();
            part.chunks_exact_mut(row.len().max(1)).for_each(|out| out.copy_from_slice(&row));
        });
        from_host(weights, &[neighbourhoods.entries()], values.dtype())
    })
}

/// The transpose of [`columns`]: `out[j]` is the sum over `h` and `i` of `weights[h, i, j]`.
pub(crate) fn column_sums(weights: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let host = weights.host();
    for_float!(weights.dtype(), R => {
        let weights_values = host.values::<R>();
        let sums = neighbourhoods.by_rows::<R>(1, 0, #[inline(always)] |segment, part| {
            for row in weights_values[neighbourhoods.range(segment)].chunks_exact(part.len().max(1)) {
                part.iter_mut().zip(row).for_each(|(sum, weight)| *sum += *weight);
            }
        });
        from_host(sums, &[neighbourhoods.groups.count()], weights.dtype())
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
        |segment, part| {
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

/// Softmax of every row.
pub(crate) fn softmax(scores: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let host = scores.host();
    for_float!(scores.dtype(), R => {
        let values = for_each_row::<R, 1>([host.values()], neighbourhoods, #[inline(always)] |[row], out| {
            softmax::value(row, out);
        });
        from_host(values, scores.shape(), scores.dtype())
    })
}

/// The product of every row with the Jacobian of the softmax `y`.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let (y_host, g_host) = (y.host(), g.host());
    for_float!(y.dtype(), R => {
        let inputs = [y_host.values(), g_host.values()];
        let values = for_each_row::<R, 2>(inputs, neighbourhoods, softmax::product);
        from_host(values, y.shape(), y.dtype())
    })
}

/// For every row, the gradient by `y` of that product's with `u`.
pub(crate) fn softmax_curvature([y, g, u]: [&Tensor; 3], neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let hosts = [y, g, u].map(Tensor::host);
    for_float!(y.dtype(), R => {
        let inputs = [hosts[0].values(), hosts[1].values(), hosts[2].values()];
        let values =
            for_each_row::<R, 3>(inputs, neighbourhoods, softmax::curvature);
        from_host(values, y.shape(), y.dtype())
    })
}

/// Every entry becomes the sum of its row.
pub(crate) fn row_sums(weights: &Tensor, neighbourhoods: &Neighbourhoods) -> DispatchTensor {
    let host = weights.host();
    for_float!(weights.dtype(), R => {
        let values = for_each_row::<R, 1>([host.values()], neighbourhoods, #[inline(always)] |[row], out| {
            out.fill(total(row.iter().copied()));
        });
        from_host(values, weights.shape(), weights.dtype())
    })
}
