//! The tensor: a handle to a value, and where the value came from.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use burn_backend::ops::{BoolTensorOps, FloatTensorOps, IntTensorOps};
use burn_backend::{Bytes, Element, Scalar, Shape, TensorData, TensorMetadata, read_sync};
use burn_dispatch::{BackendTensor, Dispatch, DispatchTensor, DispatchTensorKind};
use burn_flex::{FlexTensor, Layout};
use smallvec::SmallVec;

use crate::autodiff::{Derivative, Origin, Reads};
use crate::context::{self, Context, DeviceFailed, Stopped, device_failed, recording};
use crate::indices::Indices;
#[cfg(target_arch = "x86_64")]
use crate::kept::Kept;
use crate::kernel::fill::{Fill, repeated};
#[cfg(target_arch = "x86_64")]
use crate::kernel::panels::Panels;
use crate::memory::{self, Reservation};
use crate::promise::{Operation, Promised, promise, settle};
use crate::{DType, Device, Misuse};

/// The largest rank of a tensor.
pub const MAX_RANK: usize = 8;

pub(crate) type Sizes = SmallVec<[usize; 4]>;

/// A handle to an immutable array. Cloning it makes another handle to the same array, with the same history.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) node: Arc<Node>,
    /// None in histories, where no derivative reads it: values are most of what a history would keep.
    value: Option<Arc<Value>>,
}

/// What an array is like, and what it was computed from.
pub(crate) struct Node {
    /// Rises with creation, so that an operation's inputs always have smaller numbers than its result.
    pub(crate) id: u64,
    pub(crate) shape: Sizes,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    /// Whether gradients can flow to or through it.
    pub(crate) tracked: bool,
    pub(crate) origin: Option<Origin>,
    _bytes: Reservation,
}

/// The elements of an array, and what is known of them.
struct Value {
    elements: Promised<Elements>,
    /// What is known of an integer tensor that somebody used as indices.
    indices: OnceLock<Box<Indices>>,
    /// The strips of a matrix that many products are made with, as it is and transposed.
    #[cfg(target_arch = "x86_64")]
    panels: OnceLock<Box<[Kept<Panels>; 2]>>,
    _bytes: Reservation,
}

/// The elements of an array: on the device if that holds tensors of this dtype and there are elements, else with the host.
#[derive(Clone)]
pub(crate) enum Elements {
    /// Row-major, without gaps; truth values as bytes. Their shape and dtype are the array's: burn's own handle would say them once more, in allocations of its own, so it is made
    /// only where a kernel of burn's wants it.
    Host(Arc<Bytes>),
    /// On a device a scalar has the shape `[1]`.
    Device(Box<DispatchTensor>),
}

impl Elements {
    /// With the host.
    pub(crate) fn new<E: bytemuck::NoUninit + Send + Sync>(values: Vec<E>) -> Self {
        Self::Host(Arc::new(Bytes::from_elems(values)))
    }

    /// Whether they are so many bytes, as far as the host can tell.
    fn is_of(&self, size: usize) -> bool {
        match self {
            Self::Host(bytes) => bytes.len() == size,
            Self::Device(_) => true,
        }
    }

    /// What a kernel of the processor gave.
    pub(crate) fn host(&self) -> Host<'_> {
        match self {
            Self::Host(bytes) => Host::Here(bytes),
            Self::Device(_) => unreachable!("kernels of the processor give values that are with the host"),
        }
    }
}

/// What burn gives: its kernels for the processor leave gaps where they need not copy.
impl From<DispatchTensor> for Elements {
    fn from(value: DispatchTensor) -> Self {
        match value.kind {
            DispatchTensorKind::Flex(
                BackendTensor::Float(tensor) | BackendTensor::Int(tensor) | BackendTensor::Bool(tensor),
            ) => Self::Host(tensor.to_contiguous().data_arc()),
            #[allow(unreachable_patterns, reason = "other kinds are in builds with other devices")]
            _ => Self::Device(Box::new(value)),
        }
    }
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
        let run = || Elements::new(values.to_vec());
        Ok(Self::leaf(device, shape, DType::Boolean, reservation, run))
    }

    /// Every element is `value`, converted to `dtype` (integers: truncated and saturated; boolean: whether it is not 0).
    pub fn full(device: &Device, shape: &[usize], value: f64, dtype: DType) -> Result<Self, Misuse> {
        const NAME: &str = "tensor.full";
        let count = checked_bytes(NAME, shape, dtype)? / dtype.size();
        // The quota is asked before anything of that size is allocated.
        let reservation = memory::reserve(NAME, count * dtype.size())?;
        if device.holds(dtype) && dtype.is_float() && count > 0 {
            let run = || {
                let (sizes, device) = (device_shape(shape), device.dispatch());
                Elements::from(Dispatch::float_full(sizes, Scalar::Float(value), &device, dtype.burn().into()))
            };
            return Ok(Self::leaf(device, shape, dtype, reservation, run));
        }
        drop(reservation);
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
        &self.node.shape
    }

    /// The type of its elements.
    pub fn dtype(&self) -> DType {
        self.node.dtype
    }

    /// The number of its elements.
    pub fn count(&self) -> usize {
        self.node.shape.iter().product()
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.node.device.clone()
    }

    /// Whether gradients can flow to or through it.
    pub fn is_tracked(&self) -> bool {
        self.node.tracked
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
        Ok(Self::leaf(device, shape, dtype, reservation, || Elements::new(values)))
    }

    /// What nothing else is needed for, computed at once.
    fn leaf(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        reservation: Reservation,
        run: impl FnOnce() -> Elements,
    ) -> Self {
        let [elements] = placed(device, shape, dtype, || [run()]);
        Blank { device, shape, dtype, origin: None, reservation }.with(elements)
    }

    fn node(
        device: &Device,
        shape: &[usize],
        dtype: DType,
        tracked: bool,
        origin: Option<Origin>,
        bytes: Reservation,
    ) -> Arc<Node> {
        Arc::new(Node {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            shape: Sizes::from_slice(shape),
            dtype,
            device: device.clone(),
            tracked,
            origin,
            _bytes: bytes,
        })
    }

    /// The same value as a leaf of its own: tracked to take gradients by, or untracked to stop them.
    pub(crate) fn as_leaf(&self, operation: &'static str, tracked: bool) -> Result<Self, Misuse> {
        let Node { device, shape, dtype, .. } = &*self.node;
        let node = Self::node(device, shape, *dtype, tracked, None, memory::reserve(operation, 0)?);
        Ok(Self { node, value: self.value.clone() })
    }

    /// Has an operation done whose arguments have been checked: counts the result, has it computed, now or [soon](crate::promise), and records where it came from if
    /// gradients may be asked for. `run` finds the inputs and the shape again, and the derivative the values that `reads` says, and no others.
    pub(crate) fn compute<const N: usize>(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        inputs: [&Self; N],
        run: impl FnOnce([&Self; N], &[usize]) -> Elements + Send + 'static,
        reads: Reads,
        derivative: impl Derivative + 'static,
    ) -> Result<Self, Misuse> {
        let run = |inputs: &[&Self], shape: &[usize]| run(all_of(inputs), shape);
        Self::compute_list(operation, shape, dtype, &inputs, run, reads, derivative)
    }

    /// [`Self::compute`] for some number of inputs.
    pub(crate) fn compute_list(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        inputs: &[&Self],
        run: impl FnOnce(&[&Self], &[usize]) -> Elements + Send + 'static,
        reads: Reads,
        derivative: impl Derivative + 'static,
    ) -> Result<Self, Misuse> {
        let device = &inputs[0].node.device;
        check_devices(operation, device, inputs)?;
        let reservation = memory::reserve(operation, checked_bytes(operation, shape, dtype)?)?;
        let origin = Self::origin(dtype, inputs, reads, derivative);
        let blank = Blank { device, shape, dtype, origin, reservation };
        let [result] = Blank::filled([blank], inputs, |inputs, shape| [run(inputs, shape)]);
        Ok(result)
    }

    /// The same elements in another shape with as many, which take no memory of their own but on devices.
    pub(crate) fn view(
        &self,
        operation: &'static str,
        shape: &[usize],
        derivative: impl Derivative + 'static,
    ) -> Result<Self, Misuse> {
        let Node { device, dtype, .. } = &*self.node;
        if self.is_on_device() {
            return Self::compute(
                operation,
                shape,
                *dtype,
                [self],
                |[a], shape| a.reshaped(shape),
                Reads::Nothing,
                derivative,
            );
        }
        let bytes = memory::reserve(operation, 0)?;
        let origin = Self::origin(*dtype, &[self], Reads::Nothing, derivative);
        Ok(Self { node: Self::node(device, shape, *dtype, origin.is_some(), origin, bytes), value: self.value.clone() })
    }

    /// Where a result of this dtype comes from, if gradients may be asked for.
    fn origin(dtype: DType, inputs: &[&Self], reads: Reads, derivative: impl Derivative + 'static) -> Option<Origin> {
        let is_tracked = dtype.is_float() && recording() && inputs.iter().any(|input| input.node.tracked);
        is_tracked.then(|| Origin {
            inputs: (0..inputs.len()).map(|k| inputs[k].kept(reads.keeps(k, inputs))).collect(),
            reads,
            derivative: Box::new(derivative),
        })
    }

    /// Like [`Self::compute`] for results that no gradient flows through, of the same shape and dtype.
    pub(crate) fn constants<const N: usize, const M: usize>(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        inputs: [&Self; N],
        run: impl FnOnce([&Self; N], &[usize]) -> [Elements; M] + Send + 'static,
    ) -> Result<[Self; M], Misuse> {
        let device = &inputs[0].node.device;
        check_devices(operation, device, &inputs)?;
        let bytes = checked_bytes(operation, shape, dtype)?;
        let reservations =
            (0..M).map(|_| memory::reserve(operation, bytes)).collect::<Result<SmallVec<[_; 3]>, _>>()?;
        let mut reservations = reservations.into_iter();
        let blanks = std::array::from_fn(|_| {
            let reservation = reservations.next().unwrap_or_else(|| unreachable!("there is one for each"));
            Blank { device, shape, dtype, origin: None, reservation }
        });
        Ok(Blank::filled(blanks, &inputs, |inputs, shape| run(all_of(inputs), shape)))
    }

    /// Like [`Self::constants`] for one result.
    pub(crate) fn constant<const N: usize>(
        operation: &'static str,
        shape: &[usize],
        dtype: DType,
        inputs: [&Self; N],
        run: impl FnOnce([&Self; N], &[usize]) -> Elements + Send + 'static,
    ) -> Result<Self, Misuse> {
        Self::constants(operation, shape, dtype, inputs, |inputs, shape| [run(inputs, shape)]).map(|[result]| result)
    }

    /// Whether the kernels of its device work on it, rather than those of the processor.
    #[inline]
    pub(crate) fn is_on_device(&self) -> bool {
        self.node.device.holds(self.node.dtype) && !self.node.shape.contains(&0)
    }

    /// A shape as burn wants it for values where this one is: on devices there are no scalars.
    pub(crate) fn burn_shape(&self, shape: &[usize]) -> Shape {
        if self.is_on_device() { device_shape(shape) } else { Shape::from(shape.to_vec()) }
    }

    /// The same tensor for a history that reads its value, or does not. Where its own derivative reads it, it is kept anyway.
    pub(crate) fn kept(&self, is_read: bool) -> Self {
        let is_read = is_read || self.node.origin.as_ref().is_some_and(|origin| origin.reads.output());
        Self { node: self.node.clone(), value: self.value.clone().filter(|_| is_read) }
    }

    fn known_value(&self) -> &Arc<Value> {
        match &self.value {
            Some(value) => value,
            None => unreachable!("a derivative reads no value but those that its operation says"),
        }
    }

    pub(crate) fn elements(&self) -> &Elements {
        self.known_value().elements.get()
    }

    /// As burn takes it. Nothing is copied.
    pub(crate) fn value(&self) -> DispatchTensor {
        match self.elements() {
            Elements::Device(value) => (**value).clone(),
            Elements::Host(bytes) => self.flex(bytes.clone(), self.burn_shape(self.shape())),
        }
    }

    /// Its elements in the host's memory, row-major and without gaps. They are copied only from a device.
    pub(crate) fn host(&self) -> Host<'_> {
        match self.elements() {
            Elements::Host(bytes) => Host::Here(bytes),
            Elements::Device(value) => guarded(&self.node.device, || Host::Copied(downloaded(value, self.node.dtype))),
        }
    }

    /// Its value with the host, for burn's kernels for the processor.
    pub(crate) fn host_value(&self) -> DispatchTensor {
        let bytes = match self.elements() {
            Elements::Host(bytes) => bytes.clone(),
            Elements::Device(value) => guarded(&self.node.device, || Arc::new(downloaded(value, self.node.dtype))),
        };
        self.flex(bytes, Shape::from(self.shape()))
    }

    fn flex(&self, bytes: Arc<Bytes>, shape: Shape) -> DispatchTensor {
        let dtype = self.node.dtype;
        let tensor = FlexTensor::from_arc(bytes, Layout::contiguous(shape), dtype.burn());
        let tensor = match dtype {
            DType::Float32 | DType::Float64 => BackendTensor::Float(tensor),
            DType::Int32 | DType::Int64 => BackendTensor::Int(tensor),
            DType::Boolean => BackendTensor::Bool(tensor),
        };
        DispatchTensor { kind: DispatchTensorKind::Flex(tensor), autodiff: Default::default() }
    }

    /// The same elements in another shape with as many.
    fn reshaped(&self, shape: &[usize]) -> Elements {
        match self.elements() {
            Elements::Host(bytes) => Elements::Host(bytes.clone()),
            Elements::Device(value) => reshaped((**value).clone(), self.burn_shape(shape), self.node.dtype).into(),
        }
    }

    /// What is known of it as indices; `None` if it is empty. Looked up once.
    pub(crate) fn indices(&self) -> Option<&Indices> {
        if self.count() == 0 {
            return None;
        }
        Some(self.known_value().indices.get_or_init(|| Box::new(Indices::new(self.host().values()))))
    }

    /// The strips of this matrix or of its transpose, once so many products were made with it that they are kept with it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn panels(&self, transposed: bool, make: impl FnOnce() -> Panels) -> Option<&Panels> {
        let bytes = self.count() * self.node.dtype.size();
        let both = self.known_value().panels.get_or_init(Box::default);
        both[usize::from(transposed)].get(bytes, make)
    }

    /// The smallest and the largest index of an integer tensor; `None` if it is empty.
    pub(crate) fn index_range(&self) -> Option<(i64, i64)> {
        self.indices().map(Indices::range)
    }
}

/// An operation whose results, of so many bytes each, are promised.
struct Awaited<R, const M: usize> {
    values: [Arc<Value>; M],
    inputs: SmallVec<[Tensor; 3]>,
    shape: Sizes,
    bytes: usize,
    run: R,
}

impl<R, const M: usize> Operation for Awaited<R, M>
where
    R: FnOnce(&[&Tensor], &[usize]) -> [Elements; M] + Send,
{
    fn is_ready(&self) -> bool {
        self.inputs.iter().all(|input| input.known_value().elements.is_settled())
    }

    fn run(self: Box<Self>) {
        let Self { values, inputs, shape, bytes, run } = *self;
        settle(values.each_ref().map(|value| &value.elements), || {
            context::check_stopped();
            let elements = run(&inputs.iter().collect::<SmallVec<[&Tensor; 3]>>(), &shape);
            assert!(elements.iter().all(|elements| elements.is_of(bytes)), "{WRONG_COUNT}");
            elements
        });
    }
}

/// A tensor but for its elements.
struct Blank<'a> {
    device: &'a Device,
    shape: &'a [usize],
    dtype: DType,
    origin: Option<Origin>,
    reservation: Reservation,
}

impl Blank<'_> {
    /// The tensors of these blanks, of which there is one at least and which differ in nothing: with the elements that `run` gives, or with a promise of them.
    fn filled<const M: usize>(
        blanks: [Self; M],
        inputs: &[&Tensor],
        run: impl FnOnce(&[&Tensor], &[usize]) -> [Elements; M] + Send + 'static,
    ) -> [Tensor; M] {
        let &Self { device, shape, dtype, .. } = &blanks[0];
        // A result without elements needs no kernel, and some of burn's kernels panic on one.
        if shape.contains(&0) {
            return blanks.map(|blank| blank.with(Elements::new(Vec::<u8>::new())));
        }
        context::check_stopped();
        // Indices are small, and looked at soon.
        let is_for_later = || dtype.is_float() || inputs.iter().any(|input| !input.known_value().elements.is_settled());
        if *device != Device::cpu() || !context::current(Context::promises) || !is_for_later() {
            let mut elements = placed(device, shape, dtype, || run(inputs, shape)).into_iter();
            return blanks.map(|blank| match elements.next() {
                Some(elements) => blank.with(elements),
                None => unreachable!("there are elements for each"),
            });
        }
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let tensors = blanks.map(|blank| blank.holding(Promised::open()));
        let values = tensors.each_ref().map(|tensor| tensor.known_value().clone());
        let inputs: SmallVec<[Tensor; 3]> = inputs.iter().map(|&input| input.clone()).collect();
        let shape = Sizes::from_slice(shape);
        promise(Awaited { values, inputs, shape, bytes, run });
        tensors
    }

    fn with(self, elements: Elements) -> Tensor {
        let bytes = self.shape.iter().product::<usize>() * self.dtype.size();
        assert!(elements.is_of(bytes), "{WRONG_COUNT}");
        self.holding(Promised::kept(elements))
    }

    fn holding(self, elements: Promised<Elements>) -> Tensor {
        let Self { device, shape, dtype, origin, reservation } = self;
        let (of_node, of_value) = reservation.split(shape.iter().product::<usize>() * dtype.size());
        let node = Tensor::node(device, shape, dtype, origin.is_some(), origin, of_node);
        let value = Value {
            elements,
            indices: OnceLock::new(),
            #[cfg(target_arch = "x86_64")]
            panels: OnceLock::new(),
            _bytes: of_value,
        };
        Tensor { node, value: Some(Arc::new(value)) }
    }
}

/// Refuses operands of several devices. A run has one; who calls the engine without a run may mix them up.
pub(crate) fn check_devices(operation: &'static str, device: &Device, inputs: &[&Tensor]) -> Result<(), Misuse> {
    match inputs.iter().find(|input| input.node.device != *device) {
        None => Ok(()),
        Some(other) => Err(Misuse::new(
            operation,
            format!("operands are on `{}` and on `{}`", device.name(), other.node.device.name()),
        )),
    }
}

/// So many times the same.
fn constant<E: Fill + PartialEq>(count: usize, value: E) -> Vec<E> {
    if value == E::default() {
        // Zeros come from the system, and are not written.
        return vec![value; count];
    }
    repeated(&[value], count, count, |_| 0)
}

/// As many inputs as an operation was given.
fn all_of<'a, const N: usize>(inputs: &[&'a Tensor]) -> [&'a Tensor; N] {
    inputs.try_into().unwrap_or_else(|_| unreachable!("an operation finds the inputs that it was given"))
}

const WRONG_COUNT: &str = "a kernel gives as many elements as its result has";

impl fmt::Debug for Tensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Tensor({} {:?})", self.dtype(), self.shape())
    }
}

/// A history can be a hundred thousand operations long: it is taken apart in a loop, since dropping it recursively would overflow
/// the stack.
impl Drop for Node {
    fn drop(&mut self) {
        let mut pending: SmallVec<[Tensor; 3]> = self.origin.take().map(|origin| origin.inputs).unwrap_or_default();
        while let Some(tensor) = pending.pop() {
            if let Some(mut node) = Arc::into_inner(tensor.node)
                && let Some(origin) = node.origin.take()
            {
                pending.extend(origin.inputs);
            }
        }
    }
}

/// Elements in the host's memory, row-major.
pub(crate) enum Host<'a> {
    Here(&'a [u8]),
    Copied(Bytes),
}

impl Host<'_> {
    /// The elements; `E` MUST be the tensor's dtype, which every caller has matched on.
    pub(crate) fn values<E: bytemuck::AnyBitPattern>(&self) -> &[E] {
        bytemuck::try_cast_slice(self.bytes()).unwrap_or(&[])
    }

    /// The bytes of a boolean tensor, 0 or 1 each.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Here(bytes) => bytes,
            Self::Copied(bytes) => bytes,
        }
    }
}

/// What `run` gives, each brought to where tensors of this device, shape and dtype are.
#[inline]
fn placed<const M: usize>(
    device: &Device,
    shape: &[usize],
    dtype: DType,
    run: impl FnOnce() -> [Elements; M],
) -> [Elements; M] {
    if *device == Device::cpu() {
        return run();
    }
    let holds = device.holds(dtype) && !shape.contains(&0);
    let to_its_place = |elements| match elements {
        Elements::Host(bytes) if holds && device.is_accelerator() => uploaded(bytes, device, shape, dtype).into(),
        Elements::Device(value) if !holds => Elements::Host(Arc::new(downloaded(&value, dtype))),
        elements => elements,
    };
    guarded(device, || run().map(to_its_place))
}

/// Runs what uses an accelerator. A panic there means that the device failed, and ends the run: what wraps drivers tells of exhausted memory and lost
/// devices by panicking.
pub(crate) fn guarded<T>(device: &Device, work: impl FnOnce() -> T) -> T {
    if !device.is_accelerator() {
        return work();
    }
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if panic.is::<Stopped>() || panic.is::<DeviceFailed>() {
            resume_unwind(panic);
        }
        device_failed(device.name(), panic_message(&*panic))
    })
}

/// What a caught panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it says nothing".to_owned())
}

/// The elements in another shape with as many.
pub(crate) fn reshaped(value: DispatchTensor, shape: Shape, dtype: DType) -> DispatchTensor {
    match dtype {
        DType::Boolean => Dispatch::bool_reshape(value, shape),
        dtype if dtype.is_integer() => Dispatch::int_reshape(value, shape),
        _ => Dispatch::float_reshape(value, shape),
    }
}

/// A shape as values on devices have it.
pub(crate) fn device_shape(shape: &[usize]) -> Shape {
    Shape::from(if shape.is_empty() { vec![1] } else { shape.to_vec() })
}

/// Copies elements from the host's memory to a device's.
fn uploaded(bytes: Arc<Bytes>, device: &Device, shape: &[usize], dtype: DType) -> DispatchTensor {
    let bytes = Arc::try_unwrap(bytes).unwrap_or_else(|shared| (*shared).clone());
    let data = TensorData::from_bytes(bytes, device_shape(shape), dtype.burn());
    match dtype {
        DType::Boolean => Dispatch::bool_from_data(data.convert_dtype(device.booleans().into()), &device.dispatch()),
        dtype if dtype.is_integer() => Dispatch::int_from_data(data, &device.dispatch()),
        _ => Dispatch::float_from_data(data, &device.dispatch()),
    }
}

/// Copies a value from a device's memory to the host's, and waits for what computes it. Panics if the device failed.
fn downloaded(value: &DispatchTensor, dtype: DType) -> Bytes {
    let value = value.clone();
    let data = match value.dtype() {
        stored if stored.is_float() => read_sync(Dispatch::float_into_data(value)),
        burn_backend::DType::Bool(_) => read_sync(Dispatch::bool_into_data(value)),
        _ => read_sync(Dispatch::int_into_data(value)),
    };
    let data = data.unwrap_or_else(|error| panic!("{error}"));
    match dtype {
        DType::Float32 => Bytes::from_elems(data.iter::<f32>().collect::<Vec<_>>()),
        DType::Float64 => Bytes::from_elems(data.iter::<f64>().collect::<Vec<_>>()),
        DType::Int32 => Bytes::from_elems(data.iter::<i32>().collect::<Vec<_>>()),
        DType::Int64 => Bytes::from_elems(data.iter::<i64>().collect::<Vec<_>>()),
        DType::Boolean => Bytes::from_elems(data.iter::<bool>().collect::<Vec<_>>()),
    }
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
