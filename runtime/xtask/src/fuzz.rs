//! Long runs of the fuzz targets, with libFuzzer. The short ones are ordinary tests, in `fuzz/bodies`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::{command, target};

/// Seconds after which one input is a finding.
const SECONDS_PER_INPUT: u32 = 30;
/// Megabytes of memory beyond which one input is a finding: several times what all quotas of the targets allow.
const MEGABYTES: u32 = 2048;
/// Bytes of the longest input: what is longer finds little more and takes longer.
const LONGEST_INPUT: u32 = 4096;

/// Runs the target that is named, or all of them one after another, for so many minutes each.
pub fn run(root: &Path, arguments: &[OsString]) -> Result<ExitCode, String> {
    let mut minutes = 20_u32;
    let mut chosen = None;
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next() {
        if argument == "--minutes" {
            let number = arguments.next().and_then(|number| number.parse().ok()).filter(|&number| number > 0);
            minutes = number.ok_or("`--minutes` takes a number of minutes, at least 1")?;
        } else if chosen.replace(argument.into_owned()).is_some() {
            return Err("`cargo xtask fuzz` takes one target at most".to_owned());
        }
    }
    let targets = targets(root)?;
    let wanted = match &chosen {
        None => targets,
        Some(name) if targets.contains(name) => vec![name.clone()],
        Some(name) => return Err(format!("there is no fuzz target `{name}`: name one of {}", targets.join(", "))),
    };
    for name in wanted {
        fuzz(root, &name, minutes)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The targets are those that have a corpus.
fn targets(root: &Path) -> Result<Vec<String>, String> {
    let folder = root.join("fuzz/corpus");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn fuzz(root: &Path, name: &str, minutes: u32) -> Result<(), String> {
    // New inputs are kept apart from the corpus of the repository, which is small and chosen by people.
    let work = target(root).join("fuzz").join(name);
    std::fs::create_dir_all(&work).map_err(|error| format!("`{}`: {error}", work.display()))?;
    eprintln!("== {name}: {minutes} min");
    let mut cargo = Command::new("cargo");
    // Optimised and without a sanitizer: there is next to no unsafe code of ours, and everything is several times faster.
    cargo.args(["+nightly", "fuzz", "run", "-O", "-s", "none", "--fuzz-dir", "fuzz", name]);
    cargo.arg(&work).arg(format!("fuzz/corpus/{name}")).arg("--");
    cargo.arg(format!("-max_total_time={}", 60 * minutes));
    cargo.arg(format!("-timeout={SECONDS_PER_INPUT}")).arg(format!("-rss_limit_mb={MEGABYTES}"));
    cargo.arg(format!("-max_len={LONGEST_INPUT}")).arg("-print_final_stats=1");
    cargo.current_dir(root).env("CARGO_TARGET_DIR", target(root).join("cargo-fuzz"));
    // This very program was started by the cargo of the repository's own toolchain.
    cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    command::check(&mut cargo).map_err(|problem| {
        format!(
            "{problem}\nIf it found something: the input is in `fuzz/artifacts/{name}`; keep it in `fuzz/corpus/{name}` and mend what it shows.\n\
             If it did not start: it needs a nightly toolchain (`rustup toolchain install nightly`), cargo-fuzz (`cargo install cargo-fuzz --locked`) and a C++ compiler"
        )
    })
}
