//! The softmax of rows and its first two derivatives, each one pass; attention uses them, too.

use super::fill::in_parts;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

/// The lanes that sums of long rows are kept in.
const LANES: usize = 8;

/// At least so many numbers of whole rows are worked on together; they stay in the nearest cache.
pub(super) const PART: usize = 1 << 11;

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

/// Calls `change` with every number of a row: by blocks, because short rows are shorter than what a compiler makes of a loop over them.
#[inline(always)]
fn change_each<R: Real>(row: &mut [R], change: impl Fn(R) -> R) {
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    for block in blocks {
        block.iter_mut().for_each(|value| *value = change(*value));
    }
    rest.iter_mut().for_each(|value| *value = change(*value));
}

/// The largest number of a row that has one; a number that is none may be passed over.
#[inline(always)]
fn largest<R: Real>(row: &[R]) -> R {
    let larger = |a: R, b: R| if b > a { b } else { a };
    let mut largest = row[0];
    let mut rest = row;
    // In a short row there is nothing to gain from lanes, and rows do not wait for each other.
    if row.len() >= 4 * LANES {
        let (blocks, after) = row.as_chunks::<LANES>();
        let mut lanes = blocks[0];
        for block in blocks {
            for lane in 0..LANES {
                lanes[lane] = larger(lanes[lane], block[lane]);
            }
        }
        largest = lanes.into_iter().fold(largest, larger);
        rest = after;
    }
    rest.iter().fold(
        largest,
        #[inline(always)]
        |a, b| larger(a, *b),
    )
}

/// Softmax of each row of `size` numbers, in place, shifted by its largest number. All rows are brought to the same step before the next one: exponentials of one short row
/// would wait for each other.
#[inline(always)]
pub(super) fn of_rows<R: Real>(rows: &mut [R], size: usize) {
    for row in rows.chunks_exact_mut(size.max(1)) {
        let largest = largest(row);
        change_each(
            row,
            #[inline(always)]
            |score| score - largest,
        );
    }
    change_each(
        rows,
        #[inline(always)]
        |difference| difference.exp_of_negative(),
    );
    for row in rows.chunks_exact_mut(size.max(1)) {
        let scale = R::from_f64(1.0)
            / total(
                row.len(),
                #[inline(always)]
                |k| row[k],
            );
        change_each(
            row,
            #[inline(always)]
            |value| value * scale,
        );
    }
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
fn for_each_row<const N: usize>(inputs: [&Tensor; N], row: impl Rows<N>) -> Elements {
    let width = inputs[0].shape().last().copied().unwrap_or(1);
    let hosts = inputs.map(Tensor::host);
    for_float!(inputs[0].dtype(), R => {
        let values = std::array::from_fn::<&[R], N, _>(|input| hosts[input].values());
        let results = in_parts::<R>(values[0].len(), width, #[inline(always)] |k, out| {
            row.fill(values.map(|values| &values[k * width..][..width]), out);
        });
        Elements::new(results)
    })
}

/// One of the functions above, in either precision.
trait Rows<const N: usize>: Send + Sync {
    fn fill<R: Real>(&self, rows: [&[R]; N], out: &mut [R]);
}

struct Product;
struct Curvature;

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
pub(crate) fn softmax(a: &Tensor) -> Elements {
    let width = a.shape().last().copied().unwrap_or(1).max(1);
    let host = a.host();
    for_float!(a.dtype(), R => {
        let values = host.values::<R>();
        let part = PART.div_ceil(width) * width;
        let results = in_parts::<R>(values.len(), part, #[inline(always)] |k, out| {
            out.copy_from_slice(&values[k * part..][..out.len()]);
            of_rows(out, width);
        });
        Elements::new(results)
    })
}

/// [`product`] for each row of the last axis.
pub(crate) fn softmax_product(y: &Tensor, g: &Tensor) -> Elements {
    for_each_row([y, g], Product)
}

/// [`curvature`] for each row of the last axis.
pub(crate) fn softmax_curvature(y: &Tensor, g: &Tensor, u: &Tensor) -> Elements {
    for_each_row([y, g, u], Curvature)
}
