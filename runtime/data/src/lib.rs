//! Structures and targets: reading, neighbour lists, datasets and batches. Nothing here knows of tensors or of wasm.

mod batch;
mod dataset;
pub mod elements;
mod error;
pub mod extended_xyz;
pub mod neighbor_list;
mod parts;
mod target;
mod types;
pub mod units;

pub use batch::{BatchData, BatchOptions, Batches, SystemsData};
pub use dataset::{Dataset, DatasetSource, StructureView, SystemsSource, TargetStatistics};
pub use error::DataError;
pub use neighbor_list::{Pairs, volume};
pub use parts::{Part, PartOptions, Parts};
pub use target::{GradientSource, TargetSource};
pub use types::{
    DatasetInfo, GradientBlock, Irrep, Labels, NamedTarget, NeighborListOptions, SampleKind, TargetInfo, TargetType,
    TensorBlock, TensorMap,
};
