//! Normalisation over the last axis, and products with its Jacobian, see [`crate::kernel::norm`].

use burn_dispatch::DispatchTensor;

#[cfg(feature = "accelerator")]
use super::compiled::rows::{Norm, norm};
use super::value::Value;
use crate::Tensor;

/// Rows and what they were normalised by.
struct Normalised {
    y: Value,
    root: Value,
    axis: usize,
    size: f64,
    centred: bool,
}

impl Normalised {
    fn new(a: &Tensor, epsilon: f64, centred: bool) -> Self {
        let axis = a.shape().len() - 1;
        let a_values = Value::of(a);
        let deviation = if centred { a_values.clone() - a_values.mean(axis) } else { a_values };
        let root = (deviation.clone() * deviation.clone()).mean(axis).plus(epsilon).root();
        Self { y: deviation / root.clone(), root, axis, size: a.shape()[axis] as f64, centred }
    }

    /// The sum of products along rows.
    fn dot(&self, a: &Value, b: &Value) -> Value {
        (a.clone() * b.clone()).sum(self.axis)
    }

    /// The Jacobian, which is symmetric, times `g`.
    fn through(&self, g: &Value) -> Value {
        let overlap = (self.y.clone() * g.clone()).mean(self.axis);
        let centred = if self.centred { g.clone() - g.mean(self.axis) } else { g.clone() };
        (centred - self.y.clone() * overlap) / self.root.clone()
    }
}

pub(crate) fn forward(a: &Tensor, epsilon: f64, centred: bool) -> DispatchTensor {
    own_kernel!(norm(Norm::Value, a, a, a, epsilon, centred));
    Normalised::new(a, epsilon, centred).y.0
}

/// `(g - mean(g) - y mean(y g)) / s`, without the mean if not centred.
pub(crate) fn jacobian_product(a: &Tensor, g: &Tensor, epsilon: f64, centred: bool) -> DispatchTensor {
    own_kernel!(norm(Norm::Product, a, g, g, epsilon, centred));
    Normalised::new(a, epsilon, centred).through(&Value::of(g)).0
}

/// The gradient of `u . J(a) g` by `a`: `-(y (u . J g) + J u (y . g) + J g (y . u)) / (n s)`.
pub(crate) fn curvature(a: &Tensor, g: &Tensor, u: &Tensor, epsilon: f64, centred: bool) -> DispatchTensor {
    own_kernel!(norm(Norm::Curvature, a, g, u, epsilon, centred));
    let normalised = Normalised::new(a, epsilon, centred);
    let (g, u) = (Value::of(g), Value::of(u));
    let (through_g, through_u) = (normalised.through(&g), normalised.through(&u));
    let y = normalised.y.clone();
    let first = y.clone() * normalised.dot(&u, &through_g);
    let second = through_u * normalised.dot(&y, &g);
    let third = through_g * normalised.dot(&y, &u);
    ((first + second + third) / normalised.root.clone()).times(-1.0 / normalised.size).0
}
