//! Products of rows with weights in single precision, such as layers have of the edges of a molecule.
//!
//! The library brings weights into the order in which it multiplies them, and multiplies nothing until they are there: for some tens of rows that takes a third as long as the products where weights
//! lie along that order, and as long as they where they lie across. Here they are taken in strips of columns, and those of the next strip are asked for while one is multiplied. Of weights that are
//! used again and again the strips are kept, in the order in which they are read. With thousands of rows the library multiplies as fast, but wants a bias to be in place before; here it is added where
//! a sum is written.
//!
//! Every element is a sum in the order of the inner axis, whatever the weights were read from, and whatever the tile it falls into.

use std::array;
use std::mem::MaybeUninit;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicPtr, Ordering};

use pulp::Simd;
use pulp::x86::V3;

use super::real::{LINE, fetch, wide_vectors};
use super::square::{SQUARE, registers, transposed};
use super::{MULTIPLICATIONS, helpers, matrix, vectorised};
use crate::Tensor;
use crate::context::Stop;

/// The columns of the strips of each kind of vectors: as many registers, of 16 or of 8 numbers, as leave room for the sums of a tile.
const WIDE: usize = 4 * 16;
const NARROW: usize = 2 * 8;
/// The most rows of a tile, whose sums take twenty-four registers of thirty-two, or twelve of sixteen.
const HEIGHT: usize = 6;
/// With fewer rows than three tiles have, bringing weights into order does not pay.
const LEAST_ROWS: usize = 2 * HEIGHT + 1;
/// The least numbers in a row that are worth it, and the most: strips of longer ones do not stay in a near cache, and what strips take that are not kept is not counted.
const INNER: RangeInclusive<usize> = 32..=1024;
/// From more numbers in a row than these on, only a few blocks of rows are multiplied here: strips that are not kept are made anew for each block.
const LONG: usize = 512;
const MOST_BLOCKS_OF_LONG: usize = 2;
/// Rows of about so many numbers are multiplied with one strip after another, and stay in a near cache meanwhile.
const FEW: usize = 1 << 17;
/// For so many places of the inner axis one row of the next strip is asked for: the first four tiles of a strip ask for all of them.
const STEP: usize = 4;

/// Whether products of these sizes are made here on this processor: of `inner` numbers in each of `rows` rows.
pub(super) fn are_for([rows, inner, columns]: [usize; 3]) -> bool {
    // A whole number of wide strips is one of narrow ones, too.
    let are_whole = inner.is_multiple_of(SQUARE) && columns.is_multiple_of(WIDE);
    let are_few = inner <= LONG || rows <= MOST_BLOCKS_OF_LONG * height(inner);
    are_whole && are_few && rows >= LEAST_ROWS && INNER.contains(&inner) && V3::try_new().is_some()
}

/// The rows of a block, which follow one another with one strip after another.
fn height(inner: usize) -> usize {
    (FEW / inner).next_multiple_of(HEIGHT)
}

/// `left right + bias` in single precision, in blocks of rows and columns that threads share. The sizes are such as [`are_for`] said, and the first two are those of `left`.
pub(super) fn product(left: &[f32], right: (&Tensor, bool), bias: Option<&[f32]>, sizes: [usize; 3]) -> Vec<f32> {
    match (wide_vectors(), V3::try_new()) {
        (Some(simd), _) => product_in::<_, 4, WIDE>(simd, left, right, bias, sizes),
        (None, Some(simd)) => product_in::<_, 2, NARROW>(simd, left, right, bias, sizes),
        (None, None) => unreachable!("this processor has such vectors"),
    }
}

/// The same in these vectors, so many registers of which are a row of a strip, `WIDTH` numbers.
fn product_in<S: Simd, const REGISTERS: usize, const WIDTH: usize>(
    simd: S,
    left: &[f32],
    (right, is_transposed): (&Tensor, bool),
    bias: Option<&[f32]>,
    [rows, inner, columns]: [usize; 3],
) -> Vec<f32> {
    const { assert!(S::F32_LANES * REGISTERS == WIDTH, "a row of a strip is made of registers") };
    let host = right.host();
    let weights = Weights { values: host.values(), is_transposed, inner, columns };
    let count = rows * columns;
    let are_right = left.len() == rows * inner && weights.values.len() == inner * columns;
    assert!(are_right && bias.is_none_or(|bias| bias.len() == columns), "shapes were checked");
    let kept = right.panels(is_transposed, || {
        let mut panels = Panels::new(inner * columns);
        vectorised(
            #[inline(always)]
            |_| {
                for column in (0..columns).step_by(WIDTH) {
                    weights.add_strip::<WIDTH>(column, &mut panels);
                }
            },
        );
        panels
    });
    let multiplications = count.saturating_mul(inner);
    let width = matrix::block(multiplications, columns);
    // Blocks of the same rows follow one another, so that a thread finds these in a near cache.
    let height = height(inner);
    let across = columns.div_ceil(width);
    let mut out: Vec<f32> = Vec::with_capacity(count);
    let start = AtomicPtr::new(out.as_mut_ptr());
    let line = |row: usize, column: usize| -> &mut [MaybeUninit<f32>; WIDTH] {
        assert!(row < rows && column + WIDTH <= columns, "tiles are parts of the result");
        // SAFETY: the place is one of `count` reserved elements, as was looked at, and so are those after it in its row. No two blocks overlap, and each asks once for a part of a row, so
        // that no two such references are to the same elements.
        #[expect(unsafe_code, reason = "threads write parts of rows")]
        unsafe {
            &mut *start.load(Ordering::Relaxed).add(row * columns + column).cast()
        }
    };
    let stop = Stop::current();
    let compute = |number: usize| {
        stop.check();
        let first_row = number / across * height;
        let rows = first_row..(first_row + height).min(rows);
        let first_column = number % across * width;
        let columns = first_column..(first_column + width).min(columns);
        Simd::vectorize(
            simd,
            #[inline(always)]
            || {
                let mut packed = Panels::new(if kept.is_none() { inner * WIDTH } else { 0 });
                for column in columns.step_by(WIDTH) {
                    let panel = match kept {
                        Some(panels) => &panels.values()[column * inner..][..inner * WIDTH],
                        None => {
                            packed.clear();
                            weights.add_strip::<WIDTH>(column, &mut packed);
                            packed.values()
                        }
                    };
                    let bias = bias.map(
                        #[inline(always)]
                        |bias| &bias[column..][..WIDTH],
                    );
                    let mut ahead = weights.ahead::<WIDTH>(column + WIDTH, kept);
                    for row in rows.clone().step_by(HEIGHT) {
                        let left = &left[row * inner..];
                        let place = [row, column];
                        match rows.end - row {
                            1 => tile::<S, REGISTERS, WIDTH, 1>(simd, left, panel, bias, ahead, place, &line),
                            2 => tile::<S, REGISTERS, WIDTH, 2>(simd, left, panel, bias, ahead, place, &line),
                            3 => tile::<S, REGISTERS, WIDTH, 3>(simd, left, panel, bias, ahead, place, &line),
                            4 => tile::<S, REGISTERS, WIDTH, 4>(simd, left, panel, bias, ahead, place, &line),
                            5 => tile::<S, REGISTERS, WIDTH, 5>(simd, left, panel, bias, ahead, place, &line),
                            _ => tile::<S, REGISTERS, WIDTH, HEIGHT>(simd, left, panel, bias, ahead, place, &line),
                        }
                        ahead = ahead.after(inner / STEP);
                    }
                }
            },
        );
    };
    helpers::for_each(multiplications / MULTIPLICATIONS, 0..rows.div_ceil(height) * across, compute);
    // SAFETY: the tiles of all blocks cover all `count` elements, and each wrote its own; had one been stopped, this line would not be reached.
    #[expect(unsafe_code, reason = "the vector was filled through its pointer")]
    unsafe {
        out.set_len(count);
    }
    out
}

/// Strips of weights one after another, each of which has its rows one after another. No line of a cache cuts a register, which would be read in two parts.
pub(crate) struct Panels {
    values: Vec<f32>,
    /// Where a line of a cache begins.
    start: usize,
}

impl Panels {
    /// Room for so many numbers.
    fn new(count: usize) -> Self {
        let mut values: Vec<f32> = Vec::with_capacity(count + LINE / size_of::<f32>());
        let start = values.as_ptr().align_offset(LINE);
        values.resize(start, 0.0);
        Self { values, start }
    }

    fn clear(&mut self) {
        self.values.truncate(self.start);
    }

    fn values(&self) -> &[f32] {
        &self.values[self.start..]
    }
}

/// The right operand of a product as it lies in memory: rows of `columns` numbers, or rows of `inner` numbers if it is transposed.
#[derive(Clone, Copy)]
struct Weights<'a> {
    values: &'a [f32],
    is_transposed: bool,
    inner: usize,
    columns: usize,
}

impl<'a> Weights<'a> {
    /// Adds the strip that begins at this column.
    #[inline(always)]
    fn add_strip<const WIDTH: usize>(self, column: usize, panels: &mut Panels) {
        if !self.is_transposed {
            for row in self.values.chunks_exact(self.columns) {
                let Some(row) = row[column..].first_chunk::<WIDTH>() else { unreachable!("strips are whole") };
                panels.values.extend_from_slice(row);
            }
            return;
        }
        let rows: [&[[f32; SQUARE]]; WIDTH] = array::from_fn(
            #[inline(always)]
            |row| self.values[(column + row) * self.inner..][..self.inner].as_chunks().0,
        );
        let registers = registers();
        let mut place = 0;
        while place < self.inner / SQUARE {
            let mut lines = [[0.0; WIDTH]; SQUARE];
            for start in (0..WIDTH).step_by(SQUARE) {
                let square = array::from_fn(
                    #[inline(always)]
                    |row| rows[start + row][place],
                );
                let square = transposed(square, registers);
                for line in 0..SQUARE {
                    lines[line][start..start + SQUARE].copy_from_slice(&square[line]);
                }
            }
            panels.values.extend_from_slice(lines.as_flattened());
            place += 1;
        }
    }

    /// What the strip is read from that begins at this column, if there is one.
    #[inline(always)]
    fn ahead<const WIDTH: usize>(self, column: usize, kept: Option<&'a Panels>) -> Ahead<'a> {
        let Self { values, is_transposed, inner, columns } = self;
        let rest = if column < columns { inner } else { 0 };
        // The rows of a transposed operand that a strip is made of lie one after another as well.
        match kept.map(Panels::values).or(is_transposed.then_some(values)) {
            Some(values) => Ahead { values, place: column * inner, step: WIDTH, rest },
            None => Ahead { values, place: column, step: columns, rest },
        }
    }
}

/// What is asked for while something else is multiplied: so many pieces of a row of a strip, so far from one another.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    values: &'a [f32],
    place: usize,
    step: usize,
    rest: usize,
}

impl Ahead<'_> {
    /// What is left after so many.
    #[inline(always)]
    fn after(self, count: usize) -> Self {
        let rest = self.rest.saturating_sub(count);
        Self { place: self.place + count * self.step, rest, ..self }
    }
}

/// Computes the tile at this place of the result, and writes what it has in each register.
#[inline(always)]
fn tile<'a, S: Simd, const REGISTERS: usize, const WIDTH: usize, const ROWS: usize>(
    simd: S,
    left: &[f32],
    panel: &[f32],
    bias: Option<&[f32]>,
    ahead: Ahead<'_>,
    [first_row, column]: [usize; 2],
    line: &impl Fn(usize, usize) -> &'a mut [MaybeUninit<f32>; WIDTH],
) {
    // Slices that are seen to be of one length are read without looking at it. Were there anything in the loop that can panic, the sums would not stay in registers.
    let panel = S::as_simd_f32s(panel).0.as_chunks::<REGISTERS>().0.as_chunks::<STEP>().0;
    let mut rows: [&[[f32; STEP]]; ROWS] = [&[]; ROWS];
    for (row, own) in rows.iter_mut().enumerate() {
        *own = &left[row * panel.len() * STEP..].as_chunks().0[..panel.len()];
    }
    let (mut place, step) = if ahead.rest > 0 { (ahead.place, ahead.step) } else { (0, 0) };
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; ROWS];
    for k in 0..panel.len() {
        for start in (0..WIDTH).step_by(LINE / size_of::<f32>()) {
            fetch(ahead.values, place + start);
        }
        place += step;
        // Named one by one: sums that a loop within a loop goes through are kept in memory.
        macro_rules! add {
            ($($part:literal)*) => {$(
                for row in 0..ROWS {
                    let factor = simd.splat_f32s(rows[row][k][$part]);
                    for register in 0..REGISTERS {
                        sums[row][register] = simd.mul_add_f32s(factor, panel[k][$part][register], sums[row][register]);
                    }
                }
            )*};
        }
        add!(0 1 2 3);
    }
    let bias = bias.map(
        #[inline(always)]
        |bias| S::as_simd_f32s(bias).0,
    );
    for (row, sums) in sums.iter().enumerate() {
        let line = S::as_uninit_mut_simd_f32s(line(first_row + row, column)).0;
        for (register, sum) in sums.iter().enumerate() {
            let sum = bias.map_or(
                *sum,
                #[inline(always)]
                |bias| simd.add_f32s(*sum, bias[register]),
            );
            line[register].write(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use crate::{Device, Misuse};

    /// Sums in order, whether strips are made for each product or kept, and their memory is counted.
    #[test]
    fn products_are_sums_in_order_from_the_first_use_of_weights_to_the_last() -> Result<(), Misuse> {
        let Some(narrow) = V3::try_new() else {
            // The library's then, whose sums are in an order of their own.
            return Ok(());
        };
        let number = |k: usize| (k * 7919 % 1009) as f32 / 1009.0 - 0.5;
        // Tiles of each height, one strip and several, blocks of more than one, and more rows than stay in a near cache.
        for [rows, inner, columns] in [
            [13, 32, 64],
            [14, 40, 192],
            [15, 64, 128],
            [41, 256, 64],
            [82, 48, 1024 + 64],
            [2060, 64, 64],
            [140, 1024, 64],
        ] {
            assert!(are_for([rows, inner, columns]) && !are_for([rows, 1032, columns]));
            let left: Vec<f32> = (0..rows * inner).map(number).collect();
            let right: Vec<f32> = (0..inner * columns).map(|k| number(k + 5)).collect();
            let turned: Vec<f32> = (0..inner * columns).map(|at| right[at % inner * columns + at / inner]).collect();
            let bias: Vec<f32> = (0..columns).map(number).collect();
            let sum = |at: usize| {
                let term =
                    |sum: f32, k: usize| left[at / columns * inner + k].mul_add(right[k * columns + at % columns], sum);
                (0..inner).fold(0.0, term)
            };
            let expected: Vec<f32> = (0..rows * columns).map(sum).collect();
            let with_bias: Vec<f32> = expected.iter().zip(bias.iter().cycle()).map(|(sum, bias)| sum + bias).collect();
            let context = Context::new(1 << 24, f64::INFINITY);
            let _entered = context.enter();
            let arrangements = [(false, [inner, columns], &right), (true, [columns, inner], &turned)];
            for ((is_transposed, shape, right), is_narrow) in
                arrangements.into_iter().flat_map(|arrangement| [(arrangement, false), (arrangement, true)])
            {
                let weights = Tensor::from_float32(&Device::cpu(), &shape, right)?;
                let before = context.quota().used();
                for _ in 0..10 {
                    let find = |bias| {
                        let (right, sizes) = ((&weights, is_transposed), [rows, inner, columns]);
                        match is_narrow {
                            false => product(&left, right, bias, sizes),
                            true => product_in::<_, 2, NARROW>(narrow, &left, right, bias, sizes),
                        }
                    };
                    assert_eq!(find(None), expected, "{rows} {inner} {columns} {is_transposed}");
                    assert_eq!(find(Some(&bias)), with_bias, "{rows} {inner} {columns} {is_transposed}");
                }
                assert!(context.quota().used() >= before + size_of_val(right.as_slice()), "what is kept is counted");
            }
            assert_eq!(context.quota().used(), 0);
        }
        Ok(())
    }
}
