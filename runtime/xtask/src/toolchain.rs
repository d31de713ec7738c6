//! A compiler for `wasm32-unknown-unknown`, three ways, the first that works:
//!
//! 1. The target's standard library is installed: rustup fetched it because `rust-toolchain.toml` names it.
//! 2. `rustup target add`.
//! 3. Where rustup cannot reach its server but Debian's archive can be reached: Debian's own compiler and its source, unpacked under
//!    `target/`, where that compiler builds the standard library once. Nothing is installed.
//!
//! The linker is the `wasm-component-ld` of rustup's own toolchain, so what cargo puts out is the component itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{command, debian, guests, target};

const TARGET: &str = "wasm32-unknown-unknown";
const LINKER: &str = "wasm-component-ld";
const RUSTC: &str = "rustc";
/// A file that is there if the standard library names no path of this machine.
const WITHOUT_PATHS: &str = "standard-library-without-paths";
/// What to do where no way works.
const ADVICE: &str = "install the target with `rustup target add wasm32-unknown-unknown`, or, on Debian or Ubuntu, make sure that \
                      `apt-get download rustc-web` works";

/// A compiler that has the target, and the linker for it.
#[derive(Debug)]
pub struct Toolchain {
    rustc: PathBuf,
    linker: PathBuf,
    /// Where the linker finds `wasm-ld`.
    tools: Vec<PathBuf>,
}

impl Toolchain {
    /// Makes cargo use it, and nothing of the environment that would spoil the guests.
    pub fn apply(&self, cargo: &mut Command, root: &Path) {
        let tools: Vec<&Path> = self.tools.iter().map(PathBuf::as_path).collect();
        cargo
            .env("RUSTC", &self.rustc)
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", &self.linker)
            .env("PATH", command::path_with(&tools))
            // Paths of this machine have no place in a component: it is the same bytes wherever it is built.
            .env("CARGO_ENCODED_RUSTFLAGS", guests::without_paths(root))
            .env_remove("RUSTFLAGS");
    }
}

/// Finds or makes one. `KILNBOX_WASM_TOOLCHAIN` (`installed`, `rustup` or `debian`) tries that way only.
pub fn find(root: &Path) -> Result<Toolchain, String> {
    let only = std::env::var("KILNBOX_WASM_TOOLCHAIN").ok();
    let tries = |way: &str| only.as_deref().is_none_or(|only| only == way);
    let mut failures = Vec::new();
    let native = native_rustc(root);
    let rustc = 'found: {
        if tries("installed") && has_target(&native) {
            break 'found native.clone();
        }
        let unpacked = target(root).join("wasm-toolchain");
        if tries("debian") && is_usable(&unpacked.join(RUSTC)) {
            // What an earlier version of this made.
            if !unpacked.join(WITHOUT_PATHS).is_file() {
                build_standard_library(&unpacked)?;
            }
            break 'found unpacked.join(RUSTC);
        }
        if tries("rustup") {
            match add_target(root) {
                Ok(()) if has_target(&native) => break 'found native.clone(),
                Ok(()) => failures.push("rustup: it added the target, but the compiler does not have it".to_owned()),
                Err(message) => failures.push(format!("rustup: {message}")),
            }
        }
        if tries("debian") {
            match unpack(&unpacked) {
                Ok(rustc) => break 'found rustc,
                Err(message) => failures.push(format!("Debian's compiler: {message}")),
            }
        }
        let reasons: String = failures.iter().map(|failure| format!("\n  {failure}")).collect();
        return Err(format!("there is no compiler for {TARGET} here{reasons}\n{ADVICE}"));
    };
    let (linker, tools) = linker(root, &native)?;
    Ok(Toolchain { rustc, linker, tools })
}

/// The compiler itself rather than rustup's proxy, which would try to fetch what the toolchain file names.
fn native_rustc(root: &Path) -> PathBuf {
    command::output(Command::new("rustup").args(["which", "rustc"]).current_dir(root).env("RUSTUP_AUTO_INSTALL", "0"))
        .map_or_else(|| PathBuf::from("rustc"), PathBuf::from)
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    command::output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn has_target(rustc: &Path) -> bool {
    let Some(sysroot) = sysroot(rustc) else { return false };
    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(library).is_ok_and(|entries| {
        entries.flatten().any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

fn is_usable(rustc: &Path) -> bool {
    rustc.is_file() && has_target(rustc)
}

fn add_target(root: &Path) -> Result<(), String> {
    eprintln!("adding the target {TARGET} with rustup");
    // rustup retries a server that does not answer for minutes, so it is asked for once and briefly.
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]).current_dir(root).env("RUSTUP_MAX_RETRIES", "1");
    let mut child = rustup.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`rustup target add {TARGET}` failed ({status})")),
            Ok(None) if std::time::Instant::now() < give_up => {
                std::thread::sleep(std::time::Duration::from_millis(100))
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`rustup target add {TARGET}` did not finish within two minutes"));
            }
        }
    }
}

/// The linker and the folders that its own tools are in.
fn linker(root: &Path, native: &Path) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let host = command::output(Command::new(native).arg("-vV"))
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("host: ").map(str::to_owned)))
        .ok_or("`rustc -vV` does not name the host")?;
    let tools = sysroot(native).ok_or("`rustc --print sysroot` failed")?.join("lib/rustlib").join(host).join("bin");
    let paths = vec![tools.join("gcc-ld"), tools.clone()];
    let shipped = tools.join(LINKER);
    if shipped.is_file() {
        return Ok((shipped, paths));
    }
    let installed = target(root).join("wasm-linker");
    let program = installed.join("bin").join(LINKER);
    if !program.is_file() {
        eprintln!("building {LINKER}, which this toolchain lacks");
        command::check(command::cargo(root).args(["install", "--quiet", "--root"]).arg(&installed).arg(LINKER))?;
    }
    Ok((program, paths))
}

/// Unpacks Debian's compiler and builds the standard library with it.
fn unpack(folder: &Path) -> Result<PathBuf, String> {
    eprintln!("fetching Debian's compiler for {TARGET} (131 MB) into `{}`: once, some minutes", folder.display());
    let fresh = folder.with_extension("part");
    let failed = |error: io::Error| format!("`{}`: {error}", fresh.display());
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    fs::create_dir_all(&fresh).map_err(failed)?;
    fetch_packages(&fresh)?;
    debian::wrap(&fresh, RUSTC, RUSTC).map_err(failed)?;
    build_standard_library(&fresh)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::rename(&fresh, folder).map_err(failed)?;
    debian::wrap(folder, RUSTC, RUSTC).map_err(failed)
}

fn fetch_packages(fresh: &Path) -> Result<(), String> {
    let known = |package: &str| command::output(Command::new("apt-cache").args(["show", package])).is_some();
    if !known("rustc-web") {
        // Where lists of packages are out of date and this is allowed; where not, the download says what is wrong.
        let _ = command::check(Command::new("apt-get").args(["update", "-qq"]));
    }
    let depends = |package: &str| -> Vec<String> {
        command::output(Command::new("apt-cache").args(["depends", package]))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned))
            .collect()
    };
    let first = |packages: Vec<String>, prefix: &str| {
        packages
            .into_iter()
            .find(|package| package.starts_with(prefix))
            .ok_or(format!("apt knows no package `{prefix}...`"))
    };
    let standard = depends("libstd-rust-web-dev")
        .into_iter()
        .find(|package| {
            package.strip_prefix("libstd-rust-web-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .ok_or("apt knows no package `libstd-rust-web-...`")?;
    let llvm = first(depends(&standard), "libllvm")?;
    let mut packages: Vec<String> = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"].map(str::to_owned).to_vec();
    // Whatever the compiler's libraries need and this machine lacks comes along.
    let needed = depends(&llvm).into_iter().chain(depends(&standard)).filter(|package| package.starts_with("lib"));
    let present = |package: &str| command::output(Command::new("dpkg").args(["-s", package])).is_some();
    packages.extend(needed.filter(|package| *package != llvm && !present(package)));
    packages.extend([standard, llvm]);
    packages.sort();
    packages.dedup();
    let packages: Vec<&str> = packages.iter().map(String::as_str).collect();
    debian::fetch(&packages, fresh)
}

fn build_standard_library(fresh: &Path) -> Result<(), String> {
    eprintln!("building the standard library for {TARGET}: once");
    let failed = |error: io::Error| format!("`{}`: {error}", fresh.display());
    let fresh = &fs::canonicalize(fresh).map_err(failed)?;
    let work = fresh.join("standard-library");
    fs::create_dir_all(work.join("src")).map_err(failed)?;
    let manifest = "[package]\nname = \"standard\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[profile.release]\npanic = \"abort\"\n\n[workspace]\n";
    fs::write(work.join("Cargo.toml"), manifest).map_err(failed)?;
    fs::write(work.join("src/lib.rs"), "").map_err(failed)?;
    // Without bitcode in the library, guests could not be optimised as a whole. Its panics name its files as rustup's do.
    let mut flags = guests::without_paths(&work);
    flags.push(format!("\x1f-Cembed-bitcode=yes\x1f--remap-path-prefix={}=/rustc", fresh.display()));
    command::check(
        command::cargo(&work)
            .args(["build", "--quiet", "--release", "-Z", "build-std=std,panic_abort", "--target", TARGET])
            .env("RUSTC", fresh.join(RUSTC))
            // Stable Debian compilers build the library they are released with; this is the switch that lets them.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", work.join("target"))
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .env_remove("RUSTFLAGS"),
    )?;
    let library = fresh.join("usr/lib/rustlib").join(TARGET).join("lib");
    if library.exists() {
        fs::remove_dir_all(&library).map_err(failed)?;
    }
    fs::create_dir_all(&library).map_err(failed)?;
    let built = work.join("target").join(TARGET).join("release/deps");
    for entry in fs::read_dir(built).map_err(failed)?.flatten() {
        let name = entry.file_name();
        let name_text = name.to_string_lossy();
        if name_text.ends_with(".rlib") && !name_text.starts_with("libstandard-") {
            fs::copy(entry.path(), library.join(&name)).map_err(failed)?;
        }
    }
    fs::write(fresh.join(WITHOUT_PATHS), "").map_err(failed)?;
    fs::remove_dir_all(work).map_err(failed)
}
