//! How SOAP-BPNN is trained: as every network of the SDK, by Adam with warm-up and a cosine schedule.

use kilnbox_sdk::training::GradientTrainer;

use crate::model::SoapBpnn;

/// The trainer; its defaults are in `default-hypers.yaml`.
pub type Trainer = GradientTrainer<SoapBpnn>;
