//! What an architecture finds that was built for WASI: nothing, where the user allows it, and a refusal where not.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use kilnbox_host::{
    Checkpoint, Engine, EngineOptions, HostError, Level, Limits, Metric, Observer, Session, SessionOptions,
};
use kilnbox_tensor::Device;
use kilnbox_tests::repository;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve, WasmExport, WasmExportKind, WorldItem};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;
/// What was logged.
type Messages = Vec<(Level, String)>;

/// Parts of WASI, as its specification has them, and some that are not of WASI 0.2.
const WASI: &str = "
package test:guest;

world guest {
    include kilnbox:architecture/architecture@0.1.0;
    import wasi:cli/environment@0.2.3;
    import wasi:cli/exit@0.2.3;
    import wasi:cli/stdin@0.2.3;
    import wasi:cli/stdout@0.2.3;
    import wasi:cli/stderr@0.2.3;
    import wasi:cli/terminal-stdout@0.2.3;
    import wasi:clocks/monotonic-clock@0.2.0;
    import wasi:clocks/wall-clock@0.2.0;
    import wasi:filesystem/types@0.2.17;
    import wasi:filesystem/preopens@0.2.17;
    import wasi:random/random@0.2.0;
    import wasi:random/insecure-seed@0.2.0;
    import wasi:sockets/tcp-create-socket@0.2.1;
    import wasi:nn/graph@0.2.0;
    import wasi:cli/environment@0.3.0;
    import stranger:thing/door@0.2.0;
}

package wasi:cli@0.2.3 {
    interface environment {
        get-environment: func() -> list<tuple<string, string>>;
        get-arguments: func() -> list<string>;
        initial-cwd: func() -> option<string>;
    }
    interface exit { exit: func(status: result); }
    interface stdin { use wasi:io/streams@0.2.3.{input-stream}; get-stdin: func() -> input-stream; }
    interface stdout { use wasi:io/streams@0.2.3.{output-stream}; get-stdout: func() -> output-stream; }
    interface stderr { use wasi:io/streams@0.2.3.{output-stream}; get-stderr: func() -> output-stream; }
    interface terminal-output { resource terminal-output; }
    interface terminal-stdout { use terminal-output.{terminal-output}; get-terminal-stdout: func() -> option<terminal-output>; }
}
package wasi:cli@0.3.0 { interface environment { get-arguments: func() -> list<string>; } }
package wasi:io@0.2.3 {
    interface error { resource error { to-debug-string: func() -> string; } }
    interface poll {
        resource pollable { ready: func() -> bool; block: func(); }
        poll: func(in: list<borrow<pollable>>) -> list<u32>;
    }
    interface streams {
        use error.{error};
        use poll.{pollable};
        variant stream-error { last-operation-failed(error), closed }
        resource input-stream {
            read: func(len: u64) -> result<list<u8>, stream-error>;
            subscribe: func() -> pollable;
        }
        resource output-stream {
            check-write: func() -> result<u64, stream-error>;
            write: func(contents: list<u8>) -> result<_, stream-error>;
            blocking-flush: func() -> result<_, stream-error>;
            write-zeroes: func(len: u64) -> result<_, stream-error>;
        }
    }
}
package wasi:clocks@0.2.0 {
    interface monotonic-clock {
        use wasi:io/poll@0.2.3.{pollable as moment};
        now: func() -> u64;
        resolution: func() -> u64;
        subscribe-duration: func(when: u64) -> moment;
    }
    interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> datetime; }
}
package wasi:filesystem@0.2.17 {
    interface types { resource descriptor { sync: func() -> result<_, u8>; } }
    interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }
}
package wasi:random@0.2.0 {
    interface random { get-random-bytes: func(len: u64) -> list<u8>; get-random-u64: func() -> u64; }
    interface insecure-seed { insecure-seed: func() -> tuple<u64, u64>; }
}
package wasi:sockets@0.2.1 {
    interface network { enum error-code { unknown } enum ip-address-family { ipv4, ipv6 } }
    interface tcp { resource tcp-socket; }
    interface tcp-create-socket {
        use network.{error-code, ip-address-family};
        use tcp.{tcp-socket};
        create-tcp-socket: func(address-family: ip-address-family) -> result<tcp-socket, error-code>;
    }
}
package wasi:nn@0.2.0 { interface graph { load: func(); } }
package stranger:thing@0.2.0 { interface door { open: func(); } }
";

/// The functions that guests here may call: the name in the text, the import, its core type.
const IMPORTS: &[(&str, &str, &str, &str)] = &[
    ("$environment", "wasi:cli/environment@0.2.3", "get-environment", "(param i32)"),
    ("$arguments", "wasi:cli/environment@0.2.3", "get-arguments", "(param i32)"),
    ("$cwd", "wasi:cli/environment@0.2.3", "initial-cwd", "(param i32)"),
    ("$exit", "wasi:cli/exit@0.2.3", "exit", "(param i32)"),
    ("$stdin", "wasi:cli/stdin@0.2.3", "get-stdin", "(result i32)"),
    ("$stdout", "wasi:cli/stdout@0.2.3", "get-stdout", "(result i32)"),
    ("$stderr", "wasi:cli/stderr@0.2.3", "get-stderr", "(result i32)"),
    ("$terminal", "wasi:cli/terminal-stdout@0.2.3", "get-terminal-stdout", "(param i32)"),
    ("$now", "wasi:clocks/monotonic-clock@0.2.0", "now", "(result i64)"),
    ("$resolution", "wasi:clocks/monotonic-clock@0.2.0", "resolution", "(result i64)"),
    ("$wait", "wasi:clocks/monotonic-clock@0.2.0", "subscribe-duration", "(param i64) (result i32)"),
    ("$date", "wasi:clocks/wall-clock@0.2.0", "now", "(param i32)"),
    ("$sync", "wasi:filesystem/types@0.2.17", "[method]descriptor.sync", "(param i32 i32)"),
    ("$folders", "wasi:filesystem/preopens@0.2.17", "get-directories", "(param i32)"),
    ("$bytes", "wasi:random/random@0.2.0", "get-random-bytes", "(param i64 i32)"),
    ("$word", "wasi:random/random@0.2.0", "get-random-u64", "(result i64)"),
    ("$seed", "wasi:random/insecure-seed@0.2.0", "insecure-seed", "(param i32)"),
    ("$socket", "wasi:sockets/tcp-create-socket@0.2.1", "create-tcp-socket", "(param i32 i32)"),
    ("$read", "wasi:io/streams@0.2.3", "[method]input-stream.read", "(param i32 i64 i32)"),
    ("$subscribe", "wasi:io/streams@0.2.3", "[method]input-stream.subscribe", "(param i32) (result i32)"),
    ("$room", "wasi:io/streams@0.2.3", "[method]output-stream.check-write", "(param i32 i32)"),
    ("$write", "wasi:io/streams@0.2.3", "[method]output-stream.write", "(param i32 i32 i32 i32)"),
    ("$flush", "wasi:io/streams@0.2.3", "[method]output-stream.blocking-flush", "(param i32 i32)"),
    ("$zeroes", "wasi:io/streams@0.2.3", "[method]output-stream.write-zeroes", "(param i32 i64 i32)"),
    ("$drop-output", "wasi:io/streams@0.2.3", "[resource-drop]output-stream", "(param i32)"),
    ("$ready", "wasi:io/poll@0.2.3", "[method]pollable.ready", "(param i32) (result i32)"),
    ("$poll", "wasi:io/poll@0.2.3", "poll", "(param i32 i32 i32)"),
    ("$permutation", "kilnbox:architecture/random@0.1.0", "permutation", "(param i32 i32)"),
    ("$network", "wasi:nn/graph@0.2.0", "load", ""),
    ("$later", "wasi:cli/environment@0.3.0", "get-arguments", "(param i32)"),
    ("$stranger", "stranger:thing/door@0.2.0", "open", ""),
];

/// An architecture whose `describe` does this, and answers with the two numbers that it leaves at `$first` and `$second` as the versions of its checkpoints.
fn guest(body: &str) -> Fallible<Vec<u8>> {
    let mut resolve = Resolve::default();
    resolve.push_dir(repository().join("wit"))?;
    let package = resolve.push_str("guest.wit", WASI)?;
    let world = resolve.select_world(&[package], Some("guest"))?;
    let words: BTreeSet<&str> = body.split(|c: char| !(c.is_alphanumeric() || "$-".contains(c))).collect();
    let mut module = "(module\n".to_owned();
    for (name, interface, function, kind) in IMPORTS {
        if words.contains(name) {
            writeln!(module, "(import {interface:?} {function:?} (func {name} {kind}))")?;
        }
    }
    // Text at 64, results at 1024, the answer at 2048 behind six empty lists and a byte; memory for lists from 4096 on.
    writeln!(
        module,
        r#"(memory (export "memory") 64)
        (data (i32.const 64) "two\nlines and \1b[31mmore")
        (global $first i32 (i32.const 2100)) (global $second i32 (i32.const 2104)) (global $top (mut i32) (i32.const 4096))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $start i32)
            (local.set $start (i32.and (i32.add (global.get $top) (i32.const 7)) (i32.const -8)))
            (global.set $top (i32.add (local.get $start) (local.get 3)))
            (local.get $start))
        (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32) (local $handle i32) (local $count i32)
            {body}
            (i32.const 2048))"#
    )?;
    let mangling = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);
    for (key, item) in &resolve.worlds[world].exports {
        let WorldItem::Interface { id, .. } = item else { continue };
        for func in resolve.interfaces[*id].functions.values() {
            let export = WasmExport::Func { interface: Some(key), func, kind: WasmExportKind::Normal };
            let name = resolve.wasm_export_name(mangling, export);
            let signature = resolve.wasm_signature(AbiVariant::GuestExport, func);
            let kinds = |kinds: &[WasmType]| {
                let name = |kind: &WasmType| match kind {
                    WasmType::I64 | WasmType::PointerOrI64 => "i64",
                    WasmType::F32 => "f32",
                    WasmType::F64 => "f64",
                    WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
                };
                kinds.iter().map(name).collect::<Vec<_>>().join(" ")
            };
            if !name.ends_with("#describe") {
                let (given, returned) = (kinds(&signature.params), kinds(&signature.results));
                writeln!(module, "(func (export {name:?}) (param {given}) (result {returned}) unreachable)")?;
            }
        }
    }
    module.push(')');
    let mut bytes = wat::parse_str(&module).map_err(|error| format!("{error}\nin {module}"))?;
    embed_component_metadata(&mut bytes, &resolve, world, StringEncoding::UTF8)?;
    Ok(ComponentEncoder::default().validate(true).module(&bytes)?.encode()?)
}

/// The log of a session.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Observer for Log {
    fn log(&mut self, level: Level, message: &str) {
        if let Ok(mut lines) = self.0.lock() {
            lines.push((level, message.to_owned()));
        }
    }
    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}
    fn epoch(&mut self, _: u32, _: f64, _: &[Metric]) {}
    fn save_checkpoint(&mut self, _: &str, _: Checkpoint) -> Result<(), String> {
        Ok(())
    }
}

/// What a guest that does this says of itself, or how it ends, and what it logs.
fn describe(body: &str, seed: u64, limits: Limits) -> Fallible<(Result<(u32, u32), HostError>, Messages)> {
    let engine = Engine::new(&EngineOptions { allow_inert_wasi: true, ..EngineOptions::default() })?;
    let component = engine.load(&guest(body)?)?;
    let log = Log::default();
    let options = SessionOptions { device: Device::cpu(), seed, limits, on_overrun: None };
    let mut session = Session::start(&component, options, Box::new(log.clone()))?;
    let answer = session.about().map(|about| (about.model_checkpoint_version, about.trainer_checkpoint_version));
    let lines = log.0.lock().map_err(|error| error.to_string())?.clone();
    Ok((answer, lines))
}

/// The sentence with which a guest that does this traps.
fn trap(body: &str) -> Fallible<String> {
    match describe(body, 0, Limits::default())?.0 {
        Err(HostError::Trapped { message, .. }) => Ok(message),
        other => Err(format!("`{body}`: no trap: {other:?}").into()),
    }
}

/// Loads a guest that calls these functions, without and with permission: what is said of those that refuse it.
fn refusals(functions: &[&str]) -> Fallible<[Option<String>; 2]> {
    // What is named is imported, whether it is called or not.
    let bytes = guest(&format!("(; {} ;)", functions.join(" ")))?;
    let refusal = |allow_inert_wasi| -> Fallible<Option<String>> {
        match Engine::new(&EngineOptions { allow_inert_wasi, ..EngineOptions::default() })?.load(&bytes) {
            Ok(_) => Ok(None),
            Err(HostError::Refused { problem }) => Ok(Some(problem)),
            Err(other) => Err(other.into()),
        }
    };
    Ok([refusal(false)?, refusal(true)?])
}

/// Stores the number that the expression makes as the first answer.
fn first(number: &str) -> String {
    format!("(i32.store (global.get $first) {number})")
}

#[test]
fn there_is_nothing_to_find() -> Fallible {
    let loaded = |call: &str, offset: u32| {
        // What is not written stays 7, and all that is empty or zero is written as 0.
        format!(
            "(i32.store (i32.const {}) (i32.const 7)) {call} {}",
            1024 + offset,
            first(&format!("(i32.load (i32.const {}))", 1024 + offset))
        )
    };
    let byte = |call: &str| {
        format!("(i32.store8 (i32.const 1024) (i32.const 7)) {call} {}", first("(i32.load8_u (i32.const 1024))"))
    };
    let cases = [
        (loaded("(call $environment (i32.const 1024))", 4), 0),
        (loaded("(call $arguments (i32.const 1024))", 4), 0),
        (byte("(call $cwd (i32.const 1024))"), 0),
        (byte("(call $terminal (i32.const 1024))"), 0),
        (loaded("(call $folders (i32.const 1024))", 4), 0),
        (first("(i32.add (i32.const 3) (i32.wrap_i64 (call $now)))"), 3),
        (first("(i32.wrap_i64 (call $resolution))"), 1),
        (loaded("(call $date (i32.const 1024))", 0), 0),
        (loaded("(call $date (i32.const 1024))", 8), 0),
        // An error, and of the two kinds the second: the end.
        (byte("(call $read (call $stdin) (i64.const 10) (i32.const 1024))"), 1),
        (loaded("(call $read (call $stdin) (i64.const 10) (i32.const 1024))", 4), 1),
        (first("(call $ready (call $subscribe (call $stdin)))"), 1),
        // No time passes, so whoever waits for a time does not.
        (first("(call $ready (call $wait (i64.const 1000000000000)))"), 1),
        (
            loaded(
                "(local.set $handle (call $subscribe (call $stdin)))
                (i32.store (i32.const 900) (local.get $handle)) (i32.store (i32.const 904) (local.get $handle))
                (call $poll (i32.const 900) (i32.const 2) (i32.const 1024))",
                4,
            ),
            2,
        ),
        (byte("(call $room (call $stdout) (i32.const 1024))"), 0),
        (byte("(call $flush (call $stdout) (i32.const 1024))"), 0),
    ];
    for (body, expected) in cases {
        let (answer, _) = describe(&body, 0, Limits::default())?;
        assert_eq!(answer.map(|(first, _)| first).map_err(|error| format!("{body}: {error}")), Ok(expected), "{body}");
    }
    Ok(())
}

#[test]
fn what_has_nothing_behind_it_traps_and_says_so() -> Fallible {
    let cases = [
        (
            "(call $socket (i32.const 0) (i32.const 1024))",
            "`wasi:sockets/tcp-create-socket#create-tcp-socket` has nothing behind it",
        ),
        (
            "(call $zeroes (call $stdout) (i64.const 1) (i32.const 1024))",
            "`wasi:io/streams#[method]output-stream.write-zeroes` has nothing behind it",
        ),
        ("(call $exit (i32.const 1))", "`wasi:cli/exit`, with the exit code 1"),
        ("(call $exit (i32.const 0))", "`wasi:cli/exit`, with the exit code 0"),
        ("(call $bytes (i64.const 0x10000000000) (i32.const 1024))", "asked for 1099511627776 bytes at once"),
        // Handles that nobody gave.
        ("(call $sync (i32.const 1) (i32.const 1024))", "unknown handle index 1"),
        ("(call $write (i32.const 99) (i32.const 64) (i32.const 3) (i32.const 1024))", "unknown handle index 99"),
        (
            "(call $write (call $stdin) (i32.const 64) (i32.const 3) (i32.const 1024))",
            "handle index 1 used with the wrong type",
        ),
        (
            "(local.set $handle (call $stdout)) (call $drop-output (local.get $handle))
            (call $write (local.get $handle) (i32.const 64) (i32.const 3) (i32.const 1024))",
            "unknown handle index 1",
        ),
    ];
    for (body, expected) in cases {
        let message = trap(body)?;
        assert!(message.contains(expected), "`{body}`: `{message}` is not `{expected}`");
    }
    Ok(())
}

#[test]
fn output_becomes_lines_of_the_log() -> Fallible {
    let body = "(call $write (call $stdout) (i32.const 64) (i32.const 8) (i32.const 1024))
        (call $write (call $stderr) (i32.const 64) (i32.const 4) (i32.const 1024))
        (call $write (call $stdout) (i32.const 72) (i32.const 15) (i32.const 1024))";
    let (answer, log) = describe(body, 0, Limits::default())?;
    answer?;
    let expected = [(Level::Info, "two"), (Level::Warning, "two"), (Level::Info, "lines and \\u{1b}[31mmore")];
    assert_eq!(log, expected.map(|(level, line)| (level, line.to_owned())));
    Ok(())
}

#[test]
fn output_and_handles_have_limits() -> Fallible {
    let write = "(local.set $handle (call $stdout))
        (loop $more
            (call $write (local.get $handle) (i32.const 64) (i32.const 4) (i32.const 1024))
            (br_if $more (i32.lt_u (local.tee $count (i32.add (local.get $count) (i32.const 1))) (i32.const 1000))))";
    let (answer, log) = describe(write, 0, Limits { log_lines: 5, ..Limits::default() })?;
    answer?;
    assert_eq!(log.iter().filter(|(_, line)| line == "two").count(), 5, "{log:?}");

    // Without an end of line, memory is not filled: 16 times a MiB is 4096 lines and not one.
    let long = "(local.set $handle (call $stdout))
        (loop $more
            (call $write (local.get $handle) (i32.const 65536) (i32.const 1048576) (i32.const 1024))
            (br_if $more (i32.lt_u (local.tee $count (i32.add (local.get $count) (i32.const 1))) (i32.const 16))))";
    let (answer, log) = describe(long, 0, Limits { log_bytes_per_second: u64::MAX, ..Limits::default() })?;
    answer?;
    assert_eq!(log.len(), 4096);

    let flood = |handles: u32| {
        format!("(loop $more (drop (call $stdout))
            (br_if $more (i32.lt_u (local.tee $count (i32.add (local.get $count) (i32.const 1))) (i32.const {handles}))))")
    };
    let limits = || Limits { handles: 100, ..Limits::default() };
    assert!(describe(&flood(100), 0, limits())?.0.is_ok());
    let (answer, _) = describe(&flood(101), 0, limits())?;
    assert!(matches!(answer, Err(HostError::Limit { limit: "handles", .. })), "{answer:?}");
    Ok(())
}

#[test]
fn randomness_is_the_seeds_and_not_the_runs() -> Fallible {
    let draw = "(call $bytes (i64.const 4) (i32.const 1024))
        (i32.store (global.get $first) (i32.load (i32.load (i32.const 1024))))
        (call $seed (i32.const 1024))
        (i32.store (global.get $second) (i32.xor (i32.load (i32.const 1024)) (i32.wrap_i64 (call $word))))";
    let drawn = |seed| -> Fallible<(u32, u32)> { Ok(describe(draw, seed, Limits::default())?.0?) };
    assert_eq!(drawn(7)?, drawn(7)?);
    assert_ne!(drawn(7)?.0, drawn(8)?.0);
    assert_ne!(drawn(7)?.1, drawn(8)?.1);

    // The order that the run's own stream makes of a million numbers, by its first and last.
    let permute = "(call $permutation (i32.const 100000) (i32.const 1024))
        (i32.store (global.get $first) (i32.load (i32.load (i32.const 1024))))
        (i32.store (global.get $second) (i32.load offset=399996 (i32.load (i32.const 1024))))";
    let undisturbed = describe(permute, 7, Limits::default())?.0?;
    let disturbed = describe(&format!("{draw} {permute}"), 7, Limits::default())?.0?;
    assert_eq!(disturbed, undisturbed, "what comes through WASI shifts the run's random numbers");
    Ok(())
}

#[test]
fn without_permission_it_is_refused_and_told_of_it() -> Fallible {
    let [without, with] = refusals(&["$now", "$word"])?;
    let without = without.ok_or("accepted without permission")?;
    for words in ["`wasi:clocks/monotonic-clock@0.2.0`, `wasi:random/random@0.2.0`", "--allow-inert-wasi"] {
        assert!(without.contains(words), "{without}");
    }
    assert_eq!(with, None);
    for stranger in ["$network", "$stranger"] {
        for refusal in refusals(&["$now", stranger])? {
            let refusal = refusal.ok_or_else(|| format!("{stranger} is accepted"))?;
            assert!(
                refusal.contains("wasi:nn/graph@0.2.0") || refusal.contains("stranger:thing/door@0.2.0"),
                "{refusal}"
            );
            assert!(!refusal.contains("--allow-inert-wasi"), "it would not help: {refusal}");
        }
    }
    Ok(())
}

#[test]
fn only_wasi_of_this_version_is_served() -> Fallible {
    for (function, import) in [("$network", "`wasi:nn/graph@0.2.0`"), ("$later", "`wasi:cli/environment@0.3.0`")] {
        let [_, with] = refusals(&[function])?;
        assert!(with.as_ref().is_some_and(|refusal| refusal.contains(import)), "{import}: {with:?}");
    }
    Ok(())
}
