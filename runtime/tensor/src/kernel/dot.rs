//! Products of rows with rows, both of which are read from front to back.
//!
//! Each sum runs in lanes, eight in single precision and four in double, whatever vectors a processor has; what is left over comes last. So the bits are the same everywhere. Compilers
//! make slow code of some of the tiles, so those of single precision are written in the processor's own instructions.

use std::array;

use super::product::{is_single, rows_of_tile};
use super::{Real, Vectors};

/// The rows of `right` that go into a tile.
const COLUMNS: usize = 4;
/// The most rows of `left` that do: with them sums take twelve registers, which hides how long each addition takes.
const ROWS: usize = 3;
/// The same of wide vectors, each of which holds the lanes of two sums: those take twenty-four registers of thirty-two. The more rows, the fewer times weights are read.
#[cfg(target_arch = "x86_64")]
const ROWS_OF_WIDE: usize = 12;
/// The lanes of a sum in single precision.
const LANES: usize = 8;

/// The rows of `left` in the order in which tiles read them: of each tile the first lanes of all its rows, then the next ones. One pointer then goes through all of them, where a
/// pointer for each row would not find room in the registers.
pub(super) struct Rows<'a, R> {
    left: &'a [R],
    inner: usize,
    /// The rows of a tile; the last one may have fewer.
    height: usize,
    packed: Vec<R>,
}

impl<'a, R: Real> Rows<'a, R> {
    /// Rows of `inner` numbers each, for [`dots`] with these vectors.
    pub(super) fn new(vectors: Vectors, left: &'a [R], inner: usize) -> Self {
        let rows = left.len() / inner;
        let most = most_rows::<R>(vectors);
        // Tiles of about the same height: one row alone would wait for its sums.
        let height = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
        let (lanes, mut packed) = (lanes::<R>(), Vec::with_capacity(left.len()));
        for tile in left.chunks(height * inner) {
            for start in (0..inner - inner % lanes).step_by(lanes) {
                for row in tile.chunks_exact(inner) {
                    packed.extend_from_slice(&row[start..][..lanes]);
                }
            }
        }
        Self { left, inner, height, packed }
    }
}

/// The most rows of a tile that [`dots`] computes in these vectors.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "other processors have vectors of one size"))]
fn most_rows<R>(vectors: Vectors) -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_single::<R>() && vectors == Vectors::Wide && pulp::x86::V4::try_new().is_some() {
        return ROWS_OF_WIDE;
    }
    ROWS
}

/// The lanes of a sum.
const fn lanes<R>() -> usize {
    if is_single::<R>() { LANES } else { LANES / 2 }
}

/// The product of each row of `left` with each row of `right`. It is part of the caller's code, which must be [`vectorised`](super::vectorised) for these vectors.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "other processors have vectors of one size"))]
pub(super) fn dots<R: Real>(vectors: Vectors, left: &Rows<'_, R>, right: &[R], out: &mut [R]) {
    #[cfg(target_arch = "x86_64")]
    if is_single::<R>() {
        use bytemuck::{cast_slice, cast_slice_mut};
        use pulp::x86::{V3, V4};

        let (right, out) = (cast_slice(right), cast_slice_mut(out));
        let (single, packed) = (cast_slice(left.left), cast_slice(&left.packed));
        let sizes = [left.inner, left.height];
        if vectors == Vectors::Wide
            && let Some(simd) = V4::try_new()
        {
            return in_tiles::<f32, _>(simd, single, packed, sizes, right, out);
        }
        if let Some(simd) = V3::try_new() {
            return in_tiles::<f32, _>(simd, single, packed, sizes, right, out);
        }
    }
    in_tiles::<R, _>(Plain, left.left, &left.packed, [left.inner, left.height], right, out);
}

/// How tiles are computed.
trait Tiles<R>: Copy {
    /// The most rows of a tile.
    const MOST: usize;

    /// The products of some rows with four others, as far as these have whole lanes. The former are packed as [`Rows`] are.
    fn tile<const HEIGHT: usize>(self, left: &[R], right: [&[R]; COLUMNS]) -> [[R; COLUMNS]; HEIGHT];
}

#[inline(always)]
fn in_tiles<R: Real, T: Tiles<R>>(
    tiles: T,
    left: &[R],
    packed: &[R],
    [inner, height]: [usize; 2],
    right: &[R],
    out: &mut [R],
) {
    let (rows, columns) = (left.len() / inner, right.len() / inner);
    let whole = inner - inner % lanes::<R>();
    for column in (0..columns).step_by(COLUMNS) {
        let count = COLUMNS.min(columns - column);
        // What would lie beyond the last row of `right` is that row once more, and is not written.
        let right: [&[R]; COLUMNS] = array::from_fn(
            #[inline(always)]
            |k| &right[(column + k.min(count - 1)) * inner..][..inner],
        );
        for row in (0..rows).step_by(height) {
            let (left, packed) = (&left[row * inner..], &packed[row * whole..]);
            let out = (&mut out[row * columns + column..], columns, count);
            match height.min(rows - row) {
                1 => one::<R, T, 1>(tiles, left, packed, right, out),
                2 => one::<R, T, 2>(tiles, left, packed, right, out),
                3 => one::<R, T, 3>(tiles, left, packed, right, out),
                4 if T::MOST >= 4 => one::<R, T, 4>(tiles, left, packed, right, out),
                5 if T::MOST >= 5 => one::<R, T, 5>(tiles, left, packed, right, out),
                6 if T::MOST >= 6 => one::<R, T, 6>(tiles, left, packed, right, out),
                7 if T::MOST >= 7 => one::<R, T, 7>(tiles, left, packed, right, out),
                8 if T::MOST >= 8 => one::<R, T, 8>(tiles, left, packed, right, out),
                9 if T::MOST >= 9 => one::<R, T, 9>(tiles, left, packed, right, out),
                10 if T::MOST >= 10 => one::<R, T, 10>(tiles, left, packed, right, out),
                11 if T::MOST >= 11 => one::<R, T, 11>(tiles, left, packed, right, out),
                12 if T::MOST >= 12 => one::<R, T, 12>(tiles, left, packed, right, out),
                other => unreachable!("a tile has {other} rows"),
            }
        }
    }
}

/// Computes one tile, and writes the first numbers of each row of it, so many as are said last, into rows of `out` that are `stride` apart.
#[inline(always)]
fn one<R: Real, T: Tiles<R>, const HEIGHT: usize>(
    tiles: T,
    left: &[R],
    packed: &[R],
    right: [&[R]; COLUMNS],
    (out, stride, count): (&mut [R], usize, usize),
) {
    let inner = right[0].len();
    let whole = inner - inner % lanes::<R>();
    let totals = tiles.tile::<HEIGHT>(&packed[..HEIGHT * whole], right);
    rows_of_tile!(totals, |row, totals| {
        let mut totals = *totals;
        for k in whole..inner {
            for column in 0..COLUMNS {
                totals[column] = left[row * inner + k].mul_add(right[column][k], totals[column]);
            }
        }
        out[row * stride..][..count].copy_from_slice(&totals[..count]);
    }, 0 1 2 3 4 5 6 7 8 9 10 11);
}

/// In plain loops.
#[derive(Clone, Copy)]
struct Plain;

impl<R: Real> Tiles<R> for Plain {
    const MOST: usize = ROWS;

    #[inline(always)]
    fn tile<const HEIGHT: usize>(self, left: &[R], right: [&[R]; COLUMNS]) -> [[R; COLUMNS]; HEIGHT] {
        match is_single::<R>() {
            true => plain::<R, HEIGHT, LANES>(left, right),
            false => plain::<R, HEIGHT, { LANES / 2 }>(left, right),
        }
    }
}

#[inline(always)]
fn plain<R: Real, const HEIGHT: usize, const LANES: usize>(
    left: &[R],
    right: [&[R]; COLUMNS],
) -> [[R; COLUMNS]; HEIGHT] {
    // Slices that are seen to be of one length are read without looking at it. Were there anything in the loop that can panic, the sums would not stay in registers.
    let count = right[0].len() / LANES;
    let left = &left.as_chunks::<LANES>().0.as_chunks::<HEIGHT>().0[..count];
    let right = right.map(
        #[inline(always)]
        |row| &row.as_chunks::<LANES>().0[..count],
    );
    let mut sums = [[[R::default(); LANES]; COLUMNS]; HEIGHT];
    for k in 0..count {
        for column in 0..COLUMNS {
            let weights = right[column][k];
            for row in 0..HEIGHT {
                let factors = left[k][row];
                for lane in 0..LANES {
                    sums[row][column][lane] = factors[lane].mul_add(weights[lane], sums[row][column][lane]);
                }
            }
        }
    }
    // A call of `map` would not be compiled for the vector unit at hand.
    let mut totals = [[R::default(); COLUMNS]; HEIGHT];
    for row in 0..HEIGHT {
        for column in 0..COLUMNS {
            totals[row][column] = total(sums[row][column]);
        }
    }
    totals
}

/// The sum of four or eight lanes.
#[inline(always)]
fn total<R: Real, const LANES: usize>(lanes: [R; LANES]) -> R {
    const { assert!(LANES == 4 || LANES == 8, "lanes are added in pairs") };
    let four: [R; 4] = array::from_fn(
        #[inline(always)]
        |lane| if LANES == 8 { lanes[lane] + lanes[lane + 4] } else { lanes[lane] },
    );
    (four[0] + four[2]) + (four[1] + four[3])
}

/// In the instructions of processors of the x86-64 family. Each adds in the order of [`total`].
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::array;

    use bytemuck::cast;
    use pulp::x86::{V3, V4};

    use super::super::real::fetch;
    use super::{COLUMNS, LANES, ROWS, ROWS_OF_WIDE, Tiles};

    /// So many numbers before they are multiplied, weights are asked for: the other rows of a tile keep the processor from looking so far ahead by itself.
    const AHEAD: usize = 128;

    /// Asks for what follows the chunk `k` of four rows that lie one after another: where they end, for the next four.
    #[inline(always)]
    fn fetch_ahead(right: [&[f32]; COLUMNS], k: usize) {
        if !k.is_multiple_of(2) {
            // A line of a cache is two chunks.
            return;
        }
        let (inner, place) = (right[0].len(), k * LANES + AHEAD);
        let place = if place < inner { place } else { place + (COLUMNS - 1) * inner };
        for row in &right {
            fetch(row, place);
        }
    }

    // How the four elements of each quarter of a register change places: the halves, and the neighbours.
    const HALVES: i32 = 0b01_00_11_10;
    const NEIGHBOURS: i32 = 0b10_11_00_01;

    /// What a tile reads of its own rows, and of the four others.
    type Chunks<'a, const HEIGHT: usize> = (&'a [[[f32; LANES]; HEIGHT]], [&'a [[f32; LANES]]; COLUMNS]);

    #[inline(always)]
    fn chunks<'a, const HEIGHT: usize>(left: &'a [f32], right: [&'a [f32]; COLUMNS]) -> Chunks<'a, HEIGHT> {
        let count = right[0].len() / LANES;
        let right = array::from_fn(
            #[inline(always)]
            |column| &right[column].as_chunks().0[..count],
        );
        (&left.as_chunks().0.as_chunks().0[..count], right)
    }

    /// A register for each sum.
    impl Tiles<f32> for V3 {
        const MOST: usize = ROWS;

        #[inline(always)]
        fn tile<const HEIGHT: usize>(self, left: &[f32], right: [&[f32]; COLUMNS]) -> [[f32; COLUMNS]; HEIGHT] {
            // The first quarters of two registers, or the second ones.
            const FIRST: i32 = 0x20;
            const SECOND: i32 = 0x31;
            let rows = right;
            let (left, right) = chunks::<HEIGHT>(left, right);
            let (avx, mut sums) = (self.avx, [[self.avx._mm256_setzero_ps(); COLUMNS]; HEIGHT]);
            for k in 0..left.len() {
                fetch_ahead(rows, k);
                for row in 0..HEIGHT {
                    let factors = cast(left[k][row]);
                    for column in 0..COLUMNS {
                        sums[row][column] =
                            self.fma._mm256_fmadd_ps(factors, cast(right[column][k]), sums[row][column]);
                    }
                }
            }
            let mut totals = [[0.0; COLUMNS]; HEIGHT];
            for row in 0..HEIGHT {
                for pair in 0..COLUMNS / 2 {
                    let [a, b] = [sums[row][2 * pair], sums[row][2 * pair + 1]];
                    let first = avx._mm256_permute2f128_ps::<FIRST>(a, b);
                    let fours = avx._mm256_add_ps(first, avx._mm256_permute2f128_ps::<SECOND>(a, b));
                    let twos = avx._mm256_add_ps(fours, avx._mm256_permute_ps::<HALVES>(fours));
                    let both: [f32; 8] = cast(avx._mm256_add_ps(twos, avx._mm256_permute_ps::<NEIGHBOURS>(twos)));
                    [totals[row][2 * pair], totals[row][2 * pair + 1]] = [both[0], both[4]];
                }
            }
            totals
        }
    }

    /// A register for two sums.
    impl Tiles<f32> for V4 {
        const MOST: usize = ROWS_OF_WIDE;

        #[inline(always)]
        fn tile<const HEIGHT: usize>(self, left: &[f32], right: [&[f32]; COLUMNS]) -> [[f32; COLUMNS]; HEIGHT] {
            // The first and third quarters of two registers, or the second and fourth ones.
            const ODD: i32 = 0b10_00_10_00;
            const EVEN: i32 = 0b11_01_11_01;
            let rows = right;
            let (left, right) = chunks::<HEIGHT>(left, right);
            let (avx, wide) = (self.avx512f, self.avx512dq);
            let zero = avx._mm512_setzero_ps();
            let mut sums = [[zero; COLUMNS / 2]; HEIGHT];
            for k in 0..left.len() {
                fetch_ahead(rows, k);
                let mut weights = [zero; COLUMNS / 2];
                for pair in 0..COLUMNS / 2 {
                    let first = avx._mm512_castps256_ps512(cast(right[2 * pair][k]));
                    weights[pair] = wide._mm512_insertf32x8::<1>(first, cast(right[2 * pair + 1][k]));
                }
                for row in 0..HEIGHT {
                    let factors = wide._mm512_broadcast_f32x8(cast(left[k][row]));
                    for pair in 0..COLUMNS / 2 {
                        sums[row][pair] = avx._mm512_fmadd_ps(factors, weights[pair], sums[row][pair]);
                    }
                }
            }
            let mut totals = [[0.0; COLUMNS]; HEIGHT];
            for row in 0..HEIGHT {
                let [a, b] = sums[row];
                let odd = avx._mm512_shuffle_f32x4::<ODD>(a, b);
                let fours = avx._mm512_add_ps(odd, avx._mm512_shuffle_f32x4::<EVEN>(a, b));
                let twos = avx._mm512_add_ps(fours, avx._mm512_permute_ps::<HALVES>(fours));
                let all: [f32; 16] = cast(avx._mm512_add_ps(twos, avx._mm512_permute_ps::<NEIGHBOURS>(twos)));
                totals[row] = [all[0], all[4], all[8], all[12]];
            }
            totals
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::vectorised;

    /// The same bits in each kind of vectors, at sizes that fill lanes and tiles or do not.
    fn check<R: Real + std::fmt::Debug>() {
        let number = |k: usize| R::from_f64((k * 7919 % 1009) as f64 / 1009.0 - 0.5);
        for (rows, inner) in (1..=13).flat_map(|rows| [1, 7, 8, 32, 45, 256].map(|inner| (rows, inner))) {
            for columns in [1, 3, 4, 10] {
                let left: Vec<R> = (0..rows * inner).map(number).collect();
                let right: Vec<R> = (3..inner * columns + 3).map(number).collect();
                let lanes = if is_single::<R>() { 8 } else { 4 };
                let element = |at: usize| {
                    let (left, right) = (&left[at / columns * inner..][..inner], &right[at % columns * inner..]);
                    let mut sums = [R::default(); 8];
                    let whole = inner - inner % lanes;
                    (0..whole).for_each(|k| sums[k % lanes] = left[k].mul_add(right[k], sums[k % lanes]));
                    let four: [R; 4] = array::from_fn(|k| if lanes == 8 { sums[k] + sums[k + 4] } else { sums[k] });
                    let total = (four[0] + four[2]) + (four[1] + four[3]);
                    (whole..inner).fold(total, |sum, k| left[k].mul_add(right[k], sum))
                };
                let expected: Vec<R> = (0..rows * columns).map(element).collect();
                let mut out = vec![R::from_f64(f64::NAN); rows * columns];
                for vectors in [Vectors::Narrow, Vectors::Wide] {
                    vectorised(
                        #[inline(always)]
                        |_| dots(vectors, &Rows::new(vectors, &left, inner), &right, &mut out),
                    );
                    assert_eq!(out, expected, "{rows} {inner} {columns} {vectors:?}");
                }
                let tiles = Rows::new(Vectors::Narrow, &left, inner);
                in_tiles::<R, _>(Plain, &left, &tiles.packed, [inner, tiles.height], &right, &mut out);
                assert_eq!(out, expected, "{rows} {inner} {columns}");
            }
        }
    }

    #[test]
    fn products_of_rows_have_the_same_bits_in_all_vectors() {
        check::<f32>();
        check::<f64>();
    }
}
