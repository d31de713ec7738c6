//! Sigmoid, SiLU and gated linear units with all their derivatives, see [`crate::kernel::activation`].

use burn_dispatch::DispatchTensor;

#[cfg(feature = "accelerator")]
use super::compiled::{self, activation::Gated};
use super::value::Value;
use crate::Tensor;
use crate::kernel::activation::{Activation, polynomial};

/// `sigmoid(a)` and `sigmoid(-a)`, each with its own digits at its own end.
fn sigmoid_pair(a: &Value) -> (Value, Value) {
    (a.times(-1.0).exp().plus(1.0).reciprocal(), a.clone().exp().plus(1.0).reciprocal())
}

/// The derivative of this order of the sigmoid.
fn sigmoid_derivative(order: usize, (s, t): &(Value, Value)) -> Value {
    let mut sum: Option<Value> = None;
    for coefficient in polynomial(order).into_iter().rev() {
        sum = Some(match sum {
            Some(sum) => (sum * s.clone()).plus(coefficient),
            // A constant that has the right shape.
            None => s.times(0.0).plus(coefficient),
        });
    }
    match sum {
        Some(sum) => sum * s.clone() * t.clone(),
        None => s.clone(),
    }
}

/// The derivative of this order of the function at each element, times `factor` where there is one.
pub(crate) fn derivative(function: Activation, a: &Tensor, factor: Option<&Tensor>, order: usize) -> DispatchTensor {
    own_kernel!(compiled::activation::derivative(function, a, factor, order));
    let a = Value::of(a);
    let pair = sigmoid_pair(&a);
    let own = sigmoid_derivative(order, &pair);
    let value = match (function, order) {
        (Activation::Sigmoid, _) => own,
        (Activation::Silu, 0) => a * own,
        (Activation::Silu, _) => a * own + sigmoid_derivative(order - 1, &pair).times(order as f64),
    };
    match factor {
        Some(factor) => (Value::of(factor) * value).0,
        None => value.0,
    }
}

/// Values and gates of rows of both.
fn halves(a: &Tensor) -> (Value, Value) {
    let axis = a.shape().len() - 1;
    let half = a.shape()[axis] / 2;
    let whole = Value::of(a);
    (whole.part(axis, 0, half), whole.part(axis, half, half))
}

fn joined(values: Value, gates: Value, a: &Tensor) -> DispatchTensor {
    Value::joined(vec![values, gates], a.shape().len() - 1).0
}

/// `values * sigmoid(gates)`.
pub(crate) fn gated(a: &Tensor, _shape: &[usize]) -> DispatchTensor {
    own_kernel!(compiled::activation::gated(Gated::Value, a, a, a));
    let (values, gates) = halves(a);
    (values * sigmoid_pair(&gates).0).0
}

/// The transposed Jacobian of [`gated`] times `c`: `[c s, c v s']`.
pub(crate) fn gated_gradient(a: &Tensor, c: &Tensor) -> DispatchTensor {
    own_kernel!(compiled::activation::gated(Gated::Gradient, a, c, a));
    let (values, gates) = halves(a);
    let (s, t) = sigmoid_pair(&gates);
    let through = Value::of(c) * s;
    joined(through.clone(), through * values * t, a)
}

/// The Jacobian of [`gated`] times `u`: `u_v s + u_g v s'`.
pub(crate) fn gated_tangent(a: &Tensor, u: &Tensor, _shape: &[usize]) -> DispatchTensor {
    own_kernel!(compiled::activation::gated(Gated::Tangent, a, a, u));
    let ((values, gates), (by_values, by_gates)) = (halves(a), halves(u));
    let (s, t) = sigmoid_pair(&gates);
    (s * (by_values + by_gates * values * t)).0
}

/// The gradient by `a` of `c . J(a) u`: `[c u_g s', c (u_v s' + u_g v s'')]`.
pub(crate) fn gated_curvature(a: &Tensor, c: &Tensor, u: &Tensor) -> DispatchTensor {
    own_kernel!(compiled::activation::gated(Gated::Curvature, a, c, u));
    let ((values, gates), (u_values, u_gates)) = (halves(a), halves(u));
    let (s, t) = sigmoid_pair(&gates);
    let slope = Value::of(c) * s.clone() * t.clone();
    let bend = u_gates.clone() * values * (t - s);
    joined(slope.clone() * u_gates, slope * (u_values + bend), a)
}
