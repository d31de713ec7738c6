//! Reading and adding at indices, which have been checked.

use std::ops::Range;

use super::fill::{Fill, copied, in_parts};
use super::{Real, around, for_elements, for_float, helpers, vectorised};
use crate::Tensor;
use crate::context::Stop;
use crate::tensor::Elements;

/// `out[.., k, ..] = a[.., indices[k], ..]`.
pub(crate) fn select(a: &Tensor, axis: usize, indices: &Tensor) -> Elements {
    fn selected<T: Fill>(values: &[T], places: &[i64], [outer, size, inner]: [usize; 3]) -> Vec<T> {
        if inner == 1 {
            return in_parts(
                outer * places.len(),
                places.len(),
                #[inline(always)]
                |row, out| {
                    let values = &values[row * size..][..size];
                    out.iter_mut().zip(places).for_each(|(out, place)| *out = values[*place as usize]);
                },
            );
        }
        copied(values, outer * places.len() * inner, inner, |k| {
            let (row, place) = (k / places.len(), places[k % places.len()] as usize);
            (row * size + place) * inner
        })
    }
    let (outer, size, inner) = around(a.shape(), axis);
    let places = indices.host();
    for_elements!(a, |values| selected(values, places.values::<i64>(), [outer, size, inner]))
}

/// `out[.., k, ..] = a[.., indices[.., k, ..], ..]`.
pub(crate) fn gather(a: &Tensor, axis: usize, indices: &Tensor) -> Elements {
    fn gathered<T: Fill>(values: &[T], places: &[i64], count: usize, [size, inner]: [usize; 2]) -> Vec<T> {
        in_parts(
            places.len(),
            count * inner,
            #[inline(always)]
            |row, out| {
                let (values, places) = (&values[row * size * inner..][..size * inner], &places[row * count * inner..]);
                if inner == 1 {
                    out.iter_mut().zip(places).for_each(|(out, place)| *out = values[*place as usize]);
                    return;
                }
                for (out, places) in out.chunks_exact_mut(inner).zip(places.chunks_exact(inner)) {
                    for (column, (out, place)) in out.iter_mut().zip(places).enumerate() {
                        *out = values[*place as usize * inner + column];
                    }
                }
            },
        )
    }
    let (_, size, inner) = around(a.shape(), axis);
    let (places, count) = (indices.host(), indices.shape()[axis]);
    for_elements!(a, |values| gathered(values, places.values::<i64>(), count, [size, inner]))
}

/// `out[.., indices[k], ..] += a[.., k, ..]`, in the order of `k`.
pub(crate) fn index_add(a: &Tensor, axis: usize, indices: &Tensor, shape: &[usize]) -> Elements {
    let (_, size, inner) = around(shape, axis);
    let (host, places) = (a.host(), indices.host());
    let places = places.values::<i64>();
    for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let mut totals = vec![R::default(); shape.iter().product()];
        let row = places.len() * inner;
        added(&mut totals, [size, inner], values.len(), #[inline(always)] |k, range, out, stop| {
            for (values, &place) in values[k * row..][..row].chunks_exact(inner).zip(places) {
                let place = place as usize;
                if range.contains(&place) {
                    stop.check();
                    let out = &mut out[(place - range.start) * inner..][..inner];
                    out.iter_mut().zip(values).for_each(|(total, value)| *total += *value);
                }
            }
        });
        Elements::new(totals)
    })
}

/// `out[.., indices[.., k, ..], ..] += a[.., k, ..]`, row-major.
pub(crate) fn scatter_add(a: &Tensor, axis: usize, indices: &Tensor, shape: &[usize]) -> Elements {
    let (_, size, inner) = around(shape, axis);
    let count = a.shape()[axis];
    let (host, places) = (a.host(), indices.host());
    let places = places.values::<i64>();
    for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let mut totals = vec![R::default(); shape.iter().product()];
        let row = count * inner;
        added(&mut totals, [size, inner], values.len(), #[inline(always)] |k, range, out, stop| {
            /// To ask whether to stop takes longer than to add one element, so it is asked once for so many.
            const AT_ONCE: usize = 1 << 12;
            let (values, places) = (&values[k * row..][..row], &places[k * row..][..row]);
            if inner == 1 {
                for (values, places) in values.chunks(AT_ONCE).zip(places.chunks(AT_ONCE)) {
                    stop.check();
                    for (value, &place) in values.iter().zip(places) {
                        // Those before the range wrap around, and are beyond it as well.
                        if let Some(total) = out.get_mut((place as usize).wrapping_sub(range.start)) {
                            *total += *value;
                        }
                    }
                }
                return;
            }
            for (values, places) in values.chunks_exact(inner).zip(places.chunks_exact(inner)) {
                stop.check();
                for (column, (value, &place)) in values.iter().zip(places).enumerate() {
                    let place = place as usize;
                    if range.contains(&place) {
                        out[(place - range.start) * inner + column] += *value;
                    }
                }
            }
        });
        Elements::new(totals)
    })
}

/// The parts that one part of the result is cut into at most, where there are not enough of them for all threads: each thread looks at all indices, and adds those that are its own.
const CUTS: usize = 8;

/// Calls `add(k, range, out, stop)` for every part `k` of `size * inner` totals, or several times with the ranges of its entries that `out` has, on several threads. What it adds to
/// one total it adds in one order.
fn added<R: Real>(
    totals: &mut [R],
    [size, inner]: [usize; 2],
    work: usize,
    add: impl Fn(usize, Range<usize>, &mut [R], &Stop) + Send + Sync,
) {
    let stop = Stop::current();
    let part = size * inner;
    if part == 0 {
        return;
    }
    let threads = if helpers::are_worth(work) { rayon::current_num_threads() } else { 1 };
    let outer = totals.len() / part;
    // Cutting pays where copying a row costs more than looking at its index.
    let cuts = if outer >= threads || inner < CUTS { 1 } else { threads.min(CUTS) };
    let entries = size.div_ceil(cuts);
    let mut jobs = Vec::with_capacity(outer * cuts);
    for (k, totals) in totals.chunks_exact_mut(part).enumerate() {
        for (cut, out) in totals.chunks_mut(entries * inner).enumerate() {
            jobs.push((k, cut * entries..cut * entries + out.len() / inner, out));
        }
    }
    let run = |(k, range, out): (usize, Range<usize>, &mut [R])| {
        vectorised(
            #[inline(always)]
            |_| add(k, range, out, &stop),
        )
    };
    helpers::for_each(work, jobs.into_iter(), run);
}
