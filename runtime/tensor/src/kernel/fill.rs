//! New vectors, filled in parts which several threads may share out.

use std::array;
use std::mem::MaybeUninit;

use super::{Vectors, helpers, vectorised, vectorised_widely};
use crate::context::Stop;

/// The least elements that one task fills: enough to make handing it out cheap, few enough to stay in the nearest cache.
const TASK: usize = 1 << 12;

/// What vectors are filled with.
pub(crate) trait Fill: Copy + Default + Send + Sync {}

impl<T: Copy + Default + Send + Sync> Fill for T {}

/// `count` elements in parts of `width`, the last of which may be shorter: `fill(k, part)` writes part `k`, whose elements are 0 before. It
/// runs compiled for the vector unit at hand, and must be marked `#[inline(always)]`.
pub(crate) fn in_parts<T: Fill>(count: usize, width: usize, fill: impl Fn(usize, &mut [T]) + Send + Sync) -> Vec<T> {
    filled(
        count,
        width,
        #[inline(always)]
        |k, slots| fill(k, zeroed(slots)),
    )
}

/// Parts of these sizes one after another, filled as by [`in_parts`], but by code compiled for the vectors that `fill` is told: those that tiles are made of. `work` is that of so many elements.
pub(crate) fn in_uneven_parts<T: Fill>(
    sizes: impl Iterator<Item = usize> + Clone,
    work: usize,
    fill: impl Fn(Vectors, usize, &mut [T]) + Send + Sync,
) -> Vec<T> {
    let count = sizes.clone().sum();
    let mut values: Vec<T> = Vec::with_capacity(count);
    let mut rest = &mut values.spare_capacity_mut()[..count];
    let mut parts = Vec::with_capacity(sizes.size_hint().0);
    for (k, size) in sizes.enumerate() {
        let (part, after) = rest.split_at_mut(size);
        parts.push((k, part));
        rest = after;
    }
    assert!(rest.is_empty(), "the parts cover the whole");
    let stop = Stop::current();
    let run = |(k, part): (usize, &mut [MaybeUninit<T>])| {
        stop.check();
        vectorised(
            #[inline(always)]
            |vectors| fill(vectors, k, zeroed(part)),
        )
    };
    helpers::for_each(work, parts.into_iter(), run);
    // SAFETY: the parts cover all `count` slots, and `zeroed` wrote each of them; had one panicked or been stopped, this line would not be reached.
    #[expect(unsafe_code, reason = "the vector was filled through its spare capacity")]
    unsafe {
        values.set_len(count);
    }
    values
}

/// Several vectors of `count` elements in parts of `width`: `fill(k, parts)` writes part `k` of each, whose elements are 0 before, as by [`in_parts`].
pub(crate) fn side_by_side<T: Fill, const N: usize>(
    count: usize,
    width: usize,
    fill: impl Fn(usize, [&mut [T]; N]) + Send + Sync,
) -> [Vec<T>; N] {
    let mut values: [Vec<T>; N] = array::from_fn(|_| Vec::with_capacity(count));
    let mut rest = values.each_mut().map(|values| &mut values.spare_capacity_mut()[..count]);
    let mut parts = Vec::with_capacity(count.div_ceil(width));
    for start in (0..count).step_by(width) {
        let size = width.min(count - start);
        parts.push(
            rest.each_mut().map(|rest| rest.split_off_mut(..size).expect("the parts are no longer than the whole")),
        );
    }
    let stop = Stop::current();
    let run = |(k, parts): (usize, [&mut [MaybeUninit<T>]; N])| {
        stop.check();
        vectorised_widely(
            #[inline(always)]
            || fill(k, parts.map(zeroed)),
        )
    };
    helpers::for_each(count.saturating_mul(N), parts.into_iter().enumerate(), run);
    for values in &mut values {
        // SAFETY: the parts cover all `count` slots of each vector, and `zeroed` wrote each of them; had one panicked or been stopped, this line would not be reached.
        #[expect(unsafe_code, reason = "the vectors were filled through their spare capacity")]
        unsafe {
            values.set_len(count);
        }
    }
    values
}

/// Zeroes the slots of a part just before it is filled, by the thread that fills it: zeroing the whole vector beforehand would send it through the caches
/// twice.
#[inline(always)]
fn zeroed<T: Fill>(slots: &mut [MaybeUninit<T>]) -> &mut [T] {
    slots.iter_mut().for_each(|slot| {
        slot.write(T::default());
    });
    // SAFETY: every slot was written in the lines above, and `MaybeUninit<T>` has the layout of `T`.
    #[expect(unsafe_code, reason = "a slice of written slots has no safe name yet")]
    unsafe {
        &mut *(std::ptr::from_mut(slots) as *mut [T])
    }
}

/// `count` elements in parts of `width`: `values(k, size)` gives those of part `k`, as many as `size` says. Closures must be marked `#[inline(always)]`.
pub(crate) fn from_values<T: Fill, I: Iterator<Item = T>>(
    count: usize,
    width: usize,
    values: impl Fn(usize, usize) -> I + Send + Sync,
) -> Vec<T> {
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
fn filled<T: Fill>(count: usize, width: usize, write: impl Fn(usize, &mut [MaybeUninit<T>]) + Send + Sync) -> Vec<T> {
    let width = width.max(1);
    // Whole parts make a task.
    let parts_per_task = TASK.div_ceil(width);
    let mut values: Vec<T> = Vec::with_capacity(count);
    let slots = &mut values.spare_capacity_mut()[..count];
    let stop = Stop::current();
    let task = |(task, slots): (usize, &mut [MaybeUninit<T>])| {
        stop.check();
        vectorised_widely(
            #[inline(always)]
            || {
                for (k, part) in slots.chunks_mut(width).enumerate() {
                    write(task * parts_per_task + k, part);
                }
            },
        );
    };
    let task_size = parts_per_task * width;
    helpers::for_each(count, slots.chunks_mut(task_size).enumerate(), task);
    // SAFETY: the tasks cover all `count` slots, and every caller's `write`, in this file, writes every slot of a part or panics; had one panicked, this line would not be
    // reached.
    #[expect(unsafe_code, reason = "the vector was filled through its spare capacity")]
    unsafe {
        values.set_len(count);
    }
    values
}

/// `count` elements in rows of `width`: row `k` is a copy of what begins at `start(k)`. However wide rows are, all threads copy.
pub(crate) fn copied<T: Fill>(
    values: &[T],
    count: usize,
    width: usize,
    start: impl Fn(usize) -> usize + Send + Sync,
) -> Vec<T> {
    in_rows(count, width, |row, column, slots| {
        slots.write_copy_of_slice(&values[start(row) + column..][..slots.len()]);
    })
}

/// The same, but all of row `k` are the one element at `start(k)`.
pub(crate) fn repeated<T: Fill>(
    values: &[T],
    count: usize,
    width: usize,
    start: impl Fn(usize) -> usize + Send + Sync,
) -> Vec<T> {
    in_rows(count, width, |row, _, slots| slots.fill(MaybeUninit::new(values[start(row)])))
}

/// `count` elements in rows of `width`, cut into parts of one size however wide rows are. `write(row, column, slots)` MUST write all slots, which are those of a row from a column on: it is private to
/// this file.
fn in_rows<T: Fill>(
    count: usize,
    width: usize,
    write: impl Fn(usize, usize, &mut [MaybeUninit<T>]) + Send + Sync,
) -> Vec<T> {
    filled(
        count,
        TASK,
        #[inline(always)]
        |k, slots| {
            let (mut row, mut column) = (k * TASK / width, k * TASK % width);
            let mut rest = slots;
            while !rest.is_empty() {
                let size = rest.len().min(width - column);
                let (slots, after) = rest.split_at_mut(size);
                write(row, column, slots);
                (row, column, rest) = (row + 1, 0, after);
            }
        },
    )
}

/// `rows` rows, each made of a row of each part; part `i` has rows of `widths[i]`.
pub(crate) fn joined<T: Fill>(parts: &[&[T]], widths: &[usize], rows: usize) -> Vec<T> {
    let width: usize = widths.iter().sum();
    filled(rows * width, TASK, |k, slots| {
        let (mut row, mut column) = (k * TASK / width, k * TASK % width);
        let mut part = 0;
        while column >= widths[part] {
            column -= widths[part];
            part += 1;
        }
        let mut rest = slots;
        while !rest.is_empty() {
            let size = rest.len().min(widths[part] - column);
            let (slots, after) = rest.split_at_mut(size);
            slots.write_copy_of_slice(&parts[part][row * widths[part] + column..][..size]);
            (part, column, rest) = (part + 1, 0, after);
            if part == parts.len() {
                (part, row) = (0, row + 1);
            }
        }
    })
}

// The functions below copy what `value` has captured for each part. Were it read through a reference, it would have to be read anew after each element that is written, and
// loops would not be vectorised; so closures should capture numbers by value, with `move`.

/// `value(element)` for every element of `a`, in order.
pub(crate) fn map<A: Fill, T: Fill>(a: &[A], value: impl Fn(A) -> T + Copy + Send + Sync) -> Vec<T> {
    from_values(
        a.len(),
        TASK,
        #[inline(always)]
        |k, size| {
            a[k * TASK..][..size].iter().map(
                #[inline(always)]
                move |a| value(*a),
            )
        },
    )
}

/// As [`map`], by `usual` for the elements of a part which all are what that is right for, and by `any` for those of other parts.
pub(crate) fn map_mostly<A: Fill, T: Fill>(
    a: &[A],
    is_usual: impl Fn(A) -> bool + Send + Sync,
    usual: impl Fn(A) -> T + Send + Sync,
    any: impl Fn(A) -> T + Send + Sync,
) -> Vec<T> {
    filled(
        a.len(),
        TASK,
        #[inline(always)]
        |k, slots| {
            let part = &a[k * TASK..][..slots.len()];
            let are_usual = part.iter().fold(
                true,
                #[inline(always)]
                |all, a| all & is_usual(*a),
            );
            if are_usual {
                for (slot, a) in slots.iter_mut().zip(part) {
                    slot.write(usual(*a));
                }
            } else {
                for (slot, a) in slots.iter_mut().zip(part) {
                    slot.write(any(*a));
                }
            }
        },
    )
}

/// `value(a, b)` for the elements of two slices of one length.
pub(crate) fn zip<A: Fill, B: Fill, T: Fill>(
    a: &[A],
    b: &[B],
    value: impl Fn(A, B) -> T + Copy + Send + Sync,
) -> Vec<T> {
    from_values(
        a.len(),
        TASK,
        #[inline(always)]
        |k, size| {
            a[k * TASK..][..size].iter().zip(&b[k * TASK..][..size]).map(
                #[inline(always)]
                move |(a, b)| value(*a, *b),
            )
        },
    )
}

/// `value(a, b, c)` for the elements of three slices of one length.
pub(crate) fn zip3<A: Fill, B: Fill, C: Fill, T: Fill>(
    a: &[A],
    b: &[B],
    c: &[C],
    value: impl Fn(A, B, C) -> T + Copy + Send + Sync,
) -> Vec<T> {
    from_values(
        a.len(),
        TASK,
        #[inline(always)]
        |k, size| {
            let bc = b[k * TASK..][..size].iter().zip(&c[k * TASK..][..size]);
            a[k * TASK..][..size].iter().zip(bc).map(
                #[inline(always)]
                move |(a, (b, c))| value(*a, *b, *c),
            )
        },
    )
}

/// `value(a, b)` for every row of `a` with the one row `b`.
pub(crate) fn zip_row<A: Fill, B: Fill, T: Fill>(
    a: &[A],
    b: &[B],
    value: impl Fn(A, B) -> T + Copy + Send + Sync,
) -> Vec<T> {
    /// So many elements take much longer than the beginning and the end of their loop.
    const LONG: usize = 1 << 10;
    // Several short rows are one long one.
    let rows_at_once = (LONG.min(a.len()) / b.len().max(1)).max(1);
    let several = if rows_at_once > 1 { b.repeat(rows_at_once) } else { Vec::new() };
    let b = if rows_at_once > 1 { &several } else { b };
    let width = b.len();
    from_values(
        a.len(),
        width,
        #[inline(always)]
        |k, size| {
            a[k * width..][..size].iter().zip(b).map(
                #[inline(always)]
                move |(a, b)| value(*a, *b),
            )
        },
    )
}

/// `value(a, b)` for every row of `a`, `width` elements, with its own element of `b`.
pub(crate) fn zip_column<A: Fill, B: Fill, T: Fill>(
    a: &[A],
    b: &[B],
    width: usize,
    value: impl Fn(A, B) -> T + Copy + Send + Sync,
) -> Vec<T> {
    from_values(
        a.len(),
        width,
        #[inline(always)]
        |k, size| {
            let b = b[k];
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
        for count in [0, 1, 7, TASK - 1, TASK, TASK + 1, helpers::SHARED + 13] {
            let a: Vec<f64> = (0..count).map(|k| k as f64).collect();
            let uneven =
                in_uneven_parts((0..count).map(|k| k % 3).take(count / 2), count, |_, k, part| part.fill(k as f64));
            let expected: Vec<f64> = (0..count / 2).flat_map(|k| vec![k as f64; k % 3]).collect();
            assert_eq!(uneven, expected);
            assert_eq!(map(&a, |a| a + 1.0), (1..=count).map(|k| k as f64).collect::<Vec<_>>());
            // Both ways are right for what is usual, so that no result says which one was taken; only the first part has something else.
            let mostly = map_mostly(&a, |a| a != 3.0, |a| if a == 3.0 { f64::NAN } else { 2.0 * a }, |a| 2.0 * a);
            assert_eq!(mostly, map(&a, |a| 2.0 * a));
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
