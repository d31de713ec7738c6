//! Functions of directions and distances.

use super::{FLOATS, check_dtypes, check_rank, elementwise, linalg, reduce, shape};
use crate::autodiff::Reads;
use crate::kernel::kernel;
use crate::tensor::check_devices;
use crate::{Misuse, Tensor, kernel};

/// The largest degree of solid harmonics.
pub const MAX_DEGREE: usize = 16;
/// The largest degree of a piecewise polynomial.
pub const MAX_POLYNOMIAL_DEGREE: usize = 15;

/// Real orthonormal solid harmonics `r^l Y_lm` of all degrees up to `max_degree`, `[rows, 3]` to `[rows, (max_degree + 1)^2]`, entry
/// `l^2 + l + m`; no Condon-Shortley sign.
///
/// # Errors
/// `vectors` is not `[rows, 3]` and floating-point, or `max_degree` is above [`MAX_DEGREE`].
pub fn solid_harmonics(vectors: &Tensor, max_degree: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "spherical.solid-harmonics";
    vectors.expect_dtype(NAME, FLOATS)?;
    check_rank(NAME, "`vectors`", vectors, 2)?;
    if vectors.shape()[1] != 3 {
        return Err(Misuse::new(NAME, format!("`vectors` has shape {:?}, expected [rows, 3]", vectors.shape())));
    }
    if max_degree > MAX_DEGREE {
        return Err(Misuse::new(NAME, format!("degree {max_degree} is above {MAX_DEGREE}")));
    }
    let shape = [vectors.shape()[0], (max_degree + 1) * (max_degree + 1)];
    let run = || kernel!(vectors => harmonics::forward(vectors, max_degree, &shape));
    Tensor::compute(NAME, &shape, vectors.dtype(), &[vectors], run, Reads::Inputs, move |step| {
        step.gradients(&[&|g| harmonics_gradient(&step.inputs[0], g, max_degree)])
    })
}

/// The derivative of a solid harmonic along an axis is a combination of those one degree lower, so the gradient along axis `k` is
/// `sum over columns of g * (harmonics D_k)` with a constant matrix `D_k`.
fn harmonics_gradient(vectors: &Tensor, g: &Tensor, max_degree: usize) -> Result<Tensor, Misuse> {
    if max_degree == 0 {
        return Tensor::full(&g.device(), vectors.shape(), 0.0, g.dtype());
    }
    let lower = solid_harmonics(vectors, max_degree - 1)?;
    let components = kernel::harmonics::derivative_matrices(max_degree)
        .into_iter()
        .map(|matrix| {
            let matrix = Tensor::from_float64(&g.device(), &[lower.shape()[1], g.shape()[1]], &matrix, g.dtype())?;
            reduce::sum(&elementwise::multiply(g, &linalg::matmul(&lower, &matrix)?)?, &[1], true)
        })
        .collect::<Result<Vec<_>, Misuse>>()?;
    shape::concatenate(&components.iter().collect::<Vec<_>>(), 1)
}

/// Functions tabulated as polynomials on equal intervals: `x` `[rows]`, `coefficients` `[intervals, degree + 1, functions]` to `[rows, functions]`.
/// On interval `k` the local coordinate runs from -1 to 1; outside of `[lower, upper]` everything is 0.
///
/// # Errors
/// The shapes do not fit, the bounds are not finite and increasing, the degree is above [`MAX_POLYNOMIAL_DEGREE`], or `coefficients` are tracked.
pub fn piecewise_polynomial(x: &Tensor, coefficients: &Tensor, lower: f64, upper: f64) -> Result<Tensor, Misuse> {
    const NAME: &str = "spherical.piecewise-polynomial";
    check_dtypes(NAME, &[x, coefficients], FLOATS)?;
    check_rank(NAME, "`x`", x, 1)?;
    check_rank(NAME, "`coefficients`", coefficients, 3)?;
    let &[intervals, terms, _] = coefficients.shape() else { unreachable!("the rank is 3") };
    if intervals == 0 || terms == 0 || terms > MAX_POLYNOMIAL_DEGREE + 1 {
        return Err(Misuse::new(
            NAME,
            format!(
                "`coefficients` has shape {:?}, expected at least one interval and 1 to {} terms",
                coefficients.shape(),
                MAX_POLYNOMIAL_DEGREE + 1
            ),
        ));
    }
    if !(lower.is_finite() && upper.is_finite() && lower < upper) {
        return Err(Misuse::new(NAME, format!("bounds are {lower} and {upper}, expected finite and increasing")));
    }
    if coefficients.is_tracked() {
        return Err(Misuse::new(NAME, "`coefficients` are tracked; they cannot be differentiated: `detach` them"));
    }
    check_devices(NAME, &x.node.device, &[coefficients])?;
    polynomial_derivative(x, coefficients, [lower, upper], 0)
}

/// The derivative of a piecewise polynomial of this order, which is one of its own.
fn polynomial_derivative(x: &Tensor, coefficients: &Tensor, bounds: [f64; 2], order: usize) -> Result<Tensor, Misuse> {
    let shape = [x.shape()[0], coefficients.shape()[2]];
    let run = || kernel!(x => polynomial(x, coefficients, bounds, order, &shape));
    let table = coefficients.clone();
    Tensor::compute("spherical.piecewise-polynomial", &shape, x.dtype(), &[x], run, Reads::Inputs, move |step| {
        step.gradients(&[&|g| {
            let slope = polynomial_derivative(&step.inputs[0], &table, bounds, order + 1)?;
            reduce::sum(&elementwise::multiply(g, &slope)?, &[1], false)
        }])
    })
}
