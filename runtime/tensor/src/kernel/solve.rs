//! Small systems of equations.

use std::ops::Range;

use super::vectorised_widely;
use crate::context::Stop;
use crate::op::linalg::SolveError;

/// The columns that are eliminated together: all others are changed by them in one pass, because a system of some hundred rows does not fit the nearest cache.
const BLOCK: usize = 16;
/// The rows that are changed at the same time: each number of the rows above is read once for all of them.
const ROWS: usize = 4;

/// Solves `a x = b` by elimination with partial pivoting; `a` is `[n, n]`, `b` `[n, k]`, row-major.
pub(crate) fn solve(a: &[f64], b: &[f64], n: usize, k: usize) -> Result<Vec<f64>, SolveError> {
    if a.iter().chain(b).any(|value| !value.is_finite()) {
        return Err(SolveError::NotFinite);
    }
    if n == 0 {
        return Ok(Vec::new());
    }
    // Rows of both, so that what is done to one is done to the other.
    let width = n + k;
    let mut rows = Vec::with_capacity(n * width);
    for row in 0..n {
        rows.extend_from_slice(&a[row * n..][..n]);
        rows.extend_from_slice(&b[row * k..][..k]);
    }
    let stop = Stop::current();
    for start in (0..n).step_by(BLOCK) {
        let end = (start + BLOCK).min(n);
        for column in start..end {
            stop.check();
            let size = |row: &usize| rows[row * width + column].abs();
            let pivot = (column..n).max_by(|p, q| size(p).total_cmp(&size(q))).unwrap_or(column);
            if rows[pivot * width + column] == 0.0 {
                return Err(SolveError::Singular(column));
            }
            if pivot != column {
                let (above, from) = rows.split_at_mut(pivot * width);
                above[column * width..][..width].swap_with_slice(&mut from[..width]);
            }
            vectorised_widely(
                #[inline(always)]
                || eliminate(&mut rows[column * width..], width, column, end),
            );
        }
        let (top, below) = rows[start * width..].split_at_mut((end - start) * width);
        vectorised_widely(
            #[inline(always)]
            || {
                for row in 1..end - start {
                    let (above, rows) = top.split_at_mut(row * width);
                    subtract::<1>(&mut rows[..width], above, width, start..start + row, end);
                }
                let mut groups = below.chunks_exact_mut(ROWS * width);
                for rows in &mut groups {
                    stop.check();
                    subtract::<ROWS>(rows, top, width, start..end, end);
                }
                for row in groups.into_remainder().chunks_exact_mut(width) {
                    subtract::<1>(row, top, width, start..end, end);
                }
            },
        );
    }
    let mut x: Vec<f64> = rows.chunks_exact(width).flat_map(|row| &row[n..]).copied().collect();
    let mut known = vec![0.0; k];
    for row in (0..n).rev() {
        vectorised_widely(
            #[inline(always)]
            || {
                known.fill(0.0);
                let factors = &rows[row * width..][..n];
                let (x_row, below) = x[row * k..].split_at_mut(k);
                for (number, factor) in factors[row + 1..].iter().enumerate() {
                    stop.check();
                    known.iter_mut().zip(&below[number * k..]).for_each(|(known, x)| *known += factor * x);
                }
                x_row.iter_mut().zip(&known).for_each(|(x, known)| *x = (*x - known) / factors[row]);
            },
        );
    }
    Ok(x)
}

/// Takes the first of `rows`, times what makes `column` of them 0, from all others, as far as column `end`; leaves that factor in place of the 0.
#[inline(always)]
fn eliminate(rows: &mut [f64], width: usize, column: usize, end: usize) {
    let (top, below) = rows.split_at_mut(width);
    let top = &top[column..end];
    for row in below.chunks_exact_mut(width) {
        let row = &mut row[column..end];
        let factor = row[0] / top[0];
        row[0] = factor;
        for (value, top) in row[1..].iter_mut().zip(&top[1..]) {
            *value = top.mul_add(-factor, *value);
        }
    }
}

/// Takes the rows of `top`, times the factors in `columns` of each of `N` rows, from these from column `end` on.
#[inline(always)]
fn subtract<const N: usize>(rows: &mut [f64], top: &[f64], width: usize, columns: Range<usize>, end: usize) {
    /// Sums that stay in registers: two of the widest, for each row.
    const LANES: usize = 16;
    let mut parts = rows.chunks_exact_mut(width).map(
        #[inline(always)]
        |row| row.split_at_mut(end),
    );
    let mut rows: [(&mut [f64], &mut [f64]); N] = std::array::from_fn(
        #[inline(always)]
        |_| parts.next().expect("there are so many rows"),
    );
    let whole = (width - end) / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums: [[f64; LANES]; N] = std::array::from_fn(
            #[inline(always)]
            |row| *rows[row].1[start..].first_chunk().expect("it is a whole part"),
        );
        for (top, column) in top.chunks_exact(width).zip(columns.clone()) {
            let top: &[f64; LANES] = top[end + start..].first_chunk().expect("rows have one width");
            for (sums, (factors, _)) in sums.iter_mut().zip(&rows) {
                let factor = -factors[column];
                for (sum, top) in sums.iter_mut().zip(top) {
                    *sum = top.mul_add(factor, *sum);
                }
            }
        }
        for ((_, row), sums) in rows.iter_mut().zip(&sums) {
            row[start..][..LANES].copy_from_slice(sums);
        }
    }
    for (factors, row) in &mut rows {
        for (top, column) in top.chunks_exact(width).zip(columns.clone()) {
            let factor = -factors[column];
            for (value, top) in row[whole..].iter_mut().zip(&top[end + whole..]) {
                *value = top.mul_add(factor, *value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solutions_satisfy_their_equations_whatever_the_sizes() {
        // Fewer rows than a block, a whole number of blocks, and rests of blocks, of groups of rows, and of lanes.
        for (n, k) in [(0, 0), (0, 2), (1, 1), (7, 2), (16, 1), (17, 0), (33, 3), (48, 40), (75, 1)] {
            let number = |at: usize| ((at * 7919 + 13) % 1009) as f64 / 504.5 - 1.0;
            let mut a: Vec<f64> = (0..n * n).map(number).collect();
            // Without other pivots than those on the diagonal, the first step would divide by 0.
            a.first_mut().into_iter().for_each(|first| *first = if n == 1 { 2.0 } else { 0.0 });
            let b: Vec<f64> = (0..n * k).map(|at| number(at + 5)).collect();
            let x = solve(&a, &b, n, k).expect("it has a solution");
            assert_eq!(x.len(), n * k);
            let largest = x.iter().fold(1.0_f64, |largest, x| largest.max(x.abs()));
            for at in 0..n * k {
                let sum: f64 = (0..n).map(|j| a[at / k * n + j] * x[j * k + at % k]).sum();
                // Elimination with pivoting leaves residuals of some units in the last place of the largest terms, for each row.
                assert!((sum - b[at]).abs() <= 1e-15 * n as f64 * largest, "{n} {k}: {sum} {}", b[at]);
            }
        }
    }

    #[test]
    fn systems_without_a_solution_are_told_from_others() {
        assert!(matches!(solve(&[0.0; 4], &[1.0; 2], 2, 1), Err(SolveError::Singular(0))));
        // Rounding may leave something of the third column, which is a sum of the two before; exactly representable numbers leave nothing.
        let third = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0];
        assert!(matches!(solve(&third, &[1.0; 3], 3, 1), Err(SolveError::Singular(2))));
        assert!(matches!(solve(&third, &[f64::NAN; 3], 3, 1), Err(SolveError::NotFinite)));
    }
}
