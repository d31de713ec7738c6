//! Functions of each element.

use burn_backend::Scalar;
use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_dispatch::{Dispatch, DispatchTensor};

use super::value::Value;
use crate::Tensor;
use crate::kernel::elementwise::Function;

/// The largest whole exponent that is multiplied out: powers of graphics processors have few digits.
const MULTIPLIED: f64 = 64.0;

/// `a * factor`.
pub(crate) fn scaled(a: &Tensor, factor: f64) -> DispatchTensor {
    Value::of(a).times(factor).0
}

/// `a + term`.
pub(crate) fn shifted(a: &Tensor, term: f64) -> DispatchTensor {
    Value::of(a).plus(term).0
}

/// The function of every element.
pub(crate) fn function(function: Function, a: &Tensor) -> DispatchTensor {
    let of = match function {
        Function::Negative => Dispatch::float_neg,
        Function::Reciprocal => Dispatch::float_recip,
        Function::Absolute => Dispatch::float_abs,
        Function::Sign => Dispatch::float_sign,
        Function::Exp => Dispatch::float_exp,
        Function::Log => Dispatch::float_log,
        Function::Sqrt => Dispatch::float_sqrt,
        Function::Sin => Dispatch::float_sin,
        Function::Cos => Dispatch::float_cos,
        Function::Tanh => Dispatch::float_tanh,
        Function::Erf => Dispatch::float_erf,
    };
    of(a.value())
}

/// `a` between the bounds.
pub(crate) fn clamp(a: &Tensor, low: f64, high: f64) -> DispatchTensor {
    Dispatch::float_clamp(a.value(), Scalar::Float(low), Scalar::Float(high))
}

/// Neither NaN nor infinite.
pub(crate) fn is_finite(a: &Tensor) -> DispatchTensor {
    let booleans = a.device().booleans();
    let nan = Dispatch::float_is_nan(a.value(), booleans);
    Dispatch::bool_not(Dispatch::bool_or(nan, Dispatch::float_is_inf(a.value(), booleans)))
}

/// `a^exponent`; none where that is better left to the processor.
pub(crate) fn power(a: &Tensor, exponent: f64) -> Option<DispatchTensor> {
    if !exponent.is_finite() {
        return None;
    }
    let is_whole = exponent.fract() == 0.0;
    if is_whole && exponent.abs() <= MULTIPLIED {
        return Some(multiplied(Value::of(a), exponent).0);
    }
    if is_whole {
        return None;
    }
    // The sign of a base is no matter of the devices' powers: what is below 0 has none.
    let negative = Dispatch::float_lower_elem(a.value(), Scalar::Float(0.0), a.device().booleans());
    let power = Dispatch::float_powf_scalar_impl(Dispatch::float_abs(a.value()), Scalar::Float(exponent));
    Some(Dispatch::float_mask_fill(power, negative, Scalar::Float(f64::NAN)))
}

/// A whole power that is not 0, by squaring.
fn multiplied(base: Value, exponent: f64) -> Value {
    let (mut rest, mut square, mut power) = (exponent.abs() as u32, base, None);
    loop {
        if rest & 1 == 1 {
            power = Some(match power {
                Some(power) => power * square.clone(),
                None => square.clone(),
            });
        }
        rest >>= 1;
        match power {
            Some(power) if rest == 0 => return if exponent < 0.0 { power.reciprocal() } else { power },
            _ => square = square.clone() * square,
        }
    }
}
