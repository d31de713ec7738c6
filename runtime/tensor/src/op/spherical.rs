//! Functions of directions and distances.

use std::sync::Arc;

use super::{FLOATS, check_dtypes, check_rank, elementwise, linalg, reduce, shape};
use crate::autodiff::Reads;
use crate::context::check_cost;
use crate::kernel::harmonics::Term;
use crate::kernel::kernel;
use crate::op::linalg::multiplications;
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
    let run = move |[vectors]: [&Tensor; 1], shape: &[usize]| kernel!(vectors => harmonics::forward(vectors, max_degree, shape));
    Tensor::compute(NAME, &shape, vectors.dtype(), [vectors], run, Reads::Inputs, move |step| {
        step.gradients(&[&|g| harmonics_gradient(&step.inputs[0], g, max_degree)])
    })
}

/// The derivative of a solid harmonic along an axis is a combination of a few of those one degree lower.
fn harmonics_gradient(vectors: &Tensor, g: &Tensor, max_degree: usize) -> Result<Tensor, Misuse> {
    if max_degree == 0 {
        return Tensor::full(&g.device(), vectors.shape(), 0.0, g.dtype());
    }
    let lower = solid_harmonics(vectors, max_degree - 1)?;
    let terms: Arc<[Term]> = kernel::harmonics::derivatives(max_degree).into();
    if g.is_on_device() {
        gradient_of_products(&lower, g, &terms)
    } else {
        partial([&lower, g], [LOWER, UPPER], &terms)
    }
}

/// As a device has no kernel for the few terms: the gradient along axis `k` is `sum over columns of g * (lower D_k)` with a constant matrix `D_k`.
fn gradient_of_products(lower: &Tensor, g: &Tensor, terms: &[Term]) -> Result<Tensor, Misuse> {
    let size = [lower.shape()[1], g.shape()[1]];
    let component = |axis: usize| {
        let mut matrix = vec![0.0; size[0] * size[1]];
        for &Term { columns, factor } in terms.iter().filter(|term| term.columns[VECTOR] == axis) {
            matrix[columns[LOWER] * size[1] + columns[UPPER]] += factor;
        }
        let matrix = Tensor::from_float64(&g.device(), &size, &matrix, g.dtype())?;
        reduce::sum(&elementwise::multiply(g, &linalg::matmul(lower, &matrix)?)?, &[1], true)
    };
    let components = (0..3).map(component).collect::<Result<Vec<_>, Misuse>>()?;
    shape::concatenate(&components.iter().collect::<Vec<_>>(), 1)
}

/// The roles of the operands of a form in three variables, `sum over rows and terms of factor * vector[axis] * lower[a] * upper[b]`.
const VECTOR: usize = 0;
const LOWER: usize = 1;
const UPPER: usize = 2;

/// The derivative of that form by the operand that is not there; `roles` are those of the two that are. Its own gradients are again such derivatives.
fn partial(operands: [&Tensor; 2], roles: [usize; 2], terms: &Arc<[Term]>) -> Result<Tensor, Misuse> {
    const NAME: &str = "spherical.solid-harmonics";
    let role = VECTOR + LOWER + UPPER - roles[0] - roles[1];
    // What belongs to the largest degree is last.
    let last = terms.iter().map(|term| term.columns[role]).max().map_or(0, |last| last + 1);
    let shape = [operands[0].shape()[0], last];
    check_cost(NAME, multiplications(&shape[..1], terms.len()))?;
    let used = terms.clone();
    let run = move |[a, b]: [&Tensor; 2], shape: &[usize]| kernel::harmonics::partial(a, b, roles, &used, shape);
    let terms = terms.clone();
    Tensor::compute(NAME, &shape, operands[0].dtype(), operands, run, Reads::Others, move |step| {
        let [a, b] = [&step.inputs[0], &step.inputs[1]];
        step.gradients(&[&|g| partial([g, b], [role, roles[1]], &terms), &|g| {
            partial([a, g], [roles[0], role], &terms)
        }])
    })
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
    let (table, used) = (coefficients.clone(), coefficients.clone());
    let run = move |[x]: [&Tensor; 1], shape: &[usize]| kernel!(x => polynomial(x, &used, bounds, order, shape));
    Tensor::compute("spherical.piecewise-polynomial", &shape, x.dtype(), [x], run, Reads::Inputs, move |step| {
        step.gradients(&[&|g| {
            let slope = polynomial_derivative(&step.inputs[0], &table, bounds, order + 1)?;
            reduce::sum(&elementwise::multiply(g, &slope)?, &[1], false)
        }])
    })
}
