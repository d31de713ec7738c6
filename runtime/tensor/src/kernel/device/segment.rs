//! Sums over rows that belong together, see [`crate::kernel::segment`].
//!
//! The rows of a segment are copied side by side in *chunks* of one length, the last of which is filled up with zeros, and chunks are summed or multiplied
//! as one batch of matrices. If segments are of about one size, a chunk is a segment. If not, large ones have several chunks, whose sums are brought
//! together in the same way again, so that no more than about four times the rows are copied however uneven the segments are. Which row goes where is
//! worked out by the host, which has the indices; nothing is added atomically, and the order of a sum is always the same.

use burn_backend::Shape;
use burn_backend::ops::FloatTensorOps;
use burn_dispatch::{Dispatch, DispatchTensor};

#[cfg(feature = "accelerator")]
use super::compiled::segment::gathered_sums;
use super::value::Value;
use crate::indices::{check_countable, on_device};
use crate::kernel::segment::Groups;
use crate::memory::{self, BOOKKEEPING, Reservation};
use crate::tensor::{checked_bytes, guarded};
use crate::{DType, Device, Misuse, Tensor};

/// How much more may be copied than there are rows, for all segments to have one chunk.
const SLACK: usize = 2;
/// What a table takes beside its numbers, in what a tensor takes beside its elements.
const HANDLES: usize = 3;

/// The longest chunk that one unit of a device sums.
#[cfg(feature = "accelerator")]
const IN_ONE_SUM: usize = 128;

/// How the rows of segments are brought together.
pub(crate) struct Table {
    device: Device,
    rows: usize,
    count: usize,
    /// Rows into chunks, these into chunks of chunks, and so on until each segment has one at most.
    levels: Vec<Level>,
    /// For each row its place among those of the first level.
    places: DispatchTensor,
    /// For each chunk of the first level its segment.
    segments: DispatchTensor,
    /// For each segment its chunk of the last level, or one past the end; none if these are all segments in order.
    last: Option<DispatchTensor>,
    _bytes: Reservation,
}

/// One round of copying side by side.
struct Level {
    chunks: usize,
    length: usize,
    /// What is copied to each place: a row's number, or one past the end for zeros. None if it is each row in order.
    sources: Option<DispatchTensor>,
}

/// A level as the host works it out.
struct Plan {
    length: usize,
    sources: Vec<usize>,
    /// The segment of each chunk.
    segments: Vec<i64>,
    /// For each row its place.
    places: Vec<usize>,
}

impl Plan {
    fn new(segments: &[i64], count: usize) -> Self {
        let groups = Groups::new(segments, count);
        let sizes = || (0..count).map(|segment| groups.rows(segment).len()).filter(|&size| size > 0);
        let (filled, largest) = (sizes().count().max(1), sizes().max().unwrap_or(1));
        let length = if filled.saturating_mul(largest) <= SLACK * segments.len() {
            largest
        } else {
            segments.len().div_ceil(filled).next_power_of_two().max(2)
        };
        let (mut sources, mut chunk_segments, mut places) = (Vec::new(), Vec::new(), vec![0; segments.len()]);
        for segment in 0..count {
            let rows = groups.rows(segment);
            for start in rows.clone().step_by(length) {
                for place in start..(start + length).min(rows.end) {
                    places[groups.row(place)] = sources.len();
                    sources.push(groups.row(place));
                }
                chunk_segments.push(segment as i64);
                sources.resize(chunk_segments.len() * length, segments.len());
            }
        }
        Self { length, sources, segments: chunk_segments, places }
    }

    fn level(&self, rows: usize, device: &Device) -> Level {
        let is_in_order = self.sources.len() == rows && self.sources.is_sorted();
        Level {
            chunks: self.segments.len(),
            length: self.length,
            sources: (!is_in_order).then(|| on_device(self.sources.iter().copied(), device)),
        }
    }
}

impl Table {
    /// For rows of these segments, which have been checked to be below `count`; there is one row at least.
    pub(crate) fn new(
        operation: &'static str,
        segments: &[i64],
        count: usize,
        device: &Device,
    ) -> Result<Self, Misuse> {
        let entries = segments.len().saturating_mul(8).saturating_add(count.saturating_mul(2));
        let bytes = checked_bytes(operation, &[entries], DType::Int64)?;
        let bytes = memory::reserve(operation, bytes.saturating_add(HANDLES * BOOKKEEPING))?;
        // Places of chunks are fewer than four times the rows.
        check_countable(operation, segments.len().saturating_mul(4).max(count))?;
        let first = Plan::new(segments, count);
        let is_done = |segments: &[i64]| segments.is_sorted_by(|a, b| a < b);
        guarded(device, || {
            let mut levels = vec![first.level(segments.len(), device)];
            let mut ends = first.segments.clone();
            while !is_done(&ends) {
                let plan = Plan::new(&ends, count);
                levels.push(plan.level(ends.len(), device));
                ends = plan.segments;
            }
            let last = (ends.len() < count).then(|| {
                let mut chunks = vec![ends.len(); count];
                ends.iter().enumerate().for_each(|(chunk, &segment)| chunks[segment as usize] = chunk);
                on_device(chunks.into_iter(), device)
            });
            Ok(Self {
                device: device.clone(),
                rows: segments.len(),
                count,
                levels,
                places: on_device(first.places.iter().copied(), device),
                segments: on_device(first.segments.iter().map(|&segment| segment as usize), device),
                last,
                _bytes: bytes,
            })
        })
    }

    pub(crate) fn is_for(&self, device: &Device, count: usize) -> bool {
        self.device == *device && self.count == count
    }

    /// `[rows, width]` to `[chunks, length, width]`.
    fn gathered(&self, level: &Level, rows: Value) -> Value {
        let width = rows.sizes()[1];
        let rows = match &level.sources {
            Some(sources) => self.selected(rows, sources, level.chunks * level.length),
            None => rows,
        };
        rows.reshaped(&[level.chunks, level.length, width])
    }

    /// So many rows by their numbers, of which one past the last stands for zeros.
    #[cfg_attr(
        not(feature = "accelerator"),
        allow(unused_variables, reason = "kernels of ours are told how much they write")
    )]
    fn selected(&self, rows: Value, numbers: &DispatchTensor, count: usize) -> Value {
        #[cfg(feature = "accelerator")]
        if let Some(rows) = gathered_sums(&rows.0, rows.sizes()[1], numbers, count, 1) {
            return Value(rows);
        }
        self.with_zeros(rows).selected(0, numbers)
    }

    /// The rows and one of zeros after them.
    fn with_zeros(&self, rows: Value) -> Value {
        let sizes = Shape::from(vec![1, rows.sizes()[1]]);
        let dtype = burn_backend::TensorMetadata::dtype(&rows.0);
        let zeros = Value(Dispatch::float_zeros(sizes, &self.device.dispatch(), dtype.into()));
        Value::joined(vec![rows, zeros], 0)
    }

    /// `[rows, width]` to `[count, width]`, the sums of each segment's rows.
    pub(super) fn sums(&self, rows: Value) -> Value {
        self.summed_from(0, rows)
    }

    /// What comes out of the levels from this one on.
    fn summed_from(&self, first: usize, rows: Value) -> Value {
        let width = rows.sizes()[1];
        let sums = self.levels[first..].iter().fold(rows, |rows, level| match level.length {
            1 => self.gathered(level, rows).reshaped(&[level.chunks, width]),
            #[cfg(feature = "accelerator")]
            length
                if length <= IN_ONE_SUM
                    && let Some(sums) = own_sums(level, &rows, width) =>
            {
                sums
            }
            _ => self.gathered(level, rows).sum(1).reshaped(&[level.chunks, width]),
        });
        match &self.last {
            Some(last) => self.selected(sums, last, self.count),
            None => sums,
        }
    }
}

/// The sums of a level's chunks, without copying rows side by side.
#[cfg(feature = "accelerator")]
fn own_sums(level: &Level, rows: &Value, width: usize) -> Option<Value> {
    gathered_sums(&rows.0, width, level.sources.as_ref()?, level.chunks, level.length).map(Value)
}

pub(crate) fn outer_sum(left: &Tensor, right: &Tensor, table: &Table, shape: &[usize; 3]) -> DispatchTensor {
    let &[_, m, n] = shape;
    let level = &table.levels[0];
    let left = table.gathered(level, Value::of(left)).transposed();
    let products = left.product(table.gathered(level, Value::of(right)));
    table.summed_from(1, products.reshaped(&[level.chunks, m * n])).reshaped(shape).0
}

/// `out[p] = rows[p] blocks[segment]`, or `rows[p] blocks[segment]^T` if `transposed`.
pub(crate) fn contract(
    rows: &Tensor,
    blocks: &Tensor,
    table: &Table,
    transposed: bool,
    shape: &[usize; 2],
) -> DispatchTensor {
    let level = &table.levels[0];
    let blocks = Value::of(blocks).selected(0, &table.segments);
    let blocks = if transposed { blocks.transposed() } else { blocks };
    let products = table.gathered(level, Value::of(rows)).product(blocks);
    let flat = products.reshaped(&[level.chunks * level.length, shape[1]]);
    match &level.sources {
        Some(_) => flat.selected(0, &table.places).0,
        None => flat.0,
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Table({} rows, {} segments, {} levels)", self.rows, self.count, self.levels.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of every kind: all of one size, empty ones, one that has nearly everything, one for each row, in no order.
    fn cases() -> Vec<(Vec<i64>, usize)> {
        let scattered = (0..200).map(|row| (row * 7919 + row / 3) % 13).collect();
        let uneven = (0..300).map(|row| if row < 270 { 5 } else { row % 40 }).collect();
        vec![
            (vec![0; 7], 1),
            (vec![2, 0, 2, 3, 0, 2], 4),
            ((0..12).map(|row| row / 3).collect(), 4),
            ((0..50).collect(), 50),
            ((0..50).rev().collect(), 70),
            (scattered, 13),
            (uneven, 1000),
            (vec![3], 5),
        ]
    }

    #[test]
    fn no_segments_are_so_uneven_that_much_more_is_copied_than_there_is() {
        for (segments, count) in cases() {
            let plan = Plan::new(&segments, count);
            assert!(plan.sources.len() <= 4 * segments.len() + 1, "{} of {}", plan.sources.len(), segments.len());
            assert_eq!(plan.sources.len(), plan.segments.len() * plan.length);
            for (row, &place) in plan.places.iter().enumerate() {
                assert_eq!((plan.sources[place], plan.segments[place / plan.length]), (row, segments[row]));
            }
        }
    }

    #[test]
    fn sums_equal_plain_loops() -> Result<(), Misuse> {
        let device = Device::portable();
        for (segments, count) in cases() {
            let width = 3;
            let numbers: Vec<f64> = (0..segments.len() * width).map(|k| ((k * 37) % 101) as f64 - 50.0).collect();
            let rows = Tensor::from_float64(&device, &[segments.len(), width], &numbers, DType::Float64)?;
            let table = Table::new("test", &segments, count, &device)?;
            let mut expected = vec![0.0; count * width];
            for (row, &segment) in segments.iter().enumerate() {
                (0..width).for_each(|k| expected[segment as usize * width + k] += numbers[row * width + k]);
            }
            let found = table.sums(Value::of(&rows));
            // Sums of small whole numbers are exact.
            assert_eq!(crate::tensor::Elements::from(found.0).host().values::<f64>(), expected, "{table:?}");
        }
        Ok(())
    }
}
