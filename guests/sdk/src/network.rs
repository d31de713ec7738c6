//! The part of an architecture that differs from all others: a [`Network`] of atoms. The SDK makes a complete model of it.
//!
//! A network predicts numbers per atom in units of the target's own spread. [`AtomisticModel`](crate::model::AtomisticModel) adds what all have in common: the composition
//! baseline and the scale, sums over atoms, selected atoms, checkpoints and export. [`GradientTrainer`](crate::training::GradientTrainer)
//! trains it.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Error, Result,
    augmentation::Augmentation,
    checkpoint::Checkpoint,
    data::Systems,
    info::{DType, DatasetInfo, ModelOutput, NamedTarget, NeighborListOptions},
    layers::Module,
    tensor::Tensor,
};

/// A network that predicts values of atoms.
pub trait Network: Module + Sized + 'static {
    /// The `model` section of the options.
    type Hypers: DeserializeOwned + Serialize;

    /// The version of the network's parameters, raised whenever their names, shapes or meaning change.
    const CHECKPOINT_VERSION: u32 = 1;

    /// What is done to training data before the network sees them. A network whose values turn with the system by construction needs nothing.
    const AUGMENTATION: Augmentation = Augmentation::None;

    /// A network with fresh weights, drawn from [`random`](crate::random), for the types and targets of `info`.
    ///
    /// # Errors
    /// When it cannot learn a target ([`Error::UnsupportedTarget`]) or the hypers contradict each other.
    fn new(hypers: &Self::Hypers, info: &DatasetInfo, dtype: DType) -> Result<Self>;

    /// Gives the network what it needs for further targets, with fresh weights: a run that starts from a checkpoint has new ones.
    ///
    /// # Errors
    /// When it cannot learn one.
    fn add_targets(&mut self, hypers: &Self::Hypers, targets: &[NamedTarget], dtype: DType) -> Result<()>;

    /// Whether a parameter belongs to the head or to a last layer of a target, and not to what all targets share: fine-tuning trains, copies and drops
    /// these on their own. The target's name stands between dots. By default it is what lies below modules whose names end with `heads` or
    /// `last_layers`, such as `node_heads.energy.layers.0.weight`.
    fn is_of_target(parameter: &str, target: &str) -> bool {
        let Some((module, rest)) = parameter.split_once('.') else { return false };
        (module.ends_with("heads") || module.ends_with("last_layers"))
            && rest.strip_prefix(target).is_some_and(|rest| rest.starts_with('.'))
    }

    /// A checkpoint of an older version as one of the present version. Called only for older ones. The network's parameters are the tensors whose
    /// names begin with `model/` and, once trained, `best_model/`; its hypers are in the section `model`.
    ///
    /// # Errors
    /// When it is too old.
    fn upgrade_checkpoint(checkpoint: Checkpoint) -> Result<Checkpoint> {
        Err(Error::IncompatibleCheckpoint(format!(
            "the checkpoint's model has version {}, which this architecture (version {}) cannot upgrade",
            checkpoint.model_version,
            Self::CHECKPOINT_VERSION
        )))
    }

    /// The neighbour lists that [`forward`](Network::forward) will ask for.
    fn neighbor_lists(&self) -> Vec<NeighborListOptions>;

    /// The extra data that [`forward`](Network::forward) will ask the systems for where they have it, such as `charge`.
    fn requested_inputs(&self) -> Vec<String> {
        Vec::new()
    }

    /// How far away an atom can matter, in the length unit; infinity if there is no bound.
    fn interaction_range(&self) -> f64;

    /// Outputs beside the targets: `feature`, `mtt::aux::energy_last_layer_features`. Theirs are one block without components.
    fn auxiliary_outputs(&self) -> Vec<ModelOutput> {
        Vec::new()
    }

    /// For each name in `outputs` (targets and auxiliary outputs) its blocks, `[atoms, .. components, properties]` each: the raw numbers of
    /// every atom, before scale and baseline. Differentiable in the positions and cells of `systems`.
    ///
    /// # Errors
    /// When a system has an element that the network does not know.
    fn forward(&self, systems: Systems<'_>, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>>;

    /// As [`forward`](Network::forward), of the atoms in these rows alone (int64, each once); all others are only somebody's neighbours. By default the rows are taken from those of all
    /// atoms. A network that computes an atom from its neighbours, and nothing more, does better to leave the others out: large structures are evaluated in parts, of
    /// which many atoms are there as neighbours.
    ///
    /// # Errors
    /// As `forward`.
    fn forward_selected(&self, systems: Systems<'_>, outputs: &[&str], atoms: &Tensor) -> Result<Vec<Vec<Tensor>>> {
        let mut outputs = self.forward(systems, outputs)?;
        outputs.iter_mut().flatten().for_each(|values| *values = values.select(0, atoms));
        Ok(outputs)
    }
}
