//! Where a run leaves its files: `outputs/<date>/<time>/`, as metatrain lays it out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Zoned;

use crate::errors::{CliError, file_error};

/// The folder of all runs, below the working directory.
const OUTPUTS: &str = "outputs";
/// The suffix of checkpoints.
pub const CHECKPOINT_SUFFIX: &str = "ckpt";
/// The suffix of exported models.
pub const MODEL_SUFFIX: &str = "kiln";
/// How many runs may start within one second.
const MOST_AT_ONCE: u32 = 1000;

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// A new folder for a run that starts now.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create() -> Result<Self, CliError> {
        let now = Zoned::now();
        let day = Path::new(OUTPUTS).join(now.strftime("%Y-%m-%d").to_string());
        fs::create_dir_all(&day).map_err(|error| file_error("make the folder", &day, &error))?;
        let time = now.strftime("%H-%M-%S").to_string();
        for attempt in 0..MOST_AT_ONCE {
            let name = if attempt == 0 { time.clone() } else { format!("{time}.{attempt}") };
            let path = day.join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                // Another run began in the same second.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(file_error("make the folder", &path, &error)),
            }
        }
        Err(CliError::input(format!("`{}` has {MOST_AT_ONCE} runs of one second", day.display())))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a small text file into it, making folders on the way.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<(), CliError> {
        let path = self.file(name);
        let folder = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder).map_err(|error| file_error("make the folder", folder, &error))?;
        kilnbox_bundle::write_atomically(&path, |file| file.write_all(text.as_bytes()))
            .map_err(|error| file_error("write", &path, &error))
    }
}

/// The newest checkpoint of all runs, for `--restart auto`; none if there is none.
pub fn newest_checkpoint() -> Option<PathBuf> {
    let below = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let checkpoints = below(Path::new(OUTPUTS))
        .flat_map(|day| below(&day).collect::<Vec<_>>())
        .flat_map(|run| below(&run).collect::<Vec<_>>())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == CHECKPOINT_SUFFIX));
    let age = |path: &PathBuf| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    // Names decide between checkpoints of the same moment, so that the answer is always the same.
    checkpoints.filter_map(|path| Some((age(&path)?, path))).max().map(|(_, path)| path)
}
