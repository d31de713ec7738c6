//! Dense matrices: products of blocks, and small systems of equations.

use gemm::Parallelism;

use super::Real;
use crate::op::linalg::SolveError;

/// A matrix in a slice: element `(i, j)` is at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, R> {
    pub(crate) values: &'a [R],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

impl<'a, R> Matrix<'a, R> {
    /// Row-major, without gaps.
    pub(crate) fn new(values: &'a [R], rows: usize, columns: usize) -> Self {
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn fits(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.values.len()
    }
}

/// `out = a b`, row-major, on this thread.
#[expect(unsafe_code, reason = "the matrix product of the gemm crate takes raw pointers")]
pub(crate) fn product<R: Real>(a: Matrix<'_, R>, b: Matrix<'_, R>, out: &mut [R]) {
    assert!(a.columns == b.rows && a.fits() && b.fits() && out.len() == a.rows * b.columns, "shapes were checked");
    if a.columns == 0 {
        out.fill(R::default());
        return;
    }
    // SAFETY: the assertion above keeps every element that the strides reach inside its slice; `out` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            R::default(),
            R::from_f64(1.0),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Solves `a x = b` by elimination with partial pivoting; `a` is `[n, n]`, `b` `[n, k]`, row-major.
pub(crate) fn solve(a: &[f64], b: &[f64], n: usize, k: usize) -> Result<Vec<f64>, SolveError> {
    if a.iter().chain(b).any(|value| !value.is_finite()) {
        return Err(SolveError::NotFinite);
    }
    let (mut a, mut x) = (a.to_vec(), b.to_vec());
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
            let factor = a[row * n + column] / a[column * n + column];
            (column..n).for_each(|j| a[row * n + j] -= factor * a[column * n + j]);
            (0..k).for_each(|j| x[row * k + j] -= factor * x[column * k + j]);
        }
    }
    for row in (0..n).rev() {
        for j in 0..k {
            let known: f64 = (row + 1..n).map(|column| a[row * n + column] * x[column * k + j]).sum();
            x[row * k + j] = (x[row * k + j] - known) / a[row * n + row];
        }
    }
    Ok(x)
}
