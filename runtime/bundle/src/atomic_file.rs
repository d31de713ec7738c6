//! Writing a file so that nobody ever sees half of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// How many leftover names of earlier, killed processes are stepped over before giving up.
const MAX_ATTEMPTS: u32 = 1000;

/// Writes the file at `path` through `write`, all of it or nothing.
///
/// The bytes go to a temporary file in the same folder, which is flushed to the disk and then renamed over `path`. When
/// `write` fails, or the process is killed, or the disk is full, whatever was at `path` before is untouched.
///
/// # Errors
///
/// Returns what `write` returned, or the error of creating, flushing or renaming the file.
///
/// ```
/// use std::io::Write;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("numbers.txt");
/// kilnbox_bundle::write_atomically(&path, |file| file.write_all(b"1 2 3"))?;
/// assert_eq!(std::fs::read(&path)?, b"1 2 3");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let (temporary, file) = create_beside(path)?;
    let result = write_and_rename(file, &temporary, path, write);
    if result.is_err() {
        // The first error is the one worth reporting; a temporary file that cannot be removed is only litter.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write_and_rename(
    file: File,
    temporary: &Path,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::new(file);
    write(&mut writer)?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    sync_folder(path);
    Ok(())
}

/// Creates a new file beside `path`, so that the rename stays within one file system.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let process = std::process::id();
    for attempt in 0..MAX_ATTEMPTS {
        let mut temporary_name = std::ffi::OsString::from(".");
        temporary_name.push(name);
        temporary_name.push(format!(".{process}-{attempt}.tmp"));
        let temporary = path.with_file_name(temporary_name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "the folder is full of temporary files of earlier runs"))
}

/// Asks the disk to keep the rename too. Some file systems refuse to open or flush a folder; the file itself is already
/// safe then, so that is no failure.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("the folder can be listed")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.ckpt");
        write_atomically(&path, |file| file.write_all(b"old")).expect("the first write succeeds");

        let result = write_atomically(&path, |file| {
            file.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });

        assert_eq!(result.expect_err("the write fails").to_string(), "disk full");
        assert_eq!(fs::read(&path).expect("the old file is there"), b"old");
        assert_eq!(names_in(folder.path()), ["model.ckpt"]);
    }

    #[test]
    fn a_leftover_of_a_killed_process_is_stepped_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a");
        let leftover = folder.path().join(format!(".a.{}-0.tmp", std::process::id()));
        fs::write(&leftover, b"half").expect("the leftover is written");

        write_atomically(&path, |file| file.write_all(b"new")).expect("the write succeeds");

        assert_eq!(fs::read(&path).expect("the file is there"), b"new");
        assert_eq!(fs::read(&leftover).expect("the leftover is not ours to touch"), b"half");
    }
}
