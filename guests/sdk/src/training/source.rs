//! A dataset, what is learned from it, and the errors of a batch.

use std::collections::BTreeMap;

use super::totals::Term;
use crate::{
    Error, Result,
    architecture::Model,
    augmentation::Transformations,
    data::{Batch, BatchOptions, Batches, Dataset, GradientBlock, Systems, TrackedSystems},
    info::{DType, Layout, SampleKind, TargetInfo},
    loss::{LossFunction, LossTerm, TargetLoss},
    metrics::{Gradient, Measured},
    model::AtomisticModel,
    network::Network,
    normalization::TargetNormalization,
    tensor::{Tensor, grad},
};

/// A dataset and what is learned from it.
pub(super) struct Source {
    dataset: Dataset,
    pub(super) atom_counts: Vec<usize>,
    targets: Vec<SourceTarget>,
}

/// A target of a dataset.
struct SourceTarget {
    name: String,
    info: TargetInfo,
    layout: Layout,
    normalization: TargetNormalization,
    loss: TargetLoss,
    /// Whether errors are divided by the number of atoms.
    per_atom: bool,
    /// Whether a value or a gradient is missing somewhere.
    missing: bool,
}

impl Source {
    pub(super) fn new<N: Network>(
        dataset: Dataset,
        model: &AtomisticModel<N>,
        losses: &BTreeMap<String, TargetLoss>,
        per_structure: &[String],
    ) -> Result<Source> {
        let mut targets = Vec::new();
        for target in dataset.info().targets {
            let Some(loss) = losses.get(&target.name).copied() else {
                continue;
            };
            if !target.info.gradients.is_empty() && !target.info.is_one_number_per_system() {
                return Err(Error::UnsupportedTarget(format!(
                    "`{}` has gradients, which only one number per system can have",
                    target.name
                )));
            }
            let layout = Layout::of(&target.name, &target.info);
            targets.push(SourceTarget {
                normalization: model.normalization.of(&target.name, &layout, model.info.atomic_types.len()),
                per_atom: target.info.sample_kind == SampleKind::System && !per_structure.contains(&target.name),
                missing: false,
                name: target.name,
                info: target.info,
                layout,
                loss,
            });
        }
        if targets.is_empty() {
            return Err(Error::UnsupportedDataset("a dataset has none of the model's targets".to_owned()));
        }
        let mut source = Source { atom_counts: dataset.atom_counts(), dataset, targets };
        source.find_missing()?;
        Ok(source)
    }

    /// Looks for missing values once, so that the common case needs no masks.
    fn find_missing(&mut self) -> Result<()> {
        let names = self.targets.iter().map(|target| target.name.clone()).collect();
        let options =
            BatchOptions { dtype: DType::Float64, neighbor_lists: Vec::new(), targets: names, extra_data: Vec::new() };
        for batch in self.dataset.in_order(128, &options)? {
            let batch = batch?;
            for target in self.targets.iter_mut().filter(|target| !target.missing) {
                let complete = |values: &Tensor| values.is_finite().all().to_vec_bool() == [true];
                target.missing = !batch.target(&target.name)?.blocks.iter().all(|block| {
                    complete(&block.values) && block.gradients.iter().all(|gradient| complete(&gradient.values))
                });
            }
        }
        Ok(())
    }

    pub(super) fn batches<N: Network>(&self, batches: &[Vec<usize>], model: &AtomisticModel<N>) -> Result<Batches> {
        let present = self.dataset.info().extra_data;
        let has = |name: &String| present.iter().any(|data| data.name == *name);
        let options = BatchOptions {
            dtype: model.dtype,
            neighbor_lists: model.network.neighbor_lists(),
            targets: self.targets.iter().map(|target| target.name.clone()).collect(),
            extra_data: model.requested_inputs().into_iter().filter(has).collect(),
        };
        self.dataset.batches(batches, &options)
    }

    fn has(&self, gradient: Gradient) -> bool {
        self.targets.iter().any(|target| target.has(gradient))
    }

    /// The loss of a batch, turned if there are transformations, and the errors behind it. With `create_graph` the loss can be differentiated by the weights.
    pub(super) fn evaluate<N: Network>(
        &self,
        model: &AtomisticModel<N>,
        batch: &Batch,
        transformations: Option<&Transformations>,
        create_graph: bool,
        reporting: Reporting,
    ) -> Result<(Tensor, Vec<Term>)> {
        let transformed = transformations.map(|transformations| transformations.systems(batch.systems()));
        let systems = transformed.as_ref().map_or(batch.systems(), |transformed| transformed.systems());
        let tracked = systems.track(self.has(Gradient::Positions), self.has(Gradient::Strain));
        let systems = tracked.systems();
        let names: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
        let predictions = model.network.forward(systems, &names)?;
        let shared = SharedOfBatch {
            type_indices: systems.type_indices(&model.info.atomic_types)?,
            system_indices: systems.system_indices(),
            inverse_counts: systems.atom_counts().into_iter().map(|count| 1.0 / count as f64).collect(),
            dtype: model.dtype,
            systems,
            tracked: &tracked,
            transformations,
            create_graph,
            reporting,
        };
        let mut loss: Option<Tensor> = None;
        let mut terms = Vec::new();
        for (target, blocks) in self.targets.iter().zip(&predictions) {
            for (part, errors) in target.evaluate(model, batch, blocks, &shared)? {
                loss = Some(match loss {
                    Some(sum) => sum + part,
                    None => part,
                });
                terms.extend(errors);
            }
        }
        let loss = loss.ok_or_else(|| Error::Other("there is nothing to learn in a batch".to_owned()))?;
        Ok((loss, terms))
    }
}

/// What all targets of a batch need.
struct SharedOfBatch<'a> {
    systems: Systems<'a>,
    tracked: &'a TrackedSystems,
    transformations: Option<&'a Transformations>,
    type_indices: Tensor,
    system_indices: Tensor,
    /// One over the number of atoms of each system.
    inverse_counts: Vec<f64>,
    dtype: DType,
    create_graph: bool,
    reporting: Reporting,
}

/// What is reported of errors.
#[derive(Clone, Copy)]
pub(super) struct Reporting {
    /// Absolute errors as well.
    pub(super) absolute: bool,
    /// Each block of a target on its own.
    pub(super) separate_blocks: bool,
}

impl SharedOfBatch<'_> {
    /// Divides errors of systems by their number of atoms.
    fn per_atom(&self, errors: Tensor) -> Tensor {
        let mut shape = vec![1; errors.shape().len()];
        shape[0] = self.inverse_counts.len();
        errors * Tensor::from_vec_f64(&shape, self.inverse_counts.clone(), self.dtype)
    }
}

/// Scaled errors of one quantity, 0 where the reference is missing.
struct Errors {
    values: Tensor,
    count: usize,
}

impl Errors {
    fn new(prediction: &Tensor, reference: &Tensor, may_be_missing: bool, dtype: DType) -> Errors {
        let values = prediction - reference;
        if !may_be_missing {
            let count = values.shape().iter().product();
            return Errors { values, count };
        }
        let known = reference.is_finite();
        let count = known.to_vec_bool().into_iter().filter(|&known| known).count();
        Errors { values: known.choose(&values, &Tensor::zeros(&[], dtype)), count }
    }

    /// The sum over the errors of what is minimised, and the sums that are reported.
    fn sums(&self, function: LossFunction, absolute: bool) -> (Tensor, Tensor, Option<Tensor>) {
        let squared = self.values.square().sum_all();
        let magnitude = (absolute || function != LossFunction::Mse).then(|| self.values.abs());
        let absolute_sum = magnitude.as_ref().map(Tensor::sum_all);
        let minimised = match (function, &magnitude, &absolute_sum) {
            (LossFunction::Mae, _, Some(sum)) => sum.clone(),
            (LossFunction::Huber { delta }, Some(magnitude), _) => {
                let quadratic = magnitude.clamp(0.0, delta);
                (&quadratic * (magnitude - &quadratic * 0.5)).sum_all()
            }
            _ => squared.clone(),
        };
        (minimised, squared, absolute_sum.filter(|_| absolute))
    }
}

impl SourceTarget {
    fn has(&self, gradient: Gradient) -> bool {
        self.info.gradients.iter().any(|name| name == gradient.parameter())
    }

    /// The scale that all rows share: physical errors are scaled ones times this.
    fn scale(&self) -> f64 {
        self.normalization.scale.first().copied().unwrap_or(1.0)
    }

    /// The parts of the loss, each with the errors behind it.
    fn evaluate<N: Network>(
        &self,
        model: &AtomisticModel<N>,
        batch: &Batch,
        blocks: &[Tensor],
        shared: &SharedOfBatch<'_>,
    ) -> Result<Vec<(Tensor, Vec<Term>)>> {
        let mut reference = batch.target(&self.name)?;
        if let Some(transformations) = shared.transformations {
            reference = transformations.target(reference, &self.info)?;
        }
        let mut errors = Vec::new();
        let mut predictions = Vec::new();
        for (block, (atoms, reference)) in blocks.iter().zip(&reference.blocks).enumerate() {
            let values = match self.info.sample_kind {
                SampleKind::System => atoms.index_add(0, &shared.system_indices, shared.inverse_counts.len()),
                SampleKind::Atom => atoms.clone(),
            };
            let prediction = self.normalization.scale_properties(block, &values, shared.dtype);
            let target = model
                .normalization
                .to_scaled(
                    &self.name,
                    block,
                    &reference.values,
                    self.info.sample_kind,
                    shared.systems,
                    &shared.type_indices,
                )
                .cast(shared.dtype);
            let error = Errors::new(&prediction, &target, self.missing, shared.dtype);
            errors.push(if self.per_atom { Errors { values: shared.per_atom(error.values), ..error } } else { error });
            predictions.push(prediction);
        }
        let mut parts = vec![self.part(self.loss.values, None, errors, shared)];
        if let (Some(energies), Some(reference)) = (predictions.first(), reference.blocks.first()) {
            parts.extend(self.gradient_parts(energies, &reference.gradients, shared)?);
        }
        Ok(parts)
    }

    /// The part of the loss that some errors make.
    fn part(
        &self,
        term: LossTerm,
        gradient: Option<Gradient>,
        errors: Vec<Errors>,
        shared: &SharedOfBatch<'_>,
    ) -> (Tensor, Vec<Term>) {
        let factor = term.factor(errors.iter().map(|errors| errors.count).sum());
        let mut loss: Option<Tensor> = None;
        let mut terms = Vec::new();
        for (block, errors) in errors.into_iter().enumerate() {
            let (minimised, squared, absolute) = errors.sums(term.function, shared.reporting.absolute);
            let part = minimised * factor;
            loss = Some(match loss {
                Some(sum) => sum + part,
                None => part,
            });
            let (squared, absolute, scale) = match self.physical(&errors, gradient, shared) {
                Some(physical) => {
                    let (_, squared, absolute) = physical.sums(LossFunction::Mse, shared.reporting.absolute);
                    (squared, absolute, 1.0)
                }
                None => (squared, absolute, self.scale()),
            };
            let block = shared.reporting.separate_blocks.then(|| self.name_of_block(block));
            let per_atom =
                gradient != Some(Gradient::Positions) && (self.per_atom || self.info.sample_kind == SampleKind::Atom);
            let measured = Measured { target: self.name.clone(), block, gradient, per_atom };
            terms.push(Term {
                measured,
                squared: squared.detach(),
                absolute: absolute.map(|sum| sum.detach()),
                count: errors.count,
                scale,
            });
        }
        (loss.unwrap_or_else(|| Tensor::zeros(&[], shared.dtype)), terms)
    }

    /// What a block is called among the errors: its key, such as `o3_lambda=1,o3_sigma=1`.
    fn name_of_block(&self, block: usize) -> String {
        let keys = &self.layout.keys;
        let key = keys.entries().nth(block).unwrap_or_default();
        let parts: Vec<String> = keys.names.iter().zip(key).map(|(name, value)| format!("{name}={value}")).collect();
        parts.join(",")
    }

    /// Errors in physical units, if each type has its own scale.
    fn physical(&self, errors: &Errors, gradient: Option<Gradient>, shared: &SharedOfBatch<'_>) -> Option<Errors> {
        let scale = &self.normalization.scale;
        if gradient.is_some() || scale.iter().all(|&other| other == scale[0]) {
            return None;
        }
        let mut shape = vec![1; errors.values.shape().len()];
        shape[0] = scale.len();
        let rows = Tensor::from_vec_f64(&shape, scale.clone(), shared.dtype).select(0, &shared.type_indices);
        Some(Errors { values: errors.values.detach() * rows, count: errors.count })
    }

    /// The parts of the loss that the gradients of `energies` make.
    fn gradient_parts(
        &self,
        energies: &Tensor,
        references: &[GradientBlock],
        shared: &SharedOfBatch<'_>,
    ) -> Result<Vec<(Tensor, Vec<Term>)>> {
        let leaves = [(Gradient::Positions, &shared.tracked.positions), (Gradient::Strain, &shared.tracked.strain)];
        let wanted: Vec<(Gradient, &Tensor)> = leaves
            .into_iter()
            .filter(|&(gradient, _)| self.has(gradient))
            .filter_map(|(gradient, leaf)| Some((gradient, leaf.as_ref()?)))
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let inputs: Vec<&Tensor> = wanted.iter().map(|&(_, leaf)| leaf).collect();
        let gradients = grad(&[energies], &inputs, shared.create_graph);
        let mut parts = Vec::new();
        for ((gradient, _), prediction) in wanted.into_iter().zip(gradients) {
            let parameter = gradient.parameter();
            let reference = references.iter().find(|block| block.parameter == parameter).ok_or_else(|| {
                Error::UnsupportedDataset(format!(
                    "`{}` has no gradient with respect to `{parameter}` in a batch, though its dataset has",
                    self.name
                ))
            })?;
            let target = (reference.values.reshape(&prediction.shape()) / self.scale()).cast(shared.dtype);
            let errors = Errors::new(&prediction, &target, self.missing, shared.dtype);
            let (term, errors) = match gradient {
                Gradient::Positions => (self.loss.positions, errors),
                Gradient::Strain if self.per_atom => {
                    (self.loss.strain, Errors { values: shared.per_atom(errors.values), ..errors })
                }
                Gradient::Strain => (self.loss.strain, errors),
            };
            parts.push(self.part(term, Some(gradient), vec![errors], shared));
        }
        Ok(parts)
    }
}
