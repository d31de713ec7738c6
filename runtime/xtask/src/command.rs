//! Running other programs.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Cargo, in the repository.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Runs it; an error if it cannot be started or fails.
pub fn check(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("`{}` failed ({status})", line(command))) }
}

/// Runs it and says with what code it ended.
pub fn status(command: &mut Command) -> Result<ExitCode, String> {
    let status = command.status().map_err(|error| cannot_start(command, &error))?;
    // A program that a signal ended has no code; 1 is as good as any.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// What it prints; none if it cannot be started or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("`{}` cannot be started: {error}", command.get_program().to_string_lossy())
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `PATH` with more folders in front.
pub fn path_with(folders: &[&Path]) -> OsString {
    let present = std::env::var_os("PATH").unwrap_or_default();
    let all = folders.iter().map(|folder| folder.to_path_buf()).chain(std::env::split_paths(&present));
    // Folders with a `:` in their names cannot be listed; then the present ones must do.
    std::env::join_paths(all).unwrap_or(present)
}
