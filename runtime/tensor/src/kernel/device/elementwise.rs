//! Functions of each element.

use burn_backend::ops::{BoolTensorOps, FloatTensorOps};
use burn_backend::{BoolDType, Scalar};
use burn_dispatch::{Dispatch, DispatchTensor};

use super::value::Value;
use crate::kernel::elementwise::Function;
use crate::{DType, Tensor};

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
    match (function, a.dtype()) {
        (Function::Sin, DType::Float32) => return sine(&Value::of(a), 0.0).0,
        (Function::Cos, DType::Float32) => return sine(&Value::of(a), 1.0).0,
        _ => {}
    }
    let of = match function {
        Function::Negative => Dispatch::float_neg,
        Function::Reciprocal => Dispatch::float_recip,
        Function::Absolute => Dispatch::float_abs,
        Function::Sign => return sign(a),
        Function::Exp => return Value::of(a).exp().0,
        Function::Log => return logarithm(a),
        Function::Sqrt => return defined(Dispatch::float_sqrt(a.value()), a, Dispatch::float_greater_equal_elem),
        Function::Sin => Dispatch::float_sin,
        Function::Cos => Dispatch::float_cos,
        Function::Tanh => return saturated(a, Dispatch::float_tanh),
        Function::Erf => return error_function(a),
    };
    of(a.value())
}

/// The sign of every element; devices say 0 of what is no number.
fn sign(a: &Tensor) -> DispatchTensor {
    let nan = Dispatch::float_is_nan(a.value(), a.device().booleans());
    Dispatch::float_mask_fill(Dispatch::float_sign(a.value()), nan, Scalar::Float(f64::NAN))
}

/// A function that is 1 beyond some number, and minus 1 below its opposite. Drivers compute it from exponentials, which are infinite there.
fn saturated(a: &Tensor, function: fn(DispatchTensor) -> DispatchTensor) -> DispatchTensor {
    /// Both functions are 1 here to all digits of double precision.
    const FAR: f64 = 20.0;
    let nan = Dispatch::float_is_nan(a.value(), a.device().booleans());
    let values = function(Dispatch::float_clamp(a.value(), Scalar::Float(-FAR), Scalar::Float(FAR)));
    Dispatch::float_mask_fill(values, nan, Scalar::Float(f64::NAN))
}

/// The error function of every element. Burn's for devices has seven digits in double precision, too.
fn error_function(a: &Tensor) -> DispatchTensor {
    own_kernel!(super::compiled::elementwise::erf(a));
    saturated(a, Dispatch::float_erf)
}

/// The logarithm of every element. What that of 0 is, and of what has none, graphics leave to the driver.
fn logarithm(a: &Tensor) -> DispatchTensor {
    let booleans = a.device().booleans();
    let zero = Dispatch::float_equal_elem(a.value(), Scalar::Float(0.0), booleans);
    let logarithm = defined(Dispatch::float_log(a.value()), a, Dispatch::float_greater_elem);
    Dispatch::float_mask_fill(logarithm, zero, Scalar::Float(f64::NEG_INFINITY))
}

/// Values of a function that is defined for arguments from 0 on alone, or beyond 0, as `is_in` has it; what it is elsewhere, and of NaN, is NaN.
fn defined(
    values: DispatchTensor,
    a: &Tensor,
    is_in: fn(DispatchTensor, Scalar, BoolDType) -> DispatchTensor,
) -> DispatchTensor {
    let out = Dispatch::bool_not(is_in(a.value(), Scalar::Float(0.0), a.device().booleans()));
    Dispatch::float_mask_fill(values, out, Scalar::Float(f64::NAN))
}

/// The sine of `a` and so many right angles, in single precision. Vulkan asks for no more than three digits of a sine, and SwiftShader gives four: so it is put
/// together from sums and products, which have all of theirs, with the polynomials of the Cephes library.
fn sine(a: &Value, right_angles: f64) -> Value {
    /// A right angle in three parts: multiples below 2^16 of the first two have no error, so neither has what is left.
    const PARTS: [f64; 3] = [1.570_312_5, 4.837_512_969_970_703e-4, 7.549_789_954_891_882e-8];
    let turns = a.times(std::f64::consts::FRAC_2_PI).plus(0.5).floor();
    let rest = PARTS.iter().fold(a.clone(), |rest, part| rest - turns.times(*part));
    let square = rest.clone() * rest.clone();
    let horner = |terms: [f64; 3]| (square.times(terms[0]).plus(terms[1]) * square.clone()).plus(terms[2]);
    let of_sine =
        rest.clone() + rest * square.clone() * horner([-1.951_529_589_1e-4, 8.332_160_873_6e-3, -1.666_665_461_1e-1]);
    let of_cosine = horner([2.443_315_711_809_948e-5, -1.388_731_625_493_765e-3, 4.166_664_568_298_827e-2]);
    let of_cosine = (square.clone() * square.clone() * of_cosine) + square.times(-0.5).plus(1.0);
    let turns = turns.plus(right_angles);
    // Whether the quadrant is one of the second half, and whether it is an odd one.
    let half = turns.times(0.5).floor();
    let is_odd = turns - half.times(2.0);
    let is_late = half.clone() - half.times(0.5).floor().times(2.0);
    let value = of_sine * is_odd.times(-1.0).plus(1.0) + of_cosine * is_odd;
    value * is_late.times(-2.0).plus(1.0)
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
    let power = Dispatch::float_powf_scalar_impl(Dispatch::float_abs(a.value()), Scalar::Float(exponent));
    Some(defined(power, a, Dispatch::float_greater_equal_elem))
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
