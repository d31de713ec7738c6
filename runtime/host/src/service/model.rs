//! What an architecture says of itself and of its models.

use kilnbox_data::SampleKind;
use kilnbox_tensor::DType;

/// The transformations of space under which predictions turn with the system by construction; each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Equivariance {
    /// Translations only.
    Translations,
    /// Rotations as well.
    Rotations,
    /// Rotations and reflections as well.
    RotationsAndReflections,
}

/// What an architecture says of itself; see `about` in the contract.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Who wrote it.
    pub authors: Vec<String>,
    /// Who looks after it.
    pub maintainers: Vec<String>,
    /// What to cite.
    pub references: References,
    /// Devices it runs on, best first.
    pub supported_devices: Vec<String>,
    /// Floating-point dtypes it runs in, best first.
    pub supported_dtypes: Vec<DType>,
    /// What its models do when a system is turned, whatever their weights.
    pub equivariance: Equivariance,
    /// The version of the model's part of a checkpoint.
    pub model_checkpoint_version: u32,
    /// The version of the trainer's part of a checkpoint.
    pub trainer_checkpoint_version: u32,
}

/// Works to cite.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// For the architecture.
    pub architecture: Vec<String>,
    /// For this implementation.
    pub implementation: Vec<String>,
}

/// An output that a model can compute, or that is asked of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOutput {
    /// The name, such as a target's.
    pub name: String,
    /// The physical quantity; may be empty.
    pub quantity: String,
    /// The unit; may be empty.
    pub unit: String,
    /// Per system or per atom.
    pub sample_kind: SampleKind,
    /// For people.
    pub description: String,
}

/// What an exported model can do.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// What it computes.
    pub outputs: Vec<ModelOutput>,
    /// The atomic numbers it knows, sorted.
    pub atomic_types: Vec<i32>,
    /// How far away an atom can matter, in the length unit; infinity if there is no bound.
    pub interaction_range: f64,
    /// The unit of lengths.
    pub length_unit: String,
    /// The dtype of its weights.
    pub dtype: DType,
}
