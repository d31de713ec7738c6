//! `kilnbox build`: a Rust package with an architecture becomes a bundle, the same bytes on every machine.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kilnbox_bundle::sha256_digest;
use serde_json::Value as Json;

use crate::architectures::read_built;
use crate::errors::{CliError, file_error};
use crate::log::{print, printable};
use crate::sandbox::Sandbox;

/// The target of architectures: it has no system, so there is nothing to take away.
const TARGET: &str = "wasm32-unknown-unknown";
/// Makes a component of what the compiler makes; rustup's toolchains have it.
const LINKER: &str = "wasm-component-ld";
/// How Cargo is told which linker to use, and where somebody else may have told it.
const LINKER_VARIABLE: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER";
/// Small, and aborting, because a panic in a sandbox has nobody to unwind to.
const PROFILE: [&str; 7] = [
    "profile.release.opt-level=3",
    // What it brings along reads hypers and writes checkpoints, which takes no time; it is most of the size.
    "profile.release.package.\"*\".opt-level=\"s\"",
    "profile.release.lto=true",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=\"debuginfo\"",
    "profile.release.debug=false",
];

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The package's folder.
    pub folder: PathBuf,
    /// Where to put the bundle; none takes the architecture's name, in the working directory.
    pub output: Option<PathBuf>,
    /// What the bundle shall say of itself, `name=value`.
    pub metadata: Vec<String>,
    /// Whether to build it a second time, elsewhere, and compare.
    pub verify: bool,
    /// With what it is checked.
    pub sandbox: Sandbox,
}

/// Runs the command.
///
/// # Errors
///
/// It cannot be built, or makes no architecture, or two builds differ.
pub fn run(request: &Request) -> Result<(), CliError> {
    let package = Package::find(&request.folder)?;
    let bundle = |package: &Package, target: &Path| -> Result<Vec<u8>, CliError> {
        let component = package.build(target)?;
        super::pack::make(&read_built(&package.folder, component)?, &request.metadata, &request.sandbox)
    };
    let built = bundle(&package, &package.target.join("kilnbox-build"))?;
    if request.verify {
        let elsewhere = Elsewhere::of(&package)?;
        let again = bundle(&elsewhere.package, &elsewhere.package.target)?;
        let (first, second) = (sha256_digest(&built), sha256_digest(&again));
        if first != second {
            return Err(CliError::input(format!("two builds of `{}` differ: {first} and {second}", package.name))
                .hint("does a build script or a macro put the time, a path or a random number into the code?"));
        }
        print(&format!("A second build in another folder gives the same: {first}"));
    }
    super::pack::write(&built, request.output.as_deref())
}

/// A package that makes a component.
#[derive(Clone, Debug)]
struct Package {
    name: String,
    /// The name of its library, as in file names.
    library: String,
    folder: PathBuf,
    workspace: PathBuf,
    target: PathBuf,
}

impl Package {
    fn find(folder: &Path) -> Result<Self, CliError> {
        let folder = folder.canonicalize().map_err(|error| file_error("find", folder, &error))?;
        let manifest = folder.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(CliError::input(format!("`{}` is no Rust package: it has no `Cargo.toml`", folder.display()))
                .hint("`kilnbox pack` makes a bundle of a component that something else has built"));
        }
        let output = cargo(&folder)
            .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
            .arg(&manifest)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| {
                CliError::input("Cargo cannot be started").caused_by(&error).hint("install Rust: https://rustup.rs")
            })?;
        if !output.status.success() {
            return Err(CliError::input(format!("Cargo cannot read `{}`", manifest.display())));
        }
        let metadata: Json = serde_json::from_slice(&output.stdout)
            .map_err(|error| CliError::input("Cargo answers wrongly").caused_by(&error))?;
        let path = |value: &Json| PathBuf::from(value.as_str().unwrap_or_default());
        let packages = metadata["packages"].as_array().into_iter().flatten();
        let package = packages
            .into_iter()
            .find(|package| path(&package["manifest_path"]).canonicalize().is_ok_and(|path| path == manifest))
            .ok_or_else(|| {
                CliError::input(format!("`{}` is a workspace, and no package", folder.display()))
                    .hint("name the folder of a package")
            })?;
        let makes_component = |target: &&Json| {
            target["crate_types"].as_array().is_some_and(|types| types.iter().any(|kind| kind == "cdylib"))
        };
        let library = package["targets"].as_array().into_iter().flatten().find(makes_component).ok_or_else(|| {
            CliError::input(format!("the package in `{}` makes no component", folder.display()))
                .hint("it needs `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]` in its `Cargo.toml`")
        })?;
        Ok(Self {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            library: library["name"].as_str().unwrap_or_default().replace('-', "_"),
            workspace: path(&metadata["workspace_root"]).canonicalize().unwrap_or_default(),
            target: path(&metadata["target_directory"]),
            folder,
        })
    }

    /// Builds the component and says where it is.
    fn build(&self, target: &Path) -> Result<PathBuf, CliError> {
        let mut cargo = cargo(&self.folder);
        cargo.args(["build", "--release", "--target", TARGET, "--package", &self.name, "--target-dir"]).arg(target);
        for setting in PROFILE {
            cargo.args(["--config", setting]);
        }
        // Paths of this machine have no place in a component: panics name the files that they are in.
        let homes = [(&self.workspace, "/source"), (&cargo_home(), "/cargo")];
        let remapped: Vec<OsString> = homes
            .iter()
            .filter(|(path, _)| !path.as_os_str().is_empty())
            .map(|(path, name)| {
                let mut flag = OsString::from("--remap-path-prefix=");
                flag.push(path);
                flag.push(format!("={name}"));
                flag
            })
            .collect();
        cargo.env("CARGO_ENCODED_RUSTFLAGS", remapped.join(OsString::from("\x1f").as_os_str()));
        if std::env::var_os(LINKER_VARIABLE).is_none() {
            let tools = tools()?;
            let paths = [tools.join("gcc-ld"), tools.clone()];
            let present = std::env::var_os("PATH").unwrap_or_default();
            let all = paths.into_iter().chain(std::env::split_paths(&present));
            if let Ok(all) = std::env::join_paths(all) {
                cargo.env("PATH", all);
            }
            cargo.env(LINKER_VARIABLE, tools.join(LINKER));
        }
        let status = cargo.status().map_err(|error| CliError::input("Cargo cannot be started").caused_by(&error))?;
        if !status.success() {
            return Err(CliError::input(format!("`{}` cannot be built, for the reason above", printable(&self.name)))
                .hint(format!("if it is that `std` is not found: `rustup target add {TARGET}`")));
        }
        Ok(target.join(TARGET).join("release").join(format!("{}.wasm", self.library)))
    }
}

/// A copy of a workspace in another folder, without what was built there; it goes when this does.
struct Elsewhere {
    package: Package,
    folder: PathBuf,
}

impl Elsewhere {
    fn of(package: &Package) -> Result<Self, CliError> {
        let folder = std::env::temp_dir().join(format!("kilnbox-build-elsewhere-{}", std::process::id()));
        let workspace = folder.join("another/place");
        let inside = package.folder.strip_prefix(&package.workspace).map_err(|_| {
            CliError::input(format!(
                "`{}` lies outside of its workspace `{}`",
                package.folder.display(),
                package.workspace.display()
            ))
        })?;
        let copy = Self {
            package: Package {
                folder: workspace.join(inside),
                target: folder.join("target"),
                workspace: workspace.clone(),
                ..package.clone()
            },
            folder,
        };
        copy_sources(&package.workspace, &workspace, &package.target)?;
        Ok(copy)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It lies where what is left is cleared away some time.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Copies a folder but for what Cargo and git keep in it.
fn copy_sources(from: &Path, to: &Path, target: &Path) -> Result<(), CliError> {
    let failed = |error: std::io::Error| file_error("copy", from, &error);
    fs::create_dir_all(to).map_err(failed)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default();
        if path == target || name == "target" || name == ".git" {
            continue;
        }
        // A link is followed: what it leads to is a part of the sources.
        if path.is_dir() {
            copy_sources(&path, &to.join(name), target)?;
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).map_err(|error| file_error("copy", &path, &error))?;
        }
    }
    Ok(())
}

/// Cargo, with nothing of the environment that would get into the component.
fn cargo(folder: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(folder)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_RUSTFLAGS")
        .env_remove("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS");
    command
}

fn cargo_home() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).unwrap_or_default()
}

/// The folder of the toolchain's own tools, which has the linker.
fn tools() -> Result<PathBuf, CliError> {
    let rustc = || Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let told = |arguments: &[&str]| -> Option<String> {
        let output = rustc().args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let sysroot = told(&["--print", "sysroot"]);
    let host =
        told(&["-vV"]).and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)));
    let tools = sysroot.zip(host).map(|(sysroot, host)| Path::new(&sysroot).join("lib/rustlib").join(host).join("bin"));
    tools.filter(|tools| tools.join(LINKER).is_file()).ok_or_else(|| {
        CliError::input(format!("the Rust toolchain has no `{LINKER}`, which makes components"))
            .hint(format!("install it with `cargo install {LINKER} --locked`, and name it in `{LINKER_VARIABLE}`"))
    })
}
