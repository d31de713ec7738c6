//! Compiled code: what is kept from one run to the next, and what came with the program.
//!
//! A file of compiled code is native code: whoever writes it, runs it. So it is never taken from a bundle. It is made here, from a component
//! that was just compiled, in a folder that only this user can write, under a name that says exactly of what and by what it was made. Or it was
//! made by whoever installed the program ([`ShippedCode`]), and is trusted as the program is, because whoever can change one can change the other.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder of compiled code. Everything about it is optional: where it cannot be used, components are compiled each time.
#[derive(Clone, Debug)]
pub(crate) struct CodeCache {
    folder: PathBuf,
}

impl CodeCache {
    /// Opens or makes the folder. None where it cannot be made, or where others than its owner can write to it.
    pub(crate) fn open(folder: &Path) -> Option<Self> {
        create_folder(folder, 0o700).ok()?;
        is_private(folder).then(|| Self { folder: folder.to_owned() })
    }

    /// The file for the component of this digest (hexadecimal), compiled by an engine of this hash.
    pub(crate) fn file(&self, component: &str, engine: u64) -> PathBuf {
        self.folder.join(file_name(component, engine))
    }

    /// Keeps `code` for later, as a whole or not at all. Failing is no error: the next run compiles again.
    pub(crate) fn keep(&self, file: &Path, code: &[u8]) {
        let _ = write_whole(file, code);
    }
}

/// A folder of compiled code that came with a program. As with a cache of it, what cannot be used is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShippedCode {
    /// The folder, which need not exist.
    pub folder: PathBuf,
    /// The program's file.
    pub program: PathBuf,
}

impl ShippedCode {
    /// The file for the component of this digest, compiled by an engine of this hash. None where there is none, or where the folder or the file belong to
    /// others than the program does, or can be written by others.
    pub(crate) fn file(&self, component: &str, engine: u64) -> Option<PathBuf> {
        let file = self.folder.join(file_name(component, engine));
        let owner = Some(sole_writer(&self.program)?);
        (sole_writer(&self.folder) == owner && sole_writer(&file) == owner).then_some(file)
    }

    /// Puts code there for all who run the program.
    ///
    /// # Errors
    /// The folder cannot be made, or nothing can be written to it.
    pub(crate) fn keep(&self, component: &str, engine: u64, code: &[u8]) -> io::Result<()> {
        let file = self.folder.join(file_name(component, engine));
        create_folder(&self.folder, 0o755)?;
        write_whole(&file, code)?;
        // All may read it, once nobody can have opened it to write.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        }
        Ok(())
    }
}

fn file_name(component: &str, engine: u64) -> String {
    format!("{component}-{engine:016x}.cwasm")
}

/// Writes a file as a whole or not at all, which its owner alone may open.
fn write_whole(file: &Path, code: &[u8]) -> io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    // A name that no other writer has, in this process or another one.
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let temporary = file.with_extension(format!("{}-{number}.part", std::process::id()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .open(&temporary)
        .and_then(|mut target| target.write_all(code).and_then(|()| target.sync_all()))
        .and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // What is left of a failed write may go or stay: nothing reads files of this name.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes a folder, if there is none, to which others have no more rights than `mode` says.
#[cfg(unix)]
fn create_folder(folder: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(mode).create(folder)
}

#[cfg(not(unix))]
fn create_folder(folder: &Path, _: u32) -> io::Result<()> {
    fs::create_dir_all(folder)
}

fn is_private(folder: &Path) -> bool {
    // Another's folder is another's to fill, whatever its permissions say today: think of root with a user's `HOME`.
    folder.is_dir() && sole_writer(folder) == Some(this_user())
}

/// The user that a file or a folder belongs to, if nobody else may write it.
#[cfg(unix)]
fn sole_writer(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    (metadata.mode() & 0o022 == 0).then_some(metadata.uid())
}

#[cfg(unix)]
fn this_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Elsewhere whatever is there is taken to be this user's own.
#[cfg(not(unix))]
fn sole_writer(path: &Path) -> Option<u32> {
    path.exists().then(this_user)
}

#[cfg(not(unix))]
fn this_user() -> u32 {
    0
}
