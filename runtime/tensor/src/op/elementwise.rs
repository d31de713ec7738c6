//! Operations on each element. Binary ones broadcast.

use burn_backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn_backend::{BoolDType, Scalar, Shape};
use burn_dispatch::{Dispatch, DispatchTensor};
use smallvec::SmallVec;

use super::{FLOATS, NUMBERS, broadcast_shape, check_dtypes, sum_to};
use crate::autodiff::Reads;
use crate::kernel::activation::Activation;
use crate::kernel::elementwise::{Arithmetic, Comparison, Function};
use crate::kernel::kernel;
use crate::tensor::{Elements, check_devices, reshaped};
use crate::{DType, Misuse, Tensor, kernel};

type Binary = fn(DispatchTensor, DispatchTensor) -> DispatchTensor;

/// Burn broadcasts operands of one rank: leading axes of size 1 are added here.
fn aligned(a: &Tensor, rank: usize) -> DispatchTensor {
    if a.shape().len() == rank {
        return a.value();
    }
    let mut sizes = vec![1; rank - a.shape().len()];
    sizes.extend_from_slice(a.shape());
    reshaped(a.value(), Shape::from(sizes), a.dtype())
}

/// With our own kernel where it knows the way in which the operands stretch, else with burn's.
fn run_arithmetic(
    function: Arithmetic,
    a: &Tensor,
    b: &Tensor,
    shape: &[usize],
    [float, integer]: [Binary; 2],
) -> Elements {
    let has_own = a.dtype().is_float() && !a.is_on_device();
    let own = has_own.then(|| kernel::elementwise::arithmetic(function, a, b, shape)).flatten();
    own.unwrap_or_else(|| run_binary(a, b, shape.len(), float, integer))
}

fn run_binary(a: &Tensor, b: &Tensor, rank: usize, float: Binary, integer: Binary) -> Elements {
    // Burn's kernels want rank 1 at least.
    let (left, right) = (aligned(a, rank.max(1)), aligned(b, rank.max(1)));
    if a.dtype().is_float() { float(left, right).into() } else { integer(left, right).into() }
}

macro_rules! arithmetic {
    ($(#[$doc:meta])* $name:ident, $label:literal, $function:ident, $dtypes:expr, $float:ident, $integer:ident, $reads:ident, |$step:ident, $a:ident, $b:ident, $g:ident| $left:expr, $right:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The shapes do not broadcast, the dtypes differ or do not fit, or the quota is exceeded.
        pub fn $name(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
            check_dtypes($label, &[a, b], $dtypes)?;
            let shape = broadcast_shape($label, a.shape(), b.shape())?;
            Tensor::compute(
                $label,
                &shape,
                a.dtype(),
                [a, b],
                |[a, b], shape| run_arithmetic(Arithmetic::$function, a, b, shape, [Dispatch::$float, Dispatch::$integer]),
                Reads::$reads,
                |$step| {
                    let ($a, $b) = (&$step.inputs[0], &$step.inputs[1]);
                    $step.gradients(&[
                        &|$g| sum_to(&$left, $a.shape()),
                        &|$g| sum_to(&$right, $b.shape()),
                    ])
                },
            )
        }
    };
}

arithmetic!(
    /// `a + b`; integers wrap.
    add, "elementwise.add", Add, NUMBERS, float_add, int_add, Nothing, |step, a, b, g| g.clone(), g.clone()
);
arithmetic!(
    /// `a - b`; integers wrap.
    subtract, "elementwise.subtract", Subtract, NUMBERS, float_sub, int_sub, Nothing, |step, a, b, g| g.clone(), negative(g)?
);
arithmetic!(
    /// `a * b`; integers wrap.
    multiply, "elementwise.multiply", Multiply, NUMBERS, float_mul, int_mul, Others, |step, a, b, g| multiply(g, b)?, multiply(g, a)?
);
arithmetic!(
    /// `a / b`; division by zero gives an infinity or NaN.
    divide, "elementwise.divide", Divide, FLOATS, float_div, int_div, All,
    |step, a, b, g| divide(g, b)?, negative(&divide(&multiply(g, step.output)?, b)?)?
);

/// The larger of the two; where they are equal, each gets half of the gradient. NaN in either gives NaN.
///
/// # Errors
/// As [`add`].
pub fn maximum(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    extreme("elementwise.maximum", Arithmetic::Larger, a, b)
}

/// The smaller of the two; where they are equal, each gets half of the gradient. NaN in either gives NaN.
///
/// # Errors
/// As [`add`].
pub fn minimum(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    extreme("elementwise.minimum", Arithmetic::Smaller, a, b)
}

fn extreme(operation: &'static str, function: Arithmetic, a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    check_dtypes(operation, &[a, b], FLOATS)?;
    let shape = broadcast_shape(operation, a.shape(), b.shape())?;
    let wins = move |one: &Tensor, other: &Tensor| match function {
        Arithmetic::Larger => less(other, one),
        _ => less(one, other),
    };
    if a.is_on_device() || !kernel::elementwise::has_kernel(a, b, &shape) {
        // Halved first: the sum of the largest numbers is infinite.
        let halves = add(&multiply_scalar(a, 0.5)?, &multiply_scalar(b, 0.5)?)?;
        return where_(&wins(a, b)?, a, &where_(&wins(b, a)?, b, &halves)?);
    }
    let run = move |[a, b]: [&Tensor; 2], shape: &[usize]| {
        let own = kernel::elementwise::arithmetic(function, a, b, shape);
        own.unwrap_or_else(|| unreachable!("it has a kernel for these shapes"))
    };
    Tensor::compute(operation, &shape, a.dtype(), [a, b], run, Reads::Inputs, move |step| {
        let (a, b) = (&step.inputs[0], &step.inputs[1]);
        // Where `one` is taken alone it has all of the gradient, where `other` is, none, and elsewhere half.
        let part = |g: &Tensor, one: &Tensor, other: &Tensor| {
            let shared = where_(&wins(other, one)?, &zero_like(g)?, &multiply_scalar(g, 0.5)?)?;
            sum_to(&where_(&wins(one, other)?, g, &shared)?, one.shape())
        };
        step.gradients(&[&|g| part(g, a, b), &|g| part(g, b, a)])
    })
}

/// `a + scalar`; for integers the scalar is truncated towards zero.
///
/// # Errors
/// `a` is boolean, or the quota is exceeded.
pub fn add_scalar(a: &Tensor, scalar: f64) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.add-scalar";
    a.expect_dtype(NAME, NUMBERS)?;
    let run = move |[a]: [&Tensor; 1], _: &[usize]| match a.dtype() {
        dtype if dtype.is_float() => kernel!(a => elementwise::shifted(a, scalar)),
        _ => Dispatch::int_add_scalar(a.value(), Scalar::Int(scalar as i64)).into(),
    };
    Tensor::compute(NAME, a.shape(), a.dtype(), [a], run, Reads::Nothing, |step| step.gradients(&[&|g| Ok(g.clone())]))
}

/// `a * scalar`; for integers the scalar is truncated towards zero.
///
/// # Errors
/// `a` is boolean, or the quota is exceeded.
pub fn multiply_scalar(a: &Tensor, scalar: f64) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.multiply-scalar";
    a.expect_dtype(NAME, NUMBERS)?;
    let run = move |[a]: [&Tensor; 1], _: &[usize]| match a.dtype() {
        dtype if dtype.is_float() => kernel!(a => elementwise::scaled(a, scalar)),
        _ => Dispatch::int_mul_scalar(a.value(), Scalar::Int(scalar as i64)).into(),
    };
    Tensor::compute(NAME, a.shape(), a.dtype(), [a], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| multiply_scalar(g, scalar)])
    })
}

/// `a ^ exponent`; NaN for a negative `a` and an exponent that is no integer; exponent 0 gives 1 everywhere.
///
/// # Errors
/// `a` is not floating-point, or the quota is exceeded.
pub fn power_scalar(a: &Tensor, exponent: f64) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.power-scalar";
    a.expect_dtype(NAME, FLOATS)?;
    if exponent == 0.0 {
        return Tensor::full(&a.device(), a.shape(), 1.0, a.dtype());
    }
    let run = move |[a]: [&Tensor; 1], _: &[usize]| {
        let own = a.is_on_device().then(|| kernel::device::elementwise::power(a, exponent)).flatten();
        own.map_or_else(|| kernel::elementwise::power(a, exponent), Elements::from)
    };
    Tensor::compute(NAME, a.shape(), a.dtype(), [a], run, Reads::Inputs, move |step| {
        step.gradients(&[&|g| {
            multiply(g, &multiply_scalar(&power_scalar(&step.inputs[0], exponent - 1.0)?, exponent)?)
        }])
    })
}

/// `a` limited to `[low, high]`; the gradient is 0 outside and 1 on the bounds.
///
/// # Errors
/// `low` exceeds `high` or is NaN, or `a` is not floating-point.
pub fn clamp(a: &Tensor, low: f64, high: f64) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.clamp";
    a.expect_dtype(NAME, FLOATS)?;
    if low.is_nan() || high.is_nan() || low > high {
        return Err(Misuse::new(NAME, format!("bounds are {low} and {high}, expected the smaller one first")));
    }
    let run = move |[a]: [&Tensor; 1], _: &[usize]| kernel!(a => elementwise::clamp(a, low, high));
    Tensor::compute(NAME, a.shape(), a.dtype(), [a], run, Reads::All, |step| {
        // Inside and on the bounds the value is unchanged.
        let inside = equal(&step.inputs[0], step.output)?;
        step.gradients(&[&|g| where_(&inside, g, &zero_like(g)?)])
    })
}

fn zero_like(a: &Tensor) -> Result<Tensor, Misuse> {
    Tensor::full(&a.device(), &[], 0.0, a.dtype())
}

macro_rules! unary {
    ($(#[$doc:meta])* $name:ident, $label:literal, |$value:ident| $run:expr, $reads:ident, |$a:ident, $y:ident, $g:ident| $gradient:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// `a` is not floating-point, or the quota is exceeded.
        pub fn $name(a: &Tensor) -> Result<Tensor, Misuse> {
            a.expect_dtype($label, FLOATS)?;
            Tensor::compute($label, a.shape(), a.dtype(), [a], |[$value], _| $run, Reads::$reads, |step| {
                #[allow(unused_variables, reason = "each derivative uses the input, the output, or both")]
                let ($a, $y) = (&step.inputs[0], step.output);
                step.gradients(&[&|$g| $gradient])
            })
        }
    };
}

/// `-a`; integers too.
///
/// # Errors
/// `a` is boolean, or the quota is exceeded.
pub fn negative(a: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.negative";
    a.expect_dtype(NAME, NUMBERS)?;
    let run = |[a]: [&Tensor; 1], _: &[usize]| match a.dtype() {
        dtype if dtype.is_float() => kernel!(a => elementwise::function(Function::Negative, a)),
        _ => Dispatch::int_neg(a.value()).into(),
    };
    Tensor::compute(NAME, a.shape(), a.dtype(), [a], run, Reads::Nothing, |step| step.gradients(&[&negative]))
}

unary!(
    /// `1 / a`.
    reciprocal, "elementwise.reciprocal", |v| kernel!(v => elementwise::function(Function::Reciprocal, v)), Output,
    |a, y, g| negative(&multiply(g, &multiply(y, y)?)?)
);
unary!(
    /// `|a|`; its gradient at 0 is 0.
    absolute, "elementwise.absolute", |v| kernel!(v => elementwise::function(Function::Absolute, v)), Inputs, |a, y, g| multiply(g, &sign(a)?)
);
unary!(
    /// -1, 0 or 1; its gradient is 0.
    sign, "elementwise.sign", |v| kernel!(v => elementwise::function(Function::Sign, v)), Nothing,
    |a, y, g| Tensor::full(&g.device(), g.shape(), 0.0, g.dtype())
);
unary!(
    /// e to the power `a`.
    exp, "elementwise.exp", |v| kernel!(v => elementwise::function(Function::Exp, v)), Output, |a, y, g| multiply(g, y)
);
unary!(
    /// The natural logarithm; NaN below 0.
    log, "elementwise.log", |v| kernel!(v => elementwise::function(Function::Log, v)), Inputs, |a, y, g| divide(g, a)
);
unary!(
    /// The square root; NaN below 0, with an infinite gradient at 0.
    sqrt, "elementwise.sqrt", |v| kernel!(v => elementwise::function(Function::Sqrt, v)), Output, |a, y, g| multiply_scalar(&divide(g, y)?, 0.5)
);
unary!(
    /// The sine of radians.
    sin, "elementwise.sin", |v| kernel!(v => elementwise::function(Function::Sin, v)), Inputs, |a, y, g| multiply(g, &cos(a)?)
);
unary!(
    /// The cosine of radians.
    cos, "elementwise.cos", |v| kernel!(v => elementwise::function(Function::Cos, v)), Inputs, |a, y, g| negative(&multiply(g, &sin(a)?)?)
);
unary!(
    /// The hyperbolic tangent.
    tanh, "elementwise.tanh", |v| kernel!(v => elementwise::function(Function::Tanh, v)), Output,
    |a, y, g| subtract(g, &multiply(g, &multiply(y, y)?)?)
);
unary!(
    /// The error function; its derivative is `2 / sqrt(pi) exp(-a^2)`.
    erf, "elementwise.erf", |v| kernel!(v => elementwise::function(Function::Erf, v)), Inputs,
    |a, y, g| multiply(g, &multiply_scalar(&exp(&negative(&multiply(a, a)?)?)?, std::f64::consts::FRAC_2_SQRT_PI)?)
);
/// `1 / (1 + exp(-a))`.
///
/// # Errors
/// `a` is not floating-point, or the quota is exceeded.
pub fn sigmoid(a: &Tensor) -> Result<Tensor, Misuse> {
    activation("elementwise.sigmoid", Activation::Sigmoid, a, None, 0)
}

/// `a * sigmoid(a)`.
///
/// # Errors
/// `a` is not floating-point, or the quota is exceeded.
pub fn silu(a: &Tensor) -> Result<Tensor, Misuse> {
    activation("elementwise.silu", Activation::Silu, a, None, 0)
}

/// The derivative of this order at each element, times `factor`; its own derivatives are of the same form.
fn activation(
    operation: &'static str,
    function: Activation,
    a: &Tensor,
    factor: Option<&Tensor>,
    order: usize,
) -> Result<Tensor, Misuse> {
    a.expect_dtype(operation, FLOATS)?;
    let inputs: SmallVec<[&Tensor; 2]> = std::iter::once(a).chain(factor).collect();
    let run = move |inputs: &[&Tensor], _: &[usize]| {
        let (a, factor) = (inputs[0], inputs.get(1).copied());
        kernel!(a => activation::derivative(function, a, factor, order))
    };
    Tensor::compute_list(operation, a.shape(), a.dtype(), &inputs, run, Reads::Inputs, move |step| {
        let a = &step.inputs[0];
        let derived = |factor: &Tensor, order| activation(operation, function, a, Some(factor), order);
        match step.inputs.get(1) {
            None => step.gradients(&[&|g| derived(g, order + 1)]),
            Some(factor) => step.gradients(&[&|g| derived(&multiply(g, factor)?, order + 1), &|g| derived(g, order)]),
        }
    })
}

macro_rules! comparison {
    ($(#[$doc:meta])* $name:ident, $label:literal, $function:ident, $float:ident, $integer:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The shapes do not broadcast, the dtypes differ or are boolean.
        pub fn $name(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
            check_dtypes($label, &[a, b], NUMBERS)?;
            let shape = broadcast_shape($label, a.shape(), b.shape())?;
            Tensor::constant($label, &shape, DType::Boolean, [a, b], |[a, b], shape| {
                let has_own = a.dtype().is_float() && !a.is_on_device();
                let own = has_own.then(|| kernel::elementwise::comparison(Comparison::$function, a, b, shape));
                if let Some(own) = own.flatten() {
                    return own;
                }
                let rank = shape.len().max(1);
                let (left, right) = (aligned(a, rank), aligned(b, rank));
                if a.dtype().is_float() {
                    let booleans = if a.is_on_device() { a.device().booleans() } else { BoolDType::Native };
                    Dispatch::$float(left, right, booleans).into()
                } else {
                    Dispatch::$integer(left, right, BoolDType::Native).into()
                }
            })
        }
    };
}

comparison!(
    /// `a == b`; NaN equals nothing.
    equal, "elementwise.equal", Equal, float_equal, int_equal
);
comparison!(
    /// `a < b`.
    less, "elementwise.less", Less, float_lower, int_lower
);
comparison!(
    /// `a <= b`.
    less_equal, "elementwise.less-equal", LessEqual, float_lower_equal, int_lower_equal
);

/// Neither NaN nor infinite.
///
/// # Errors
/// `a` is not floating-point.
pub fn is_finite(a: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.is-finite";
    a.expect_dtype(NAME, FLOATS)?;
    Tensor::constant(NAME, a.shape(), DType::Boolean, [a], |[a], _| kernel!(a => elementwise::is_finite(a)))
}

fn logical(operation: &'static str, a: &Tensor, b: &Tensor, any: bool, run: Binary) -> Result<Tensor, Misuse> {
    check_dtypes(operation, &[a, b], &[DType::Boolean])?;
    let shape = broadcast_shape(operation, a.shape(), b.shape())?;
    Tensor::constant(operation, &shape, DType::Boolean, [a, b], move |[a, b], shape| {
        if a.shape() == b.shape() && !a.is_on_device() {
            return kernel::elementwise::logical(a, b, any);
        }
        let whole = a.burn_shape(shape);
        let stretched = |operand: &Tensor| Dispatch::bool_expand(aligned(operand, whole.num_dims()), whole.clone());
        run(stretched(a), stretched(b)).into()
    })
}

/// Both are true.
///
/// # Errors
/// An operand is not boolean, or the shapes do not broadcast.
pub fn logical_and(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    logical("elementwise.logical-and", a, b, false, Dispatch::bool_and)
}

/// At least one is true.
///
/// # Errors
/// An operand is not boolean, or the shapes do not broadcast.
pub fn logical_or(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    logical("elementwise.logical-or", a, b, true, Dispatch::bool_or)
}

/// It is false.
///
/// # Errors
/// The operand is not boolean.
pub fn logical_not(a: &Tensor) -> Result<Tensor, Misuse> {
    a.expect_dtype("elementwise.logical-not", &[DType::Boolean])?;
    let run = |[a]: [&Tensor; 1], _: &[usize]| match a.is_on_device() {
        true => Dispatch::bool_not(a.value()).into(),
        false => kernel::elementwise::logical_not(a),
    };
    Tensor::constant("elementwise.logical-not", a.shape(), DType::Boolean, [a], run)
}

/// `a` where `condition` is true, else `b`; all broadcast. No gradient flows to the side that was not taken, not even a NaN.
///
/// # Errors
/// `condition` is not boolean, `a` and `b` differ in dtype, or the shapes do not broadcast.
pub fn where_(condition: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "elementwise.where";
    condition.expect_dtype(NAME, &[DType::Boolean])?;
    check_dtypes(NAME, &[a, b], &[DType::Float32, DType::Float64, DType::Int32, DType::Int64, DType::Boolean])?;
    let sides = broadcast_shape(NAME, a.shape(), b.shape())?;
    let shape = broadcast_shape(NAME, condition.shape(), &sides)?;
    check_devices(NAME, &condition.node.device, &[a])?;
    let (mask, condition) = (condition.clone(), condition.clone());
    let run = move |[a, b]: [&Tensor; 2], shape: &[usize]| {
        let has_own = condition.shape() == shape && !a.is_on_device();
        let own = has_own.then(|| kernel::elementwise::select_where(&condition, a, b)).flatten();
        own.unwrap_or_else(|| kernel!(a => select_where(&condition, a, b, shape)))
    };
    Tensor::compute(NAME, &shape, a.dtype(), [a, b], run, Reads::Nothing, move |step| {
        step.gradients(&[&|g| sum_to(&where_(&mask, g, &zero_like(g)?)?, step.inputs[0].shape()), &|g| {
            sum_to(&where_(&mask, &zero_like(g)?, g)?, step.inputs[1].shape())
        }])
    })
}
