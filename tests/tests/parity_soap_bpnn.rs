//! SOAP-BPNN against metatrain's own numbers: energies, forces, strain derivatives, and gradients of a loss on forces.
//!
//! The network runs natively here, without the sandbox, so that a test can reach the gradients of its parameters; the kernels and
//! services below are the sandbox's. The tolerances are those stated with the reference data, for radial functions that are evaluated exactly.

use std::collections::BTreeMap;

use kilnbox_sdk::layers::Module;
use kilnbox_sdk::native;
use kilnbox_sdk::tensor::Tensor;
use kilnbox_tests::parity::{self, close, numbers};
use serde_json::Value;
use soap_bpnn::model::SoapBpnn;

#[test]
fn parity_soap_bpnn_ethanol() {
    check("soap_bpnn_ethanol");
}

#[test]
fn parity_soap_bpnn_carbon() {
    check("soap_bpnn_carbon");
}

#[test]
fn parity_soap_bpnn_modern_ethanol() {
    check("soap_bpnn_modern_ethanol");
}

fn check(name: &str) {
    let Some((reference, weights)) = parity::begin(name) else { return };
    let legacy = reference["hypers"]["legacy"] == true;
    let mut network: SoapBpnn = parity::network(&reference);
    set_weights(&mut network, &weights, legacy);
    let tolerances = &reference["tolerances"]["exact_radial"];
    let structures = reference["structures"].as_object().unwrap();
    assert!(structures.len() >= 4);
    for (structure, expected) in structures {
        let what = format!("{name} {structure}");
        parity::check_structure(&what, &parity::evaluate(&network, expected), &expected["exact_radial"], tolerances);
        check_power_spectrum(&what, &network, expected, tolerances);
    }
    let expected = (&reference["loss_gradient"]["exact_radial"], tolerances);
    parity::check_loss_gradient(name, &mut network, &reference, expected, |theirs, gradients| {
        their_view(theirs, legacy, gradients)
    });
}

fn check_power_spectrum(what: &str, network: &SoapBpnn, structure: &Value, tolerances: &Value) {
    let systems = parity::systems(structure, &[]);
    let systems = native::systems(&systems);
    let species = systems.type_indices(network.atomic_types()).unwrap();
    let found = network.power_spectrum(systems, &species).unwrap();
    let expected = &structure["exact_radial"]["power_spectrum"];
    let compare = |quantity: &str, found: &Tensor| {
        let place = format!("power_spectrum.{quantity}");
        let tolerance = tolerances[&place].as_f64().unwrap();
        close(&format!("{what} {place}"), &found.to_vec_f64(), &numbers(&expected[quantity]), tolerance);
    };
    compare("first_12", &found.slice(1, 0..12));
    compare("l2_norm", &found.square().sum(&[1]).sqrt());
}

/// Gives the network the reference's weights.
fn set_weights(network: &mut SoapBpnn, weights: &BTreeMap<String, Tensor>, legacy: bool) {
    let mut used = 0;
    let mut ours = BTreeMap::new();
    for (name, parameter) in network.parameters() {
        let shape = parameter.shape();
        let parts: Vec<Tensor> = their_names(&name, shape[0], legacy)
            .iter()
            .map(|name| if is_matrix(name) { weights[name].transpose() } else { weights[name].clone() })
            .collect();
        used += parts.len();
        let whole = Tensor::concatenate(&parts.iter().collect::<Vec<_>>(), 0);
        ours.insert(name, whole.reshape(&shape));
    }
    assert_eq!(used, weights.len(), "every tensor of the reference is used, and once");
    network.set_parameters(&ours).unwrap();
}

/// The reference's tensors that make up one of ours, one for each network.
fn their_names(ours: &str, networks: usize, legacy: bool) -> Vec<String> {
    let of_network = |index: usize| match (ours, legacy) {
        ("norm.scale", true) => format!("layernorm.module_list.{index}.weight"),
        ("norm.shift", true) => format!("layernorm.module_list.{index}.bias"),
        ("hidden.layers.0.weight", true) => format!("bpnn.module_list.{index}.0.weight"),
        ("hidden.layers.1.weight", true) => format!("bpnn.module_list.{index}.2.weight"),
        ("norm.scale", false) => "layernorm_for_tensors.weight".to_owned(),
        ("norm.shift", false) => "layernorm_for_tensors.bias".to_owned(),
        ("hidden.layers.0.weight", false) => "bpnn_for_tensors.0.weight".to_owned(),
        ("hidden.layers.1.weight", false) => "bpnn_for_tensors.2.weight".to_owned(),
        ("last_layers.energy.weight", _) => {
            format!("last_layers.energy.energy___0.module_map.module_list.{index}.weight")
        }
        other => panic!("no counterpart is known of {other:?}"),
    };
    match ours {
        "neighbor_embedding.weight" => vec!["soap_calculator.calculator.species.embedding.weight".to_owned()],
        "center_embedding.weight" => vec!["center_encoding.weight".to_owned()],
        _ => (0..networks).map(of_network).collect(),
    }
}

/// Whether the reference keeps it as `[outputs, inputs]`, where ours is `[inputs, outputs]`.
fn is_matrix(theirs: &str) -> bool {
    theirs.starts_with("bpnn") || theirs.starts_with("last_layers")
}

/// The gradient of one tensor of the reference, in its own layout.
fn their_view(theirs: &str, legacy: bool, gradients: &[(String, Tensor)]) -> Tensor {
    for (name, gradient) in gradients {
        let shape = gradient.shape();
        let names = their_names(name, shape[0], legacy);
        let Some(index) = names.iter().position(|name| name == theirs) else { continue };
        if names.len() == 1 && shape.len() == 2 && (name.contains("embedding")) {
            return gradient.clone();
        }
        let part = gradient.slice(0, index..index + 1).reshape(&shape[1..]);
        return if is_matrix(theirs) { part.transpose() } else { part };
    }
    panic!("no parameter corresponds to {theirs}")
}
