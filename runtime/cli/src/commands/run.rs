//! `kilnbox run`: a program that uses trained models through wasi-nn.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kilnbox_host::{Checkpoint, ClientEnd, Graph, HostError, Level, Metric, Observer, Predictor};
use kilnbox_tensor::Device;
use serde_json::json;

use crate::architectures::read_component;
use crate::errors::{Blame, CliError};
use crate::log::{Log, print, printable};
use crate::sandbox::{Sandbox, end_the_program};
use crate::trust::Trust;

/// The longest name of a model, in bytes.
const LONGEST_NAME: usize = 128;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The program.
    pub client: PathBuf,
    /// The words after it.
    pub arguments: Vec<OsString>,
    /// Models, each as `NAME=FILE` or `FILE`.
    pub models: Vec<String>,
    /// The device that models run on; by default the processor.
    pub device: Option<String>,
    /// What the client and each model may use.
    pub sandbox: Sandbox,
    /// Whether to show messages for developers.
    pub debug: bool,
}

/// Runs the command.
///
/// # Errors
///
/// The client or a model cannot be used; the client fails, or says that it did.
pub fn run(request: &Request) -> Result<(), CliError> {
    let log = Log::to_terminal(request.debug);
    let path = &request.client;
    let shown = path.display().to_string();
    let of_client = {
        let shown = shown.clone();
        move |error| match error {
            HostError::Refused { problem } => CliError::input(format!("`{shown}` is refused: {problem}")),
            error => CliError::of_guest(&format!("`{shown}`"), error),
        }
    };
    let named = request.models.iter().map(|text| NamedModel::read(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) =
        (1..named.len()).find(|&place| named[..place].iter().any(|model| model.name == named[place].name))
    {
        return Err(CliError::input(format!("two models are called `{}`", printable(named[twice].name)))
            .hint("give each a name of its own: `--model NAME=FILE`"));
    }
    // The client first: it is small, and what is wrong with it is said at once.
    let client = request.sandbox.engine()?.load_client(&read_component(path)?).map_err(&of_client)?;
    let graphs = named.iter().map(|model| model.start(request, &log)).collect::<Result<Vec<_>, _>>()?;
    let text = |word: &OsString| {
        word.clone()
            .into_string()
            .map_err(|word| CliError::input(format!("the argument `{}` is no text", word.display())))
    };
    let words = request.arguments.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let arguments = std::iter::once(shown.clone()).chain(words).collect();
    let mut options = request.sandbox.session_options(&Device::cpu(), 0);
    let of_overrun = of_client.clone();
    options.on_overrun = Some(Arc::new(move |error| end_the_program(&of_overrun(error))));
    match client.run(graphs, arguments, options, Box::new(Terminal)).map_err(of_client)? {
        ClientEnd::Success | ClientEnd::Exit(0) => Ok(()),
        ClientEnd::Failure => Err(CliError::new(Blame::Architecture, format!("`{shown}` says that it failed"))),
        ClientEnd::Exit(code) => {
            Err(CliError::new(Blame::Architecture, format!("`{shown}` says that it failed, with the exit code {code}")))
        }
    }
}

/// A model and the name that the client knows it by.
struct NamedModel<'a> {
    name: &'a str,
    file: &'a Path,
}

impl<'a> NamedModel<'a> {
    /// `NAME=FILE`, or a file whose name without its suffix is the model's.
    fn read(text: &'a str) -> Result<Self, CliError> {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) => (name, Path::new(file)),
            None => {
                let file = Path::new(text);
                (file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default(), file)
            }
        };
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains('#') {
            return Err(CliError::input(format!(
                "`{}` names no model: expected a name of 1 to {LONGEST_NAME} bytes without `#`",
                printable(text)
            ))
            .hint("write `--model NAME=FILE`, as in `--model ethanol=model.kiln`"));
        }
        Ok(Self { name, file })
    }

    fn start(&self, request: &Request, log: &Log) -> Result<Graph, CliError> {
        let (file, digest) = Trust::of_user()?.read_model_and_digest(self.file)?;
        let about = json!({
            "digest": digest,
            "architecture": file.checkpoint.architecture,
            "metadata": file.metadata,
        });
        // The client's is the run; a model has calls.
        let mut sandbox = request.sandbox.clone();
        sandbox.limits.seconds_per_run = f64::INFINITY;
        let (session, model) = super::Startable::of_file(&file, request.device.as_deref(), &sandbox, log)?.start()?;
        Ok(Graph::new(self.name, Predictor::new(session, model)?, &about))
    }
}

/// What the client writes goes where its user expects it.
struct Terminal;

impl Observer for Terminal {
    fn log(&mut self, level: Level, message: &str) {
        match level {
            Level::Info => print(message),
            _ => eprintln!("{message}"),
        }
    }

    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}

    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}

    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Err("a client has no checkpoints".to_owned())
    }
}
