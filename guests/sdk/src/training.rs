//! Training by gradients: everything that metatrain's trainers share.
//!
//! [`GradientTrainer`] trains any [`Network`] on any number of targets, with forces and stress where the data has them. Each epoch shuffles the training
//! set, takes one optimizer step per batch, validates, reports, and keeps the best weights. All state is in its checkpoints, so that an
//! interrupted run ends with the same bits as one that was not.

use std::{collections::BTreeMap, marker::PhantomData};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    architecture::{Model, Trainer, TrainingRun},
    batching,
    checkpoint::{Checkpoint, CheckpointFolder},
    data::{Batch, BatchOptions, Batches, Dataset, GradientBlock, Systems, TrackedSystems},
    hypers::TrainingHypers,
    info::{Context, DType, Layout, SampleKind, TargetInfo},
    loss::{self, LossFunction, LossTerm, TargetLoss},
    metrics::{self, BestModelMetric, ErrorSums, Gradient, Measured},
    model::{AtomisticModel, BEST},
    network::Network,
    normalization::{FitOptions, TargetNormalization},
    optimizer::{Adam, clip_gradients},
    random, report,
    schedule::WarmupCosine,
    tensor::{Tensor, grad},
};

/// Where the optimizer's moments are in a checkpoint.
const FIRST_MOMENTS: &str = "optimizer/first_moment/";
const SECOND_MOMENTS: &str = "optimizer/second_moment/";

/// Trains an [`AtomisticModel`] with Adam, as the options in [`TrainingHypers`] say.
pub struct GradientTrainer<N: Network> {
    hypers: TrainingHypers,
    epochs_done: u32,
    optimizer: Adam,
    best: Option<Best>,
    /// Where the random stream stood after the last epoch.
    random_state: Option<Vec<u8>>,
    network: PhantomData<N>,
}

/// The best weights so far.
struct Best {
    epoch: u32,
    metric: f64,
    parameters: BTreeMap<String, Tensor>,
}

/// What a checkpoint says of a training besides its tensors.
#[derive(Serialize, Deserialize)]
struct Progress {
    epochs_done: u32,
    steps: u64,
    best_epoch: Option<u32>,
    best_metric: Option<f64>,
    random_state: Option<Vec<u8>>,
}

impl<N: Network> GradientTrainer<N> {
    fn fresh(hypers: TrainingHypers) -> Self {
        let optimizer = Adam::new(hypers.weight_decay.unwrap_or(0.0));
        GradientTrainer { hypers, epochs_done: 0, optimizer, best: None, random_state: None, network: PhantomData }
    }
}

impl<N: Network> Trainer for GradientTrainer<N> {
    type Model = AtomisticModel<N>;

    const CHECKPOINT_VERSION: u32 = 1;

    fn new(hypers: &str) -> Result<Self> {
        Ok(Self::fresh(TrainingHypers::parse(hypers)?))
    }

    fn load_checkpoint(checkpoint: &Checkpoint, hypers: &str, context: Context) -> Result<Self> {
        let mut trainer = <Self as Trainer>::new(hypers)?;
        if context != Context::Restart {
            return Ok(trainer);
        }
        let progress: Progress = checkpoint.section("training")?;
        let mut second = checkpoint.tensors_in(SECOND_MOMENTS);
        let moments = checkpoint
            .tensors_in(FIRST_MOMENTS)
            .into_iter()
            .filter_map(|(name, first)| Some((name.clone(), (first, second.remove(&name)?))));
        trainer.optimizer = Adam::resume(trainer.optimizer.weight_decay, progress.steps, moments.collect());
        trainer.best = progress.best_epoch.zip(progress.best_metric).map(|(epoch, metric)| Best {
            epoch,
            metric,
            parameters: checkpoint.tensors_in(BEST),
        });
        trainer.epochs_done = progress.epochs_done;
        trainer.random_state = progress.random_state;
        Ok(trainer)
    }

    fn train(&mut self, model: &mut AtomisticModel<N>, run: TrainingRun) -> Result<()> {
        let TrainingRun { dtype, train, validation, folder, .. } = run;
        if dtype != model.dtype {
            return Err(Error::Other(format!("the run is in {dtype:?}, the model in {:?}", model.dtype)));
        }
        let hypers = self.hypers.clone();
        report::info("Fitting the composition baseline and the scale of the targets");
        let options = FitOptions {
            atomic_baseline: &hypers.atomic_baseline,
            scale_targets: hypers.scale_targets,
            fixed_scaling_weights: &hypers.fixed_scaling_weights,
            per_structure_targets: &hypers.per_structure_targets,
        };
        model.normalization.fit(&train, &model.info, &options)?;
        let train = self.sources(train, model)?;
        let validation = self.sources(validation, model)?;
        self.forget_other_parameters(model);
        report::info(&format!("The model has {} parameters", model.network.parameter_count()));
        if let Some(state) = &self.random_state {
            random::set_state(state)?;
        }
        let steps_per_epoch = train
            .iter()
            .map(|source| self.training_batches(source, (0..source.atom_counts.len()).collect()))
            .try_fold(0, |sum, batches| -> Result<u64> { Ok(sum + batches?.len() as u64) })?;
        let schedule = WarmupCosine::new(
            hypers.learning_rate,
            hypers.warmup_fraction,
            u64::from(hypers.num_epochs) * steps_per_epoch,
        );
        for epoch in self.epochs_done..hypers.num_epochs {
            self.epoch(epoch, model, &train, &validation, &schedule)?;
            if epoch % hypers.checkpoint_interval == 0 {
                self.save(&format!("model_{epoch}"), model, &folder)?;
            }
        }
        if let Some(best) = &self.best {
            report::info(&format!("The best model is that of epoch {}", best.epoch));
        }
        self.save("model", model, &folder)
    }

    fn checkpoint(&mut self, model: &mut AtomisticModel<N>) -> Result<Checkpoint> {
        let mut checkpoint = model.checkpoint()?;
        checkpoint.trainer_version = Self::CHECKPOINT_VERSION;
        checkpoint.epoch = Some(self.epochs_done);
        let progress = Progress {
            epochs_done: self.epochs_done,
            steps: self.optimizer.steps(),
            best_epoch: self.best.as_ref().map(|best| best.epoch),
            best_metric: self.best.as_ref().map(|best| best.metric),
            random_state: self.random_state.clone(),
        };
        checkpoint.set_section("training", &progress)?;
        for (name, (first, second)) in self.optimizer.moments() {
            checkpoint.add_tensors(FIRST_MOMENTS, [(name.clone(), first.clone())]);
            checkpoint.add_tensors(SECOND_MOMENTS, [(name.clone(), second.clone())]);
        }
        if let Some(best) = &self.best {
            checkpoint.add_tensors(BEST, best.parameters.clone());
        }
        Ok(checkpoint)
    }
}

impl<N: Network> GradientTrainer<N> {
    fn save(&mut self, name: &str, model: &mut AtomisticModel<N>, folder: &CheckpointFolder) -> Result<()> {
        let mut checkpoint = self.checkpoint(model)?;
        checkpoint.model_version = AtomisticModel::<N>::CHECKPOINT_VERSION;
        folder.save(name, checkpoint)
    }

    /// A restart with new targets has parameters that the best weights and the optimizer do not know: they begin anew.
    fn forget_other_parameters(&mut self, model: &mut AtomisticModel<N>) {
        let known = self.optimizer.moments();
        let mut new = false;
        model.network.visit(&mut |name, _| new |= !known.contains_key(name));
        if new && !known.is_empty() {
            report::warning("The model has new parameters: the optimizer and the choice of the best model begin anew");
            self.optimizer = Adam::new(self.optimizer.weight_decay);
            self.best = None;
        }
    }

    /// The datasets with all that is needed to learn from them.
    fn sources(&self, datasets: Vec<Dataset>, model: &AtomisticModel<N>) -> Result<Vec<Source>> {
        let losses = loss::parse(&self.hypers.loss, &model.info.targets)?;
        let sources = datasets.into_iter().filter(|dataset| !dataset.is_empty());
        sources.map(|dataset| Source::new(dataset, model, &losses, &self.hypers.per_structure_targets)).collect()
    }

    /// The batches of an epoch over a training set.
    fn training_batches(&self, source: &Source, order: Vec<usize>) -> Result<Vec<Vec<usize>>> {
        let hypers = &self.hypers;
        let batches = match hypers.max_atoms_per_batch {
            Some(maximum) => {
                batching::by_atoms(&order, &source.atom_counts, hypers.min_atoms_per_batch, maximum).batches
            }
            None => batching::by_count(&order, hypers.batch_size, true),
        };
        if !batches.is_empty() {
            return Ok(batches);
        }
        Err(Error::InvalidHypers(match hypers.max_atoms_per_batch {
            Some(maximum) => format!(
                "no batch of the training set has at most {maximum} atoms; raise `training.max_atoms_per_batch`"
            ),
            None => format!(
                "the training set has {} systems, fewer than `training.batch_size` ({}); lower `training.batch_size`",
                order.len(),
                hypers.batch_size
            ),
        }))
    }

    /// The batches of a validation set: all systems, in their order.
    fn validation_batches(&self, source: &Source) -> Vec<Vec<usize>> {
        let order: Vec<usize> = (0..source.atom_counts.len()).collect();
        match self.hypers.max_atoms_per_batch {
            Some(maximum) => batching::by_atoms(&order, &source.atom_counts, 0, maximum).batches,
            None => batching::by_count(&order, self.hypers.batch_size, false),
        }
    }

    fn reporting(&self) -> Reporting {
        Reporting {
            absolute: self.hypers.log_mae || self.hypers.best_model_metric == BestModelMetric::MaeProd,
            separate_blocks: self.hypers.log_separate_blocks,
        }
    }

    /// One pass over the training set, then over the validation set.
    fn epoch(
        &mut self,
        epoch: u32,
        model: &mut AtomisticModel<N>,
        train: &[Source],
        validation: &[Source],
        schedule: &WarmupCosine,
    ) -> Result<()> {
        let trained = self.train_epoch(epoch, model, train, schedule)?;
        let (loss, errors) = trained.finish();
        if !loss.is_finite() {
            return Err(Error::TrainingFailed(format!(
                "the training loss is {loss} in epoch {epoch}; lower `training.learning_rate`"
            )));
        }
        let training = metrics::metrics(loss, &errors, self.hypers.log_mae, &model.info);
        let (validation_loss, validation_errors) = self.validate(model, validation)?.finish();
        let mut validated = Vec::new();
        if !validation.is_empty() {
            validated = metrics::metrics(validation_loss, &validation_errors, self.hypers.log_mae, &model.info);
            let metric = self.hypers.best_model_metric.of(validation_loss, &validation_errors);
            if self.best.as_ref().is_none_or(|best| metric < best.metric) && metric.is_finite() {
                self.best = Some(Best { epoch, metric, parameters: model.network.parameters().into_iter().collect() });
            }
        }
        self.epochs_done = epoch + 1;
        self.random_state = Some(random::state());
        if epoch % self.hypers.log_interval == 0 || epoch + 1 == self.hypers.num_epochs {
            report::epoch(epoch, schedule.rate(self.optimizer.steps()), &training, &validated);
        }
        Ok(())
    }

    fn train_epoch(
        &mut self,
        epoch: u32,
        model: &mut AtomisticModel<N>,
        sources: &[Source],
        schedule: &WarmupCosine,
    ) -> Result<Totals> {
        let mut streams = Vec::new();
        let mut order = Vec::new();
        for (position, source) in sources.iter().enumerate() {
            let batches = self.training_batches(source, random::permutation(source.atom_counts.len()))?;
            order.extend(vec![position; batches.len()]);
            streams.push(source.batches(&batches, model)?);
        }
        if sources.len() > 1 {
            // a batch never mixes datasets, so it is the datasets that are mixed
            order = random::permutation(order.len()).into_iter().map(|position| order[position]).collect();
        }
        let mut totals = Totals::default();
        for (done, &position) in order.iter().enumerate() {
            let Some(batch) = streams[position].next() else {
                continue;
            };
            let (loss, terms) = sources[position].evaluate(model, &batch?, true, self.reporting())?;
            let parameters = model.network.parameters();
            let mut gradients =
                grad(&[&loss], &parameters.iter().map(|(_, parameter)| parameter).collect::<Vec<_>>(), false);
            if let Some(maximum) = self.hypers.grad_clip_norm {
                gradients = clip_gradients(gradients, maximum);
            }
            let learning_rate = schedule.rate(self.optimizer.steps());
            self.optimizer.step(&mut model.network, &gradients, learning_rate);
            totals.add(&loss, terms);
            report::step(epoch, self.hypers.num_epochs, done + 1, order.len());
        }
        Ok(totals)
    }

    fn validate(&self, model: &mut AtomisticModel<N>, sources: &[Source]) -> Result<Totals> {
        // with constant weights only what leads to the positions is recorded
        let parameters = model.network.parameters();
        model.network.visit(&mut |_, parameter| *parameter = parameter.detach());
        let totals = self.validate_constant(model, sources);
        let mut parameters = parameters.into_iter();
        model.network.visit(&mut |_, parameter| {
            if let Some((_, tracked)) = parameters.next() {
                *parameter = tracked;
            }
        });
        totals
    }

    fn validate_constant(&self, model: &AtomisticModel<N>, sources: &[Source]) -> Result<Totals> {
        let mut totals = Totals::default();
        for source in sources {
            for batch in source.batches(&self.validation_batches(source), model)? {
                let (loss, terms) = source.evaluate(model, &batch?, false, self.reporting())?;
                totals.add(&loss, terms);
            }
        }
        Ok(totals)
    }
}

/// A dataset and what is learned from it.
struct Source {
    dataset: Dataset,
    atom_counts: Vec<usize>,
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

/// Errors of one batch in one quantity, summed on the device.
struct Term {
    measured: Measured,
    squared: Tensor,
    absolute: Option<Tensor>,
    count: usize,
    /// Scaled errors times this are physical.
    scale: f64,
}

impl Source {
    fn new<N: Network>(
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

    fn batches<N: Network>(&self, batches: &[Vec<usize>], model: &AtomisticModel<N>) -> Result<Batches> {
        let options = BatchOptions {
            dtype: model.dtype,
            neighbor_lists: model.network.neighbor_lists(),
            targets: self.targets.iter().map(|target| target.name.clone()).collect(),
            extra_data: model.requested_inputs(),
        };
        self.dataset.batches(batches, &options)
    }

    fn has(&self, gradient: Gradient) -> bool {
        self.targets.iter().any(|target| target.has(gradient))
    }

    /// The loss of a batch and the errors behind it. With `create_graph` the loss can be differentiated by the weights.
    fn evaluate<N: Network>(
        &self,
        model: &AtomisticModel<N>,
        batch: &Batch,
        create_graph: bool,
        reporting: Reporting,
    ) -> Result<(Tensor, Vec<Term>)> {
        let tracked = batch.systems().track(self.has(Gradient::Positions), self.has(Gradient::Strain));
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
struct Reporting {
    /// Absolute errors as well.
    absolute: bool,
    /// Each block of a target on its own.
    separate_blocks: bool,
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
        let reference = batch.target(&self.name)?;
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
            let key = self.layout.keys.entries().nth(block).unwrap_or_default();
            let key: Vec<String> =
                self.layout.keys.names.iter().zip(key).map(|(name, value)| format!("{name}={value}")).collect();
            let block = shared.reporting.separate_blocks.then(|| key.join(","));
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

/// Scalars that are added up on the host, though not one by one: reading each at once would make the device wait.
#[derive(Default)]
struct Sum {
    pending: Vec<Tensor>,
    sum: f64,
}

impl Sum {
    /// So many scalars are read together.
    const PENDING: usize = 256;

    fn add(&mut self, scalar: Tensor) {
        self.pending.push(scalar.reshape(&[1]));
        if self.pending.len() == Self::PENDING {
            self.read();
        }
    }

    fn read(&mut self) {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.sum += Tensor::concatenate(&pending.iter().collect::<Vec<_>>(), 0).to_vec_f64().iter().sum::<f64>();
        }
    }

    fn total(mut self) -> f64 {
        self.read();
        self.sum
    }
}

/// The errors of an epoch.
#[derive(Default)]
struct Totals {
    loss: Sum,
    batches: usize,
    quantities: Vec<Quantity>,
}

struct Quantity {
    measured: Measured,
    squared: Sum,
    absolute: Sum,
    count: usize,
    scale: f64,
}

impl Totals {
    fn add(&mut self, loss: &Tensor, terms: Vec<Term>) {
        self.loss.add(loss.detach());
        self.batches += 1;
        for term in terms {
            let position =
                self.quantities.iter().position(|quantity| quantity.measured == term.measured).unwrap_or_else(|| {
                    let (squared, absolute) = <(Sum, Sum)>::default();
                    self.quantities.push(Quantity {
                        measured: term.measured,
                        squared,
                        absolute,
                        count: 0,
                        scale: term.scale,
                    });
                    self.quantities.len() - 1
                });
            let quantity = &mut self.quantities[position];
            quantity.squared.add(term.squared);
            if let Some(absolute) = term.absolute {
                quantity.absolute.add(absolute);
            }
            quantity.count += term.count;
        }
    }

    /// The mean loss of a batch, and the errors in physical units.
    fn finish(self) -> (f64, Vec<(Measured, ErrorSums)>) {
        let loss = self.loss.total() / self.batches as f64;
        let errors = self.quantities.into_iter().map(|quantity| {
            let Quantity { measured, squared, absolute, count, scale } = quantity;
            (
                measured,
                ErrorSums { squared: squared.total() * scale * scale, absolute: absolute.total() * scale, count },
            )
        });
        (loss, errors.collect())
    }
}
