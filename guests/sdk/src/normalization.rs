//! What a model adds to its network: the composition baseline and the scale of each target.
//!
//! A network learns `(target - baseline) / scale`, numbers of order one. Both are fitted on the training set before the first epoch, in
//! double precision, and belong to the model: they are in its checkpoints and its predictions include them.

use std::collections::BTreeMap;

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    data::{Batch, BatchOptions, Dataset, Systems, TensorBlock},
    hypers::{FixedWeights, PerType},
    info::{DType, DatasetInfo, Layout, SampleKind, TargetInfo},
    statistics::{CompositionFit, Spread, SpreadFit, TypeMeans},
    tensor::Tensor,
};

/// Systems per batch while fitting: enough to make calls into the host rare.
const FIT_BATCH: usize = 128;

/// Baseline and scale of one target.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetNormalization {
    /// For each block that a composition can have, what an atom of each type adds, `[types, properties]`; other blocks have no baseline.
    pub baseline: Vec<Option<Vec<f64>>>,
    /// The scale of each type, `[types]`; all equal for values of systems.
    pub scale: Vec<f64>,
    /// Factors of each property of each block on top of the scale, `[blocks, properties]`: the network's numbers are multiplied with them.
    pub property_scale: Vec<Vec<f64>>,
}

impl TargetNormalization {
    /// No baseline, scale 1.
    pub fn identity(layout: &Layout, types: usize) -> TargetNormalization {
        let properties = layout.properties.len();
        TargetNormalization {
            baseline: vec![None; layout.keys.len()],
            scale: vec![1.0; types],
            property_scale: vec![vec![1.0; properties]; layout.keys.len()],
        }
    }

    /// Whether the properties have factors of their own.
    fn has_property_scale(&self, block: usize) -> bool {
        self.property_scale[block].iter().any(|&factor| factor != 1.0)
    }

    /// The network's numbers, multiplied with the factors of their properties. Shape as `values`.
    pub fn scale_properties(&self, block: usize, values: &Tensor, dtype: DType) -> Tensor {
        if !self.has_property_scale(block) {
            return values.clone();
        }
        let factors = &self.property_scale[block];
        values * Tensor::from_vec_f64(&[factors.len()], factors.clone(), dtype)
    }
}

/// Baselines and scales of all targets of a model. Types are in the order of the model's atomic types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Normalization {
    /// By name.
    pub targets: BTreeMap<String, TargetNormalization>,
}

/// The options of a fit.
pub struct FitOptions<'a> {
    /// Baselines that are not fitted.
    pub atomic_baseline: &'a FixedWeights,
    /// Whether to fit scales; otherwise they are 1.
    pub scale_targets: bool,
    /// Scales that are not fitted.
    pub fixed_scaling_weights: &'a FixedWeights,
    /// Targets of systems that are not divided by the number of atoms.
    pub per_structure_targets: &'a [String],
}

/// The rows of `rows_of_types` (`[types, properties]`) for each atom, shaped to broadcast over a block: `[atoms, 1.., properties]`.
fn rows_of_atoms(rows_of_types: &[f64], properties: usize, type_indices: &Tensor, rank: usize) -> Tensor {
    let types = rows_of_types.len() / properties.max(1);
    let table = Tensor::from_vec_f64(&[types, properties], rows_of_types.to_vec(), DType::Float64);
    let rows = table.select(0, type_indices);
    if rank == 2 { rows } else { rows.reshape(&broadcastable(rows.size(0), properties, rank)) }
}

/// `[rows, 1.., properties]` of this rank.
fn broadcastable(rows: usize, properties: usize, rank: usize) -> Vec<usize> {
    let mut shape = vec![1; rank];
    shape[0] = rows;
    shape[rank - 1] = properties;
    shape
}

impl Normalization {
    /// The normalization of a target; the identity if it was never fitted.
    pub fn of(&self, name: &str, layout: &Layout, types: usize) -> TargetNormalization {
        self.targets.get(name).cloned().unwrap_or_else(|| TargetNormalization::identity(layout, types))
    }

    /// The network's numbers for each atom in physical units, `float64`: scaled, and with the atom's part of the baseline.
    pub fn to_physical(&self, name: &str, block: usize, values: &Tensor, type_indices: &Tensor) -> Tensor {
        let values = values.cast(DType::Float64);
        let Some(normalization) = self.targets.get(name) else {
            return values;
        };
        let rank = values.shape().len();
        let values = normalization.scale_properties(block, &values, DType::Float64);
        let values = match uniform(&normalization.scale) {
            Some(scale) => values * scale,
            None => values * rows_of_atoms(&normalization.scale, 1, type_indices, rank),
        };
        match &normalization.baseline[block] {
            Some(weights) => {
                let properties = normalization.property_scale[block].len();
                values + rows_of_atoms(weights, properties, type_indices, rank)
            }
            None => values,
        }
    }

    /// What a network should predict for a block of a target: without the baseline and divided by the scale. `float64` in and out.
    pub fn to_scaled(
        &self,
        name: &str,
        block: usize,
        values: &Tensor,
        kind: SampleKind,
        systems: Systems<'_>,
        type_indices: &Tensor,
    ) -> Tensor {
        let Some(normalization) = self.targets.get(name) else {
            return values.clone();
        };
        let rank = values.shape().len();
        let values = match &normalization.baseline[block] {
            Some(weights) => {
                let properties = normalization.property_scale[block].len();
                let atoms = rows_of_atoms(weights, properties, type_indices, rank);
                values
                    - match kind {
                        SampleKind::System => atoms.index_add(0, &systems.system_indices(), systems.count()),
                        SampleKind::Atom => atoms,
                    }
            }
            None => values.clone(),
        };
        match uniform(&normalization.scale) {
            Some(scale) => values / scale,
            None => values / rows_of_atoms(&normalization.scale, 1, type_indices, rank),
        }
    }

    /// Fits the targets that have no normalization yet.
    ///
    /// # Errors
    /// When a dataset cannot be read or a fixed weight is for a target that does not exist.
    pub fn fit(&mut self, datasets: &[Dataset], info: &DatasetInfo, options: &FitOptions<'_>) -> Result<()> {
        for weights in [options.atomic_baseline, options.fixed_scaling_weights] {
            if let Some(name) = weights.keys().find(|&name| info.target(name).is_none()) {
                let known: Vec<&str> = info.targets.iter().map(|target| target.name.as_str()).collect();
                return Err(Error::InvalidHypers(format!(
                    "there is a fixed weight for `{name}`, which is not among the targets {known:?}"
                )));
            }
        }
        for target in &info.targets {
            if !self.targets.contains_key(&target.name) {
                let fit =
                    TargetFit { name: &target.name, info: &target.info, atomic_types: &info.atomic_types, datasets };
                self.targets.insert(target.name.clone(), fit.run(options)?);
            }
        }
        Ok(())
    }

    /// Keeps it in a checkpoint.
    pub fn save(&self, checkpoint: &mut Checkpoint) {
        let matrix = |rows: usize, values: &[f64]| {
            Tensor::from_vec_f64(&[rows, values.len() / rows.max(1)], values.to_vec(), DType::Float64)
        };
        for (name, normalization) in &self.targets {
            let types = normalization.scale.len();
            let mut tensors = vec![(format!("{name}/scale"), matrix(types, &normalization.scale))];
            for (block, factors) in normalization.property_scale.iter().enumerate() {
                tensors.push((format!("{name}/property_scale/{block}"), matrix(1, factors)));
                if let Some(weights) = &normalization.baseline[block] {
                    tensors.push((format!("{name}/baseline/{block}"), matrix(types, weights)));
                }
            }
            checkpoint.add_tensors("normalization/", tensors);
        }
    }

    /// What [`save`](Normalization::save) kept, for the targets of `info`.
    pub fn load(checkpoint: &Checkpoint, info: &DatasetInfo) -> Normalization {
        let tensors = checkpoint.tensors_in("normalization/");
        let find = |name: String| tensors.get(&name).map(Tensor::to_vec_f64);
        let target = |name: &str, layout: &Layout| {
            let blocks = 0..layout.keys.len();
            Some(TargetNormalization {
                scale: find(format!("{name}/scale"))?,
                property_scale: blocks
                    .clone()
                    .map(|block| find(format!("{name}/property_scale/{block}")))
                    .collect::<Option<_>>()?,
                baseline: blocks.map(|block| find(format!("{name}/baseline/{block}"))).collect(),
            })
        };
        let targets = info
            .targets
            .iter()
            .filter_map(|named| Some((named.name.clone(), target(&named.name, &Layout::of(&named.name, &named.info))?)))
            .collect();
        Normalization { targets }
    }
}

fn uniform(values: &[f64]) -> Option<f64> {
    let first = *values.first()?;
    values.iter().all(|&value| value == first).then_some(first)
}

/// The fit of one target.
struct TargetFit<'a> {
    name: &'a str,
    info: &'a TargetInfo,
    atomic_types: &'a [i32],
    datasets: &'a [Dataset],
}

/// The values of one block of a batch as numbers.
struct BlockValues {
    rows: usize,
    /// Numbers per row: components times properties.
    width: usize,
    values: Vec<f64>,
}

impl BlockValues {
    fn read(block: &TensorBlock) -> BlockValues {
        let rows = block.samples.len();
        let values = block.values.to_vec_f64();
        BlockValues { rows, width: values.len() / rows.max(1), values }
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

impl TargetFit<'_> {
    fn run(&self, options: &FitOptions<'_>) -> Result<TargetNormalization> {
        let layout = Layout::of(self.name, self.info);
        let mut normalization = TargetNormalization::identity(&layout, self.atomic_types.len());
        normalization.baseline = self.baseline(&layout, options.atomic_baseline.get(self.name))?;
        if let Some(fixed) = options.fixed_scaling_weights.get(self.name) {
            normalization.scale = self.fixed_scale(fixed)?;
        } else if options.scale_targets {
            let per_atom = self.info.sample_kind == SampleKind::System
                && !options.per_structure_targets.iter().any(|name| name == self.name);
            let spread = self.spread(&layout, &normalization.baseline, per_atom)?;
            normalization.scale = match self.info.sample_kind {
                SampleKind::System => vec![spread.groups[0]; self.atomic_types.len()],
                SampleKind::Atom => spread.groups,
            };
            normalization.property_scale =
                spread.columns.chunks(layout.properties.len().max(1)).map(<[f64]>::to_vec).collect();
        }
        Ok(normalization)
    }

    fn fixed_scale(&self, fixed: &PerType) -> Result<Vec<f64>> {
        let scale = fixed.values(self.atomic_types, 1.0);
        match scale.iter().find(|&&scale| !(scale > 0.0 && scale.is_finite())) {
            Some(scale) => Err(Error::InvalidHypers(format!(
                "the fixed scaling weight of `{}` is {scale}, expected a positive number",
                self.name
            ))),
            None if self.info.sample_kind == SampleKind::System && uniform(&scale).is_none() => {
                Err(Error::InvalidHypers(format!(
                    "`{}` has one value per system and so one fixed scaling weight, not one for each type",
                    self.name
                )))
            }
            None => Ok(scale),
        }
    }

    /// The baseline of each block.
    fn baseline(&self, layout: &Layout, fixed: Option<&PerType>) -> Result<Vec<Option<Vec<f64>>>> {
        let properties = layout.properties.len();
        if let Some(fixed) = fixed {
            let by_type = fixed.values(self.atomic_types, 0.0);
            let weights: Vec<f64> = by_type.iter().flat_map(|&weight| vec![weight; properties]).collect();
            return Ok((0..layout.keys.len())
                .map(|block| layout.is_invariant(block).then(|| weights.clone()))
                .collect());
        }
        let types = self.atomic_types.len();
        let mut systems = vec![CompositionFit::new(types, properties); layout.keys.len()];
        let mut atoms = vec![TypeMeans::new(types, properties); layout.keys.len()];
        self.for_each_batch(|types_of_atoms, counts, blocks| {
            for (block, values) in blocks.iter().enumerate().filter(|&(block, _)| layout.is_invariant(block)) {
                for row in 0..values.rows {
                    match self.info.sample_kind {
                        SampleKind::System => systems[block].add(&counts[row], values.row(row)),
                        SampleKind::Atom => atoms[block].add(types_of_atoms[row], values.row(row)),
                    }
                }
            }
        })?;
        let fits = systems.into_iter().zip(&atoms).enumerate();
        Ok(fits
            .map(|(block, (system, atom))| {
                layout.is_invariant(block).then(|| match self.info.sample_kind {
                    SampleKind::System => system.solve(),
                    SampleKind::Atom => atom.means(),
                })
            })
            .collect())
    }

    /// The spread of what the baseline leaves.
    fn spread(&self, layout: &Layout, baseline: &[Option<Vec<f64>>], per_atom: bool) -> Result<Spread> {
        let properties = layout.properties.len();
        let groups = if self.info.sample_kind == SampleKind::System { 1 } else { self.atomic_types.len() };
        let mut fit = SpreadFit::new(groups, layout.keys.len() * properties);
        self.for_each_batch(|types_of_atoms, counts, blocks| {
            for (block, values) in blocks.iter().enumerate() {
                for row in 0..values.rows {
                    let (group, divisor) = match self.info.sample_kind {
                        SampleKind::System if per_atom => (0, counts[row].iter().sum::<f64>()),
                        SampleKind::System => (0, 1.0),
                        SampleKind::Atom => (types_of_atoms[row], 1.0),
                    };
                    for (position, value) in values.row(row).iter().enumerate() {
                        let property = position % properties;
                        let part = baseline[block].as_ref().map_or(0.0, |weights| match self.info.sample_kind {
                            SampleKind::System => counts[row]
                                .iter()
                                .zip(weights.iter().skip(property).step_by(properties))
                                .map(|(n, w)| n * w)
                                .sum(),
                            SampleKind::Atom => weights[types_of_atoms[row] * properties + property],
                        });
                        fit.add(group, block * properties + property, (value - part) / divisor);
                    }
                }
            }
        })?;
        Ok(fit.spread())
    }

    /// Calls `visit` for each batch of all datasets that have the target, with the type of each atom, the number of atoms of each type of each
    /// system, and the target's blocks.
    fn for_each_batch(&self, mut visit: impl FnMut(&[usize], &[Vec<f64>], &[BlockValues])) -> Result<()> {
        let options = BatchOptions {
            dtype: DType::Float64,
            neighbor_lists: Vec::new(),
            targets: vec![self.name.to_owned()],
            extra_data: Vec::new(),
        };
        for dataset in self.datasets.iter().filter(|dataset| dataset.info().target(self.name).is_some()) {
            for batch in dataset.in_order(FIT_BATCH, &options)? {
                let batch = batch?;
                let blocks: Vec<BlockValues> = batch.target(self.name)?.blocks.iter().map(BlockValues::read).collect();
                let (types_of_atoms, counts) = composition(&batch, self.atomic_types)?;
                visit(&types_of_atoms, &counts, &blocks);
            }
        }
        Ok(())
    }
}

/// The type of each atom of a batch, and how many of each type each system has.
fn composition(batch: &Batch, atomic_types: &[i32]) -> Result<(Vec<usize>, Vec<Vec<f64>>)> {
    let systems = batch.systems();
    let types: Vec<usize> =
        systems.type_indices(atomic_types)?.to_vec_i64().into_iter().map(|index| index as usize).collect();
    let mut atoms = types.iter();
    let counts = systems
        .atom_counts()
        .into_iter()
        .map(|count| {
            let mut counts = vec![0.0; atomic_types.len()];
            atoms.by_ref().take(count).for_each(|&atom_type| counts[atom_type] += 1.0);
            counts
        })
        .collect();
    Ok((types, counts))
}
