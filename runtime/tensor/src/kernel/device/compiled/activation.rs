//! Sigmoid, SiLU and gated linear units with their derivatives, see [`crate::kernel::activation`].

use burn_cubecl::cubecl;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{buffer, each, element, exponential, operands, room, value};
use crate::Tensor;
use crate::kernel::activation::Activation;

/// The highest derivative that has a formula here.
const HIGHEST: usize = 3;

/// `sigmoid(a)`; that of `-a` has its own digits where this one is near 1.
#[cube]
fn sigmoid<F: Float>(a: F) -> F {
    F::new(1.0) / (exponential::<F>(-a) + F::new(1.0))
}

/// The derivative of this order of the sigmoid, from `sigmoid(a)` and `sigmoid(-a)`.
#[cube]
fn slope<F: Float>(s: F, t: F, #[comptime] order: usize) -> F {
    match comptime!(order) {
        0 => s,
        1 => s * t,
        2 => s * t * (t - s),
        _ => s * t * (F::new(1.0) - F::new(6.0) * s * t),
    }
}

#[cube(launch)]
fn derivatives<F: Float>(
    a: &[F],
    factor: &[F],
    out: &mut [F],
    count: usize,
    #[comptime] order: usize,
    #[comptime] is_silu: bool,
    #[comptime] has_factor: bool,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < count {
        let x = a[k];
        let (s, t) = (sigmoid::<F>(x), sigmoid::<F>(-x));
        let mut value = slope::<F>(s, t, order);
        if comptime!(is_silu) {
            value *= x;
            if comptime!(order > 0) {
                value += slope::<F>(s, t, comptime!(order - 1)) * F::new(comptime!(order as f32));
            }
        }
        if comptime!(has_factor) {
            value *= factor[k];
        }
        out[k] = value;
    }
}

/// The derivative of this order of the function at each element, times `factor` where there is one.
pub(crate) fn derivative(
    function: Activation,
    a: &Tensor,
    factor: Option<&Tensor>,
    order: usize,
) -> Option<DispatchTensor> {
    if order > HIGHEST {
        return None;
    }
    let shape = a.shape();
    let [a, other] = operands([a, factor.unwrap_or(a)])?;
    let out = room(&a, shape);
    let elements = shape.iter().product();
    let (cubes, dim) = each(&a, elements);
    derivatives::launch(
        &out.client,
        cubes,
        dim,
        buffer(a),
        buffer(other),
        buffer(out.clone()),
        elements,
        order,
        function == Activation::Silu,
        factor.is_some(),
        element(&out),
    );
    Some(value(out))
}

/// Which product with derivatives of the gated unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Gated {
    /// `v s`.
    Value,
    /// `[c s, c v s']`.
    Gradient,
    /// `u_v s + u_g v s'`.
    Tangent,
    /// `[c u_g s', c (u_v s' + u_g v s'')]`.
    Curvature,
}

/// `c` is read in the gradient and in the curvature, `u` in the tangent and in the curvature.
#[cube(launch)]
fn gates<F: Float>(
    a: &[F],
    c: &[F],
    u: &[F],
    out: &mut [F],
    pairs: usize,
    half: usize,
    #[comptime] which: Gated,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < pairs {
        // Where the value is; its gate is half a row on.
        let at = k / half * half + k;
        let v = a[at];
        let (s, t) = (sigmoid::<F>(a[at + half]), sigmoid::<F>(-a[at + half]));
        match comptime!(which) {
            Gated::Value => out[k] = v * s,
            Gated::Gradient => {
                let through = c[k] * s;
                out[at] = through;
                out[at + half] = through * v * t;
            }
            Gated::Tangent => out[k] = s * (u[at] + u[at + half] * v * t),
            Gated::Curvature => {
                let slope = c[k] * s * t;
                out[at] = slope * u[at + half];
                out[at + half] = slope * (u[at] + u[at + half] * v * (t - s));
            }
        }
    }
}

/// `c` has the shape of [`Gated::Value`], `u` that of `a`; what is not read may be any tensor.
pub(crate) fn gated(which: Gated, a: &Tensor, c: &Tensor, u: &Tensor) -> Option<DispatchTensor> {
    let mut shape = a.shape().to_vec();
    let last = shape.last_mut()?;
    let half = *last / 2;
    if matches!(which, Gated::Value | Gated::Tangent) {
        *last = half;
    }
    let pairs = a.count() / 2;
    let [a, c, u] = operands([a, c, u])?;
    let out = room(&a, &shape);
    let (count, dim) = each(&a, pairs);
    gates::launch(
        &out.client,
        count,
        dim,
        buffer(a),
        buffer(c),
        buffer(u),
        buffer(out.clone()),
        pairs,
        half,
        which,
        element(&out),
    );
    Some(value(out))
}
