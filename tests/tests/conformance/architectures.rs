//! The architectures under test: all on the search path, as they describe themselves, each with a model that has seen a little data.

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use kilnbox_cli::architectures::{ArchitectureFiles, SearchPath};
use kilnbox_cli::hypers::merge_hypers;
use kilnbox_cli::yaml::Node;
use kilnbox_data::{
    Dataset, DatasetInfo, DatasetSource, GradientSource, Labels, NamedTarget, SampleKind, SystemsSource, TargetInfo,
    TargetSource, TargetType,
};
use kilnbox_host::service::data::TensorMap;
use kilnbox_host::{
    About, ArchitectureErrorKind, Checkpoint, Component, Context, Engine, EngineOptions, HostError, Level, Limits,
    Metric, Model, ModelOutput, Observer, Session, SessionOptions, Trainer,
};
use kilnbox_tensor::op::{elementwise, reduce};
use kilnbox_tensor::{DType, Device, Tensor, autodiff};
use kilnbox_tests::{on_processor, repository};
use serde_json::{Value, json};

use crate::structures::{Direction, Structure, systems};

pub type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The elements of every model here; nitrogen is in no structure that it learns from.
pub const ELEMENTS: [i32; 4] = [1, 6, 7, 8];
/// Structures to learn from, and as many again to validate with: enough for two steps an epoch.
const STRUCTURES: usize = 4;
const BATCH_SIZE: u64 = 2;
/// The stack of a thread that runs a session: as large as the program's own workers have it.
const STACK: usize = 64 << 20;

/// One architecture, compiled.
pub struct Architecture {
    pub name: String,
    pub about: About,
    files: ArchitectureFiles,
    component: Component,
    trained: OnceLock<Result<Checkpoint, String>>,
}

/// Runs `check` with every architecture on the search path, and tells of all that fail it.
///
/// Each check has a thread of its own, because sessions want a large stack, and not one of the kernels' workers: while a worker waits for a part of its
/// work it may begin another test's session, and the two would be counted against one quota.
pub fn every_architecture(check: impl Fn(&Architecture) -> Fallible + Sync) -> Fallible {
    let mut problems = Vec::new();
    for architecture in all()? {
        let outcome = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || check(architecture));
            thread.map(|thread| thread.join())
        })?;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => problems.push(format!("{}: {error}", architecture.name)),
            Err(_) => problems.push(format!("{}: the check panicked, see above", architecture.name)),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n").into()) }
}

/// All architectures on the search path, compiled once for all tests.
fn all() -> Fallible<&'static [Architecture]> {
    static ALL: OnceLock<Result<Vec<Architecture>, String>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let folders = std::env::var_os("KILNBOX_ARCHITECTURES")
            .ok_or("run the tests with `cargo xtask test`, which builds the architectures")?;
        let search = SearchPath::new(std::env::split_paths(&folders).collect());
        let names = search.names();
        let load = |name: &String| Architecture::load(&search, name).map_err(|error| format!("{name}: {error}"));
        let all: Vec<Architecture> = names.iter().map(load).collect::<Result<_, String>>()?;
        if all.is_empty() { Err(format!("there is no architecture in {folders:?}")) } else { Ok(all) }
    });
    all.as_deref().map_err(|error| error.clone().into())
}

impl Architecture {
    fn load(search: &SearchPath, name: &str) -> Fallible<Self> {
        let files = search.find(name)?;
        let component = Engine::new(&EngineOptions::default())?.load(&files.component)?;
        let options = on_processor(Limits::default());
        let about = Session::start(&component, options, Box::new(Reports::default()))?.about()?;
        Ok(Self { name: files.name.clone(), about, files, component, trained: OnceLock::new() })
    }

    /// Double precision where the architecture has it.
    pub fn dtype(&self) -> DType {
        let double = self.about.supported_dtypes.contains(&DType::Float64);
        if double { DType::Float64 } else { DType::Float32 }
    }

    /// How far apart, relative to the larger, two ways to the same number may end: some hundred roundings.
    pub fn rounding(&self) -> f64 {
        if self.dtype() == DType::Float64 { 1e-11 } else { 1e-4 }
    }

    /// The default hypers with these options over them.
    pub fn hypers(&self, options: &str) -> Fallible<Value> {
        Ok(merge_hypers(self.files.hypers_sources(), &Node::parse(options, "options")?)?)
    }

    /// The default hypers, for a training of so many epochs on few structures. An architecture whose trainer has no epochs or batches has no such keys.
    pub fn hypers_of(&self, epochs: u32) -> Fallible<Value> {
        let mut hypers = self.hypers("{}")?;
        for (key, value) in
            [("num_epochs", json!(epochs)), ("batch_size", json!(BATCH_SIZE)), ("log_interval", json!(1))]
        {
            if let Some(default) = hypers["training"].get_mut(key).filter(|default| default.is_number()) {
                *default = value;
            }
        }
        Ok(hypers)
    }

    /// Whether its trainer counts epochs.
    pub fn has_epochs(&self) -> Fallible<bool> {
        Ok(self.hypers("{}")?["training"]["num_epochs"].is_number())
    }

    /// A session in this dtype.
    pub fn session(&self, dtype: DType) -> Fallible<Running<'_>> {
        self.session_of_seed(dtype, 7)
    }

    /// A session that draws other random numbers: what it has in common with the others was loaded and not drawn.
    pub fn other_session(&self) -> Fallible<Running<'_>> {
        self.session_of_seed(self.dtype(), 8)
    }

    fn session_of_seed(&self, dtype: DType, seed: u64) -> Fallible<Running<'_>> {
        let reports = Reports::default();
        let options = SessionOptions { device: Device::cpu(), seed, limits: Limits::default(), on_overrun: None };
        let session = Session::start(&self.component, options, Box::new(reports.clone()))?;
        Ok(Running { session, architecture: self, dtype, reports })
    }

    /// A session with a model of energies that has been trained for one epoch: baseline and scale are not trivial, and no two weights are equal. None
    /// if the architecture does not learn energies.
    pub fn trained(&self) -> Fallible<Option<(Running<'_>, Model)>> {
        let mut session = self.session(self.dtype())?;
        if session.new_model(&info(&[energy()]))?.is_none() {
            return Ok(None);
        }
        let train = || -> Fallible<Checkpoint> {
            let mut session = self.session(self.dtype())?;
            let model = session.new_model(&info(&[energy()]))?.ok_or("it refuses what it accepted just now")?;
            let trainer = session.train(&model, 1)?;
            Ok(session.session.save_checkpoint(&trainer, &model)?)
        };
        let checkpoint = self.trained.get_or_init(|| train().map_err(|error| format!("training: {error}")));
        let model = session.session.load_model(checkpoint.as_ref().map_err(String::clone)?, Context::Restart)?;
        Ok(Some((session, model)))
    }
}

/// A session and what belongs to it.
pub struct Running<'a> {
    pub session: Session,
    pub architecture: &'a Architecture,
    pub dtype: DType,
    pub reports: Reports,
}

/// The sum of a model's energies and its derivatives.
pub struct Gradients {
    pub energy: f64,
    pub of: Direction,
}

impl Running<'_> {
    /// A model with fresh weights; none if the architecture says that it does not support a target.
    pub fn new_model(&mut self, info: &DatasetInfo) -> Fallible<Option<Model>> {
        let hypers = self.architecture.hypers_of(1)?["model"].to_string();
        match self.session.new_model(&hypers, info, self.dtype) {
            Ok(model) => Ok(Some(model)),
            Err(HostError::Architecture { kind: ArchitectureErrorKind::UnsupportedTarget, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Trains a model on energies and forces of ethanol, with a new trainer.
    pub fn train(&mut self, model: &Model, epochs: u32) -> Fallible<Trainer> {
        let trainer = self.session.new_trainer(&self.architecture.hypers_of(epochs)?["training"].to_string())?;
        self.train_with(&trainer, model, &info(&[energy()]))?;
        Ok(trainer)
    }

    pub fn train_with(&mut self, trainer: &Trainer, model: &Model, info: &DatasetInfo) -> Fallible {
        let ethanol = ethanol()?.with_info(info.clone());
        let part = |start: usize| ethanol.select(&(start..start + STRUCTURES).collect::<Vec<_>>());
        let (training, validation) = (vec![part(0)?], vec![part(STRUCTURES)?]);
        Ok(self.session.train(trainer, model, self.dtype, &["cpu".to_owned()], training, validation)?)
    }

    /// What `forward` gives, through the door that checks labels.
    pub fn forward(
        &mut self,
        model: &Model,
        structures: &[Structure],
        outputs: &[ModelOutput],
        selected_atoms: Option<&Labels>,
    ) -> Result<Vec<TensorMap>, HostError> {
        let systems = systems(structures, self.dtype).map_err(|misuse| HostError::Bug(misuse.to_string()))?;
        self.session.forward(model, systems, outputs, selected_atoms)
    }

    /// All numbers of one output; an error if one is not finite.
    pub fn values(
        &mut self,
        model: &Model,
        structures: &[Structure],
        output: &ModelOutput,
        selected_atoms: Option<&Labels>,
    ) -> Fallible<Vec<f64>> {
        let maps = self.forward(model, structures, std::slice::from_ref(output), selected_atoms)?;
        let mut values = Vec::new();
        for block in maps.iter().flat_map(|map| &map.blocks) {
            values.extend(block.values.read_float64()?);
        }
        finite(&output.name, &values)?;
        Ok(values)
    }

    /// The energy of each structure.
    pub fn energies(&mut self, model: &Model, structures: &[Structure]) -> Fallible<Vec<f64>> {
        self.values(model, structures, &output(&energy(), SampleKind::System), None)
    }

    /// The energy of one structure.
    pub fn energy(&mut self, model: &Model, structure: &Structure) -> Fallible<f64> {
        self.energies(model, std::slice::from_ref(structure))?.first().copied().ok_or_else(|| "no energy".into())
    }

    /// The energy of each atom; none if the architecture says that its energies are not sums over atoms.
    pub fn atomic_energies(
        &mut self,
        model: &Model,
        structures: &[Structure],
        selected_atoms: Option<&Labels>,
    ) -> Fallible<Option<Vec<f64>>> {
        match self.forward(model, structures, &[output(&energy(), SampleKind::Atom)], selected_atoms) {
            Ok(maps) => Ok(Some(maps[0].blocks[0].values.read_float64()?)),
            Err(HostError::Architecture { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The sum of the energies of structures and its derivatives.
    pub fn gradients(&mut self, model: &Model, structures: &[Structure]) -> Fallible<Gradients> {
        Ok(self.differentiate(model, structures, &[])?.0)
    }

    /// Beside the first derivatives, the second ones along each of `directions`.
    pub fn differentiate(
        &mut self,
        model: &Model,
        structures: &[Structure],
        directions: &[Direction],
    ) -> Fallible<(Gradients, Vec<Direction>)> {
        let tracked = systems(structures, self.dtype)?.track(true, true)?;
        let leaves = [tracked.positions.ok_or("no leaf of positions")?, tracked.strain.ok_or("no leaf of strain")?];
        let leaves: Vec<&Tensor> = leaves.iter().collect();
        let outputs = [output(&energy(), SampleKind::System)];
        let maps = self.session.forward(model, tracked.systems, &outputs, None)?;
        let energy = reduce::sum(&maps[0].blocks[0].values, &[], false)?;
        let first = autodiff::grad(&[&energy], &leaves, &[], !directions.is_empty())?;
        let read = |gradients: &[Tensor]| -> Fallible<Direction> {
            let direction = Direction { positions: gradients[0].read_float64()?, strain: gradients[1].read_float64()? };
            finite("a derivative of the energy", &direction.positions)?;
            finite("a derivative of the energy", &direction.strain)?;
            Ok(direction)
        };
        let second = |direction: &Direction| -> Fallible<Direction> {
            let along = |gradient: &Tensor, values: &[f64]| -> Fallible<Tensor> {
                let values = Tensor::from_float64(&Device::cpu(), gradient.shape(), values, gradient.dtype())?;
                Ok(reduce::sum(&elementwise::multiply(gradient, &values)?, &[], false)?)
            };
            let slope =
                elementwise::add(&along(&first[0], &direction.positions)?, &along(&first[1], &direction.strain)?)?;
            read(&autodiff::grad(&[&slope], &leaves, &[], false)?)
        };
        let second = directions.iter().map(second).collect::<Fallible<_>>()?;
        Ok((Gradients { energy: energy.read_float64()?[0], of: read(&first)? }, second))
    }
}

/// Listens to the epochs that are reported.
#[derive(Clone, Default)]
pub struct Reports(Arc<Mutex<Vec<u32>>>);

impl Reports {
    /// The epochs that were reported since the last call.
    pub fn take(&self) -> Vec<u32> {
        self.0.lock().map(|mut epochs| std::mem::take(&mut *epochs)).unwrap_or_default()
    }
}

impl Observer for Reports {
    fn log(&mut self, _: Level, _: &str) {}
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, epoch: u32, _: f64, _: &[Metric]) {
        if let Ok(mut epochs) = self.0.lock() {
            epochs.push(epoch);
        }
    }
    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Ok(())
    }
}

/// A scalar target: so many numbers for each system or atom.
pub fn scalar(name: &str, sample_kind: SampleKind, num_subtargets: u32) -> NamedTarget {
    NamedTarget {
        name: name.to_owned(),
        info: TargetInfo {
            quantity: String::new(),
            unit: String::new(),
            description: String::new(),
            sample_kind,
            target_type: TargetType::Scalar,
            num_subtargets,
            gradients: Vec::new(),
        },
    }
}

/// The target of the fixture.
pub fn energy() -> NamedTarget {
    let mut target = scalar("energy", SampleKind::System, 1);
    target.info.quantity = "energy".to_owned();
    target.info.unit = "eV".to_owned();
    target.info.gradients = vec!["positions".to_owned()];
    target
}

/// What models are made for.
pub fn info(targets: &[NamedTarget]) -> DatasetInfo {
    DatasetInfo {
        length_unit: "angstrom".to_owned(),
        atomic_types: ELEMENTS.to_vec(),
        targets: targets.to_vec(),
        extra_data: Vec::new(),
    }
}

/// The output that predicts a target, of this kind.
pub fn output(target: &NamedTarget, sample_kind: SampleKind) -> ModelOutput {
    ModelOutput { sample_kind, ..kilnbox_cli::convert::output_of(&target.name, &target.info) }
}

fn ethanol() -> Fallible<Dataset> {
    let file: PathBuf = repository().join("fixtures/ethanol/ethanol.xyz");
    let forces = GradientSource { read_from: file.clone(), key: "forces".to_owned(), required: true };
    let target = TargetSource {
        name: energy().name,
        info: TargetInfo { gradients: Vec::new(), ..energy().info },
        read_from: file.clone(),
        reader: None,
        key: "energy".to_owned(),
        forces: Some(forces),
        stress: None,
        virial: None,
    };
    let systems = SystemsSource { read_from: file, reader: None, length_unit: "angstrom".to_owned() };
    Ok(Dataset::read(&DatasetSource { systems, targets: vec![target], extra_data: Vec::new() })?)
}

/// An error with these words, unless it holds.
pub fn demand(holds: bool, words: impl FnOnce() -> String) -> Fallible {
    if holds { Ok(()) } else { Err(words().into()) }
}

/// An error, unless all are finite.
pub fn finite(what: &str, values: &[f64]) -> Fallible {
    demand(values.iter().all(|value| value.is_finite()), || format!("{what} is not finite: {values:?}"))
}

/// An error, unless all agree within `tolerance` times the largest of them, or times 1 if that is smaller.
pub fn agree(what: &str, found: &[f64], expected: &[f64], tolerance: f64) -> Fallible {
    demand(found.len() == expected.len(), || format!("{what}: {} numbers, expected {}", found.len(), expected.len()))?;
    let scale = expected.iter().fold(1.0, |scale: f64, value| scale.max(value.abs()));
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (found - expected).abs();
        demand(difference <= tolerance * scale, || {
            format!(
                "{what}[{position}]: {found} differs from {expected} by {difference:e}, more than {:e}",
                tolerance * scale
            )
        })?;
    }
    Ok(())
}
