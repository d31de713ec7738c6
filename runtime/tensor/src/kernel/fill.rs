//! New vectors, filled in parts which several threads may share out.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::{PARALLEL, Real, vectorised};
use crate::context::Stop;

/// The least elements that one task fills: enough to make handing it out cheap, few enough to stay in the nearest cache.
const TASK: usize = 1 << 12;

/// `count` elements in parts of `width`, the last of which may be shorter: `fill(k, part)` writes part `k`, whose elements are 0 before. It
/// runs compiled for the vector unit at hand, and must be marked `#[inline(always)]`.
pub(crate) fn in_parts<R: Real>(count: usize, width: usize, fill: impl Fn(usize, &mut [R]) + Send + Sync) -> Vec<R> {
    filled(
        count,
        width,
        #[inline(always)]
        |k, slots| fill(k, zeroed(slots)),
    )
}

/// Parts of these sizes one after another, each filled as by [`in_parts`]. Below `work` of [`PARALLEL`] one thread does it.
pub(crate) fn in_uneven_parts<R: Real>(
    sizes: impl Iterator<Item = usize> + Clone,
    work: usize,
    fill: impl Fn(usize, &mut [R]) + Send + Sync,
) -> Vec<R> {
    let count = sizes.clone().sum();
    let mut values: Vec<R> = Vec::with_capacity(count);
    let mut rest = &mut values.spare_capacity_mut()[..count];
    let mut parts = Vec::with_capacity(sizes.size_hint().0);
    for (k, size) in sizes.enumerate() {
        let (part, after) = rest.split_at_mut(size);
        parts.push((k, part));
        rest = after;
    }
    assert!(rest.is_empty(), "the parts cover the whole");
    let stop = Stop::current();
    let run = |(k, part): (usize, &mut [MaybeUninit<R>])| {
        stop.check();
        vectorised(
            #[inline(always)]
            || fill(k, zeroed(part)),
        )
    };
    if work < PARALLEL {
        parts.into_iter().for_each(run)
    } else {
        parts.into_par_iter().for_each(run)
    }
    // SAFETY: the parts cover all `count` slots, and `zeroed` wrote each of them; had one panicked or been stopped, this line would not be reached.
    #[expect(unsafe_code, reason = "the vector was filled through its spare capacity")]
    unsafe {
        values.set_len(count);
    }
    values
}

/// Zeroes the slots of a part just before it is filled, by the thread that fills it: zeroing the whole vector beforehand would send it through the caches
/// twice.
#[inline(always)]
fn zeroed<R: Real>(slots: &mut [MaybeUninit<R>]) -> &mut [R] {
    slots.iter_mut().for_each(|slot| {
        slot.write(R::default());
    });
    // SAFETY: every slot was written in the lines above, and `MaybeUninit<R>` has the layout of `R`.
    #[expect(unsafe_code, reason = "a slice of written slots has no safe name yet")]
    unsafe {
        &mut *(std::ptr::from_mut(slots) as *mut [R])
    }
}

/// `count` elements in parts of `width`: `values(k, size)` gives those of part `k`, as many as `size` says.
fn from_values<R: Real, I: Iterator<Item = R>>(
    count: usize,
    width: usize,
    values: impl Fn(usize, usize) -> I + Send + Sync,
) -> Vec<R> {
    filled(
        count,
        width,
        #[inline(always)]
        |k, slots| {
            let (size, mut written) = (slots.len(), 0);
            for (slot, value) in slots.iter_mut().zip(values(k, size)) {
                slot.write(value);
                written += 1;
            }
            assert_eq!(written, size, "a part has a value for each of its slots");
        },
    )
}

/// `count` elements in parts of `width`. `write` MUST write every slot of its part: it is private to this file.
fn filled<R: Real>(count: usize, width: usize, write: impl Fn(usize, &mut [MaybeUninit<R>]) + Send + Sync) -> Vec<R> {
    let width = width.max(1);
    // Whole parts make a task.
    let parts_per_task = TASK.div_ceil(width);
    let mut values: Vec<R> = Vec::with_capacity(count);
    let slots = &mut values.spare_capacity_mut()[..count];
    let stop = Stop::current();
    let task = |(task, slots): (usize, &mut [MaybeUninit<R>])| {
        stop.check();
        vectorised(
            #[inline(always)]
            || {
                for (k, part) in slots.chunks_mut(width).enumerate() {
                    write(task * parts_per_task + k, part);
                }
            },
        );
    };
    let task_size = parts_per_task * width;
    if count < PARALLEL {
        slots.chunks_mut(task_size).enumerate().for_each(task);
    } else {
        slots.par_chunks_mut(task_size).enumerate().for_each(task);
    }
    // SAFETY: the tasks cover all `count` slots, and both callers' `write` writes every slot of a part or panics; had one panicked, this line would not be
    // reached.
    #[expect(unsafe_code, reason = "the vector was filled through its spare capacity")]
    unsafe {
        values.set_len(count);
    }
    values
}

/// `value(element)` for every element of `a`, in order.
pub(crate) fn map<R: Real>(a: &[R], value: impl Fn(R) -> R + Send + Sync) -> Vec<R> {
    from_values(
        a.len(),
        TASK,
        #[inline(always)]
        |k, size| {
            a[k * TASK..][..size].iter().map(
                #[inline(always)]
                |a| value(*a),
            )
        },
    )
}

/// `value(a, b)` for the elements of two slices of one length.
pub(crate) fn zip<R: Real>(a: &[R], b: &[R], value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    from_values(
        a.len(),
        TASK,
        #[inline(always)]
        |k, size| {
            a[k * TASK..][..size].iter().zip(&b[k * TASK..][..size]).map(
                #[inline(always)]
                |(a, b)| value(*a, *b),
            )
        },
    )
}

/// `value(a, b)` for every row of `a` with the one row `b`.
pub(crate) fn zip_row<R: Real>(a: &[R], b: &[R], value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    let width = b.len();
    from_values(
        a.len(),
        width,
        #[inline(always)]
        |k, size| {
            a[k * width..][..size].iter().zip(b).map(
                #[inline(always)]
                |(a, b)| value(*a, *b),
            )
        },
    )
}

/// `value(a, b)` for every row of `a`, `width` elements, with its own element of `b`.
pub(crate) fn zip_column<R: Real>(a: &[R], b: &[R], width: usize, value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    from_values(
        a.len(),
        width,
        #[inline(always)]
        |k, size| {
            let (b, value) = (b[k], &value);
            a[k * width..][..size].iter().map(
                #[inline(always)]
                move |a| value(*a, b),
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_filled_once_whatever_the_size() {
        for count in [0, 1, 7, TASK - 1, TASK, TASK + 1, PARALLEL + 13] {
            let a: Vec<f64> = (0..count).map(|k| k as f64).collect();
            let uneven =
                in_uneven_parts((0..count).map(|k| k % 3).take(count / 2), count, |k, part| part.fill(k as f64));
            let expected: Vec<f64> = (0..count / 2).flat_map(|k| vec![k as f64; k % 3]).collect();
            assert_eq!(uneven, expected);
            assert_eq!(map(&a, |a| a + 1.0), (1..=count).map(|k| k as f64).collect::<Vec<_>>());
            assert!(zip(&a, &a, |a, b| a - b).iter().all(|&difference| difference == 0.0));
            for width in [1, 3, 700, 5000] {
                let whole = &a[..count / width * width];
                let row: Vec<f64> = (0..width).map(|k| 2.0 * k as f64).collect();
                let with_row = zip_row(whole, &row, |a, b| a + b);
                assert!(with_row.iter().enumerate().all(|(k, &sum)| sum == (k + 2 * (k % width)) as f64));
                let column: Vec<f64> = (0..count / width).map(|k| k as f64).collect();
                let with_column = zip_column(whole, &column, width, |a, b| a + b);
                assert!(with_column.iter().enumerate().all(|(k, &sum)| sum == (k + k / width) as f64));
            }
        }
    }
}
