//! Arithmetic on each element, for the ways of stretching that networks use: none, one row for all, one element for each row, one for all.

use super::fill::{Fill, map, map_mostly, zip, zip_column, zip_row, zip3};
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    /// The larger of the two; NaN if one of them is.
    Larger,
    /// The smaller of the two; NaN if one of them is.
    Smaller,
}

impl Arithmetic {
    #[inline(always)]
    fn larger<R: Real>(a: R, b: R) -> R {
        // A NaN makes the comparison false and the sum one.
        if a > b {
            a
        } else if b >= a {
            b
        } else {
            a + b
        }
    }

    #[inline(always)]
    fn smaller<R: Real>(a: R, b: R) -> R {
        if a < b {
            a
        } else if b <= a {
            b
        } else {
            a + b
        }
    }
}

/// How `b` stretches over `a`.
enum Stretch {
    None,
    /// One element.
    Scalar,
    /// One row, repeated for all rows of `a`.
    Row,
    /// One element for each row of `a`, of so many elements.
    Column(usize),
}

/// How a tensor of shape `b` stretches over one of shape `a`; none if it does so in another way.
fn stretch(a: &[usize], b: &[usize]) -> Option<Stretch> {
    if a == b {
        return Some(Stretch::None);
    }
    if b.len() > a.len() {
        return None;
    }
    if b.iter().all(|&size| size == 1) {
        return Some(Stretch::Scalar);
    }
    let leading = b.iter().take_while(|&&size| size == 1).count();
    if a.ends_with(&b[leading..]) {
        return Some(Stretch::Row);
    }
    let trailing = b.iter().rev().take_while(|&&size| size == 1).count();
    let kept = b.len() - trailing;
    (b.len() == a.len() && a[..kept] == b[..kept]).then(|| Stretch::Column(a[kept..].iter().product()))
}

/// Both operands to one result, with one loop for each way of stretching and each function, so that each is vectorised.
macro_rules! combined {
    ($large:expr, $small:expr, $stretch:expr, |$x:ident, $y:ident| $value:expr) => {{
        let (large_host, small_host) = ($large.host(), $small.host());
        for_float!($large.dtype(), R => {
            let (large, small) = (large_host.values::<R>(), small_host.values::<R>());
            let values = match $stretch {
                Stretch::None => zip(large, small, #[inline(always)] |$x: R, $y: R| $value),
                Stretch::Row => zip_row(large, small, #[inline(always)] |$x: R, $y: R| $value),
                Stretch::Column(width) => zip_column(large, small, width, #[inline(always)] |$x: R, $y: R| $value),
                Stretch::Scalar => {
                    let $y = small.first().copied().unwrap_or_default();
                    map(large, #[inline(always)] move |$x: R| $value)
                }
            };
            Elements::new(values)
        })
    }};
}

/// Whether [`arithmetic`] knows how these stretch to `result`.
pub(crate) fn has_kernel(a: &Tensor, b: &Tensor, result: &[usize]) -> bool {
    a.shape() == result && stretch(result, b.shape()).is_some()
        || b.shape() == result && stretch(result, a.shape()).is_some()
}

/// `a` and `b` combined to a tensor of shape `result`; none where neither of them has that shape, or the other stretches in an unusual way.
pub(crate) fn arithmetic(function: Arithmetic, a: &Tensor, b: &Tensor, result: &[usize]) -> Option<Elements> {
    if a.shape() == result {
        let stretch = stretch(a.shape(), b.shape())?;
        return Some(match function {
            Arithmetic::Add => combined!(a, b, stretch, |a, b| a + b),
            Arithmetic::Subtract => combined!(a, b, stretch, |a, b| a - b),
            Arithmetic::Multiply => combined!(a, b, stretch, |a, b| a * b),
            Arithmetic::Divide => combined!(a, b, stretch, |a, b| a / b),
            Arithmetic::Larger => combined!(a, b, stretch, |a, b| Arithmetic::larger(a, b)),
            Arithmetic::Smaller => combined!(a, b, stretch, |a, b| Arithmetic::smaller(a, b)),
        });
    }
    let stretch = (b.shape() == result).then(|| stretch(b.shape(), a.shape()))??;
    Some(match function {
        Arithmetic::Add => combined!(b, a, stretch, |b, a| a + b),
        Arithmetic::Subtract => combined!(b, a, stretch, |b, a| a - b),
        Arithmetic::Multiply => combined!(b, a, stretch, |b, a| a * b),
        Arithmetic::Divide => combined!(b, a, stretch, |b, a| a / b),
        Arithmetic::Larger => combined!(b, a, stretch, |b, a| Arithmetic::larger(a, b)),
        Arithmetic::Smaller => combined!(b, a, stretch, |b, a| Arithmetic::smaller(a, b)),
    })
}

/// A function of two elements that is true or false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    Less,
    LessEqual,
}

/// As [`arithmetic`], with truth values.
pub(crate) fn comparison(function: Comparison, a: &Tensor, b: &Tensor, result: &[usize]) -> Option<Elements> {
    if a.shape() == result {
        let stretch = stretch(a.shape(), b.shape())?;
        return Some(match function {
            Comparison::Equal => combined!(a, b, stretch, |a, b| a == b),
            Comparison::Less => combined!(a, b, stretch, |a, b| a < b),
            Comparison::LessEqual => combined!(a, b, stretch, |a, b| a <= b),
        });
    }
    let stretch = (b.shape() == result).then(|| stretch(b.shape(), a.shape()))??;
    Some(match function {
        Comparison::Equal => combined!(b, a, stretch, |b, a| a == b),
        Comparison::Less => combined!(b, a, stretch, |b, a| a < b),
        Comparison::LessEqual => combined!(b, a, stretch, |b, a| a <= b),
    })
}

/// Neither NaN nor infinite.
pub(crate) fn is_finite(a: &Tensor) -> Elements {
    let host = a.host();
    for_float!(a.dtype(), R => {
        Elements::new(map(host.values::<R>(), #[inline(always)] |a: R| a.is_finite()))
    })
}

/// Whether both are true, or with `any` at least one; operands have one shape.
pub(crate) fn logical(a: &Tensor, b: &Tensor, any: bool) -> Elements {
    let (a_host, b_host) = (a.host(), b.host());
    let (a_bytes, b_bytes) = (a_host.bytes(), b_host.bytes());
    let values = match any {
        true => zip(
            a_bytes,
            b_bytes,
            #[inline(always)]
            |a: u8, b: u8| (a | b) != 0,
        ),
        false => zip(
            a_bytes,
            b_bytes,
            #[inline(always)]
            |a: u8, b: u8| (a != 0) & (b != 0),
        ),
    };
    Elements::new(values)
}

/// It is false.
pub(crate) fn logical_not(a: &Tensor) -> Elements {
    Elements::new(map(
        a.host().bytes(),
        #[inline(always)]
        |a: u8| a == 0,
    ))
}

/// `a` where `condition` is true, else `b`, in the shape of `condition`; none unless each of the others has that shape, too, or is one element.
pub(crate) fn select_where(condition: &Tensor, a: &Tensor, b: &Tensor) -> Option<Elements> {
    fn chosen<T: Fill>(condition: &[u8], a: &[T], b: &[T]) -> Vec<T> {
        let (first, second) = (a.first().copied().unwrap_or_default(), b.first().copied().unwrap_or_default());
        match (a.len() == condition.len(), b.len() == condition.len()) {
            (true, true) => zip3(
                condition,
                a,
                b,
                #[inline(always)]
                |condition, a, b| if condition != 0 { a } else { b },
            ),
            (true, false) => zip(
                condition,
                a,
                #[inline(always)]
                move |condition, a| if condition != 0 { a } else { second },
            ),
            (false, true) => zip(
                condition,
                b,
                #[inline(always)]
                move |condition, b| if condition != 0 { first } else { b },
            ),
            (false, false) => map(
                condition,
                #[inline(always)]
                move |condition| if condition != 0 { first } else { second },
            ),
        }
    }
    let fits = |side: &Tensor| {
        side.shape() == condition.shape() || side.count() == 1 && side.shape().len() <= condition.shape().len()
    };
    if !a.dtype().is_float() || !fits(a) || !fits(b) {
        return None;
    }
    let (condition_host, a_host, b_host) = (condition.host(), a.host(), b.host());
    Some(for_float!(a.dtype(), R => {
        Elements::new(chosen::<R>(condition_host.bytes(), a_host.values(), b_host.values()))
    }))
}

/// `a * factor`.
pub(crate) fn scaled(a: &Tensor, factor: f64) -> Elements {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let factor = R::from_f64(factor);
        Elements::new(map(host.values::<R>(), #[inline(always)] move |a| a * factor))
    })
}

/// `a + term`.
pub(crate) fn shifted(a: &Tensor, term: f64) -> Elements {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let term = R::from_f64(term);
        Elements::new(map(host.values::<R>(), #[inline(always)] move |a| a + term))
    })
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    Negative,
    Reciprocal,
    Absolute,
    Sign,
    Exp,
    Log,
    Sqrt,
    Sin,
    Cos,
    Tanh,
    Erf,
}

/// The function of every element.
pub(crate) fn function(function: Function, a: &Tensor) -> Elements {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let a_values = host.values::<R>();
        let values = match function {
            Function::Negative => map(a_values, #[inline(always)] |a: R| -a),
            Function::Reciprocal => map(a_values, #[inline(always)] |a: R| R::from_f64(1.0) / a),
            Function::Absolute => map(a_values, #[inline(always)] |a: R| Real::abs(a)),
            Function::Sign => map(a_values, #[inline(always)] |a: R| {
                // A NaN stays one, and 0 itself.
                let one = R::from_f64(1.0);
                let positive = if a > R::default() { one } else { a };
                if a < R::default() { -one } else { positive }
            }),
            Function::Exp => map(a_values, #[inline(always)] |a: R| Real::exp(a)),
            Function::Log => map_mostly(a_values, R::is_positive_normal, R::log_of_normal, <R as Real>::log),
            Function::Sqrt => map(a_values, #[inline(always)] |a: R| Real::sqrt(a)),
            Function::Sin => map_mostly(a_values, is_small_angle, <R as Real>::sin, |a: R| a.sin_cos_of_any().0),
            Function::Cos => map_mostly(a_values, is_small_angle, <R as Real>::cos, |a: R| a.sin_cos_of_any().1),
            Function::Tanh => map(a_values, #[inline(always)] |a: R| Real::tanh(a)),
            Function::Erf => map(a_values, #[inline(always)] |a: R| Real::erf(a)),
        };
        Elements::new(values)
    })
}

/// Whether this angle is a number, and not so large that digits would be lost.
#[inline(always)]
fn is_small_angle<R: Real>(a: R) -> bool {
    a.abs() <= R::from_f64(R::LARGEST_ANGLE)
}

/// `a` between the bounds; a NaN stays one.
pub(crate) fn clamp(a: &Tensor, low: f64, high: f64) -> Elements {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let (low, high) = (R::from_f64(low), R::from_f64(high));
        let values = map(host.values::<R>(), #[inline(always)] move |a: R| {
            let a = if a < low { low } else { a };
            if a > high { high } else { a }
        });
        Elements::new(values)
    })
}

/// `a ^ exponent`. Whole and half powers up to 4 are products and roots; others are the standard library's.
pub(crate) fn power(a: &Tensor, exponent: f64) -> Elements {
    let host = a.host();
    let doubled = 2.0 * exponent.abs();
    for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let is_negative = exponent < 0.0;
        // A loop of its own for each power, so that each is vectorised.
        macro_rules! product {
            (|$x:ident| $value:expr) => {
                if is_negative {
                    map(values, #[inline(always)] |$x: R| R::from_f64(1.0) / $value)
                } else {
                    map(values, #[inline(always)] |$x: R| $value)
                }
            };
        }
        let powers = match doubled {
            1.0 => product!(|x| Real::sqrt(x)),
            2.0 => product!(|x| x),
            3.0 => product!(|x| x * Real::sqrt(x)),
            4.0 => product!(|x| x * x),
            5.0 => product!(|x| x * x * Real::sqrt(x)),
            6.0 => product!(|x| x * x * x),
            7.0 => product!(|x| x * x * x * Real::sqrt(x)),
            8.0 => product!(|x| (x * x) * (x * x)),
            _ => map(values, move |x: R| R::from_f64(x.to_f64().powf(exponent))),
        };
        Elements::new(powers)
    })
}
