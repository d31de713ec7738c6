//! Whole trainings of a small network, linked to the host's kernels without a sandbox: they learn, and a restart changes no bit.

mod support;

use kilnbox_sdk::{
    architecture::{Model, Trainer},
    info::{Context, DType},
    native,
    training::GradientTrainer,
};
use kilnbox_tensor::Device;
use support::{Listener, MODEL, Pairs, bits, fixture, hypers, run, train};

#[test]
fn energies_and_forces_are_learned() {
    let told = train::<Pairs>(&fixture("ethanol/ethanol.xyz"), &hypers(60));
    for (set, name) in [("training", "loss"), ("validation", "loss"), ("validation", "forces RMSE")] {
        let (first, last) = (told.metric(0, set, name), told.metric(59, set, name));
        // One curve for all pairs of elements can explain only a part of the forces.
        assert!(last < 0.98 * first, "{set} {name}: {first} then {last}");
    }
    assert!(told.metric(59, "validation", "energy RMSE (per atom)").is_finite());
}

#[test]
fn stress_is_learned_beside_energies_and_forces() {
    let told = train::<Pairs>(&fixture("copper/copper.xyz"), &hypers(60));
    let name = "virial RMSE (per atom)";
    let (first, last) = (told.metric(0, "validation", name), told.metric(59, "validation", name));
    // One curve for copper, silver and gold is as little as for the elements of ethanol.
    assert!(last < 0.98 * first, "{first} then {last}");
}

#[test]
fn a_restarted_run_ends_with_the_same_bits() {
    let set = fixture("ethanol/ethanol.xyz");
    let whole = train::<Pairs>(&set, &hypers(4));
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
    let told = train::<Pairs>(&fixture("ethanol/ethanol.xyz"), &hypers(3));
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
