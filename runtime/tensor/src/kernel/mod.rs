//! Our own kernels for the processor: where burn's are slow, or sum in an order that depends on threads.
//!
//! Arguments have been checked. Every kernel gives the same bits whatever the number of threads: work is split so that each element of
//! the result is computed by one thread, in one order.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod device;
pub(crate) mod elementwise;
mod fill;
pub(crate) mod harmonics;
pub(crate) mod matrix;
pub(crate) mod norm;
mod product;
mod real;
pub(crate) mod segment;
mod solve;

use burn_backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn_backend::{Element, Shape, Slice};
use burn_dispatch::{Dispatch, DispatchTensor};
use rayon::prelude::*;

pub(crate) use real::{Real, vectorised};
pub(crate) use solve::solve;

use crate::context::Stop;
use crate::op::optimizer::AdamOptions;
use crate::tensor::{Host, Sizes, from_host};
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

/// Calls the kernel of this name for where its operand `$of` is: the processor's, or that of other devices.
macro_rules! kernel {
    ($of:expr => $($path:ident)::+ ( $($argument:expr),* $(,)? )) => {
        if $of.is_on_device() {
            $crate::kernel::device::$($path)::+($($argument),*)
        } else {
            $crate::kernel::$($path)::+($($argument),*)
        }
    };
}
pub(crate) use kernel;

/// Below this many elements a second thread costs more than it gives.
pub(crate) const PARALLEL: usize = 1 << 16;

pub(crate) fn zeros(shape: &[usize], dtype: DType) -> DispatchTensor {
    let count = shape.iter().product();
    for_float!(dtype, R => from_host(vec![R::default(); count], shape, dtype))
}

pub(crate) fn from_float64(values: Vec<f64>, shape: &[usize], dtype: DType) -> DispatchTensor {
    match dtype {
        DType::Float32 => from_host(values.into_iter().map(|value| value as f32).collect(), shape, dtype),
        _ => from_host(values, shape, dtype),
    }
}

pub(crate) fn cast(a: &Tensor, dtype: DType) -> DispatchTensor {
    let host = a.host();
    macro_rules! to_numbers {
        ($from:ty) => {
            match dtype {
                DType::Float32 => converted::<$from, f32>(host.values(), a.shape(), dtype, |value| value as f32),
                DType::Float64 => converted::<$from, f64>(host.values(), a.shape(), dtype, |value| value as f64),
                DType::Int32 => converted::<$from, i32>(host.values(), a.shape(), dtype, |value| value as i32),
                DType::Int64 => converted::<$from, i64>(host.values(), a.shape(), dtype, |value| value as i64),
                DType::Boolean => {
                    converted::<$from, bool>(host.values(), a.shape(), dtype, |value| value != <$from>::default())
                }
            }
        };
    }
    match a.dtype() {
        DType::Float32 => to_numbers!(f32),
        DType::Float64 => to_numbers!(f64),
        DType::Int32 => to_numbers!(i32),
        DType::Int64 => to_numbers!(i64),
        DType::Boolean => match dtype {
            DType::Float32 | DType::Float64 => {
                let numbers = host.bytes().iter().map(|&byte| f64::from(byte)).collect();
                from_float64(numbers, a.shape(), dtype)
            }
            DType::Int32 => from_host(host.bytes().iter().map(|&byte| i32::from(byte)).collect(), a.shape(), dtype),
            _ => from_host(host.bytes().iter().map(|&byte| i64::from(byte)).collect(), a.shape(), dtype),
        },
    }
}

fn converted<From, To>(values: &[From], shape: &[usize], dtype: DType, convert: fn(From) -> To) -> DispatchTensor
where
    From: Copy,
    To: Element + bytemuck::NoUninit + Send + Sync,
{
    from_host(values.iter().map(|&value| convert(value)).collect::<Vec<To>>(), shape, dtype)
}

pub(crate) fn select_where(condition: &Tensor, a: &Tensor, b: &Tensor, shape: &[usize]) -> DispatchTensor {
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
            Dispatch::bool_or(Dispatch::bool_and(mask, side(a)), not_taken)
        }
        dtype if dtype.is_integer() => {
            let side = |operand: &Tensor| {
                Dispatch::int_expand(Dispatch::int_reshape(operand.value(), aligned(operand)), whole())
            };
            Dispatch::int_mask_where(side(b), mask, side(a))
        }
        _ => {
            let side = |operand: &Tensor| {
                Dispatch::float_expand(Dispatch::float_reshape(operand.value(), aligned(operand)), whole())
            };
            Dispatch::float_mask_where(side(b), mask, side(a))
        }
    }
}

/// Truth values that a kernel of burn's gives as bytes; others of its kernels refuse these.
pub(crate) fn booleans(value: &DispatchTensor, shape: &[usize]) -> DispatchTensor {
    let values: Vec<bool> = Tensor::host_of(value).bytes().iter().map(|&byte| byte != 0).collect();
    from_host(values, shape, DType::Boolean)
}

/// The sizes before, at and after an axis.
fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Copies blocks; burn's own concatenation is many times slower than a copy.
pub(crate) fn concatenate(tensors: &[&Tensor], axis: usize, shape: &[usize]) -> DispatchTensor {
    fn joined<E: Element + bytemuck::Pod + Send + Sync>(
        tensors: &[&Tensor],
        axis: usize,
        shape: &[usize],
    ) -> DispatchTensor {
        let (outer, size, inner) = around(shape, axis);
        let hosts: Vec<Host> = tensors.iter().map(|tensor| tensor.host()).collect();
        let rows = |k: usize| (hosts[k].values::<E>(), tensors[k].shape()[axis] * inner);
        let mut values = Vec::with_capacity(outer * size * inner);
        for row in 0..outer {
            for k in 0..tensors.len() {
                let (part, width) = rows(k);
                values.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        from_host(values, shape, tensors[0].dtype())
    }
    match tensors[0].dtype() {
        DType::Float32 => joined::<f32>(tensors, axis, shape),
        DType::Float64 => joined::<f64>(tensors, axis, shape),
        DType::Int32 => joined::<i32>(tensors, axis, shape),
        DType::Int64 => joined::<i64>(tensors, axis, shape),
        DType::Boolean => Dispatch::bool_cat(tensors.iter().map(|tensor| tensor.value()).collect(), axis),
    }
}

/// Copies the elements from `start` on along `axis`: burn's view would be copied again by each kernel that reads it, and more slowly.
pub(crate) fn slice(a: &Tensor, axis: usize, start: usize, shape: &[usize]) -> DispatchTensor {
    fn cut<E: Element + bytemuck::Pod + Send + Sync>(
        a: &Tensor,
        axis: usize,
        start: usize,
        shape: &[usize],
    ) -> DispatchTensor {
        let (outer, size, inner) = around(a.shape(), axis);
        let host = a.host();
        let values = host.values::<E>();
        let mut part = Vec::with_capacity(outer * shape[axis] * inner);
        for row in 0..outer {
            part.extend_from_slice(&values[(row * size + start) * inner..][..shape[axis] * inner]);
        }
        from_host(part, shape, a.dtype())
    }
    match a.dtype() {
        DType::Float32 => cut::<f32>(a, axis, start, shape),
        DType::Float64 => cut::<f64>(a, axis, start, shape),
        DType::Int32 => cut::<i32>(a, axis, start, shape),
        DType::Int64 => cut::<i64>(a, axis, start, shape),
        DType::Boolean => {
            let range = |k: usize| if k == axis { start..start + shape[axis] } else { 0..a.shape()[k] };
            let ranges: Vec<Slice> = (0..shape.len()).map(|k| Slice::from(range(k))).collect();
            Dispatch::bool_slice(a.value(), &ranges)
        }
    }
}

/// Sums in a fixed order. Axes are first brought into the order kept, reduced; blocks of rows are then summed in double precision.
pub(crate) fn sum(a: &Tensor, is_reduced: &[bool], result: &[usize]) -> DispatchTensor {
    let kept = (0..is_reduced.len()).filter(|&axis| !is_reduced[axis]);
    let gone = (0..is_reduced.len()).filter(|&axis| is_reduced[axis]);
    let rows: usize = kept.clone().map(|axis| a.shape()[axis]).product();
    let width: usize = gone.clone().map(|axis| a.shape()[axis]).product();
    let leading = is_reduced.iter().take_while(|reduced| **reduced).count();
    let columns_first = leading > 0 && is_reduced[leading..].iter().all(|reduced| !reduced) && rows > 1;
    if a.dtype().is_integer() {
        let axes: Vec<usize> = gone.collect();
        let value = axes.iter().fold(a.value(), |value, &axis| Dispatch::int_sum_dim(value, axis));
        return Dispatch::int_reshape(value, Shape::from(result.to_vec()));
    }
    if columns_first {
        let host = a.host();
        return for_float!(a.dtype(), R => from_host(sum_columns::<R>(host.values(), rows), result, a.dtype()));
    }
    let axes: Sizes = kept.chain(gone).collect();
    let host = if axes.iter().enumerate().all(|(place, &axis)| place == axis) {
        a.host()
    } else {
        Tensor::host_of(&Dispatch::float_permute(a.value(), &axes))
    };
    for_float!(a.dtype(), R => from_host(sum_rows::<R>(host.values(), rows, width), result, a.dtype()))
}

/// Rows up to this length are summed one element after the other.
const SHORT: usize = 16;

/// The sum of each of `rows` rows of `width` elements.
fn sum_rows<R: Real>(values: &[R], rows: usize, width: usize) -> Vec<R> {
    if width == 0 {
        return vec![R::default(); rows];
    }
    if width <= SHORT {
        // Setting up lanes would take longer than adding.
        let short = |row: &[R]| R::from_f64(row.iter().fold(0.0, |sum, value| sum + value.to_f64()));
        return values.chunks_exact(width).map(short).collect();
    }
    let one = |row: &[R]| R::from_f64(row.chunks(4096).map(lane_sum).sum::<f64>());
    if values.len() < PARALLEL {
        values.chunks(width).map(one).collect()
    } else if rows > 1 {
        values.par_chunks(width).map(one).collect()
    } else {
        // One long row: its blocks are summed in parallel and added up in order.
        let blocks: Vec<f64> = values.par_chunks(4096).map(lane_sum).collect();
        vec![R::from_f64(blocks.into_iter().sum())]
    }
}

/// The sum of a block in eight lanes of double precision, added up pairwise.
fn lane_sum<R: Real>(block: &[R]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0.0_f64; 8];
            let mut chunks = block.chunks_exact(8);
            for chunk in &mut chunks {
                for (lane, value) in lanes.iter_mut().zip(chunk) {
                    *lane += value.to_f64();
                }
            }
            for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
                *lane += value.to_f64();
            }
            ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
        },
    )
}

/// The sum of rows of `width` elements, column by column, row after row.
fn sum_columns<R: Real>(values: &[R], width: usize) -> Vec<R> {
    vectorised(
        #[inline(always)]
        || {
            let mut totals = vec![0.0_f64; width];
            for row in values.chunks_exact(width) {
                for (total, value) in totals.iter_mut().zip(row) {
                    *total += value.to_f64();
                }
            }
            totals.into_iter().map(R::from_f64).collect()
        },
    )
}

/// Which end to look for.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Extreme {
    Largest,
    Smallest,
}

/// Where along `axis` the extreme element is, the first of equal ones; a NaN wins.
pub(crate) fn extreme_places(a: &Tensor, axis: usize, which: Extreme, shape: &[usize]) -> DispatchTensor {
    let (outer, size, inner) = around(a.shape(), axis);
    let host = a.host();
    let places = for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let beats = |candidate: R, best: R| {
            let (candidate, best) = (candidate.to_f64(), best.to_f64());
            !best.is_nan()
                && (candidate.is_nan() || if which == Extreme::Largest { candidate > best } else { candidate < best })
        };
        (0..outer * inner)
            .map(|k| {
                let at = |place: usize| values[(k / inner * size + place) * inner + k % inner];
                (1..size).fold(0, |best, place| if beats(at(place), at(best)) { place } else { best }) as i64
            })
            .collect::<Vec<_>>()
    });
    from_host(places, shape, DType::Int64)
}

/// `out[.., indices[k], ..] += a[.., k, ..]`, in the order of `k`.
pub(crate) fn index_add(a: &Tensor, axis: usize, indices: &Tensor, shape: &[usize]) -> DispatchTensor {
    let (outer, size, inner) = around(shape, axis);
    let (host, places) = (a.host(), indices.host());
    let places = places.values::<i64>();
    let stop = Stop::current();
    for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let mut totals = vec![R::default(); outer * size * inner];
        vectorised(#[inline(always)] || {
            for row in 0..outer {
                stop.check();
                for (k, &place) in places.iter().enumerate() {
                    let from = &values[(row * places.len() + k) * inner..][..inner];
                    let to = &mut totals[(row * size + place as usize) * inner..][..inner];
                    to.iter_mut().zip(from).for_each(|(total, value)| *total += *value);
                }
            }
        });
        from_host(totals, shape, a.dtype())
    })
}

/// `out[.., indices[.., k, ..], ..] += a[.., k, ..]`, row-major.
pub(crate) fn scatter_add(a: &Tensor, axis: usize, indices: &Tensor, shape: &[usize]) -> DispatchTensor {
    let (outer, size, inner) = around(shape, axis);
    let count = a.shape()[axis];
    let (host, places) = (a.host(), indices.host());
    let places = places.values::<i64>();
    for_float!(a.dtype(), R => {
        let mut totals = vec![R::default(); outer * size * inner];
        for (position, (&value, &place)) in host.values::<R>().iter().zip(places).enumerate() {
            let (row, column) = (position / (count * inner), position % inner);
            totals[(row * size + place as usize) * inner + column] += value;
        }
        from_host(totals, shape, a.dtype())
    })
}

/// The functions of a piecewise polynomial that are evaluated together.
const LANES: usize = 8;

/// Horner's scheme in the local coordinate of each interval, for the derivative of this order.
pub(crate) fn polynomial(
    x: &Tensor,
    coefficients: &Tensor,
    [lower, upper]: [f64; 2],
    order: usize,
    shape: &[usize],
) -> DispatchTensor {
    let &[intervals, terms, functions] = coefficients.shape() else { unreachable!("the rank was checked") };
    let (host, table) = (x.host(), coefficients.host());
    let width = (upper - lower) / intervals as f64;
    // The derivative of t^p by x of this order is p (p - 1) .. (p - order + 1) t^(p - order) (dt/dx)^order.
    let factor = |power: usize| {
        let falling: f64 = (0..order).map(|k| power as f64 - k as f64).product();
        falling * (2.0 / width).powi(order as i32)
    };
    for_float!(x.dtype(), R => {
        let factors: Vec<R> = (0..terms).map(|power| R::from_f64(factor(power))).collect();
        let table = table.values::<R>();
        let mut values = vec![R::default(); shape.iter().product()];
        vectorised(#[inline(always)] || {
            for (row, x) in values.chunks_exact_mut(functions.max(1)).zip(host.values::<R>()) {
                let x = x.to_f64();
                if !(lower..=upper).contains(&x) {
                    // A NaN must not look like a distance beyond the cutoff.
                    row.fill(if x.is_nan() { R::from_f64(f64::NAN) } else { R::default() });
                    continue;
                }
                let interval = (((x - lower) / width) as usize).min(intervals - 1);
                let t = R::from_f64(2.0 * (x - lower - interval as f64 * width) / width - 1.0);
                let block = &table[interval * terms * functions..][..terms * functions];
                let terms = || block.chunks_exact(functions).zip(&factors).skip(order).rev();
                let mut groups = row.chunks_exact_mut(LANES);
                for (group, values) in (&mut groups).enumerate() {
                    // Within a group the sums stay in registers.
                    let mut sums = [R::default(); LANES];
                    for (term, factor) in terms() {
                        let Some(term) = term[group * LANES..].first_chunk::<LANES>() else { break };
                        for lane in 0..LANES {
                            sums[lane] = sums[lane].mul_add(t, term[lane] * *factor);
                        }
                    }
                    values.copy_from_slice(&sums);
                }
                let rest = groups.into_remainder();
                let first = functions - rest.len();
                for (term, factor) in terms() {
                    for (value, coefficient) in rest.iter_mut().zip(&term[first..]) {
                        *value = value.mul_add(t, *coefficient * *factor);
                    }
                }
            }
        });
        from_host(values, shape, x.dtype())
    })
}

/// The elements of a parameter that one thread steps together.
const CHUNK: usize = 1 << 14;

/// One step for one parameter: its new value and moments. `four` is parameter, gradient, first and second moment.
pub(crate) fn adam(four: [&Tensor; 4], options: &AdamOptions) -> (DispatchTensor, DispatchTensor, DispatchTensor) {
    let [parameter, gradient, first, second] = four.map(Tensor::host);
    let (shape, dtype) = (four[0].shape(), four[0].dtype());
    let power = options.step.min(i32::MAX as u64) as i32;
    let correction = (1.0 - options.beta2.powi(power)).sqrt();
    let rate = options.learning_rate / (1.0 - options.beta1.powi(power));
    for_float!(dtype, R => {
        let real = R::from_f64;
        let (beta1, beta2, epsilon) = (real(options.beta1), real(options.beta2), real(options.epsilon));
        let (rest1, rest2) = (real(1.0 - options.beta1), real(1.0 - options.beta2));
        let (rate, correction) = (real(rate), real(1.0 / correction));
        let keep = real(if options.decoupled { 1.0 - options.learning_rate * options.weight_decay } else { 1.0 });
        let decay = real(if options.decoupled { 0.0 } else { options.weight_decay });
        let (parameter, gradient) = (parameter.values::<R>(), gradient.values::<R>());
        let (first, second) = (first.values::<R>(), second.values::<R>());
        let count = parameter.len();
        let mut new = (vec![R::default(); count], vec![R::default(); count], vec![R::default(); count]);
        let results = (new.0.par_chunks_mut(CHUNK), new.1.par_chunks_mut(CHUNK), new.2.par_chunks_mut(CHUNK));
        results.into_par_iter().enumerate().for_each(|(chunk, (value, first_moment, second_moment))| {
            let part = chunk * CHUNK..chunk * CHUNK + value.len();
            let (parameter, gradient) = (&parameter[part.clone()], &gradient[part.clone()]);
            let (first, second) = (&first[part.clone()], &second[part]);
            vectorised(#[inline(always)] || {
                for k in 0..value.len().min(parameter.len()) {
                    let g = decay.mul_add(parameter[k], gradient[k]);
                    let m = beta1 * first[k] + rest1 * g;
                    let v = beta2 * second[k] + rest2 * g * g;
                    value[k] = parameter[k] * keep - rate * m / (v.sqrt() * correction + epsilon);
                    first_moment[k] = m;
                    second_moment[k] = v;
                }
            });
        });
        (from_host(new.0, shape, dtype), from_host(new.1, shape, dtype), from_host(new.2, shape, dtype))
    })
}
