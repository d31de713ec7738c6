//! A model over a whole dataset: outputs, and their gradients into forces and stress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use kilnbox_data::{
    BatchData, BatchOptions, DataError, Dataset, Labels, NeighborListOptions, Part, PartOptions, Parts, SampleKind,
    StructureView, TensorBlock, TensorMap,
};
use kilnbox_tensor::op::{elementwise, reduce};
use kilnbox_tensor::{DType, Misuse, Tensor, autodiff};

use crate::error::HostError;
use crate::evaluators::{Another, Evaluators};
use crate::serve::bindings::exports::kilnbox::architecture::model;
use crate::service::data::{Systems, TensorBlock as Block, TensorMap as Map};
use crate::service::model::{Capabilities, ModelOutput};
use crate::session::{Model, Session};

/// What is asked for each system.
#[derive(Clone, Debug)]
pub struct EvaluationRequest {
    /// The output.
    pub output: ModelOutput,
    /// Whether its gradient with respect to positions is wanted: minus the forces, for an energy.
    pub position_gradients: bool,
    /// Whether its gradient with respect to strain is wanted: stress times volume, for an energy.
    pub strain_gradients: bool,
}

/// The answers for the systems of one batch.
#[derive(Clone, Debug)]
pub struct EvaluatedBatch {
    /// Which systems of the dataset.
    pub indices: Vec<u32>,
    /// In the order of the requests.
    pub outputs: Vec<EvaluatedOutput>,
    /// How long it took. Where several are evaluated side by side it is a batch's share of the time, so that those of all batches add up to the whole.
    pub seconds: f64,
}

/// One output of one batch, in double precision.
#[derive(Clone, Debug)]
pub struct EvaluatedOutput {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: TensorMap,
    /// The gradient of the sum of its values with respect to positions, three numbers for each atom.
    pub position_gradients: Option<Vec<f64>>,
    /// The gradient of the sum of its values with respect to strain, nine numbers for each system.
    pub strain_gradients: Option<Vec<f64>>,
}

/// What a model is asked for a whole dataset.
#[derive(Clone, Copy, Debug)]
pub struct EvaluationTask<'a> {
    /// The systems.
    pub dataset: &'a Dataset,
    /// What is asked for each.
    pub requests: &'a [EvaluationRequest],
    /// What the model computes in.
    pub dtype: DType,
    /// The most systems that are evaluated together.
    pub batch_size: usize,
}

impl Session {
    /// Evaluates all systems of a dataset, and hands the answers out in their order. A large structure is a batch of its own, and is evaluated in parts if the model lets it.
    /// Many small ones are evaluated side by side on the processor, by as many of `another` as there are threads; with the same bits.
    ///
    /// # Errors
    /// The model cannot compute an output, or gives another shape than was asked for; data that cannot be had; as every call.
    pub fn evaluate(
        &mut self,
        model: &Model,
        task: &EvaluationTask<'_>,
        another: &Another<'_>,
        on_batch: &mut dyn FnMut(EvaluatedBatch),
    ) -> Result<(), HostError> {
        let EvaluationTask { dataset, requests, batch_size, .. } = *task;
        let neighbor_lists = self.requested_neighbor_lists(model)?;
        let inputs = self.call(|architecture, store| {
            architecture.kilnbox_architecture_model().model().call_requested_inputs(store, model.0)
        })?;
        // What is not there is not given: whether it can do without is the architecture's to say.
        let has = |name: &String| dataset.info().extra_data.iter().any(|data| data.name == *name);
        let extra_data: Vec<String> = inputs.into_iter().filter(has).collect();
        let atom_counts = dataset.atom_counts();
        let largest = atom_counts.iter().max().copied().unwrap_or_default();
        let cut = if largest as usize > FEWEST_CUT && extra_data.is_empty() {
            Cut::of(&self.export_model(model)?, &neighbor_lists, requests)
        } else {
            None
        };
        let on_processor = self.host(|state| Ok(state.device.name() == "cpu"))?;
        let most_atoms = if on_processor { ATOMS_AT_ONCE } else { usize::MAX };
        let is_cut = |index: usize| {
            let structure = dataset.structure(index);
            cut.as_ref().zip(structure).is_some_and(|(cut, structure)| cut.parts_of(structure).is_some())
        };
        let groups = groups(&atom_counts, batch_size, most_atoms, &is_cut);
        let options = BatchOptions { neighbor_lists, targets: Vec::new(), extra_data };
        let batches_of = |groups: &[Group]| {
            let whole = groups.iter().filter(|group| !group.is_cut).map(|group| group.indices.clone()).collect();
            dataset.batches(whole, options.clone())
        };
        let mut batches = batches_of(&groups)?;
        // The first one shows what an evaluation takes, and whether there can be any.
        let (first, others) = groups.split_at(groups.len().min(1));
        let is_small = |group: &Group| on_processor && !group.is_cut && group.atoms <= LARGEST_SMALL;
        let stretches = others.chunk_by(|one, next| is_small(one) == is_small(next));
        let mut answered = 0;
        for stretch in std::iter::once(first).chain(stretches) {
            let mut given = BTreeMap::new();
            let mut done = 0;
            let evaluators = match stretch {
                [group, ..] if answered > 0 && is_small(group) => self.evaluators(task, another, first, stretch),
                _ => None,
            };
            if let Some(evaluators) = evaluators {
                (done, given) = evaluators.evaluate(stretch.len(), &mut batches, &mut |number, (outputs, seconds)| {
                    on_batch(EvaluatedBatch { indices: stretch[number].indices.clone(), outputs, seconds });
                });
                if done < stretch.len() {
                    batches = batches_of(&groups[answered + done..])?;
                }
            }
            for (number, group) in stretch.iter().enumerate().skip(done) {
                let start = Instant::now();
                let structure =
                    group.indices.first().filter(|_| group.is_cut).and_then(|&index| dataset.structure(index as usize));
                let parts = cut.as_ref().zip(structure).and_then(|(cut, structure)| cut.parts_of(structure));
                let (outputs, before) = match parts {
                    Some(parts) => (self.evaluate_in_parts(model, task.dtype, parts, requests)?, 0.0),
                    None => {
                        let Some(batch) = batches.next()? else { break };
                        match given.remove(&number) {
                            Some(answer) => answer,
                            None => (self.evaluate_data(model, task, batch)?, 0.0),
                        }
                    }
                };
                let seconds = before + start.elapsed().as_secs_f64();
                on_batch(EvaluatedBatch { indices: group.indices.clone(), outputs, seconds });
            }
            answered += stretch.len();
        }
        Ok(())
    }

    /// Those who evaluate a stretch of small groups side by side, if that is worth it, after this session has evaluated the first.
    fn evaluators<'a>(
        &self,
        task: &'a EvaluationTask<'a>,
        another: &'a Another<'a>,
        first: &[Group],
        stretch: &[Group],
    ) -> Option<Evaluators<'a>> {
        let atoms = |groups: &[Group]| groups.iter().map(|group| group.atoms).max().unwrap_or_default();
        let times = atoms(stretch).div_ceil(atoms(first).max(1)) as u64;
        let bytes = (self.peak_tensor_bytes() as u64).saturating_mul(times);
        Evaluators::new(task, another, stretch.len(), bytes, &self.limits_left())
    }

    /// The answers to a task for one batch.
    pub(crate) fn evaluate_data(
        &mut self,
        model: &Model,
        task: &EvaluationTask<'_>,
        batch: BatchData,
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        let systems = self.host(|state| {
            let device = state.device.clone();
            Ok(Systems::new(batch.systems, batch.extra_data, &device, task.dtype)?)
        })?;
        self.evaluate_batch(model, systems, task.requests)
    }

    /// The answers to `requests` for one structure, in their order, block by block as it was cut. They are those of the whole but for rounding.
    pub(crate) fn evaluate_in_parts(
        &mut self,
        model: &Model,
        dtype: DType,
        mut parts: Parts<'_>,
        requests: &[EvaluationRequest],
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        let mut sums: Vec<Sum> = requests.iter().map(|request| Sum::new(request, parts.atoms())).collect();
        while let Some(Part { systems, atoms, block }) = parts.next()? {
            let systems = self.host(|state| {
                let device = state.device.clone();
                Ok(Systems::new(systems, Vec::new(), &device, dtype)?)
            })?;
            let of_block = (0..block as i32).flat_map(|atom| [0, atom]).collect();
            let selected = Labels::new(&["system", "atom"], of_block);
            let outputs = self.evaluate_selected(model, systems, requests, Some(&selected))?;
            for (sum, output) in sums.iter_mut().zip(outputs) {
                if let Err(problem) = sum.add(output, &atoms) {
                    return self.broken(&problem);
                }
            }
        }
        // A structure has atoms, so it has a part.
        Ok(sums.into_iter().filter_map(|sum| sum.output).collect())
    }

    /// Evaluates `outputs` for `systems`: one map for each, in that order. Where `systems` are tracked, the values can be differentiated, to any order.
    /// With `selected_atoms` (`system`, `atom`, atoms numbered in their system) only these contribute, though all are neighbours.
    ///
    /// # Errors
    /// The model cannot compute an output; it gives other rows than were asked for, or labels that do not fit its values; an atom is selected
    /// that does not exist; as every call.
    pub fn forward(
        &mut self,
        model: &Model,
        systems: Systems,
        outputs: &[ModelOutput],
        selected_atoms: Option<&Labels>,
    ) -> Result<Vec<Map>, HostError> {
        let rows = Rows::new(systems.atom_counts(), selected_atoms)?;
        let requested: Vec<model::ModelOutput> = outputs.iter().map(Into::into).collect();
        let selected = selected_atoms.cloned().map(Into::into);
        let handle = self.host(|state| state.hand_out(systems))?;
        let borrowed = wasmtime::component::Resource::new_borrow(handle.rep());
        let answer = self.ask(|architecture, store| {
            let models = architecture.kilnbox_architecture_model().model();
            models.call_forward(store, model.0, borrowed, &requested, selected.as_ref())
        });
        if self.is_alive() {
            self.host(|state| Ok(state.handles.take(handle)?))?;
        }
        let maps = answer?;
        let maps: Vec<Map> = self.host(|state| maps.into_iter().map(|map| state.receive_map(map)).collect())?;
        if maps.len() != outputs.len() {
            return self.broken(&format!("`forward` gave {} outputs, {} were asked for", maps.len(), outputs.len()));
        }
        for (map, output) in maps.iter().zip(outputs) {
            if let Err(problem) = check_map(map, rows.of(output.sample_kind)) {
                return self.broken(&format!("`forward` gave `{}` {problem}", output.name));
            }
        }
        Ok(maps)
    }

    /// The neighbour lists that the model uses.
    pub(crate) fn requested_neighbor_lists(&mut self, model: &Model) -> Result<Vec<NeighborListOptions>, HostError> {
        let lists = self.call(|architecture, store| {
            architecture.kilnbox_architecture_model().model().call_requested_neighbor_lists(store, model.0)
        })?;
        Ok(lists.into_iter().map(Into::into).collect())
    }

    /// The answers to `requests` for `systems`, in their order.
    pub(crate) fn evaluate_batch(
        &mut self,
        model: &Model,
        systems: Systems,
        requests: &[EvaluationRequest],
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        self.evaluate_selected(model, systems, requests, None)
    }

    /// The same, of some atoms.
    fn evaluate_selected(
        &mut self,
        model: &Model,
        systems: Systems,
        requests: &[EvaluationRequest],
        selected_atoms: Option<&Labels>,
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        let positions = requests.iter().any(|request| request.position_gradients);
        let strain = requests.iter().any(|request| request.strain_gradients);
        let tracked = self.host(|_| Ok(systems.track(positions, strain)?))?;
        let requested: Vec<ModelOutput> = requests.iter().map(|request| request.output.clone()).collect();
        let maps = self.forward(model, tracked.systems, &requested, selected_atoms)?;
        let answer = |(map, request): (Map, &EvaluationRequest)| {
            let values = read_map(&map)?;
            let positions = tracked.positions.as_ref().filter(|_| request.position_gradients);
            let strain = tracked.strain.as_ref().filter(|_| request.strain_gradients);
            let [position_gradients, strain_gradients] = gradients(map, [positions, strain])?;
            Ok(EvaluatedOutput { name: request.output.name.clone(), position_gradients, strain_gradients, values })
        };
        // Within the session's limits: the way back takes as much as the way there.
        self.host(|_| Ok(maps.into_iter().zip(requests).map(answer).collect::<Result<_, Misuse>>()?))
    }
}

/// No smaller structure is cut: it fits everywhere, and its shell would be more than itself.
const FEWEST_CUT: usize = 2_000;
/// The atoms of a block where an atom's neighbours are all that matters to it: what a block needs then fits the caches of a processor, and atoms of its shell cost next to nothing.
const BLOCK: usize = 1_000;
/// The same where neighbours of neighbours matter: atoms of the shell are computed as well, so that larger blocks are cheaper.
const BLOCK_OF_MESSAGES: usize = 10_000;

/// The most atoms of several systems that the processor evaluates together: with more, what they need leaves its caches, and each atom takes longer.
const ATOMS_AT_ONCE: usize = 112;

/// The most atoms of an evaluation that goes on beside others. What shares its kernels well has more, and would take much memory side by side.
const LARGEST_SMALL: usize = 512;

/// How large structures are cut.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// The most atoms of a structure that is evaluated whole.
    largest_whole: usize,
    options: PartOptions,
}

impl Cut {
    /// How structures are cut for this model and these requests, if they may be: values are sums over atoms, or of atoms, and how far atoms matter has a bound.
    pub(crate) fn of(
        capabilities: &Capabilities,
        neighbor_lists: &[NeighborListOptions],
        requests: &[EvaluationRequest],
    ) -> Option<Self> {
        let is_sum = |request: &EvaluationRequest| {
            request.output.sample_kind == SampleKind::Atom || request.output.quantity == "energy"
        };
        let range = capabilities.interaction_range;
        let can_be_cut = range >= 0.0 && range.is_finite() && requests.iter().all(is_sum);
        if !can_be_cut {
            return None;
        }
        let longest = neighbor_lists.iter().map(|options| options.cutoff).fold(0.0, f64::max);
        let atoms_of_block = if range <= longest { BLOCK } else { BLOCK_OF_MESSAGES };
        Some(Self {
            largest_whole: 2 * atoms_of_block,
            options: PartOptions { interaction_range: range, neighbor_lists: neighbor_lists.to_vec(), atoms_of_block },
        })
    }

    /// The parts of a structure; none if it is better evaluated whole: it is small, or all of it matters to every atom.
    pub(crate) fn parts_of<'a>(&self, structure: StructureView<'a>) -> Option<Parts<'a>> {
        let is_large = structure.types.len() > self.largest_whole;
        is_large.then(|| Parts::new(structure, self.options.clone()).ok()).flatten()
    }
}

/// Systems that are evaluated together, or one that is cut.
struct Group {
    indices: Vec<u32>,
    atoms: usize,
    is_cut: bool,
}

/// So many systems at a time, in order, with at most so many atoms if there are several; those that are cut alone.
fn groups(atom_counts: &[u32], batch_size: usize, most_atoms: usize, is_cut: &dyn Fn(usize) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, &atoms) in (0..).zip(atom_counts) {
        let atoms = atoms as usize;
        let is_cut = is_cut(index as usize);
        match groups.last_mut() {
            Some(last)
                if !is_cut
                    && !last.is_cut
                    && last.indices.len() < batch_size.max(1)
                    && last.atoms + atoms <= most_atoms =>
            {
                last.indices.push(index);
                last.atoms += atoms;
            }
            _ => groups.push(Group { indices: vec![index], atoms, is_cut }),
        }
    }
    groups
}

/// What the parts of a structure add up to.
struct Sum {
    atoms: usize,
    per_atom: bool,
    output: Option<EvaluatedOutput>,
}

impl Sum {
    fn new(request: &EvaluationRequest, atoms: usize) -> Self {
        Self { atoms, per_atom: request.output.sample_kind == SampleKind::Atom, output: None }
    }

    /// Adds what a part gave, whose atoms are these, those of the block first. The error is a sentence about the architecture.
    fn add(&mut self, part: EvaluatedOutput, atoms: &[u32]) -> Result<(), String> {
        let (total, per_atom) = (self.atoms, self.per_atom);
        let sum = self.output.get_or_insert_with(|| Self::zeros(&part, total, per_atom));
        let width = |block: &TensorBlock| block.shape.iter().skip(1).product::<usize>();
        let same = sum.values.keys == part.values.keys
            && sum.values.blocks.len() == part.values.blocks.len()
            && sum.values.blocks.iter().zip(&part.values.blocks).all(|(sum, part)| sum.shape[1..] == part.shape[1..]);
        if !same {
            return Err(format!(
                "`forward` gave `{}` other blocks for one part of a structure than for another",
                part.name
            ));
        }
        for (sum, part) in sum.values.blocks.iter_mut().zip(&part.values.blocks) {
            let width = width(part);
            for (row, values) in part.values.chunks_exact(width.max(1)).enumerate() {
                let row = if per_atom { atoms[row] as usize } else { row };
                add_to(&mut sum.values[row * width..][..width], values);
            }
        }
        if let (Some(sum), Some(part)) = (&mut sum.position_gradients, part.position_gradients) {
            for (gradient, &atom) in part.chunks_exact(3).zip(atoms) {
                add_to(&mut sum[3 * atom as usize..][..3], gradient);
            }
        }
        if let (Some(sum), Some(part)) = (&mut sum.strain_gradients, part.strain_gradients) {
            add_to(sum, &part);
        }
        Ok(())
    }

    /// Nothing yet, for the whole structure, in the shape of a part's answer.
    fn zeros(part: &EvaluatedOutput, atoms: usize, per_atom: bool) -> EvaluatedOutput {
        let rows = if per_atom { atoms } else { 1 };
        let samples = if per_atom {
            Labels::new(&["system", "atom"], (0..atoms as i32).flat_map(|atom| [0, atom]).collect())
        } else {
            Labels::new(&["system"], vec![0])
        };
        let block = |block: &TensorBlock| {
            let shape: Vec<usize> = std::iter::once(rows).chain(block.shape[1..].iter().copied()).collect();
            TensorBlock {
                values: vec![0.0; shape.iter().product()],
                shape,
                samples: samples.clone(),
                components: block.components.clone(),
                properties: block.properties.clone(),
                gradients: Vec::new(),
            }
        };
        EvaluatedOutput {
            name: part.name.clone(),
            values: TensorMap {
                keys: part.values.keys.clone(),
                blocks: part.values.blocks.iter().map(block).collect(),
            },
            position_gradients: part.position_gradients.as_ref().map(|_| vec![0.0; 3 * atoms]),
            strain_gradients: part.strain_gradients.as_ref().map(|_| vec![0.0; 9]),
        }
    }
}

fn add_to(sum: &mut [f64], values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The gradients of the sum of all values by the leaves that there are.
fn gradients(map: Map, leaves: [Option<&Tensor>; 2]) -> Result<[Option<Vec<f64>>; 2], Misuse> {
    let wanted: Vec<&Tensor> = leaves.into_iter().flatten().collect();
    if wanted.is_empty() {
        return Ok([None, None]);
    }
    let mut total: Option<Tensor> = None;
    for block in &map.blocks {
        let sum = reduce::sum(&block.values, &[], false)?;
        total = Some(match total {
            None => sum,
            Some(total) => elementwise::add(&total, &sum)?,
        });
    }
    // The values have been read: with them the history goes, as far as it has been walked.
    drop(map);
    let found: Vec<Vec<f64>> = match total {
        None => wanted.iter().map(|leaf| vec![0.0; leaf.count()]).collect(),
        Some(total) => {
            let gradients = autodiff::grad_and_release(vec![total], &wanted, &[])?;
            gradients.iter().map(Tensor::read_float64).collect::<Result<_, _>>()?
        }
    };
    let mut found = found.into_iter();
    Ok(leaves.map(|leaf| leaf.and_then(|_| found.next())))
}

fn read_map(map: &Map) -> Result<TensorMap, Misuse> {
    let blocks = map
        .blocks
        .iter()
        .map(|block| {
            Ok(TensorBlock {
                shape: block.values.shape().to_vec(),
                values: block.values.read_float64()?,
                samples: block.samples.clone(),
                components: block.components.clone(),
                properties: block.properties.clone(),
                gradients: Vec::new(),
            })
        })
        .collect::<Result<_, Misuse>>()?;
    Ok(TensorMap { keys: map.keys.clone(), blocks })
}

/// The rows that an output must have: one for each system, or for each atom, that contributes, in order.
struct Rows {
    systems: Labels,
    atoms: Labels,
}

impl Rows {
    fn new(atom_counts: &[u32], selected_atoms: Option<&Labels>) -> Result<Self, DataError> {
        let count_of = |system: i32| usize::try_from(system).ok().and_then(|system| atom_counts.get(system)).copied();
        let (systems, atoms): (Vec<i32>, Vec<[i32; 2]>) = match selected_atoms {
            None => {
                let atoms = (0..)
                    .zip(atom_counts)
                    .flat_map(|(system, &count)| (0..count as i32).map(move |atom| [system, atom]));
                ((0..atom_counts.len() as i32).collect(), atoms.collect())
            }
            Some(selected) => {
                if selected.names != ["system", "atom"] || !fit(selected, selected.len()) {
                    return Err(DataError::new(format!(
                        "the labels of selected atoms have the dimensions {:?} and {} numbers, expected a `system` and an `atom` for each",
                        selected.names,
                        selected.values.len()
                    )));
                }
                let atoms: BTreeSet<[i32; 2]> = selected.values.as_chunks::<2>().0.iter().copied().collect();
                let exists = |[system, atom]: [i32; 2]| {
                    count_of(system).is_some_and(|count| u32::try_from(atom).is_ok_and(|atom| atom < count))
                };
                if let Some([system, atom]) = atoms.iter().copied().find(|&entry| !exists(entry)) {
                    return Err(DataError::new(format!(
                        "atom {atom} of system {system} is selected, which does not exist"
                    )));
                }
                let systems: BTreeSet<i32> = atoms.iter().map(|&[system, _]| system).collect();
                (systems.into_iter().collect(), atoms.into_iter().collect())
            }
        };
        Ok(Self {
            systems: Labels::new(&["system"], systems),
            atoms: Labels::new(&["system", "atom"], atoms.into_flattened()),
        })
    }

    fn of(&self, kind: SampleKind) -> &Labels {
        match kind {
            SampleKind::System => &self.systems,
            SampleKind::Atom => &self.atoms,
        }
    }
}

/// What a guest says of its values must be so, because the rest of the program indexes by it. The error completes "`forward` gave `energy` ...".
fn check_map(map: &Map, rows: &Labels) -> Result<(), String> {
    if !fit(&map.keys, map.blocks.len()) {
        return Err(format!("{} blocks, and keys that are not as many", map.blocks.len()));
    }
    map.blocks.iter().try_for_each(|block| check_block(block, rows))
}

fn check_block(block: &Block, rows: &Labels) -> Result<(), String> {
    let shape = block.values.shape();
    let [count, components @ .., properties] = shape else {
        return Err(format!("values of the shape {shape:?}, expected rows, components and properties"));
    };
    if *count != rows.len() {
        return Err(format!("values of the shape {shape:?}, expected {} rows", rows.len()));
    }
    if !matches!(block.values.dtype(), DType::Float32 | DType::Float64) {
        return Err(format!("values of the dtype {}, expected a floating-point one", block.values.dtype()));
    }
    if block.samples.names != rows.names {
        return Err(format!("rows labelled with {:?}, expected {:?}", block.samples.names, rows.names));
    }
    if block.samples.values != rows.values {
        let width = rows.names.len();
        let entry = |labels: &Labels, row: usize| labels.values.chunks(width).nth(row).unwrap_or_default().to_vec();
        let different =
            (0..=rows.len()).find(|&row| entry(&block.samples, row) != entry(rows, row)).unwrap_or_default();
        return Err(format!(
            "the label {:?} at row {different}, expected {:?}",
            entry(&block.samples, different),
            entry(rows, different)
        ));
    }
    let labelled = block.components.len() == components.len()
        && block.components.iter().zip(components).all(|(labels, &size)| fit(labels, size))
        && fit(&block.properties, *properties);
    if !labelled {
        return Err(format!(
            "values of the shape {shape:?}, and labels of components or properties that do not fit it"
        ));
    }
    Ok(())
}

/// Whether these are labels, for so many entries.
fn fit(labels: &Labels, entries: usize) -> bool {
    !labels.names.is_empty() && labels.names.len().checked_mul(entries) == Some(labels.values.len())
}

#[cfg(test)]
mod tests {
    use kilnbox_tensor::Device;

    use super::*;

    #[test]
    fn systems_are_grouped_in_order_and_large_ones_are_alone() {
        let counts = [3, 3, 3, 50, 4, 9, 1];
        let of = |batch_size, most_atoms, largest_whole| {
            let groups = groups(&counts, batch_size, most_atoms, &|index| counts[index] > largest_whole);
            groups.into_iter().map(|group| (group.indices, group.is_cut)).collect::<Vec<_>>()
        };
        let whole = |indices: &[u32]| (indices.to_vec(), false);
        assert_eq!(of(7, usize::MAX, u32::MAX), [whole(&[0, 1, 2, 3, 4, 5, 6])]);
        assert_eq!(of(2, usize::MAX, 40), [whole(&[0, 1]), whole(&[2]), (vec![3], true), whole(&[4, 5]), whole(&[6])]);
        assert_eq!(of(7, 10, 40), [whole(&[0, 1, 2]), (vec![3], true), whole(&[4]), whole(&[5, 6])]);
        assert_eq!(of(0, 1, 1000).len(), 7, "a system is evaluated, whatever its size");
    }

    /// A block of zeros with this shape and these labels.
    fn block(shape: &[usize], samples: Labels, components: Vec<Labels>, properties: Labels) -> Block {
        let values = Tensor::full(&Device::cpu(), shape, 0.0, DType::Float64).unwrap();
        Block { values, samples, components, properties, gradients: Vec::new() }
    }

    fn systems(numbers: &[i32]) -> Labels {
        Labels::new(&["system"], numbers.to_vec())
    }

    fn atoms(numbers: &[i32]) -> Labels {
        Labels::new(&["system", "atom"], numbers.to_vec())
    }

    /// What is wrong with a map of one block, for a batch of two systems with two atoms and one.
    fn problem(kind: SampleKind, block: Block) -> Option<String> {
        let rows = Rows::new(&[2, 1], None).unwrap();
        let map = Map { keys: Labels::range("_", 1), blocks: vec![block] };
        check_map(&map, rows.of(kind)).err()
    }

    #[test]
    fn what_a_guest_says_of_its_values_must_be_so() {
        let properties = || Labels::range("energy", 1);
        let of_systems = |samples| problem(SampleKind::System, block(&[2, 1], samples, Vec::new(), properties()));
        let of_atoms = |samples| problem(SampleKind::Atom, block(&[3, 1], samples, Vec::new(), properties()));
        assert_eq!(of_systems(systems(&[0, 1])), None);
        assert_eq!(of_atoms(atoms(&[0, 0, 0, 1, 1, 0])), None);
        let vectors = |components, properties| {
            problem(SampleKind::System, block(&[2, 3, 4], systems(&[0, 1]), components, properties))
        };
        assert_eq!(vectors(vec![Labels::range("xyz", 3)], Labels::range("dipole", 4)), None);

        let no_axis = block(&[2], systems(&[0, 1]), Vec::new(), properties());
        let few_rows = block(&[1, 1], systems(&[0]), Vec::new(), properties());
        let integers = Tensor::from_int64(&Device::cpu(), &[2, 1], &[0, 0]).unwrap();
        let integers = Block { values: integers, ..block(&[2, 1], systems(&[0, 1]), Vec::new(), properties()) };
        let cases = [
            // Rows of systems that call themselves atoms were trusted once, and read beyond their end.
            (of_systems(atoms(&[0, 0, 1, 0])), "rows labelled with"),
            (of_systems(systems(&[1, 0])), "the label [1] at row 0, expected [0]"),
            (of_systems(systems(&[0, 7])), "the label [7] at row 1, expected [1]"),
            (of_systems(systems(&[0])), "the label [] at row 1, expected [1]"),
            (of_systems(systems(&[0, 1, 2])), "the label [2] at row 2, expected []"),
            (of_systems(Labels::new(&[], Vec::new())), "rows labelled with []"),
            (of_atoms(systems(&[0, 1, 2])), "rows labelled with"),
            (of_atoms(atoms(&[0, 0, 1, 0, 0, 1])), "the label [1, 0] at row 1, expected [0, 1]"),
            (of_atoms(atoms(&[0, 0, 0, 1, 1])), "the label [1] at row 2, expected [1, 0]"),
            (vectors(Vec::new(), Labels::range("dipole", 4)), "labels of components or properties"),
            (vectors(vec![Labels::range("xyz", 2)], Labels::range("dipole", 4)), "labels of components or properties"),
            (vectors(vec![Labels::range("xyz", 3)], Labels::range("dipole", 5)), "labels of components or properties"),
            (
                vectors(vec![Labels::range("xyz", 3)], Labels::new(&[], Vec::new())),
                "labels of components or properties",
            ),
            (problem(SampleKind::System, no_axis), "expected rows, components and properties"),
            (problem(SampleKind::System, few_rows), "the shape [1, 1], expected 2 rows"),
            (problem(SampleKind::System, integers), "the dtype int64"),
        ];
        for (found, expected) in cases {
            assert!(found.as_ref().is_some_and(|problem| problem.contains(expected)), "{found:?} is not `{expected}`");
        }
        let rows = Rows::new(&[], None).unwrap();
        let map = Map { keys: Labels::range("_", 2), blocks: Vec::new() };
        assert!(check_map(&map, rows.of(SampleKind::System)).is_err(), "keys without blocks");
    }

    #[test]
    fn selected_atoms_are_rows_in_order_and_must_exist() {
        let rows = |selected: Labels| Rows::new(&[2, 3, 1], Some(&selected)).map_err(|error| error.to_string());
        let some = rows(atoms(&[2, 0, 0, 1, 2, 0])).unwrap();
        assert_eq!((some.systems, some.atoms), (systems(&[0, 2]), atoms(&[0, 1, 2, 0])));
        let none = rows(atoms(&[])).unwrap();
        assert!(none.systems.is_empty() && none.atoms.is_empty());
        for (selected, expected) in [
            (atoms(&[0, 2]), "atom 2 of system 0"),
            (atoms(&[3, 0]), "atom 0 of system 3"),
            (atoms(&[-1, 0]), "atom 0 of system -1"),
            (atoms(&[0, -1]), "atom -1 of system 0"),
            (atoms(&[0, 0, 1]), "3 numbers"),
            (systems(&[0]), "`system` and an `atom`"),
        ] {
            let problem = rows(selected).err();
            assert!(problem.as_ref().is_some_and(|text| text.contains(expected)), "{problem:?} is not `{expected}`");
        }
    }
}
