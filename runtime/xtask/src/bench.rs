//! Benchmarks that print ratios. Those beside metatrain live in `tests/peers/`, because they drive two programs.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::{build_kilnbox, command, guests};

/// Runs the benchmark that the first argument names; the others are its own, such as `--architecture pet` and `--accuracy` for `vs-metatrain`: its
/// `--help` shows them.
pub fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    let (name, rest) = arguments.split_first().ok_or("name a benchmark: vs-metatrain, start or sandbox")?;
    // The benchmark's own option, which also says what to build.
    let device = rest.iter().position(|word| word == "--device").and_then(|place| rest.get(place + 1)?.to_str());
    let program = build_kilnbox(root, device.filter(|&device| device != "cpu").unwrap_or_default())?;
    let mut command = match name.to_str() {
        Some(name @ ("vs-metatrain" | "start")) => {
            let mut python = Command::new("python3");
            python.arg(root.join("tests/peers/metatrain_bench.py")).arg("--kilnbox").arg(&program);
            if name == "start" {
                python.arg("--start-only");
            }
            python
        }
        Some("sandbox") => {
            let mut cargo = command::cargo(root);
            cargo.args(["run", "--quiet", "--release", "--package", "kilnbox-tests", "--bin", "bench-sandbox", "--"]);
            cargo
        }
        _ => {
            return Err(format!(
                "there is no benchmark `{}`: name vs-metatrain, start or sandbox",
                name.to_string_lossy()
            ));
        }
    };
    command.args(rest);
    guests::show_to(&mut command, root);
    command::status(&mut command)
}
