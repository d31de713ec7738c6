//! The model, through wasi-nn, and the program around it.

use std::fmt::Write;

use crate::arguments::Arguments;
use crate::simulation::{Forces, Simulation, State, Structure, deviation};

use bindings::wasi::cli::{environment, stderr, stdout};
use bindings::wasi::io::streams::OutputStream;
use bindings::wasi::nn::graph::load_by_name;
use bindings::wasi::nn::inference::GraphExecutionContext;
use bindings::wasi::nn::tensor::{Tensor, TensorType};

#[allow(missing_docs, unsafe_code, clippy::all, clippy::pedantic, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit/client",
        world: "client",
        generate_all,
    });
    use super::Program;
    export!(Program);
}

/// The most bytes of one write, by the contract of streams.
const WRITE: usize = 4096;
/// The part of what moves between potential and kinetic energy that the total may move by.
const MOST_MOVED: f64 = 0.1;

struct Program;

impl bindings::exports::wasi::cli::run::Guest for Program {
    fn run() -> Result<(), ()> {
        simulate().map_err(|message| print(&stderr::get_stderr(), &format!("{message}\n")))
    }
}

fn simulate() -> Result<(), String> {
    let words = environment::get_arguments();
    let arguments = Arguments::read(words.get(1..).unwrap_or_default())?;
    let model = Model::find(&arguments.model)?;
    let output = stdout::get_stdout();
    let structure = Structure::ethanol(arguments.molecules);
    let atoms = structure.types.len();
    let forces = model.forces(&structure)?;
    let mut simulation = Simulation::new(structure, arguments.temperature, forces)?;
    let line = |state: &State| {
        format!(
            "{:10.2} fs  potential {:14.6}  kinetic {:10.6}  total {:14.6} eV  {:7.1} K\n",
            state.time,
            state.potential,
            state.kinetic,
            state.total(),
            state.temperature(atoms)
        )
    };
    let mut states = vec![simulation.state()];
    for step in 1..=arguments.steps {
        simulation.step(arguments.time_step, |structure| model.forces(structure))?;
        let state = simulation.state();
        if arguments.every > 0 && step % arguments.every == 0 {
            print(&output, &line(&state));
        }
        states.push(state);
    }
    let of = |what: fn(&State) -> f64| deviation(&states.iter().map(what).collect::<Vec<_>>());
    let (total, potential) = (of(State::total), of(|state| state.potential));
    let mut last = String::new();
    if arguments.every == 0 {
        last.push_str(&line(&simulation.state()));
    }
    let _ = writeln!(
        last,
        "{atoms} atoms, {} steps: standard deviation of the total energy {total:.3e} eV, of the potential energy {potential:.3e} eV",
        arguments.steps
    );
    print(&output, &last);
    // A single step says nothing; a number that is none is more than anything.
    if states.len() > 2 && (total / potential).is_nan() || total > MOST_MOVED * potential {
        return Err(format!(
            "the energy is not conserved: its total moves by {total:.3e} eV where {potential:.3e} eV move between potential and kinetic energy; try a smaller time step"
        ));
    }
    Ok(())
}

fn print(stream: &OutputStream, text: &str) {
    for part in text.as_bytes().chunks(WRITE) {
        // Nobody is left to tell if nobody reads.
        let _ = stream.blocking_write_and_flush(part);
    }
}

/// A model that computes energies and forces.
struct Model {
    context: GraphExecutionContext,
    /// The model's unit of lengths in angstrom, and its unit of energies in electronvolt.
    length: f64,
    energy: f64,
}

impl Model {
    /// The model of this name, which says in which units it works.
    fn find(name: &str) -> Result<Self, String> {
        let description = context(&format!("{name}#describe"))?;
        let meta = output(compute(&description, Vec::new())?, "meta")?;
        let meta: serde_json::Value =
            serde_json::from_slice(&meta.data()).map_err(|error| format!("the description of `{name}`: {error}"))?;
        let unit_of_length = meta["length_unit"].as_str().unwrap_or_default();
        let outputs = meta["outputs"].as_array().map(Vec::as_slice).unwrap_or_default();
        let energies = outputs.iter().filter(|output| output["quantity"] == "energy");
        let unit_of_energy = energies.filter_map(|output| output["unit"].as_str()).next().unwrap_or_default();
        let length = match unit_of_length.to_lowercase().as_str() {
            "" | "angstrom" | "a" => 1.0,
            "bohr" => 0.529_177_210_9,
            "nm" | "nanometer" => 10.0,
            other => return Err(format!("`{name}` measures lengths in `{other}`, which is not known")),
        };
        let energy = match unit_of_energy.to_lowercase().as_str() {
            "" | "ev" => 1.0,
            "mev" => 1e-3,
            "hartree" => 27.211_386_245_988,
            "kcal/mol" => 0.043_364_104,
            "kj/mol" => 0.010_364_27,
            other => return Err(format!("`{name}` measures energies in `{other}`, which is not known")),
        };
        Ok(Self { context: context(name)?, length, energy })
    }

    fn forces(&self, structure: &Structure) -> Result<Forces, String> {
        let atoms = structure.types.len() as u32;
        let positions = structure.positions.iter().flat_map(|position| (position / self.length).to_le_bytes());
        let types = structure.types.iter().flat_map(|number| number.to_le_bytes());
        let mut inputs = vec![
            ("positions", Tensor::new(&[atoms, 3], TensorType::Fp64, &positions.collect::<Vec<u8>>())),
            ("types", Tensor::new(&[atoms], TensorType::I32, &types.collect::<Vec<u8>>())),
            ("outputs", Tensor::new(&[13], TensorType::U8, b"energy forces")),
        ];
        if let Some(edge) = structure.box_edge {
            let edge = edge / self.length;
            let cell = [edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge].into_iter().flat_map(f64::to_le_bytes);
            inputs.push(("cell", Tensor::new(&[3, 3], TensorType::Fp64, &cell.collect::<Vec<u8>>())));
            inputs.push(("pbc", Tensor::new(&[3], TensorType::U8, &[1, 1, 1])));
        }
        let mut outputs = compute(&self.context, inputs)?;
        let place = outputs.iter().position(|(name, _)| name == "energy").ok_or("the model gave no `energy`")?;
        let (_, energy) = outputs.swap_remove(place);
        let forces = numbers(&output(outputs, "forces")?)?;
        let energy = numbers(&energy)?;
        if energy.len() != 1 || forces.len() != structure.positions.len() {
            return Err("the model gave energies or forces of other atoms".to_owned());
        }
        Ok(Forces {
            energy: energy[0] * self.energy,
            forces: forces.iter().map(|force| force * self.energy / self.length).collect(),
        })
    }
}

fn context(name: &str) -> Result<GraphExecutionContext, String> {
    let graph = load_by_name(name).map_err(|error| error.data())?;
    graph.init_execution_context().map_err(|error| error.data())
}

fn compute(context: &GraphExecutionContext, inputs: Vec<(&str, Tensor)>) -> Result<Vec<(String, Tensor)>, String> {
    let inputs = inputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    context.compute(inputs).map_err(|error| error.data())
}

fn output(outputs: Vec<(String, Tensor)>, name: &str) -> Result<Tensor, String> {
    let output = outputs.into_iter().find(|(output, _)| output == name);
    output.map(|(_, tensor)| tensor).ok_or_else(|| format!("the model gave no `{name}`"))
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>, String> {
    match tensor.ty() {
        TensorType::Fp64 => {
            let data = tensor.data();
            let numbers = data.chunks_exact(8).map(|bytes| bytes.try_into().map_or(f64::NAN, f64::from_le_bytes));
            Ok(numbers.collect())
        }
        other => Err(format!("the model gave numbers of the type {other:?}")),
    }
}
