//! Systems, targets and datasets. The host reads, checks, splits and batches; an architecture asks for batches.

use crate::{
    Result,
    contract::data,
    info::{DType, DatasetInfo, Labels, NeighborListOptions},
    tensor::{Tensor, handles},
};

/// Several systems as one disconnected graph: atoms are numbered through, system by system.
#[derive(Clone, Copy)]
pub struct Systems<'a>(&'a data::Systems);

/// The pairs of all systems of a batch, sorted by first atom, then second, then shift.
pub struct Neighbors {
    /// The first atom of each pair, `int64` `[pairs]`.
    pub first: Tensor,
    /// The second atom, `int64` `[pairs]`.
    pub second: Tensor,
    /// The number of cell vectors added to the second atom, `int64` `[pairs, 3]`.
    pub shifts: Tensor,
    /// `r_second - r_first + shift . cell`, `[pairs, 3]`, differentiable in positions and cells.
    pub vectors: Tensor,
}

/// Systems whose positions and cells depend on leaves to differentiate by.
pub struct TrackedSystems {
    systems: data::Systems,
    /// The leaf of the positions, `[atoms, 3]`, if asked for.
    pub positions: Option<Tensor>,
    /// The leaf of the strain, `[systems, 3, 3]`, each the identity, if asked for.
    pub strain: Option<Tensor>,
}

impl TrackedSystems {
    /// The systems that follow the leaves.
    pub fn systems(&self) -> Systems<'_> {
        Systems(&self.systems)
    }
}

/// Systems that were turned.
pub struct TransformedSystems(data::Systems);

impl TransformedSystems {
    /// The systems as they are now.
    pub fn systems(&self) -> Systems<'_> {
        Systems(&self.0)
    }
}

impl<'a> Systems<'a> {
    pub(crate) fn new(systems: &'a data::Systems) -> Systems<'a> {
        Systems(systems)
    }

    /// The number of systems.
    pub fn count(&self) -> usize {
        self.0.count() as usize
    }

    /// The number of atoms of each system.
    pub fn atom_counts(&self) -> Vec<usize> {
        self.0.atom_counts().into_iter().map(|count| count as usize).collect()
    }

    /// `[atoms, 3]`, in the length unit of the data.
    pub fn positions(&self) -> Tensor {
        Tensor::from_handle(self.0.positions())
    }

    /// `[systems, 3, 3]`, rows are cell vectors; rows of directions that are not periodic are 0.
    pub fn cells(&self) -> Tensor {
        Tensor::from_handle(self.0.cells())
    }

    /// Boolean `[systems, 3]`.
    pub fn periodic(&self) -> Tensor {
        Tensor::from_handle(self.0.periodic())
    }

    /// Atomic numbers, `int32` `[atoms]`.
    pub fn types(&self) -> Tensor {
        Tensor::from_handle(self.0.types())
    }

    /// The system of each atom, `int64` `[atoms]`.
    pub fn system_indices(&self) -> Tensor {
        Tensor::from_handle(self.0.system_indices())
    }

    /// The position of each atom's type in `atomic_types`, `int64` `[atoms]`.
    ///
    /// # Errors
    /// When a system has another element.
    pub fn type_indices(&self, atomic_types: &[i32]) -> Result<Tensor> {
        Ok(Tensor::from_handle(self.0.type_indices(atomic_types)?))
    }

    /// The neighbour list with these options.
    ///
    /// # Errors
    /// When the host cannot make it.
    pub fn neighbors(&self, options: NeighborListOptions) -> Result<Neighbors> {
        let neighbors = self.0.neighbors(options.into())?;
        Ok(Neighbors {
            first: Tensor::from_handle(neighbors.first),
            second: Tensor::from_handle(neighbors.second),
            shifts: Tensor::from_handle(neighbors.shifts),
            vectors: Tensor::from_handle(neighbors.vectors),
        })
    }

    /// For each pair `(i, j, shift)` of a full neighbour list the place of `(j, i, -shift)`, `int64` `[pairs]`: where messages go that are sent back along
    /// edges.
    ///
    /// # Errors
    /// When the list is not full, or the host cannot make it.
    pub fn reverse_pairs(&self, options: NeighborListOptions) -> Result<Tensor> {
        Ok(Tensor::from_handle(self.0.reverse_pairs(options.into())?))
    }

    /// Named data that came with the systems, such as a charge.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn data(&self, name: &str) -> Result<TensorMap> {
        Ok(self.0.data(name)?.into())
    }

    /// The same systems with leaves to differentiate by.
    pub fn track(&self, positions: bool, strain: bool) -> TrackedSystems {
        let tracked = self.0.track(positions, strain);
        TrackedSystems {
            systems: tracked.systems,
            positions: tracked.positions.map(Tensor::from_handle),
            strain: tracked.strain.map(Tensor::from_handle),
        }
    }

    /// The same systems turned: positions are `r . matrices[system]`, cells `cell . matrices[system]`, and the vectors of pairs follow. `matrices` is
    /// `[systems, 3, 3]`, of the dtype of the positions; each MUST be orthogonal, because neighbour lists keep their pairs. Named data does not turn.
    pub fn transform(&self, matrices: &Tensor) -> TransformedSystems {
        TransformedSystems(self.0.transform(handles(&[matrices])[0]))
    }
}

/// Blocks by key: metatensor's tensor map.
pub struct TensorMap {
    /// One entry for each block.
    pub keys: Labels,
    /// In the order of the keys.
    pub blocks: Vec<TensorBlock>,
}

/// Values with a name for every row, component and property: metatensor's block.
pub struct TensorBlock {
    /// `[samples, .. components, properties]`.
    pub values: Tensor,
    /// `system` for values of systems; `system`, `atom` for values of atoms.
    pub samples: Labels,
    /// One for each axis between the first and the last.
    pub components: Vec<Labels>,
    /// One entry for each property.
    pub properties: Labels,
    /// Explicit gradients; often none.
    pub gradients: Vec<GradientBlock>,
}

/// A gradient of a block.
pub struct GradientBlock {
    /// With respect to what: `positions` or `strain`.
    pub parameter: String,
    /// `[samples, .. own components, .. components of the block, properties]`.
    pub values: Tensor,
    /// `sample` (a row of the block) and, for positions, `system`, `atom`.
    pub samples: Labels,
    /// Its own axes first, then those of the block.
    pub components: Vec<Labels>,
}

impl TensorBlock {
    /// The gradient with respect to `parameter`.
    pub fn gradient(&self, parameter: &str) -> Option<&GradientBlock> {
        self.gradients.iter().find(|gradient| gradient.parameter == parameter)
    }
}

fn labels<From, To: std::convert::From<From>>(labels: Vec<From>) -> Vec<To> {
    labels.into_iter().map(Into::into).collect()
}

impl From<data::TensorMap> for TensorMap {
    fn from(map: data::TensorMap) -> Self {
        let gradient = |gradient: data::GradientBlock| GradientBlock {
            parameter: gradient.parameter,
            values: Tensor::from_handle(gradient.values),
            samples: gradient.samples.into(),
            components: labels(gradient.components),
        };
        let block = |block: data::TensorBlock| TensorBlock {
            values: Tensor::from_handle(block.values),
            samples: block.samples.into(),
            components: labels(block.components),
            properties: block.properties.into(),
            gradients: block.gradients.into_iter().map(gradient).collect(),
        };
        TensorMap { keys: map.keys.into(), blocks: map.blocks.into_iter().map(block).collect() }
    }
}

impl From<TensorMap> for data::TensorMap {
    fn from(map: TensorMap) -> Self {
        let gradient = |gradient: GradientBlock| data::GradientBlock {
            parameter: gradient.parameter,
            values: gradient.values.into_handle(),
            samples: gradient.samples.into(),
            components: labels(gradient.components),
        };
        let block = |block: TensorBlock| data::TensorBlock {
            values: block.values.into_handle(),
            samples: block.samples.into(),
            components: labels(block.components),
            properties: block.properties.into(),
            gradients: block.gradients.into_iter().map(gradient).collect(),
        };
        data::TensorMap { keys: map.keys.into(), blocks: map.blocks.into_iter().map(block).collect() }
    }
}

/// A set of systems with targets.
pub struct Dataset(data::Dataset);

/// What a batch should hold.
#[derive(Clone, Debug)]
pub struct BatchOptions {
    /// The floating-point dtype of positions and cells.
    pub dtype: DType,
    /// Neighbour lists to prepare.
    pub neighbor_lists: Vec<NeighborListOptions>,
    /// Targets to read; their values are always `float64`.
    pub targets: Vec<String>,
    /// Extra data to read.
    pub extra_data: Vec<String>,
}

impl Dataset {
    pub(crate) fn new(dataset: data::Dataset) -> Dataset {
        Dataset(dataset)
    }

    /// The number of systems.
    pub fn len(&self) -> usize {
        self.0.len() as usize
    }

    /// Whether there is no system.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of atoms of each system.
    pub fn atom_counts(&self) -> Vec<usize> {
        self.0.atom_counts().into_iter().map(|count| count as usize).collect()
    }

    /// What is known of the targets of this set.
    pub fn info(&self) -> DatasetInfo {
        self.0.info().into()
    }

    /// Batches, each a list of indices into this set, in this order. The host prepares the next ones while one is worked on.
    ///
    /// # Errors
    /// When an index or a target does not exist.
    pub fn batches(&self, batches: &[Vec<usize>], options: &BatchOptions) -> Result<Batches> {
        let batches: Vec<Vec<u32>> =
            batches.iter().map(|batch| batch.iter().map(|&index| index as u32).collect()).collect();
        let options = data::BatchOptions {
            dtype: options.dtype.into(),
            neighbor_lists: options.neighbor_lists.iter().map(|&list| list.into()).collect(),
            targets: options.targets.clone(),
            extra_data: options.extra_data.clone(),
        };
        Ok(Batches(self.0.batches(&batches, &options)?))
    }

    /// All systems in their order, `size` in each batch.
    ///
    /// # Errors
    /// As [`batches`](Dataset::batches).
    pub fn in_order(&self, size: usize, options: &BatchOptions) -> Result<Batches> {
        let order: Vec<usize> = (0..self.len()).collect();
        let batches: Vec<Vec<usize>> = order.chunks(size.max(1)).map(<[usize]>::to_vec).collect();
        self.batches(&batches, options)
    }
}

/// Batches in the order asked for.
pub struct Batches(data::Batches);

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        match self.0.next() {
            Ok(batch) => batch.map(|batch| Ok(Batch { systems: batch.systems(), batch })),
            Err(error) => Some(Err(error.into())),
        }
    }
}

/// Systems and their targets.
pub struct Batch {
    batch: data::Batch,
    systems: data::Systems,
}

impl Batch {
    /// The systems.
    pub fn systems(&self) -> Systems<'_> {
        Systems(&self.systems)
    }

    /// A target or extra data, `float64`. Missing values are NaN.
    ///
    /// # Errors
    /// When the batch was not asked for it.
    pub fn target(&self, name: &str) -> Result<TensorMap> {
        Ok(self.batch.target(name)?.into())
    }
}
