//! What is known of a tensor of integers that is used as indices.
//!
//! Integers are with the host, where their range is found once. A device gets copies of what has been checked: its kernels do not check indices.

use std::sync::{Arc, OnceLock};

use burn_backend::ops::IntTensorOps;
use burn_backend::{Shape, TensorData};
use burn_dispatch::{Dispatch, DispatchTensor};

use crate::kernel::device::segment::Table;
use crate::memory::{self, Reservation};
use crate::tensor::checked_bytes;
use crate::{DType, Device, Misuse, Tensor};

/// Facts about indices, and what devices have been given of them.
pub(crate) struct Indices {
    range: (i64, i64),
    copy: OnceLock<Box<Copied>>,
    /// For the number of segments that was first asked for.
    table: OnceLock<Arc<Table>>,
}

/// Numbers on a device.
struct Copied {
    device: Device,
    value: DispatchTensor,
    _bytes: Reservation,
}

impl Indices {
    /// Finds the range of `values`, of which there MUST be some.
    pub(crate) fn new(values: &[i64]) -> Self {
        let ends = |(low, high): (i64, i64), &value: &i64| (value.min(low), value.max(high));
        let range = values.iter().fold((i64::MAX, i64::MIN), ends);
        Self { range, copy: OnceLock::new(), table: OnceLock::new() }
    }

    /// The smallest and the largest.
    pub(crate) fn range(&self) -> (i64, i64) {
        self.range
    }
}

/// Refuses what a device cannot count: it has indices of 32 bits.
pub(crate) fn check_countable(operation: &'static str, count: usize) -> Result<(), Misuse> {
    if i32::try_from(count).is_ok() {
        return Ok(());
    }
    Err(Misuse::new(operation, format!("{count} rows are more than devices other than `cpu` can number")))
}

/// Numbers on a device, as its kernels take them. They are below [`i32::MAX`].
pub(crate) fn on_device(numbers: impl Iterator<Item = usize>, device: &Device) -> DispatchTensor {
    let numbers: Vec<i32> = numbers.map(|number| number as i32).collect();
    let shape = Shape::from(vec![numbers.len()]);
    Dispatch::int_from_data(TensorData::new(numbers, shape), &device.dispatch())
}

impl Tensor {
    /// A copy of these indices where the kernels of `user`'s device find them. They have been checked against what they point into, and there are some.
    pub(crate) fn copied_for(&self, operation: &'static str, user: &Self) -> Result<DispatchTensor, Misuse> {
        let device = &user.node.device;
        let indices = self.indices().ok_or_else(|| Misuse::new(operation, "there are no indices"))?;
        if let Some(copy) = indices.copy.get()
            && copy.device == *device
        {
            return Ok(copy.value.clone());
        }
        let bytes = memory::reserve(operation, checked_bytes(operation, &[self.count()], DType::Int32)?)?;
        check_countable(operation, usize::try_from(indices.range.1).unwrap_or(usize::MAX))?;
        let value = crate::tensor::guarded(device, || {
            let flat = on_device(self.host().values::<i64>().iter().map(|&index| index as usize), device);
            Dispatch::int_reshape(flat, Shape::from(self.shape().to_vec()))
        });
        // Another thread may have been faster, or it was another device: then this copy serves once.
        let _ = indices.copy.set(Box::new(Copied { device: device.clone(), value: value.clone(), _bytes: bytes }));
        Ok(value)
    }

    /// How the rows that these indices put into one of `count` segments are brought together on `user`'s device.
    pub(crate) fn table_for(&self, operation: &'static str, user: &Self, count: usize) -> Result<Arc<Table>, Misuse> {
        let device = &user.node.device;
        let indices = self.indices().ok_or_else(|| Misuse::new(operation, "there are no indices"))?;
        if let Some(table) = indices.table.get().filter(|table| table.is_for(device, count)) {
            return Ok(table.clone());
        }
        let table = Arc::new(Table::new(operation, self.host().values(), count, device)?);
        // Another thread may have been faster, or it was another number of segments: then this one serves once.
        let _ = indices.table.set(table.clone());
        Ok(table)
    }
}
