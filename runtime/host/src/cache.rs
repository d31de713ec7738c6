//! Compiled code, kept from one run to the next.
//!
//! A file of compiled code is native code: whoever writes it, runs it. So it is never taken from a bundle; it is made here, from a component
//! that was just compiled, in a folder that only this user can write, under a name that says exactly of what and by what it was made.

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
        create_private(folder).ok()?;
        is_private(folder).then(|| Self { folder: folder.to_owned() })
    }

    /// The file for the component of this digest (hexadecimal), compiled by an engine of this hash.
    pub(crate) fn file(&self, component: &str, engine: u64) -> PathBuf {
        self.folder.join(format!("{component}-{engine:016x}.cwasm"))
    }

    /// Keeps `code` for later, as a whole or not at all. Failing is no error: the next run compiles again.
    pub(crate) fn keep(&self, file: &Path, code: &[u8]) {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        // A name that no other writer has, in this process or another one.
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let temporary = file.with_extension(format!("{}-{number}.part", std::process::id()));
        let written = fs::File::create(&temporary)
            .and_then(|mut target| target.write_all(code).and_then(|()| target.sync_all()))
            .and_then(|()| fs::rename(&temporary, file));
        if written.is_err() {
            // What is left of a failed write may go or stay: nothing reads files of this name.
            let _ = fs::remove_file(&temporary);
        }
    }
}

#[cfg(unix)]
fn create_private(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn create_private(folder: &Path) -> io::Result<()> {
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
