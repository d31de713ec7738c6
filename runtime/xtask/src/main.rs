//! Builds guests, runs tests and benchmarks: `cargo xtask help`. Depends on the standard library alone, so that it starts at once.

mod bench;
mod command;
mod debian;
mod fuzz;
mod guests;
mod package;
mod swiftshader;
mod test;
mod toolchain;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask <task>

  test [NAME]     builds the guests and runs every test, or those whose name contains NAME
  test --device NAME
                  runs the tests of the engine, the attacks and trainings on a device: cuda, metal, vulkan, webgpu, or swiftshader,
                  a Vulkan device in software
  guests [--verify]
                  builds the architectures in `guests/` into `target/guests/`; twice, in two folders, to see whether the bytes are the same
  package         makes what users are given, `target/package/kilnbox-VERSION-MACHINE.tar.gz`: the program with the devices that KILNBOX_DEVICES names, the
                  architectures and their compiled code
  kilnbox ARGS    builds all that is needed and runs the program (also `cargo kilnbox ARGS`)
  bench NAME      runs a benchmark and prints ratios: vs-metatrain, start, sandbox, kernels, forces, scale; with `--device NAME`, on that device
  fuzz [TARGET] [--minutes N]
                  looks for inputs that break a target, or each of them, for so many minutes (20)
";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let task = arguments.next().and_then(|task| task.into_string().ok()).unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let root = root();
    let result = match task.as_str() {
        "test" => test::run(&root, &arguments),
        "guests" => build_guests(&root, &arguments),
        "package" => package(&root, &arguments),
        "kilnbox" => kilnbox(&root, &arguments),
        "bench" => bench::run(&root, &arguments),
        "fuzz" => fuzz::run(&root, &arguments),
        "help" | "--help" | "-h" | "" => {
            eprint!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => Err(format!("there is no task `{other}`\n\n{HELP}")),
    };
    result.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

/// The repository: two folders above this crate.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn build_guests(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    match arguments {
        [] => guests::build(root).map(|_| ExitCode::SUCCESS),
        [flag] if flag == "--verify" => guests::verify(root, &build_kilnbox(root, "")?).map(|()| ExitCode::SUCCESS),
        _ => Err("`cargo xtask guests` takes `--verify` or nothing".to_owned()),
    }
}

fn package(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    if !arguments.is_empty() {
        return Err("`cargo xtask package` takes no arguments".to_owned());
    }
    package::make(root, &devices_of_environment())?;
    let archive = package::archive(root)?;
    let size = std::fs::metadata(&archive).map_err(|error| format!("`{}`: {error}", archive.display()))?.len();
    eprintln!("packed into `{}`: {} MB", archive.display(), size / 1_000_000);
    Ok(ExitCode::SUCCESS)
}

/// Builds guests and the program, and becomes the program.
fn kilnbox(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    let features = devices_of_environment();
    let program = build_kilnbox(root, &features)?;
    let mut command = Command::new(program);
    command.args(arguments);
    guests::show_to(&mut command, root);
    command::status(&mut command)
}

/// The devices that `cargo kilnbox` and `cargo xtask package` build beside the processor: what `KILNBOX_DEVICES` says, such as `vulkan` or `cuda,vulkan`.
fn devices_of_environment() -> String {
    std::env::var("KILNBOX_DEVICES").unwrap_or_default()
}

/// The built program, with these features.
fn build_kilnbox(root: &Path, features: &str) -> Result<PathBuf, String> {
    guests::build(root)?;
    let mut cargo = command::cargo(root);
    cargo.args(["build", "--release", "--package", "kilnbox-cli"]);
    if !features.is_empty() {
        cargo.args(["--features", features]);
    }
    // Not quiet: the first build takes minutes, and its user should see that it gets on.
    command::check(&mut cargo)?;
    Ok(target(root).join("release").join(format!("kilnbox{}", std::env::consts::EXE_SUFFIX)))
}

/// Cargo's target folder, as cargo itself decides it.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder))
}
