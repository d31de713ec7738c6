//! A short run of each fuzz target on stable Rust, the same every time: all files of its corpus, then inputs made from them and from nothing. The long run is
//! `cargo xtask fuzz`.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A stream of numbers that is the same in every run (Steele, Lea and Flood's SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// The longest input that is made.
const LONGEST: usize = 4096;

/// One of the files with a few changes, or bytes that have nothing to do with any.
fn made(files: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    if files.is_empty() || numbers.below(8) == 0 {
        let length = numbers.below(400);
        return numbers.bytes(length);
    }
    let mut input = files[numbers.below(files.len())].clone();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(input.len());
        let end = (at + 1 + numbers.below(16)).min(input.len());
        match numbers.below(8) {
            0 if at < input.len() => input[at] ^= 1 << numbers.below(8),
            1 | 2 if at < input.len() => input[at] = numbers.next() as u8,
            3 => drop(input.drain(at..end)),
            4 => {
                let repeated = input[at..end].to_vec();
                input.splice(at..at, repeated);
            }
            5 => {
                let length = 1 + numbers.below(4);
                input.splice(at..at, numbers.bytes(length));
            }
            6 => {
                let other = &files[numbers.below(files.len())];
                let from = numbers.below(other.len());
                let piece = other[from..(from + 1 + numbers.below(64)).min(other.len())].to_vec();
                input.splice(at..end, piece);
            }
            7 => input.truncate(at),
            _ => {}
        }
    }
    input.truncate(LONGEST);
    input
}

/// Leaves the input of a finding where it can be looked at.
struct Running<'a> {
    name: &'a str,
    input: &'a [u8],
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-finding", self.name));
            let _ = std::fs::write(&file, self.input);
            eprintln!("the input is in `{}`; keep it in `fuzz/corpus/{}`", file.display(), self.name);
        }
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("`{}`: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| std::fs::read(file).unwrap_or_else(|error| panic!("`{}`: {error}", file.display())))
        .collect()
}

/// Runs the corpus and `count` made inputs.
fn short_run(name: &str, count: usize, target: fn(&[u8])) {
    let files = corpus(name);
    assert!(!files.is_empty(), "`{name}` has no corpus");
    let mut numbers = Numbers(20_261_124);
    let made_inputs = (0..count).map(|_| made(&files, &mut numbers));
    for input in files.iter().cloned().chain(made_inputs) {
        let _running = Running { name, input: &input };
        target(&input);
    }
    // Past the test harness, which would keep it for itself.
    let _ = writeln!(std::io::stderr(), "fuzz target {name}: {} files and {count} made inputs", files.len());
}

// The numbers are such that each takes some seconds on one core.

#[test]
fn operations() {
    short_run("operations", 20_000, kilnbox_fuzz::operations);
}

#[test]
fn component() {
    short_run("component", 3_000, kilnbox_fuzz::component);
}

#[test]
fn options() {
    short_run("options", 20_000, kilnbox_fuzz::options);
}

#[test]
fn hypers() {
    short_run("hypers", 5_000, kilnbox_fuzz::hypers);
}

#[test]
fn extended_xyz() {
    short_run("extended_xyz", 50_000, kilnbox_fuzz::extended_xyz);
}

#[test]
fn checkpoint() {
    short_run("checkpoint", 50_000, kilnbox_fuzz::checkpoint);
}

#[test]
fn model() {
    short_run("model", 20_000, kilnbox_fuzz::model);
}

#[test]
fn neighbor_list() {
    short_run("neighbor_list", 20_000, kilnbox_fuzz::neighbor_list);
}

#[test]
fn architecture() {
    short_run("architecture", 50_000, kilnbox_fuzz::architecture);
}

#[test]
fn lock() {
    short_run("lock", 50_000, kilnbox_fuzz::lock);
}

#[test]
fn graph() {
    short_run("graph", 200_000, kilnbox_fuzz::graph);
}
