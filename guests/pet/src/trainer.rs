//! How PET is trained: as every network of the SDK, with random rotations and inversions (`Network::AUGMENTATION`), clipped gradients and the settings in
//! `default-hypers.yaml`.

use kilnbox_sdk::training::GradientTrainer;

use crate::model::Pet;

/// The trainer; its defaults are in `default-hypers.yaml`.
pub type Trainer = GradientTrainer<Pet>;
