//! `data`.

use kilnbox_tensor::Tensor;
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::kilnbox::architecture::data;
use super::{Other, State, guarded};
use crate::service::data::{Batch, BatchOptions, Batches, Dataset, Systems, Unavailable};

/// What may be lacking, as the contract has it.
type Lacking<T> = std::result::Result<T, data::DataError>;

impl Other for Systems {}

impl Other for Batch {}

impl Other for Batches {}

impl Other for Dataset {}

impl State {
    /// Gives what was found to the architecture, or says why there is nothing.
    fn lend<T, Given>(
        &mut self,
        found: std::result::Result<T, Unavailable>,
        give: impl FnOnce(&mut Self, T) -> Result<Given>,
    ) -> Result<Lacking<Given>> {
        match found {
            Ok(value) => give(self, value).map(Ok),
            Err(unavailable) => Ok(Err(unavailable.into())),
        }
    }
}

impl data::Host for State {}

impl data::HostSystems for State {
    fn count(&mut self, systems: Resource<Systems>) -> Result<u32> {
        Ok(self.handles.get(&systems)?.atom_counts().len() as u32)
    }

    fn atom_counts(&mut self, systems: Resource<Systems>) -> Result<Vec<u32>> {
        Ok(self.handles.get(&systems)?.atom_counts().to_vec())
    }

    fn positions(&mut self, systems: Resource<Systems>) -> Result<Resource<Tensor>> {
        self.operate(|state| Ok(Ok(state.handles.get(&systems)?.positions())))
    }

    fn cells(&mut self, systems: Resource<Systems>) -> Result<Resource<Tensor>> {
        self.operate(|state| Ok(Ok(state.handles.get(&systems)?.cells())))
    }

    fn periodic(&mut self, systems: Resource<Systems>) -> Result<Resource<Tensor>> {
        self.operate(|state| Ok(state.handles.get(&systems)?.periodic()))
    }

    fn types(&mut self, systems: Resource<Systems>) -> Result<Resource<Tensor>> {
        self.operate(|state| Ok(state.handles.get(&systems)?.types()))
    }

    fn system_indices(&mut self, systems: Resource<Systems>) -> Result<Resource<Tensor>> {
        self.operate(|state| Ok(Ok(state.handles.get(&systems)?.system_indices())))
    }

    fn type_indices(
        &mut self,
        systems: Resource<Systems>,
        atomic_types: Vec<i32>,
    ) -> Result<Lacking<Resource<Tensor>>> {
        let found = self.handles.get(&systems)?.type_indices(&atomic_types)?;
        self.lend(found, Self::hand_out)
    }

    fn neighbors(
        &mut self,
        systems: Resource<Systems>,
        options: data::NeighborListOptions,
    ) -> Result<Lacking<data::Neighbors>> {
        let found = guarded(|| Ok(self.handles.get(&systems)?.neighbors(&options.into())?))?;
        self.lend(found, |state, neighbors| {
            Ok(data::Neighbors {
                first: state.hand_out(neighbors.first)?,
                second: state.hand_out(neighbors.second)?,
                shifts: state.hand_out(neighbors.shifts)?,
                vectors: state.hand_out(neighbors.vectors)?,
            })
        })
    }

    fn reverse_pairs(
        &mut self,
        systems: Resource<Systems>,
        options: data::NeighborListOptions,
    ) -> Result<Lacking<Resource<Tensor>>> {
        let found = guarded(|| Ok(self.handles.get(&systems)?.reverse_pairs(&options.into())?))?;
        self.lend(found, Self::hand_out)
    }

    fn data(&mut self, systems: Resource<Systems>, name: String) -> Result<Lacking<data::TensorMap>> {
        let found = self.handles.get(&systems)?.data(&name)?;
        self.lend(found, Self::give_map)
    }

    fn track(&mut self, systems: Resource<Systems>, positions: bool, strain: bool) -> Result<data::TrackedSystems> {
        let tracked = guarded(|| Ok(self.handles.get(&systems)?.track(positions, strain)?))?;
        Ok(data::TrackedSystems {
            systems: self.hand_out(tracked.systems)?,
            positions: tracked.positions.map(|leaf| self.hand_out(leaf)).transpose()?,
            strain: tracked.strain.map(|leaf| self.hand_out(leaf)).transpose()?,
        })
    }

    fn transform(&mut self, systems: Resource<Systems>, matrices: Resource<Tensor>) -> Result<Resource<Systems>> {
        let transformed = guarded(|| Ok(self.handles.get(&systems)?.transform(self.tensor(&matrices)?)?))?;
        self.hand_out(transformed)
    }

    fn drop(&mut self, systems: Resource<Systems>) -> Result<()> {
        self.handles.take(systems)?;
        Ok(())
    }
}

impl data::HostBatch for State {
    fn systems(&mut self, batch: Resource<Batch>) -> Result<Resource<Systems>> {
        let systems = self.handles.get(&batch)?.systems();
        self.hand_out(systems)
    }

    fn target(&mut self, batch: Resource<Batch>, name: String) -> Result<Lacking<data::TensorMap>> {
        let found = self.handles.get(&batch)?.target(&name)?;
        self.lend(found, Self::give_map)
    }

    fn drop(&mut self, batch: Resource<Batch>) -> Result<()> {
        self.handles.take(batch)?;
        Ok(())
    }
}

impl data::HostBatches for State {
    fn next(&mut self, batches: Resource<Batches>) -> Result<Lacking<Option<Resource<Batch>>>> {
        let found = guarded(|| Ok(self.handles.get_mut(&batches)?.next_batch()?))?;
        self.lend(found, |state, batch| batch.map(|batch| state.hand_out(batch)).transpose())
    }

    fn drop(&mut self, batches: Resource<Batches>) -> Result<()> {
        self.handles.take(batches)?;
        Ok(())
    }
}

impl data::HostDataset for State {
    fn len(&mut self, dataset: Resource<Dataset>) -> Result<u32> {
        Ok(self.handles.get(&dataset)?.len() as u32)
    }

    fn atom_counts(&mut self, dataset: Resource<Dataset>) -> Result<Vec<u32>> {
        Ok(self.handles.get(&dataset)?.atom_counts())
    }

    fn info(&mut self, dataset: Resource<Dataset>) -> Result<data::DatasetInfo> {
        Ok(self.handles.get(&dataset)?.info().into())
    }

    fn batches(
        &mut self,
        dataset: Resource<Dataset>,
        batches: Vec<Vec<u32>>,
        options: data::BatchOptions,
    ) -> Result<Lacking<Resource<Batches>>> {
        let options = BatchOptions {
            dtype: options.dtype.into(),
            neighbor_lists: options.neighbor_lists.into_iter().map(Into::into).collect(),
            targets: options.targets,
            extra_data: options.extra_data,
        };
        let found = self.handles.get(&dataset)?.batches(batches, options)?;
        self.lend(found, Self::hand_out)
    }

    fn drop(&mut self, dataset: Resource<Dataset>) -> Result<()> {
        self.handles.take(dataset)?;
        Ok(())
    }
}
