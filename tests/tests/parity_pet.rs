//! PET against metatrain's own numbers: energies, forces, strain derivatives, and gradients of a loss on forces. The tolerances are those stated with the
//! reference data.

use std::collections::BTreeMap;

use kilnbox_sdk::info::{DType, DatasetInfo, Irrep, NamedTarget, SampleKind, TargetInfo, TargetType};
use kilnbox_sdk::layers::Module;
use kilnbox_sdk::native;
use kilnbox_sdk::network::Network;
use kilnbox_sdk::tensor::Tensor;
use kilnbox_tensor::Device;
use kilnbox_tests::parity::{self, close, numbers};
use kilnbox_tests::{Nobody, repository};
use pet::model::{Hypers, Pet};
use serde_json::Value;

#[test]
fn parity_pet_ethanol() {
    check("pet_ethanol");
}

#[test]
fn parity_pet_carbon() {
    check("pet_carbon");
}

#[test]
fn parity_pet_postln_residual_ethanol() {
    check("pet_postln_residual_ethanol");
}

/// Options that the reference data does not have, on structures and with weights of our own: see `fixtures/pet/make_fixture.py`.
#[test]
fn parity_pet_options() {
    native::enter(Device::cpu(), 0, Box::new(Nobody));
    let text = std::fs::read_to_string(repository().join("fixtures/pet/options.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 7);
    for case in &cases {
        let mut network: Pet = parity::network(case);
        // What is kept of constant weights must not outlive them: there are others first.
        make_constant(&mut network);
        check_options(case, &network, |_, _, _| ());
        set_weights(&mut network, |theirs, shape| formula(theirs, &shape));
        check_options(case, &network, check_option);
        make_constant(&mut network);
        check_options(case, &network, check_option);
    }
}

fn make_constant(network: &mut Pet) {
    network.visit(&mut |_, parameter| *parameter = parameter.detach());
}

/// Hands `check` what the network makes of each structure of the fixture, twice.
fn check_options(case: &Value, network: &Pet, check: impl Fn(&str, &Value, (&parity::Found, &[Vec<Tensor>]))) {
    for (structure, expected) in case["structures"].as_object().unwrap() {
        let what = format!("{} {structure}", case["name"]);
        let number = |key: &str| expected[key].as_f64().unwrap();
        let conditions = [("charge", number("charge")), ("spin_multiplicity", number("spin_multiplicity"))];
        let systems = parity::systems(expected, &conditions);
        let names = ["feature", "mtt::aux::energy_last_layer_features"];
        for _ in 0..2 {
            let found = parity::evaluate_systems(network, &systems);
            let outputs = network.forward(native::systems(&systems), &names).unwrap();
            check(&what, expected, (&found, &outputs));
        }
    }
}

fn check_option(what: &str, expected: &Value, (found, outputs): (&parity::Found, &[Vec<Tensor>])) {
    // Both sides round in double precision, through some ten layers.
    let tolerance = |key: &str| 1e-11 * numbers(&expected[key]).iter().fold(1.0, |a: f64, b| a.max(b.abs()));
    let keys = ["energy", "per_atom_energies", "forces", "strain_derivative"];
    let tolerances: serde_json::Map<String, Value> =
        keys.iter().map(|&key| (key.to_owned(), tolerance(key).into())).collect();
    parity::check_structure(what, found, expected, &tolerances.into());
    for (key, output) in ["feature", "last_layer_features"].iter().zip(outputs) {
        close(&format!("{what} {key}"), &output[0].to_vec_f64(), &numbers(&expected[key]), tolerance(key));
    }
}

#[test]
fn pet_gives_tensors_component_by_component() {
    native::enter(Device::cpu(), 0, Box::new(Nobody));
    let text = std::fs::read_to_string(repository().join("fixtures/pet/options.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    let target = |name: &str, target_type: TargetType| NamedTarget {
        name: name.to_owned(),
        info: TargetInfo {
            quantity: String::new(),
            unit: String::new(),
            description: String::new(),
            sample_kind: SampleKind::Atom,
            target_type,
            num_subtargets: 2,
            gradients: Vec::new(),
        },
    };
    let irreps = vec![Irrep { lambda: 0, sigma: 1 }, Irrep { lambda: 2, sigma: -1 }];
    let info = DatasetInfo {
        length_unit: "angstrom".to_owned(),
        atomic_types: vec![1, 6, 8],
        targets: vec![
            target("mtt::tensor", TargetType::Cartesian(2)),
            target("mtt::irreps", TargetType::Spherical(irreps)),
        ],
        extra_data: Vec::new(),
    };
    let hypers: Hypers = serde_json::from_value(cases[0]["hypers"].clone()).unwrap();
    let network = Pet::new(&hypers, &info, DType::Float64).unwrap();
    let systems = parity::systems(&cases[0]["structures"]["molecule"], &[]);
    let outputs = network.forward(native::systems(&systems), &["mtt::irreps", "mtt::tensor"]).unwrap();
    let shapes: Vec<Vec<Vec<usize>>> =
        outputs.iter().map(|blocks| blocks.iter().map(Tensor::shape).collect()).collect();
    assert_eq!(shapes, [vec![vec![6, 1, 2], vec![6, 5, 2]], vec![vec![6, 3, 3, 2]]]);
    assert!(outputs.iter().flatten().all(|block| block.is_finite().all().to_vec_bool() == [true]));
}

/// The weights of the fixture: a sine of the element's number and of the parameter's name, as metatrain calls it.
fn formula(theirs: &str, shape: &[usize]) -> Tensor {
    let phase =
        theirs.bytes().enumerate().map(|(place, letter)| (place + 1) * usize::from(letter)).sum::<usize>() % 997;
    let count: usize = shape.iter().product();
    let inputs = if shape.len() > 1 { shape[shape.len() - 1] } else { count };
    let scale = 1.5 / (inputs as f64).sqrt();
    let is_norm = theirs.contains("norm") && theirs.ends_with("weight");
    let value = |k: usize| {
        let k = k as f64;
        let value = scale * (phase as f64 + 1.7 * k + 0.013 * k * k).sin();
        if is_norm { 1.0 + 0.3 * value } else { value }
    };
    Tensor::from_vec_f64(shape, (0..count).map(value).collect(), DType::Float64)
}

/// Gives every parameter what `weight` says for metatrain's name and shape of it.
fn set_weights(network: &mut Pet, weight: impl Fn(&str, Vec<usize>) -> Tensor) {
    let ours = network.parameters().into_iter().map(|(name, parameter)| {
        let theirs = their_name(&name);
        let weight = weight(&theirs, turned(&theirs, &parameter).shape());
        (name, turned(&theirs, &weight))
    });
    let ours: BTreeMap<String, Tensor> = ours.collect();
    network.set_parameters(&ours).unwrap();
}

fn check(name: &str) {
    let Some((reference, weights)) = parity::begin(name) else { return };
    let mut network: Pet = parity::network(&reference);
    set_weights(&mut network, |theirs, _| {
        weights.get(theirs).unwrap_or_else(|| panic!("the reference has no `{theirs}`")).clone()
    });
    assert_eq!(network.parameters().len(), weights.len(), "every tensor of the reference is used, and once");
    let tolerances = &reference["tolerances"]["metatrain"];
    let structures = reference["structures"].as_object().unwrap();
    assert!(structures.len() >= 4);
    for (structure, expected) in structures {
        let found = parity::evaluate(&network, expected);
        parity::check_structure(&format!("{name} {structure}"), &found, expected, tolerances);
    }
    let expected = (&reference["loss_gradient"], tolerances);
    parity::check_loss_gradient(name, &mut network, &reference, expected, |theirs, gradients| {
        let (_, gradient) = gradients.iter().find(|(name, _)| their_name(name) == theirs).unwrap();
        turned(theirs, gradient)
    });
}

/// metatrain's name of a parameter of ours.
fn their_name(ours: &str) -> String {
    let mut name = format!("backend.{ours}").replace(".scale", ".weight").replace(".shift", ".bias");
    // Layers that are numbered there, activations included.
    for (before, after) in [("w_in", "0"), ("w_out", "2")] {
        for network in ["compress", "combination_mlps.0", "combination_mlps.1", "project"] {
            name = name.replace(&format!("{network}.{before}"), &format!("{network}.{after}"));
        }
    }
    for (before, after) in [("layers.0", "0"), ("layers.1", "2")] {
        for head in ["node_heads.energy", "edge_heads.energy"] {
            for readout in 0..2 {
                name = name.replace(&format!("{head}.{readout}.{before}"), &format!("{head}.{readout}.{after}"));
            }
        }
    }
    for readout in 0..2 {
        let before = format!("last_layers.energy.{readout}.0");
        name = name.replace(&before, &format!("last_layers.energy.{readout}.energy___0"));
    }
    for what in ["charge", "spin_multiplicity"] {
        name = name.replace(&format!("conditioning.{what}."), &format!("conditioning.{what}_embedding."));
    }
    if let Some((layer, rest)) = name.strip_prefix("backend.gnn_layers.").and_then(|rest| rest.split_once(".layers.")) {
        name = format!("backend.gnn_layers.{layer}.trans.layers.{rest}");
    }
    name
}

/// Between our layout and theirs: matrices are `[inputs, outputs]` here and `[outputs, inputs]` there.
fn turned(theirs: &str, tensor: &Tensor) -> Tensor {
    let is_table =
        theirs.contains("embed") && !theirs.contains("gnn_layers.0.edge") && !theirs.contains("gnn_layers.1.edge");
    if tensor.shape().len() == 2 && !is_table { tensor.transpose() } else { tensor.clone() }
}
