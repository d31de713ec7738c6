//! What is kept of a model and of its training.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{Error, Result, contract::checkpoint, tensor::Tensor};

/// Everything needed to continue. The host adds the architecture's name and digest, the contract's version, hypers and dataset info.
#[derive(Clone, Default)]
pub struct Checkpoint {
    /// The version of the model's part.
    pub model_version: u32,
    /// The version of the trainer's part.
    pub trainer_version: u32,
    /// The number of epochs that are done, if it was trained.
    pub epoch: Option<u32>,
    /// What the architecture wants to find again, by section; at most 1 MiB as JSON.
    pub data: Map<String, Value>,
    /// Weights and the state of the optimizer. Names have letters, digits and `._:/-`.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// A section of the data.
    ///
    /// # Errors
    /// When it is missing or not what `T` describes.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let value = self
            .data
            .get(name)
            .ok_or_else(|| Error::IncompatibleCheckpoint(format!("the checkpoint has no section `{name}`")))?;
        T::deserialize(value)
            .map_err(|error| Error::IncompatibleCheckpoint(format!("section `{name}` of the checkpoint: {error}")))
    }

    /// Adds or replaces a section of the data.
    ///
    /// # Errors
    /// When it cannot be said in JSON.
    pub fn set_section<T: Serialize>(&mut self, name: &str, value: &T) -> Result<()> {
        let value = serde_json::to_value(value)
            .map_err(|error| Error::Other(format!("section `{name}` of the checkpoint: {error}")))?;
        self.data.insert(name.to_owned(), value);
        Ok(())
    }

    /// The tensors whose names begin with `prefix`, without it.
    pub fn tensors_in(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone())))
            .collect()
    }

    /// Adds tensors with `prefix` before their names.
    pub fn add_tensors(&mut self, prefix: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) {
        self.tensors.extend(tensors.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
    }
}

impl TryFrom<checkpoint::Checkpoint> for Checkpoint {
    type Error = Error;

    fn try_from(checkpoint: checkpoint::Checkpoint) -> Result<Checkpoint> {
        let data = serde_json::from_str(&checkpoint.data).map_err(|error| {
            Error::IncompatibleCheckpoint(format!("the checkpoint's data is not a JSON object: {error}"))
        })?;
        Ok(Checkpoint {
            model_version: checkpoint.model_version,
            trainer_version: checkpoint.trainer_version,
            epoch: checkpoint.epoch,
            data,
            tensors: checkpoint
                .tensors
                .into_iter()
                .map(|named| (named.name, Tensor::from_handle(named.value)))
                .collect(),
        })
    }
}

impl From<Checkpoint> for checkpoint::Checkpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        checkpoint::Checkpoint {
            model_version: checkpoint.model_version,
            trainer_version: checkpoint.trainer_version,
            epoch: checkpoint.epoch,
            data: Value::Object(checkpoint.data).to_string(),
            tensors: checkpoint
                .tensors
                .into_iter()
                .map(|(name, tensor)| checkpoint::NamedTensor { name, value: tensor.into_handle() })
                .collect(),
        }
    }
}

/// Where a trainer may leave checkpoints.
pub struct CheckpointFolder(checkpoint::CheckpointFolder);

impl CheckpointFolder {
    pub(crate) fn new(folder: checkpoint::CheckpointFolder) -> CheckpointFolder {
        CheckpointFolder(folder)
    }

    /// Writes `name` as a whole or not at all; an earlier one of that name is replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, name: &str, checkpoint: Checkpoint) -> Result<()> {
        self.0.save(name, checkpoint.into()).map_err(|message| Error::Other(format!("checkpoint `{name}`: {message}")))
    }
}
