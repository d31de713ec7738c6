//! Small systems of equations.

use super::vectorised_widely;
use crate::context::Stop;
use crate::op::linalg::SolveError;

/// Solves `a x = b` by elimination with partial pivoting; `a` is `[n, n]`, `b` `[n, k]`, row-major.
pub(crate) fn solve(a: &[f64], b: &[f64], n: usize, k: usize) -> Result<Vec<f64>, SolveError> {
    if a.iter().chain(b).any(|value| !value.is_finite()) {
        return Err(SolveError::NotFinite);
    }
    let (mut a, mut x, stop) = (a.to_vec(), b.to_vec(), Stop::current());
    for column in 0..n {
        let size = |row: &usize| a[row * n + column].abs();
        let pivot = (column..n).max_by(|p, q| size(p).total_cmp(&size(q))).unwrap_or(column);
        if a[pivot * n + column] == 0.0 {
            return Err(SolveError::Singular(column));
        }
        if pivot != column {
            (0..n).for_each(|j| a.swap(pivot * n + j, column * n + j));
            (0..k).for_each(|j| x.swap(pivot * k + j, column * k + j));
        }
        vectorised_widely(
            #[inline(always)]
            || {
                let (top, below) = a.split_at_mut((column + 1) * n);
                let (x_top, x_below) = x.split_at_mut((column + 1) * k);
                let (top, x_top) = (&top[column * n + column..], &x_top[column * k..]);
                for (number, row) in below.chunks_exact_mut(n).enumerate() {
                    stop.check();
                    let row = &mut row[column..];
                    let factor = row[0] / top[0];
                    subtract(row, factor, top);
                    subtract(&mut x_below[number * k..][..k], factor, x_top);
                }
            },
        );
    }
    let mut known = vec![0.0; k];
    for row in (0..n).rev() {
        vectorised_widely(
            #[inline(always)]
            || {
                known.fill(0.0);
                let (x_row, below) = x[row * k..].split_at_mut(k);
                for (number, factor) in a[row * n + row + 1..][..n - row - 1].iter().enumerate() {
                    stop.check();
                    known.iter_mut().zip(&below[number * k..]).for_each(|(known, x)| *known += factor * x);
                }
                x_row.iter_mut().zip(&known).for_each(|(x, known)| *x = (*x - known) / a[row * n + row]);
            },
        );
    }
    Ok(x)
}

/// `row -= factor * top`.
#[inline(always)]
fn subtract(row: &mut [f64], factor: f64, top: &[f64]) {
    row.iter_mut().zip(top).for_each(|(value, top)| *value -= factor * top);
}
