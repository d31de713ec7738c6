//! The `kilnbox` program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use kilnbox_cli::commands::{eval, export, train};
use kilnbox_cli::errors::{Blame, CliError, install_panic_hook, uncaught_panic};
use kilnbox_cli::sandbox::{COMPILE_COMPONENT, Sandbox};

/// Trains, evaluates and exports machine-learning models of atoms.
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
    /// Makes one file of a checkpoint and its architecture, which can be evaluated anywhere.
    Export(ExportArguments),
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
        kilnbox_host::on_worker(threads, || run(arguments)).unwrap_or_else(|_| Err(uncaught_panic()))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.blame().exit_code())
        }
    }
}

fn run(arguments: Arguments) -> Result<(), CliError> {
    let debug = arguments.debug;
    let sandbox = Sandbox { allow_inert_wasi: arguments.allow_inert_wasi, ..Sandbox::new(&arguments.limits)? };
    match arguments.command {
        Command::Train(TrainArguments { options, output, overrides, device, restart }) => {
            train::run(&train::Request { options, output, overrides, device, restart, sandbox, debug })
        }
        Command::Eval(EvalArguments { model, options, output, batch_size, device }) => {
            eval::run(&eval::Request { model, options, output, batch_size, device, sandbox, debug })
        }
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
