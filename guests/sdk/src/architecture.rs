//! What an architecture is: a [`Model`] and its [`Trainer`].
//!
//! Most architectures need neither trait: they implement [`Network`](crate::network::Network) and get both from the SDK. These traits
//! are for those that train in another way, as the architecture `composition` does.

use crate::{
    Error, Result,
    checkpoint::{Checkpoint, CheckpointFolder},
    data::{Dataset, Systems, TensorMap},
    info::{Capabilities, Context, DType, DatasetInfo, Labels, ModelOutput, NeighborListOptions},
};

/// Weights and how to evaluate them.
pub trait Model: Sized + 'static {
    /// The version of the model's part of a checkpoint, raised whenever its layout changes.
    const CHECKPOINT_VERSION: u32;

    /// A model with fresh weights. `hypers` is the `model` section of the options as JSON, defaults filled in and validated.
    ///
    /// # Errors
    /// When it cannot learn these targets or the hypers contradict each other.
    fn new(hypers: &str, info: DatasetInfo, dtype: DType) -> Result<Self>;

    /// A model from a checkpoint of the present version.
    ///
    /// # Errors
    /// When something is missing from it.
    fn load_checkpoint(checkpoint: &Checkpoint, context: Context) -> Result<Self>;

    /// A checkpoint of an older version as one of the present version. Called only for older ones.
    ///
    /// # Errors
    /// When it is too old.
    fn upgrade_checkpoint(checkpoint: Checkpoint) -> Result<Checkpoint> {
        Err(no_upgrade("model", checkpoint.model_version, Self::CHECKPOINT_VERSION))
    }

    /// Evaluates `outputs`, in physical units: one tensor map for each, in that order, with the requested sample kind. With `selected_atoms`
    /// (labels with `system`, `atom`) only these atoms contribute, though all are neighbours.
    ///
    /// # Errors
    /// When it cannot compute an output or does not know an element.
    fn forward(
        &self,
        systems: Systems<'_>,
        outputs: &[ModelOutput],
        selected_atoms: Option<&Labels>,
    ) -> Result<Vec<TensorMap>>;

    /// All outputs it can compute.
    fn supported_outputs(&self) -> Vec<ModelOutput>;

    /// The neighbour lists that `forward` will ask for; none by default.
    fn requested_neighbor_lists(&self) -> Vec<NeighborListOptions> {
        Vec::new()
    }

    /// The extra data that `forward` will ask for; none by default.
    fn requested_inputs(&self) -> Vec<String> {
        Vec::new()
    }

    /// Makes a loaded model ready for a run on `info`, which may have new targets.
    ///
    /// # Errors
    /// When it cannot learn from them.
    fn restart(&mut self, info: DatasetInfo) -> Result<()>;

    /// The model's part of a checkpoint, enough for `load_checkpoint` with any context.
    ///
    /// # Errors
    /// When it cannot be said.
    fn checkpoint(&mut self) -> Result<Checkpoint>;

    /// What the model, as it is, can do: called when it is exported.
    ///
    /// # Errors
    /// When it is not ready to be used.
    fn export(&mut self) -> Result<Capabilities>;
}

/// What a trainer is given.
pub struct TrainingRun {
    /// The dtype of the model's weights.
    pub dtype: DType,
    /// The run's devices, the first of which holds all tensors.
    pub devices: Vec<String>,
    /// What to learn from.
    pub train: Vec<Dataset>,
    /// What to choose the best model by; may be empty.
    pub validation: Vec<Dataset>,
    /// Where to leave checkpoints.
    pub folder: CheckpointFolder,
}

/// A training run: hypers and state.
pub trait Trainer: Sized + 'static {
    /// What it trains.
    type Model: Model;

    /// The version of the trainer's part of a checkpoint, raised whenever its layout changes.
    const CHECKPOINT_VERSION: u32;

    /// A fresh run. `hypers` is the `training` section of the options as JSON, defaults filled in and validated.
    ///
    /// # Errors
    /// When hypers contradict each other.
    fn new(hypers: &str) -> Result<Self>;

    /// A run that continues (`Restart`) or starts from (`Finetune`) a checkpoint of the present version.
    ///
    /// # Errors
    /// When something is missing from it.
    fn load_checkpoint(checkpoint: &Checkpoint, hypers: &str, context: Context) -> Result<Self>;

    /// A checkpoint of an older version as one of the present version. Called only for older ones.
    ///
    /// # Errors
    /// When it is too old.
    fn upgrade_checkpoint(checkpoint: Checkpoint) -> Result<Checkpoint> {
        Err(no_upgrade("trainer", checkpoint.trainer_version, Self::CHECKPOINT_VERSION))
    }

    /// Trains `model`. Returns when the last epoch is done.
    ///
    /// # Errors
    /// When the data cannot be used or the training cannot go on.
    fn train(&mut self, model: &mut Self::Model, run: TrainingRun) -> Result<()>;

    /// Everything needed to continue, export or finetune.
    ///
    /// # Errors
    /// When it cannot be said.
    fn checkpoint(&mut self, model: &mut Self::Model) -> Result<Checkpoint>;
}

fn no_upgrade(part: &str, found: u32, expected: u32) -> Error {
    Error::IncompatibleCheckpoint(format!(
        "the checkpoint's {part} has version {found}, which this architecture (version {expected}) cannot upgrade"
    ))
}

/// Reads hypers from JSON.
///
/// # Errors
/// Says which key is wrong.
pub fn parse_hypers<T: serde::de::DeserializeOwned>(section: &str, hypers: &str) -> Result<T> {
    serde_json::from_str(hypers).map_err(|error| Error::InvalidHypers(format!("`{section}`: {error}")))
}
