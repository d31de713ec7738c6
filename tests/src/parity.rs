//! What the comparisons with metatrain's own numbers share. A network runs natively in them, without the sandbox, so that a test can reach the gradients of its
//! parameters; the kernels and services below are the sandbox's.

use std::collections::BTreeMap;
use std::path::Path;

use kilnbox_data::{Labels, SystemsData, TensorBlock, TensorMap};
use kilnbox_host::service::data::Systems;
use kilnbox_sdk::info::{DType, DatasetInfo, NamedTarget, SampleKind, TargetInfo, TargetType};
use kilnbox_sdk::native;
use kilnbox_sdk::network::Network;
use kilnbox_sdk::tensor::{Tensor, grad};
use kilnbox_tensor::Device;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{Nobody, reference};

/// Reads a reference and begins a native run for it; none where the reference data is not present.
///
/// # Panics
/// The file is not what the reference data has.
pub fn begin(name: &str) -> Option<(Value, BTreeMap<String, Tensor>)> {
    let file = reference(&format!("reference/{name}.json"))?;
    native::enter(Device::cpu(), 0, Box::new(Nobody));
    let reference = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    Some((reference, weights(&file.with_extension("safetensors"))))
}

/// The tensors of a file of float64.
fn weights(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |name: String| {
        let view = file.tensor(&name).unwrap();
        let values = view.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect();
        let tensor = Tensor::from_vec_f64(view.shape(), values, DType::Float64);
        (name, tensor)
    };
    file.names().into_iter().map(str::to_owned).map(tensor).collect()
}

/// A network for the energies of the reference, in double precision, with fresh weights.
///
/// # Panics
/// The network refuses the reference's hypers.
pub fn network<N: Network>(reference: &Value) -> N {
    let hypers: N::Hypers = serde_json::from_value(reference["hypers"].clone()).unwrap();
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
    N::new(&hypers, &info, DType::Float64).unwrap()
}

/// What a network makes of a structure.
pub struct Found {
    /// `[atoms, 1]`.
    pub per_atom: Tensor,
    /// Their sum.
    pub energy: Tensor,
    /// Minus the forces.
    pub position_gradient: Tensor,
    /// By the strain.
    pub strain_gradient: Tensor,
}

/// A structure of a reference, with named numbers such as a charge.
///
/// # Panics
/// It is not what the reference data has.
pub fn systems(structure: &Value, data: &[(&str, f64)]) -> native::data::Systems {
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
    let number = |&(name, value): &(&str, f64)| {
        let labels = |name: &str| Labels { names: vec![name.to_owned()], values: vec![0] };
        let block = TensorBlock {
            shape: vec![1, 1],
            values: vec![value],
            samples: labels("system"),
            components: Vec::new(),
            properties: labels(name),
            gradients: Vec::new(),
        };
        (name.to_owned(), TensorMap { keys: labels("_"), blocks: vec![block] })
    };
    let data = data.iter().map(number).collect();
    let systems = Systems::new(plain, data, &Device::cpu(), kilnbox_tensor::DType::Float64).unwrap();
    native::data::Systems(systems)
}

/// Energies of a structure with their gradients, which can be differentiated again.
///
/// # Panics
/// The network fails.
pub fn evaluate<N: Network>(network: &N, structure: &Value) -> Found {
    evaluate_systems(network, &systems(structure, &[]))
}

/// As [`evaluate`], of systems that are there already.
///
/// # Panics
/// The network fails.
pub fn evaluate_systems<N: Network>(network: &N, systems: &native::data::Systems) -> Found {
    let tracked = native::systems(systems).track(true, true);
    let per_atom = network.forward(tracked.systems(), &["energy"]).unwrap().remove(0).remove(0);
    let energy = per_atom.sum_all();
    let leaves = [tracked.positions.as_ref().unwrap(), tracked.strain.as_ref().unwrap()];
    let [position_gradient, strain_gradient] = grad(&[&energy], &leaves, true).try_into().ok().unwrap();
    Found { per_atom, energy, position_gradient, strain_gradient }
}

/// Compares energies, per-atom energies, forces and strain derivatives of one structure.
///
/// # Panics
/// They differ.
pub fn check_structure(what: &str, found: &Found, expected: &Value, tolerances: &Value) {
    let compare = |quantity: &str, found: &[f64]| {
        let tolerance = tolerances[quantity].as_f64().unwrap();
        close(&format!("{what} {quantity}"), found, &numbers(&expected[quantity]), tolerance);
    };
    compare("energy", &found.energy.to_vec_f64());
    compare("per_atom_energies", &found.per_atom.to_vec_f64());
    compare("forces", &(-&found.position_gradient).to_vec_f64());
    compare("strain_derivative", &found.strain_gradient.to_vec_f64());
}

/// Compares the gradients of `L = (E / N)^2 + mean(F^2)` by the parameters, which need second derivatives. `expected` is what the reference says of them;
/// `view` gives the gradient of one of the reference's tensors, in its own layout, from the names and gradients of ours.
///
/// # Panics
/// They differ.
pub fn check_loss_gradient<N: Network>(
    what: &str,
    network: &mut N,
    reference: &Value,
    (expected, tolerances): (&Value, &Value),
    view: impl Fn(&str, &[(String, Tensor)]) -> Tensor,
) {
    let tolerance = |quantity: &str| tolerances[quantity].as_f64().unwrap();
    let structure = &reference["structures"][reference["loss_gradient"]["structure"].as_str().unwrap()];
    let found = evaluate(network, structure);
    let atoms = found.per_atom.size(0) as f64;
    let loss = (&found.energy / atoms).square().sum_all() + found.position_gradient.square().mean_all();
    close(&format!("{what} loss"), &loss.to_vec_f64(), &numbers(&expected["loss"]), tolerance("loss_gradient.loss"));
    let parameters = network.parameters();
    let leaves: Vec<&Tensor> = parameters.iter().map(|(_, parameter)| parameter).collect();
    let gradients = grad(&[&loss], &leaves, false);
    let gradients: Vec<(String, Tensor)> =
        parameters.iter().zip(gradients).map(|((name, _), gradient)| (name.clone(), gradient)).collect();
    let norms = expected["l2_norm_of_every_parameter"].as_object().unwrap();
    assert!(norms.len() >= 5);
    for (theirs, norm) in norms {
        let values = view(theirs, &gradients).to_vec_f64();
        let found = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let place = format!("{what} loss gradient of {theirs}");
        close(&place, &[found], &numbers(norm), tolerance("loss_gradient.l2_norm"));
        if let Some(detail) = expected["parameters"].get(theirs) {
            let place = format!("{what} first entries of {theirs}");
            close(&place, &values[..5], &numbers(&detail["first_5"]), tolerance("loss_gradient.first_5"));
        }
    }
}

/// All numbers of nested lists, in order.
///
/// # Panics
/// There is something else among them.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        other => vec![other.as_f64().unwrap()],
    }
}

/// Compares number by number.
///
/// # Panics
/// One differs by more than the tolerance.
pub fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(
            error <= tolerance,
            "{what}[{index}]: {found} differs from {expected} by {error:e}, more than {tolerance:e}"
        );
    }
}
