//! A trained model as a named graph of wasi-nn: tensors by name in, tensors by name out. `docs/wasi-nn.md` describes it to those who write clients.
//!
//! Everything comes from a client that nobody knows, so every tensor is looked at before anything is made of it.

use std::fmt;
use std::sync::Arc;

use kilnbox_data::{DataError, NeighborListOptions, SampleKind, StructureView, SystemsData, elements, volume};
use serde_json::{Value as Json, json};

use crate::error::{HostError, printable};
use crate::evaluate::{EvaluatedOutput, EvaluationRequest};
use crate::predict::Predictor;
use crate::service::model::ModelOutput;

/// The name and version of what graphs take and give.
pub const INTERFACE: &str = "atomistic/1";
/// What the name of a model ends with to mean its description.
pub const DESCRIPTION: &str = "#describe";
/// The inputs of a graph.
const INPUTS: [&str; 8] = ["positions", "types", "cell", "pbc", "system", "pairs", "shifts", "outputs"];
/// The longest text that asks for outputs, in bytes.
const LONGEST_REQUEST: usize = 4096;
/// The longest name that an error repeats, in characters.
const LONGEST_NAME: usize = 64;

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// Half precision.
    Float16,
    /// Single precision.
    Float32,
    /// Double precision.
    Float64,
    /// Half of a single precision number.
    BFloat16,
    /// Bytes: truth values and text.
    UInt8,
    /// Integers.
    Int32,
    /// Long integers.
    Int64,
}

impl ElementType {
    fn bytes(self) -> usize {
        match self {
            Self::UInt8 => 1,
            Self::Float16 | Self::BFloat16 => 2,
            Self::Float32 | Self::Int32 => 4,
            Self::Float64 | Self::Int64 => 8,
        }
    }
}

/// As wasi-nn writes it.
impl fmt::Display for ElementType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Float16 => "fp16",
            Self::Float32 => "fp32",
            Self::Float64 => "fp64",
            Self::BFloat16 => "bf16",
            Self::UInt8 => "u8",
            Self::Int32 => "i32",
            Self::Int64 => "i64",
        })
    }
}

/// A tensor as clients have it: row-major, little-endian. Nothing says that its data fits its dimensions.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphTensor {
    /// The size of each axis.
    pub dimensions: Vec<u32>,
    /// What its elements are.
    pub element_type: ElementType,
    /// The elements.
    pub data: Vec<u8>,
}

/// What a failure is for the client's program; the names are those of wasi-nn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// The client gave something that it must not.
    InvalidArgument,
    /// A limit on time was met.
    Timeout,
    /// The model failed.
    RuntimeError,
    /// What nobody offers here.
    UnsupportedOperation,
    /// Another limit was met.
    TooLarge,
    /// There is no graph of this name.
    NotFound,
}

/// Why a graph does not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For the client's program.
    pub code: FailureCode,
    /// For the client's author.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(FailureCode::InvalidArgument, message)
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        let code = match &error {
            HostError::Data(_) => FailureCode::InvalidArgument,
            HostError::Limit { limit: "seconds_per_call" | "seconds_per_run", .. } => FailureCode::Timeout,
            HostError::Limit { .. } => FailureCode::TooLarge,
            _ => FailureCode::RuntimeError,
        };
        Self::new(code, error.to_string())
    }
}

/// A model under the name that the user gave it.
#[derive(Debug)]
pub struct Graph {
    name: String,
    predictor: Predictor,
    description: GraphTensor,
}

impl Graph {
    /// A graph that predicts with `predictor`. `about` is what the description says beside what is known of the model: an object, such as `{"digest": ...}`.
    pub fn new(name: &str, predictor: Predictor, about: &Json) -> Self {
        let data = describe(name, &predictor, about).to_string().into_bytes();
        let description = GraphTensor { dimensions: vec![data.len() as u32], element_type: ElementType::UInt8, data };
        Self { name: name.to_owned(), predictor, description }
    }

    /// The name that the user gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the graph takes and gives, as JSON: the one output of `NAME#describe`.
    ///
    /// # Errors
    /// The client gave inputs, and there are none.
    pub fn describe(&self, inputs: &[(String, GraphTensor)]) -> Result<Vec<(String, GraphTensor)>, Failure> {
        match inputs.first() {
            None => Ok(vec![("meta".to_owned(), self.description.clone())]),
            Some((name, _)) => {
                Err(Failure::invalid(format!("a description has no inputs, and `{}` was given", shown(name))))
            }
        }
    }

    /// Predicts.
    ///
    /// # Errors
    /// An input is missing, unknown, given twice, or not what it has to be; the model fails or meets a limit.
    pub fn compute(&mut self, inputs: Vec<(String, GraphTensor)>) -> Result<Vec<(String, GraphTensor)>, Failure> {
        let inputs = Inputs::read(&inputs)?;
        let capabilities = self.predictor.capabilities();
        let systems = inputs.systems(&capabilities.atomic_types, self.predictor.neighbor_lists())?;
        let wanted = Wanted::read(inputs.outputs.as_deref(), &systems, &capabilities.outputs)?;
        let volumes = wanted.stress.then(|| systems.cells.as_chunks::<9>().0.iter().map(volume).collect::<Vec<_>>());
        let atoms = systems.types.len() as u32;
        let answers = self.predictor.predict(systems, &wanted.requests)?;
        Ok(wanted.outputs(answers, atoms, volumes.as_deref(), inputs.precision))
    }
}

/// Everything that a client may want to know before it computes.
fn describe(name: &str, predictor: &Predictor, about: &Json) -> Json {
    let capabilities = predictor.capabilities();
    let outputs = capabilities.outputs.iter().map(|output| {
        json!({
            "name": output.name,
            "quantity": output.quantity,
            "unit": output.unit,
            "per_atom": output.sample_kind == SampleKind::Atom,
            "description": output.description,
        })
    });
    let lists = predictor
        .neighbor_lists()
        .iter()
        .map(|options| json!({"cutoff": options.cutoff, "full_list": options.full_list, "strict": options.strict}));
    let mut description = json!({
        "interface": INTERFACE,
        "name": name,
        "length_unit": capabilities.length_unit,
        "dtype": capabilities.dtype.to_string(),
        "interaction_range": capabilities.interaction_range,
        "atomic_types": capabilities.atomic_types,
        "neighbor_lists": lists.collect::<Vec<_>>(),
        "outputs": outputs.collect::<Vec<_>>(),
    });
    if let (Json::Object(description), Json::Object(about)) = (&mut description, about) {
        description.extend(about.clone());
    }
    description
}

/// The systems that `inputs` describe to a model which knows these atomic numbers and uses these neighbour lists; the lists are made of the client's pairs
/// if it gave some, and otherwise are still to be made.
///
/// # Errors
/// As [`Graph::compute`], before the model has a part in it.
pub fn read_systems(
    inputs: &[(String, GraphTensor)],
    atomic_types: &[i32],
    neighbor_lists: &[NeighborListOptions],
) -> Result<SystemsData, Failure> {
    Inputs::read(inputs)?.systems(atomic_types, neighbor_lists)
}

/// What a client gave, as numbers.
struct Inputs {
    /// The type of positions, which outputs have as well.
    precision: ElementType,
    positions: Vec<f64>,
    types: Vec<i32>,
    cells: Vec<[f64; 9]>,
    periodic: Vec<[bool; 3]>,
    /// The number of atoms of each system.
    atom_counts: Vec<usize>,
    pairs: Option<(Vec<[i32; 2]>, Vec<[i32; 3]>)>,
    outputs: Option<String>,
}

impl Inputs {
    fn read(inputs: &[(String, GraphTensor)]) -> Result<Self, Failure> {
        let mut known: [Option<&GraphTensor>; INPUTS.len()] = [None; INPUTS.len()];
        for (name, tensor) in inputs {
            let Some(place) = INPUTS.iter().position(|input| input == name) else {
                let names = INPUTS.map(|input| format!("`{input}`")).join(", ");
                return Err(Failure::invalid(format!("there is no input `{}`: there are {names}", shown(name))));
            };
            if known[place].replace(tensor).is_some() {
                return Err(Failure::invalid(format!("the input `{name}` was given twice")));
            }
        }
        let [positions, types, cell, pbc, system, pairs, shifts, outputs] = known;
        let missing = |name: &str| Failure::invalid(format!("the input `{name}` is missing"));
        let positions = positions.ok_or_else(|| missing("positions"))?;
        let types = types.ok_or_else(|| missing("types"))?;
        let types = Input("types", types).int32(&[Size::Any])?;
        let atoms = types.len();
        if atoms == 0 {
            return Err(Failure::invalid("there are no atoms, expected at least one"));
        }
        let precision = positions.element_type;
        let positions = Input("positions", positions).floats(&[Size::Exactly(atoms), Size::Exactly(3)])?;
        let atom_counts = match system {
            None => vec![atoms],
            Some(system) => counts(&Input("system", system).int32(&[Size::Exactly(atoms)])?)?,
        };
        let (cells, periodic) = match (cell, pbc) {
            (None, None) => (vec![[0.0; 9]; atom_counts.len()], vec![[false; 3]; atom_counts.len()]),
            (Some(cell), Some(pbc)) => {
                let cells = Input("cell", cell).for_each_system(&[3, 3], atom_counts.len(), Input::floats)?;
                let periodic = Input("pbc", pbc).for_each_system(&[3], atom_counts.len(), Input::truths)?;
                (cells.as_chunks().0.to_vec(), periodic.as_chunks().0.to_vec())
            }
            (Some(_), None) => return Err(Failure::invalid("the input `cell` needs `pbc` beside it")),
            (None, Some(_)) => return Err(Failure::invalid("the input `pbc` needs `cell` beside it")),
        };
        let pairs = match (pairs, shifts) {
            (None, None) => None,
            (Some(pairs), Some(shifts)) => {
                let pairs = Input("pairs", pairs).int32(&[Size::Any, Size::Exactly(2)])?;
                let shifts = Input("shifts", shifts).int32(&[Size::Exactly(pairs.len() / 2), Size::Exactly(3)])?;
                Some((pairs.as_chunks().0.to_vec(), shifts.as_chunks().0.to_vec()))
            }
            (Some(_), None) => return Err(Failure::invalid("the input `pairs` needs `shifts` beside it")),
            (None, Some(_)) => return Err(Failure::invalid("the input `shifts` needs `pairs` beside it")),
        };
        let outputs = outputs.map(|outputs| Input("outputs", outputs).text()).transpose()?;
        Ok(Self { precision, positions, types, cells, periodic, atom_counts, pairs, outputs })
    }

    /// The systems, with these neighbour lists if the client gave pairs.
    fn systems(&self, known: &[i32], neighbor_lists: &[NeighborListOptions]) -> Result<SystemsData, Failure> {
        if let Some((atom, number)) = self.types.iter().enumerate().find(|(_, number)| !known.contains(number)) {
            let known: Vec<String> = known.iter().map(|&number| elements::symbol(number).to_string()).collect();
            return Err(Failure::invalid(format!(
                "the atom {atom} has the atomic number {number}, and the model knows {}",
                known.join(", ")
            )));
        }
        let mut start = 0;
        let mut structures = Vec::with_capacity(self.atom_counts.len());
        for (system, &count) in self.atom_counts.iter().enumerate() {
            let atoms = start..start + count;
            start = atoms.end;
            structures.push(StructureView {
                types: &self.types[atoms.clone()],
                positions: &self.positions[3 * atoms.start..3 * atoms.end],
                cell: &self.cells[system],
                periodic: self.periodic[system],
            });
        }
        let mut systems = SystemsData::new(&structures)?;
        if let Some((atoms, shifts)) = &self.pairs {
            for options in neighbor_lists {
                let pairs = systems.choose_pairs(options, atoms, shifts)?;
                systems.set_neighbors(*options, Arc::new(pairs));
            }
        }
        Ok(systems)
    }
}

/// How many atoms each system has, of the system of each atom.
fn counts(systems: &[i32]) -> Result<Vec<usize>, Failure> {
    let mut counts = Vec::new();
    for (atom, &system) in systems.iter().enumerate() {
        match usize::try_from(system) {
            Ok(system) if system == counts.len() => counts.push(1),
            Ok(system) if system + 1 == counts.len() => counts[system] += 1,
            _ => {
                return Err(Failure::invalid(format!(
                    "the atom {atom} is in the system {system} after {} others: expected numbers from 0 on that do not fall and leave none out",
                    counts.len()
                )));
            }
        }
    }
    Ok(counts)
}

/// The size that an axis must have.
#[derive(Clone, Copy)]
enum Size {
    Any,
    Exactly(usize),
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => formatter.write_str("any"),
            Self::Exactly(size) => size.fmt(formatter),
        }
    }
}

/// A tensor and its name.
struct Input<'a>(&'static str, &'a GraphTensor);

impl Input<'_> {
    fn floats(&self, shape: &[Size]) -> Result<Vec<f64>, Failure> {
        use ElementType::{Float32, Float64};
        let data = self.data(&[Float32, Float64], shape)?;
        let values: Vec<f64> = if self.1.element_type == Float32 {
            data.as_chunks().0.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect()
        } else {
            data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
        };
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(place) => Err(Failure::invalid(format!(
                "the input `{}` has {} at {place}, expected finite numbers",
                self.0, values[place]
            ))),
        }
    }

    fn int32(&self, shape: &[Size]) -> Result<Vec<i32>, Failure> {
        let data = self.data(&[ElementType::Int32], shape)?;
        Ok(data.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect())
    }

    fn truths(&self, shape: &[Size]) -> Result<Vec<bool>, Failure> {
        let data = self.data(&[ElementType::UInt8], shape)?;
        match data.iter().position(|&value| value > 1) {
            None => Ok(data.iter().map(|&value| value == 1).collect()),
            Some(place) => {
                Err(Failure::invalid(format!("the input `{}` has {} at {place}, expected 0 or 1", self.0, data[place])))
            }
        }
    }

    fn text(&self) -> Result<String, Failure> {
        let data = self.data(&[ElementType::UInt8], &[Size::Any])?;
        match std::str::from_utf8(data) {
            Ok(text) if text.len() <= LONGEST_REQUEST => Ok(text.to_owned()),
            Ok(text) => Err(Failure::invalid(format!(
                "the input `{}` has {} bytes, expected at most {LONGEST_REQUEST}",
                self.0,
                text.len()
            ))),
            Err(_) => Err(Failure::invalid(format!("the input `{}` is not text", self.0))),
        }
    }

    /// One entry for all systems, which is then repeated, or one for each.
    fn for_each_system<T: Copy>(
        &self,
        of_one: &[usize],
        systems: usize,
        read: impl Fn(&Self, &[Size]) -> Result<Vec<T>, Failure>,
    ) -> Result<Vec<T>, Failure> {
        let one: Vec<Size> = of_one.iter().map(|&size| Size::Exactly(size)).collect();
        if self.1.dimensions.len() == one.len() {
            return Ok(read(self, &one)?.repeat(systems));
        }
        read(self, &[vec![Size::Exactly(systems)], one].concat())
    }

    /// The bytes, after a look at everything that could be wrong with them.
    fn data(&self, element_types: &[ElementType], shape: &[Size]) -> Result<&[u8], Failure> {
        let Self(name, GraphTensor { dimensions, element_type, data }) = self;
        if !element_types.contains(element_type) {
            let types: Vec<String> = element_types.iter().map(ElementType::to_string).collect();
            return Err(Failure::invalid(format!(
                "the input `{name}` is {element_type}, expected {}",
                types.join(" or ")
            )));
        }
        let fits = |(size, &dimension): (&Size, &u32)| match size {
            Size::Any => true,
            Size::Exactly(size) => *size == dimension as usize,
        };
        if dimensions.len() != shape.len() || !shape.iter().zip(dimensions).all(fits) {
            let expected: Vec<String> = shape.iter().map(Size::to_string).collect();
            let some = &dimensions[..dimensions.len().min(8)];
            let more = if some.len() < dimensions.len() { " and more" } else { "" };
            return Err(Failure::invalid(format!(
                "the input `{name}` has the dimensions {some:?}{more}, expected [{}]",
                expected.join(", ")
            )));
        }
        let count = dimensions.iter().try_fold(1_usize, |count, &size| count.checked_mul(size as usize));
        if count.and_then(|count| count.checked_mul(element_type.bytes())) != Some(data.len()) {
            return Err(Failure::invalid(format!(
                "the input `{name}` has {} bytes of data, which are not those of {dimensions:?} in {element_type}",
                data.len()
            )));
        }
        Ok(data)
    }
}

/// What a client wants to know.
struct Wanted {
    forces: bool,
    stress: bool,
    /// The energy's first, if it or its derivatives are wanted.
    requests: Vec<EvaluationRequest>,
    /// The name of each request's values; none if only derivatives are wanted.
    names: Vec<Option<String>>,
}

impl Wanted {
    /// Energy and forces, and the stress if all systems have a volume, unless the client asks for something.
    fn read(text: Option<&str>, systems: &SystemsData, outputs: &[ModelOutput]) -> Result<Self, Failure> {
        let has_volume = systems.periodic.iter().all(|&periodic| periodic);
        let names: Vec<&str> = match text {
            Some(text) => text.split_ascii_whitespace().collect(),
            None if has_volume => vec!["energy", "forces", "stress"],
            None => vec!["energy", "forces"],
        };
        if names.is_empty() {
            return Err(Failure::invalid("the input `outputs` names none"));
        }
        if let Some(twice) = (1..names.len()).find(|&place| names[..place].contains(&names[place])) {
            return Err(Failure::invalid(format!("the input `outputs` has `{}` twice", shown(names[twice]))));
        }
        let [energy, forces, stress] = ["energy", "forces", "stress"].map(|name| names.contains(&name));
        if stress && !has_volume {
            return Err(Failure::invalid("a system that is not periodic in all directions has no stress"));
        }
        let mut wanted = Self { forces, stress, requests: Vec::new(), names: Vec::new() };
        if energy || forces || stress {
            wanted.requests.push(EvaluationRequest {
                output: energy_of(outputs)?.clone(),
                position_gradients: forces,
                strain_gradients: stress,
            });
            wanted.names.push(energy.then(|| "energy".to_owned()));
        }
        for name in names.into_iter().filter(|name| !["energy", "forces", "stress"].contains(name)) {
            let Some(output) = outputs.iter().find(|output| output.name == name) else {
                let known: Vec<String> = outputs.iter().map(|output| format!("`{}`", output.name)).collect();
                return Err(Failure::invalid(format!(
                    "the model has no output `{}`: it has {}, and derivatives of the energy",
                    shown(name),
                    known.join(", ")
                )));
            };
            wanted.requests.push(EvaluationRequest {
                output: output.clone(),
                position_gradients: false,
                strain_gradients: false,
            });
            wanted.names.push(Some(name.to_owned()));
        }
        Ok(wanted)
    }

    /// The answers as tensors: first what the model computes, then forces and stress.
    fn outputs(
        &self,
        answers: Vec<EvaluatedOutput>,
        atoms: u32,
        volumes: Option<&[f64]>,
        precision: ElementType,
    ) -> Vec<(String, GraphTensor)> {
        let mut outputs = Vec::new();
        let mut derivatives = Vec::new();
        for (answer, name) in answers.into_iter().zip(&self.names) {
            if let Some(gradients) = answer.position_gradients.filter(|_| self.forces) {
                let forces = gradients.iter().map(|gradient| -gradient);
                derivatives.push(("forces".to_owned(), tensor(vec![atoms, 3], forces, precision)));
            }
            if let (Some(gradients), Some(volumes)) = (answer.strain_gradients, volumes) {
                let stress = gradients.iter().enumerate().map(|(place, gradient)| gradient / volumes[place / 9]);
                derivatives.push(("stress".to_owned(), tensor(vec![volumes.len() as u32, 3, 3], stress, precision)));
            }
            let Some(name) = name else { continue };
            let several = answer.values.blocks.len() > 1;
            for (number, block) in answer.values.blocks.into_iter().enumerate() {
                let name = if several { format!("{name}/{number}") } else { name.clone() };
                let mut dimensions: Vec<u32> = block.shape.iter().map(|&size| size as u32).collect();
                // Of the energy and its like, which has one property and no components, wasi-nn's clients want a number for each row.
                if dimensions.len() == 2 && dimensions[1] == 1 {
                    dimensions.pop();
                }
                outputs.push((name, tensor(dimensions, block.values.into_iter(), precision)));
            }
        }
        outputs.extend(derivatives);
        outputs
    }
}

/// The output that forces are derivatives of: the one of this name, else the only one of this quantity.
fn energy_of(outputs: &[ModelOutput]) -> Result<&ModelOutput, Failure> {
    let of_systems = |output: &&ModelOutput| output.sample_kind == SampleKind::System;
    let mut energies = outputs.iter().filter(of_systems).filter(|output| output.quantity == "energy");
    if let Some(energy) = outputs.iter().filter(of_systems).find(|output| output.name == "energy") {
        return Ok(energy);
    }
    match (energies.next(), energies.next()) {
        (Some(energy), None) => Ok(energy),
        (None, _) => Err(Failure::invalid("the model has no energy: say in `outputs` what it shall compute")),
        (Some(_), Some(_)) => Err(Failure::invalid(
            "the model has several energies, none of which is called `energy`: say in `outputs` which of them it shall compute",
        )),
    }
}

fn tensor(dimensions: Vec<u32>, values: impl Iterator<Item = f64>, element_type: ElementType) -> GraphTensor {
    let data = if element_type == ElementType::Float32 {
        values.flat_map(|value| (value as f32).to_le_bytes()).collect()
    } else {
        values.flat_map(f64::to_le_bytes).collect()
    };
    GraphTensor { dimensions, element_type, data }
}

/// A name of a client's, as an error repeats it.
pub(crate) fn shown(name: &str) -> String {
    let some: String = name.chars().take(LONGEST_NAME).collect();
    let cut = if some.len() < name.len() { "..." } else { "" };
    printable(&some).replace(['\n', '\t'], " ") + cut
}
