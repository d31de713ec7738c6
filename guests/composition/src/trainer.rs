//! The trainer: one least-squares fit, then a look at what it leaves.

use kilnbox_sdk::{
    Result, architecture,
    architecture::{Model as _, TrainingRun, parse_hypers},
    checkpoint::Checkpoint,
    data::{BatchOptions, Dataset},
    hypers::FixedWeights,
    info::{Context, DType, SampleKind},
    metrics::{ErrorSums, Measured, metrics},
    normalization::FitOptions,
    report,
};
use serde::Deserialize;

use crate::model::Model;

/// Systems that are read together, unless the options say otherwise: enough to make calls into the host rare.
const BATCH_SIZE: usize = 128;

/// The `training` section of the options.
#[derive(Debug, Deserialize)]
pub struct Hypers {
    /// Weights that are not fitted.
    #[serde(default)]
    pub atomic_baseline: FixedWeights,
    /// Systems that are read together.
    #[serde(default)]
    pub batch_size: Option<usize>,
}

/// A run, of which nothing has to be remembered.
pub struct Trainer {
    hypers: Hypers,
}

impl architecture::Trainer for Trainer {
    type Model = Model;

    const CHECKPOINT_VERSION: u32 = 1;

    fn new(hypers: &str) -> Result<Self> {
        Ok(Trainer { hypers: parse_hypers("training", hypers)? })
    }

    fn load_checkpoint(_: &Checkpoint, hypers: &str, _: Context) -> Result<Self> {
        Self::new(hypers)
    }

    fn train(&mut self, model: &mut Model, run: TrainingRun) -> Result<()> {
        let options = FitOptions {
            atomic_baseline: &self.hypers.atomic_baseline,
            scale_targets: false,
            fixed_scaling_weights: &FixedWeights::new(),
            per_structure_targets: &[],
        };
        model.baseline.fit(&run.train, &model.info, &options)?;
        let training = self.errors(model, &run.train)?;
        let validation = self.errors(model, &run.validation)?;
        // a fit has no loss; the sum of its squared errors is what it has minimised
        let metrics_of = |errors: &[(Measured, ErrorSums)]| {
            let loss = errors.iter().map(|(_, sums)| sums.squared).sum();
            if errors.is_empty() { Vec::new() } else { metrics(loss, errors, true, &model.info) }
        };
        report::epoch(0, 0.0, &metrics_of(&training), &metrics_of(&validation));
        let mut checkpoint = self.checkpoint(model)?;
        checkpoint.model_version = Model::CHECKPOINT_VERSION;
        run.folder.save("model", checkpoint)
    }

    fn checkpoint(&mut self, model: &mut Model) -> Result<Checkpoint> {
        let mut checkpoint = model.checkpoint()?;
        checkpoint.trainer_version = Self::CHECKPOINT_VERSION;
        checkpoint.epoch = Some(1);
        Ok(checkpoint)
    }
}

impl Trainer {
    /// What the model leaves of each target: values of systems per atom.
    fn errors(&self, model: &Model, datasets: &[Dataset]) -> Result<Vec<(Measured, ErrorSums)>> {
        let mut errors = Vec::new();
        for target in &model.info.targets {
            let per_atom = target.info.sample_kind == SampleKind::System;
            let mut sums = ErrorSums::default();
            let options = BatchOptions {
                dtype: DType::Float64,
                neighbor_lists: Vec::new(),
                targets: vec![target.name.clone()],
                extra_data: Vec::new(),
            };
            for dataset in datasets.iter().filter(|dataset| dataset.info().target(&target.name).is_some()) {
                for batch in dataset.in_order(self.hypers.batch_size.unwrap_or(BATCH_SIZE), &options)? {
                    let batch = batch?;
                    let predicted = model.forward(batch.systems(), &[target.output()], None)?;
                    let known = batch.target(&target.name)?;
                    let counts = batch.systems().atom_counts();
                    for (predicted, known) in predicted.iter().flat_map(|map| &map.blocks).zip(&known.blocks) {
                        let differences = (&predicted.values - &known.values).to_vec_f64();
                        let width = differences.len() / known.samples.len().max(1);
                        for (position, difference) in differences.into_iter().enumerate() {
                            let divisor = if per_atom { counts[position / width] as f64 } else { 1.0 };
                            sums.add(difference / divisor);
                        }
                    }
                }
            }
            let measured = Measured { target: target.name.clone(), block: None, gradient: None, per_atom: true };
            errors.push((measured, sums));
        }
        errors.retain(|(_, sums)| sums.count > 0);
        Ok(errors)
    }
}
