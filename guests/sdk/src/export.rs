//! The component's side of the contract: what [`export_architecture!`](crate::export_architecture) exports.

use std::{cell::RefCell, marker::PhantomData, sync::Once};

use crate::{
    Error,
    architecture::{Model, Trainer, TrainingRun},
    checkpoint::{Checkpoint, CheckpointFolder},
    contract::{
        about, checkpoint, data,
        errors::ArchitectureError,
        model::{self, ModelBorrow},
        report, tensor, trainer,
    },
    data::{Dataset, Systems},
    info::{About, Equivariance, Labels, ModelOutput},
};

/// What the macro implements for the crate.
pub trait Architecture: 'static {
    /// Its trainer, which knows its model.
    type Trainer: Trainer;

    /// What it says of itself.
    fn about() -> About;
}

/// The exports of an architecture.
pub struct Component<A>(PhantomData<A>);

/// The contract's resource `model`. A call into a resource may change it, hence the cell; calls never overlap.
pub struct ModelResource<A: Architecture>(RefCell<<A::Trainer as Trainer>::Model>);

/// The contract's resource `trainer`.
pub struct TrainerResource<A: Architecture>(RefCell<A::Trainer>, PhantomData<A>);

type Answer<T> = Result<T, ArchitectureError>;

/// Makes a panic tell its message and place before it traps: a sandbox has no standard error.
fn report_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|panic| report::panic(&panic.to_string()))));
}

impl<A: Architecture> about::Guest for Component<A> {
    fn describe() -> about::About {
        report_panics();
        let about = A::about();
        about::About {
            authors: about.authors,
            maintainers: about.maintainers,
            references: about::References {
                architecture: about.references.architecture,
                implementation: about.references.implementation,
            },
            supported_devices: about.supported_devices,
            supported_dtypes: about.supported_dtypes.into_iter().map(Into::into).collect(),
            equivariance: match about.equivariance {
                Equivariance::Translations => about::Equivariance::Translations,
                Equivariance::Rotations => about::Equivariance::Rotations,
                Equivariance::RotationsAndReflections => about::Equivariance::RotationsAndReflections,
            },
            model_checkpoint_version: <<A::Trainer as Trainer>::Model as Model>::CHECKPOINT_VERSION,
            trainer_checkpoint_version: <A::Trainer as Trainer>::CHECKPOINT_VERSION,
        }
    }
}

impl<A: Architecture> model::Guest for Component<A> {
    type Model = ModelResource<A>;
}

impl<A: Architecture> trainer::Guest for Component<A> {
    type Trainer = TrainerResource<A>;
}

impl<A: Architecture> model::GuestModel for ModelResource<A> {
    fn new(hypers: String, info: data::DatasetInfo, dtype: tensor::Dtype) -> Answer<model::Model> {
        report_panics();
        let inner = Model::new(&hypers, info.into(), dtype.into())?;
        Ok(model::Model::new(ModelResource::<A>(RefCell::new(inner))))
    }

    fn load_checkpoint(checkpoint: checkpoint::Checkpoint, context: checkpoint::Context) -> Answer<model::Model> {
        report_panics();
        let inner = Model::load_checkpoint(&checkpoint.try_into()?, context.into())?;
        Ok(model::Model::new(ModelResource::<A>(RefCell::new(inner))))
    }

    fn upgrade_checkpoint(checkpoint: checkpoint::Checkpoint) -> Answer<checkpoint::Checkpoint> {
        report_panics();
        let present = <<A::Trainer as Trainer>::Model as Model>::CHECKPOINT_VERSION;
        check_version("model", checkpoint.model_version, present)?;
        if checkpoint.model_version == present {
            return Ok(checkpoint);
        }
        Ok(<<A::Trainer as Trainer>::Model as Model>::upgrade_checkpoint(checkpoint.try_into()?)?.into())
    }

    fn forward(
        &self,
        systems: &data::Systems,
        outputs: Vec<model::ModelOutput>,
        selected_atoms: Option<data::Labels>,
    ) -> Answer<Vec<data::TensorMap>> {
        let outputs: Vec<ModelOutput> = outputs.into_iter().map(Into::into).collect();
        let selected_atoms: Option<Labels> = selected_atoms.map(Into::into);
        let maps = self.0.borrow().forward(Systems::new(systems), &outputs, selected_atoms.as_ref())?;
        Ok(maps.into_iter().map(Into::into).collect())
    }

    fn supported_outputs(&self) -> Vec<model::ModelOutput> {
        self.0.borrow().supported_outputs().into_iter().map(Into::into).collect()
    }

    fn requested_neighbor_lists(&self) -> Vec<data::NeighborListOptions> {
        self.0.borrow().requested_neighbor_lists().into_iter().map(Into::into).collect()
    }

    fn requested_inputs(&self) -> Vec<String> {
        self.0.borrow().requested_inputs()
    }

    fn restart(&self, info: data::DatasetInfo) -> Answer<()> {
        Ok(self.0.borrow_mut().restart(info.into())?)
    }

    fn get_checkpoint(&self) -> Answer<checkpoint::Checkpoint> {
        let mut checkpoint = self.0.borrow_mut().checkpoint()?;
        set_versions::<A>(&mut checkpoint);
        Ok(checkpoint.into())
    }

    fn export(&self) -> Answer<model::Capabilities> {
        Ok(self.0.borrow_mut().export()?.into())
    }
}

impl<A: Architecture> trainer::GuestTrainer for TrainerResource<A> {
    fn new(hypers: String) -> Answer<trainer::Trainer> {
        report_panics();
        let inner = <A::Trainer as Trainer>::new(&hypers)?;
        Ok(trainer::Trainer::new(TrainerResource::<A>(RefCell::new(inner), PhantomData)))
    }

    fn load_checkpoint(
        checkpoint: checkpoint::Checkpoint,
        hypers: String,
        context: checkpoint::Context,
    ) -> Answer<trainer::Trainer> {
        report_panics();
        let inner = <A::Trainer as Trainer>::load_checkpoint(&checkpoint.try_into()?, &hypers, context.into())?;
        Ok(trainer::Trainer::new(TrainerResource::<A>(RefCell::new(inner), PhantomData)))
    }

    fn upgrade_checkpoint(checkpoint: checkpoint::Checkpoint) -> Answer<checkpoint::Checkpoint> {
        report_panics();
        let present = <A::Trainer as Trainer>::CHECKPOINT_VERSION;
        check_version("trainer", checkpoint.trainer_version, present)?;
        if checkpoint.trainer_version == present {
            return Ok(checkpoint);
        }
        Ok(<A::Trainer as Trainer>::upgrade_checkpoint(checkpoint.try_into()?)?.into())
    }

    fn train(
        &self,
        model: ModelBorrow<'_>,
        dtype: tensor::Dtype,
        devices: Vec<String>,
        train_datasets: Vec<data::Dataset>,
        validation_datasets: Vec<data::Dataset>,
        folder: checkpoint::CheckpointFolder,
    ) -> Answer<()> {
        let run = TrainingRun {
            dtype: dtype.into(),
            devices,
            train: train_datasets.into_iter().map(Dataset::new).collect(),
            validation: validation_datasets.into_iter().map(Dataset::new).collect(),
            folder: CheckpointFolder::new(folder),
        };
        if run.train.iter().all(Dataset::is_empty) {
            return Err(Error::UnsupportedDataset("the training set is empty".to_owned()).into());
        }
        let model = &model.get::<ModelResource<A>>().0;
        Ok(self.0.borrow_mut().train(&mut model.borrow_mut(), run)?)
    }

    fn save_checkpoint(&self, model: ModelBorrow<'_>) -> Answer<checkpoint::Checkpoint> {
        let model = &model.get::<ModelResource<A>>().0;
        let mut checkpoint = self.0.borrow_mut().checkpoint(&mut model.borrow_mut())?;
        set_versions::<A>(&mut checkpoint);
        Ok(checkpoint.into())
    }
}

/// The bytes of a text of that length, for a section of the module's file.
pub const fn bytes<const LENGTH: usize>(text: &str) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    let mut at = 0;
    // `copy_from_slice` is not for constants in the compiler that Debian has.
    while at < LENGTH {
        bytes[at] = text.as_bytes()[at];
        at += 1;
    }
    bytes
}

fn set_versions<A: Architecture>(checkpoint: &mut Checkpoint) {
    checkpoint.model_version = <<A::Trainer as Trainer>::Model as Model>::CHECKPOINT_VERSION;
    checkpoint.trainer_version = <A::Trainer as Trainer>::CHECKPOINT_VERSION;
}

/// Refuses a checkpoint that a newer version of the architecture wrote.
fn check_version(part: &str, found: u32, expected: u32) -> Result<(), Error> {
    if found <= expected {
        return Ok(());
    }
    Err(Error::IncompatibleCheckpoint(format!(
        "the checkpoint's {part} has version {found}, newer than this architecture's {expected}; install a newer version of the architecture"
    )))
}
