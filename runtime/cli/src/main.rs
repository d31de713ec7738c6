//! The `kilnbox` program.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kilnbox_bundle::RegistryOptions;
use kilnbox_cli::commands::{
    build, eval, export, keygen, pack, precompile, pull, push, run, show, sign, train, verify,
};
use kilnbox_cli::errors::{Blame, CliError, install_panic_hook, uncaught_panic};
use kilnbox_cli::registries::Access;
use kilnbox_cli::sandbox::{COMPILE_COMPONENT, Sandbox};
use kilnbox_host::HostError;
use kilnbox_tensor::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Trains, evaluates and ships machine-learning models of atoms.
#[derive(Parser)]
#[command(name = "kilnbox", version, max_term_width = 100)]
struct Arguments {
    /// How many threads compute; by default one for each core, or what KILNBOX_THREADS says. Results do not depend on it.
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Bounds what an architecture may use, as in `--limit tensor_bytes=8GiB`; can be repeated. `kilnbox limits` shows all.
    #[arg(long = "limit", global = true, value_name = "NAME=VALUE")]
    limits: Vec<String>,
    /// Runs architectures that ask for WASI, as other languages' toolchains build them, and gives them nothing: no files, no network, no environment, no time.
    #[arg(long, global = true)]
    allow_inert_wasi: bool,
    /// Also shows what is meant for developers of architectures.
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a model as an options file says, evaluates it and exports it.
    Train(TrainArguments),
    /// Evaluates an exported model: compares it with targets, or predicts.
    Eval(EvalArguments),
    /// Runs a program that uses trained models: any component that imports `wasi:nn`.
    Run(RunArguments),
    /// Makes one file of a checkpoint and its architecture, which can be evaluated anywhere.
    Export(ExportArguments),
    /// Builds a Rust package with an architecture, and makes a bundle of it.
    Build(BuildArguments),
    /// Makes one file of an architecture's component, hypers, schema and documentation.
    Pack(PackArguments),
    /// Compiles architectures once for all who run this program: nobody's first start has to.
    Precompile(PrecompileArguments),
    /// Shows what an architecture bundle, a model or a checkpoint says of itself, without running anything of it.
    Show(ShowArguments),
    /// Puts a bundle or a model into a registry, with the signature beside it.
    Push(PushArguments),
    /// Gets a bundle or a model from a registry.
    Pull(PullArguments),
    /// Makes a pair of keys to sign bundles and models with, as minisign does.
    Keygen(KeygenArguments),
    /// Signs a bundle or a model: the signature is a file beside it that ends with `.minisig`.
    Sign(SignArguments),
    /// Checks the signature beside a bundle or a model.
    Verify(VerifyArguments),
    /// Shows the limits within which architectures run, with the values that `--limit` gives them.
    Limits,
}

#[derive(Args)]
struct TrainArguments {
    /// The options of the run, as metatrain's `options.yaml`.
    options: PathBuf,
    /// Where to put the model.
    #[arg(short, long, default_value = "model.kiln")]
    output: PathBuf,
    /// Replaces an option, as in `-r architecture.training.num_epochs=10`; can be repeated.
    #[arg(short = 'r', long = "override", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Where to train: `cpu`, `cuda`, `metal`, `vulkan`, `webgpu`, or `gpu` for the first of these that is there; instead of the options' `device`.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Continues the run of a checkpoint; `auto` takes the newest in `outputs/`.
    #[arg(long, value_name = "PATH|auto")]
    restart: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArguments,
}

/// How registries may be used, for `architecture: {name: oci://...}` and for `kilnbox pull`.
#[derive(Args)]
struct AccessArguments {
    /// Takes nothing from a registry that `kilnbox.lock` does not name.
    #[arg(long)]
    locked: bool,
    /// Uses no network: what was pulled once is kept in the cache.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    plain: PlainArguments,
}

#[derive(Args)]
struct PlainArguments {
    /// Speaks HTTP without TLS to the registry, which anybody on the way can read and change; on this very machine that is done anyway.
    #[arg(long)]
    plain_http: bool,
}

impl From<PlainArguments> for RegistryOptions {
    fn from(arguments: PlainArguments) -> Self {
        Self { plain_http: arguments.plain_http }
    }
}

impl From<AccessArguments> for Access {
    fn from(arguments: AccessArguments) -> Self {
        let AccessArguments { locked, offline, plain } = arguments;
        Self { locked, offline, options: plain.into() }
    }
}

#[derive(Args)]
struct PushArguments {
    /// An architecture bundle or a model.
    file: PathBuf,
    /// Where to: `oci://HOST/NAME:TAG`. Credentials are those of `docker login`, `podman login` or `skopeo login`.
    reference: String,
    #[command(flatten)]
    plain: PlainArguments,
}

#[derive(Args)]
struct PullArguments {
    /// What: `oci://HOST/NAME:TAG`, or with `@sha256:...` at its end.
    reference: String,
    /// Where to put it; by default beside you, under the last part of the name.
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    access: AccessArguments,
}

#[derive(Args)]
struct EvalArguments {
    /// An exported model.
    model: PathBuf,
    /// The structures, and the targets to compare with, if there are any.
    options: PathBuf,
    /// Where to put the structures with the predictions.
    #[arg(short, long, default_value = "output.xyz")]
    output: PathBuf,
    /// How many structures are evaluated together.
    #[arg(short, long, default_value_t = 8, value_name = "N")]
    batch_size: usize,
    /// Where to evaluate: `cpu`, which is the default, or another device as for `train`.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

#[derive(Args)]
struct RunArguments {
    /// A model, and the name that the program finds it by; can be repeated. Without `NAME=` it is the file's name without `.kiln`.
    #[arg(short, long = "model", value_name = "NAME=FILE")]
    models: Vec<String>,
    /// Where models run: `cpu`, which is the default, or another device as for `train`.
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// The program, a WebAssembly component that exports `wasi:cli/run`, and what it is started with: all that follows is the program's.
    #[arg(trailing_var_arg = true, required = true, value_names = ["CLIENT", "ARGUMENTS"])]
    client: Vec<OsString>,
}

#[derive(Args)]
struct ExportArguments {
    /// A checkpoint of a run.
    checkpoint: PathBuf,
    /// Where to put the model; by default beside you, under the checkpoint's name.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// A file with `name`, `description`, `authors` and `references` of the model.
    #[arg(short, long)]
    metadata: Option<PathBuf>,
}

#[derive(Args)]
struct BuildArguments {
    /// The folder of the package.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where to put the bundle; by default beside you, under the architecture's name.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// What the bundle says of itself, as in `-m revision=0a1b2c`; can be repeated. What is in `Cargo.toml` is known.
    #[arg(short, long = "metadata", value_name = "NAME=VALUE")]
    metadata: Vec<String>,
    /// Builds it a second time in another folder, and fails if the bytes differ.
    #[arg(long)]
    verify: bool,
}

#[derive(Args)]
struct PackArguments {
    /// The architecture's folder, with `architecture.wasm`, `default-hypers.yaml`, `schema-hypers.json` and `README.md`.
    source: PathBuf,
    /// Where to put the bundle; by default beside you, under the architecture's name.
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// What the bundle says of itself, as in `-m version=0.2.0`; can be repeated. There are version, authors, description, licenses, source, homepage and
    /// revision. Of a Rust package they are known.
    #[arg(short, long = "metadata", value_name = "NAME=VALUE")]
    metadata: Vec<String>,
}

#[derive(Args)]
struct PrecompileArguments {
    /// Names or paths of architectures; by default all in the folder `architectures` beside the folder that the program is in. Their code goes into
    /// `compiled` there, which must belong to whom the program belongs to.
    architectures: Vec<String>,
}

#[derive(Args)]
struct ShowArguments {
    /// An architecture bundle, a model or a checkpoint.
    file: PathBuf,
    /// Shows its documentation instead: the README of an architecture, the card of a model.
    #[arg(long)]
    docs: bool,
}

#[derive(Args)]
struct KeygenArguments {
    /// Where to put the secret key; the public key goes beside it and ends with `.pub`.
    #[arg(short, long, default_value = "kilnbox.key")]
    output: PathBuf,
    /// Leaves the secret key as it is; otherwise a password is asked for, or taken from KILNBOX_KEY_PASSWORD.
    #[arg(long)]
    no_password: bool,
}

#[derive(Args)]
struct SignArguments {
    /// An architecture bundle or a model.
    file: PathBuf,
    /// The secret key, of `kilnbox keygen` or of minisign. Its password is asked for, or taken from KILNBOX_KEY_PASSWORD.
    #[arg(short, long, default_value = "kilnbox.key")]
    key: PathBuf,
    /// A line that is signed with the file; by default the time and the file's name.
    #[arg(short, long)]
    comment: Option<String>,
}

#[derive(Args)]
struct VerifyArguments {
    /// An architecture bundle or a model, with its signature beside it.
    file: PathBuf,
    /// A public key, or the file that has it; by default all of those in `trust.yaml`.
    #[arg(short, long)]
    key: Option<String>,
}

fn main() -> ExitCode {
    install_panic_hook();
    // Not a command for people: the program starts itself with this word, and the threads below would not fit into such a child's limits.
    if std::env::args_os().nth(1).is_some_and(|word| word == COMPILE_COMPONENT) {
        return kilnbox_host::compile_for_parent();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A pipe that is closed early is no error.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Blame::Input.exit_code()) } else { ExitCode::SUCCESS };
        }
    };
    let result = wanted_threads(arguments.threads).and_then(|threads| {
        kilnbox_host::on_worker(threads, || perform(arguments)).unwrap_or_else(|error| {
            Err(if matches!(error, HostError::Bug(_)) { uncaught_panic() } else { error.into() })
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.blame().exit_code())
        }
    }
}

fn perform(arguments: Arguments) -> Result<(), CliError> {
    let debug = arguments.debug;
    let sandbox = Sandbox { allow_inert_wasi: arguments.allow_inert_wasi, ..Sandbox::new(&arguments.limits)? };
    match arguments.command {
        Command::Train(TrainArguments { options, output, overrides, device, restart, access }) => {
            let access = access.into();
            train::run(&train::Request { options, output, overrides, device, restart, access, sandbox, debug })
        }
        Command::Eval(EvalArguments { model, options, output, batch_size, device }) => {
            eval::run(&eval::Request { model, options, output, batch_size, device, sandbox, debug })
        }
        Command::Run(RunArguments { models, device, client }) => {
            let (client, arguments) =
                client.split_first().map(|(client, rest)| (client.into(), rest.to_vec())).unwrap_or_default();
            run::run(&run::Request { client, arguments, models, device, sandbox, debug })
        }
        Command::Build(BuildArguments { folder, output, metadata, verify }) => {
            build::run(&build::Request { folder, output, metadata, verify, sandbox })
        }
        Command::Pack(PackArguments { source, output, metadata }) => {
            pack::run(&pack::Request { source, output, metadata, sandbox })
        }
        Command::Precompile(PrecompileArguments { architectures }) => {
            precompile::run(&precompile::Request { architectures, sandbox })
        }
        Command::Show(ShowArguments { file, docs }) => show::run(&show::Request { file, docs }),
        Command::Push(PushArguments { file, reference, plain }) => {
            push::run(&push::Request { file, reference, options: plain.into() })
        }
        Command::Pull(PullArguments { reference, output, access }) => {
            pull::run(&pull::Request { reference, output, access: access.into() })
        }
        Command::Keygen(KeygenArguments { output, no_password }) => {
            keygen::run(&keygen::Request { key: output, no_password })
        }
        Command::Sign(SignArguments { file, key, comment }) => sign::run(&sign::Request { file, key, comment }),
        Command::Verify(VerifyArguments { file, key }) => verify::run(&verify::Request { file, key }),
        Command::Limits => {
            kilnbox_cli::log::print(&sandbox.table());
            Ok(())
        }
        Command::Export(ExportArguments { checkpoint, output, metadata }) => {
            export::run(&export::Request { checkpoint, output, metadata, sandbox, debug })
        }
    }
}

/// How many threads the user wants; none to leave it to the program.
fn wanted_threads(wanted: Option<usize>) -> Result<Option<usize>, CliError> {
    const VARIABLE: &str = "KILNBOX_THREADS";
    /// More would only wait for each other; a slip of the keyboard should not start them.
    const MOST: usize = 1024;
    let wanted = match (wanted, std::env::var(VARIABLE)) {
        (Some(threads), _) => Some(threads),
        (None, Ok(text)) => Some(text.trim().parse().map_err(|_| {
            CliError::input(format!(
                "`{VARIABLE}` is `{}`, expected a number of threads",
                kilnbox_cli::log::printable(&text)
            ))
        })?),
        (None, Err(_)) => None,
    };
    match wanted {
        Some(threads) if !(1..=MOST).contains(&threads) => {
            Err(CliError::input(format!("{threads} threads were asked for, expected 1 to {MOST}")))
        }
        wanted => Ok(wanted),
    }
}
