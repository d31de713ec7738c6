//! The softmax of rows and its first two derivatives, each one pass; attention uses them, too.

use burn_dispatch::DispatchTensor;

use super::fill::in_parts;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::from_host;

/// The lanes that sums of long rows are kept in.
const LANES: usize = 8;

/// The sum over a row of `term(k)`, in an order that depends on its size alone.
#[inline(always)]
fn total<R: Real>(size: usize, term: impl Fn(usize) -> R) -> R {
    let mut lanes = [R::default(); LANES];
    let whole = size - size % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(start + lane);
        }
    }
    for k in whole..size {
        lanes[k - whole] += term(k);
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// Softmax of a row, shifted by its largest element.
#[inline(always)]
pub(super) fn value<R: Real>(row: &[R], out: &mut [R]) {
    let largest = row.iter().fold(
        row[0],
        #[inline(always)]
        |a, b| if *b > a { *b } else { a },
    );
    out.iter_mut().zip(row).for_each(|(out, score)| *out = (*score - largest).exp_of_negative());
    let scale = R::from_f64(1.0)
        / total(
            out.len(),
            #[inline(always)]
            |k| out[k],
        );
    out.iter_mut().for_each(|out| *out *= scale);
}

/// `y (g - <y, g>)`: the product with the Jacobian of the softmax `y`, which is symmetric.
#[inline(always)]
pub(super) fn product<R: Real>([y, g]: [&[R]; 2], out: &mut [R]) {
    let (y, g) = (&y[..out.len()], &g[..out.len()]);
    let overlap = total(
        out.len(),
        #[inline(always)]
        |k| y[k] * g[k],
    );
    out.iter_mut().zip(y.iter().zip(g)).for_each(|(out, (y, g))| *out = *y * (*g - overlap));
}

/// `u g - u <y, g> - g <y, u>`: the gradient of `<u, y (g - <y, g>)>` by `y`.
#[inline(always)]
pub(super) fn curvature<R: Real>([y, g, u]: [&[R]; 3], out: &mut [R]) {
    let (y, g, u) = (&y[..out.len()], &g[..out.len()], &u[..out.len()]);
    let with_g = total(
        out.len(),
        #[inline(always)]
        |k| y[k] * g[k],
    );
    let with_u = total(
        out.len(),
        #[inline(always)]
        |k| y[k] * u[k],
    );
    for k in 0..out.len() {
        out[k] = u[k] * (g[k] - with_g) - g[k] * with_u;
    }
}

/// Calls `row` with each row of the last axis of all inputs, which have one shape.
fn for_each_row<const N: usize>(inputs: [&Tensor; N], row: impl Rows<N>) -> DispatchTensor {
    let width = inputs[0].shape().last().copied().unwrap_or(1);
    let hosts = inputs.map(Tensor::host);
    for_float!(inputs[0].dtype(), R => {
        let values = std::array::from_fn::<&[R], N, _>(|input| hosts[input].values());
        let results = in_parts::<R>(values[0].len(), width, #[inline(always)] |k, out| {
            row.fill(values.map(|values| &values[k * width..][..width]), out);
        });
        from_host(results, inputs[0].shape(), inputs[0].dtype())
    })
}

/// One of the functions above, in either precision.
trait Rows<const N: usize>: Send + Sync {
    fn fill<R: Real>(&self, rows: [&[R]; N], out: &mut [R]);
}

struct Value;
struct Product;
struct Curvature;

impl Rows<1> for Value {
    #[inline(always)]
    fn fill<R: Real>(&self, [row]: [&[R]; 1], out: &mut [R]) {
        value(row, out);
    }
}

impl Rows<2> for Product {
    #[inline(always)]
    fn fill<R: Real>(&self, rows: [&[R]; 2], out: &mut [R]) {
        product(rows, out);
    }
}

impl Rows<3> for Curvature {
    #[inline(always)]
    fn fill<R: Real>(&self, rows: [&[R]; 3], out: &mut [R]) {
        curvature(rows, out);
    }
}

/// Softmax over the last axis.
pub(crate) fn softmax(a: &Tensor) -> DispatchTensor {
    for_each_row([a], Value)
}

/// [`product`] for each row of the last axis.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor) -> DispatchTensor {
    for_each_row([y, g], Product)
}

/// [`curvature`] for each row of the last axis.
pub(crate) fn softmax_curvature(y: &Tensor, g: &Tensor, u: &Tensor) -> DispatchTensor {
    for_each_row([y, g, u], Curvature)
}
