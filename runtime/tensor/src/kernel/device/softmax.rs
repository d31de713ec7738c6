//! The softmax of rows of the last axis, and its first two derivatives.

use burn_dispatch::DispatchTensor;

#[cfg(feature = "accelerator")]
use super::compiled::rows::{self, Softmax};
use super::value::Value;
use crate::Tensor;

/// The sum over the last axis, which is kept.
fn total(value: &Value) -> Value {
    value.sum(value.sizes().len() - 1)
}

pub(crate) fn softmax(a: &Tensor) -> DispatchTensor {
    own_kernel!(rows::softmax(Softmax::Value, a, a, a));
    let a = Value::of(a);
    let largest = a.largest(a.sizes().len() - 1);
    let weights = (a - largest).exp();
    let sum = total(&weights);
    (weights / sum).0
}

/// `y (g - <y, g>)`.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor) -> DispatchTensor {
    own_kernel!(rows::softmax(Softmax::Product, y, g, g));
    let (y, g) = (Value::of(y), Value::of(g));
    let overlap = total(&(y.clone() * g.clone()));
    (y * (g - overlap)).0
}

/// `u g - u <y, g> - g <y, u>`.
pub(crate) fn softmax_curvature(y: &Tensor, g: &Tensor, u: &Tensor) -> DispatchTensor {
    own_kernel!(rows::softmax(Softmax::Curvature, y, g, u));
    let (y, g, u) = (Value::of(y), Value::of(g), Value::of(u));
    let with_g = total(&(y.clone() * g.clone()));
    let with_u = total(&(y * u.clone()));
    (u * (g.clone() - with_g) - g * with_u).0
}
