//! New vectors, filled in parts which several threads may share out.

use rayon::prelude::*;

use super::{PARALLEL, Real, vectorised};

/// The least elements that one task fills: enough to make handing it out cheap, few enough to stay in the nearest cache.
const TASK: usize = 1 << 12;

/// `count` elements in parts of `width`, the last of which may be shorter: `fill(k, part)` writes part `k`, whose elements are 0 before. It
/// runs compiled for the vector unit at hand, and must be marked `#[inline(always)]`.
///
/// A part is zeroed just before it is filled, by the thread that fills it: zeroing the whole vector beforehand would send it through the caches twice.
pub(crate) fn in_parts<R: Real>(count: usize, width: usize, fill: impl Fn(usize, &mut [R]) + Send + Sync) -> Vec<R> {
    let width = width.max(1);
    // Whole parts make a task.
    let parts_per_task = TASK.div_ceil(width);
    let mut values: Vec<R> = Vec::with_capacity(count);
    let slots = &mut values.spare_capacity_mut()[..count];
    let task = |(task, slots): (usize, &mut [std::mem::MaybeUninit<R>])| {
        vectorised(
            #[inline(always)]
            || {
                for (k, part) in slots.chunks_mut(width).enumerate() {
                    part.iter_mut().for_each(|slot| {
                        slot.write(R::default());
                    });
                    // SAFETY: every slot of the part was written in the line above, and `MaybeUninit<R>` has the layout of `R`.
                    #[expect(unsafe_code, reason = "a slice of written slots has no safe name yet")]
                    let part = unsafe { &mut *(std::ptr::from_mut(part) as *mut [R]) };
                    fill(task * parts_per_task + k, part);
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
    // SAFETY: the tasks cover all `count` slots, and each wrote every slot of its parts; had one panicked, this line would not be reached.
    #[expect(unsafe_code, reason = "the vector was filled through its spare capacity")]
    unsafe {
        values.set_len(count);
    }
    values
}

/// Of one row for each part: `value(element)` for every element of `a`, in order.
pub(crate) fn map<R: Real>(a: &[R], value: impl Fn(R) -> R + Send + Sync) -> Vec<R> {
    in_parts(
        a.len(),
        TASK,
        #[inline(always)]
        |k, part| {
            let a = &a[k * TASK..][..part.len()];
            part.iter_mut().zip(a).for_each(|(slot, a)| *slot = value(*a));
        },
    )
}

/// `value(a, b)` for the elements of two slices of one length.
pub(crate) fn zip<R: Real>(a: &[R], b: &[R], value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    in_parts(
        a.len(),
        TASK,
        #[inline(always)]
        |k, part| {
            let (a, b) = (&a[k * TASK..][..part.len()], &b[k * TASK..][..part.len()]);
            part.iter_mut().zip(a.iter().zip(b)).for_each(|(slot, (a, b))| *slot = value(*a, *b));
        },
    )
}

/// `value(a, b)` for every row of `a` with the one row `b`.
pub(crate) fn zip_row<R: Real>(a: &[R], b: &[R], value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    let width = b.len();
    in_parts(
        a.len(),
        width,
        #[inline(always)]
        |k, part| {
            let a = &a[k * width..][..part.len()];
            part.iter_mut().zip(a.iter().zip(b)).for_each(|(slot, (a, b))| *slot = value(*a, *b));
        },
    )
}

/// `value(a, b)` for every row of `a`, `width` elements, with its own element of `b`.
pub(crate) fn zip_column<R: Real>(a: &[R], b: &[R], width: usize, value: impl Fn(R, R) -> R + Send + Sync) -> Vec<R> {
    in_parts(
        a.len(),
        width,
        #[inline(always)]
        |k, part| {
            let (a, b) = (&a[k * width..][..part.len()], b[k]);
            part.iter_mut().zip(a).for_each(|(slot, a)| *slot = value(*a, b));
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
