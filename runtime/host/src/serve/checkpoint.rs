//! `checkpoint`.

use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::kilnbox::architecture::checkpoint;
use super::{CheckpointFolder, State};
use crate::service::checkpoint::{Checkpoint, check_name};

impl State {
    /// A checkpoint that the architecture hands out: its handles become values, and it is checked.
    pub(crate) fn receive_checkpoint(
        &mut self,
        given: checkpoint::Checkpoint,
    ) -> Result<std::result::Result<Checkpoint, String>> {
        let tensors = given
            .tensors
            .into_iter()
            .map(|named| Ok((named.name, self.handles.take(named.value)?)))
            .collect::<Result<_>>()?;
        let checkpoint = Checkpoint {
            model_version: given.model_version,
            trainer_version: given.trainer_version,
            epoch: given.epoch,
            data: given.data,
            tensors,
        };
        let checked = checkpoint.check().and_then(|()| self.reporter.check_size(checkpoint.bytes()));
        Ok(checked.map(|()| checkpoint))
    }

    /// A checkpoint for the architecture: it owns the handles.
    pub(crate) fn give_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<checkpoint::Checkpoint> {
        let tensors = checkpoint
            .tensors
            .iter()
            .map(|(name, tensor)| {
                Ok(checkpoint::NamedTensor { name: name.clone(), value: self.hand_out(tensor.clone())? })
            })
            .collect::<Result<_>>()?;
        Ok(checkpoint::Checkpoint {
            model_version: checkpoint.model_version,
            trainer_version: checkpoint.trainer_version,
            epoch: checkpoint.epoch,
            data: checkpoint.data.clone(),
            tensors,
        })
    }
}

impl checkpoint::Host for State {}

impl checkpoint::HostCheckpointFolder for State {
    fn save(
        &mut self,
        folder: Resource<CheckpointFolder>,
        name: String,
        given: checkpoint::Checkpoint,
    ) -> Result<std::result::Result<(), String>> {
        self.handles.get(&folder)?;
        let received = self.receive_checkpoint(given)?;
        Ok(check_name(&name).and(received).and_then(|checkpoint| self.reporter.save_checkpoint(&name, checkpoint)))
    }

    fn drop(&mut self, folder: Resource<CheckpointFolder>) -> Result<()> {
        self.handles.take(folder)?;
        Ok(())
    }
}
