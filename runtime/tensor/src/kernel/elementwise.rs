//! Arithmetic on each element, for the ways of stretching that networks use: none, one row for all, one element for each row, one for all.

use burn_dispatch::DispatchTensor;

use super::fill::{map, zip, zip_column, zip_row};
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::from_host;

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
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

/// One loop for each way of stretching and each function, so that each is vectorised.
macro_rules! combined {
    ($large:expr, $small:expr, $stretch:expr, |$x:ident, $y:ident| $value:expr) => {{
        let (large_host, small_host) = ($large.host(), $small.host());
        for_float!($large.dtype(), R => {
            let (large, small) = (large_host.values::<R>(), small_host.values::<R>());
            let values = match $stretch {
                Stretch::None => zip(large, small, #[inline(always)] |$x, $y| $value),
                Stretch::Row => zip_row(large, small, #[inline(always)] |$x, $y| $value),
                Stretch::Column(width) => zip_column(large, small, width, #[inline(always)] |$x, $y| $value),
                Stretch::Scalar => {
                    let $y = small.first().copied().unwrap_or_default();
                    map(large, #[inline(always)] |$x| $value)
                }
            };
            from_host(values, $large.shape(), $large.dtype())
        })
    }};
}

/// `a` and `b` combined to a tensor of shape `result`; none where neither of them has that shape, or the other stretches in an unusual way.
pub(crate) fn arithmetic(function: Arithmetic, a: &Tensor, b: &Tensor, result: &[usize]) -> Option<DispatchTensor> {
    if a.shape() == result {
        let stretch = stretch(a.shape(), b.shape())?;
        return Some(match function {
            Arithmetic::Add => combined!(a, b, stretch, |a, b| a + b),
            Arithmetic::Subtract => combined!(a, b, stretch, |a, b| a - b),
            Arithmetic::Multiply => combined!(a, b, stretch, |a, b| a * b),
            Arithmetic::Divide => combined!(a, b, stretch, |a, b| a / b),
        });
    }
    let stretch = (b.shape() == result).then(|| stretch(b.shape(), a.shape()))??;
    Some(match function {
        Arithmetic::Add => combined!(b, a, stretch, |b, a| a + b),
        Arithmetic::Subtract => combined!(b, a, stretch, |b, a| a - b),
        Arithmetic::Multiply => combined!(b, a, stretch, |b, a| a * b),
        Arithmetic::Divide => combined!(b, a, stretch, |b, a| a / b),
    })
}

/// `a * factor`.
pub(crate) fn scaled(a: &Tensor, factor: f64) -> DispatchTensor {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let factor = R::from_f64(factor);
        from_host(map(host.values::<R>(), #[inline(always)] |a| a * factor), a.shape(), a.dtype())
    })
}

/// `a + term`.
pub(crate) fn shifted(a: &Tensor, term: f64) -> DispatchTensor {
    let host = a.host();
    for_float!(a.dtype(), R => {
        let term = R::from_f64(term);
        from_host(map(host.values::<R>(), #[inline(always)] |a| a + term), a.shape(), a.dtype())
    })
}

/// `e^a`.
pub(crate) fn exp(a: &Tensor) -> DispatchTensor {
    let host = a.host();
    for_float!(a.dtype(), R => from_host(map(host.values::<R>(), #[inline(always)] |a| a.exp()), a.shape(), a.dtype()))
}
