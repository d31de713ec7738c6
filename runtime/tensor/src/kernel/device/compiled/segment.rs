//! Rows brought together, see [`crate::kernel::segment`].

use burn_cubecl::cubecl;
use burn_dispatch::DispatchTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{MOST, buffer, cubes, each, element, room, value};

#[cube(launch)]
fn gathered<F: Float>(
    rows: &[F],
    sources: &[i32],
    out: &mut [F],
    count: usize,
    chunks: usize,
    length: usize,
    width: usize,
    #[define(F)] _dtype: ElemType,
) {
    let k = ABSOLUTE_POS;
    if k < chunks * width {
        let (chunk, column) = (k / width, k % width);
        let mut sum = F::new(0.0);
        for place in 0..length {
            let row = sources[chunk * length + place] as usize;
            // A number past the last row stands for zeros.
            if row < count {
                sum += rows[row * width + column];
            }
        }
        out[k] = sum;
    }
}

/// `[rows, width]` to `[chunks, width]`: sums of so many rows each, in the order of `sources`, where a number past the last row stands for zeros.
pub(crate) fn gathered_sums(
    rows: &DispatchTensor,
    width: usize,
    sources: &DispatchTensor,
    chunks: usize,
    length: usize,
) -> Option<DispatchTensor> {
    if chunks.checked_mul(width).is_none_or(|elements| elements > MOST) {
        return None;
    }
    let [rows, sources] = cubes([rows.clone(), sources.clone()])?;
    let count = rows.meta.shape()[0];
    let out = room(&rows, &[chunks, width]);
    let (cubes, dim) = each(&rows, chunks * width);
    gathered::launch(
        &out.client,
        cubes,
        dim,
        buffer(rows),
        buffer(sources),
        buffer(out.clone()),
        count,
        chunks,
        length,
        width,
        element(&out),
    );
    Some(value(out))
}
