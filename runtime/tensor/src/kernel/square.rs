//! Squares of numbers, transposed in vector registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m256d};

#[cfg(target_arch = "x86_64")]
use pulp::core_arch::x86::Avx;

/// The rows of a square that is transposed in registers.
pub(super) const SQUARE: usize = 8;

// The lower halves of two registers, or the upper ones.
#[cfg(target_arch = "x86_64")]
const LOWER: i32 = 0x20;
#[cfg(target_arch = "x86_64")]
const UPPER: i32 = 0x31;

/// That this processor has the instructions for it.
#[cfg(target_arch = "x86_64")]
pub(super) type Registers = Option<pulp::x86::V3>;
#[cfg(not(target_arch = "x86_64"))]
pub(super) type Registers = ();

#[inline(always)]
pub(super) fn registers() -> Registers {
    #[cfg(target_arch = "x86_64")]
    pulp::x86::V3::try_new()
}

/// Columns as rows, of elements of any kind. Compilers move them one by one.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub(super) fn transposed<T: bytemuck::Pod>(rows: [[T; SQUARE]; SQUARE], registers: Registers) -> [[T; SQUARE]; SQUARE] {
    // Nothing is computed, so it does not matter that what is moved may be no floating-point numbers.
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = registers {
        if size_of::<T>() == size_of::<f32>() {
            return bytemuck::cast(transposed_in_registers(simd.avx, bytemuck::cast(rows)));
        }
        if size_of::<T>() == size_of::<f64>() {
            return bytemuck::cast(transposed_by_quarters(simd.avx, bytemuck::cast(rows)));
        }
    }
    std::array::from_fn(
        #[inline(always)]
        |column| {
            rows.map(
                #[inline(always)]
                |row| row[column],
            )
        },
    )
}

/// Rows are interleaved by fours; each half of a register then has four elements of one column, and halves are put together.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed_in_registers(avx: Avx, [a, b, c, d, e, f, g, h]: [__m256; SQUARE]) -> [__m256; SQUARE] {
    let ([a, b, c, d], [e, f, g, h]) = (interleaved(avx, a, b, c, d), interleaved(avx, e, f, g, h));
    [
        avx._mm256_permute2f128_ps::<LOWER>(a, e),
        avx._mm256_permute2f128_ps::<LOWER>(b, f),
        avx._mm256_permute2f128_ps::<LOWER>(c, g),
        avx._mm256_permute2f128_ps::<LOWER>(d, h),
        avx._mm256_permute2f128_ps::<UPPER>(a, e),
        avx._mm256_permute2f128_ps::<UPPER>(b, f),
        avx._mm256_permute2f128_ps::<UPPER>(c, g),
        avx._mm256_permute2f128_ps::<UPPER>(d, h),
    ]
}

/// The first elements of each half of four rows, the second ones, the third and the fourth.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleaved(avx: Avx, a: __m256, b: __m256, c: __m256, d: __m256) -> [__m256; 4] {
    // Of each half of two registers the first two elements, or the last two.
    const FIRST: i32 = 0b01_00_01_00;
    const LAST: i32 = 0b11_10_11_10;
    let (low, high) = (avx._mm256_unpacklo_ps(a, b), avx._mm256_unpackhi_ps(a, b));
    let (other_low, other_high) = (avx._mm256_unpacklo_ps(c, d), avx._mm256_unpackhi_ps(c, d));
    [
        avx._mm256_shuffle_ps::<FIRST>(low, other_low),
        avx._mm256_shuffle_ps::<LAST>(low, other_low),
        avx._mm256_shuffle_ps::<FIRST>(high, other_high),
        avx._mm256_shuffle_ps::<LAST>(high, other_high),
    ]
}

/// Elements of eight bytes, four of which are in a register: each row is two.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transposed_by_quarters(avx: Avx, [a, b, c, d, e, f, g, h]: [[__m256d; 2]; SQUARE]) -> [[__m256d; 2]; SQUARE] {
    // Named one by one: what maps arrays is not always compiled for the instructions at hand.
    let (upper, lower) = (quarter(avx, [a[0], b[0], c[0], d[0]]), quarter(avx, [e[0], f[0], g[0], h[0]]));
    let (upper_right, lower_right) = (quarter(avx, [a[1], b[1], c[1], d[1]]), quarter(avx, [e[1], f[1], g[1], h[1]]));
    [
        [upper[0], lower[0]],
        [upper[1], lower[1]],
        [upper[2], lower[2]],
        [upper[3], lower[3]],
        [upper_right[0], lower_right[0]],
        [upper_right[1], lower_right[1]],
        [upper_right[2], lower_right[2]],
        [upper_right[3], lower_right[3]],
    ]
}

/// Four rows of four elements as columns.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn quarter(avx: Avx, [a, b, c, d]: [__m256d; 4]) -> [__m256d; 4] {
    let (even, odd) = (avx._mm256_unpacklo_pd(a, b), avx._mm256_unpackhi_pd(a, b));
    let (other_even, other_odd) = (avx._mm256_unpacklo_pd(c, d), avx._mm256_unpackhi_pd(c, d));
    [
        avx._mm256_permute2f128_pd::<LOWER>(even, other_even),
        avx._mm256_permute2f128_pd::<LOWER>(odd, other_odd),
        avx._mm256_permute2f128_pd::<UPPER>(even, other_even),
        avx._mm256_permute2f128_pd::<UPPER>(odd, other_odd),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::vectorised;

    #[test]
    fn squares_are_transposed() {
        let rows: [[f32; SQUARE]; SQUARE] =
            std::array::from_fn(|row| std::array::from_fn(|column| (row * SQUARE + column) as f32));
        let found = vectorised(
            #[inline(always)]
            |_| transposed(rows, registers()),
        );
        assert!((0..SQUARE * SQUARE).all(|at| found[at % SQUARE][at / SQUARE] == at as f32), "{found:?}");
        let doubles = transposed(rows.map(|row| row.map(f64::from)), registers());
        assert_eq!(found.map(|row| row.map(f64::from)), doubles);
        let bytes = transposed(rows.map(|row| row.map(|value| value as u8)), registers());
        assert_eq!(found.map(|row| row.map(|value| value as u8)), bytes);
    }
}
