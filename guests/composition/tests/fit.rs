//! A whole fit, linked to the host's kernels without a sandbox.

use std::path::Path;

use composition::{model::Model, trainer::Trainer};
use kilnbox_data::{Dataset, DatasetSource, SystemsSource, TargetSource};
use kilnbox_host::{Level, Metric, Observer};
use kilnbox_sdk::{
    architecture::{Model as _, Trainer as _, TrainingRun},
    data::BatchOptions,
    info::{Context, DType, Labels, SampleKind},
    native,
};
use kilnbox_tensor::Device;

/// Listens to nothing.
struct Nobody;

impl Observer for Nobody {
    fn log(&mut self, _: Level, _: &str) {}
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}
    fn save_checkpoint(&mut self, _: &str, _: kilnbox_host::Checkpoint) -> Result<(), String> {
        Ok(())
    }
}

/// Water, hydrogen and oxygen with energies of exactly -1 for each H and -10 for each O.
const SYSTEMS: &str = "\
3
Properties=species:S:1:pos:R:3 energy=-12.0
O 0.0 0.0 0.0
H 0.9 0.0 0.0
H 0.0 0.9 0.0
2
Properties=species:S:1:pos:R:3 energy=-2.0
H 0.0 0.0 0.0
H 0.7 0.0 0.0
2
Properties=species:S:1:pos:R:3 energy=-20.0
O 0.0 0.0 0.0
O 1.2 0.0 0.0
";

fn dataset(folder: &Path) -> Dataset {
    let path = folder.join("systems.xyz");
    std::fs::write(&path, SYSTEMS).expect("a file");
    let info = kilnbox_data::TargetInfo {
        quantity: "energy".to_owned(),
        unit: "eV".to_owned(),
        description: String::new(),
        sample_kind: kilnbox_data::SampleKind::System,
        target_type: kilnbox_data::TargetType::Scalar,
        num_subtargets: 1,
        gradients: Vec::new(),
    };
    let energy = TargetSource {
        name: "energy".to_owned(),
        info,
        read_from: path.clone(),
        reader: None,
        key: "energy".to_owned(),
        forces: None,
        stress: None,
        virial: None,
    };
    let systems = SystemsSource { read_from: path, reader: None, length_unit: "angstrom".to_owned() };
    Dataset::read(&DatasetSource { systems, targets: vec![energy], extra_data: Vec::new() }).expect("a dataset")
}

/// A model that was trained with these hypers, and the data.
fn trained(hypers: &str) -> (Model, kilnbox_sdk::data::Dataset) {
    let folder = tempfile::tempdir().expect("a folder");
    let plain = dataset(folder.path());
    native::enter(Device::cpu(), 0, Box::new(Nobody));
    let data = native::dataset(plain.clone());
    let mut model = Model::new("{}", data.info(), DType::Float64).expect("a model");
    let run = TrainingRun {
        dtype: DType::Float64,
        devices: vec!["cpu".to_owned()],
        train: vec![native::dataset(plain)],
        validation: Vec::new(),
        folder: native::checkpoint_folder(),
    };
    Trainer::new(hypers).expect("a trainer").train(&mut model, run).expect("a fit");
    (model, data)
}

/// Its energies of all systems.
fn energies(
    model: &Model,
    data: &kilnbox_sdk::data::Dataset,
    kind: SampleKind,
    selected: Option<&Labels>,
) -> (Vec<f64>, Labels) {
    let options = BatchOptions { dtype: DType::Float64, neighbor_lists: vec![], targets: vec![], extra_data: vec![] };
    let batch = data.in_order(10, &options).expect("batches").next().expect("a batch").expect("a sound batch");
    let mut output = model.supported_outputs().remove(0);
    output.sample_kind = kind;
    let map = model.forward(batch.systems(), &[output], selected).expect("energies").remove(0);
    let block = &map.blocks[0];
    (block.values.to_vec_f64(), block.samples.clone())
}

fn close(found: &[f64], expected: &[f64]) {
    // the ridge of the fit is 1e-14 of its diagonal
    let equal = found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-11);
    assert!(equal, "{found:?}, expected {expected:?}");
}

#[test]
fn energies_that_add_up_are_learned_exactly() {
    let (model, data) = trained("{}");
    close(&energies(&model, &data, SampleKind::System, None).0, &[-12.0, -2.0, -20.0]);
    close(&energies(&model, &data, SampleKind::Atom, None).0, &[-10.0, -1.0, -1.0, -1.0, -1.0, -10.0, -10.0]);
}

#[test]
fn given_energies_of_atoms_are_not_fitted() {
    let (model, data) = trained(r#"{"atomic_baseline": {"energy": {"1": -3.0}}}"#);
    close(&energies(&model, &data, SampleKind::System, None).0, &[-6.0, -6.0, 0.0]);
}

#[test]
fn only_selected_atoms_contribute() {
    let (model, data) = trained("{}");
    let selected = Labels::new(&["system", "atom"], vec![2, 1, 0, 0, 0, 2]);
    let (values, samples) = energies(&model, &data, SampleKind::System, Some(&selected));
    close(&values, &[-11.0, -10.0]);
    assert_eq!(samples, Labels::new(&["system"], vec![0, 2]));
    let (values, samples) = energies(&model, &data, SampleKind::Atom, Some(&selected));
    close(&values, &[-10.0, -1.0, -10.0]);
    assert_eq!(samples.values, [0, 0, 0, 2, 2, 1]);
}

#[test]
fn a_loaded_model_predicts_the_same() {
    let (mut model, data) = trained("{}");
    let checkpoint = model.checkpoint().expect("a checkpoint");
    let loaded = Model::load_checkpoint(&checkpoint, Context::Export).expect("a model");
    let predicted = |model: &Model| energies(model, &data, SampleKind::System, None).0;
    assert_eq!(predicted(&loaded), predicted(&model));
}
