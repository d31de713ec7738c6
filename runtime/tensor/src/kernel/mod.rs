//! Our own kernels for the processor: where burn's are slow, or sum in an order that depends on threads.
//!
//! Arguments have been checked. Every kernel gives the same bits whatever the number of threads: work is split so that each element of
//! the result is computed by one thread, in one order.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod device;
mod dot;
pub(crate) mod elementwise;
mod few;
pub(crate) mod fill;
pub(crate) mod harmonics;
pub(crate) mod helpers;
pub(crate) mod index;
pub(crate) mod matrix;
pub(crate) mod norm;
#[cfg(target_arch = "x86_64")]
pub(crate) mod panels;
mod product;
mod real;
pub(crate) mod reduce;
pub(crate) mod segment;
pub(crate) mod shape;
pub(crate) mod softmax;
mod solve;
mod square;

use burn_backend::Shape;
use burn_backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn_dispatch::Dispatch;

use real::MAGIC64;
pub(crate) use real::{Real, Vectors, vectorised, vectorised_widely};
pub(crate) use solve::solve;

use crate::op::optimizer::AdamOptions;
use crate::tensor::Elements;
use crate::{DType, Tensor};

/// Runs generic code for the floating-point dtype at hand.
macro_rules! for_float {
    ($dtype:expr, $real:ident => $body:expr) => {
        match $dtype {
            $crate::DType::Float32 => {
                type $real = f32;
                $body
            }
            _ => {
                type $real = f64;
                $body
            }
        }
    };
}
pub(crate) use for_float;

/// Runs generic code on the elements of a tensor of any dtype, truth values as bytes, and wraps the vector that it gives.
macro_rules! for_elements {
    ($a:expr, |$values:ident| $body:expr) => {{
        let host = $a.host();
        macro_rules! of {
            ($type:ty) => {{
                let $values = host.values::<$type>();
                Elements::new($body)
            }};
        }
        match $a.dtype() {
            $crate::DType::Float32 => of!(f32),
            $crate::DType::Float64 => of!(f64),
            $crate::DType::Int32 => of!(i32),
            $crate::DType::Int64 => of!(i64),
            $crate::DType::Boolean => {
                let $values = host.bytes();
                Elements::new($body)
            }
        }
    }};
}
pub(crate) use for_elements;

/// Calls the kernel of this name for where its operand `$of` is: the processor's, or that of other devices.
macro_rules! kernel {
    ($of:expr => $($path:ident)::+ ( $($argument:expr),* $(,)? )) => {
        if $of.is_on_device() {
            $crate::tensor::Elements::from($crate::kernel::device::$($path)::+($($argument),*))
        } else {
            $crate::kernel::$($path)::+($($argument),*)
        }
    };
}
pub(crate) use kernel;

/// So many multiplications of a kernel that sums products count as one element, in what decides whether threads share the work.
const MULTIPLICATIONS: usize = 2;

pub(crate) fn zeros(shape: &[usize], dtype: DType) -> Elements {
    let count = shape.iter().product();
    for_float!(dtype, R => Elements::new(vec![R::default(); count]))
}

pub(crate) fn from_float64(values: Vec<f64>, dtype: DType) -> Elements {
    match dtype {
        DType::Float32 => Elements::new(values.into_iter().map(|value| value as f32).collect()),
        _ => Elements::new(values),
    }
}

pub(crate) fn cast(a: &Tensor, dtype: DType) -> Elements {
    let host = a.host();
    macro_rules! to_numbers {
        ($from:ty) => {
            match dtype {
                DType::Float32 => converted(host.values(), |value: $from| value as f32),
                DType::Float64 => converted(host.values(), |value: $from| value as f64),
                DType::Int32 => converted(host.values(), |value: $from| value as i32),
                DType::Int64 => converted(host.values(), |value: $from| value as i64),
                DType::Boolean => converted(host.values(), |value: $from| value != <$from>::default()),
            }
        };
    }
    match a.dtype() {
        DType::Float32 if dtype == DType::Int64 => Elements::new(to_int64(host.values::<f32>())),
        DType::Float64 if dtype == DType::Int64 => Elements::new(to_int64(host.values::<f64>())),
        DType::Float32 => to_numbers!(f32),
        DType::Float64 => to_numbers!(f64),
        DType::Int32 => to_numbers!(i32),
        DType::Int64 => to_numbers!(i64),
        DType::Boolean => match dtype {
            DType::Float32 | DType::Float64 => {
                let numbers = host.bytes().iter().map(|&byte| f64::from(byte)).collect();
                from_float64(numbers, dtype)
            }
            DType::Int32 => Elements::new(host.bytes().iter().map(|&byte| i32::from(byte)).collect()),
            _ => Elements::new(host.bytes().iter().map(|&byte| i64::from(byte)).collect()),
        },
    }
}

fn converted<From, To>(values: &[From], convert: impl Fn(From) -> To + Copy + Send + Sync) -> Elements
where
    From: fill::Fill,
    To: fill::Fill + bytemuck::NoUninit,
{
    Elements::new(fill::map(values, convert))
}

/// Without their fractions. Numbers out of range become the nearest that is in range, and what is none becomes 0.
fn to_int64<R: Real>(values: &[R]) -> Vec<i64> {
    /// What has its units in the last place of a sum with [`MAGIC64`] is smaller.
    const END: f64 = (1_u64 << 51) as f64;
    // Vector units convert to 64 bits by an addition, or one number after the other.
    fill::map_mostly(
        values,
        #[inline(always)]
        |value: R| value.to_f64().abs() < END,
        #[inline(always)]
        |value| (value.to_f64().trunc() + MAGIC64).to_bits().wrapping_sub(MAGIC64.to_bits()) as i64,
        #[inline(always)]
        |value| value.to_f64() as i64,
    )
}

pub(crate) fn select_where(condition: &Tensor, a: &Tensor, b: &Tensor, shape: &[usize]) -> Elements {
    let whole = || Shape::from(shape.to_vec());
    let aligned = |operand: &Tensor| {
        let mut sizes = vec![1; shape.len() - operand.shape().len()];
        sizes.extend_from_slice(operand.shape());
        Shape::from(sizes)
    };
    let mask = Dispatch::bool_expand(Dispatch::bool_reshape(condition.host_value(), aligned(condition)), whole());
    match a.dtype() {
        DType::Boolean => {
            let side = |operand: &Tensor| {
                Dispatch::bool_expand(Dispatch::bool_reshape(operand.value(), aligned(operand)), whole())
            };
            let not_taken = Dispatch::bool_and(Dispatch::bool_not(mask.clone()), side(b));
            Dispatch::bool_or(Dispatch::bool_and(mask, side(a)), not_taken).into()
        }
        dtype if dtype.is_integer() => {
            let side = |operand: &Tensor| {
                Dispatch::int_expand(Dispatch::int_reshape(operand.value(), aligned(operand)), whole())
            };
            Dispatch::int_mask_where(side(b), mask, side(a)).into()
        }
        _ => {
            let side = |operand: &Tensor| {
                Dispatch::float_expand(Dispatch::float_reshape(operand.value(), aligned(operand)), whole())
            };
            Dispatch::float_mask_where(side(b), mask, side(a)).into()
        }
    }
}

/// The sizes before, at and after an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// The functions of a piecewise polynomial that are evaluated together.
const LANES: usize = 8;

/// What the coefficient of a power of the local coordinate is multiplied with in the derivative of this order, on intervals of this width: that of `t^p` by `x` is
/// `p (p - 1) .. (p - order + 1) t^(p - order) (dt/dx)^order`.
fn derivative_factor(power: usize, order: usize, width: f64) -> f64 {
    let falling: f64 = (0..order).map(|k| power as f64 - k as f64).product();
    falling * (2.0 / width).powi(order as i32)
}

/// Horner's scheme in the local coordinate of each interval, for the derivative of this order.
pub(crate) fn polynomial(
    x: &Tensor,
    coefficients: &Tensor,
    [lower, upper]: [f64; 2],
    order: usize,
    shape: &[usize],
) -> Elements {
    let &[intervals, terms, functions] = coefficients.shape() else { unreachable!("the rank was checked") };
    let (host, table) = (x.host(), coefficients.host());
    let width = (upper - lower) / intervals as f64;
    for_float!(x.dtype(), R => {
        let factors: Vec<R> = (0..terms).map(|power| R::from_f64(derivative_factor(power, order, width))).collect();
        let table = table.values::<R>();
        let x_values = host.values::<R>();
        let values = fill::in_parts(shape.iter().product(), functions, #[inline(always)] |k, row: &mut [R]| {
            let x = x_values[k].to_f64();
            if !(lower..=upper).contains(&x) {
                // A NaN must not look like a distance beyond the cutoff.
                row.fill(if x.is_nan() { R::from_f64(f64::NAN) } else { R::default() });
                return;
            }
            let interval = (((x - lower) / width) as usize).min(intervals - 1);
            let t = R::from_f64(2.0 * (x - lower - interval as f64 * width) / width - 1.0);
            let block = &table[interval * terms * functions..][..terms * functions];
            let terms = || block.chunks_exact(functions).zip(&factors).skip(order).rev();
            // The last group begins early enough to be a whole one: some functions are then computed twice.
            let last = functions.saturating_sub(LANES);
            for start in (0..functions).step_by(LANES).map(|start| start.min(last)) {
                let Some(values) = row[start..].first_chunk_mut::<LANES>() else { break };
                // Within a group the sums stay in registers.
                let mut sums = [R::default(); LANES];
                for (term, factor) in terms() {
                    let Some(term) = term[start..].first_chunk::<LANES>() else { break };
                    for lane in 0..LANES {
                        sums[lane] = sums[lane].mul_add(t, term[lane] * *factor);
                    }
                }
                *values = sums;
            }
            if functions < LANES {
                for (term, factor) in terms() {
                    for (value, coefficient) in row.iter_mut().zip(term) {
                        *value = value.mul_add(t, *coefficient * *factor);
                    }
                }
            }
        });
        Elements::new(values)
    })
}

/// The elements of a parameter that one thread steps together.
const CHUNK: usize = 1 << 12;

/// One step for one parameter: its new value and moments. `four` is parameter, gradient, first and second moment.
pub(crate) fn adam(four: [&Tensor; 4], options: &AdamOptions) -> [Elements; 3] {
    let [parameter, gradient, first, second] = four.map(Tensor::host);
    let dtype = four[0].dtype();
    let (rate, correction) = options.corrected();
    for_float!(dtype, R => {
        let real = R::from_f64;
        let (beta1, beta2, epsilon) = (real(options.beta1), real(options.beta2), real(options.epsilon));
        let (rest1, rest2) = (real(1.0 - options.beta1), real(1.0 - options.beta2));
        let (rate, correction) = (real(rate), real(1.0 / correction));
        let keep = real(if options.decoupled { 1.0 - options.learning_rate * options.weight_decay } else { 1.0 });
        let decay = real(if options.decoupled { 0.0 } else { options.weight_decay });
        let (parameter, gradient) = (parameter.values::<R>(), gradient.values::<R>());
        let (first, second) = (first.values::<R>(), second.values::<R>());
        let [value, first, second] = fill::side_by_side(parameter.len(), CHUNK, #[inline(always)] |chunk, [value, first_moment, second_moment]| {
            let part = chunk * CHUNK..chunk * CHUNK + value.len();
            let (parameter, gradient) = (&parameter[part.clone()], &gradient[part.clone()]);
            let (first, second) = (&first[part.clone()], &second[part]);
            for k in 0..value.len().min(parameter.len()) {
                let g = decay.mul_add(parameter[k], gradient[k]);
                let m = beta1 * first[k] + rest1 * g;
                let v = beta2 * second[k] + rest2 * g * g;
                value[k] = parameter[k] * keep - rate * m / (v.sqrt() * correction + epsilon);
                first_moment[k] = m;
                second_moment[k] = v;
            }
        });
        [value, first, second].map(Elements::new)
    })
}
