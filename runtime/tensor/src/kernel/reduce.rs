//! Sums and extremes over axes, in an order that depends on shapes alone.

use super::fill::{Fill, in_parts, in_uneven_parts};
use super::{Real, Vectors, around, for_float, shape, vectorised};
use crate::tensor::{Elements, Sizes};
use crate::{DType, Tensor};

/// Sums in a fixed order. If the axes that go do not lie side by side, they are first brought together, behind those that stay.
pub(crate) fn sum(a: &Tensor, is_reduced: &[bool], result: &[usize]) -> Elements {
    let first = is_reduced.iter().take_while(|reduced| !**reduced).count();
    let last = is_reduced.len() - is_reduced.iter().rev().take_while(|reduced| !**reduced).count();
    let together = first >= last || is_reduced[first..last].iter().all(|reduced| *reduced);
    let size = |axes: std::ops::Range<usize>| a.shape()[axes].iter().product::<usize>();
    let sizes = match together {
        true => [size(0..first), size(first..last.max(first)), size(last.max(first)..a.shape().len())],
        false => {
            let kept: usize = result.iter().product();
            [kept, a.count() / kept.max(1), 1]
        }
    };
    let permuted;
    let host = if together {
        a.host()
    } else {
        let kept = (0..is_reduced.len()).filter(|&axis| !is_reduced[axis]);
        let gone = (0..is_reduced.len()).filter(|&axis| is_reduced[axis]);
        let axes: Sizes = kept.chain(gone).collect();
        let sizes: Sizes = axes.iter().map(|&axis| a.shape()[axis]).collect();
        permuted = shape::permute(a, &axes, &sizes);
        permuted.host()
    };
    match a.dtype() {
        DType::Int32 => Elements::new(sum_integers(host.values(), sizes, i32::wrapping_add)),
        DType::Int64 => Elements::new(sum_integers(host.values(), sizes, i64::wrapping_add)),
        dtype => for_float!(dtype, R => {
            let values = host.values::<R>();
            let [outer, count, inner] = sizes;
            let sums =
                if inner == 1 { sum_rows::<R>(values, outer, count) } else { sum_columns::<R>(values, [outer, count, inner]) };
            Elements::new(sums)
        }),
    }
}

fn sum_integers<T: Fill>(values: &[T], [outer, count, inner]: [usize; 3], add: fn(T, T) -> T) -> Vec<T> {
    in_parts(
        outer * inner,
        inner,
        #[inline(always)]
        |block, out| {
            for row in values[block * count * inner..][..count * inner].chunks_exact(inner) {
                out.iter_mut().zip(row).for_each(|(total, value)| *total = add(*total, *value));
            }
        },
    )
}

/// Rows up to this length are summed one element after the other.
const SHORT: usize = 16;

/// The sum of each of `rows` rows of `width` elements.
fn sum_rows<R: Real>(values: &[R], rows: usize, width: usize) -> Vec<R> {
    if width == 0 {
        return vec![R::default(); rows];
    }
    if width <= SHORT {
        // Setting up lanes would take longer than adding.
        return in_parts(
            rows,
            1 << 10,
            #[inline(always)]
            |k, out| {
                for (out, row) in out.iter_mut().zip(values[(k << 10) * width..].chunks_exact(width)) {
                    *out = R::from_f64(row.iter().fold(0.0, |sum, value| sum + value.to_f64()));
                }
            },
        );
    }
    if rows == 1 {
        // Its blocks are summed by several threads and added up in order.
        let blocks = sums_of_pieces(values, BLOCK, 4, lane_sum);
        return vec![R::from_f64(blocks.into_iter().sum())];
    }
    sums_of_pieces(values, width, BLOCK / width, |row: &[R]| R::from_f64(row.chunks(BLOCK).map(lane_sum).sum::<f64>()))
}

/// The least elements that are summed on their own.
const BLOCK: usize = 1 << 12;

/// `sum` of each piece of so many elements; `together` of them, but one at least, are left to one thread.
fn sums_of_pieces<R: Real, T: Fill>(
    values: &[R],
    size: usize,
    together: usize,
    sum: impl Fn(&[R]) -> T + Send + Sync,
) -> Vec<T> {
    let (count, together) = (values.len().div_ceil(size), together.max(1));
    let parts = (0..count).step_by(together).map(|start| together.min(count - start));
    in_uneven_parts(parts, values.len(), |_, k, out: &mut [T]| {
        for (out, piece) in out.iter_mut().zip(values[k * together * size..].chunks(size)) {
            *out = sum(piece);
        }
    })
}

/// The sum of a block in lanes of double precision, added up pairwise.
fn lane_sum<R: Real>(block: &[R]) -> f64 {
    /// Enough additions under way to hide how long each takes.
    const LANES: usize = 32;
    vectorised(
        #[inline(always)]
        |_| {
            let mut lanes = [0.0_f64; LANES];
            let mut chunks = block.chunks_exact(LANES);
            for chunk in &mut chunks {
                // One loop for each step, so that each becomes an instruction on whole registers.
                let values: [f64; LANES] = std::array::from_fn(|lane| chunk[lane].to_f64());
                for lane in 0..LANES {
                    lanes[lane] += values[lane];
                }
            }
            for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
                *lane += value.to_f64();
            }
            let mut half = LANES / 2;
            while half > 0 {
                for lane in 0..half {
                    lanes[lane] += lanes[lane + half];
                }
                half /= 2;
            }
            lanes[0]
        },
    )
}

/// The columns that are summed together: as many as registers of 256 bits hold in double precision.
const COLUMNS: usize = 32;
/// More of them, as many as registers of 512 bits hold: a longer piece of each row, which comes faster from memory.
const MORE_COLUMNS: [usize; 2] = [128, 64];

/// For each of `blocks` blocks of `count` rows of `width` elements, the sum of the rows, row after row. It does not depend on how many columns go together.
fn sum_columns<R: Real>(values: &[R], [blocks, count, width]: [usize; 3]) -> Vec<R> {
    // Long pieces only where there is one for each thread.
    let enough = |columns: &usize| blocks * (width / columns) >= rayon::current_num_threads();
    let columns = MORE_COLUMNS.into_iter().find(enough).unwrap_or(COLUMNS);
    let strips = width.div_ceil(columns);
    in_uneven_parts(
        (0..blocks * strips).map(|part| columns.min(width - part % strips * columns)),
        values.len(),
        #[inline(always)]
        |vectors, part, mut out| {
            let (block, mut first) = (part / strips, part % strips * columns);
            let values = &values[block * count * width..][..count * width];
            if vectors == Vectors::Wide {
                out = sum_strips::<R, { MORE_COLUMNS[0] }>(values, width, &mut first, out);
                out = sum_strips::<R, { MORE_COLUMNS[1] }>(values, width, &mut first, out);
            }
            out = sum_strips::<R, COLUMNS>(values, width, &mut first, out);
            if !out.is_empty() {
                let mut totals = [0.0; COLUMNS];
                for row in values.chunks_exact(width) {
                    totals.iter_mut().zip(&row[first..]).for_each(|(total, value)| *total += value.to_f64());
                }
                out.iter_mut().zip(totals).for_each(|(out, total)| *out = R::from_f64(total));
            }
        },
    )
}

/// Sums columns from `first` on, `STRIP` of them at a time, and answers with what is left of `out`. Nothing in the loop over rows can panic: it would keep the
/// totals out of registers.
#[inline(always)]
fn sum_strips<'a, R: Real, const STRIP: usize>(
    values: &[R],
    width: usize,
    first: &mut usize,
    out: &'a mut [R],
) -> &'a mut [R] {
    let (strips, rest) = out.as_chunks_mut::<STRIP>();
    for strip in strips {
        let mut totals = [0.0; STRIP];
        let pieces = values.chunks_exact(width).filter_map(
            #[inline(always)]
            |row| row.get(*first..)?.first_chunk::<STRIP>(),
        );
        for piece in pieces {
            let piece: [f64; STRIP] = std::array::from_fn(
                #[inline(always)]
                |column| piece[column].to_f64(),
            );
            for column in 0..STRIP {
                totals[column] += piece[column];
            }
        }
        strip.iter_mut().zip(totals).for_each(|(out, total)| *out = R::from_f64(total));
        *first += STRIP;
    }
    rest
}

/// Which end to look for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extreme {
    Largest,
    Smallest,
}

/// Where along `axis` the extreme element is, the first of equal ones; a NaN wins.
pub(crate) fn extreme_places(a: &Tensor, axis: usize, which: Extreme) -> Elements {
    let (outer, size, inner) = around(a.shape(), axis);
    let host = a.host();
    let places: Vec<i64> = for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        // The smallest is the largest of the negatives.
        let sign = R::from_f64(if which == Extreme::Largest { 1.0 } else { -1.0 });
        if inner == 1 {
            in_parts(outer, 64, #[inline(always)] |k, out| {
                for (out, row) in out.iter_mut().zip(values[k * 64 * size..].chunks_exact(size)) {
                    *out = largest_place(row, sign) as i64;
                }
            })
        } else {
            in_parts(outer * inner, inner, #[inline(always)] |k, out| {
                largest_places(&values[k * size * inner..][..size * inner], sign, out);
            })
        }
    });
    Elements::new(places)
}

/// The numbers of a row that are looked at together.
const TOGETHER: usize = 16;

/// The place of the largest `sign * value`, the first of equal ones; or of the first NaN.
#[inline(always)]
fn largest_place<R: Real>(row: &[R], sign: R) -> usize {
    let mut best = [sign * row[0]; TOGETHER];
    let mut are_nan = [false; TOGETHER];
    // One loop for each step, so that each becomes an instruction on whole registers; their length is looked at once.
    let chunks = row.chunks_exact(TOGETHER);
    let rest = chunks.remainder();
    for chunk in chunks.filter_map(|chunk| chunk.first_chunk::<TOGETHER>()) {
        for place in 0..TOGETHER {
            let value = sign * chunk[place];
            best[place] = if value > best[place] { value } else { best[place] };
        }
        for place in 0..TOGETHER {
            are_nan[place] |= chunk[place].is_nan();
        }
    }
    for ((best, is_nan), value) in best.iter_mut().zip(&mut are_nan).zip(rest) {
        let value = sign * *value;
        *best = if value > *best { value } else { *best };
        *is_nan |= value.is_nan();
    }
    if are_nan.contains(&true) {
        return row.iter().position(|value| value.is_nan()).unwrap_or(0);
    }
    let largest = best.into_iter().fold(best[0], |a, b| if b > a { b } else { a });
    let has_largest =
        |chunk: &[R; TOGETHER]| chunk.iter().fold(false, |found, value| found | (sign * *value == largest));
    let mut start = 0;
    for chunk in row.chunks_exact(TOGETHER).filter_map(|chunk| chunk.first_chunk()) {
        if has_largest(chunk) {
            break;
        }
        start += TOGETHER;
    }
    start + row[start..].iter().position(|value| sign * *value == largest).unwrap_or(0)
}

/// For each column of these rows, the row of the largest `sign * value`.
#[inline(always)]
fn largest_places<R: Real>(rows: &[R], sign: R, places: &mut [i64]) {
    let mut best: Vec<R> = rows[..places.len()].iter().map(|value| sign * *value).collect();
    for (row, values) in rows.chunks_exact(places.len()).enumerate().skip(1) {
        for ((best, place), value) in best.iter_mut().zip(places.iter_mut()).zip(values) {
            let value = sign * *value;
            // Where the best is a NaN it stays, and where the value is one it wins.
            let wins = (value > *best) | (value.is_nan() & !best.is_nan());
            *best = if wins { value } else { *best };
            *place = if wins { row as i64 } else { *place };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looked at one after the other.
    fn first_extreme(row: &[f64], sign: f64) -> usize {
        let nan = row.iter().position(|value| value.is_nan());
        nan.unwrap_or_else(|| {
            (1..row.len()).fold(0, |best, place| if sign * row[place] > sign * row[best] { place } else { best })
        })
    }

    #[test]
    fn the_first_of_equal_extremes_is_found_and_a_nan_before_any_number() {
        for width in [1, 2, 15, 16, 17, 31, 32, 33, 47, 64, 100] {
            for seed in 0..200 {
                // Few values, so that many are equal.
                let value = |place: usize| [2.0, 0.0, -0.0, 7.0, -7.0, 1.0][(seed * 31 + place * (7 + seed)) % 6];
                let mut row: Vec<f64> = (0..width).map(value).collect();
                let mut check = |at: usize, special: f64| {
                    row[at % width] = special;
                    let single: Vec<f32> = row.iter().map(|&value| value as f32).collect();
                    for sign in [1.0, -1.0] {
                        let expected = first_extreme(&row, sign);
                        assert_eq!(largest_place(&row, sign), expected, "{row:?}, sign {sign}");
                        assert_eq!(largest_place(&single, sign as f32), expected, "{row:?}, sign {sign}");
                    }
                };
                check(seed, 7.0);
                check(seed * 3, f64::NEG_INFINITY);
                check(seed * 5, f64::INFINITY);
                check(seed * 7 + 2, f64::NAN);
                check(seed * 11, f64::NAN);
            }
        }
        for extreme in [f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(largest_place(&[extreme; 40], 1.0), 0);
        }
    }
}
