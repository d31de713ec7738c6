//! What one call for energy and forces takes, as a simulation makes it: in this process, and from a client through wasi-nn.
//!
//! `cargo xtask bench forces` runs it beside metatrain's model in ASE. `bench-forces structure MOLECULES` writes the structure; `bench-forces time MODEL CLIENT MOLECULES STEPS
//! ROUNDS` prints a line of JSON, milliseconds for each route, each the median over the rounds. Both routes do the same steps of the same simulation, that of the client.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use kilnbox_bundle::ModelFile;
use kilnbox_cli::convert::checkpoint_on_device;
use kilnbox_data::extended_xyz::{self, Frame};
use kilnbox_data::units::energy_in_electronvolt;
use kilnbox_data::{SampleKind, StructureView, SystemsData};
use kilnbox_host::{
    ClientComponent, ClientEnd, Component, Context, Engine, EngineOptions, EvaluationRequest, Graph, Limits,
    ModelOutput, Predictor, Session,
};
use kilnbox_tensor::Device;
use kilnbox_tensor::allocator::Allocator;
use kilnbox_tests::{Nobody, on_processor};
use molecular_dynamics::simulation::{Forces, Simulation, Structure};
use serde_json::json;

/// As in the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Femtoseconds; small, because models of this benchmark have learnt little.
const TIME_STEP: f64 = 0.1;
const TEMPERATURE: f64 = 100.0;
/// Steps that are not timed.
const WARM_UP: u32 = 5;

struct Work {
    model: ModelFile,
    component: Component,
    client: ClientComponent,
    molecules: u32,
    steps: u32,
}

impl Work {
    fn read(model: &str, client: &str, molecules: &str, steps: &str) -> Fallible<Self> {
        let model = ModelFile::read(Path::new(model))?;
        let engine = Engine::new(&EngineOptions::default())?;
        Ok(Self {
            component: engine.load(&model.component)?,
            client: engine.load_client(&std::fs::read(client)?)?,
            model,
            molecules: molecules.parse()?,
            steps: steps.parse()?,
        })
    }

    fn predictor(&self) -> Fallible<Predictor> {
        let device = Device::cpu();
        let mut session = Session::start(&self.component, on_processor(Limits::default()), Box::new(Nobody))?;
        let checkpoint = checkpoint_on_device(&self.model.checkpoint, &device).map_err(|error| error.to_string())?;
        let model = session.load_model(&checkpoint, Context::Export)?;
        Ok(Predictor::new(session, model)?)
    }

    /// Milliseconds of a step.
    fn in_process(&self) -> Fallible<f64> {
        let mut predictor = self.predictor()?;
        let outputs = &predictor.capabilities().outputs;
        let output: ModelOutput = outputs
            .iter()
            .find(|output| output.quantity == "energy" && output.sample_kind == SampleKind::System)
            .cloned()
            .ok_or("the model has no energy")?;
        // As the client, so that both make the same steps.
        let unit = energy_in_electronvolt(&output.unit).ok_or("the model's unit of energy is not known")?;
        let request = [EvaluationRequest { output, position_gradients: true, strain_gradients: false }];
        let mut forces = |structure: &Structure| -> Fallible<Forces> {
            let edge = structure.box_edge.unwrap_or_default();
            let view = StructureView {
                types: &structure.types,
                positions: &structure.positions,
                cell: &[edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge],
                periodic: [structure.box_edge.is_some(); 3],
            };
            let answers = predictor.predict(SystemsData::new(&[view])?, &request)?;
            let answer = answers.first().ok_or("no answer")?;
            let gradients = answer.position_gradients.as_ref().ok_or("no gradients")?;
            let energy = answer.values.blocks.first().and_then(|block| block.values.first()).ok_or("no energy")?;
            let forces = gradients.iter().map(|gradient| -gradient * unit).collect();
            Ok(Forces { energy: *energy * unit, forces })
        };
        let structure = Structure::ethanol(self.molecules);
        let first = forces(&structure)?;
        let mut simulation = Simulation::new(structure, TEMPERATURE, first)?;
        for _ in 0..WARM_UP {
            simulation.step(TIME_STEP, &mut forces)?;
        }
        let start = Instant::now();
        for _ in 0..self.steps {
            simulation.step(TIME_STEP, &mut forces)?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(self.steps))
    }

    /// Milliseconds of a step: of a long simulation less a short one.
    fn through_wasi_nn(&self) -> Fallible<f64> {
        let seconds = |steps: u32| -> Fallible<f64> {
            let graph = Graph::new("ethanol", self.predictor()?, &json!({}));
            let words = format!(
                "client --every 0 --time-step {TIME_STEP} --temperature {TEMPERATURE} --molecules {} --steps {steps}",
                self.molecules
            );
            let words = words.split(' ').map(str::to_owned).collect();
            let start = Instant::now();
            match self.client.run(vec![graph], words, on_processor(Limits::default()), Box::new(Nobody))? {
                ClientEnd::Success => Ok(start.elapsed().as_secs_f64()),
                end => Err(format!("the client ended with {end:?}").into()),
            }
        };
        let short = seconds(WARM_UP)?;
        Ok((seconds(WARM_UP + self.steps)? - short) * 1e3 / f64::from(self.steps))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn time(work: &Work, rounds: usize) -> Fallible {
    let mut milliseconds = [const { Vec::new() }; 2];
    for _ in 0..rounds {
        milliseconds[0].push(work.in_process()?);
        milliseconds[1].push(work.through_wasi_nn()?);
    }
    let [in_process, wasi_nn] = milliseconds.map(median);
    #[expect(clippy::print_stdout, reason = "the results of a benchmark")]
    {
        println!("{}", json!({"in process": in_process, "wasi-nn": wasi_nn}));
    }
    Ok(())
}

fn write_structure(molecules: u32) -> Fallible {
    let structure = Structure::ethanol(molecules);
    let edge = structure.box_edge.unwrap_or_default();
    let frame = Frame {
        types: structure.types,
        positions: structure.positions,
        cell: [edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge],
        periodic: [structure.box_edge.is_some(); 3],
        info: Vec::new(),
        arrays: Vec::new(),
    };
    Ok(extended_xyz::write(&mut std::io::stdout(), &frame)?)
}

fn main() -> Fallible {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["structure", molecules] => write_structure(molecules.parse()?),
        ["time", model, client, molecules, steps, rounds] => {
            let rounds = rounds.parse()?;
            let work = || time(&Work::read(model, client, molecules, steps)?, rounds);
            kilnbox_host::on_worker(None, work)?
        }
        _ => Err("`structure MOLECULES` or `time MODEL CLIENT MOLECULES STEPS ROUNDS`".into()),
    }
}
