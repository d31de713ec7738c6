//! Batches, prepared ahead on another thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rayon::prelude::*;

use crate::DataError;
use crate::dataset::{Dataset, Stream, StructureView};
use crate::neighbor_list::{Geometry, MOST_PAIRS, Pair, PairList, Pairs, neighbor_list_within, side_by_side, too_many};
use crate::target::TargetData;
use crate::types::{NeighborListOptions, TensorMap};

/// How many batches wait at most. One would do; two even out batches of different sizes.
const AHEAD: usize = 2;
/// The size in bytes from which a batch is made only when it is asked for; those of ordinary trainings stay below.
const LARGE_BATCH: u64 = 64 << 20;
/// The largest batch in bytes, without its neighbour lists: some ten million atoms.
const LARGEST_BATCH: u64 = 2 << 30;
/// The most neighbour lists of one batch; an architecture has one or two cutoffs.
const MOST_LISTS: usize = 16;
/// The structures whose neighbours are searched side by side, before what they take is counted.
const LISTS_AT_ONCE: usize = 16;
/// The furthest that a pair of somebody else's may reach, in cells: its opposite and sums of a few can be counted as well.
const LARGEST_SHIFT: u32 = i32::MAX as u32 / 4;
/// The most targets and further data of one batch.
const MOST_TARGETS: usize = 1000;

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
    /// Several structures, as they come from elsewhere than a dataset: a simulation, for one. Cell vectors of directions that are not periodic are ignored.
    ///
    /// # Errors
    /// A structure is empty or has another number of coordinates than of atoms; a number is not finite, or too large; the vectors of periodic directions are
    /// not independent.
    pub fn new(structures: &[StructureView<'_>]) -> Result<Self, DataError> {
        let mut systems = Self::with_capacity(structures.len(), 0);
        for (index, structure) in structures.iter().enumerate() {
            structure.check().map_err(|error| error.of_structure(index))?;
            systems.push(*structure);
        }
        Ok(systems)
    }

    /// None yet, and room for some.
    fn with_capacity(systems: usize, neighbor_lists: usize) -> Self {
        Self {
            atom_counts: Vec::with_capacity(systems),
            positions: Vec::new(),
            cells: Vec::with_capacity(9 * systems),
            periodic: Vec::with_capacity(3 * systems),
            types: Vec::new(),
            system_indices: Vec::new(),
            neighbor_lists: Vec::with_capacity(neighbor_lists),
        }
    }

    /// One more.
    fn push(&mut self, structure: StructureView<'_>) {
        let system = self.atom_counts.len() as i64;
        self.atom_counts.push(structure.types.len() as u32);
        self.positions.extend(structure.positions);
        self.types.extend(structure.types);
        self.system_indices.resize(self.types.len(), system);
        self.periodic.extend(structure.periodic);
        self.cells.extend((0..9).map(|entry| if structure.periodic[entry / 3] { structure.cell[entry] } else { 0.0 }));
    }

    /// The geometry of one system, whose first atom is `start`.
    fn geometry<'a>(&'a self, system: usize, start: usize, cell: &'a mut [f64; 9]) -> Geometry<'a> {
        *cell = std::array::from_fn(|entry| self.cells[9 * system + entry]);
        let periodic = std::array::from_fn(|axis| self.periodic[3 * system + axis]);
        let end = start + self.atom_counts[system] as usize;
        Geometry { positions: &self.positions[3 * start..3 * end], cell, periodic }
    }

    /// The neighbour list with these options: the one that was prepared, or one that is made now.
    ///
    /// # Errors
    /// The list cannot be made; see [`neighbor_list`](crate::neighbor_list::neighbor_list).
    pub fn neighbors(&self, options: &NeighborListOptions) -> Result<Arc<Pairs>, DataError> {
        if let Some((_, pairs)) = self.neighbor_lists.iter().find(|(known, _)| known == options) {
            return Ok(pairs.clone());
        }
        let mut lists = Vec::with_capacity(self.atom_counts.len());
        let (mut start, mut left) = (0, MOST_PAIRS);
        for (system, &count) in self.atom_counts.iter().enumerate() {
            let mut cell = [0.0; 9];
            let geometry = self.geometry(system, start, &mut cell);
            let list = neighbor_list_within(geometry, options, left, &AtomicBool::new(false))?;
            left -= list.len();
            lists.push(Arc::new(list));
            start += count as usize;
        }
        Ok(Arc::new(Pairs::concatenated(&lists, &self.atom_counts)))
    }

    /// Gives the neighbour list with these options, instead of one that was prepared. It must be of these systems.
    pub fn set_neighbors(&mut self, options: NeighborListOptions, pairs: Arc<Pairs>) {
        self.neighbor_lists.retain(|(known, _)| *known != options);
        self.neighbor_lists.push((options, pairs));
    }

    /// The neighbour list with these options out of pairs that somebody else has found, as a simulation that keeps a list with a margin does. Atoms are numbered
    /// through all systems. A pair may be given in one direction or in both, more than once, and further apart than the cutoff; one that is left out is in no
    /// list.
    ///
    /// # Errors
    /// An atom does not exist; the atoms of a pair are in different systems, or are the same atom; a shift goes along a direction that is not periodic, or further
    /// than can be counted.
    pub fn choose_pairs(
        &self,
        options: &NeighborListOptions,
        atoms: &[[i32; 2]],
        shifts: &[[i32; 3]],
    ) -> Result<Pairs, DataError> {
        let mut of_systems: Vec<Vec<Pair>> = vec![Vec::new(); self.atom_counts.len()];
        let starts = self.starts();
        for (index, (&pair, &shift)) in atoms.iter().zip(shifts).enumerate() {
            let (system, pair) = self
                .check_pair(pair, shift, &starts)
                .map_err(|problem| DataError::new(format!("pair {index} has {problem}")))?;
            of_systems[system].push((pair, shift));
        }
        let mut lists = Vec::with_capacity(of_systems.len());
        for (system, candidates) in of_systems.into_iter().enumerate() {
            let mut cell = [0.0; 9];
            let geometry = self.geometry(system, starts[system], &mut cell);
            lists.push(Arc::new(PairList::of_candidates(geometry, options, candidates)));
        }
        Ok(Pairs::concatenated(&lists, &self.atom_counts))
    }

    /// The first atom of each system.
    fn starts(&self) -> Vec<usize> {
        let starts = self.atom_counts.iter().scan(0, |next, &count| {
            let start = *next;
            *next += count as usize;
            Some(start)
        });
        starts.collect()
    }

    /// The system that a pair is in, and its atoms as that system numbers them. The error completes "pair 3 has ...".
    fn check_pair(&self, atoms: [i32; 2], shift: [i32; 3], starts: &[usize]) -> Result<(usize, [u32; 2]), String> {
        let system_of = |atom: i32| {
            let known = usize::try_from(atom).ok().and_then(|atom| self.system_indices.get(atom));
            known.map(|&system| system as usize).ok_or_else(|| {
                format!("the atom {atom}, expected numbers from 0 to {}", self.types.len().saturating_sub(1))
            })
        };
        let [system, other] = [system_of(atoms[0])?, system_of(atoms[1])?];
        if system != other {
            return Err(format!("the atoms {} and {}, which are in different systems", atoms[0], atoms[1]));
        }
        if atoms[0] == atoms[1] && shift == [0; 3] {
            return Err(format!("twice the atom {} and no shift", atoms[0]));
        }
        let periodic = &self.periodic[3 * system..3 * system + 3];
        if let Some(axis) = (0..3).find(|&axis| shift[axis] != 0 && !periodic[axis]) {
            return Err(format!("the shift {} along direction {axis}, which is not periodic", shift[axis]));
        }
        if let Some(far) = shift.iter().find(|shift| shift.unsigned_abs() > LARGEST_SHIFT) {
            return Err(format!("the shift {far}, expected numbers of at most {LARGEST_SHIFT}"));
        }
        Ok((system, atoms.map(|atom| (atom as usize - starts[system]) as u32)))
    }
}

/// Batches in the order asked for. Another thread prepares the next ones meanwhile, and ends when this is dropped.
#[derive(Debug)]
pub struct Batches {
    desk: Arc<Desk>,
    worker: Option<JoinHandle<()>>,
    /// What was made ahead is kept until this is dropped, so it counts as long.
    stream: Stream,
}

impl Batches {
    /// The next batch, or nothing after the last.
    ///
    /// # Errors
    /// A neighbour list cannot be made, or the batch would be too large.
    #[expect(clippy::should_implement_trait, reason = "an iterator of results would make `?` awkward for its callers")]
    pub fn next(&mut self) -> Result<Option<BatchData>, DataError> {
        let start = Instant::now();
        let batch = self.desk.take().transpose();
        self.stream.waited(start.elapsed());
        batch
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.desk.stop();
        if let Some(worker) = self.worker.take() {
            // It cannot panic, and if it did there would be nobody left to tell.
            let _ = worker.join();
        }
    }
}

/// Where the thread that prepares batches meets the one that asks for them.
#[derive(Debug, Default)]
struct Desk {
    state: Mutex<DeskState>,
    changed: Condvar,
    /// For the searches of neighbours, which look up more often than a lock allows.
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
struct DeskState {
    ready: VecDeque<Result<BatchData, DataError>>,
    /// How many batches have been asked for, and how many were laid here.
    asked: usize,
    made: usize,
    is_over: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, DeskState>) -> MutexGuard<'a, DeskState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch, once it is ready; none after the last.
    fn take(&self) -> Option<Result<BatchData, DataError>> {
        let mut state = self.lock();
        state.asked += 1;
        self.changed.notify_all();
        loop {
            if let Some(batch) = state.ready.pop_front() {
                return Some(batch);
            }
            if state.is_over {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Waits until a batch of this many bytes may be made; false if nobody wants it any more. Small ones are made ahead, large ones when they are
    /// asked for: who opens many streams of batches and reads none of them fills no memory.
    fn is_wanted(&self, bytes: u64) -> bool {
        let ahead = if bytes > LARGE_BATCH { 0 } else { AHEAD };
        let mut state = self.lock();
        while !self.is_stopped() && state.made >= state.asked + ahead {
            state = self.wait(state);
        }
        !self.is_stopped()
    }

    fn put(&self, batch: Result<BatchData, DataError>) {
        let mut state = self.lock();
        state.made += 1;
        state.ready.push_back(batch);
        self.changed.notify_all();
    }

    fn stop(&self) {
        // Under the lock, so that nobody decides to wait just before.
        let _state = self.lock();
        self.stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// Says at the desk that no more batches will come, when it is dropped.
struct Finish<'a>(&'a Desk);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_all();
    }
}

impl Dataset {
    /// Batches, each a list of indices into this set.
    ///
    /// # Errors
    /// An index or a name that the set does not have; a batch that is too large; too many lists, or too many of these streams at one time; no thread can be
    /// started.
    pub fn batches(&self, batches: Vec<Vec<u32>>, options: BatchOptions) -> Result<Batches, DataError> {
        let requests = options.neighbor_lists.len();
        if requests > MOST_LISTS {
            return Err(DataError::new(format!(
                "{requests} neighbour lists were asked for in one batch, at most {MOST_LISTS} are prepared"
            )));
        }
        let names = options.targets.len() + options.extra_data.len();
        if names > MOST_TARGETS {
            return Err(DataError::new(format!(
                "{names} targets were asked for in one batch, at most {MOST_TARGETS} are read"
            )));
        }
        let targets = self.targets(&options)?;
        let mut wanted = Vec::with_capacity(batches.len());
        for (place, batch) in batches.into_iter().enumerate() {
            let stored = batch.iter().map(|&index| self.stored(index)).collect::<Result<Vec<u32>, _>>()?;
            let bytes = self.bytes_of(&stored, &targets);
            if bytes > LARGEST_BATCH {
                return Err(DataError::new(format!(
                    "batch {place} has {} systems, which need {bytes} bytes with their targets, more than {LARGEST_BATCH}",
                    stored.len()
                ))
                .with_hint("make batches smaller"));
            }
            wanted.push((stored, bytes));
        }
        let stream = self.open_stream()?;
        let dataset = self.clone();
        let desk = Arc::new(Desk::default());
        let worker = {
            let desk = desk.clone();
            std::thread::Builder::new().name("batches".to_owned()).spawn(move || {
                // Dropped however this ends, so that nobody waits for a batch that will not come.
                let _finish = Finish(&desk);
                for (stored, bytes) in wanted {
                    // Nobody wants it any more, or did not while it was made.
                    if !desk.is_wanted(bytes) {
                        break;
                    }
                    let batch = dataset.collate(&stored, &options, bytes, &desk);
                    if desk.is_stopped() {
                        break;
                    }
                    desk.put(batch);
                }
            })
        }
        .map_err(|error| DataError::new(format!("a thread for batches cannot be started: {error}")))?;
        Ok(Batches { desk, worker: Some(worker), stream })
    }

    fn targets(&self, options: &BatchOptions) -> Result<Vec<&TargetData>, DataError> {
        options.targets.iter().chain(&options.extra_data).map(|name| self.find(name)).collect()
    }

    /// The size of a batch of stored structures without its neighbour lists; at least what it will be.
    fn bytes_of(&self, stored: &[u32], targets: &[&TargetData]) -> u64 {
        /// A position, a type, the number of the system.
        const OF_ATOM: u64 = 24 + 4 + 8;
        /// A cell, its periodicity, the number of atoms.
        const OF_SYSTEM: u64 = 72 + 3 + 4;
        let mut bytes = 0_u64;
        for &index in stored {
            let atoms = u64::from(self.atom_count(index));
            let of_targets: u64 = targets.iter().map(|target| target.bytes_of(atoms)).sum();
            bytes = bytes.saturating_add(OF_SYSTEM + OF_ATOM * atoms + of_targets);
        }
        bytes
    }

    fn collate(
        &self,
        stored: &[u32],
        options: &BatchOptions,
        mut bytes: u64,
        desk: &Desk,
    ) -> Result<BatchData, DataError> {
        let mut systems = SystemsData::with_capacity(stored.len(), options.neighbor_lists.len());
        stored.iter().for_each(|&index| systems.push(self.stored_view(index)));
        let mut left = MOST_PAIRS;
        for request in &options.neighbor_lists {
            let mut lists = Vec::with_capacity(stored.len());
            for some in stored.chunks(LISTS_AT_ONCE) {
                let find = |&index: &u32| self.neighbor_list(index, request, &desk.stopped);
                // Collected with their errors, so that the first one is told, whichever was found first.
                for list in side_by_side(|| some.par_iter().map(find).collect::<Vec<_>>()) {
                    let list = list?;
                    left = left.checked_sub(list.len()).ok_or_else(|| too_many(request.cutoff))?;
                    bytes += PairList::BYTES_OF_PAIR * list.len() as u64;
                    lists.push(list);
                }
                if bytes > LARGE_BATCH && !desk.is_wanted(bytes) {
                    return Err(DataError::new("nobody waits for this batch any more"));
                }
            }
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
