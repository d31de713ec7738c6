//! What is tried on bytes from anywhere: the bodies of the fuzz targets, ordinary functions on stable Rust.
//!
//! Each takes bytes and panics if something does not hold that holds for all of them. `cargo xtask fuzz` runs them for a long time with libFuzzer, which looks for bytes
//! that reach new code; `tests/short.rs` runs them for some seconds, the same in every run.

mod bundle;
mod component;
mod data;
mod graph;
mod operations;
mod options;
mod text;

use std::time::{Duration, Instant};

pub use bundle::{architecture, checkpoint, lock, model};
pub use component::component;
pub use data::{extended_xyz, neighbor_list_of as neighbor_list};
pub use graph::graph;
pub use operations::operations;
pub use options::{hypers, options};

/// Does `work`, which a machine that is busy with other things still does in so many seconds.
fn within<T>(seconds: u64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_secs(seconds), "it took {:.1} s", start.elapsed().as_secs_f64());
    result
}
