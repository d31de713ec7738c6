//! Benchmarks that print ratios. Those beside peers live in `tests/peers/`, because they drive programs in Python.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::{build_kilnbox, command, guests, package, target};

/// All of them.
const NAMES: &str = "vs-metatrain, start, sandbox, kernels, forces or scale";

/// Runs the benchmark that the first argument names; the others are its own, such as `--architecture pet` and `--accuracy` for `vs-metatrain`: its
/// `--help` shows them.
pub fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    let (name, rest) = arguments.split_first().ok_or(format!("name a benchmark: {NAMES}"))?;
    // The benchmark's own option, which also says what to build.
    let device = rest.iter().position(|word| word == "--device").and_then(|place| rest.get(place + 1)?.to_str());
    let device = device.filter(|&device| device != "cpu").unwrap_or_default();
    let mut command = match name.to_str() {
        Some("vs-metatrain") => {
            let mut script = script(root, "metatrain_bench.py");
            script.arg("--kilnbox").arg(build_kilnbox(root, device)?);
            script
        }
        Some("start") => {
            let mut script = script(root, "metatrain_bench.py");
            script.arg("--kilnbox").arg(build_kilnbox(root, device)?);
            script.arg("--start-only").arg("--packaged").arg(package::make(root, device)?);
            script
        }
        Some("scale") => {
            let mut script = script(root, "scale_bench.py");
            script.arg("--kilnbox").arg(build_kilnbox(root, device)?);
            script
        }
        Some("kernels") => {
            let mut script = script(root, "kernels_bench.py");
            script.arg("--engine").arg(built(root, "bench-kernels")?);
            script
        }
        Some("forces") => {
            let mut script = script(root, "forces_bench.py");
            script.arg("--kilnbox").arg(build_kilnbox(root, device)?);
            script.arg("--forces").arg(built(root, "bench-forces")?);
            script.arg("--client").arg(guests::clients_folder(root).join("molecular_dynamics.wasm"));
            script
        }
        Some("sandbox") => {
            build_kilnbox(root, device)?;
            Command::new(built(root, "bench-sandbox")?)
        }
        _ => return Err(format!("there is no benchmark `{}`: name {NAMES}", name.to_string_lossy())),
    };
    command.args(rest);
    guests::show_to(&mut command, root);
    command::status(&mut command)
}

/// A script of `tests/peers/`. Those that need a peer in their own process start themselves again with the Python that has it.
fn script(root: &Path, name: &str) -> Command {
    let mut command = Command::new("python3");
    // No compiled scripts beside the sources.
    command.arg("-B").arg(root.join("tests/peers").join(name));
    command
}

/// A benchmark's program among the tests, built.
fn built(root: &Path, name: &str) -> Result<PathBuf, String> {
    command::check(command::cargo(root).args(["build", "--release", "--package", "kilnbox-tests", "--bin", name]))?;
    Ok(target(root).join("release").join(format!("{name}{}", std::env::consts::EXE_SUFFIX)))
}
