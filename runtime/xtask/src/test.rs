//! Every test, in one command: what continuous integration runs, and what a developer runs before a commit.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::{build_kilnbox, command, debian, guests, swiftshader};

/// The tests that ask which device to run on.
const ON_A_DEVICE: [&str; 7] = ["oracle", "misuse", "determinism", "stopping", "exhaustion", "attacks", "devices"];

/// Runs all checks and tests, or the tests whose names contain the one argument; after `--device`, those of a device.
pub fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    let name = match arguments {
        [] => None,
        [option, device] if option == "--device" => return on_device(root, &device.to_string_lossy()),
        [name] if name != "--device" => Some(name),
        _ => return Err("`cargo xtask test` takes one name at most, or `--device NAME`".to_owned()),
    };
    let mut failures = Vec::new();
    let mut step = |what: &str, command: &mut Command| {
        eprintln!("== {what}");
        let start = Instant::now();
        let result = command::check(command);
        eprintln!(
            "== {what}: {} in {:.0} s",
            if result.is_ok() { "passed" } else { "FAILED" },
            start.elapsed().as_secs_f64()
        );
        if result.is_err() {
            failures.push(what.to_owned());
        }
    };
    if name.is_none() {
        step("format", command::cargo(root).args(["fmt", "--all", "--check"]));
    }
    eprintln!("== guests and program");
    let program = build_kilnbox(root, "")?;
    let mut tests = command::cargo(root);
    tests.args(["test", "--release", "--workspace", "--no-fail-fast"]).env("KILNBOX_PROGRAM", &program);
    tests.env("KILNBOX_CLIENTS", guests::clients_folder(root));
    guests::show_to(&mut tests, root);
    if let Some(programs) = debian::programs(root) {
        tests.env("KILNBOX_PEERS", programs);
    }
    match name {
        Some(name) => tests.arg("--").arg(name),
        None => &mut tests,
    };
    step("tests", &mut tests);
    if name.is_none() {
        let mut clippy = command::cargo(root);
        clippy.args(["clippy", "--quiet", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
        step("lints", &mut clippy);
        let mut documentation = command::cargo(root);
        documentation.args(["doc", "--quiet", "--release", "--workspace", "--no-deps"]);
        step("documentation", documentation.env("RUSTDOCFLAGS", "--deny warnings"));
    }
    if failures.is_empty() {
        eprintln!("all passed");
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("failed: {}", failures.join(", ")))
}

/// Runs the tests of the engine, those of the sandbox, and those of whole trainings, on one device.
fn on_device(root: &Path, name: &str) -> Result<ExitCode, String> {
    let device = match name {
        "swiftshader" => "vulkan",
        "cuda" | "metal" | "vulkan" | "webgpu" => name,
        _ => return Err(format!("there is no device `{name}`: name cuda, metal, vulkan, webgpu or swiftshader")),
    };
    let program = build_kilnbox(root, device)?;
    let mut tests = command::cargo(root);
    // Tests of one device take turns: they would only wait for each other.
    tests.args(["test", "--release", "--workspace", "--no-fail-fast", "--features", &format!("kilnbox-cli/{device}")]);
    ON_A_DEVICE.iter().for_each(|test| {
        tests.args(["--test", test]);
    });
    tests.args(["--", "--test-threads", "1"]);
    tests.env("KILNBOX_PROGRAM", &program).env("KILNBOX_TEST_DEVICE", device);
    guests::show_to(&mut tests, root);
    if name == "swiftshader" {
        swiftshader::show_to(&mut tests, &swiftshader::find(root)?);
    }
    command::check(&mut tests)?;
    eprintln!("all passed on {name}");
    Ok(ExitCode::SUCCESS)
}
