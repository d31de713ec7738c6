//! Functions that devices have too few digits of.

use burn_cubecl::cubecl;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{buffer, cubes, each, element, exponential, is_nan, operands, room, value};
use crate::Tensor;
use crate::kernel::device::value::Value;
use crate::kernel::real::{ERF_SERIES, ERF64, ERFC64};

/// `2 / sqrt(pi)`.
const FACTOR: f64 = std::f64::consts::FRAC_2_SQRT_PI;

/// Horner's scheme, the highest power first.
#[allow(clippy::needless_range_loop, reason = "kernels have no iterators over buffers")]
#[cube]
fn polynomial<F: Float>(x: F, coefficients: &[F], #[comptime] count: usize) -> F {
    let mut sum = F::new(0.0);
    for k in 0..count {
        sum = sum * x + coefficients[k];
    }
    sum
}

/// As on the processor: a series near 0, and `1 - exp(-x^2) p((x - 2) / (x + 2))` beyond.
#[cube(launch)]
fn errors<F: Float>(a: &[F], near: &[F], far: &[F], out: &mut [F], count: usize, #[define(F)] _dtype: ElemType) {
    let k = ABSOLUTE_POS;
    if k < count {
        let a = a[k];
        let mut x = a.abs();
        // Beyond 6 it is 1.
        if x > F::new(6.0) {
            x = F::new(6.0);
        }
        let mut value = polynomial::<F>(x * x, near, comptime!(ERF64.len())) * x;
        if x >= F::new(comptime!(ERF_SERIES as f32)) {
            let at = (x - F::new(2.0)) / (x + F::new(2.0));
            value = F::new(1.0) - exponential::<F>(-x * x) * polynomial::<F>(at, far, comptime!(ERFC64.len()));
        }
        if a < F::new(0.0) {
            value = -value;
        }
        if is_nan::<F>(a) {
            value = a;
        }
        out[k] = value;
    }
}

/// The error function, to the digits of the dtype.
pub(crate) fn erf(a: &Tensor) -> Option<DispatchTensor> {
    let near = ERF64.map(|coefficient| coefficient * FACTOR);
    let table = |numbers: &[f64]| Value::numbers(a, &[numbers.len()], numbers).0;
    let [a_values] = operands([a])?;
    let [near, far] = cubes([table(&near), table(&ERFC64)])?;
    let out = room(&a_values, a.shape());
    let (cubes, dim) = each(&out, a.count());
    errors::launch(
        &out.client,
        cubes,
        dim,
        buffer(a_values),
        buffer(near),
        buffer(far),
        buffer(out.clone()),
        a.count(),
        element(&out),
    );
    Some(value(out))
}
