//! Sums over rows that belong together.
//!
//! Each segment is a product of matrices, and large segments are computed in strips, which may run on several threads. The terms of a sum
//! are always added in the order of the rows.

use std::ops::Range;

use super::fill::{in_parts, in_uneven_parts};
use super::product::{Matrix, Packed, product};
use super::{MULTIPLICATIONS, Real, Vectors, for_float};
use crate::Tensor;
use crate::context::Stop;
use crate::tensor::Elements;

/// The rows of the result in a strip of a segment: whole tiles. Each strip of a transposed block packs that block anew, so strips are not small.
pub(crate) const STRIP: usize = 36;

/// So many multiplications make a task.
const TASK: usize = 1 << 15;
/// What there is to do for a strip beside its multiplications, in units of these.
const OF_A_STRIP: usize = 1 << 8;

/// The rows of each segment.
#[derive(Debug)]
pub(crate) struct Groups {
    /// The rows segment by segment; none if they are in that order already.
    order: Option<Vec<usize>>,
    /// The place of each row in that order.
    places: Vec<usize>,
    /// Where each segment begins in that order, and where the last one ends.
    starts: Vec<usize>,
}

impl Groups {
    pub(crate) fn new(segments: &[i64], count: usize) -> Self {
        let mut starts = vec![0; count + 1];
        segments.iter().for_each(|&segment| starts[segment as usize + 1] += 1);
        (0..count).for_each(|segment| starts[segment + 1] += starts[segment]);
        if segments.is_sorted() {
            return Self { order: None, places: Vec::new(), starts };
        }
        let mut next = starts.clone();
        let mut order = vec![0; segments.len()];
        let places = segments.iter().enumerate().map(|(row, &segment)| {
            let place = next[segment as usize];
            next[segment as usize] += 1;
            order[place] = row;
            place
        });
        let places = places.collect();
        Self { order: Some(order), places, starts }
    }

    /// The number of rows of all segments.
    pub(crate) fn count(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The places of a segment's rows.
    pub(crate) fn rows(&self, segment: usize) -> Range<usize> {
        self.starts[segment]..self.starts[segment + 1]
    }

    /// The row at a place.
    #[inline(always)]
    pub(crate) fn row(&self, place: usize) -> usize {
        self.order.as_ref().map_or(place, |order| order[place])
    }

    /// `values`' rows of `width` elements, grouped; the values themselves if they are in order already.
    fn grouped<'a, R: Real>(&self, values: &'a [R], width: usize) -> std::borrow::Cow<'a, [R]> {
        let Some(order) = &self.order else { return values.into() };
        let mut grouped = Vec::with_capacity(values.len());
        order.iter().for_each(|&row| grouped.extend_from_slice(&values[row * width..(row + 1) * width]));
        grouped.into()
    }

    /// The reverse of [`Self::grouped`].
    pub(crate) fn scattered<R: Real>(&self, grouped: Vec<R>, width: usize) -> Vec<R> {
        if self.order.is_none() {
            return grouped;
        }
        in_parts(
            grouped.len(),
            width,
            #[inline(always)]
            |row, values| values.copy_from_slice(&grouped[self.places[row] * width..][..width]),
        )
    }
}

/// A strip of a segment: some rows of its result.
struct Strip {
    segment: usize,
    start: usize,
    rows: usize,
}

/// `work(vectors, strip, packed, out)` for each strip of the result, `out` being its place there; segment `s` has `rows(s)` rows of `width` elements, each of which takes
/// so many multiplications. Strips that are short make a task together. `work` must be marked `#[inline(always)]`.
fn in_strips<R: Real>(
    count: usize,
    width: usize,
    multiplications: impl Fn(&Strip) -> usize,
    rows: impl Fn(usize) -> usize,
    work: impl Fn(Vectors, &Strip, &mut Packed<R>, &mut [R]) + Send + Sync,
) -> Vec<R> {
    let mut strips = Vec::with_capacity((0..count).map(|segment| rows(segment).div_ceil(STRIP)).sum());
    for segment in 0..count {
        let rows = rows(segment);
        let starts = (0..rows).step_by(STRIP);
        strips.extend(starts.map(|start| Strip { segment, start, rows: STRIP.min(rows - start) }));
    }
    let (mut tasks, mut whole, mut of_task) = (Vec::new(), 0, 0);
    for (k, strip) in strips.iter().enumerate() {
        of_task += multiplications(strip) + OF_A_STRIP;
        if of_task >= TASK || k + 1 == strips.len() {
            let first = tasks.last().map_or(0, |task: &Range<usize>| task.end);
            tasks.push(first..k + 1);
            whole += of_task;
            of_task = 0;
        }
    }
    let sizes = tasks.iter().map(|task| strips[task.clone()].iter().map(|strip| strip.rows * width).sum());
    in_uneven_parts(
        sizes,
        whole / MULTIPLICATIONS,
        #[inline(always)]
        |vectors, k, mut out| {
            let mut packed = Packed::default();
            for strip in &strips[tasks[k].clone()] {
                let (own, rest) = out.split_at_mut(strip.rows * width);
                work(vectors, strip, &mut packed, own);
                out = rest;
            }
        },
    )
}

pub(crate) fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, shape: &[usize; 3]) -> Elements {
    let &[count, m, n] = shape;
    if m * n == 0 {
        return super::zeros(shape, left.dtype());
    }
    let (left_host, right_host, segments) = (left.host(), right.host(), segments.host());
    let (groups, stop) = (Groups::new(segments.values(), count), Stop::current());
    let dtype = left.dtype();
    for_float!(dtype, R => {
        let left = groups.grouped::<R>(left_host.values(), m);
        let right = groups.grouped::<R>(right_host.values(), n);
        let multiplications = |strip: &Strip| groups.rows(strip.segment).len() * strip.rows * n;
        let blocks = in_strips(count, n, multiplications, |_| m, #[inline(always)] |vectors, strip, packed, out| {
            let rows = groups.rows(strip.segment);
            let left = Matrix::new(&left[rows.start * m..rows.end * m], rows.len(), m);
            let right = Matrix::new(&right[rows.start * n..rows.end * n], rows.len(), n);
            product(vectors, left.transposed().strip(strip.start, strip.rows), right, packed, out, &stop);
        });
        Elements::new(blocks)
    })
}

/// `out[p] = rows[p] blocks[segment]`, or `rows[p] blocks[segment]^T` if `transposed`.
pub(crate) fn contract(
    rows: &Tensor,
    blocks: &Tensor,
    segments: &Tensor,
    transposed: bool,
    shape: &[usize; 2],
) -> Elements {
    let &[count, m, n] = blocks.shape() else { unreachable!("the rank was checked") };
    if m * n == 0 {
        // Sums of nothing, however many blocks without elements there are.
        return super::zeros(shape, rows.dtype());
    }
    let (rows_host, blocks_host, segments) = (rows.host(), blocks.host(), segments.host());
    let (groups, stop) = (Groups::new(segments.values(), count), Stop::current());
    let (width_in, width_out) = if transposed { (n, m) } else { (m, n) };
    for_float!(rows.dtype(), R => {
        let values = groups.grouped::<R>(rows_host.values(), width_in);
        let blocks = blocks_host.values::<R>();
        let rows_of = |segment| groups.rows(segment).len();
        let multiplications = |strip: &Strip| strip.rows * m * n;
        let results = in_strips(count, width_out, multiplications, rows_of, #[inline(always)] |vectors, strip, packed, out| {
            let first = groups.rows(strip.segment).start + strip.start;
            let values = &values[first * width_in..(first + strip.rows) * width_in];
            let block = Matrix::new(&blocks[strip.segment * m * n..(strip.segment + 1) * m * n], m, n);
            let block = if transposed { block.transposed() } else { block };
            product(vectors, Matrix::new(values, strip.rows, width_in), block, packed, out, &stop);
        });
        Elements::new(groups.scattered(results, width_out))
    })
}
