//! Systems, batches and targets as tensors on the run's device.

use std::cell::RefCell;
use std::sync::Arc;

use kilnbox_data::{
    BatchData, BatchOptions as PlainBatchOptions, DataError, DatasetInfo, Labels, NeighborListOptions, SystemsData,
};
use kilnbox_tensor::op::{self, elementwise, index, segment};
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};

/// Why data cannot be had; mirrors `data.data-error` of the contract.
#[derive(Clone, Debug, PartialEq)]
pub enum Unavailable {
    /// A system has an element that was not asked for: its atomic number.
    UnknownType(i32),
    /// There is no such target or extra data.
    Missing(String),
    /// Anything else, in words.
    Other(String),
}

impl From<DataError> for Unavailable {
    fn from(error: DataError) -> Self {
        Self::Other(error.to_string())
    }
}

/// The result of something that data may lack; the outer error is a misuse.
pub type Available<T> = Result<Result<T, Unavailable>, Misuse>;

/// Gradients of a block, as tensors.
#[derive(Clone, Debug)]
pub struct GradientBlock {
    /// With respect to what.
    pub parameter: String,
    /// `[samples, .. own components, .. components of the block, properties]`.
    pub values: Tensor,
    /// `sample` and, for positions, `system`, `atom`.
    pub samples: Labels,
    /// Own axes first.
    pub components: Vec<Labels>,
}

/// Values with a name for every row, component and property.
#[derive(Clone, Debug)]
pub struct TensorBlock {
    /// `[samples, .. components, properties]`.
    pub values: Tensor,
    /// One entry for each row.
    pub samples: Labels,
    /// One for each axis between the first and the last.
    pub components: Vec<Labels>,
    /// One entry for each property.
    pub properties: Labels,
    /// Explicit gradients.
    pub gradients: Vec<GradientBlock>,
}

/// Blocks by key.
#[derive(Clone, Debug)]
pub struct TensorMap {
    /// One entry for each block.
    pub keys: Labels,
    /// In the order of the keys.
    pub blocks: Vec<TensorBlock>,
}

/// The pairs of all systems of a batch; see `data.neighbors` of the contract.
#[derive(Clone, Debug)]
pub struct Neighbors {
    /// The first atom of each pair, int64 `[pairs]`.
    pub first: Tensor,
    /// The second atom, int64 `[pairs]`.
    pub second: Tensor,
    /// Cell shifts, int64 `[pairs, 3]`.
    pub shifts: Tensor,
    /// `[pairs, 3]`, differentiable.
    pub vectors: Tensor,
}

/// What a batch should hold.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// The floating-point dtype of positions and cells.
    pub dtype: DType,
    /// Neighbour lists to prepare.
    pub neighbor_lists: Vec<NeighborListOptions>,
    /// Targets to read.
    pub targets: Vec<String>,
    /// Extra data to read.
    pub extra_data: Vec<String>,
}

/// Several systems as one disconnected graph.
#[derive(Clone, Debug)]
pub struct Systems {
    /// As they were read: what neighbour lists are made of.
    plain: Arc<SystemsData>,
    /// Where [`Systems::transform`] has brought them, if it has.
    transformed: Option<Arc<Coordinates>>,
    extra_data: Arc<Vec<(String, kilnbox_data::TensorMap)>>,
    device: Device,
    dtype: DType,
    positions: Tensor,
    cells: Tensor,
    system_indices: Tensor,
    /// Lists that were asked for: the second asker gets the same tensors, so that gradients meet.
    neighbors: RefCell<Vec<(NeighborListOptions, Neighbors)>>,
    tracked: bool,
}

/// Positions and cells in double precision, laid out as in [`SystemsData`].
#[derive(Clone, Debug)]
struct Coordinates {
    positions: Vec<f64>,
    cells: Vec<f64>,
}

/// Systems with leaves to differentiate by.
#[derive(Clone, Debug)]
pub struct TrackedSystems {
    /// The systems that depend on them.
    pub systems: Systems,
    /// The leaf of the positions.
    pub positions: Option<Tensor>,
    /// The leaf of the strain.
    pub strain: Option<Tensor>,
}

impl Systems {
    /// Puts plain systems on a device.
    ///
    /// # Errors
    /// The quota is exceeded.
    pub fn new(
        plain: SystemsData,
        extra_data: Vec<(String, kilnbox_data::TensorMap)>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self, Misuse> {
        let (atoms, systems) = (plain.types.len(), plain.atom_counts.len());
        Ok(Self {
            positions: Tensor::from_float64(device, &[atoms, 3], &plain.positions, dtype)?,
            cells: Tensor::from_float64(device, &[systems, 3, 3], &plain.cells, dtype)?,
            system_indices: Tensor::from_int64(device, &[atoms], &plain.system_indices)?,
            plain: Arc::new(plain),
            transformed: None,
            extra_data: Arc::new(extra_data),
            device: device.clone(),
            dtype,
            neighbors: RefCell::default(),
            tracked: false,
        })
    }

    /// The number of atoms of each system.
    pub fn atom_counts(&self) -> &[u32] {
        &self.plain.atom_counts
    }

    /// `[atoms, 3]`.
    pub fn positions(&self) -> Tensor {
        self.positions.clone()
    }

    /// `[systems, 3, 3]`, rows are cell vectors.
    pub fn cells(&self) -> Tensor {
        self.cells.clone()
    }

    /// Boolean `[systems, 3]`.
    ///
    /// # Errors
    /// The quota is exceeded.
    pub fn periodic(&self) -> Result<Tensor, Misuse> {
        Tensor::from_boolean(&self.device, &[self.plain.atom_counts.len(), 3], &self.plain.periodic)
    }

    /// Atomic numbers, int32 `[atoms]`.
    ///
    /// # Errors
    /// The quota is exceeded.
    pub fn types(&self) -> Result<Tensor, Misuse> {
        Tensor::from_int32(&self.device, &[self.plain.types.len()], &self.plain.types)
    }

    /// The system of each atom, int64 `[atoms]`.
    pub fn system_indices(&self) -> Tensor {
        self.system_indices.clone()
    }

    /// The position of each atom's type in `atomic_types`, int64 `[atoms]`.
    ///
    /// # Errors
    /// The quota is exceeded; within, an unknown type.
    pub fn type_indices(&self, atomic_types: &[i32]) -> Available<Tensor> {
        let mut indices = Vec::with_capacity(self.plain.types.len());
        for &atomic_type in &self.plain.types {
            match atomic_types.iter().position(|&known| known == atomic_type) {
                Some(position) => indices.push(position as i64),
                None => return Ok(Err(Unavailable::UnknownType(atomic_type))),
            }
        }
        Tensor::from_int64(&self.device, &[indices.len()], &indices).map(Ok)
    }

    /// The neighbour list with these options: vectors follow positions and cells where these are tracked.
    ///
    /// # Errors
    /// The quota is exceeded; within, options that make no sense.
    pub fn neighbors(&self, options: &NeighborListOptions) -> Available<Neighbors> {
        if let Some((_, neighbors)) = self.neighbors.borrow().iter().find(|(known, _)| known == options) {
            return Ok(Ok(neighbors.clone()));
        }
        let pairs = match self.plain.neighbors(options) {
            Ok(pairs) => pairs,
            Err(error) => return Ok(Err(error.into())),
        };
        let count = pairs.first.len();
        let first = Tensor::from_int64(&self.device, &[count], &pairs.first)?;
        let second = Tensor::from_int64(&self.device, &[count], &pairs.second)?;
        let shifts = Tensor::from_int64(&self.device, &[count, 3], &pairs.shifts)?;
        let vectors = if self.tracked {
            let difference = elementwise::subtract(
                &index::select(&self.positions, 0, &second)?,
                &index::select(&self.positions, 0, &first)?,
            )?;
            if pairs.shifts.iter().all(|&shift| shift == 0) {
                difference
            } else {
                let systems = Tensor::from_int64(&self.device, &[count], &pairs.systems)?;
                let offset = segment::contract_left(&op::cast(&shifts, self.dtype)?, &self.cells, &systems)?;
                elementwise::add(&difference, &offset)?
            }
        } else {
            let (positions, cells) = self.coordinates();
            Tensor::from_float64(&self.device, &[count, 3], &plain_vectors(positions, cells, &pairs), self.dtype)?
        };
        let neighbors = Neighbors { first, second, shifts, vectors };
        self.neighbors.borrow_mut().push((*options, neighbors.clone()));
        Ok(Ok(neighbors))
    }

    /// For each pair of the neighbour list with these options the place of the pair in the other direction, int64 `[pairs]`.
    ///
    /// # Errors
    /// The quota is exceeded; within, options that make no sense, or a list that is not full.
    pub fn reverse_pairs(&self, options: &NeighborListOptions) -> Available<Tensor> {
        match self.plain.neighbors(options).map(|pairs| pairs.reverse()) {
            Err(error) => Ok(Err(error.into())),
            Ok(None) => {
                Ok(Err(Unavailable::Other("a half neighbour list has no reverse pairs: ask for a full one".to_owned())))
            }
            Ok(Some(places)) => Tensor::from_int64(&self.device, &[places.len()], &places).map(Ok),
        }
    }

    /// Named data that came with the systems.
    ///
    /// # Errors
    /// The quota is exceeded; within, there is none of this name.
    pub fn data(&self, name: &str) -> Available<TensorMap> {
        match self.extra_data.iter().find(|(known, _)| known == name) {
            Some((_, map)) => on_device(map, &self.device).map(Ok),
            None => Ok(Err(Unavailable::Missing(name.to_owned()))),
        }
    }

    /// The same systems with leaves to differentiate by: positions are `leaf . strain`, cells `cell . strain`.
    ///
    /// # Errors
    /// The quota is exceeded.
    pub fn track(&self, positions: bool, strain: bool) -> Result<TrackedSystems, Misuse> {
        let leaf = if positions { Some(autodiff::track(&self.positions)?) } else { None };
        let mut systems =
            Self { neighbors: RefCell::default(), tracked: self.tracked || positions || strain, ..self.clone() };
        if let Some(leaf) = &leaf {
            systems.positions = leaf.clone();
        }
        let strain = if strain { Some(self.identity_strain()?) } else { None };
        if let Some(strain) = &strain {
            systems.positions = segment::contract_left(&systems.positions, strain, &self.system_indices)?;
            systems.cells = op::linalg::matmul(&self.cells, strain)?;
        }
        Ok(TrackedSystems { systems, positions: leaf, strain })
    }

    /// The same systems turned: positions are `r . matrices[system]`, cells `cell . matrices[system]`. Neighbour lists keep the pairs of the systems as
    /// they were read.
    ///
    /// # Errors
    /// `matrices` is not `[systems, 3, 3]` of the systems' dtype; the quota is exceeded.
    pub fn transform(&self, matrices: &Tensor) -> Result<Self, Misuse> {
        const NAME: &str = "data.systems.transform";
        let (atoms, systems) = (self.plain.types.len(), self.plain.atom_counts.len());
        if matrices.shape() != [systems, 3, 3] || matrices.dtype() != self.dtype {
            return Err(Misuse::new(
                NAME,
                format!(
                    "the matrices are {} {:?}, expected {} {:?}",
                    matrices.dtype(),
                    matrices.shape(),
                    self.dtype,
                    [systems, 3, 3]
                ),
            ));
        }
        let same = Self { neighbors: RefCell::default(), ..self.clone() };
        if self.tracked || matrices.is_tracked() {
            return Ok(Self {
                positions: segment::contract_left(&self.positions, matrices, &self.system_indices)?,
                cells: op::linalg::matmul(&self.cells, matrices)?,
                tracked: true,
                ..same
            });
        }
        // From what was read, so that vectors of pairs are as precise as they were.
        let matrices = matrices.read_float64()?;
        let (positions, cells) = self.coordinates();
        let system_of_atom = self.plain.system_indices.iter().map(|&system| system as usize);
        let transformed = Coordinates {
            positions: turned(positions, system_of_atom, &matrices),
            cells: turned(cells, (0..3 * systems).map(|row| row / 3), &matrices),
        };
        Ok(Self {
            positions: Tensor::from_float64(&self.device, &[atoms, 3], &transformed.positions, self.dtype)?,
            cells: Tensor::from_float64(&self.device, &[systems, 3, 3], &transformed.cells, self.dtype)?,
            transformed: Some(Arc::new(transformed)),
            ..same
        })
    }

    /// Positions and cells as they are, unless something is tracked.
    fn coordinates(&self) -> (&[f64], &[f64]) {
        match &self.transformed {
            Some(transformed) => (&transformed.positions, &transformed.cells),
            None => (&self.plain.positions, &self.plain.cells),
        }
    }

    fn identity_strain(&self) -> Result<Tensor, Misuse> {
        let count = self.plain.atom_counts.len();
        let identities = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0].repeat(count);
        autodiff::track(&Tensor::from_float64(&self.device, &[count, 3, 3], &identities, self.dtype)?)
    }
}

/// Every row of three times the matrix of its system, nine numbers each.
fn turned(rows: &[f64], systems: impl Iterator<Item = usize>, matrices: &[f64]) -> Vec<f64> {
    let times = |(row, system): (&[f64], usize)| {
        let matrix = &matrices[9 * system..][..9];
        std::array::from_fn::<f64, 3, _>(|axis| (0..3).map(|k| row[k] * matrix[3 * k + axis]).sum())
    };
    rows.chunks_exact(3).zip(systems).flat_map(times).collect()
}

/// `r_second - r_first + shift . cell` of every pair, in double precision whatever the run's dtype: differences of large coordinates lose digits.
fn plain_vectors(positions: &[f64], cells: &[f64], pairs: &kilnbox_data::Pairs) -> Vec<f64> {
    let mut vectors = Vec::with_capacity(3 * pairs.first.len());
    for pair in 0..pairs.first.len() {
        let (first, second) = (pairs.first[pair] as usize, pairs.second[pair] as usize);
        let cell = &cells[9 * pairs.systems[pair] as usize..][..9];
        let shift = &pairs.shifts[3 * pair..][..3];
        vectors.extend((0..3).map(|axis| {
            let offset: f64 = (0..3).map(|row| shift[row] as f64 * cell[3 * row + axis]).sum();
            positions[3 * second + axis] - positions[3 * first + axis] + offset
        }));
    }
    vectors
}

/// Puts a plain tensor map on a device, in double precision.
///
/// # Errors
/// The quota is exceeded.
pub fn on_device(map: &kilnbox_data::TensorMap, device: &Device) -> Result<TensorMap, Misuse> {
    let float64 = |shape: &[usize], values: &[f64]| Tensor::from_float64(device, shape, values, DType::Float64);
    let blocks = map
        .blocks
        .iter()
        .map(|block| {
            let gradients = block
                .gradients
                .iter()
                .map(|gradient| {
                    Ok(GradientBlock {
                        parameter: gradient.parameter.clone(),
                        values: float64(&gradient.shape, &gradient.values)?,
                        samples: gradient.samples.clone(),
                        components: gradient.components.clone(),
                    })
                })
                .collect::<Result<_, Misuse>>()?;
            Ok(TensorBlock {
                values: float64(&block.shape, &block.values)?,
                samples: block.samples.clone(),
                components: block.components.clone(),
                properties: block.properties.clone(),
                gradients,
            })
        })
        .collect::<Result<_, Misuse>>()?;
    Ok(TensorMap { keys: map.keys.clone(), blocks })
}

/// Systems and their targets.
#[derive(Debug)]
pub struct Batch {
    systems: Systems,
    targets: Vec<(String, kilnbox_data::TensorMap)>,
    extra_data: Arc<Vec<(String, kilnbox_data::TensorMap)>>,
}

impl Batch {
    fn new(data: BatchData, device: &Device, dtype: DType) -> Result<Self, Misuse> {
        let systems = Systems::new(data.systems, data.extra_data, device, dtype)?;
        Ok(Self { extra_data: systems.extra_data.clone(), systems, targets: data.targets })
    }

    /// The systems.
    pub fn systems(&self) -> Systems {
        self.systems.clone()
    }

    /// A target or extra data of the batch, float64.
    ///
    /// # Errors
    /// The quota is exceeded; within, there is none of this name.
    pub fn target(&self, name: &str) -> Available<TensorMap> {
        let named = |known: &&(String, kilnbox_data::TensorMap)| known.0 == name;
        match self.targets.iter().find(named).or_else(|| self.extra_data.iter().find(named)) {
            Some((_, map)) => on_device(map, &self.systems.device).map(Ok),
            None => Ok(Err(Unavailable::Missing(name.to_owned()))),
        }
    }
}

/// Batches in the order asked for.
pub struct Batches {
    plain: kilnbox_data::Batches,
    device: Device,
    dtype: DType,
}

impl Batches {
    /// The next batch, or nothing after the last.
    ///
    /// # Errors
    /// The quota is exceeded; within, data that cannot be had.
    pub fn next_batch(&mut self) -> Available<Option<Batch>> {
        match self.plain.next() {
            Ok(None) => Ok(Ok(None)),
            Ok(Some(data)) => Batch::new(data, &self.device, self.dtype).map(|batch| Ok(Some(batch))),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

/// A set of systems with targets, and the device that its batches go to.
#[derive(Clone)]
pub struct Dataset {
    plain: kilnbox_data::Dataset,
    device: Device,
}

impl Dataset {
    /// Serves `plain` on `device`.
    pub fn new(plain: kilnbox_data::Dataset, device: Device) -> Self {
        Self { plain, device }
    }

    /// The number of systems.
    pub fn len(&self) -> usize {
        self.plain.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// The number of atoms of each system.
    pub fn atom_counts(&self) -> Vec<u32> {
        self.plain.atom_counts()
    }

    /// What is known of its targets.
    pub fn info(&self) -> &DatasetInfo {
        self.plain.info()
    }

    /// Batches, each a list of indices into this set.
    ///
    /// # Errors
    /// `dtype` is not floating-point; within, an index or a name that the set does not have.
    pub fn batches(&self, batches: Vec<Vec<u32>>, options: BatchOptions) -> Available<Batches> {
        if !matches!(options.dtype, DType::Float32 | DType::Float64) {
            return Err(Misuse::new(
                "dataset.batches",
                format!("dtype is {}, expected a floating-point one", options.dtype),
            ));
        }
        let plain = PlainBatchOptions {
            neighbor_lists: options.neighbor_lists,
            targets: options.targets,
            extra_data: options.extra_data,
        };
        Ok(match self.plain.batches(batches, plain) {
            Ok(plain) => Ok(Batches { plain, device: self.device.clone(), dtype: options.dtype }),
            Err(error) => Err(error.into()),
        })
    }
}
