//! What the whole-program tests and benchmarks share.

pub mod parity;

use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kilnbox_cli::architectures::SearchPath;
use kilnbox_cli::errors::CliError;
use kilnbox_cli::hypers::merge_hypers;
use kilnbox_cli::options::TrainOptions;
use kilnbox_cli::split::Sets;
use kilnbox_data::{Dataset, DatasetInfo};
use kilnbox_host::{
    Checkpoint, Component, Engine, EngineOptions, Level, Limits, Metric, Model, Observer, Predictor, Session,
    SessionOptions,
};
use kilnbox_tensor::{DType, Device};
use serde_json::Value;

/// The repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A file of the reference data, which not every machine has; says so where it is missing.
pub fn reference(name: &str) -> Option<PathBuf> {
    let path = repository().join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: the reference data `{name}` is not present");
    None
}

/// A program of others that ours is compared with, which `cargo xtask test` has fetched; says so where it is missing.
pub fn peer(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("KILNBOX_PEERS").map(|folder| Path::new(&folder).join(name));
    if let Some(path) = path.filter(|path| path.is_file()) {
        return Some(path);
    }
    eprintln!("skipped: `{name}` is not present");
    None
}

/// An example of a client, which `cargo xtask test` has built.
///
/// # Panics
/// The tests run without `cargo xtask`.
pub fn client(name: &str) -> PathBuf {
    let folder = std::env::var_os("KILNBOX_CLIENTS");
    Path::new(&folder.expect("run the tests with `cargo xtask test`, which builds the clients")).join(name)
}

/// An observer who listens to nothing and keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Observer for Nobody {
    fn log(&mut self, _: Level, _: &str) {}
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}
    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Ok(())
    }
}

/// The first structures of the ethanol fixture, as extended XYZ.
///
/// # Errors
/// The fixture cannot be read.
pub fn ethanol_structures(count: usize) -> io::Result<String> {
    let text = std::fs::read_to_string(repository().join("fixtures/ethanol/ethanol.xyz"))?;
    // Nine atoms and two lines above them.
    Ok(text.split_inclusive('\n').take(count * 11).collect())
}

/// What a training begins with, for tests and benchmarks that drive sessions themselves.
#[derive(Clone, Debug)]
pub struct Training {
    /// The component of the architecture.
    pub component: Vec<u8>,
    /// The merged hypers, with sections `model` and `training`.
    pub hypers: Value,
    /// The training sets.
    pub training: Vec<Dataset>,
    /// The validation sets.
    pub validation: Vec<Dataset>,
    /// What all sets together have.
    pub info: DatasetInfo,
}

impl Training {
    /// Reads options as the program does. Paths in them are relative to the repository, or to their folder if it is not in the repository; the process's
    /// working directory moves there.
    ///
    /// # Errors
    /// Those of the program.
    pub fn read(options: &Path, overrides: &[String], seed: u64) -> Result<Self, CliError> {
        let absolute =
            |path: &Path| path.canonicalize().map_err(|error| kilnbox_cli::errors::file_error("find", path, &error));
        let (root, options) = (absolute(&repository())?, absolute(options)?);
        let folder = if options.starts_with(&root) { &root } else { options.parent().unwrap_or(&root) };
        std::env::set_current_dir(folder)
            .map_err(|error| kilnbox_cli::errors::file_error("work in", folder, &error))?;
        let options = TrainOptions::read(&options, overrides)?;
        let architecture = SearchPath::from_environment().find(&options.architecture.name)?;
        let hypers = merge_hypers(architecture.hypers_sources(), &options.architecture.node)?;
        let sets = Sets::read(&options, seed)?;
        let parts: Vec<&DatasetInfo> = sets.training.iter().chain(&sets.validation).map(Dataset::info).collect();
        let info = DatasetInfo::merge(&parts)?;
        let with_info =
            |sets: &[Dataset]| sets.iter().map(|dataset| dataset.with_info(info.clone())).collect::<Vec<_>>();
        Ok(Self {
            component: architecture.component,
            hypers,
            training: with_info(&sets.training),
            validation: with_info(&sets.validation),
            info,
        })
    }
}

/// A model of ethanol that has learnt nothing, and is small: for tests of what a model is asked and gives, whatever its numbers. It belongs on the thread that makes it, see
/// [`kilnbox_host::on_own_thread`].
///
/// # Errors
/// The architecture was not built, or the fixture cannot be read.
pub fn untrained_predictor(dtype: DType) -> Result<Predictor, Box<dyn Error + Send + Sync>> {
    let Untrained { session, model, .. } = Untrained::new(dtype)?;
    Ok(Predictor::new(session, model)?)
}

/// A small model of ethanol that has learnt nothing, in a session without other limits than the usual ones.
#[derive(Debug)]
pub struct Untrained {
    /// Its architecture.
    pub component: Component,
    /// Where it lives.
    pub session: Session,
    /// The model.
    pub model: Model,
    /// What it would learn from.
    pub training: Training,
}

impl Untrained {
    /// A new one, the same each time.
    ///
    /// # Errors
    /// The fixtures or the architecture cannot be read, or the architecture fails.
    pub fn new(dtype: DType) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let overrides = ["architecture.model.soap.max_angular=2", "architecture.model.bpnn.num_neurons_per_layer=8"];
        let options = repository().join("fixtures/ethanol/options.yaml");
        let training = Training::read(&options, &overrides.map(str::to_owned), 0).map_err(|error| error.to_string())?;
        let component = Engine::new(&EngineOptions::default())?.load(&training.component)?;
        let mut session = Session::start(&component, on_processor(Limits::default()), Box::new(Nobody))?;
        let model = session.new_model(&training.hypers["model"].to_string(), &training.info, dtype)?;
        Ok(Self { component, session, model, training })
    }
}

/// A session on the processor within these limits, with seed 0.
pub fn on_processor(limits: Limits) -> SessionOptions {
    SessionOptions { device: Device::cpu(), seed: 0, limits, on_overrun: None }
}

/// A folder of its own for a test that runs the program, with the fixtures beside it as in the repository.
#[derive(Debug)]
pub struct Workplace {
    folder: tempfile::TempDir,
}

/// What the program said and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; none if it was killed.
    pub code: Option<i32>,
    /// All that it printed to standard output.
    pub output: String,
    /// All that it printed to standard error.
    pub errors: String,
}

impl Outcome {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Workplace {
    /// An empty folder, but for a link to `fixtures`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new() -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        std::os::unix::fs::symlink(repository().join("fixtures"), folder.path().join("fixtures"))?;
        Ok(Self { folder })
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into the folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> io::Result<()> {
        std::fs::write(self.path(name), text)
    }

    /// The program, to be run in the folder with these arguments. It is the one that `cargo xtask test` has just built.
    ///
    /// # Panics
    /// The tests run without `cargo xtask`, which builds the program and the guests and says where they are.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = std::env::var_os("KILNBOX_PROGRAM");
        self.command_of(program.expect("run the tests with `cargo xtask test`, which builds the program"), arguments)
    }

    /// The same with another program, such as a copy.
    fn command_of(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).env("NO_COLOR", "1").env_remove("KILNBOX_TIMING");
        command
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run(&self, arguments: &[&str]) -> io::Result<Outcome> {
        Ok(Outcome::of(&self.command(arguments).output()?))
    }

    /// Runs the program to its end, from a shell that has done `preparation`, such as `ulimit -v 524288`.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn run_after(&self, preparation: &str, arguments: &[&str]) -> io::Result<Outcome> {
        let program = self.command(arguments);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{preparation}; exec \"$0\" \"$@\"")).arg(program.get_program());
        shell.args(program.get_args()).current_dir(self.folder.path());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        Ok(Outcome::of(&shell.output()?))
    }

    /// Every file and folder below the folder but the fixtures, sorted.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn entries(&self) -> io::Result<Vec<String>> {
        let root = self.folder.path();
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
                let path = entry.path();
                found.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
            }
        }
        found.sort();
        Ok(found)
    }
}

/// A folder with data, and nothing of kilnbox: no architectures, no cache, no configuration, no credentials.
#[derive(Debug)]
pub struct Elsewhere(Workplace);

impl Elsewhere {
    /// One with so many structures of ethanol in `ethanol.xyz`, and the options to predict for them in `eval.yaml`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn new(structures: usize) -> io::Result<Self> {
        let place = Workplace::new()?;
        place.write("ethanol.xyz", &ethanol_structures(structures)?)?;
        place.write("eval.yaml", "systems: {read_from: ethanol.xyz, length_unit: angstrom}\n")?;
        Ok(Self(place))
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// Every file and folder below the folder, see [`Workplace::entries`].
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn entries(&self) -> io::Result<Vec<String>> {
        self.0.entries()
    }

    /// The program, to be run in the folder with these arguments; it finds nothing of this machine's user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.alone(self.0.command(arguments))
    }

    /// Runs a copy of the program in the folder, as [`Self::command`] does the program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn run_copy(&self, program: &str, arguments: &[&str]) -> io::Result<Outcome> {
        Ok(Outcome::of(&self.alone(self.0.command_of(self.path(program), arguments)).output()?))
    }

    fn alone(&self, mut command: Command) -> Command {
        command.env("KILNBOX_ARCHITECTURES", self.path("none")).env("HOME", self.path("home"));
        for (variable, folder) in [
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
            ("DOCKER_CONFIG", "docker"),
        ] {
            command.env(variable, self.path(folder));
        }
        command.env_remove("REGISTRY_AUTH_FILE").env_remove("XDG_RUNTIME_DIR");
        // A proxy of this machine has no business with its own registries.
        for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command
    }

    /// What the program prints when it does what is asked.
    ///
    /// # Panics
    /// It does not.
    #[track_caller]
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, Some(0), "{arguments:?}:\n{}\n{}", outcome.output, outcome.errors);
        outcome.output
    }

    /// What the program says when it refuses, with these words in it, and nothing that steers a terminal.
    ///
    /// # Panics
    /// It does something else.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str], words: &str) -> String {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, Some(1), "{arguments:?}:\n{}\n{}", outcome.output, outcome.errors);
        assert!(outcome.errors.contains(words), "`{words}` is not in:\n{}", outcome.errors);
        assert!(!outcome.errors.chars().any(|character| character.is_control() && character != '\n'));
        outcome.errors
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Outcome {
        let output = self.command(arguments).output();
        Outcome::of(&output.unwrap_or_else(|error| panic!("{arguments:?}: {error}")))
    }

    /// The content of a file in the folder.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path(name)).map_err(|error| io::Error::other(format!("{name}: {error}")))
    }

    /// Writes a file into the folder, or into a folder in it, which is made.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        let path = self.path(name);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, content)
    }
}
