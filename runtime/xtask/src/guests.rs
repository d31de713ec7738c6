//! Builds the architectures, and the examples of clients that use trained models.
//!
//! Nothing here knows them by name: an architecture is a folder under `guests/` that holds a `default-hypers.yaml`, and a client is a package in
//! `guests/clients/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{command, target, toolchain};

/// What a built architecture's folder holds besides its component.
const COMPANIONS: [&str; 3] = ["default-hypers.yaml", "schema-hypers.json", "README.md"];
const TARGET: &str = "wasm32-unknown-unknown";
/// Where the packages of clients are.
const CLIENTS: &str = "guests/clients";

struct Guest {
    folder: PathBuf,
    /// Where it is found below the search path, such as `experimental/name`.
    place: PathBuf,
    package: String,
}

/// Builds all architectures into `target/guests/`, and says where that is, and all clients into `target/clients/`.
pub fn build(root: &Path) -> Result<PathBuf, String> {
    let guests = find(root)?;
    let clients = clients(root).map_err(|error| format!("`{CLIENTS}`: {error}"))?;
    let toolchain = toolchain::find(root)?;
    let build_folder = target(root).join("guests-build");
    let mut cargo = command::cargo(root);
    cargo.args(["build", "--quiet", "--profile", "guest", "--target", TARGET, "--target-dir"]).arg(&build_folder);
    for package in guests.iter().map(|guest| &guest.package).chain(&clients) {
        cargo.args(["--package", package]);
    }
    toolchain.apply(&mut cargo, root);
    command::check(&mut cargo)?;
    let output = folder(root);
    let file = |package: &str| format!("{}.wasm", package.replace('-', "_"));
    let built = |package: &str| build_folder.join(TARGET).join("guest").join(file(package));
    for guest in &guests {
        let built = built(&guest.package);
        collect(guest, &built, &output.join(&guest.place))
            .map_err(|error| format!("`{}`: {error}", built.display()))?;
    }
    let output_of_clients = clients_folder(root);
    fs::create_dir_all(&output_of_clients).map_err(|error| format!("`{}`: {error}", output_of_clients.display()))?;
    for client in &clients {
        let built = built(client);
        update(&built, &output_of_clients.join(file(client)))
            .map_err(|error| format!("`{}`: {error}", built.display()))?;
    }
    Ok(output)
}

/// Builds each architecture twice, in two folders, and fails if the bytes differ: `kilnbox build --verify` does it.
pub fn verify(root: &Path, program: &Path) -> Result<(), String> {
    let toolchain = toolchain::find(root)?;
    let output = target(root).join("bundles");
    fs::create_dir_all(&output).map_err(|error| format!("`{}`: {error}", output.display()))?;
    for guest in find(root)? {
        let name = guest.place.to_string_lossy().replace(['/', '\\'], ".");
        let mut command = Command::new(program);
        command.args(["build", "--verify"]).arg(&guest.folder).arg("--output").arg(output.join(format!("{name}.wasm")));
        toolchain.apply(&mut command, root);
        command::check(&mut command)?;
    }
    Ok(())
}

/// Flags for the compiler that keep paths of this machine out of a component, so that it is the same bytes wherever it is built.
pub fn without_paths(root: &Path) -> std::ffi::OsString {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).unwrap_or_default();
    let mut flags = std::ffi::OsString::new();
    for (path, name) in [(root, "/source"), (&home, "/cargo")] {
        let separator = if flags.is_empty() { "" } else { "\x1f" };
        flags.push(format!("{separator}--remap-path-prefix="));
        flags.push(path);
        flags.push(format!("={name}"));
    }
    flags
}

/// The folder of built architectures.
pub fn folder(root: &Path) -> PathBuf {
    target(root).join("guests")
}

/// The folder of built clients.
pub fn clients_folder(root: &Path) -> PathBuf {
    target(root).join("clients")
}

/// Puts the built architectures in front of the search path of a command.
pub fn show_to(command: &mut Command, root: &Path) {
    let present = std::env::var_os("KILNBOX_ARCHITECTURES").unwrap_or_default();
    let all = std::iter::once(folder(root)).chain(std::env::split_paths(&present));
    if let Ok(path) = std::env::join_paths(all) {
        command.env("KILNBOX_ARCHITECTURES", path);
    }
}

fn find(root: &Path) -> Result<Vec<Guest>, String> {
    let guests = root.join("guests");
    let mut found = Vec::new();
    search(&guests, Path::new(""), &mut found).map_err(|error| format!("`{}`: {error}", guests.display()))?;
    found.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(found)
}

/// The names of the clients' packages.
fn clients(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root.join(CLIENTS))? {
        let manifest = entry?.path().join("Cargo.toml");
        if manifest.is_file() {
            let name = package_name(&fs::read_to_string(&manifest)?);
            names.push(name.ok_or_else(|| io::Error::other(format!("`{}` has no package name", manifest.display())))?);
        }
    }
    names.sort();
    Ok(names)
}

fn search(folder: &Path, place: &Path, found: &mut Vec<Guest>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let (Some(name), true) = (path.file_name(), path.is_dir()) else { continue };
        let place = place.join(name);
        if path.join("default-hypers.yaml").is_file() {
            let manifest = fs::read_to_string(path.join("Cargo.toml"))?;
            let package = package_name(&manifest).ok_or_else(|| {
                io::Error::other(format!("`{}` has no package name", path.join("Cargo.toml").display()))
            })?;
            found.push(Guest { folder: path, place, package });
        } else if !path.join("Cargo.toml").is_file() {
            search(&path, &place, found)?;
        }
    }
    Ok(())
}

/// The first `name = "..."`, which is the package's.
fn package_name(manifest: &str) -> Option<String> {
    let line = manifest.lines().find_map(|line| line.trim().strip_prefix("name")?.trim().strip_prefix('='))?;
    Some(line.trim().trim_matches('"').to_owned())
}

fn collect(guest: &Guest, built: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    update(built, &to.join("architecture.wasm"))?;
    for name in COMPANIONS {
        let file = guest.folder.join(name);
        if file.is_file() {
            update(&file, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies what has changed; a reader sees the old file or the new one.
fn update(from: &Path, to: &Path) -> io::Result<()> {
    let bytes = fs::read(from)?;
    if fs::read(to).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let part = to.with_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(part, to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_named_by_its_manifest() {
        let cases = [
            ("[package]\nname = \"soap-bpnn\"\nversion = \"1\"\n", Some("soap-bpnn")),
            ("[package]\nname=\"a\"\n[lib]\nname = \"b\"\n", Some("a")),
            ("[workspace]\n", None),
        ];
        for (manifest, expected) in cases {
            assert_eq!(package_name(manifest).as_deref(), expected);
        }
    }
}
