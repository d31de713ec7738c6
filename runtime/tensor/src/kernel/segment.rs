//! Sums over rows that belong together.
//!
//! Each segment is a product of matrices, and large segments are computed in strips, which may run on several threads. The terms of a sum
//! are always added in the order of the rows.

use std::ops::Range;

use burn_dispatch::DispatchTensor;
use rayon::prelude::*;

use super::fill::in_parts;
use super::product::{Matrix, product};
use super::{Real, for_float};
use crate::Tensor;
use crate::context::Stop;
use crate::tensor::from_host;

/// Below this many multiplications a second thread costs more than it gives.
const PARALLEL: usize = 1 << 18;
/// The rows of the result in a strip of a segment. Each strip of a transposed block packs that block anew, so strips are not small.
const STRIP: usize = 32;

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

/// A strip of a segment: which rows of its result, and where to put them.
struct Strip<'a, R> {
    segment: usize,
    start: usize,
    out: &'a mut [R],
}

/// Cuts the result into strips: of each segment's `rows(segment)` rows of `width` elements.
fn strips<R>(mut out: &mut [R], count: usize, width: usize, rows: impl Fn(usize) -> usize) -> Vec<Strip<'_, R>> {
    let mut strips = Vec::with_capacity(count);
    for segment in 0..count {
        let rows = rows(segment);
        for start in (0..rows).step_by(STRIP) {
            let (strip, rest) = out.split_at_mut(STRIP.min(rows - start) * width);
            strips.push(Strip { segment, start, out: strip });
            out = rest;
        }
    }
    strips
}

fn for_each_strip<R: Real>(strips: Vec<Strip<'_, R>>, work: usize, compute: impl Fn(Strip<'_, R>) + Send + Sync) {
    if work < PARALLEL {
        strips.into_iter().for_each(compute);
    } else {
        strips.into_par_iter().for_each(compute);
    }
}

pub(crate) fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, shape: &[usize; 3]) -> DispatchTensor {
    let &[count, m, n] = shape;
    let (left_host, right_host, segments) = (left.host(), right.host(), segments.host());
    let (groups, stop) = (Groups::new(segments.values(), count), Stop::current());
    let dtype = left.dtype();
    for_float!(dtype, R => {
        let left = groups.grouped::<R>(left_host.values(), m);
        let right = groups.grouped::<R>(right_host.values(), n);
        let mut blocks = vec![R::default(); count * m * n];
        if m * n > 0 {
            let work = groups.count() * m * n;
            for_each_strip(strips(&mut blocks, count, n, |_| m), work, |strip| {
                let rows = groups.rows(strip.segment);
                let left = Matrix::new(&left[rows.start * m..rows.end * m], rows.len(), m);
                let right = Matrix::new(&right[rows.start * n..rows.end * n], rows.len(), n);
                product(left.transposed().strip(strip.start, strip.out.len() / n), right, strip.out, &stop);
            });
        }
        from_host(blocks, shape, dtype)
    })
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
        let mut results = vec![R::default(); shape.iter().product()];
        if width_in * width_out > 0 {
            let work = groups.count() * m * n;
            let strips = strips(&mut results, count, width_out, |segment| groups.rows(segment).len());
            for_each_strip(strips, work, |strip| {
                let first = groups.rows(strip.segment).start + strip.start;
                let rows = strip.out.len() / width_out;
                let values = &values[first * width_in..(first + rows) * width_in];
                let block = Matrix::new(&blocks[strip.segment * m * n..(strip.segment + 1) * m * n], m, n);
                let block = if transposed { block.transposed() } else { block };
                product(Matrix::new(values, rows, width_in), block, strip.out, &stop);
            });
        }
        from_host(groups.scattered(results, width_out), shape, rows.dtype())
    })
}
