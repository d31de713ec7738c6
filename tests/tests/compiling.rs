//! Compiling strangers' components in a child of the real program: what is honest compiles, what is a bomb ends, and nothing is left behind.

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kilnbox_host::{Compiler, Engine, EngineOptions, HostError, Limits};
use kilnbox_tests::{Workplace, ethanol_structures};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// The program of `cargo xtask test` as the compiler, under another path that the children of one test can be told by.
fn compiler(folder: &Path) -> Fallible<Compiler> {
    let program = folder.join("compiler");
    let built = std::env::var_os("KILNBOX_PROGRAM").ok_or("run the tests with `cargo xtask test`")?;
    std::os::unix::fs::symlink(built, &program)?;
    Ok(Compiler::Child { program, arguments: vec![OsString::from("compile-component")] })
}

/// How many processes were started from this folder and live.
fn living(folder: &Path) -> Fallible<usize> {
    let folder = folder.to_string_lossy().into_owned();
    let mut count = 0;
    for entry in fs::read_dir("/proc")?.flatten() {
        // A process may end while we look.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        count += usize::from(String::from_utf8_lossy(&command).starts_with(&folder));
    }
    Ok(count)
}

/// How every component begins; alone, it is the empty one.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A number as WebAssembly's binary format has it.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn section(number: u8, content: &[u8]) -> Vec<u8> {
    [&[number][..], &leb128(content.len()), content].concat()
}

/// A component that holds one module with `count` functions of this body. All take an `i32` and return nothing.
fn functions(count: usize, body: &[u8]) -> Vec<u8> {
    let body = [&[0][..], body, &[0x0b]].concat();
    let types = section(1, &[1, 0x60, 1, 0x7f, 0]);
    let declared = section(3, &[leb128(count), vec![0; count]].concat());
    let bodies = [leb128(body.len()), body].concat().repeat(count);
    let code = section(10, &[leb128(count), bodies].concat());
    nested(&[&b"\0asm\x01\0\0\0"[..], &types, &declared, &code].concat(), 1)
}

/// A component with this part, a module (1) or a component (4).
fn nested(part: &[u8], kind: u8) -> Vec<u8> {
    [COMPONENT, &section(kind, part)].concat()
}

/// A block that is left early if the argument is not zero.
const BLOCK: [u8; 7] = [0x02, 0x40, 0x20, 0x00, 0x0d, 0x00, 0x0b];

/// Components of a few megabytes at most that take seconds and gigabytes, or more than there is.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let depth = 1_000_000;
    let nested_blocks = [[0x02, 0x40].repeat(depth), vec![0x0b; depth]].concat();
    vec![
        ("a million blocks in one function", functions(1, &BLOCK.repeat(1_000_000))),
        ("a million blocks, each in the next", functions(1, &nested_blocks)),
        ("a hundred thousand functions", functions(100_000, &BLOCK.repeat(20))),
        (
            "twenty thousand components, each in the next",
            (0..20_000).fold(COMPONENT.to_vec(), |part, _| nested(&part, 4)),
        ),
    ]
}

/// Loads a component with an empty cache: the limit that it meets, and after how long. Checks that nothing is left.
fn limit(component: &[u8], limits: Limits) -> Fallible<(&'static str, String, Duration)> {
    let folder = tempfile::tempdir()?;
    let cache = folder.path().join("cache");
    let compiler = compiler(folder.path())?;
    let options =
        EngineOptions { compiled_code_cache: Some(cache.clone()), compiler, limits, ..EngineOptions::default() };
    let engine = Engine::new(&options)?;
    let start = Instant::now();
    let outcome = engine.load(component);
    let time = start.elapsed();
    let Err(HostError::Limit { limit, message }) = outcome else { return Err(format!("no limit: {outcome:?}").into()) };
    assert_eq!(living(folder.path())?, 0, "a child was left behind");
    assert_eq!(fs::read_dir(cache)?.count(), 0, "a file was left behind");
    Ok((limit, message, time))
}

#[test]
fn a_bomb_ends_in_time_and_leaves_nothing() -> Fallible {
    for (name, bomb) in bombs() {
        let limits = Limits { compile_seconds: 0.25, ..Limits::default() };
        let (limit, message, time) = self::limit(&bomb, limits)?;
        assert_eq!((limit, message.as_str()), ("compile_seconds", "compiling it takes longer than 0.25 s"), "{name}");
        // The rest is for a busy machine, which has to clear away what the child had.
        assert!(time < Duration::from_secs(5), "{name}: {time:?}");
    }
    Ok(())
}

#[test]
fn a_bomb_gets_only_so_much_memory() -> Fallible {
    for (name, bomb) in bombs() {
        // The program itself, its threads, and little more.
        let limits = Limits { compile_memory_bytes: 96 << 20, ..Limits::default() };
        let (limit, message, _) = self::limit(&bomb, limits)?;
        let expected = "compiling it needs more than 100663296 bytes of memory";
        assert_eq!((limit, message.as_str()), ("compile_memory_bytes", expected), "{name}");
    }
    Ok(())
}

#[test]
fn the_program_says_which_limit_a_bomb_met() -> Fallible {
    let place = Workplace::new()?;
    place.write("options.yaml", &OPTIONS.replace("  name: soap_bpnn\n", "  name: ./bomb\n"))?;
    place.write("ethanol.xyz", &ethanol_structures(8)?)?;
    fs::create_dir(place.path("bomb"))?;
    fs::write(place.path("bomb/architecture.wasm"), functions(1, &BLOCK.repeat(1_000_000)))?;
    let before = place.entries()?;
    for (limit, words) in [
        ("compile_seconds=0.25", "the limit `compile_seconds`: compiling it takes longer than 0.25 s"),
        (
            "compile_memory_bytes=96MiB",
            "the limit `compile_memory_bytes`: compiling it needs more than 100663296 bytes",
        ),
        ("component_bytes=1MiB", "the limit `component_bytes`: "),
    ] {
        let outcome = place.run(&["train", "options.yaml", "--limit", limit])?;
        assert!(outcome.code == Some(4) && outcome.errors.contains(words), "{limit}: {outcome:?}");
        assert_eq!(place.entries()?, before, "{limit} leaves something behind");
    }
    Ok(())
}

const OPTIONS: &str = "\
seed: 7
architecture:
  name: soap_bpnn
  model:
    soap: {max_angular: 1, max_radial: 1}
    bpnn: {num_hidden_layers: 1, num_neurons_per_layer: 4}
  training: {num_epochs: 1, batch_size: 4}
training_set:
  systems: {read_from: ethanol.xyz, length_unit: angstrom}
  targets:
    energy: {key: energy, unit: eV}
validation_set: 0.25
test_set: 0
";

#[test]
fn two_programs_that_start_together_share_one_cache() -> Fallible {
    let cache = tempfile::tempdir()?;
    let places = [Workplace::new()?, Workplace::new()?, Workplace::new()?];
    let mut children = Vec::new();
    let start = |place: &Workplace| -> Fallible<std::process::Child> {
        place.write("options.yaml", OPTIONS)?;
        place.write("ethanol.xyz", &ethanol_structures(8)?)?;
        let mut command = place.command(&["train", "options.yaml"]);
        command.env("XDG_CACHE_HOME", cache.path()).stdout(std::process::Stdio::null());
        Ok(command.spawn()?)
    };
    for place in &places[..2] {
        children.push(start(place)?);
    }
    for mut child in children {
        assert!(child.wait()?.success());
    }
    let files = || -> Fallible<Vec<(PathBuf, std::time::SystemTime)>> {
        let entries = fs::read_dir(cache.path().join("kilnbox"))?.flatten();
        entries.map(|entry| Ok((entry.path(), entry.metadata()?.modified()?))).collect()
    };
    let before = files()?;
    assert!(before.len() == 1 && before[0].0.extension().is_some_and(|suffix| suffix == "cwasm"), "{before:?}");
    assert!(start(&places[2])?.wait()?.success());
    assert_eq!(files()?, before, "a third program takes what the first two made");
    Ok(())
}
