//! Small systems of equations.

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
        for row in column + 1..n {
            stop.check();
            let factor = a[row * n + column] / a[column * n + column];
            (column..n).for_each(|j| a[row * n + j] -= factor * a[column * n + j]);
            (0..k).for_each(|j| x[row * k + j] -= factor * x[column * k + j]);
        }
    }
    for row in (0..n).rev() {
        for j in 0..k {
            stop.check();
            let known: f64 = (row + 1..n).map(|column| a[row * n + column] * x[column * k + j]).sum();
            x[row * k + j] = (x[row * k + j] - known) / a[row * n + row];
        }
    }
    Ok(x)
}
