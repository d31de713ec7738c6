//! What the tests of whole trainings share: a small network, its data, and a host that remembers what it is told.

#![allow(dead_code, reason = "each test program uses a part")]

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use kilnbox_data::{
    Dataset, DatasetSource, GradientSource, SampleKind, SystemsSource, TargetInfo, TargetSource, TargetType,
};
use kilnbox_host::{Level, Metric, Observer};
use kilnbox_sdk::{
    Result,
    architecture::{Model, Trainer, TrainingRun},
    checkpoint::Checkpoint,
    contract,
    data::{Batch, BatchOptions, Systems},
    info::{DType, DatasetInfo, NamedTarget, NeighborListOptions},
    layers::{Activation, Linear, Mlp, Module, Visit},
    native,
    network::Network,
    tensor::Tensor,
    training::GradientTrainer,
};
use kilnbox_tensor::Device;
use serde_json::json;

#[derive(serde::Serialize, serde::Deserialize)]
pub struct Hypers {
    pub cutoff: f64,
    pub width: usize,
}

/// The network of the README: an energy for each pair of atoms, a function of their distance.
pub struct Pairs {
    cutoff: f64,
    hidden: Mlp,
    energy: Linear,
}

impl Module for Pairs {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.hidden.visit_in("hidden", visit);
        self.energy.visit_in("energy", visit);
    }
}

impl Network for Pairs {
    type Hypers = Hypers;

    fn new(hypers: &Hypers, _: &DatasetInfo, dtype: DType) -> Result<Self> {
        Ok(Pairs {
            cutoff: hypers.cutoff,
            hidden: Mlp::new(&[1, hypers.width], true, Activation::Silu, dtype),
            energy: Linear::new(hypers.width, 1, false, dtype),
        })
    }

    fn add_targets(&mut self, _: &Hypers, _: &[NamedTarget], _: DType) -> Result<()> {
        Ok(())
    }

    fn neighbor_lists(&self) -> Vec<NeighborListOptions> {
        vec![NeighborListOptions { cutoff: self.cutoff, full_list: true, strict: true }]
    }

    fn interaction_range(&self) -> f64 {
        self.cutoff
    }

    fn forward(&self, systems: Systems<'_>, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>> {
        let pairs = systems.neighbors(self.neighbor_lists()[0])?;
        let distance = pairs.vectors.square().sum_keeping(&[1]).sqrt();
        let fade = (1.0 - &distance * (1.0 / self.cutoff)).square();
        let energy = self.energy.forward(&self.hidden.forward(&distance)) * fade;
        let atoms = energy.index_add(0, &pairs.first, systems.atom_counts().iter().sum());
        Ok(outputs.iter().map(|_| vec![atoms.clone()]).collect())
    }
}

/// What a run told its host.
#[derive(Default)]
pub struct Told {
    pub epochs: Vec<Vec<Metric>>,
    pub checkpoints: Vec<(String, kilnbox_host::Checkpoint)>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Listener(pub Arc<Mutex<Told>>);

impl Observer for Listener {
    fn log(&mut self, level: Level, message: &str) {
        if level == Level::Warning {
            self.0.lock().expect("one thread").warnings.push(message.to_owned());
        }
    }
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, metrics: &[Metric]) {
        self.0.lock().expect("one thread").epochs.push(metrics.to_vec());
    }
    fn save_checkpoint(&mut self, name: &str, checkpoint: kilnbox_host::Checkpoint) -> std::result::Result<(), String> {
        self.0.lock().expect("one thread").checkpoints.push((name.to_owned(), checkpoint));
        Ok(())
    }
}

impl Listener {
    /// A metric of an epoch.
    pub fn metric(&self, epoch: usize, set: &str, name: &str) -> f64 {
        let told = self.0.lock().expect("one thread");
        let found = told.epochs[epoch].iter().find(|metric| metric.set == set && metric.name == name);
        found.unwrap_or_else(|| panic!("no {set} {name} in {:?}", told.epochs[epoch])).value
    }

    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().expect("one thread").warnings.clone()
    }

    pub fn checkpoint(&self, name: &str) -> Checkpoint {
        let told = self.0.lock().expect("one thread");
        let found = told.checkpoints.iter().find(|(other, _)| other == name).expect("a checkpoint");
        contract::checkpoint::Checkpoint::from(found.1.clone()).try_into().expect("a sound checkpoint")
    }
}

pub fn fixture(name: &str) -> Dataset {
    fixture_with(name, &["energy"])
}

/// A fixture whose energies, forces and stress are targets of these names.
pub fn fixture_with(name: &str, targets: &[&str]) -> Dataset {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
    let gradient = |key: &str| GradientSource { read_from: path.clone(), key: key.to_owned(), required: false };
    let info = TargetInfo {
        quantity: "energy".to_owned(),
        unit: "eV".to_owned(),
        description: String::new(),
        sample_kind: SampleKind::System,
        target_type: TargetType::Scalar,
        num_subtargets: 1,
        gradients: Vec::new(),
    };
    let target = |name: &&str| TargetSource {
        name: (*name).to_owned(),
        info: info.clone(),
        read_from: path.clone(),
        reader: None,
        key: "energy".to_owned(),
        forces: Some(gradient("forces")),
        stress: Some(gradient("stress")),
        virial: None,
    };
    let systems = SystemsSource { read_from: path.clone(), reader: None, length_unit: "angstrom".to_owned() };
    let targets = targets.iter().map(target).collect();
    Dataset::read(&DatasetSource { systems, targets, extra_data: Vec::new() }).expect("a sound fixture")
}

pub const MODEL: &str = r#"{"cutoff": 4.0, "width": 32}"#;

pub fn hypers(epochs: u32) -> String {
    json!({
        "batch_size": 4, "num_epochs": epochs, "learning_rate": 0.3, "warmup_fraction": 0.1, "log_interval": 1,
        "checkpoint_interval": 1, "log_mae": true,
    })
    .to_string()
}

/// The first 24 systems to learn from, the next 8 to validate.
pub fn run(set: &Dataset) -> TrainingRun {
    let select = |range: std::ops::Range<usize>| set.select(&range.collect::<Vec<_>>()).expect("that many systems");
    TrainingRun {
        dtype: DType::Float64,
        devices: vec!["cpu".to_owned()],
        train: vec![native::dataset(select(0..24))],
        validation: vec![native::dataset(select(24..32))],
        folder: native::checkpoint_folder(),
    }
}

/// Begins a run on this thread and trains a fresh model.
pub fn train<N: Network>(set: &Dataset, hypers: &str) -> Listener {
    let listener = Listener::default();
    native::enter(Device::cpu(), 7, Box::new(listener.clone()));
    let run = run(set);
    let info = run.train[0].info();
    let mut model = Model::new(MODEL, info, DType::Float64).expect("a model");
    let mut trainer = GradientTrainer::<N>::new(hypers).expect("a trainer");
    trainer.train(&mut model, run).expect("a training");
    listener
}

pub fn bits(checkpoint: &Checkpoint) -> Vec<(String, Vec<u64>)> {
    let tensor = |tensor: &Tensor| tensor.to_vec_f64().into_iter().map(f64::to_bits).collect();
    checkpoint.tensors.iter().map(|(name, value)| (name.clone(), tensor(value))).collect()
}

/// All pairs within four angstroms.
pub const LIST: NeighborListOptions = NeighborListOptions { cutoff: 4.0, full_list: true, strict: true };

/// Begins a run on this thread and reads the first systems of the copper fixture, which are periodic.
pub fn crystals(dtype: DType) -> Batch {
    native::enter(Device::cpu(), 11, Box::new(Listener::default()));
    let options = BatchOptions { dtype, neighbor_lists: vec![LIST], targets: Vec::new(), extra_data: Vec::new() };
    let dataset = native::dataset(fixture("copper/copper.xyz"));
    let mut batches = dataset.batches(&[vec![0, 1, 2, 3, 4]], &options).expect("five systems");
    batches.next().expect("a batch").expect("a sound batch")
}

/// Compares entry by entry.
#[track_caller]
pub fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (position, (found, expected)) in found.to_vec_f64().iter().zip(expected.to_vec_f64()).enumerate() {
        let difference = (found - expected).abs();
        assert!(
            difference <= tolerance,
            "{what}, entry {position}: {found}, expected {expected}, off by {difference:e} > {tolerance:e}"
        );
    }
}
