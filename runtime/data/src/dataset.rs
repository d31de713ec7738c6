//! Datasets: structures and targets in flat arrays, read once and shared.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::neighbor_list::{Geometry, MOST_PAIRS, PairList, neighbor_list_within, spanning_cell};
use crate::target::{Files, TargetData, TargetSource};
use crate::types::{DatasetInfo, NeighborListOptions, SampleKind, TensorMap};
use crate::{DataError, units};

/// Where systems are read from.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemsSource {
    /// The file.
    pub read_from: PathBuf,
    /// Which reader: only `ase`, for extended XYZ, is known so far.
    pub reader: Option<String>,
    /// The unit of positions and cells; may be empty.
    pub length_unit: String,
}

/// Where a dataset is read from.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSource {
    /// The systems.
    pub systems: SystemsSource,
    /// What is to be learned.
    pub targets: Vec<TargetSource>,
    /// Further data.
    pub extra_data: Vec<TargetSource>,
}

/// One structure of a dataset.
#[derive(Clone, Copy, Debug)]
pub struct StructureView<'a> {
    /// Atomic numbers.
    pub types: &'a [i32],
    /// Three numbers for each atom.
    pub positions: &'a [f64],
    /// Rows are cell vectors; those of directions that are not periodic are as in the file.
    pub cell: &'a [f64; 9],
    /// Along which of them it repeats.
    pub periodic: [bool; 3],
}

/// The mean and the standard deviation of a target over a set.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetStatistics {
    /// The target.
    pub name: String,
    /// Of its values, or of `forces` or `stress times volume`.
    pub of: &'static str,
    /// The mean.
    pub mean: f64,
    /// The standard deviation, without correction.
    pub standard_deviation: f64,
}

/// The most pairs of all lists that are kept, 2.7 GB. Lists beyond are made whenever they are needed, which takes time, but no memory.
const MOST_KEPT_PAIRS: usize = 1 << 27;
/// The most different requests whose lists are kept; an architecture has one or two.
const MOST_KEPT_REQUESTS: usize = 8;
/// The most streams of batches at one time; a trainer reads from one or two.
const MOST_STREAMS: usize = 16;

/// The neighbour lists of all structures for one request, made when first needed.
type Lists = Arc<Vec<OnceLock<Result<Arc<PairList>, DataError>>>>;

/// Neighbour lists that are kept from one epoch to the next.
#[derive(Debug, Default)]
struct ListCache {
    requests: Mutex<Vec<(NeighborListOptions, Lists)>>,
    /// The pairs of all lists that are kept.
    pairs: AtomicUsize,
}

/// One of the streams of batches that a dataset may have at one time.
#[derive(Debug)]
pub(crate) struct Stream(Arc<Storage>);

impl Stream {
    /// Somebody asked for a batch and had it after so long.
    pub(crate) fn waited(&self, time: Duration) {
        self.0.waited_nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Storage {
    path: PathBuf,
    /// The first atom of each structure, and the number of all atoms.
    offsets: Vec<usize>,
    types: Vec<i32>,
    positions: Vec<f64>,
    cells: Vec<[f64; 9]>,
    periodic: Vec<[bool; 3]>,
    targets: Vec<TargetData>,
    extra_data: Vec<TargetData>,
    neighbor_lists: ListCache,
    /// The streams of batches that are open.
    streams: AtomicUsize,
    /// How long those who asked for batches have waited.
    waited_nanoseconds: AtomicU64,
}

/// A selection of the systems of a file, with their targets. Cheap to clone: the data is shared.
#[derive(Clone, Debug)]
pub struct Dataset {
    storage: Arc<Storage>,
    indices: Arc<Vec<u32>>,
    info: Arc<DatasetInfo>,
}

impl Dataset {
    /// Reads systems and targets.
    ///
    /// # Errors
    /// A file cannot be read, breaks its format, or lacks what is asked for; always with file and frame.
    pub fn read(source: &DatasetSource) -> Result<Self, DataError> {
        let mut files = Files::default();
        let path = source.systems.read_from.clone();
        let frames = files.frames(&path, source.systems.reader.as_deref())?;
        let mut read = |sources: &[TargetSource]| {
            sources
                .iter()
                .map(|target| TargetData::read(target, &mut files, &frames, &path))
                .collect::<Result<Vec<_>, _>>()
        };
        let (targets, extra_data) = (read(&source.targets)?, read(&source.extra_data)?);
        let mut offsets = vec![0];
        let mut storage = Storage {
            path,
            offsets: Vec::new(),
            types: Vec::new(),
            positions: Vec::new(),
            cells: Vec::with_capacity(frames.len()),
            periodic: Vec::with_capacity(frames.len()),
            targets,
            extra_data,
            neighbor_lists: ListCache::default(),
            streams: AtomicUsize::new(0),
            waited_nanoseconds: AtomicU64::new(0),
        };
        for (index, frame) in frames.iter().enumerate() {
            // What no neighbour list could be made for is refused before a run begins.
            let geometry = Geometry { positions: &frame.positions, cell: &frame.cell, periodic: frame.periodic };
            check_geometry(geometry).map_err(|error| error.of_frame(&storage.path, index))?;
            storage.types.extend(&frame.types);
            storage.positions.extend(&frame.positions);
            storage.cells.push(frame.cell);
            storage.periodic.push(frame.periodic);
            offsets.push(storage.types.len());
        }
        storage.offsets = offsets;
        let mut atomic_types = storage.types.clone();
        atomic_types.sort_unstable();
        atomic_types.dedup();
        let named = |data: &[TargetData]| data.iter().map(|data| data.target.clone()).collect();
        let info = DatasetInfo {
            length_unit: source.systems.length_unit.clone(),
            atomic_types,
            targets: named(&storage.targets),
            extra_data: named(&storage.extra_data),
        };
        let indices = (0..frames.len() as u32).collect();
        Ok(Self { storage: Arc::new(storage), indices: Arc::new(indices), info: Arc::new(info) })
    }

    /// The number of systems.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// The number of atoms of each system.
    pub fn atom_counts(&self) -> Vec<u32> {
        self.indices.iter().map(|&index| self.atom_count(index)).collect()
    }

    pub(crate) fn atom_count(&self, index: u32) -> u32 {
        let offsets = &self.storage.offsets;
        (offsets[index as usize + 1] - offsets[index as usize]) as u32
    }

    /// What is known of the file's systems and targets, or of the whole run.
    pub fn info(&self) -> &DatasetInfo {
        &self.info
    }

    /// The same systems, described by `info`.
    pub fn with_info(&self, info: DatasetInfo) -> Self {
        Self { info: Arc::new(info), ..self.clone() }
    }

    /// Some of its systems, in this order.
    ///
    /// # Errors
    /// An index is beyond the last system.
    pub fn select(&self, indices: &[usize]) -> Result<Self, DataError> {
        let selected = indices.iter().map(|&index| self.stored(index)).collect::<Result<Vec<u32>, _>>()?;
        Ok(Self { indices: Arc::new(selected), ..self.clone() })
    }

    /// The position in the file of each of its systems.
    pub fn positions_in_file(&self) -> &[u32] {
        &self.indices
    }

    /// One structure; none beyond the last.
    pub fn structure(&self, index: usize) -> Option<StructureView<'_>> {
        self.indices.get(index).map(|&index| self.view(index))
    }

    fn view(&self, index: u32) -> StructureView<'_> {
        let storage = &*self.storage;
        let index = index as usize;
        let atoms = storage.offsets[index]..storage.offsets[index + 1];
        StructureView {
            types: &storage.types[atoms.clone()],
            positions: &storage.positions[3 * atoms.start..3 * atoms.end],
            cell: &storage.cells[index],
            periodic: storage.periodic[index],
        }
    }

    /// A target, or extra data, of these systems.
    ///
    /// # Errors
    /// There is none of this name, or an index is beyond the last system.
    pub fn target(&self, name: &str, indices: &[usize]) -> Result<TensorMap, DataError> {
        let selected = self.select(indices)?;
        Ok(self.find(name)?.blocks(&selected.indices, &self.storage.offsets))
    }

    pub(crate) fn find(&self, name: &str) -> Result<&TargetData, DataError> {
        let storage = &self.storage;
        let mut known = storage.targets.iter().chain(&storage.extra_data);
        known
            .find(|data| data.target.name == name)
            .ok_or_else(|| DataError::new(format!("`{}` has no target `{name}`", storage.path.display())))
    }

    /// A system's position in storage.
    pub(crate) fn stored(&self, index: impl TryInto<usize> + std::fmt::Display + Copy) -> Result<u32, DataError> {
        let stored = index.try_into().ok().and_then(|index| self.indices.get(index)).copied();
        stored.ok_or_else(|| {
            DataError::new(format!(
                "system {index} of `{}` was asked for, but it has {} systems, counted from 0",
                self.storage.path.display(),
                self.len()
            ))
        })
    }

    /// How long those who asked for batches of this file have waited for them, all together. Batches are prepared ahead, so it should be next to nothing.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.storage.waited_nanoseconds.load(Ordering::Relaxed))
    }

    /// Counts one more stream of batches, until it is dropped.
    pub(crate) fn open_stream(&self) -> Result<Stream, DataError> {
        let before = self.storage.streams.fetch_add(1, Ordering::Relaxed);
        let stream = Stream(self.storage.clone());
        if before < MOST_STREAMS {
            return Ok(stream);
        }
        Err(DataError::new(format!(
            "`{}` is read in {MOST_STREAMS} streams of batches at one time, and no more are opened",
            self.storage.path.display()
        )))
    }

    pub(crate) fn stored_view(&self, index: u32) -> StructureView<'_> {
        self.view(index)
    }

    pub(crate) fn offsets(&self) -> &[usize] {
        &self.storage.offsets
    }

    /// The neighbour list of one stored structure: made once and kept for all epochs, as far as memory allows. Once `stopped` is true, an error that
    /// nobody will read.
    pub(crate) fn neighbor_list(
        &self,
        index: u32,
        options: &NeighborListOptions,
        stopped: &AtomicBool,
    ) -> Result<Arc<PairList>, DataError> {
        let lists = self.lists(options);
        let place = lists.as_ref().map(|lists| &lists[index as usize]);
        if let Some(list) = place.and_then(OnceLock::get) {
            return list.clone();
        }
        let view = self.view(index);
        let geometry = Geometry { positions: view.positions, cell: view.cell, periodic: view.periodic };
        let list = neighbor_list_within(geometry, options, MOST_PAIRS, stopped)
            .map(Arc::new)
            .map_err(|error| error.of_frame(&self.storage.path, index as usize));
        if let Some(place) = place.filter(|_| !stopped.load(Ordering::Relaxed)) {
            let (pairs, kept) = (list.as_ref().map_or(0, |list| list.len()), &self.storage.neighbor_lists.pairs);
            // Another thread may have been faster, or the memory for lists be used up: then this one is not kept.
            let fits = kept.fetch_add(pairs, Ordering::Relaxed) + pairs <= MOST_KEPT_PAIRS;
            if !fits || place.set(list.clone()).is_err() {
                kept.fetch_sub(pairs, Ordering::Relaxed);
            }
        }
        list
    }

    /// Where lists of this request are kept; none if those of too many others are.
    fn lists(&self, options: &NeighborListOptions) -> Option<Lists> {
        let mut requests = self.storage.neighbor_lists.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, lists)) = requests.iter().find(|(known, _)| known == options) {
            return Some(lists.clone());
        }
        if requests.len() == MOST_KEPT_REQUESTS {
            return None;
        }
        let lists: Lists = Arc::new(self.storage.cells.iter().map(|_| OnceLock::new()).collect());
        requests.push((*options, lists.clone()));
        Some(lists)
    }

    /// Mean and standard deviation of each target and its gradients.
    pub fn statistics(&self) -> Vec<TargetStatistics> {
        let mut statistics = Vec::new();
        for data in &self.storage.targets {
            let map = data.blocks(&self.indices, &self.storage.offsets);
            let values = map.blocks.iter().flat_map(|block| block.values.iter().copied());
            statistics.push(describe(&data.target.name, "values", values));
            for gradient in map.blocks.iter().flat_map(|block| &block.gradients) {
                let (of, sign) =
                    if gradient.parameter == "positions" { ("forces", -1.0) } else { ("strain derivative", 1.0) };
                statistics.push(describe(&data.target.name, of, gradient.values.iter().map(|value| sign * value)));
            }
        }
        statistics
    }

    /// What looks wrong, though it may be right.
    pub fn warnings(&self) -> Vec<String> {
        let unit = &self.info.length_unit;
        let file = self.storage.path.display();
        let mut warnings = Vec::new();
        match units::length_in_angstrom(unit) {
            None if !unit.is_empty() => {
                warnings.push(format!("the length unit `{unit}` of `{file}` is not one that is known"))
            }
            Some(angstrom) => warnings.extend(self.implausible_distance(angstrom)),
            None => {}
        }
        for target in self.info.targets.iter().filter(|target| target.info.quantity == "energy") {
            if !target.info.unit.is_empty() && units::energy_in_electronvolt(&target.info.unit).is_none() {
                warnings.push(format!(
                    "the unit `{}` of the target `{}` is not an energy that is known",
                    target.info.unit, target.name
                ));
            }
            if target.info.sample_kind == SampleKind::System && target.info.gradients.is_empty() {
                warnings.push(format!(
                    "the target `{}` has no forces in `{file}`: it is trained on energies only",
                    target.name
                ));
            }
        }
        warnings
    }

    /// Compares the closest pair of the first structures with what chemistry allows.
    fn implausible_distance(&self, angstrom: f64) -> Option<String> {
        /// Structures that are looked at.
        const SAMPLE: usize = 10;
        /// No two atoms are closer: the bond of H2 is 0.74 angstrom.
        const CLOSEST: f64 = 0.4;
        /// In any molecule or solid some two atoms are closer.
        const FARTHEST: f64 = 5.0;
        /// Structures with more pairs than this are not worth the time for a warning.
        const MOST: usize = 1 << 20;
        let options = NeighborListOptions { cutoff: FARTHEST / angstrom, full_list: false, strict: true };
        let mut closest = f64::INFINITY;
        let mut has_pairs = false;
        for index in self.indices.iter().take(SAMPLE) {
            let view = self.view(*index);
            has_pairs |= view.types.len() > 1;
            let geometry = Geometry { positions: view.positions, cell: view.cell, periodic: view.periodic };
            let pairs = neighbor_list_within(geometry, &options, MOST, &AtomicBool::new(false)).ok()?;
            for (pair, shift) in pairs.atoms.iter().zip(&pairs.shifts) {
                let squared: f64 = (0..3)
                    .map(|axis| {
                        let offset: f64 = (0..3).map(|row| f64::from(shift[row]) * view.cell[3 * row + axis]).sum();
                        let difference =
                            view.positions[3 * pair[1] as usize + axis] - view.positions[3 * pair[0] as usize + axis];
                        (difference + offset).powi(2)
                    })
                    .sum();
                closest = closest.min(squared.sqrt() * angstrom);
            }
        }
        let (file, unit) = (self.storage.path.display(), &self.info.length_unit);
        if closest < CLOSEST {
            return Some(format!(
                "two atoms of `{file}` are {closest:.2} angstrom apart if its lengths are in `{unit}`: is the unit right?"
            ));
        }
        (has_pairs && closest.is_infinite())
            .then(|| format!("no two atoms of `{file}` are closer than {FARTHEST} angstrom if its lengths are in `{unit}`: is the unit right?"))
    }
}

impl StructureView<'_> {
    /// Refuses what no neighbour list could be made for.
    pub(crate) fn check(&self) -> Result<(), DataError> {
        let Self { types, positions, cell, periodic } = *self;
        if types.is_empty() || positions.len() != 3 * types.len() {
            return Err(DataError::new(format!(
                "it has {} atoms and {} coordinates, expected at least one atom and three for each",
                types.len(),
                positions.len()
            )));
        }
        if !positions.iter().all(|value| value.is_finite()) {
            return Err(DataError::new("a position is not a finite number"));
        }
        check_geometry(Geometry { positions, cell, periodic })
    }
}

/// Refuses a geometry that neighbours cannot be found in.
fn check_geometry(geometry: Geometry<'_>) -> Result<(), DataError> {
    check_size(geometry)?;
    spanning_cell(geometry).map(|_| ())
}

/// Refuses coordinates that are too large to tell neighbours apart, in whatever unit.
fn check_size(geometry: Geometry<'_>) -> Result<(), DataError> {
    /// At this distance neighbouring double precision numbers are 1e-7 apart.
    const LARGEST: f64 = 1e9;
    match geometry.positions.iter().chain(geometry.cell).find(|value| value.abs() > LARGEST) {
        None => Ok(()),
        Some(value) => Err(DataError::new(format!(
            "it has a coordinate or a cell vector of {value:e}, expected numbers of at most {LARGEST:e}"
        ))),
    }
}

fn describe(name: &str, of: &'static str, values: impl Iterator<Item = f64> + Clone) -> TargetStatistics {
    let known = values.filter(|value| !value.is_nan());
    let count = known.clone().count().max(1) as f64;
    let mean = known.clone().sum::<f64>() / count;
    let variance = known.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    TargetStatistics { name: name.to_owned(), of, mean, standard_deviation: variance.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_a_few_requests_are_kept_and_those_of_others_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.xyz");
        std::fs::write(&path, "2\n\nH 0 0 0\nH 0 0 1\n").unwrap();
        let systems = SystemsSource { read_from: path, reader: None, length_unit: String::new() };
        let source = DatasetSource { systems, targets: Vec::new(), extra_data: Vec::new() };
        let dataset = Dataset::read(&source).unwrap();
        let list = |request: usize| {
            let options = NeighborListOptions { cutoff: 2.0 + request as f64 / 1e3, full_list: true, strict: true };
            dataset.neighbor_list(0, &options, &AtomicBool::new(false)).unwrap()
        };
        for request in (0..100).chain(0..100) {
            assert_eq!(list(request).len(), 2);
        }
        assert!(Arc::ptr_eq(&list(7), &list(7)) && !Arc::ptr_eq(&list(8), &list(8)));
        let cache = &dataset.storage.neighbor_lists;
        assert_eq!(cache.pairs.load(Ordering::Relaxed), 2 * MOST_KEPT_REQUESTS);
        // When memory is used up, a list is made and not kept.
        cache.pairs.store(MOST_KEPT_PAIRS, Ordering::Relaxed);
        cache.requests.lock().unwrap().clear();
        assert!(!Arc::ptr_eq(&list(0), &list(0)));
        assert_eq!(cache.pairs.load(Ordering::Relaxed), MOST_KEPT_PAIRS);
    }
}
