//! Training by gradients: everything that metatrain's trainers share.
//!
//! [`GradientTrainer`] trains any [`Network`] on any number of targets, with forces and stress where the data has them. Each epoch shuffles the training
//! set, takes one optimizer step per batch, validates, reports, and keeps the best weights. All state is in its checkpoints, so that an
//! interrupted run ends with the same bits as one that was not.

mod finetuning;
mod source;
mod totals;

use std::{
    collections::{BTreeMap, BTreeSet},
    marker::PhantomData,
};

use serde::{Deserialize, Serialize};

use self::{
    finetuning::Trained,
    source::{Reporting, Source},
    totals::Totals,
};
use crate::{
    Error, Result,
    architecture::{Model, Trainer, TrainingRun},
    batching,
    checkpoint::{Checkpoint, CheckpointFolder},
    data::Dataset,
    hypers::{FinetuneHypers, FinetuneMethod, TrainingHypers},
    info::Context,
    layers::Module,
    loss,
    metrics::{self, BestModelMetric},
    model::{AtomisticModel, BEST},
    network::Network,
    normalization::FitOptions,
    optimizer::{Adam, clip_gradients},
    random, report,
    schedule::WarmupCosine,
    tensor::{Tensor, grad_and_release},
};

/// Where the optimizer's moments are in a checkpoint.
const FIRST_MOMENTS: &str = "optimizer/first_moment/";
const SECOND_MOMENTS: &str = "optimizer/second_moment/";

/// Trains an [`AtomisticModel`] with Adam, as the options in [`TrainingHypers`] say.
pub struct GradientTrainer<N: Network> {
    hypers: TrainingHypers,
    epochs_done: u32,
    optimizer: Adam,
    trained: Trained,
    /// Whether the run starts from another model now: a run that continues has done so before.
    starts_from_model: bool,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finetune: Option<FinetuneHypers>,
}

impl<N: Network> GradientTrainer<N> {
    fn fresh(hypers: TrainingHypers) -> Self {
        let optimizer = Adam::new(hypers.weight_decay.unwrap_or(0.0));
        GradientTrainer {
            hypers,
            epochs_done: 0,
            optimizer,
            trained: Trained::default(),
            starts_from_model: false,
            best: None,
            random_state: None,
            network: PhantomData,
        }
    }
}

impl<N: Network> Trainer for GradientTrainer<N> {
    type Model = AtomisticModel<N>;

    const CHECKPOINT_VERSION: u32 = 1;

    fn new(hypers: &str) -> Result<Self> {
        let mut hypers = TrainingHypers::parse(hypers)?;
        hypers.finetune = hypers.finetune.filter(|finetune| finetune.read_from.is_some());
        Ok(Self::fresh(hypers))
    }

    fn load_checkpoint(checkpoint: &Checkpoint, hypers: &str, context: Context) -> Result<Self> {
        let mut trainer = <Self as Trainer>::new(hypers)?;
        if context != Context::Restart {
            trainer.starts_from_model = true;
            return Ok(trainer);
        }
        let progress: Progress = checkpoint.section("training")?;
        trainer.continue_finetuning(checkpoint, progress.finetune)?;
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
        self.choose_trained(model, train.iter().chain(&validation))?;
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
        let (all, trained) = (model.network.parameter_count(), self.trained.of(&mut model.network).parameter_count());
        report::info(&match &hypers.finetune {
            None => format!("The model has {all} parameters"),
            Some(finetune) => format!(
                "The model has {all} parameters; fine-tuning with the method `{}` trains {trained}",
                finetune.method.name()
            ),
        });
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
            finetune: self.hypers.finetune.clone(),
        };
        checkpoint.set_section("training", &progress)?;
        self.trained.save(&mut checkpoint);
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
        self.trained.of(&mut model.network).visit(&mut |name, _| new |= !known.contains_key(name));
        if new && !known.is_empty() {
            report::warning("The model has new parameters: the optimizer and the choice of the best model begin anew");
            self.optimizer = Adam::new(self.optimizer.weight_decay);
            self.best = None;
        }
    }

    /// Goes on as the run did that left a checkpoint: with its method and, if it has some, its adapters.
    fn continue_finetuning(&mut self, checkpoint: &Checkpoint, before: Option<FinetuneHypers>) -> Result<()> {
        let method = before.as_ref().map_or(&FinetuneMethod::Full, |finetune| &finetune.method);
        if let Some(other) = self.hypers.finetune.as_ref().filter(|finetune| finetune.method != *method) {
            return Err(Error::InvalidHypers(format!(
                "`training.finetune` asks for the method `{}`, and the run that is continued has `{}` or another `config`; start a new run from \
                 its checkpoint with `training.finetune.read_from`",
                other.method.name(),
                method.name()
            )));
        }
        self.trained = Trained::load(checkpoint, method)?;
        self.hypers.finetune = before;
        Ok(())
    }

    /// Decides what is trained, and makes the rest of the network constant.
    fn choose_trained<'a>(
        &mut self,
        model: &mut AtomisticModel<N>,
        datasets: impl Iterator<Item = &'a Dataset>,
    ) -> Result<()> {
        let targets = datasets.flat_map(|dataset| dataset.info().targets);
        let learned: BTreeSet<String> = targets.map(|target| target.name).collect();
        self.trained = match &self.hypers.finetune {
            Some(finetune) => {
                if std::mem::take(&mut self.starts_from_model) {
                    finetuning::prepare(finetune, model, &learned)?;
                }
                std::mem::take(&mut self.trained).finetuned(&finetune.method, model, &learned)?
            }
            None => Trained::all(model, &learned),
        };
        Ok(())
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
                let parameters = model.network.parameters().into_iter();
                let parameters = parameters.map(|(name, parameter)| (name, parameter.detach())).collect();
                self.best = Some(Best { epoch, metric, parameters });
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
            let batch = batch?;
            let transformations = N::AUGMENTATION.draw(batch.systems().count());
            let (loss, terms) =
                sources[position].evaluate(model, &batch, transformations.as_ref(), true, self.reporting())?;
            let parameters = self.trained.of(&mut model.network).parameters();
            let reached = loss.detach();
            let values: Vec<&Tensor> = parameters.iter().map(|(_, parameter)| parameter).collect();
            let mut gradients = grad_and_release(vec![loss], &values);
            if let Some(maximum) = self.hypers.grad_clip_norm {
                gradients = clip_gradients(gradients, maximum);
            }
            let learning_rate = schedule.rate(self.optimizer.steps());
            let mut trained = self.trained.of(&mut model.network);
            self.optimizer.step(&mut trained, parameters, &gradients, learning_rate);
            self.trained.after_step(&mut model.network);
            totals.add(&reached, terms);
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
                let (loss, terms) = source.evaluate(model, &batch?, None, false, self.reporting())?;
                totals.add(&loss, terms);
            }
        }
        Ok(totals)
    }
}
