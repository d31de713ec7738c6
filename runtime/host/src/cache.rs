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

/// A folder of compiled code that came with the program. As with [`CodeCache`], what cannot be used is compiled.
#[derive(Clone, Debug)]
pub(crate) struct ShippedCode {
    folder: PathBuf,
    program: PathBuf,
}

impl ShippedCode {
    /// The code in `folder`, which came with the program of this file.
    pub(crate) fn new(folder: &Path, program: &Path) -> Self {
        Self { folder: folder.to_owned(), program: program.to_owned() }
    }

    /// The file for the component of this digest, compiled by an engine of this hash. None where there is none, or where the folder or the file belong to
    /// others than the program does, or can be written by others.
    pub(crate) fn file(&self, component: &str, engine: u64) -> Option<PathBuf> {
        let file = self.folder.join(file_name(component, engine));
        are_one_owners(&[&self.program, &self.folder, &file]).then_some(file)
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether there is such a folder at all.
    pub(crate) fn exists(&self) -> bool {
        self.folder.is_dir()
    }

    /// Puts code there for all who run the program.
    ///
    /// # Errors
    /// The folder cannot be made, or nothing can be written to it.
    pub(crate) fn keep(&self, component: &str, engine: u64, code: &[u8]) -> io::Result<PathBuf> {
        let file = self.folder.join(file_name(component, engine));
        create_folder(&self.folder, 0o755)?;
        write_whole(&file, code)?;
        // All may read it, once nobody can have opened it to write.
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        }
        Ok(file)
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

#[cfg(unix)]
fn is_private(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    // Another's folder is another's to fill, whatever its permissions say today: think of root with a user's `HOME`.
    let own = rustix::process::geteuid().as_raw();
    fs::metadata(folder)
        .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own && metadata.mode() & 0o022 == 0)
}

#[cfg(not(unix))]
fn is_private(folder: &Path) -> bool {
    folder.is_dir()
}

/// Whether all of these are there, belong to one user, and can be written by that user alone.
#[cfg(unix)]
fn are_one_owners(paths: &[&Path]) -> bool {
    use std::os::unix::fs::MetadataExt;
    let owners = paths.iter().map(|path| {
        let metadata = fs::metadata(path).ok()?;
        (metadata.mode() & 0o022 == 0).then_some(metadata.uid())
    });
    let owners: Option<Vec<u32>> = owners.collect();
    owners.is_some_and(|owners| owners.windows(2).all(|pair| pair[0] == pair[1]))
}

#[cfg(not(unix))]
fn are_one_owners(paths: &[&Path]) -> bool {
    paths.iter().all(|path| path.exists())
}
