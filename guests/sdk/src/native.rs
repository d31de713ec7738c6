//! The names of [`contract`](crate::contract) over the host's own functions, for the feature `native`.
//!
//! An architecture built this way runs the very same kernels and services, with no sandbox between: comparing the two measures what the sandbox
//! costs. A misuse, which would trap in the sandbox, panics here. Everything belongs to one thread, which [`enter`]s first.

#![expect(missing_docs, reason = "the contract's own text is in `wit/`")]

use std::cell::RefCell;

use kilnbox_host::service::report::Reporter;
use kilnbox_tensor::{Device, Misuse, random::Random};

/// What a store holds in the sandbox.
struct Run {
    device: Device,
    random: Random,
    reporter: Reporter,
}

thread_local! {
    static RUN: RefCell<Option<Run>> = const { RefCell::new(None) };
}

/// Begins a run on this thread: tensors live on `device`, randomness comes from `seed`, messages and checkpoints go to `observer`.
pub fn enter(device: Device, seed: u64, observer: Box<dyn kilnbox_host::Observer>) {
    let reporter = Reporter::new(observer, &kilnbox_host::Limits::none());
    RUN.with_borrow_mut(|run| *run = Some(Run { device, random: Random::new(seed), reporter }));
}

/// Systems as an architecture is handed them.
pub fn systems(systems: &data::Systems) -> crate::data::Systems<'_> {
    crate::data::Systems::new(systems)
}

/// A dataset as an architecture is handed it.
pub fn dataset(plain: kilnbox_data::Dataset) -> crate::data::Dataset {
    crate::data::Dataset::new(data::Dataset::new(plain))
}

/// The permission to keep checkpoints: they go to the observer.
pub fn checkpoint_folder() -> crate::checkpoint::CheckpointFolder {
    crate::checkpoint::CheckpointFolder::new(checkpoint::CheckpointFolder)
}

/// A tensor of the engine as one of the SDK.
pub fn tensor(value: kilnbox_tensor::Tensor) -> crate::tensor::Tensor {
    crate::tensor::Tensor::from_handle(tensor::Tensor(value))
}

fn run<T>(work: impl FnOnce(&mut Run) -> T) -> T {
    RUN.with_borrow_mut(|run| work(run.as_mut().unwrap_or_else(|| panic!("`native::enter` comes first"))))
}

fn device() -> Device {
    run(|run| run.device.clone())
}

fn must<T>(result: Result<T, Misuse>) -> T {
    result.unwrap_or_else(|misuse| panic!("{misuse}"))
}

fn sizes(values: &[u32]) -> Vec<usize> {
    values.iter().map(|&value| value as usize).collect()
}

/// The engine's tensors behind some handles.
fn values<'a>(tensors: &[&'a tensor::Tensor]) -> Vec<&'a kilnbox_tensor::Tensor> {
    tensors.iter().map(|tensor| &tensor.0).collect()
}

pub mod tensor {
    //! `tensor`.
    use super::{device, must, sizes};

    pub use kilnbox_tensor::DType as Dtype;

    /// A handle, as the sandbox has it.
    pub struct Tensor(pub(crate) kilnbox_tensor::Tensor);

    impl Tensor {
        pub fn shape(&self) -> Vec<u32> {
            self.0.shape().iter().map(|&size| size as u32).collect()
        }

        pub fn dtype(&self) -> Dtype {
            self.0.dtype()
        }

        pub fn share(&self) -> Self {
            Self(self.0.clone())
        }

        pub fn read_float32(&self) -> Vec<f32> {
            must(self.0.read_float32())
        }

        pub fn read_float64(&self) -> Vec<f64> {
            must(self.0.read_float64())
        }

        pub fn read_int64(&self) -> Vec<i64> {
            must(self.0.read_int64())
        }

        pub fn read_boolean(&self) -> Vec<bool> {
            must(self.0.read_boolean())
        }
    }

    pub fn from_float32(shape: &[u32], values: &[f32]) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::from_float32(&device(), &sizes(shape), values)))
    }

    pub fn from_float64(shape: &[u32], values: &[f64], dtype: Dtype) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::from_float64(&device(), &sizes(shape), values, dtype)))
    }

    pub fn from_int64(shape: &[u32], values: &[i64]) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::from_int64(&device(), &sizes(shape), values)))
    }

    pub fn from_boolean(shape: &[u32], values: &[bool]) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::from_boolean(&device(), &sizes(shape), values)))
    }

    pub fn full(shape: &[u32], value: f64, dtype: Dtype) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::full(&device(), &sizes(shape), value, dtype)))
    }

    pub fn arange(count: u32) -> Tensor {
        Tensor(must(kilnbox_tensor::Tensor::arange(&device(), count as usize)))
    }

    pub fn cast(a: &Tensor, dtype: Dtype) -> Tensor {
        Tensor(must(kilnbox_tensor::op::cast(&a.0, dtype)))
    }
}

/// Functions of one tensor.
macro_rules! unary {
    ($module:ident: $($name:ident),+) => {$(
        pub fn $name(a: &Tensor) -> Tensor {
            Tensor(must(kilnbox_tensor::op::$module::$name(&a.0)))
        }
    )+};
}

/// Functions of two tensors.
macro_rules! binary {
    ($module:ident: $($name:ident),+) => {$(
        pub fn $name(a: &Tensor, b: &Tensor) -> Tensor {
            Tensor(must(kilnbox_tensor::op::$module::$name(&a.0, &b.0)))
        }
    )+};
}

pub mod elementwise {
    //! `elementwise`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::elementwise;

    unary!(elementwise: negative, reciprocal, absolute, sign, exp, log, sqrt, sin, cos, tanh, erf, sigmoid, silu, is_finite, logical_not);
    binary!(elementwise: add, subtract, multiply, divide, maximum, minimum, equal, less, less_equal, logical_and, logical_or);

    pub fn add_scalar(a: &Tensor, scalar: f64) -> Tensor {
        Tensor(must(elementwise::add_scalar(&a.0, scalar)))
    }

    pub fn multiply_scalar(a: &Tensor, scalar: f64) -> Tensor {
        Tensor(must(elementwise::multiply_scalar(&a.0, scalar)))
    }

    pub fn power_scalar(a: &Tensor, exponent: f64) -> Tensor {
        Tensor(must(elementwise::power_scalar(&a.0, exponent)))
    }

    pub fn clamp(a: &Tensor, low: f64, high: f64) -> Tensor {
        Tensor(must(elementwise::clamp(&a.0, low, high)))
    }

    pub fn where_(condition: &Tensor, a: &Tensor, b: &Tensor) -> Tensor {
        Tensor(must(elementwise::where_(&condition.0, &a.0, &b.0)))
    }
}

pub mod reduce {
    //! `reduce`.
    use super::{must, sizes, tensor::Tensor};
    use kilnbox_tensor::op::reduce;

    unary!(reduce: all, any);

    pub fn sum(a: &Tensor, axes: &[u32], keep_axes: bool) -> Tensor {
        Tensor(must(reduce::sum(&a.0, &sizes(axes), keep_axes)))
    }

    pub fn mean(a: &Tensor, axes: &[u32], keep_axes: bool) -> Tensor {
        Tensor(must(reduce::mean(&a.0, &sizes(axes), keep_axes)))
    }

    pub fn maximum(a: &Tensor, axis: u32, keep_axes: bool) -> Tensor {
        Tensor(must(reduce::maximum(&a.0, axis as usize, keep_axes)))
    }

    pub fn minimum(a: &Tensor, axis: u32, keep_axes: bool) -> Tensor {
        Tensor(must(reduce::minimum(&a.0, axis as usize, keep_axes)))
    }
}

pub mod shape {
    //! `shape`.
    use super::{must, sizes, tensor::Tensor, values};
    use kilnbox_tensor::op::shape;

    pub fn reshape(a: &Tensor, to: &[u32]) -> Tensor {
        Tensor(must(shape::reshape(&a.0, &sizes(to))))
    }

    pub fn permute(a: &Tensor, axes: &[u32]) -> Tensor {
        Tensor(must(shape::permute(&a.0, &sizes(axes))))
    }

    pub fn broadcast_to(a: &Tensor, to: &[u32]) -> Tensor {
        Tensor(must(shape::broadcast_to(&a.0, &sizes(to))))
    }

    pub fn concatenate(tensors: &[&Tensor], axis: u32) -> Tensor {
        Tensor(must(shape::concatenate(&values(tensors), axis as usize)))
    }

    pub fn slice(a: &Tensor, axis: u32, start: u32, end: u32) -> Tensor {
        Tensor(must(shape::slice(&a.0, axis as usize, start as usize, end as usize)))
    }
}

pub mod index {
    //! `index`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::index;

    pub fn select(a: &Tensor, axis: u32, indices: &Tensor) -> Tensor {
        Tensor(must(index::select(&a.0, axis as usize, &indices.0)))
    }

    pub fn index_add(a: &Tensor, axis: u32, indices: &Tensor, size: u32) -> Tensor {
        Tensor(must(index::index_add(&a.0, axis as usize, &indices.0, size as usize)))
    }

    pub fn gather(a: &Tensor, axis: u32, indices: &Tensor) -> Tensor {
        Tensor(must(index::gather(&a.0, axis as usize, &indices.0)))
    }

    pub fn scatter_add(a: &Tensor, axis: u32, indices: &Tensor, size: u32) -> Tensor {
        Tensor(must(index::scatter_add(&a.0, axis as usize, &indices.0, size as usize)))
    }
}

pub mod segment {
    //! `segment`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::segment;

    pub fn outer_sum(left: &Tensor, right: &Tensor, segments: &Tensor, count: u32) -> Tensor {
        Tensor(must(segment::outer_sum(&left.0, &right.0, &segments.0, count as usize)))
    }

    pub fn contract_left(left: &Tensor, blocks: &Tensor, segments: &Tensor) -> Tensor {
        Tensor(must(segment::contract_left(&left.0, &blocks.0, &segments.0)))
    }

    pub fn contract_right(right: &Tensor, blocks: &Tensor, segments: &Tensor) -> Tensor {
        Tensor(must(segment::contract_right(&right.0, &blocks.0, &segments.0)))
    }
}

pub mod linalg {
    //! `linalg`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::linalg::{self, SolveError};

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum LinalgError {
        Singular(u32),
        NotFinite,
    }

    binary!(linalg: matmul);

    pub fn solve(a: &Tensor, b: &Tensor) -> Result<Tensor, LinalgError> {
        must(linalg::solve(&a.0, &b.0)).map(Tensor).map_err(|error| match error {
            SolveError::Singular(matrix) => LinalgError::Singular(matrix as u32),
            SolveError::NotFinite => LinalgError::NotFinite,
        })
    }
}

pub mod neural {
    //! `neural`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::neural;

    unary!(neural: gated_linear_unit);

    pub fn linear(a: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        Tensor(must(neural::linear(&a.0, &weight.0, bias.map(|bias| &bias.0))))
    }

    #[expect(clippy::too_many_arguments, reason = "the contract has as many")]
    pub fn attention(
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: &Tensor,
        segments: &Tensor,
        count: u32,
        heads: u32,
        scale: f64,
    ) -> Tensor {
        let [count, heads] = [count, heads].map(|number| number as usize);
        Tensor(must(neural::attention(&queries.0, &keys.0, &values.0, &bias.0, &segments.0, count, heads, scale)))
    }

    pub fn softmax(a: &Tensor, axis: u32) -> Tensor {
        Tensor(must(neural::softmax(&a.0, axis as usize)))
    }

    pub fn layer_norm(a: &Tensor, epsilon: f64) -> Tensor {
        Tensor(must(neural::layer_norm(&a.0, epsilon)))
    }

    pub fn rms_norm(a: &Tensor, epsilon: f64) -> Tensor {
        Tensor(must(neural::rms_norm(&a.0, epsilon)))
    }
}

pub mod spherical {
    //! `spherical`.
    use super::{must, tensor::Tensor};
    use kilnbox_tensor::op::spherical;

    pub fn solid_harmonics(vectors: &Tensor, max_degree: u32) -> Tensor {
        Tensor(must(spherical::solid_harmonics(&vectors.0, max_degree as usize)))
    }

    pub fn piecewise_polynomial(x: &Tensor, coefficients: &Tensor, lower: f64, upper: f64) -> Tensor {
        Tensor(must(spherical::piecewise_polynomial(&x.0, &coefficients.0, lower, upper)))
    }
}

pub mod autodiff {
    //! `autodiff`.
    use super::{must, tensor::Tensor, values};
    use kilnbox_tensor::autodiff;

    pub fn track(a: &Tensor) -> Tensor {
        Tensor(must(autodiff::track(&a.0)))
    }

    pub fn detach(a: &Tensor) -> Tensor {
        Tensor(must(autodiff::detach(&a.0)))
    }

    pub fn is_tracked(a: &Tensor) -> bool {
        a.0.is_tracked()
    }

    pub fn grad(
        outputs: &[&Tensor],
        inputs: &[&Tensor],
        output_gradients: &[&Tensor],
        create_graph: bool,
    ) -> Vec<Tensor> {
        let gradients = autodiff::grad(&values(outputs), &values(inputs), &values(output_gradients), create_graph);
        must(gradients).into_iter().map(Tensor).collect()
    }

    pub fn grad_and_release(outputs: Vec<Tensor>, inputs: &[&Tensor], output_gradients: &[&Tensor]) -> Vec<Tensor> {
        let outputs = outputs.into_iter().map(|tensor| tensor.0).collect();
        let gradients = autodiff::grad_and_release(outputs, &values(inputs), &values(output_gradients));
        must(gradients).into_iter().map(Tensor).collect()
    }

    pub fn set_recording(enabled: bool) -> bool {
        autodiff::set_recording(enabled)
    }
}

pub mod optimizer {
    //! `optimizer`.
    use super::{must, tensor::Tensor, values};
    use kilnbox_tensor::op::optimizer;

    pub use optimizer::AdamOptions;

    pub struct AdamState {
        pub parameter: Tensor,
        pub first_moment: Tensor,
        pub second_moment: Tensor,
    }

    pub fn adam(
        parameters: &[&Tensor],
        gradients: &[&Tensor],
        first_moments: &[&Tensor],
        second_moments: &[&Tensor],
        options: AdamOptions,
    ) -> Vec<AdamState> {
        let [parameters, gradients, first_moments, second_moments] =
            [parameters, gradients, first_moments, second_moments].map(values);
        must(optimizer::adam(&parameters, &gradients, &first_moments, &second_moments, &options))
            .into_iter()
            .map(|state| AdamState {
                parameter: Tensor(state.parameter),
                first_moment: Tensor(state.first_moment),
                second_moment: Tensor(state.second_moment),
            })
            .collect()
    }
}

pub mod random {
    //! `random`.
    use super::{
        must, run, sizes,
        tensor::{Dtype, Tensor},
    };

    pub fn uniform(shape: &[u32], low: f64, high: f64, dtype: Dtype) -> Tensor {
        Tensor(must(run(|run| run.random.uniform(&run.device, &sizes(shape), low, high, dtype))))
    }

    pub fn normal(shape: &[u32], mean: f64, standard_deviation: f64, dtype: Dtype) -> Tensor {
        Tensor(must(run(|run| run.random.normal(&run.device, &sizes(shape), mean, standard_deviation, dtype))))
    }

    pub fn permutation(count: u32) -> Vec<u32> {
        run(|run| run.random.permutation(count))
    }

    pub fn state() -> Vec<u8> {
        run(|run| run.random.state())
    }

    pub fn set_state(state: &[u8]) -> Result<(), String> {
        run(|run| run.random.set_state(state))
    }
}

pub mod data {
    //! `data`.
    use super::{
        must,
        tensor::{Dtype, Tensor},
    };
    use kilnbox_host::service::data as service;

    pub use kilnbox_data::{
        DatasetInfo, Irrep, Labels, NamedTarget, NeighborListOptions, SampleKind, TargetInfo, TargetType,
    };
    pub use service::Unavailable as DataError;

    pub struct Neighbors {
        pub first: Tensor,
        pub second: Tensor,
        pub shifts: Tensor,
        pub vectors: Tensor,
    }

    pub struct GradientBlock {
        pub parameter: String,
        pub values: Tensor,
        pub samples: Labels,
        pub components: Vec<Labels>,
    }

    pub struct TensorBlock {
        pub values: Tensor,
        pub samples: Labels,
        pub components: Vec<Labels>,
        pub properties: Labels,
        pub gradients: Vec<GradientBlock>,
    }

    pub struct TensorMap {
        pub keys: Labels,
        pub blocks: Vec<TensorBlock>,
    }

    impl From<service::TensorMap> for TensorMap {
        fn from(map: service::TensorMap) -> Self {
            let gradient = |gradient: service::GradientBlock| GradientBlock {
                parameter: gradient.parameter,
                values: Tensor(gradient.values),
                samples: gradient.samples,
                components: gradient.components,
            };
            let block = |block: service::TensorBlock| TensorBlock {
                values: Tensor(block.values),
                samples: block.samples,
                components: block.components,
                properties: block.properties,
                gradients: block.gradients.into_iter().map(gradient).collect(),
            };
            Self { keys: map.keys, blocks: map.blocks.into_iter().map(block).collect() }
        }
    }

    pub struct Systems(pub service::Systems);

    pub struct TrackedSystems {
        pub systems: Systems,
        pub positions: Option<Tensor>,
        pub strain: Option<Tensor>,
    }

    impl Systems {
        pub fn count(&self) -> u32 {
            self.0.atom_counts().len() as u32
        }

        pub fn atom_counts(&self) -> Vec<u32> {
            self.0.atom_counts().to_vec()
        }

        pub fn positions(&self) -> Tensor {
            Tensor(self.0.positions())
        }

        pub fn cells(&self) -> Tensor {
            Tensor(self.0.cells())
        }

        pub fn periodic(&self) -> Tensor {
            Tensor(must(self.0.periodic()))
        }

        pub fn types(&self) -> Tensor {
            Tensor(must(self.0.types()))
        }

        pub fn system_indices(&self) -> Tensor {
            Tensor(self.0.system_indices())
        }

        pub fn type_indices(&self, atomic_types: &[i32]) -> Result<Tensor, DataError> {
            must(self.0.type_indices(atomic_types)).map(Tensor)
        }

        pub fn neighbors(&self, options: NeighborListOptions) -> Result<Neighbors, DataError> {
            must(self.0.neighbors(&options)).map(|neighbors| Neighbors {
                first: Tensor(neighbors.first),
                second: Tensor(neighbors.second),
                shifts: Tensor(neighbors.shifts),
                vectors: Tensor(neighbors.vectors),
            })
        }

        pub fn reverse_pairs(&self, options: NeighborListOptions) -> Result<Tensor, DataError> {
            must(self.0.reverse_pairs(&options)).map(Tensor)
        }

        pub fn data(&self, name: &str) -> Result<TensorMap, DataError> {
            must(self.0.data(name)).map(Into::into)
        }

        pub fn track(&self, positions: bool, strain: bool) -> TrackedSystems {
            let tracked = must(self.0.track(positions, strain));
            TrackedSystems {
                systems: Systems(tracked.systems),
                positions: tracked.positions.map(Tensor),
                strain: tracked.strain.map(Tensor),
            }
        }

        pub fn transform(&self, matrices: &Tensor) -> Systems {
            Systems(must(self.0.transform(&matrices.0)))
        }
    }

    pub struct BatchOptions {
        pub dtype: Dtype,
        pub neighbor_lists: Vec<NeighborListOptions>,
        pub targets: Vec<String>,
        pub extra_data: Vec<String>,
    }

    pub struct Batch(service::Batch);

    impl Batch {
        pub fn systems(&self) -> Systems {
            Systems(self.0.systems())
        }

        pub fn target(&self, name: &str) -> Result<TensorMap, DataError> {
            must(self.0.target(name)).map(Into::into)
        }
    }

    pub struct Batches(std::cell::RefCell<service::Batches>);

    impl Batches {
        pub fn next(&self) -> Result<Option<Batch>, DataError> {
            must(self.0.borrow_mut().next_batch()).map(|batch| batch.map(Batch))
        }
    }

    pub struct Dataset(service::Dataset);

    impl Dataset {
        /// A dataset whose batches go to the run's device.
        pub fn new(plain: kilnbox_data::Dataset) -> Self {
            Self(service::Dataset::new(plain, super::device()))
        }

        #[allow(clippy::len_without_is_empty, reason = "the contract has `len` alone")]
        pub fn len(&self) -> u32 {
            self.0.len() as u32
        }

        pub fn atom_counts(&self) -> Vec<u32> {
            self.0.atom_counts()
        }

        pub fn info(&self) -> DatasetInfo {
            self.0.info().clone()
        }

        pub fn batches(&self, batches: &[Vec<u32>], options: &BatchOptions) -> Result<Batches, DataError> {
            let options = service::BatchOptions {
                dtype: options.dtype,
                neighbor_lists: options.neighbor_lists.clone(),
                targets: options.targets.clone(),
                extra_data: options.extra_data.clone(),
            };
            must(self.0.batches(batches.to_vec(), options)).map(|batches| Batches(std::cell::RefCell::new(batches)))
        }
    }
}

pub mod checkpoint {
    //! `checkpoint`.
    use super::{run, tensor::Tensor};

    pub use kilnbox_host::Context;

    pub struct NamedTensor {
        pub name: String,
        pub value: Tensor,
    }

    pub struct Checkpoint {
        pub model_version: u32,
        pub trainer_version: u32,
        pub epoch: Option<u32>,
        pub data: String,
        pub tensors: Vec<NamedTensor>,
    }

    impl From<Checkpoint> for kilnbox_host::Checkpoint {
        fn from(checkpoint: Checkpoint) -> Self {
            Self {
                model_version: checkpoint.model_version,
                trainer_version: checkpoint.trainer_version,
                epoch: checkpoint.epoch,
                data: checkpoint.data,
                tensors: checkpoint.tensors.into_iter().map(|named| (named.name, named.value.0)).collect(),
            }
        }
    }

    impl From<kilnbox_host::Checkpoint> for Checkpoint {
        fn from(checkpoint: kilnbox_host::Checkpoint) -> Self {
            let named = |(name, value)| NamedTensor { name, value: Tensor(value) };
            Self {
                model_version: checkpoint.model_version,
                trainer_version: checkpoint.trainer_version,
                epoch: checkpoint.epoch,
                data: checkpoint.data,
                tensors: checkpoint.tensors.into_iter().map(named).collect(),
            }
        }
    }

    /// The permission to keep checkpoints.
    pub struct CheckpointFolder;

    impl CheckpointFolder {
        pub fn save(&self, name: &str, checkpoint: Checkpoint) -> Result<(), String> {
            run(|run| run.reporter.save_checkpoint(name, checkpoint.into()))
        }
    }
}

pub mod report {
    //! `report`.
    use super::run;

    pub use kilnbox_host::{Level, Metric};

    pub fn log(level: Level, message: &str) {
        run(|run| run.reporter.log(level, message));
    }

    pub fn step(epoch: u32, epochs: u32, done: u32, total: u32) {
        run(|run| run.reporter.step(epoch, epochs, done, total));
    }

    pub fn epoch(epoch: u32, learning_rate: f64, metrics: &[Metric]) {
        run(|run| run.reporter.epoch(epoch, learning_rate, metrics.to_vec()));
    }

    pub fn panic(message: &str) {
        run(|run| run.reporter.panic(message));
    }
}

pub mod errors {
    //! `errors`.
    #[derive(Clone, Debug)]
    pub enum ArchitectureError {
        UnsupportedTarget(String),
        UnsupportedDataset(String),
        InvalidHypers(String),
        IncompatibleCheckpoint(String),
        TrainingFailed(String),
        Other(String),
    }
}

pub mod about {
    //! `about`.
    pub use kilnbox_host::{About, References};
}

pub mod model {
    //! `model`.
    pub use kilnbox_host::{Capabilities, ModelOutput};
}

pub mod trainer {
    //! `trainer`: nothing but functions.
}
