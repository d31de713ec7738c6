//! Makes what users are given: the program, the architectures and their compiled code in one folder, and an archive of it.
//!
//! ```text
//! kilnbox-0.1.0-x86_64-linux/bin/kilnbox
//!                            architectures/pet/architecture.wasm ...
//!                            compiled/<digest>-<hash>.cwasm        what `kilnbox precompile` makes of them
//!                            README.md, LICENSE-APACHE, LICENSE-MIT
//! ```
//!
//! It is unpacked anywhere, and nothing is built, downloaded or compiled afterwards.

use std::env::consts::{ARCH, EXE_SUFFIX, OS};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{build_kilnbox, command, guests, target};

/// What lies in a package as it lies in the repository.
const DOCUMENTS: [&str; 3] = ["README.md", "LICENSE-APACHE", "LICENSE-MIT"];

/// Makes the package of a program that was built with these features, in `target/package/`, and says which program is in it.
pub fn make(root: &Path, features: &str) -> Result<PathBuf, String> {
    let built = build_kilnbox(root, features)?;
    let folder = packages(root).join(name());
    let program = folder.join("bin").join(format!("kilnbox{EXE_SUFFIX}"));
    fill(root, &built, &folder, &program).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    // Names of lines for developers are three quarters of its size. Where there is no `strip`, they stay.
    if !Command::new("strip").arg(&program).status().is_ok_and(|status| status.success()) {
        eprintln!("the program is packed with its debug information: there is no `strip`");
    }
    command::check(Command::new(&program).arg("precompile"))?;
    Ok(program)
}

/// Makes an archive of the package, beside it.
pub fn archive(root: &Path) -> Result<PathBuf, String> {
    let archive = packages(root).join(format!("{}.tar.gz", name()));
    command::check(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(packages(root)).arg(name()))?;
    Ok(archive)
}

fn packages(root: &Path) -> PathBuf {
    target(root).join("package")
}

fn name() -> String {
    format!("kilnbox-{}-{ARCH}-{OS}", env!("CARGO_PKG_VERSION"))
}

/// Lays out all but the compiled code; nothing of an older package stays.
fn fill(root: &Path, built: &Path, folder: &Path, program: &Path) -> io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    copy(built, program)?;
    copy_folder(&guests::folder(root), &folder.join("architectures"))?;
    DOCUMENTS.iter().try_for_each(|name| copy(&root.join(name), &folder.join(name)))
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copied = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { copy_folder(&entry.path(), &copied)? } else { copy(&entry.path(), &copied)? }
    }
    Ok(())
}

/// Copies a file; only its owner may write the copy, since code beside a program that others can write is not trusted.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(to)?.permissions().mode() & !0o022;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
