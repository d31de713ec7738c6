//! Squares of numbers, transposed in vector registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m256;

#[cfg(target_arch = "x86_64")]
use pulp::core_arch::x86::Avx;

use super::Real;

/// The rows of a square that is transposed in registers.
pub(super) const SQUARE: usize = 8;

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

/// Columns as rows. Compilers move the elements one by one.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub(super) fn transposed<R: Real>(rows: [[R; SQUARE]; SQUARE], registers: Registers) -> [[R; SQUARE]; SQUARE] {
    #[cfg(target_arch = "x86_64")]
    if size_of::<R>() == size_of::<f32>()
        && let Some(simd) = registers
    {
        return bytemuck::cast(transposed_in_registers(simd.avx, bytemuck::cast(rows)));
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
    // The lower halves of two registers, or the upper ones.
    const LOWER: i32 = 0x20;
    const UPPER: i32 = 0x31;
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
    }
}
