//! Whole trainings of a small network, linked to the host's kernels without a sandbox: they learn, and a restart changes no bit.

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
    data::Systems,
    info::{Context, DType, DatasetInfo, NamedTarget, NeighborListOptions},
    layers::{Activation, Linear, Mlp, Module, Visit},
    native,
    network::Network,
    tensor::Tensor,
    training::GradientTrainer,
};
use kilnbox_tensor::Device;
use serde_json::json;

#[derive(serde::Serialize, serde::Deserialize)]
struct Hypers {
    cutoff: f64,
    width: usize,
}

/// The network of the README: an energy for each pair of atoms, a function of their distance.
struct Pairs {
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
struct Told {
    epochs: Vec<Vec<Metric>>,
    checkpoints: Vec<(String, kilnbox_host::Checkpoint)>,
}

#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Told>>);

impl Observer for Listener {
    fn log(&mut self, _: Level, _: &str) {}
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
    fn metric(&self, epoch: usize, set: &str, name: &str) -> f64 {
        let told = self.0.lock().expect("one thread");
        let found = told.epochs[epoch].iter().find(|metric| metric.set == set && metric.name == name);
        found.unwrap_or_else(|| panic!("no {set} {name} in {:?}", told.epochs[epoch])).value
    }

    fn checkpoint(&self, name: &str) -> Checkpoint {
        let told = self.0.lock().expect("one thread");
        let found = told.checkpoints.iter().find(|(other, _)| other == name).expect("a checkpoint");
        contract::checkpoint::Checkpoint::from(found.1.clone()).try_into().expect("a sound checkpoint")
    }
}

fn fixture(name: &str) -> Dataset {
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
    let energy = TargetSource {
        name: "energy".to_owned(),
        info,
        read_from: path.clone(),
        reader: None,
        key: "energy".to_owned(),
        forces: Some(gradient("forces")),
        stress: Some(gradient("stress")),
        virial: None,
    };
    let systems = SystemsSource { read_from: path.clone(), reader: None, length_unit: "angstrom".to_owned() };
    Dataset::read(&DatasetSource { systems, targets: vec![energy], extra_data: Vec::new() }).expect("a sound fixture")
}

const MODEL: &str = r#"{"cutoff": 4.0, "width": 32}"#;

fn hypers(epochs: u32) -> String {
    json!({
        "batch_size": 4, "num_epochs": epochs, "learning_rate": 0.3, "warmup_fraction": 0.1, "log_interval": 1,
        "checkpoint_interval": 1, "log_mae": true,
    })
    .to_string()
}

/// The first 24 systems to learn from, the next 8 to validate.
fn run(set: &Dataset) -> TrainingRun {
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
fn train(set: &Dataset, hypers: &str) -> Listener {
    let listener = Listener::default();
    native::enter(Device::cpu(), 7, Box::new(listener.clone()));
    let run = run(set);
    let info = run.train[0].info();
    let mut model = Model::new(MODEL, info, DType::Float64).expect("a model");
    let mut trainer = GradientTrainer::<Pairs>::new(hypers).expect("a trainer");
    trainer.train(&mut model, run).expect("a training");
    listener
}

fn bits(checkpoint: &Checkpoint) -> Vec<(String, Vec<u64>)> {
    let tensor = |tensor: &Tensor| tensor.to_vec_f64().into_iter().map(f64::to_bits).collect();
    checkpoint.tensors.iter().map(|(name, value)| (name.clone(), tensor(value))).collect()
}

#[test]
fn energies_and_forces_are_learned() {
    let told = train(&fixture("ethanol/ethanol.xyz"), &hypers(60));
    for (set, name) in [("training", "loss"), ("validation", "loss"), ("validation", "forces RMSE")] {
        let (first, last) = (told.metric(0, set, name), told.metric(59, set, name));
        // One curve for all pairs of elements can explain only a part of the forces.
        assert!(last < 0.98 * first, "{set} {name}: {first} then {last}");
    }
    assert!(told.metric(59, "validation", "energy RMSE (per atom)").is_finite());
}

#[test]
fn stress_is_learned_beside_energies_and_forces() {
    let told = train(&fixture("copper/copper.xyz"), &hypers(60));
    let name = "virial RMSE (per atom)";
    let (first, last) = (told.metric(0, "validation", name), told.metric(59, "validation", name));
    // One curve for copper, silver and gold is as little as for the elements of ethanol.
    assert!(last < 0.98 * first, "{first} then {last}");
}

#[test]
fn a_restarted_run_ends_with_the_same_bits() {
    let set = fixture("ethanol/ethanol.xyz");
    let whole = train(&set, &hypers(4));
    let (interrupted, expected) = (whole.checkpoint("model_1"), whole.checkpoint("model"));

    let rest = Listener::default();
    native::enter(Device::cpu(), 12345, Box::new(rest.clone()));
    let mut model = Model::load_checkpoint(&interrupted, Context::Restart).expect("a model");
    let mut trainer =
        GradientTrainer::<Pairs>::load_checkpoint(&interrupted, &hypers(4), Context::Restart).expect("a trainer");
    let run = run(&set);
    Model::restart(&mut model, run.train[0].info()).expect("the same data");
    trainer.train(&mut model, run).expect("a training");

    let found = rest.checkpoint("model");
    assert_eq!(found.epoch, Some(4));
    assert_eq!(found.data, expected.data);
    assert_eq!(bits(&found), bits(&expected));
}

#[test]
fn an_exported_model_has_the_best_weights() {
    let told = train(&fixture("ethanol/ethanol.xyz"), &hypers(3));
    let checkpoint = told.checkpoint("model");
    let mut model =
        <GradientTrainer<Pairs> as Trainer>::Model::load_checkpoint(&checkpoint, Context::Export).expect("a model");
    let exported = model.checkpoint().expect("a checkpoint").tensors_in("model/");
    for (name, best) in checkpoint.tensors_in("best_model/") {
        assert_eq!(exported[&name].to_vec_f64(), best.to_vec_f64(), "{name}");
    }
    assert_eq!(model.export().expect("capabilities").interaction_range, 4.0);
}

#[test]
fn a_batch_larger_than_the_set_is_refused() {
    let set = fixture("ethanol/ethanol.xyz");
    native::enter(Device::cpu(), 0, Box::new(Listener::default()));
    let run = run(&set);
    let mut model = Model::new(MODEL, run.train[0].info(), DType::Float64).expect("a model");
    let mut trainer = GradientTrainer::<Pairs>::new(r#"{"batch_size": 25}"#).expect("a trainer");
    let error = trainer.train(&mut model, run).expect_err("too few systems").to_string();
    assert!(error.starts_with("the training set has 24 systems, fewer than `training.batch_size` (25)"), "{error}");
}
