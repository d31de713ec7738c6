//! The tensor: a handle to a value, and where the value came from.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use burn_backend::{Bytes, Element, Shape, TensorData};
use burn_dispatch::{BackendTensor, DispatchTensor, DispatchTensorKind};
use burn_flex::{FlexTensor, Layout};
use smallvec::SmallVec;

use crate::autodiff::{Derivative, Origin};
use crate::context::{Stop, recording};
use crate::memory::{self, Reservation};
use crate::{DType, Device, Misuse};

/// The largest rank of a tensor.
pub const MAX_RANK: usize = 8;

pub(crate) type Sizes = SmallVec<[usize; 4]>;

/// A handle to an immutable array. Cloning it makes another handle to the same array, with the same history.
#[derive(Clone)]
pub struct Tensor(pub(crate) Arc<Node>);

/// A value and what it was computed from.
pub(crate) struct Node {
    /// Rises with creation, so that an operation's inputs always have smaller numbers than its result.
    pub(crate) id: u64,
    pub(crate) value: DispatchTensor,
    pub(crate) shape: Sizes,
    pub(crate) dtype: DType,
    /// Whether gradients can flow to or through it.
    pub(crate) tracked: bool,
    pub(crate) origin: Option<Origin>,
    /// Smallest and largest element of an integer tensor, once somebody used it as indices.
    index_range: OnceLock<(i64, i64)>,
    _bytes: Reservation,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Tensor {
    /// A `float32` tensor from row-major `values`.
    ///
    /// # Errors
    /// The number of values does not fit the shape, the rank is above [`MAX_RANK`], or the quota is exceeded; so for all constructors.
    pub fn from_float32(device: &Device, shape: &[usize], values: &[f32]) -> Result<Self, Misuse> {
        Self::from_values("tensor.from-float32", device, shape, values.to_vec(), DType::Float32)
    }

    /// A tensor of `dtype`, `Float32` or `Float64`, from row-major `values` rounded to nearest.
    pub fn from_float64(device: &Device, shape: &[usize], values: &[f64], dtype: DType) -> Result<Self, Misuse> {
        const NAME: &str = "tensor.from-float64";
        match dtype {
            DType::Float64 => Self::from_values(NAME, device, shape, values.to_vec(), dtype),
            DType::Float32 => {
                let rounded = values.iter().map(|&value| value as f32).collect::<Vec<_>>();
                Self::from_values(NAME, device, shape, rounded, dtype)
            }
            other => Err(Misuse::new(NAME, format!("dtype is {other}, expected float32 or float64"))),
        }
    }

    /// An `int64` tensor from row-major `values`.
    pub fn from_int64(device: &Device, shape: &[usize], values: &[i64]) -> Result<Self, Misuse> {
        Self::from_values("tensor.from-int64", device, shape, values.to_vec(), DType::Int64)
    }

    /// An `int32` tensor from row-major `values`.
    pub fn from_int32(device: &Device, shape: &[usize], values: &[i32]) -> Result<Self, Misuse> {
        Self::from_values("tensor.from-int32", device, shape, values.to_vec(), DType::Int32)
    }

    /// A `boolean` tensor from row-major `values`.
    pub fn from_boolean(device: &Device, shape: &[usize], values: &[bool]) -> Result<Self, Misuse> {
        const NAME: &str = "tensor.from-boolean";
        let bytes = checked_bytes(NAME, shape, DType::Boolean)?;
        check_count(NAME, shape, values.len())?;
        let reservation = memory::reserve(NAME, bytes)?;
        let data = TensorData::new(values.to_vec(), Shape::from(shape.to_vec()));
        let _ = device;
        Ok(Self::leaf(from_flex(FlexTensor::from_data(data), DType::Boolean), shape, DType::Boolean, reservation))
    }

    /// Every element is `value`, converted to `dtype` (integers: truncated and saturated; boolean: whether it is not 0).
    pub fn full(device: &Device, shape: &[usize], value: f64, dtype: DType) -> Result<Self, Misuse> {
        const NAME: &str = "tensor.full";
        let count = checked_bytes(NAME, shape, dtype)? / dtype.size();
        // The quota is asked before anything of that size is allocated.
        drop(memory::reserve(NAME, count * dtype.size())?);
        match dtype {
            DType::Float32 => Self::from_values(NAME, device, shape, constant(count, value as f32), dtype),
            DType::Float64 => Self::from_values(NAME, device, shape, constant(count, value), dtype),
            DType::Int32 => Self::from_values(NAME, device, shape, constant(count, value as i32), dtype),
            DType::Int64 => Self::from_values(NAME, device, shape, constant(count, value as i64), dtype),
            DType::Boolean => Self::from_boolean(device, shape, &vec![value != 0.0; count]),
        }
    }

    /// `[0, 1, .., count - 1]`, `int64`.
    pub fn arange(device: &Device, count: usize) -> Result<Self, Misuse> {
        drop(memory::reserve("tensor.arange", checked_bytes("tensor.arange", &[count], DType::Int64)?)?);
        Self::from_values("tensor.arange", device, &[count], (0..count as i64).collect(), DType::Int64)
    }

    /// The sizes of its axes; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// The number of its elements.
    pub fn count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        use burn_backend::TensorMetadata;
        Device(self.0.value.kind.device())
    }

    /// Whether gradients can flow to or through it.
    pub fn is_tracked(&self) -> bool {
        self.0.tracked
    }

    /// All elements, row-major.
    ///
    /// # Errors
    /// It is not `float32`.
    pub fn read_float32(&self) -> Result<Vec<f32>, Misuse> {
        self.expect_dtype("tensor.read-float32", &[DType::Float32])?;
        Ok(self.host().values::<f32>().to_vec())
    }

    /// All elements, row-major, widened.
    ///
    /// # Errors
    /// It is neither `float32` nor `float64`.
    pub fn read_float64(&self) -> Result<Vec<f64>, Misuse> {
        self.expect_dtype("tensor.read-float64", &[DType::Float32, DType::Float64])?;
        let host = self.host();
        Ok(match self.dtype() {
            DType::Float32 => host.values::<f32>().iter().map(|&value| f64::from(value)).collect(),
            _ => host.values::<f64>().to_vec(),
        })
    }

    /// All elements, row-major, widened.
    ///
    /// # Errors
    /// It is neither `int32` nor `int64`.
    pub fn read_int64(&self) -> Result<Vec<i64>, Misuse> {
        self.expect_dtype("tensor.read-int64", &[DType::Int32, DType::Int64])?;
        let host = self.host();
        Ok(match self.dtype() {
            DType::Int32 => host.values::<i32>().iter().map(|&value| i64::from(value)).collect(),
            _ => host.values::<i64>().to_vec(),
        })
    }

    /// All elements, row-major.
    ///
    /// # Errors
    /// It is not `boolean`.
    pub fn read_boolean(&self) -> Result<Vec<bool>, Misuse> {
        self.expect_dtype("tensor.read-boolean", &[DType::Boolean])?;
        Ok(self.host().bytes().iter().map(|&byte| byte != 0).collect())
    }

    pub(crate) fn expect_dtype(&self, operation: &'static str, expected: &[DType]) -> Result<(), Misuse> {
        if expected.contains(&self.dtype()) {
            return Ok(());
        }
        let names = expected.iter().map(DType::to_string).collect::<Vec<_>>().join(" or ");
        Err(Misuse::new(operation, format!("a tensor is {}, expected {names}", self.dtype())))
    }

    pub(crate) fn from_values<E: Element + bytemuck::Pod + Send + Sync>(
        operation: &'static str,
        device: &Device,
        shape: &[usize],
        values: Vec<E>,
        dtype: DType,
    ) -> Result<Self, Misuse> {
        let bytes = checked_bytes(operation, shape, dtype)?;
        check_count(operation, shape, values.len())?;
        let reservation = memory::reserve(operation, bytes)?;
        // There is one device; another one is reached from here by a copy.
        let _ = device;
        Ok(Self::leaf(from_host(values, shape, dtype), shape, dtype, reservation))
    }

    fn leaf(value: DispatchTensor, shape: &[usize], dtype: DType, reservation: Reservation) -> Self {
        Self::node(value, Sizes::from_slice(shape), dtype, false, None, reservation)
    }

    fn node(
        value: DispatchTensor,
        shape: Sizes,
        dtype: DType,
        tracked: bool,
        origin: Option<Origin>,
        reservation: Reservation,
    ) -> Self {
        Self(Arc::new(Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            value,
            shape,
            dtype,
            tracked,
            origin,
            index_range: OnceLock::new(),
            _bytes: reservation,
        }))
    }

    /// The same value as a leaf of its own: tracked to take gradients by, or untracked to stop them.
    pub(crate) fn as_leaf(&self, operation: &'static str, tracked: bool) -> Result<Self, Misuse> {
        let reservation = memory::reserve(operation, self.count() * self.dtype().size())?;
        Ok(Self::node(self.0.value.clone(), self.0.shape.clone(), self.dtype(), tracked, None, reservation))
    }

    /// Runs an operation whose arguments have been checked: counts the result, computes it, and records where it came from if
    /// gradients may be asked for.
    pub(crate) fn compute(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        inputs: &[&Self],
        run: impl FnOnce() -> DispatchTensor,
        derivative: impl Derivative + 'static,
    ) -> Result<Self, Misuse> {
        let reservation = memory::reserve(operation, checked_bytes(operation, shape, dtype)?)?;
        let tracked = dtype.is_float() && recording() && inputs.iter().any(|input| input.0.tracked);
        let origin = tracked.then(|| Origin {
            inputs: inputs.iter().map(|&input| input.clone()).collect(),
            derivative: Box::new(derivative),
        });
        Ok(Self::node(
            run_unless_empty(shape, dtype, run),
            Sizes::from_slice(shape),
            dtype,
            tracked,
            origin,
            reservation,
        ))
    }

    /// Like [`Self::compute`] for results that no gradient flows through.
    pub(crate) fn constant(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        run: impl FnOnce() -> DispatchTensor,
    ) -> Result<Self, Misuse> {
        let reservation = memory::reserve(operation, checked_bytes(operation, shape, dtype)?)?;
        Ok(Self::leaf(run_unless_empty(shape, dtype, run), shape, dtype, reservation))
    }

    pub(crate) fn value(&self) -> DispatchTensor {
        self.0.value.clone()
    }

    /// Its elements in the host's memory, row-major and without gaps; a copy only where they are not so already.
    pub(crate) fn host(&self) -> Host {
        Self::host_of(&self.0.value)
    }

    pub(crate) fn host_of(value: &DispatchTensor) -> Host {
        Host(flex(value).to_contiguous())
    }

    /// The smallest and the largest index of an integer tensor; `None` if it is empty. Read once.
    pub(crate) fn index_range(&self) -> Option<(i64, i64)> {
        if self.count() == 0 {
            return None;
        }
        Some(*self.0.index_range.get_or_init(|| {
            let host = self.host();
            let range = |low: i64, high: i64, value: i64| (low.min(value), high.max(value));
            host.values::<i64>().iter().fold((i64::MAX, i64::MIN), |(low, high), &value| range(low, high, value))
        }))
    }
}

/// So many times the same. What has to be written takes seconds for gigabytes, and may be stopped.
fn constant<E: Copy + Default + PartialEq>(count: usize, value: E) -> Vec<E> {
    /// The elements that are written at a time.
    const PART: usize = 1 << 20;
    if count <= PART || value == E::default() {
        // Zeros come from the system, and are not written.
        return vec![value; count];
    }
    let stop = Stop::current();
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        stop.check();
        values.resize((values.len() + PART).min(count), value);
    }
    values
}

/// A result without elements needs no kernel, and some of burn's kernels panic on one.
fn run_unless_empty(shape: &[usize], dtype: DType, run: impl FnOnce() -> DispatchTensor) -> DispatchTensor {
    if !shape.contains(&0) {
        Stop::current().check();
        return run();
    }
    let sizes = Shape::from(shape.to_vec());
    let data = match dtype {
        DType::Float32 => TensorData::new(Vec::<f32>::new(), sizes),
        DType::Float64 => TensorData::new(Vec::<f64>::new(), sizes),
        DType::Int32 => TensorData::new(Vec::<i32>::new(), sizes),
        DType::Int64 => TensorData::new(Vec::<i64>::new(), sizes),
        DType::Boolean => TensorData::new(Vec::<bool>::new(), sizes),
    };
    from_flex(FlexTensor::from_data(data), dtype)
}

impl fmt::Debug for Tensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tensor({} {:?})", self.dtype(), self.shape())
    }
}

/// A history can be a hundred thousand operations long: it is taken apart in a loop, since dropping it recursively would overflow
/// the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending: Vec<Tensor> = self.origin.take().map(|origin| origin.inputs.into_vec()).unwrap_or_default();
        while let Some(tensor) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(tensor.0)
                && let Some(origin) = node.origin.take()
            {
                pending.extend(origin.inputs);
            }
        }
    }
}

/// Elements in the host's memory, row-major.
pub(crate) struct Host(FlexTensor);

impl Host {
    /// The elements; `E` MUST be the tensor's dtype, which every caller has matched on.
    pub(crate) fn values<E: Element + bytemuck::Pod>(&self) -> &[E] {
        self.0.as_slice::<E>().unwrap_or(&[])
    }

    /// The bytes of a boolean tensor, 0 or 1 each.
    pub(crate) fn bytes(&self) -> &[u8] {
        let start = self.0.layout().start_offset();
        &self.0.bytes()[start..start + self.0.layout().num_elements()]
    }
}

fn flex(value: &DispatchTensor) -> &FlexTensor {
    match &value.kind {
        DispatchTensorKind::Flex(
            BackendTensor::Float(tensor) | BackendTensor::Int(tensor) | BackendTensor::Bool(tensor),
        ) => tensor,
        DispatchTensorKind::Flex(BackendTensor::Quantized(_)) => unreachable!("the engine makes no quantized tensors"),
    }
}

/// Wraps elements from the host's memory as a value of `dtype`.
pub(crate) fn from_host<E: Element + bytemuck::NoUninit + Send + Sync>(
    values: Vec<E>,
    shape: &[usize],
    dtype: DType,
) -> DispatchTensor {
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    from_flex(FlexTensor::new(Bytes::from_elems(values), layout, dtype.burn()), dtype)
}

fn from_flex(tensor: FlexTensor, dtype: DType) -> DispatchTensor {
    let tensor = match dtype {
        DType::Float32 | DType::Float64 => BackendTensor::Float(tensor),
        DType::Int32 | DType::Int64 => BackendTensor::Int(tensor),
        DType::Boolean => BackendTensor::Bool(tensor),
    };
    DispatchTensor { kind: DispatchTensorKind::Flex(tensor), autodiff: Default::default() }
}

/// The bytes of a tensor of this shape, if it may exist at all.
pub(crate) fn checked_bytes(operation: &'static str, shape: &[usize], dtype: DType) -> Result<usize, Misuse> {
    if shape.len() > MAX_RANK {
        return Err(Misuse::new(operation, format!("rank {} is above {MAX_RANK}", shape.len())));
    }
    // Where one size is 0 there are no elements, but products of the others are taken nevertheless.
    let bytes = shape.iter().try_fold(dtype.size(), |bytes, &size| bytes.checked_mul(size.max(1)));
    bytes
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .map(|bytes| if shape.contains(&0) { 0 } else { bytes })
        .ok_or_else(|| Misuse::new(operation, format!("shape {shape:?} has more elements than can be addressed")))
}

fn check_count(operation: &'static str, shape: &[usize], found: usize) -> Result<(), Misuse> {
    let expected = shape.iter().product::<usize>();
    if found == expected {
        return Ok(());
    }
    Err(Misuse::new(operation, format!("shape {shape:?} needs {expected} values, found {found}")))
}
