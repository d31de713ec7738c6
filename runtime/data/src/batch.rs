//! Batches, prepared ahead on another thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use crate::DataError;
use crate::dataset::Dataset;
use crate::neighbor_list::{Geometry, Pairs, neighbor_list};
use crate::types::{NeighborListOptions, TensorMap};

/// How many batches wait at most. One would do; two even out batches of different sizes.
const AHEAD: usize = 2;

/// What a batch holds.
#[derive(Clone, Debug, Default)]
pub struct BatchOptions {
    /// Neighbour lists to prepare.
    pub neighbor_lists: Vec<NeighborListOptions>,
    /// Targets to read.
    pub targets: Vec<String>,
    /// Extra data to read.
    pub extra_data: Vec<String>,
}

/// Systems and their targets, as plain arrays.
#[derive(Clone, Debug)]
pub struct BatchData {
    /// The systems.
    pub systems: SystemsData,
    /// Targets by name.
    pub targets: Vec<(String, TensorMap)>,
    /// Extra data by name.
    pub extra_data: Vec<(String, TensorMap)>,
}

/// Several systems as one disconnected graph: atoms are numbered through, system by system.
#[derive(Clone, Debug)]
pub struct SystemsData {
    /// The number of atoms of each system.
    pub atom_counts: Vec<u32>,
    /// Three numbers for each atom.
    pub positions: Vec<f64>,
    /// Nine numbers for each system, rows are cell vectors; zero for directions that are not periodic.
    pub cells: Vec<f64>,
    /// Three for each system.
    pub periodic: Vec<bool>,
    /// Atomic numbers.
    pub types: Vec<i32>,
    /// The system of each atom.
    pub system_indices: Vec<i64>,
    /// The lists that were asked for.
    pub neighbor_lists: Vec<(NeighborListOptions, Arc<Pairs>)>,
}

impl SystemsData {
    /// The neighbour list with these options: the one that was prepared, or one that is made now.
    ///
    /// # Errors
    /// The list cannot be made; see [`neighbor_list`].
    pub fn neighbors(&self, options: &NeighborListOptions) -> Result<Arc<Pairs>, DataError> {
        if let Some((_, pairs)) = self.neighbor_lists.iter().find(|(known, _)| known == options) {
            return Ok(pairs.clone());
        }
        let mut lists = Vec::with_capacity(self.atom_counts.len());
        let mut start = 0;
        for (system, &count) in self.atom_counts.iter().enumerate() {
            let end = start + count as usize;
            let cell: [f64; 9] = std::array::from_fn(|entry| self.cells[9 * system + entry]);
            let periodic = std::array::from_fn(|axis| self.periodic[3 * system + axis]);
            let geometry = Geometry { positions: &self.positions[3 * start..3 * end], cell: &cell, periodic };
            lists.push(Arc::new(neighbor_list(geometry, options)?));
            start = end;
        }
        Ok(Arc::new(Pairs::concatenated(&lists, &self.atom_counts)))
    }
}

/// Batches in the order asked for. Another thread prepares the next ones meanwhile, and ends when this is dropped.
#[derive(Debug)]
pub struct Batches {
    /// None once this is being dropped: the other thread then finds nobody to send to.
    receiver: Option<Receiver<Result<BatchData, DataError>>>,
    worker: Option<JoinHandle<()>>,
}

impl Batches {
    /// The next batch, or nothing after the last.
    ///
    /// # Errors
    /// A neighbour list cannot be made.
    #[expect(clippy::should_implement_trait, reason = "an iterator of results would make `?` awkward for its callers")]
    pub fn next(&mut self) -> Result<Option<BatchData>, DataError> {
        self.receiver.as_ref().and_then(|receiver| receiver.recv().ok()).transpose()
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.receiver = None;
        if let Some(worker) = self.worker.take() {
            // It cannot panic, and if it did there would be nobody left to tell.
            let _ = worker.join();
        }
    }
}

impl Dataset {
    /// Batches, each a list of indices into this set.
    ///
    /// # Errors
    /// An index or a name that the set does not have; no thread can be started.
    pub fn batches(&self, batches: Vec<Vec<u32>>, options: BatchOptions) -> Result<Batches, DataError> {
        let stored = batches.iter().map(|batch| self.stored(batch)).collect::<Result<Vec<_>, _>>()?;
        for name in options.targets.iter().chain(&options.extra_data) {
            self.find(name)?;
        }
        let dataset = self.clone();
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = std::thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || {
                for batch in stored {
                    if sender.send(dataset.collate(&batch, &options)).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| DataError::new(format!("a thread for batches cannot be started: {error}")))?;
        Ok(Batches { receiver: Some(receiver), worker: Some(worker) })
    }

    fn collate(&self, stored: &[u32], options: &BatchOptions) -> Result<BatchData, DataError> {
        let mut systems = SystemsData {
            atom_counts: Vec::with_capacity(stored.len()),
            positions: Vec::new(),
            cells: Vec::with_capacity(9 * stored.len()),
            periodic: Vec::with_capacity(3 * stored.len()),
            types: Vec::new(),
            system_indices: Vec::new(),
            neighbor_lists: Vec::with_capacity(options.neighbor_lists.len()),
        };
        for (system, &index) in stored.iter().enumerate() {
            let view = self.stored_view(index);
            systems.atom_counts.push(view.types.len() as u32);
            systems.positions.extend(view.positions);
            systems.types.extend(view.types);
            systems.system_indices.resize(systems.types.len(), system as i64);
            systems.periodic.extend(view.periodic);
            systems.cells.extend((0..9).map(|entry| if view.periodic[entry / 3] { view.cell[entry] } else { 0.0 }));
        }
        for request in &options.neighbor_lists {
            let lists =
                stored.iter().map(|&index| self.neighbor_list(index, request)).collect::<Result<Vec<_>, _>>()?;
            systems.neighbor_lists.push((*request, Arc::new(Pairs::concatenated(&lists, &systems.atom_counts))));
        }
        let blocks = |names: &[String]| {
            names
                .iter()
                .map(|name| Ok((name.clone(), self.find(name)?.blocks(stored, self.offsets()))))
                .collect::<Result<Vec<_>, DataError>>()
        };
        Ok(BatchData { targets: blocks(&options.targets)?, extra_data: blocks(&options.extra_data)?, systems })
    }
}
