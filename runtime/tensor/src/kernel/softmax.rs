//! The softmax of rows and its first two derivatives, each one pass; attention uses them, too.

use super::fill::in_parts;
use super::{Real, for_float};
use crate::Tensor;
use crate::tensor::Elements;

/// The lanes that sums of rows are kept in: rows are worked on by blocks of so many numbers. What is left of a row after whole blocks is taken as the end of a block that overlaps the one before:
/// number by number it would take as long as several blocks.
const LANES: usize = 8;

/// At least so many numbers of whole rows are worked on together; they stay in the nearest cache.
pub(super) const PART: usize = 1 << 11;

/// The sum over rows of one length of `term(numbers)`, the numbers of all rows at one place, in an order that depends on that length alone.
#[inline(always)]
fn total<R: Real, const N: usize>(rows: [&[R]; N], term: impl Fn([R; N]) -> R) -> R {
    let size = rows[0].len();
    let rows = rows.map(|row| &row[..size]);
    let mut lanes = [R::default(); LANES];
    let blocks = rows.map(|row| row.as_chunks::<LANES>().0);
    for block in 0..size / LANES {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(blocks.map(|blocks| blocks[block][lane]));
        }
    }
    let rest = size % LANES;
    if size < LANES {
        for (k, total) in lanes.iter_mut().enumerate().take(size) {
            *total += term(rows.map(|row| row[k]));
        }
    } else if rest > 0 {
        let ends = rows.map(|row| &row[size - LANES..]);
        for (lane, total) in lanes.iter_mut().enumerate() {
            let term = term(ends.map(|end| end[lane]));
            *total += if lane >= LANES - rest { term } else { R::default() };
        }
    }
    ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
}

/// Replaces every number of a row by what `change` makes of it.
#[inline(always)]
fn change_each<R: Real>(row: &mut [R], change: impl Fn(R) -> R) {
    let Some(mut end) = row.last_chunk::<LANES>().copied().filter(|_| !row.len().is_multiple_of(LANES)) else {
        row.iter_mut().for_each(|value| *value = change(*value));
        return;
    };
    end.iter_mut().for_each(|value| *value = change(*value));
    let (blocks, _) = row.as_chunks_mut::<LANES>();
    blocks.as_flattened_mut().iter_mut().for_each(|value| *value = change(*value));
    if let Some(last) = row.last_chunk_mut::<LANES>() {
        *last = end;
    }
}

/// The largest number of a row that has one; a number that is none may be passed over.
#[inline(always)]
fn largest<R: Real>(row: &[R]) -> R {
    let larger = |a: R, b: R| if b > a { b } else { a };
    let Some(mut lanes) = row.last_chunk::<LANES>().copied() else {
        return row.iter().fold(
            row[0],
            #[inline(always)]
            |a, b| larger(a, *b),
        );
    };
    for block in row.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], block[lane]);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    larger(larger(larger(a, e), larger(c, g)), larger(larger(b, f), larger(d, h)))
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
                [row],
                #[inline(always)]
                |[value]| value,
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
        [y, g],
        #[inline(always)]
        |[y, g]| y * g,
    );
    out.iter_mut().zip(y.iter().zip(g)).for_each(|(out, (y, g))| *out = *y * (*g - overlap));
}

/// `u g - u <y, g> - g <y, u>`: the gradient of `<u, y (g - <y, g>)>` by `y`.
#[inline(always)]
pub(super) fn curvature<R: Real>([y, g, u]: [&[R]; 3], out: &mut [R]) {
    let (y, g, u) = (&y[..out.len()], &g[..out.len()], &u[..out.len()]);
    let with_g = total(
        [y, g],
        #[inline(always)]
        |[y, g]| y * g,
    );
    let with_u = total(
        [y, u],
        #[inline(always)]
        |[y, u]| y * u,
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
