//! Sigmoid, SiLU and gated linear units with all their derivatives.
//!
//! With `s = sigmoid(a)` and `t = 1 - s = sigmoid(-a)` every derivative of the sigmoid is a polynomial: that of order `n > 0` is `s t Q_n(s)`, where
//! `Q_1 = 1` and `Q_(n+1) = (1 - 2 s) Q_n + s t Q_n'`. `a s` has the derivatives `a s^(n) + n s^(n-1)` by Leibniz's rule.

use super::fill::{in_parts, map, zip};
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `1 / (1 + exp(-a))`.
    Sigmoid,
    /// `a * sigmoid(a)`.
    Silu,
}

/// `sigmoid(a)` and `sigmoid(-a)`, both to full precision.
#[inline(always)]
fn sigmoid_pair<R: Real>(a: R) -> (R, R) {
    let one = R::from_f64(1.0);
    let positive = a > R::default();
    let exponential = (if positive { -a } else { a }).exp_of_negative();
    let large = one / (one + exponential);
    let small = exponential * large;
    if positive { (large, small) } else { (small, large) }
}

/// The coefficients of `Q_n`, lowest power first; none for `n = 0`.
pub(crate) fn polynomial(order: usize) -> Vec<f64> {
    if order == 0 {
        return Vec::new();
    }
    let mut q = vec![1.0];
    for _ in 1..order {
        let mut next = vec![0.0; q.len() + 1];
        for (power, &coefficient) in q.iter().enumerate() {
            // (1 - 2 s) c s^k + (s - s^2) k c s^(k-1)
            next[power] += coefficient * (1.0 + power as f64);
            next[power + 1] -= coefficient * (2.0 + power as f64);
        }
        q = next;
    }
    q
}

/// A derivative of the sigmoid, ready to be evaluated.
struct SigmoidDerivative<R> {
    order: usize,
    /// Highest power first.
    coefficients: Vec<R>,
}

impl<R: Real> SigmoidDerivative<R> {
    fn new(order: usize) -> Self {
        Self { order, coefficients: polynomial(order).into_iter().rev().map(R::from_f64).collect() }
    }

    #[inline(always)]
    fn at(&self, (s, t): (R, R)) -> R {
        if self.order == 0 {
            return s;
        }
        let mut value = R::default();
        for &coefficient in &self.coefficients {
            value = value.mul_add(s, coefficient);
        }
        value * s * t
    }
}

/// A derivative of either function, ready to be evaluated.
struct Derivative<R> {
    function: Activation,
    order: R,
    own: SigmoidDerivative<R>,
    lower: SigmoidDerivative<R>,
}

impl<R: Real> Derivative<R> {
    fn new(function: Activation, order: usize) -> Self {
        Self {
            function,
            order: R::from_f64(order as f64),
            own: SigmoidDerivative::new(order),
            lower: SigmoidDerivative::new(order.saturating_sub(1)),
        }
    }

    #[inline(always)]
    fn at(&self, a: R) -> R {
        let pair = sigmoid_pair(a);
        match self.function {
            Activation::Sigmoid => self.own.at(pair),
            Activation::Silu => a.mul_add(self.own.at(pair), self.order * self.lower.at(pair)),
        }
    }
}

/// `value` of each element, times `factor` where there is one. A loop of its own for each function: only one without inner loops is vectorised.
fn evaluated<R: Real>(a: &[R], factor: Option<&[R]>, value: impl Fn(R) -> R + Copy + Send + Sync) -> Vec<R> {
    match factor {
        None => map(a, value),
        Some(factor) => zip(
            a,
            factor,
            #[inline(always)]
            move |a, factor| factor * value(a),
        ),
    }
}

/// The derivative of this order of the function at each element, times `factor` where there is one.
pub(crate) fn derivative(function: Activation, a: &Tensor, factor: Option<&Tensor>, order: usize) -> Elements {
    let (host, factor_host) = (a.host(), factor.map(Tensor::host));
    for_float!(a.dtype(), R => {
        let (a_values, factor) = (host.values::<R>(), factor_host.as_ref().map(|factor| factor.values::<R>()));
        let values = match (function, order) {
            (Activation::Sigmoid, 0) => evaluated(a_values, factor, #[inline(always)] |a| sigmoid_pair(a).0),
            (Activation::Sigmoid, 1) => evaluated(a_values, factor, #[inline(always)] |a| {
                let (s, t) = sigmoid_pair(a);
                s * t
            }),
            (Activation::Sigmoid, 2) => evaluated(a_values, factor, #[inline(always)] |a| {
                let (s, t) = sigmoid_pair(a);
                s * t * (t - s)
            }),
            (Activation::Silu, 0) => evaluated(a_values, factor, #[inline(always)] |a| a * sigmoid_pair(a).0),
            (Activation::Silu, 1) => evaluated(a_values, factor, #[inline(always)] |a| {
                let (s, t) = sigmoid_pair(a);
                s * a.mul_add(t, R::from_f64(1.0))
            }),
            (Activation::Silu, 2) => evaluated(a_values, factor, #[inline(always)] |a| {
                let (s, t) = sigmoid_pair(a);
                s * t * a.mul_add(t - s, R::from_f64(2.0))
            }),
            _ => {
                let derivative = Derivative::<R>::new(function, order);
                evaluated(a_values, factor, #[inline(always)] |a| derivative.at(a))
            }
        };
        Elements::new(values)
    })
}

/// `values * sigmoid(gates)` for rows of values, then gates.
pub(crate) fn gated(a: &Tensor, shape: &[usize]) -> Elements {
    let half = shape.last().copied().unwrap_or(1);
    let host = a.host();
    for_float!(a.dtype(), R => {
        let a_values = host.values::<R>();
        let values = in_parts::<R>(a_values.len() / 2, half, #[inline(always)] |row, part| {
            let (values, gates) = a_values[2 * half * row..][..2 * half].split_at(half);
            for ((slot, value), gate) in part.iter_mut().zip(values).zip(gates) {
                *slot = *value * sigmoid_pair(*gate).0;
            }
        });
        Elements::new(values)
    })
}

/// The transposed Jacobian of [`gated`] times `c`: `[c s, c v s']` for rows of `v`, then gates.
pub(crate) fn gated_gradient(a: &Tensor, c: &Tensor) -> Elements {
    let half = c.shape().last().copied().unwrap_or(1);
    let (host, c_host) = (a.host(), c.host());
    for_float!(a.dtype(), R => {
        let (a_values, c_values) = (host.values::<R>(), c_host.values::<R>());
        let values = in_parts::<R>(a_values.len(), 2 * half, #[inline(always)] |row, part| {
            let (values, gates) = a_values[2 * half * row..][..2 * half].split_at(half);
            let c = &c_values[half * row..][..half];
            let (by_values, by_gates) = part.split_at_mut(half);
            for k in 0..half {
                let (s, t) = sigmoid_pair(gates[k]);
                let through = c[k] * s;
                by_values[k] = through;
                by_gates[k] = through * values[k] * t;
            }
        });
        Elements::new(values)
    })
}

/// The Jacobian of [`gated`] times `u`, which has `a`'s shape: `u_v s + u_g v s'`.
pub(crate) fn gated_tangent(a: &Tensor, u: &Tensor, shape: &[usize]) -> Elements {
    let half = shape.last().copied().unwrap_or(1);
    let (host, u_host) = (a.host(), u.host());
    for_float!(a.dtype(), R => {
        let (a_values, u_values) = (host.values::<R>(), u_host.values::<R>());
        let values = in_parts::<R>(a_values.len() / 2, half, #[inline(always)] |row, part| {
            let (values, gates) = a_values[2 * half * row..][..2 * half].split_at(half);
            let (by_values, by_gates) = u_values[2 * half * row..][..2 * half].split_at(half);
            for (k, slot) in part.iter_mut().enumerate() {
                let (s, t) = sigmoid_pair(gates[k]);
                *slot = s * (by_gates[k] * values[k]).mul_add(t, by_values[k]);
            }
        });
        Elements::new(values)
    })
}

/// The gradient by `a` of `c . J(a) u`: `[c u_g s', c (u_v s' + u_g v s'')]`.
pub(crate) fn gated_curvature(a: &Tensor, c: &Tensor, u: &Tensor) -> Elements {
    let half = c.shape().last().copied().unwrap_or(1);
    let (host, c_host, u_host) = (a.host(), c.host(), u.host());
    for_float!(a.dtype(), R => {
        let (a_values, c_values, u_values) = (host.values::<R>(), c_host.values::<R>(), u_host.values::<R>());
        let values = in_parts::<R>(a_values.len(), 2 * half, #[inline(always)] |row, part| {
            let (values, gates) = a_values[2 * half * row..][..2 * half].split_at(half);
            let (u_values, u_gates) = u_values[2 * half * row..][..2 * half].split_at(half);
            let c = &c_values[half * row..][..half];
            let (by_values, by_gates) = part.split_at_mut(half);
            for k in 0..half {
                let (s, t) = sigmoid_pair(gates[k]);
                // s' = s t and s'' = s t (t - s).
                let slope = c[k] * s * t;
                by_values[k] = slope * u_gates[k];
                by_gates[k] = slope * (u_gates[k] * values[k]).mul_add(t - s, u_values[k]);
            }
        });
        Elements::new(values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_of_the_sigmoid_are_the_known_polynomials() {
        assert_eq!(polynomial(1), [1.0]);
        assert_eq!(polynomial(2), [1.0, -2.0]);
        assert_eq!(polynomial(3), [1.0, -6.0, 6.0]);
        assert_eq!(polynomial(4), [1.0, -14.0, 36.0, -24.0]);
    }

    #[test]
    fn the_sigmoid_keeps_its_digits_at_both_ends() {
        for (a, expected) in [(-700.0_f64, (-700.0_f64).exp()), (-40.0, (-40.0_f64).exp()), (0.0, 0.5)] {
            let (s, t) = sigmoid_pair(a);
            let (t_mirrored, s_mirrored) = sigmoid_pair(-a);
            // A few roundings.
            assert!((s - expected).abs() <= 1e-15 * expected && (s, t) == (s_mirrored, t_mirrored));
        }
        assert!(sigmoid_pair(f64::NAN).0.is_nan());
        assert_eq!(sigmoid_pair(f32::INFINITY), (1.0, 0.0));
    }
}
