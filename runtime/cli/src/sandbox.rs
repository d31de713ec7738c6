//! How the program runs architectures: what it compiles them with, what they may use, and what becomes of one that cannot be stopped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kilnbox_host::Checkpoint;
use kilnbox_host::{
    Compiler, Component, Engine, EngineOptions, LIMITS, Level, LimitInfo, Limits, Metric, Observer, Session,
    SessionOptions, ShippedCode,
};
use kilnbox_tensor::Device;

use crate::errors::{CliError, nearest};
use crate::log::Log;

/// The word with which the program starts itself to compile a component: see [`Compiler::Child`].
pub const COMPILE_COMPONENT: &str = "compile-component";

/// What the user allows architectures, whatever the command.
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    /// What a run may use.
    pub limits: Limits,
    /// Whether architectures that ask for WASI may run, with nothing behind it.
    pub allow_inert_wasi: bool,
}

impl Sandbox {
    /// The defaults, changed by `name=value` in order.
    ///
    /// # Errors
    ///
    /// There is no such limit, or it cannot have this value.
    pub fn new(limits: &[String]) -> Result<Self, CliError> {
        let mut sandbox = Self::default();
        for text in limits {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                CliError::input(format!("the limit `{}` has no value", crate::log::printable(text)))
                    .hint("write `--limit NAME=VALUE`, as in `--limit tensor_bytes=8GiB`")
            })?;
            sandbox.limits.set(name.trim(), value).map_err(|message| {
                let names = || LIMITS.iter().map(|limit| limit.name);
                let hint = match nearest(name.trim(), names()) {
                    Some(near) if names().any(|known| known == name.trim()) => {
                        format!("`{near}` is now {}", Limits::default().value(near).unwrap_or_default())
                    }
                    Some(near) => format!("use `{near}`"),
                    None => {
                        format!("there are {}", names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
                    }
                };
                CliError::input(message).hint(hint)
            })?;
        }
        Ok(sandbox)
    }

    /// All limits with their values and what they bound, for people.
    pub fn table(&self) -> String {
        let value = |name| self.limits.value(name).unwrap_or_default();
        let row =
            |limit: &LimitInfo| format!("{:<21} {:>10}  {}", limit.name, value(limit.name), limit.description.trim());
        LIMITS.iter().map(row).collect::<Vec<_>>().join("\n")
    }

    /// The compiler, with a cache of compiled code in the user's cache folder, and the code that came with the program.
    ///
    /// # Errors
    ///
    /// This machine cannot run it.
    pub fn engine(&self) -> Result<Engine, CliError> {
        Ok(Engine::new(&EngineOptions {
            compiled_code_cache: cache_folder(),
            shipped_code: Package::of_this_program().ok().map(|package| package.compiled()),
            compiler: Compiler::Child { program: this_program()?, arguments: vec![COMPILE_COMPONENT.into()] },
            limits: self.limits.clone(),
            allow_inert_wasi: self.allow_inert_wasi,
        })?)
    }

    /// A session on `device` that begins with `seed` and reports to `observer`.
    ///
    /// # Errors
    ///
    /// The component does not start within the limits.
    pub fn session(
        &self,
        component: &Component,
        device: &Device,
        seed: u64,
        observer: Box<dyn Observer>,
    ) -> Result<Session, CliError> {
        Ok(Session::start(component, self.session_options(device, seed), observer)?)
    }

    /// How a session on `device` that begins with `seed` runs.
    pub fn session_options(&self, device: &Device, seed: u64) -> SessionOptions {
        SessionOptions {
            device: device.clone(),
            seed,
            limits: self.limits.clone(),
            on_overrun: Some(Arc::new(|error| end_the_program(&CliError::from(error)))),
        }
    }

    /// A session whose messages go to the log; it trains nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::session`].
    pub fn quiet_session(&self, component: &Component, device: &Device, log: &Log) -> Result<Session, CliError> {
        self.session(component, device, 0, Box::new(LogOnly(log.clone())))
    }
}

/// Where the program keeps what it can make or get again: `kilnbox` in the user's cache folder.
pub fn cache_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    folder.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).map(|folder| folder.join("kilnbox"))
}

/// What the program came with: `bin/kilnbox` beside `architectures/` and `compiled/`.
#[derive(Clone, Debug)]
pub struct Package {
    program: PathBuf,
    folder: PathBuf,
}

impl Package {
    /// The package that the running program lies in, whether or not there is anything beside it.
    ///
    /// # Errors
    ///
    /// The program does not know where it lies.
    pub fn of_this_program() -> Result<Self, CliError> {
        let program = path_of_this_program()?;
        let folder = program.parent().and_then(Path::parent).map(Path::to_owned);
        let folder = folder.ok_or_else(|| CliError::input("the program lies in no folder"))?;
        Ok(Self { program, folder })
    }

    /// The architectures.
    pub fn architectures(&self) -> PathBuf {
        self.folder.join("architectures")
    }

    /// Their compiled code.
    fn compiled(&self) -> ShippedCode {
        ShippedCode { folder: self.folder.join("compiled"), program: self.program.clone() }
    }
}

/// The program that is running. On Linux that is its very file, even if another one lies at its path meanwhile.
fn this_program() -> Result<PathBuf, CliError> {
    let running = Path::new("/proc/self/exe");
    if cfg!(target_os = "linux") && running.exists() {
        return Ok(running.to_owned());
    }
    path_of_this_program()
}

fn path_of_this_program() -> Result<PathBuf, CliError> {
    std::env::current_exe().map_err(|error| CliError::input("the program does not find its own file").caused_by(&error))
}

/// The last resort against an operation that goes on after its deadline: checkpoints are whole on the disk already, and nothing else is lost.
pub fn end_the_program(error: &CliError) {
    eprintln!("{error}");
    std::process::exit(i32::from(error.blame().exit_code()));
}

struct LogOnly(Log);

impl Observer for LogOnly {
    fn log(&mut self, level: Level, message: &str) {
        self.0.line(level, message);
    }

    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}

    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}

    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Err("checkpoints are kept during a training only".to_owned())
    }
}
