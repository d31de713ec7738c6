//! Sums over rows that belong together: the three partial derivatives of one trilinear form,
//! `sum_p sum_ij left[p, i] * blocks[segments[p], i, j] * right[p, j]`, closed under differentiation.

use std::sync::Arc;

use super::{FLOATS, check_dtypes, check_indices, check_rank};
use crate::autodiff::Reads;
use crate::context::check_cost;
use crate::kernel::device::segment::Table;
use crate::kernel::segment::STRIP;
use crate::memory::{self, Reservation};
use crate::op::linalg::multiplications;
use crate::tensor::checked_bytes;
use crate::{DType, Misuse, Tensor, kernel};

/// `out[s, i, j] = sum over the rows p of segment s of left[p, i] * right[p, j]`: `[rows, m]`, `[rows, n]` to `[count, m, n]`.
///
/// # Errors
/// The rows differ, a segment is not below `count`, or the dtypes differ.
pub fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, count: usize) -> Result<Tensor, Misuse> {
    const NAME: &str = "segment.outer-sum";
    check_dtypes(NAME, &[left, right], FLOATS)?;
    check_rows(NAME, "`left`", left, segments)?;
    check_rows(NAME, "`right`", right, segments)?;
    check_indices(NAME, segments, count)?;
    let shape = [count, left.shape()[1], right.shape()[1]];
    check_cost(NAME, multiplications(&shape[1..], left.shape()[0]))?;
    let grouped = Grouped::new(NAME, left, segments, &shape)?;
    let places = segments.clone();
    let run = move |[left, right]: [&Tensor; 2], _: &[usize]| match &grouped.table {
        Some(table) => kernel::device::segment::outer_sum(left, right, table, &shape).into(),
        None => kernel::segment::outer_sum(left, right, &grouped.segments, &shape),
    };
    Tensor::compute(NAME, &shape, left.dtype(), [left, right], run, Reads::Others, move |step| {
        step.gradients(&[&|g| contract_right(&step.inputs[1], g, &places), &|g| {
            contract_left(&step.inputs[0], g, &places)
        }])
    })
}

/// `out[p, j] = sum over i of left[p, i] * blocks[segments[p], i, j]`: `[rows, m]`, `[count, m, n]` to `[rows, n]`.
///
/// # Errors
/// The rows or `m` differ, a segment is not below `count`, or the dtypes differ.
pub fn contract_left(left: &Tensor, blocks: &Tensor, segments: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "segment.contract-left";
    check_blocks(NAME, "`left`", left, blocks, segments, 1)?;
    let shape = [left.shape()[0], blocks.shape()[2]];
    check_cost(NAME, multiplications(&shape, left.shape()[1]))?;
    let grouped = Grouped::new(NAME, left, segments, blocks.shape())?;
    let places = segments.clone();
    let run = move |[left, blocks]: [&Tensor; 2], _: &[usize]| match &grouped.table {
        Some(table) => kernel::device::segment::contract(left, blocks, table, false, &shape).into(),
        None => kernel::segment::contract(left, blocks, &grouped.segments, false, &shape),
    };
    Tensor::compute(NAME, &shape, left.dtype(), [left, blocks], run, Reads::Others, move |step| {
        let (left, blocks) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|g| contract_right(g, blocks, &places), &|g| outer_sum(left, g, &places, blocks.shape()[0])])
    })
}

/// `out[p, i] = sum over j of right[p, j] * blocks[segments[p], i, j]`: `[rows, n]`, `[count, m, n]` to `[rows, m]`.
///
/// # Errors
/// The rows or `n` differ, a segment is not below `count`, or the dtypes differ.
pub fn contract_right(right: &Tensor, blocks: &Tensor, segments: &Tensor) -> Result<Tensor, Misuse> {
    const NAME: &str = "segment.contract-right";
    check_blocks(NAME, "`right`", right, blocks, segments, 2)?;
    let shape = [right.shape()[0], blocks.shape()[1]];
    check_cost(NAME, multiplications(&shape, right.shape()[1]))?;
    let grouped = Grouped::new(NAME, right, segments, blocks.shape())?;
    let places = segments.clone();
    let run = move |[right, blocks]: [&Tensor; 2], _: &[usize]| match &grouped.table {
        Some(table) => kernel::device::segment::contract(right, blocks, table, true, &shape).into(),
        None => kernel::segment::contract(right, blocks, &grouped.segments, true, &shape),
    };
    Tensor::compute(NAME, &shape, right.dtype(), [right, blocks], run, Reads::Others, move |step| {
        let (right, blocks) = (&step.inputs[0], &step.inputs[1]);
        step.gradients(&[&|g| contract_left(g, blocks, &places), &|g| outer_sum(g, right, &places, blocks.shape()[0])])
    })
}

/// Counts what a kernel needs beside its result while it runs, in entries of two words: for each strip of the result, of which a block or its rows have several if they are
/// long, which it is and where it lies (three); for each block where its rows begin; for each row its places. Blocks may be many more than rows; without elements, there
/// is nothing to do for them.
fn reserve_tables(operation: &'static str, blocks: &[usize], rows: usize) -> Result<Reservation, Misuse> {
    let strips = blocks[0].saturating_mul(blocks[1].div_ceil(STRIP)).saturating_add(rows.div_ceil(STRIP));
    let entries = strips.saturating_mul(3).saturating_add(blocks[0]).saturating_add(rows);
    let entries = if blocks.contains(&0) { 0 } else { entries };
    memory::reserve(operation, checked_bytes(operation, &[entries, 2], DType::Int64)?)
}

/// What the kernels have of the segments that rows belong to.
struct Grouped {
    segments: Tensor,
    /// How their rows are brought together on a device, if they are on one.
    table: Option<Arc<Table>>,
    _bytes: Reservation,
}

impl Grouped {
    /// For blocks of this shape, one for each segment.
    fn new(operation: &'static str, rows: &Tensor, segments: &Tensor, blocks: &[usize]) -> Result<Self, Misuse> {
        let bytes = reserve_tables(operation, blocks, rows.shape()[0])?;
        let table = rows.is_on_device().then(|| segments.table_for(operation, rows, blocks[0])).transpose()?;
        Ok(Self { segments: segments.clone(), table, _bytes: bytes })
    }
}

fn check_rows(operation: &'static str, what: &str, rows: &Tensor, segments: &Tensor) -> Result<(), Misuse> {
    check_rank(operation, what, rows, 2)?;
    check_rank(operation, "`segments`", segments, 1)?;
    if rows.shape()[0] == segments.shape()[0] {
        return Ok(());
    }
    Err(Misuse::new(operation, format!("{what} has {} rows, `segments` {}", rows.shape()[0], segments.shape()[0])))
}

fn check_blocks(
    operation: &'static str,
    what: &str,
    rows: &Tensor,
    blocks: &Tensor,
    segments: &Tensor,
    axis: usize,
) -> Result<(), Misuse> {
    check_dtypes(operation, &[rows, blocks], FLOATS)?;
    check_rows(operation, what, rows, segments)?;
    check_rank(operation, "`blocks`", blocks, 3)?;
    if rows.shape()[1] != blocks.shape()[axis] {
        return Err(Misuse::new(
            operation,
            format!("{what} has shape {:?}, which does not fit blocks of shape {:?}", rows.shape(), blocks.shape()),
        ));
    }
    check_indices(operation, segments, blocks.shape()[0])
}
