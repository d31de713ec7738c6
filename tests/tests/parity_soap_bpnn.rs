//! SOAP-BPNN against metatrain's own numbers: energies, forces, strain derivatives, and gradients of a loss on forces.
//!
//! The network runs natively here, without the sandbox, so that a test can reach the gradients of its parameters; the kernels and
//! services below are the sandbox's. The tolerances are those stated with the reference data, for radial functions that are evaluated exactly.

use std::collections::BTreeMap;
use std::path::Path;

use kilnbox_data::SystemsData;
use kilnbox_host::service::data::Systems;
use kilnbox_sdk::info::{DType, DatasetInfo, NamedTarget, SampleKind, TargetInfo, TargetType};
use kilnbox_sdk::layers::Module;
use kilnbox_sdk::native;
use kilnbox_sdk::network::Network;
use kilnbox_sdk::tensor::{Tensor, grad};
use kilnbox_tensor::Device;
use kilnbox_tests::{Nobody, reference};
use safetensors::SafeTensors;
use serde_json::Value;
use soap_bpnn::model::{Hypers, SoapBpnn};

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
    let Some(file) = reference(&format!("reference/{name}.json")) else { return };
    native::enter(Device::cpu(), 0, Box::new(Nobody));
    let reference: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let tolerances = &reference["tolerances"]["exact_radial"];
    let mut network = network(&reference, &file.with_extension("safetensors"));
    let structures = reference["structures"].as_object().unwrap();
    assert!(structures.len() >= 4);
    for (structure, expected) in structures {
        let exact = &expected["exact_radial"];
        let found = evaluate(&network, expected);
        let compare = |what: &str, found: &[f64], expected: &Value| {
            close(&format!("{name} {structure} {what}"), found, &numbers(expected), tolerances[what].as_f64().unwrap());
        };
        compare("energy", &found.energy.to_vec_f64(), &exact["energy"]);
        compare("per_atom_energies", &found.per_atom.to_vec_f64(), &exact["per_atom_energies"]);
        compare("forces", &(-&found.position_gradient).to_vec_f64(), &exact["forces"]);
        compare("strain_derivative", &found.strain_gradient.to_vec_f64(), &exact["strain_derivative"]);
        let spectra = &exact["power_spectrum"];
        let atoms = found.power_spectrum.size(0);
        compare("power_spectrum.first_12", &found.power_spectrum.slice(1, 0..12).to_vec_f64(), &spectra["first_12"]);
        let norms = found.power_spectrum.square().sum(&[1]).sqrt();
        assert_eq!(norms.size(0), atoms);
        compare("power_spectrum.l2_norm", &norms.to_vec_f64(), &spectra["l2_norm"]);
    }
    check_loss_gradient(name, &reference, &mut network);
}

/// `L = (E / N)^2 + mean(F^2)`: its gradients with respect to parameters need second derivatives.
fn check_loss_gradient(name: &str, reference: &Value, network: &mut SoapBpnn) {
    let tolerances = &reference["tolerances"]["exact_radial"];
    let expected = &reference["loss_gradient"]["exact_radial"];
    let structure = &reference["structures"][reference["loss_gradient"]["structure"].as_str().unwrap()];
    let found = evaluate(network, structure);
    let atoms = found.per_atom.size(0) as f64;
    let loss = (&found.energy / atoms).square().sum_all() + found.position_gradient.square().mean_all();
    close(
        &format!("{name} loss"),
        &loss.to_vec_f64(),
        &numbers(&expected["loss"]),
        tolerances["loss_gradient.loss"].as_f64().unwrap(),
    );
    let parameters = network.parameters();
    let leaves: Vec<&Tensor> = parameters.iter().map(|(_, parameter)| parameter).collect();
    let gradients = grad(&[&loss], &leaves, false);
    let norms = expected["l2_norm_of_every_parameter"].as_object().unwrap();
    assert!(norms.len() >= 5);
    for (theirs, norm) in norms {
        let values = their_view(theirs, reference["hypers"]["legacy"] == true, &parameters, &gradients).to_vec_f64();
        let found = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let tolerance = tolerances["loss_gradient.l2_norm"].as_f64().unwrap();
        close(&format!("{name} loss gradient of {theirs}"), &[found], &numbers(norm), tolerance);
        if let Some(detail) = expected["parameters"].get(theirs) {
            let tolerance = tolerances["loss_gradient.first_5"].as_f64().unwrap();
            close(&format!("{name} first entries of {theirs}"), &values[..5], &numbers(&detail["first_5"]), tolerance);
        }
    }
}

struct Found {
    per_atom: Tensor,
    energy: Tensor,
    position_gradient: Tensor,
    strain_gradient: Tensor,
    power_spectrum: Tensor,
}

fn evaluate(network: &SoapBpnn, structure: &Value) -> Found {
    let atoms = structure["types"].as_array().unwrap().len();
    let periodic: Vec<bool> = structure["pbc"].as_array().unwrap().iter().map(|flag| flag.as_bool().unwrap()).collect();
    let plain = SystemsData {
        atom_counts: vec![atoms as u32],
        positions: numbers(&structure["positions"]),
        cells: numbers(&structure["cell"]),
        periodic,
        types: numbers(&structure["types"]).iter().map(|&number| number as i32).collect(),
        system_indices: vec![0; atoms],
        neighbor_lists: Vec::new(),
    };
    let systems = Systems::new(plain, Vec::new(), &Device::cpu(), kilnbox_tensor::DType::Float64).unwrap();
    let systems = native::data::Systems(systems);
    let tracked = native::systems(&systems).track(true, true);
    let species = tracked.systems().type_indices(network.atomic_types()).unwrap();
    let power_spectrum = network.power_spectrum(tracked.systems(), &species).unwrap();
    let per_atom = network.forward(tracked.systems(), &["energy"]).unwrap().remove(0).remove(0);
    let energy = per_atom.sum_all();
    let leaves = [tracked.positions.as_ref().unwrap(), tracked.strain.as_ref().unwrap()];
    let mut gradients = grad(&[&energy], &leaves, true).into_iter();
    let position_gradient = gradients.next().unwrap();
    let strain_gradient = gradients.next().unwrap();
    Found { per_atom, energy, position_gradient, strain_gradient, power_spectrum }
}

/// A network with the reference's weights.
fn network(reference: &Value, weights: &Path) -> SoapBpnn {
    let hypers: Hypers = serde_json::from_value(reference["hypers"].clone()).unwrap();
    let info = DatasetInfo {
        length_unit: "angstrom".into(),
        atomic_types: numbers(&reference["atomic_types"]).iter().map(|&number| number as i32).collect(),
        targets: vec![NamedTarget {
            name: "energy".into(),
            info: TargetInfo {
                quantity: "energy".into(),
                unit: "eV".into(),
                description: String::new(),
                sample_kind: SampleKind::System,
                target_type: TargetType::Scalar,
                num_subtargets: 1,
                gradients: vec!["positions".into()],
            },
        }],
        extra_data: Vec::new(),
    };
    let mut network = SoapBpnn::new(&hypers, &info, DType::Float64).unwrap();
    let bytes = std::fs::read(weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let theirs = |name: &str| {
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
        Tensor::from_vec_f64(view.shape(), values, DType::Float64)
    };
    let legacy = reference["hypers"]["legacy"] == true;
    let mut used = 0;
    let mut ours = BTreeMap::new();
    for (name, parameter) in network.parameters() {
        let shape = parameter.shape();
        let parts: Vec<Tensor> = their_names(&name, shape[0], legacy)
            .iter()
            .map(|name| if is_matrix(name) { theirs(name).transpose() } else { theirs(name) })
            .collect();
        used += parts.len();
        let whole = Tensor::concatenate(&parts.iter().collect::<Vec<_>>(), 0);
        ours.insert(name, whole.reshape(&shape));
    }
    assert_eq!(used, file.names().len(), "every tensor of the reference is used, and once");
    network.set_parameters(&ours).unwrap();
    network
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
fn their_view(theirs: &str, legacy: bool, parameters: &[(String, Tensor)], gradients: &[Tensor]) -> Tensor {
    for ((name, _), gradient) in parameters.iter().zip(gradients) {
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

/// All numbers of nested lists, in order.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance,
            "{what}[{index}]: {found} differs from {expected} by {error:e}, more than {tolerance:e}"
        );
    }
}
