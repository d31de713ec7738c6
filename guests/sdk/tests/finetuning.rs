//! Fine-tuning: what is trained and what stays, what is inherited and what is dropped, and that an interrupted run ends with the same bits.

mod support;

use std::collections::BTreeMap;

use kilnbox_data::Dataset;
use kilnbox_sdk::{
    Result,
    architecture::{Model, Trainer, TrainingRun},
    checkpoint::Checkpoint,
    data::Systems,
    info::{Context, DType, DatasetInfo, NamedTarget, NeighborListOptions},
    layers::{Activation, Linear, Mlp, Module, Visit},
    model::AtomisticModel,
    native,
    network::Network,
    tensor::Tensor,
    training::GradientTrainer,
};
use kilnbox_tensor::Device;
use serde_json::{Value, json};
use support::{Hypers, Listener, MODEL, bits, fixture_with, run};

/// An energy for each pair of atoms, with a head and a last layer for each target.
struct Headed {
    cutoff: f64,
    width: usize,
    hidden: Mlp,
    heads: BTreeMap<String, Mlp>,
    last_layers: BTreeMap<String, Linear>,
}

impl Module for Headed {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.hidden.visit_in("hidden", visit);
        self.heads.visit_in("heads", visit);
        self.last_layers.visit_in("last_layers", visit);
    }
}

impl Network for Headed {
    type Hypers = Hypers;

    fn new(hypers: &Hypers, info: &DatasetInfo, dtype: DType) -> Result<Self> {
        let mut network = Headed {
            cutoff: hypers.cutoff,
            width: hypers.width,
            hidden: Mlp::new(&[1, hypers.width], true, Activation::Silu, dtype),
            heads: BTreeMap::new(),
            last_layers: BTreeMap::new(),
        };
        network.add_targets(hypers, &info.targets, dtype)?;
        Ok(network)
    }

    fn add_targets(&mut self, _: &Hypers, targets: &[NamedTarget], dtype: DType) -> Result<()> {
        for target in targets {
            let head = Mlp::new(&[self.width, self.width], true, Activation::Silu, dtype);
            self.heads.insert(target.name.clone(), head);
            self.last_layers.insert(target.name.clone(), Linear::new(self.width, 1, false, dtype));
        }
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
        let features = self.hidden.forward(&distance);
        let atoms = systems.atom_counts().iter().sum();
        let output = |&name: &&str| {
            let energy = self.last_layers[name].forward(&self.heads[name].forward(&features)) * &fade;
            vec![energy.index_add(0, &pairs.first, atoms)]
        };
        Ok(outputs.iter().map(output).collect())
    }
}

type HeadedModel = AtomisticModel<Headed>;

fn ethanol(targets: &[&str]) -> Dataset {
    fixture_with("ethanol/ethanol.xyz", targets)
}

fn hypers(epochs: u32, finetune: Value) -> String {
    json!({
        "batch_size": 4, "num_epochs": epochs, "learning_rate": 0.1, "warmup_fraction": 0.0, "log_interval": 1,
        "checkpoint_interval": 1, "finetune": finetune,
    })
    .to_string()
}

/// What a training of two targets leaves.
fn base() -> Checkpoint {
    let listener = Listener::default();
    native::enter(Device::cpu(), 7, Box::new(listener.clone()));
    let run = run(&ethanol(&["energy", "mtt::other"]));
    let mut model = HeadedModel::new(MODEL, run.train[0].info(), DType::Float64).expect("a model");
    let mut trainer = GradientTrainer::<Headed>::new(&hypers(2, Value::Null)).expect("a trainer");
    trainer.train(&mut model, run).expect("a training");
    listener.checkpoint("model")
}

/// A model and a trainer from a checkpoint, ready for data, and the data.
fn begin(
    checkpoint: &Checkpoint,
    targets: &[&str],
    hypers: &str,
    context: Context,
) -> Result<(Listener, HeadedModel, GradientTrainer<Headed>, TrainingRun)> {
    let listener = Listener::default();
    native::enter(Device::cpu(), 8, Box::new(listener.clone()));
    let run = run(&ethanol(targets));
    let mut model = HeadedModel::load_checkpoint(checkpoint, context)?;
    model.restart(run.train[0].info())?;
    let trainer = GradientTrainer::load_checkpoint(checkpoint, hypers, context)?;
    Ok((listener, model, trainer, run))
}

/// Fine-tunes on these targets; the options are given `read_from`.
fn finetune(checkpoint: &Checkpoint, targets: &[&str], epochs: u32, mut options: Value) -> Result<Listener> {
    options["read_from"] = json!("base.ckpt");
    let hypers = hypers(epochs, options);
    let (listener, mut model, mut trainer, run) = begin(checkpoint, targets, &hypers, Context::Finetune)?;
    trainer.train(&mut model, run)?;
    Ok(listener)
}

fn refusal(checkpoint: &Checkpoint, targets: &[&str], options: Value) -> String {
    match finetune(checkpoint, targets, 1, options) {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

/// The weights in a checkpoint, by name.
fn weights(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f64>> {
    checkpoint.tensors_in("model/").into_iter().map(|(name, tensor)| (name, tensor.to_vec_f64())).collect()
}

/// The best weights of a checkpoint: what fine-tuning begins with.
fn best_weights(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f64>> {
    checkpoint.tensors_in("best_model/").into_iter().map(|(name, tensor)| (name, tensor.to_vec_f64())).collect()
}

/// The names of weights that differ, of those that both have.
fn changed(before: &BTreeMap<String, Vec<f64>>, after: &BTreeMap<String, Vec<f64>>) -> Vec<String> {
    before
        .iter()
        .filter(|(name, values)| after.get(*name).is_some_and(|other| other != *values))
        .map(|(name, _)| name.clone())
        .collect()
}

const HIDDEN: [&str; 2] = ["hidden.layers.0.bias", "hidden.layers.0.weight"];

#[test]
fn full_trains_all_and_drops_what_the_data_do_not_have() {
    let base = base();
    let tuned = finetune(&base, &["energy"], 1, json!({})).expect("a training").checkpoint("model");
    let after = weights(&tuned);
    let names: Vec<&str> = after.keys().map(String::as_str).collect();
    let energy = [
        "heads.energy.layers.0.bias",
        "heads.energy.layers.0.weight",
        HIDDEN[0],
        HIDDEN[1],
        "last_layers.energy.weight",
    ];
    assert_eq!(names, energy);
    assert_eq!(changed(&best_weights(&base), &after), energy);
    assert!(tuned.tensors_in("normalization/").keys().all(|name| name.starts_with("energy/")));
    let model = HeadedModel::load_checkpoint(&tuned, Context::Export).expect("a model");
    assert_eq!(model.supported_outputs().len(), 1);
}

#[test]
fn heads_trains_the_heads_of_the_datas_targets_and_keeps_the_others() {
    let base = base();
    let tuned = finetune(&base, &["energy"], 2, json!({"method": "heads"})).expect("a training").checkpoint("model");
    let (before, after) = (best_weights(&base), weights(&tuned));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let heads = ["heads.energy.layers.0.bias", "heads.energy.layers.0.weight", "last_layers.energy.weight"];
    assert_eq!(changed(&before, &after), heads);
    assert_eq!(tuned.tensors_in("optimizer/first_moment/").keys().collect::<Vec<_>>(), heads);

    let options = json!({"method": "heads", "config": {"last_layer_modules": ["last_layers"]}});
    let tuned = finetune(&base, &["energy"], 1, options).expect("a training").checkpoint("model");
    assert_eq!(changed(&before, &weights(&tuned)), ["last_layers.energy.weight"]);
}

fn lora(rank: usize) -> Value {
    json!({"method": "lora", "config": {"rank": rank, "alpha": 8, "target_modules": ["heads.energy.layers.0", "hidden.layers.0"]}})
}

#[test]
fn lora_begins_where_the_model_ended_and_changes_weights_by_a_low_rank() {
    let base = base();
    let before = best_weights(&base);
    let untouched = finetune(&base, &["energy"], 0, lora(2)).expect("a training").checkpoint("model");
    assert_eq!(changed(&before, &weights(&untouched)), [""; 0]);

    let tuned = finetune(&base, &["energy"], 3, lora(2)).expect("a training").checkpoint("model");
    let after = weights(&tuned);
    let name = "heads.energy.layers.0.weight";
    assert_eq!(changed(&before, &after), [name, "hidden.layers.0.weight"]);
    let moments: Vec<String> = tuned.tensors_in("optimizer/first_moment/").into_keys().collect();
    assert_eq!(
        moments,
        [
            "heads.energy.layers.0.weight.down",
            "heads.energy.layers.0.weight.up",
            "hidden.layers.0.weight.down",
            "hidden.layers.0.weight.up",
        ]
    );
    // A change of rank 2 has no third independent row: after two steps of elimination nothing is left.
    let width = 32;
    let mut change: Vec<f64> = after[name].iter().zip(&before[name]).map(|(after, before)| after - before).collect();
    let largest = |matrix: &[f64]| {
        let position = (0..matrix.len()).max_by(|&a, &b| matrix[a].abs().total_cmp(&matrix[b].abs())).expect("entries");
        (position, matrix[position])
    };
    let scale = largest(&change).1.abs();
    for _ in 0..2 {
        let (pivot, value) = largest(&change);
        let (row, column) = (pivot / width, pivot % width);
        let (of_row, of_column): (Vec<f64>, Vec<f64>) =
            (0..width).map(|k| (change[row * width + k], change[k * width + column])).unzip();
        for (position, entry) in change.iter_mut().enumerate() {
            *entry -= of_column[position / width] * of_row[position % width] / value;
        }
    }
    // differences of weights of order 0.1 are rounded
    assert!(scale > 1e-3 && largest(&change).1.abs() < 1e-12, "{scale}, then {}", largest(&change).1);
}

#[test]
fn an_exported_lora_model_has_complete_weights() {
    let base = base();
    let tuned = finetune(&base, &["energy"], 2, lora(4)).expect("a training").checkpoint("model");
    let mut model = HeadedModel::load_checkpoint(&tuned, Context::Export).expect("a model");
    let exported = model.checkpoint().expect("a checkpoint");
    assert_eq!(weights(&exported), best_weights(&tuned));
    assert!(exported.tensors.keys().all(|name| !name.contains("finetuning")));
}

#[test]
fn an_interrupted_fine_tuning_ends_with_the_same_bits() {
    let base = base();
    let inheriting = json!({"mtt::new": "mtt::other"});
    let methods = [
        json!({"inherit_heads": inheriting}),
        json!({"method": "heads", "inherit_heads": inheriting}),
        json!({"method": "lora", "config": {"target_modules": ["hidden.layers.0"]}, "inherit_heads": inheriting}),
    ];
    for mut options in methods {
        let targets = ["energy", "mtt::new"];
        let whole = finetune(&base, &targets, 3, options.clone()).expect("a training");
        let (interrupted, expected) = (whole.checkpoint("model_0"), whole.checkpoint("model"));
        options["read_from"] = json!("base.ckpt");
        for hypers in [hypers(3, options.clone()), hypers(3, Value::Null)] {
            let begun = begin(&interrupted, &targets, &hypers, Context::Restart);
            let (listener, mut model, mut trainer, run) = begun.expect("a run to continue");
            trainer.train(&mut model, run).expect("a training");
            let found = listener.checkpoint("model");
            assert_eq!(found.data, expected.data, "{options}");
            assert_eq!(bits(&found), bits(&expected), "{options}");
        }
    }
}

#[test]
fn a_run_is_not_continued_with_another_method() {
    let base = base();
    let tuned = finetune(&base, &["energy"], 1, lora(2)).expect("a training").checkpoint("model");
    for mut options in [json!({"method": "heads"}), lora(3)] {
        options["read_from"] = json!("base.ckpt");
        let Err(error) = begin(&tuned, &["energy"], &hypers(2, options.clone()), Context::Restart) else {
            panic!("{options} was accepted")
        };
        let expected =
            format!("`training.finetune` asks for the method `{}`", options["method"].as_str().expect("a name"));
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

#[test]
fn a_new_target_inherits_a_head() {
    let base = base();
    let before = best_weights(&base);
    let options = |method: &str| json!({"method": method, "inherit_heads": {"mtt::new": "mtt::other"}});
    for (method, kept) in [("full", false), ("heads", true)] {
        let tuned = finetune(&base, &["mtt::new"], 0, options(method)).expect("a training").checkpoint("model");
        let after = weights(&tuned);
        for part in ["heads.TARGET.layers.0.weight", "heads.TARGET.layers.0.bias", "last_layers.TARGET.weight"] {
            let name = |target: &str| part.replace("TARGET", target);
            assert_eq!(after[&name("mtt::new")], before[&name("mtt::other")], "{method}, {part}");
            assert_eq!(after.contains_key(&name("mtt::other")), kept, "{method}, {part}");
        }
    }
}

#[test]
fn a_random_head_that_lora_does_not_train_is_warned_of() {
    let base = base();
    let warned = |inherit_heads: Value| {
        let mut options = lora(2);
        options["inherit_heads"] = inherit_heads;
        finetune(&base, &["energy", "mtt::new"], 0, options).expect("a training").warnings()
    };
    let warnings = warned(json!({}));
    assert!(warnings.len() == 1 && warnings[0].contains("the new target `mtt::new`"), "{warnings:?}");
    assert_eq!(warned(json!({"mtt::new": "energy"})), [""; 0]);
}

#[test]
fn mistakes_are_refused() {
    let base = base();
    let cases = [
        (
            json!({"inherit_heads": {"energy": "mtt::missing"}}),
            "`training.finetune.inherit_heads` names the target `mtt::missing`, which neither the model nor the data have",
        ),
        (json!({"inherit_heads": {"mtt::missing": "energy"}}), "`training.finetune.inherit_heads` names the target"),
        (
            json!({"method": "heads", "config": {"head_modules": ["node_heads"]}}),
            "`training.finetune.config` names the module `node_heads`, which the model does not have; it has \
             {\"heads\", \"hidden\", \"last_layers\"}",
        ),
        (
            json!({"method": "lora"}),
            "`training.finetune.config.target_modules` has `input_linear`, which is neither a layer of the model, such as `hidden.layers.0`",
        ),
        (json!({"method": "half"}), "`training`: unknown variant `half`"),
    ];
    for (options, expected) in cases {
        let problem = refusal(&base, &["energy"], options);
        assert!(problem.starts_with(expected), "{problem}");
    }
}
