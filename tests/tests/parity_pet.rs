//! PET against metatrain's own numbers: energies, forces, strain derivatives, and gradients of a loss on forces. The tolerances are those stated with the
//! reference data.

use std::collections::BTreeMap;

use kilnbox_sdk::layers::Module;
use kilnbox_sdk::tensor::Tensor;
use kilnbox_tests::parity;
use pet::model::Pet;

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

fn check(name: &str) {
    let Some((reference, weights)) = parity::begin(name) else { return };
    let mut network: Pet = parity::network(&reference);
    let mut ours = BTreeMap::new();
    for (name, _) in network.parameters() {
        let theirs = their_name(&name);
        let weight = weights.get(&theirs).unwrap_or_else(|| panic!("the reference has no `{theirs}` for `{name}`"));
        ours.insert(name, turned(&theirs, weight));
    }
    assert_eq!(ours.len(), weights.len(), "every tensor of the reference is used, and once");
    network.set_parameters(&ours).unwrap();
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
        for network in ["compress", "combination_mlps.0", "combination_mlps.1"] {
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
    if let Some((layer, rest)) = name.strip_prefix("backend.gnn_layers.").and_then(|rest| rest.split_once(".layers.")) {
        name = format!("backend.gnn_layers.{layer}.trans.layers.{rest}");
    }
    name
}

/// Between our layout and theirs: matrices are `[inputs, outputs]` here and `[outputs, inputs]` there.
fn turned(theirs: &str, tensor: &Tensor) -> Tensor {
    let is_table = theirs.contains("node_embedders")
        || theirs.contains("neighbor_embedder")
        || theirs == "backend.edge_embedder.weight";
    if tensor.shape().len() == 2 && !is_table { tensor.transpose() } else { tensor.clone() }
}
