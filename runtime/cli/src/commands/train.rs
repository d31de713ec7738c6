//! `kilnbox train`: from an options file to a model.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kilnbox_bundle::{ArchitectureBundle, ArchitectureIdentity, CheckpointFile, ModelFile};
use kilnbox_data::{Dataset, DatasetInfo};
use kilnbox_host::{
    About, Checkpoint, Component, Context, EvaluationTask, Level, Metric, Model, Observer, Session, Trainer,
};
use kilnbox_tensor::{DType, Device};
use serde_json::Value as Json;

use crate::architectures::ArchitectureFiles;
use crate::convert::{CheckpointContext, checkpoint_on_device};
use crate::errors::{Blame, CliError};
use crate::evaluation::{evaluate, requests};
use crate::hypers::merge_hypers;
use crate::log::{EpochTable, Log, printable, significant};
use crate::options::TrainOptions;
use crate::registries::Access;
use crate::run_folder::{CHECKPOINT_SUFFIX, MODEL_SUFFIX, RunFolder, newest_checkpoint};
use crate::sandbox::Sandbox;
use crate::split::Sets;
use crate::trust::Trust;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The options file.
    pub options: PathBuf,
    /// Where to put the model.
    pub output: PathBuf,
    /// Options to replace, `key=value`.
    pub overrides: Vec<String>,
    /// The device, instead of the one that the options name.
    pub device: Option<String>,
    /// A checkpoint to continue from, or `auto`.
    pub restart: Option<PathBuf>,
    /// How an architecture may be pulled from a registry.
    pub access: Access,
    /// What the architecture may use.
    pub sandbox: Sandbox,
    /// Whether to show messages for developers.
    pub debug: bool,
}

/// A run, with all that was read and checked before it starts.
struct Run {
    sandbox: Sandbox,
    options: TrainOptions,
    architecture: ArchitectureFiles,
    /// The version that the architecture gives itself.
    version: Option<String>,
    component: Component,
    about: About,
    hypers: Json,
    /// The checkpoint to begin with, and what for.
    start: Option<(CheckpointFile, Context)>,
    sets: Sets,
    info: DatasetInfo,
    device: Device,
    dtype: DType,
    seed: u64,
}

/// Runs the command.
///
/// # Errors
///
/// A mistake in options or data, before anything is written; or whatever ends the training.
pub fn run(request: &Request) -> Result<(), CliError> {
    let log = Log::to_terminal(request.debug);
    super::check_model_path(&request.output)?;
    let run = Run::prepare(request, &log)?;
    let folder = RunFolder::create()?;
    log.keep_in(&folder.file("train.log"))?;
    run.describe(&folder, &log)?;
    let checkpoint = run.train(&folder, &log);
    log.end_progress();
    let checkpoint = checkpoint.inspect_err(|error| {
        // The terminal shows it anyway, and the folder should tell what became of the run.
        let _ = folder.write("error.log", &format!("{error}\n"));
    })?;
    run.finish(checkpoint, &folder, &request.output, &log)
}

impl Run {
    fn prepare(request: &Request, log: &Log) -> Result<Self, CliError> {
        let mut options = TrainOptions::read(&request.options, &request.overrides)?;
        if let Some(device) = &request.device {
            options.device = Some(crate::options::device(device)?);
        }
        for warning in &options.warnings {
            log.warning(warning);
        }
        let trust = Trust::of_user()?;
        let mut architecture = super::find_architecture(&options.architecture.name, &request.access)?;
        architecture.check_signature(&trust)?;
        let hypers = merge_hypers(architecture.hypers_sources(), &options.architecture.node)?;
        let start = starting_point(request, &hypers, &architecture.name, &trust, log)?;
        let seed = options.seed.or(match &start {
            // The same split and the same stream of random numbers.
            Some((checkpoint, Context::Restart)) => Some(checkpoint.seed),
            _ => None,
        });
        let seed = seed.unwrap_or_else(draw_seed);
        let sets = Sets::read(&options, seed)?;
        let info = merged_info(&options, &sets)?;
        // Complete from here on: what is trained, kept in models and named by checkpoints is the bundle.
        architecture.component = architecture.bundle()?;
        let component = request.sandbox.engine()?.load(&architecture.component)?;
        let version =
            ArchitectureBundle::read(&architecture.component).ok().and_then(|bundle| bundle.parts.metadata.version);
        let about = request.sandbox.quiet_session(&component, &Device::cpu(), log)?.about()?;
        let dtype = choose_dtype(&about.supported_dtypes, options.base_precision)?;
        let device = super::choose_device(&about.supported_devices, options.device.as_deref(), dtype)?;
        Ok(Self {
            sandbox: request.sandbox.clone(),
            options,
            architecture,
            version,
            component,
            about,
            hypers,
            start,
            sets,
            info,
            device,
            dtype,
            seed,
        })
    }

    /// Writes down what is about to happen: in the log, and in files of the run.
    fn describe(&self, folder: &RunFolder, log: &Log) -> Result<(), CliError> {
        log.info(format!("kilnbox {}", env!("CARGO_PKG_VERSION")));
        let here = std::env::current_dir().map(|path| path.display().to_string()).unwrap_or_default();
        log.info(format!("Working directory: {here}"));
        let command: Vec<String> = std::env::args().map(|word| printable(&word)).collect();
        log.info(format!("Command: {}", command.join(" ")));
        log.info(format!("Architecture: {} from `{}`", self.architecture.name, self.architecture.path.display()));
        for (what, people) in [("Authors", &self.about.authors), ("Maintainers", &self.about.maintainers)] {
            if !people.is_empty() {
                log.info(format!("{what}: {}", people.join(", ")));
            }
        }
        for work in self.about.references.architecture.iter().chain(&self.about.references.implementation) {
            log.info(format!("To cite: {work}"));
        }
        let device = match (self.device.name(), self.device.description()) {
            (name, description) if name == description => name.to_owned(),
            (name, description) => format!("{name} ({})", printable(description)),
        };
        log.info(format!("Running on {device} in {} with seed {}", self.dtype, self.seed));
        for (name, datasets) in self.named_sets() {
            for (number, dataset) in datasets.iter().enumerate() {
                let which = if datasets.len() == 1 { String::new() } else { format!(" {number}") };
                log.info(format!("{name} dataset{which}: {} structures", dataset.len()));
                self.print_statistics(dataset, log);
            }
        }
        for warning in self.sets.training.iter().flat_map(Dataset::warnings) {
            log.warning(warning);
        }
        log.info(format!("Atomic types: {:?}", self.info.atomic_types));
        if self.sets.was_split {
            for (name, datasets) in self.named_sets() {
                for (number, dataset) in datasets.iter().enumerate() {
                    let which = if datasets.len() == 1 { String::new() } else { format!("_{number}") };
                    let indices: String =
                        dataset.positions_in_file().iter().map(|index| format!("{index}\n")).collect();
                    folder.write(&format!("indices/{name}{which}.txt"), &indices)?;
                }
            }
        }
        let mut options = self.options.clone();
        options.seed = Some(self.seed);
        folder.write("options_restart.yaml", &options.to_yaml(&self.hypers)?)?;
        log.info(format!("The options in full are in `{}`", folder.file("options_restart.yaml").display()));
        Ok(())
    }

    fn named_sets(&self) -> [(&'static str, &[Dataset]); 3] {
        [("training", &self.sets.training), ("validation", &self.sets.validation), ("test", &self.sets.test)]
    }

    fn print_statistics(&self, dataset: &Dataset, log: &Log) {
        /// More structures than this make their statistics slow enough to notice.
        const MOST: usize = 100_000;
        if !self.options.print_stats.unwrap_or(dataset.len() <= MOST) {
            return;
        }
        for of in dataset.statistics() {
            log.info(format!(
                "  {} {}: mean {}, standard deviation {}",
                of.name,
                of.of,
                significant(of.mean),
                significant(of.standard_deviation)
            ));
        }
    }

    /// Trains, and gives the last checkpoint.
    fn train(&self, folder: &RunFolder, log: &Log) -> Result<CheckpointFile, CliError> {
        let context = self.checkpoint_context();
        let timing = std::env::var_os("KILNBOX_TIMING").is_some();
        let observer = RunObserver {
            log: log.clone(),
            table: EpochTable::create(&folder.file("train.csv"))?,
            folder: folder.clone(),
            context: context.clone(),
            timing,
            steps: 0,
        };
        let mut session = self.sandbox.session(&self.component, &self.device, self.seed, Box::new(observer))?;
        let (model, trainer) = self.begin(&mut session)?;
        let with_info =
            |datasets: &[Dataset]| datasets.iter().map(|dataset| dataset.with_info(self.info.clone())).collect();
        let (training, validation) = (with_info(&self.sets.training), with_info(&self.sets.validation));
        log.info("Training starts");
        let devices = [self.device.name().to_owned()];
        let start = Instant::now();
        session.train(&trainer, &model, self.dtype, &devices, training, validation)?;
        if timing {
            // Of the training sets: sets that were split off a file share its clock.
            let waited: Duration = self.sets.training.iter().map(Dataset::waited).sum();
            let share = waited.as_secs_f64() / start.elapsed().as_secs_f64();
            crate::log::print(&format!("timing waited-for-data {share:.6}"));
        }
        let checkpoint = session.save_checkpoint(&trainer, &model)?;
        context.file(&checkpoint).map_err(|message| {
            CliError::new(Blame::Architecture, format!("the architecture's last checkpoint cannot be kept: {message}"))
        })
    }

    /// The model and trainer that the run begins with.
    fn begin(&self, session: &mut Session) -> Result<(Model, Trainer), CliError> {
        let model_hypers = self.hypers["model"].to_string();
        let training_hypers = self.hypers["training"].to_string();
        let Some((file, context)) = &self.start else {
            let model = session.new_model(&model_hypers, &self.info, self.dtype)?;
            return Ok((model, session.new_trainer(&training_hypers)?));
        };
        let checkpoint = checkpoint_on_device(file, &self.device)?;
        let model = session.load_model(&checkpoint, *context)?;
        session.restart_model(&model, &self.info)?;
        let trainer = session.load_trainer(&checkpoint, &training_hypers, *context)?;
        Ok((model, trainer))
    }

    fn checkpoint_context(&self) -> CheckpointContext {
        CheckpointContext {
            architecture: ArchitectureIdentity {
                name: self.architecture.name.clone(),
                version: self.version.clone(),
                digest: self.component.digest().to_owned(),
            },
            hypers: self.hypers.clone(),
            dataset_info: self.info.clone(),
            seed: self.seed,
        }
    }

    /// Keeps checkpoint and model, and evaluates the model on all sets.
    fn finish(self, checkpoint: CheckpointFile, folder: &RunFolder, output: &Path, log: &Log) -> Result<(), CliError> {
        if let Some(name) = checkpoint.first_non_finite_tensor() {
            log.warning(format!(
                "the tensor `{}` has numbers that are not finite: the training has diverged",
                printable(name)
            ));
        }
        let name = Path::new(output.file_name().unwrap_or_default());
        for path in
            [output.with_extension(CHECKPOINT_SUFFIX), folder.path().join(name.with_extension(CHECKPOINT_SUFFIX))]
        {
            checkpoint.write(&path)?;
        }
        let mut model = super::export_model(
            &self.sandbox,
            &self.component,
            self.architecture.component.clone(),
            &checkpoint,
            Json::Null,
            log,
        )?;
        let mut options = self.options.clone();
        options.seed = Some(self.seed);
        model.options = options.to_json(&self.hypers);
        let write = |model: &mut ModelFile| -> Result<(), CliError> {
            model.card = super::card::card(model);
            [output.to_owned(), folder.path().join(name)].iter().try_for_each(|path| Ok(model.write(path)?))
        };
        // Before it is evaluated, which may fail, and with what that has shown afterwards.
        write(&mut model)?;
        if self.options.final_eval {
            model.metrics = self.evaluate(&model.checkpoint, log)?;
            write(&mut model)?;
        }
        log.info(format!("The run is in `{}`", folder.path().display()));
        log.info(format!("The checkpoint is in `{}`", output.with_extension(CHECKPOINT_SUFFIX).display()));
        log.info(format!("The model is in `{}`", output.display()));
        Ok(())
    }

    /// Evaluates the model on all sets, and gives its errors: for each set a list of datasets.
    fn evaluate(&self, checkpoint: &CheckpointFile, log: &Log) -> Result<Json, CliError> {
        let startable = super::Startable {
            component: self.component.clone(),
            device: self.device.clone(),
            checkpoint: checkpoint_on_device(checkpoint, &self.device)?,
            sandbox: &self.sandbox,
            log,
        };
        let (mut session, model) = startable.start()?;
        let capabilities = session.export_model(&model)?;
        let batch_size = self.hypers["training"]["batch_size"].as_u64().and_then(|size| usize::try_from(size).ok());
        let mut metrics = serde_json::Map::new();
        for (name, datasets) in self.named_sets() {
            let mut errors = Vec::new();
            for (number, dataset) in datasets.iter().enumerate() {
                let which = if datasets.len() == 1 { String::new() } else { format!(" {number}") };
                log.info(format!("Evaluating {name} dataset{which}"));
                let requests = requests(dataset, &capabilities.outputs, &capabilities.length_unit)?;
                let task = EvaluationTask {
                    dataset,
                    requests: &requests,
                    dtype: self.dtype,
                    batch_size: batch_size.unwrap_or(1).max(1),
                };
                let another = |limits| startable.another(limits);
                let evaluation = evaluate(&mut session, &model, &task, &another, false)?;
                for line in evaluation.lines() {
                    log.info(line);
                }
                errors.push(evaluation.errors());
            }
            if !errors.is_empty() {
                metrics.insert(name.to_owned(), Json::Array(errors));
            }
        }
        Ok(Json::Object(metrics))
    }
}

/// The checkpoint that a run begins with: that of the interrupted run, or the one to fine-tune.
fn starting_point(
    request: &Request,
    hypers: &Json,
    architecture: &str,
    trust: &Trust,
    log: &Log,
) -> Result<Option<(CheckpointFile, Context)>, CliError> {
    let finetune = hypers["training"]["finetune"]["read_from"].as_str().map(PathBuf::from);
    let restart = match &request.restart {
        Some(path) if path.as_os_str() == "auto" => {
            let newest = newest_checkpoint();
            if newest.is_none() {
                log.warning("there is no checkpoint in `outputs/` to continue from: a new run starts");
            }
            newest
        }
        given => given.clone(),
    };
    let (path, context) = match (restart, finetune) {
        (Some(path), _) => (path, Context::Restart),
        (None, Some(path)) => (path, Context::Finetune),
        (None, None) => return Ok(None),
    };
    let file = match context {
        // What is fine-tuned may be a model as well: its weights are a checkpoint.
        Context::Finetune if path.extension().is_some_and(|suffix| suffix == MODEL_SUFFIX) => {
            trust.read_model(&path)?.checkpoint
        }
        _ => CheckpointFile::read(&path)?,
    };
    let place = path.display();
    let ours = ArchitectureIdentity { name: architecture.to_owned(), version: None, digest: String::new() };
    if !file.architecture.has_same_name(&ours) {
        return Err(CliError::input(format!(
            "the checkpoint `{place}` is one of `{}`, and the options name the architecture `{architecture}`",
            printable(&file.architecture.name)
        )));
    }
    if let Some((key, theirs, ours)) = first_difference("architecture.model", &file.hypers["model"], &hypers["model"]) {
        return Err(CliError::input(format!(
            "`{key}` is {ours}, and the model in the checkpoint `{place}` has {theirs}"
        ))
        .hint("a model keeps the hypers that it was made with: change them back, or start a new run"));
    }
    if let Some(name) = file.first_non_finite_tensor() {
        log.warning(format!("the tensor `{}` of `{place}` has numbers that are not finite", printable(name)));
    }
    log.info(match context {
        Context::Restart => format!("Continuing the run of `{place}`"),
        _ => format!("Fine-tuning the model of `{place}`"),
    });
    Ok(Some((file, context)))
}

/// The first key whose values differ, with both values.
fn first_difference(key: &str, theirs: &Json, ours: &Json) -> Option<(String, String, String)> {
    match (theirs, ours) {
        (Json::Object(theirs), Json::Object(ours)) => {
            let keys = theirs.keys().chain(ours.keys().filter(|key| !theirs.contains_key(*key)));
            keys.into_iter().find_map(|name| {
                let of = |map: &serde_json::Map<String, Json>| map.get(name).cloned().unwrap_or_default();
                first_difference(&format!("{key}.{}", printable(name)), &of(theirs), &of(ours))
            })
        }
        // 5 and 5.0 are the same number, whichever the user wrote.
        (Json::Number(theirs), Json::Number(ours)) if theirs.as_f64() == ours.as_f64() => None,
        (theirs, ours) if theirs == ours => None,
        (theirs, ours) => Some((key.to_owned(), printable(&theirs.to_string()), printable(&ours.to_string()))),
    }
}

fn merged_info(options: &TrainOptions, sets: &Sets) -> Result<DatasetInfo, CliError> {
    let parts: Vec<&DatasetInfo> = sets.training.iter().chain(&sets.validation).map(Dataset::info).collect();
    let mut info = DatasetInfo::merge(&parts)?;
    if let Some(types) = &options.architecture.atomic_types {
        let types: Vec<i32> = types.iter().map(|&number| i32::from(number)).collect();
        for dataset in sets.training.iter().chain(&sets.validation).chain(&sets.test) {
            super::eval::check_types(dataset, &types)
                .map_err(|error| error.hint("or add it to `architecture.atomic_types`"))?;
        }
        info.atomic_types = types;
    } else {
        for dataset in &sets.test {
            super::eval::check_types(dataset, &info.atomic_types).map_err(|error| {
                error.hint("the test set has elements that neither training nor validation set has")
            })?;
        }
    }
    Ok(info)
}

fn choose_dtype(supported: &[DType], wanted: Option<u8>) -> Result<DType, CliError> {
    let names = || supported.iter().map(|dtype| format!("`{dtype}`")).collect::<Vec<_>>().join(", ");
    let found = supported.iter().copied().find(|dtype| wanted.is_none_or(|bits| usize::from(bits) == 8 * dtype.size()));
    found.ok_or_else(|| match wanted {
        Some(bits) => CliError::input(format!("the architecture does not run in `base_precision: {bits}`"))
            .hint(format!("it runs in {}", names())),
        None => CliError::new(Blame::Architecture, "the architecture supports no dtype"),
    })
}

/// A seed that differs from run to run; the log and the options of the run have it.
fn draw_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Seeds in options have 32 bits, as in metatrain.
    (since.as_nanos() as u64 ^ (u64::from(std::process::id()) << 16)) & u64::from(u32::MAX)
}

/// Looks on while the architecture trains.
struct RunObserver {
    log: Log,
    table: EpochTable,
    folder: RunFolder,
    context: CheckpointContext,
    /// Whether to print when things happened, for benchmarks.
    timing: bool,
    steps: u64,
}

impl RunObserver {
    fn mark(&self, what: &str) {
        if self.timing {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            crate::log::print(&format!("timing {what} {:.6}", now.as_secs_f64()));
        }
    }
}

impl Observer for RunObserver {
    fn log(&mut self, level: Level, message: &str) {
        self.log.line(level, message);
    }

    fn step(&mut self, epoch: u32, epochs: u32, done: u32, total: u32) {
        self.steps += 1;
        if self.steps == 1 {
            self.mark("first-step");
        }
        self.log.progress(epoch, epochs, done, total);
        if done == total {
            self.mark(&format!("epoch {epoch}"));
        }
    }

    fn epoch(&mut self, epoch: u32, learning_rate: f64, metrics: &[Metric]) {
        let line = self.table.add(epoch, learning_rate, metrics);
        self.log.info(line);
    }

    fn save_checkpoint(&mut self, name: &str, checkpoint: Checkpoint) -> Result<(), String> {
        let path = self.folder.file(&format!("{name}.{CHECKPOINT_SUFFIX}"));
        // With its cause: that the disk is full is what a user has to know.
        self.context.file(&checkpoint)?.write(&path).map_err(|error| match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        })
    }
}
