//! What the whole-program tests and benchmarks share.

use std::path::{Path, PathBuf};

use kilnbox_host::{Checkpoint, Level, Metric, Observer};

/// The repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// A file of the reference data, which not every machine has; says so where it is missing.
pub fn reference(name: &str) -> Option<PathBuf> {
    let path = repository().join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: the reference data `{name}` is not present");
    None
}

/// An observer who listens to nothing and keeps nothing.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Observer for Nobody {
    fn log(&mut self, _: Level, _: &str) {}
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}
    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Ok(())
    }
}
