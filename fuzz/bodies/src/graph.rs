//! What a client gives a model through wasi-nn.

use arbitrary::Unstructured;
use kilnbox_data::{NeighborListOptions, SystemsData};
use kilnbox_host::service::graph::read_systems;
use kilnbox_host::{ElementType, GraphTensor};

use crate::text::check_message;
use crate::within;

/// The atomic numbers that the model knows.
const KNOWN: [i32; 3] = [1, 6, 8];

/// Tensors of a few atoms, right in most ways. What is accepted is whole, and lists hold pairs of these atoms that are close enough.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn graph(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    let inputs = inputs(&mut input);
    let options = NeighborListOptions {
        cutoff: f64::from(input.arbitrary::<u8>().unwrap_or(0)) / 32.0 + 0.01,
        full_list: input.arbitrary().unwrap_or(true),
        strict: input.arbitrary().unwrap_or(true),
    };
    match within(20, || read_systems(&inputs, &KNOWN, &[options])) {
        Ok(systems) => check(&systems, &options),
        Err(failure) => check_message(&failure.message),
    }
}

/// Inputs that fit each other, but for what the bytes say.
fn inputs(input: &mut Unstructured<'_>) -> Vec<(String, GraphTensor)> {
    let mut byte = || input.arbitrary::<u8>().unwrap_or(0);
    let [atoms, systems, pairs] = [byte() % 6, byte() % 3 + 1, byte() % 12].map(u32::from);
    let precision = if byte() % 2 == 0 { ElementType::Float64 } else { ElementType::Float32 };
    let coordinates = |count: u32, byte: &mut dyn FnMut() -> u8| -> Vec<u8> {
        let number = |byte: u8| (f64::from(byte) - 96.0) / 16.0;
        let write = |number: f64| match precision {
            ElementType::Float64 => number.to_le_bytes().to_vec(),
            _ => (number as f32).to_le_bytes().to_vec(),
        };
        (0..count).flat_map(|_| write(number(byte()))).collect()
    };
    let integers = |numbers: Vec<i32>| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let positions = coordinates(3 * atoms, &mut byte);
    let cells = coordinates(9 * systems, &mut byte);
    let types = integers((0..atoms).map(|_| KNOWN[usize::from(byte() % 3)]).collect());
    let system = integers((0..atoms).map(|atom| (atom * systems / atoms.max(1)) as i32).collect());
    let pbc = (0..3 * systems).map(|_| byte() % 2).collect();
    let pair = integers((0..2 * pairs).map(|_| i32::from(byte() % 6)).collect());
    let shifts = integers((0..3 * pairs).map(|_| i32::from(byte() % 3) - 1).collect());
    let mut inputs = [
        ("positions", vec![atoms, 3], precision, positions),
        ("types", vec![atoms], ElementType::Int32, types),
        ("cell", vec![systems, 3, 3], precision, cells),
        ("pbc", vec![systems, 3], ElementType::UInt8, pbc),
        ("system", vec![atoms], ElementType::Int32, system),
        ("pairs", vec![pairs, 2], ElementType::Int32, pair),
        ("shifts", vec![pairs, 3], ElementType::Int32, shifts),
        ("outputs", vec![6], ElementType::UInt8, b"energy".to_vec()),
    ]
    .map(|(name, dimensions, element_type, data)| (name.to_owned(), GraphTensor { dimensions, element_type, data }))
    .to_vec();
    // Some are left out, and a few things are wrong.
    let present = byte() | 3;
    let mut place = 0;
    inputs.retain(|_| {
        place += 1;
        present >> (place - 1) & 1 == 1
    });
    for _ in 0..byte() % 4 {
        let (at, what) = (usize::from(byte()) % inputs.len(), byte());
        let (name, tensor) = &mut inputs[at];
        match what % 7 {
            0 => name.push(char::from(byte())),
            1 => tensor.dimensions.push(u32::from(byte()) << (byte() % 32)),
            2 => drop(tensor.dimensions.pop()),
            3 => tensor.data.truncate(usize::from(byte())),
            4 => tensor.data.extend([byte(), byte(), byte(), byte()]),
            5 => {
                let place = usize::from(byte());
                if let Some(part) = tensor.data.get_mut(place..place + 4) {
                    part.copy_from_slice(&[byte(), byte(), byte(), byte()]);
                }
            }
            _ => {
                let types = [ElementType::Float16, ElementType::BFloat16, ElementType::Int64, ElementType::UInt8];
                tensor.element_type = types[usize::from(byte() % 4)];
            }
        }
    }
    inputs
}

fn check(systems: &SystemsData, options: &NeighborListOptions) {
    let atoms = systems.types.len();
    assert!(atoms > 0 && systems.types.iter().all(|number| KNOWN.contains(number)));
    assert_eq!(systems.atom_counts.iter().sum::<u32>() as usize, atoms);
    assert_eq!((systems.positions.len(), systems.system_indices.len()), (3 * atoms, atoms));
    assert!(systems.positions.iter().chain(&systems.cells).all(|value| value.is_finite()));
    let Some((_, pairs)) = systems.neighbor_lists.iter().find(|(known, _)| known == options) else { return };
    let mut before = None;
    for pair in 0..pairs.first.len() {
        let (first, second) = (pairs.first[pair] as usize, pairs.second[pair] as usize);
        let shift: [i64; 3] = std::array::from_fn(|k| pairs.shifts[3 * pair + k]);
        let system = systems.system_indices[first];
        assert_eq!((systems.system_indices[second], pairs.systems[pair]), (system, system));
        let cell = &systems.cells[9 * system as usize..][..9];
        let squared: f64 = (0..3)
            .map(|axis| {
                let offset: f64 = (0..3).map(|row| shift[row] as f64 * cell[3 * row + axis]).sum();
                (systems.positions[3 * second + axis] - systems.positions[3 * first + axis] + offset).powi(2)
            })
            .sum();
        // Coordinates of some 10 and shifts of a few cells are rounded to 1e-13.
        assert!(squared.sqrt() <= options.cutoff * (1.0 + 1e-9), "{first} and {second} by {shift:?} are too far apart");
        let this = Some((first, second, shift));
        assert!(before < this, "pairs are repeated or not in order");
        before = this;
    }
    assert!(!options.full_list || pairs.reverse().is_some(), "a full list lacks a direction");
}
