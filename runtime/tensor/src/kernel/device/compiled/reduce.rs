//! Sums over axes that lie side by side: `[outer, reduced, inner]` to `[outer, inner]`, in rounds, each of which adds up chunks.

use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::rows::{each_row, total};
use super::{buffer, cubes, each, element, room, value};

/// How many elements one unit adds up, where its neighbours add up those beside them.
const BY_UNIT: usize = 64;
/// How many elements the units of a cube add up together, where they lie in a row.
const BY_CUBE: usize = 1024;

/// Columns: a unit for each chunk of each.
#[cube(launch)]
fn columns<F: Float>(
    a: &[F],
    out: &mut [F],
    count: usize,
    reduced: usize,
    chunks: usize,
    inner: usize,
    #[comptime] length: usize,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < count {
        let column = k % inner;
        let chunk = k / inner % chunks;
        let outer = k / inner / chunks;
        let first = chunk * length;
        let last = min(first + length, reduced);
        let mut sum = F::new(0.0);
        for row in first..last {
            sum += a[(outer * reduced + row) * inner + column];
        }
        out[k] = sum;
    }
}

/// Rows: a cube for each chunk of each.
#[cube(launch)]
fn lines<F: Float>(
    a: &[F],
    out: &mut [F],
    count: usize,
    reduced: usize,
    chunks: usize,
    #[comptime] length: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let k = CUBE_POS;
    if k < count {
        let start = k / chunks * reduced;
        let first = k % chunks * length;
        let last = min(first + length, reduced);
        let mut part = F::new(0.0);
        let mut column = first + UNIT_POS as usize;
        while column < last {
            part += a[start + column];
            column += CUBE_DIM as usize;
        }
        let sum = total::<F>(part, units);
        if UNIT_POS == 0 {
            out[k] = sum;
        }
    }
}

/// One round.
fn summed(a: CubeTensor, [outer, reduced, inner]: [usize; 3], length: usize) -> CubeTensor {
    let chunks = reduced.div_ceil(length);
    let out = room(&a, &[outer, chunks, inner]);
    if inner == 1 {
        let (cubes, dim, units) = each_row(&out, outer * chunks, reduced.min(length));
        lines::launch(
            &out.client,
            cubes,
            dim,
            buffer(a),
            buffer(out.clone()),
            outer * chunks * inner,
            reduced,
            chunks,
            length,
            units,
            element(&out),
        );
    } else {
        let (cubes, dim) = each(&out, outer * chunks * inner);
        columns::launch(
            &out.client,
            cubes,
            dim,
            buffer(a),
            buffer(out.clone()),
            outer * chunks * inner,
            reduced,
            chunks,
            inner,
            length,
            element(&out),
        );
    }
    out
}

/// `[outer, reduced, inner]` to `[outer, inner]`, where `reduced` is not 0.
pub(crate) fn sum(a: &DispatchTensor, [outer, mut reduced, inner]: [usize; 3]) -> Option<DispatchTensor> {
    let length = if inner == 1 { BY_CUBE } else { BY_UNIT };
    let [mut sums] = cubes([a.clone()])?;
    while reduced > 1 {
        sums = summed(sums, [outer, reduced, inner], length);
        reduced = reduced.div_ceil(length);
    }
    Some(value(sums))
}
