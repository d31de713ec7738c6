//! WASI with nothing behind it, for architectures from other languages' toolchains, and for clients.
//!
//! Such toolchains build programs that ask for files, sockets and an environment whether they use them or not. Where the user allows it, their imports of
//! WASI 0.2 are served like this: there is no folder, no socket, no variable and no argument; clocks read zero; randomness comes from a stream of its own
//! with the run's seed; standard input is at its end; standard output and error become lines of the log, within its limits. Everything else traps
//! with a sentence that names it. Clients have arguments beside that, and what they write is not a log but their result.

use kilnbox_tensor::random::Random;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime::{Error, Result, StoreContextMut};

use super::{Other, State, limit};
use crate::service::report::{Level, Reporter};

/// The packages of WASI 0.2. Others (`wasi:nn`, for one) promise work rather than a surrounding, and doing nothing is no answer to that.
const PACKAGES: [&str; 7] = ["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];
/// The most interfaces that one component may ask for: WASI 0.2 has about forty, and a program may be built of parts of several versions.
pub(crate) const MOST_INTERFACES: usize = 500;
/// The longest line of an architecture's output, in bytes; more is another line.
const LONGEST_LINE: usize = 4096;
/// The longest line of a client's, which is not cut for people to read.
const LONGEST_LINE_OF_CLIENT: usize = 1 << 20;
/// What one write may bring, by the contract of `check-write`. C libraries write no more, others are not stopped: the log has its own limits.
const WRITE_BYTES: u64 = 65536;
/// The most random bytes of one call. Programs ask for a few, to seed their own generators.
const MOST_RANDOM_BYTES: u64 = 1 << 20;

/// The interface that an import of WASI 0.2 names, without package's prefix and version: `io/streams` of `wasi:io/streams@0.2.6`.
pub(crate) fn interface(import: &str) -> Option<&str> {
    let (interface, version) = import.strip_prefix("wasi:")?.split_once('@')?;
    let (package, _) = interface.split_once('/')?;
    let patch = version.strip_prefix("0.2.")?;
    let is_number = !patch.is_empty() && patch.bytes().all(|byte| byte.is_ascii_digit());
    (PACKAGES.contains(&package) && is_number).then_some(interface)
}

/// What one instance has of WASI.
pub(crate) struct InertWasi {
    random: Random,
    arguments: Vec<String>,
    output: Line,
    errors: Line,
    /// How much a client may still write; an architecture's lines are bounded where they are logged.
    output_left: Option<u64>,
}

/// The beginning of a line of output.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    is_of_client: bool,
}

/// A client that ended itself, with this exit code.
#[derive(Debug)]
pub(crate) struct Exited(pub(crate) u8);

impl std::fmt::Display for Exited {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "it called `wasi:cli/exit`, with the exit code {}", self.0)
    }
}

impl std::error::Error for Exited {}

/// Standard output or standard error.
#[derive(Clone, Copy)]
enum OutputStream {
    Output,
    Errors,
}

/// Standard input, which is at its end.
struct InputStream;
/// Something to wait for, which has happened.
struct Pollable;
/// A resource that nobody is ever given: a descriptor, a socket, an error.
struct Nothing;

impl Other for OutputStream {}

impl Other for InputStream {}

impl Other for Pollable {}

impl Other for Nothing {}

/// As `wasi:io/streams` declares it, though nothing here fails.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<Nothing>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

impl InertWasi {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::beside(seed),
            arguments: Vec::new(),
            output: Line::default(),
            errors: Line::default(),
            output_left: None,
        }
    }

    /// What a client has beside: its arguments, and room for long lines, but no more than `most_bytes` in all.
    pub(crate) fn equip_client(&mut self, arguments: Vec<String>, most_bytes: u64) {
        self.arguments = arguments;
        self.output_left = Some(most_bytes);
        (self.output.is_of_client, self.errors.is_of_client) = (true, true);
    }

    /// Logs what was written without an end of line.
    pub(crate) fn end_lines(&mut self, reporter: &mut Reporter) {
        for (line, level) in [(&mut self.output, Level::Info), (&mut self.errors, Level::Warning)] {
            if !line.bytes.is_empty() {
                line.end(level, reporter);
            }
        }
    }
}

impl Line {
    fn longest(&self) -> usize {
        if self.is_of_client { LONGEST_LINE_OF_CLIENT } else { LONGEST_LINE }
    }

    fn write(&mut self, bytes: &[u8], level: Level, reporter: &mut Reporter) {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let mut rest = text;
            while self.bytes.len() + rest.len() > self.longest() {
                let (now, later) = rest.split_at(self.longest() - self.bytes.len());
                self.bytes.extend_from_slice(now);
                self.end(level, reporter);
                rest = later;
            }
            self.bytes.extend_from_slice(rest);
            if ended {
                self.end(level, reporter);
            }
        }
    }

    fn end(&mut self, level: Level, reporter: &mut Reporter) {
        let line = String::from_utf8_lossy(&self.bytes);
        if self.is_of_client {
            reporter.output(level, &line)
        } else {
            reporter.log(level, &line)
        }
        self.bytes.clear();
    }
}

impl State {
    fn write(&mut self, stream: &Resource<OutputStream>, bytes: &[u8]) -> Result<()> {
        if let Some(left) = &mut self.inert_wasi.output_left {
            let most = self.limits.disk_bytes;
            *left = left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| limit("disk_bytes", format!("it would write more than {most} bytes")))?;
        }
        let (line, level) = match self.handles.get(stream)? {
            OutputStream::Output => (&mut self.inert_wasi.output, Level::Info),
            OutputStream::Errors => (&mut self.inert_wasi.errors, Level::Warning),
        };
        line.write(bytes, level, &mut self.reporter);
        Ok(())
    }

    fn random_bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > MOST_RANDOM_BYTES {
            return Err(Error::msg(format!(
                "`wasi:random` was asked for {count} bytes at once, and gives at most {MOST_RANDOM_BYTES}"
            )));
        }
        Ok(self.inert_wasi.random.bytes(count as usize))
    }
}

/// Serves those of the component's imports that are of WASI 0.2.
pub(crate) fn add_to_linker(linker: &mut Linker<State>, component: &Component) -> Result<()> {
    let engine = linker.engine().clone();
    // Interfaces hand resources on to others, under any name. Those with something behind them have to stay what they were.
    let mut known: Vec<(ResourceType, Kind)> = Vec::new();
    for (name, import) in component.component_type().imports(&engine) {
        let (Some(interface), ComponentItem::ComponentInstance(instance)) = (interface(name), import.ty) else {
            continue;
        };
        let mut linker = linker.instance(name)?;
        for (member, export) in instance.exports(&engine) {
            match export.ty {
                ComponentItem::Resource(kind) => {
                    let known_kind = known.iter().find(|(other, _)| *other == kind).map(|(_, kind)| *kind);
                    let declared = Kind::of(interface, member);
                    if known_kind.is_none() && declared != Kind::Nothing {
                        known.push((kind, declared));
                    }
                    known_kind.unwrap_or(declared).add_to_linker(&mut linker, member)?;
                }
                ComponentItem::ComponentFunc(_) => add_function(&mut linker, interface, member)?,
                // Types are checked where functions use them.
                _ => {}
            }
        }
    }
    Ok(())
}

/// What a resource of the guest's is here.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    InputStream,
    OutputStream,
    Pollable,
    Nothing,
}

impl Kind {
    /// What the resource is that this interface declares.
    fn of(interface: &str, resource: &str) -> Self {
        match (interface, resource) {
            ("io/streams", "input-stream") => Self::InputStream,
            ("io/streams", "output-stream") => Self::OutputStream,
            ("io/poll", "pollable") => Self::Pollable,
            _ => Self::Nothing,
        }
    }

    fn add_to_linker(self, linker: &mut LinkerInstance<'_, State>, name: &str) -> Result<()> {
        fn add<T: Other>(linker: &mut LinkerInstance<'_, State>, name: &str) -> Result<()> {
            linker.resource(name, ResourceType::host::<T>(), |mut store: StoreContextMut<'_, State>, handle| {
                store.data_mut().handles.take(Resource::<T>::new_own(handle))?;
                Ok(())
            })
        }
        match self {
            Self::InputStream => add::<InputStream>(linker, name),
            Self::OutputStream => add::<OutputStream>(linker, name),
            Self::Pollable => add::<Pollable>(linker, name),
            Self::Nothing => add::<Nothing>(linker, name),
        }
    }
}

/// The few functions with an answer; all others trap.
fn add_function(linker: &mut LinkerInstance<'_, State>, interface: &str, name: &str) -> Result<()> {
    type Store<'a> = StoreContextMut<'a, State>;
    type Output = Resource<OutputStream>;
    type Input = Resource<InputStream>;
    type Streamed<T> = Result<(std::result::Result<T, StreamError>,)>;

    /// A function of no arguments whose answer is always the same.
    fn constant<T, F>(linker: &mut LinkerInstance<'_, State>, name: &str, answer: F) -> Result<()>
    where
        F: Fn() -> T + Send + Sync + 'static,
        (T,): wasmtime::component::ComponentNamedList + Lower + 'static,
    {
        linker.func_wrap(name, move |_: Store<'_>, (): ()| Ok((answer(),)))
    }
    fn pollable(mut store: Store<'_>) -> Result<(Resource<Pollable>,)> {
        Ok((store.data_mut().hand_out(Pollable)?,))
    }
    fn stream(mut store: Store<'_>, stream: OutputStream) -> Result<(Output,)> {
        Ok((store.data_mut().hand_out(stream)?,))
    }

    match (interface, name) {
        ("cli/environment", "get-environment") => constant(linker, name, Vec::<(String, String)>::new),
        ("cli/environment", "get-arguments") => {
            linker.func_wrap(name, |store: Store<'_>, (): ()| Ok((store.data().inert_wasi.arguments.clone(),)))
        }
        ("cli/environment", "initial-cwd") => constant(linker, name, || None::<String>),
        ("cli/exit", "exit") => {
            linker.func_wrap(name, |_, (status,): (std::result::Result<(), ()>,)| exit(u8::from(status.is_err())))
        }
        ("cli/exit", "exit-with-code") => linker.func_wrap(name, |_, (code,): (u8,)| exit(code)),
        ("cli/stdin", "get-stdin") => {
            linker.func_wrap(name, |mut store: Store<'_>, (): ()| Ok((store.data_mut().hand_out(InputStream)?,)))
        }
        ("cli/stdout", "get-stdout") => linker.func_wrap(name, |store, (): ()| stream(store, OutputStream::Output)),
        ("cli/stderr", "get-stderr") => linker.func_wrap(name, |store, (): ()| stream(store, OutputStream::Errors)),
        ("cli/terminal-stdin", "get-terminal-stdin")
        | ("cli/terminal-stdout", "get-terminal-stdout")
        | ("cli/terminal-stderr", "get-terminal-stderr") => constant(linker, name, || None::<Resource<Nothing>>),
        ("clocks/monotonic-clock", "now") => constant(linker, name, || 0_u64),
        ("clocks/monotonic-clock", "resolution") => constant(linker, name, || 1_u64),
        ("clocks/monotonic-clock", "subscribe-instant" | "subscribe-duration") => {
            linker.func_wrap(name, |store, (_,): (u64,)| pollable(store))
        }
        ("clocks/wall-clock", "now") => constant(linker, name, || Datetime { seconds: 0, nanoseconds: 0 }),
        ("clocks/wall-clock", "resolution") => constant(linker, name, || Datetime { seconds: 0, nanoseconds: 1 }),
        ("filesystem/preopens", "get-directories") => constant(linker, name, Vec::<(Resource<Nothing>, String)>::new),
        ("io/poll", "[method]pollable.ready") => linker.func_wrap(name, |_, (_,): (Resource<Pollable>,)| Ok((true,))),
        ("io/poll", "[method]pollable.block") => linker.func_wrap(name, |_, (_,): (Resource<Pollable>,)| Ok(())),
        ("io/poll", "poll") => linker.func_wrap(name, |_, (pollables,): (Vec<Resource<Pollable>>,)| {
            // A list that is longer than this can count does not fit into a guest's memory.
            Ok(((0..pollables.len() as u32).collect::<Vec<u32>>(),))
        }),
        ("io/streams", "[method]input-stream.read" | "[method]input-stream.blocking-read") => {
            linker.func_wrap(name, |_, _: (Input, u64)| -> Streamed<Vec<u8>> { Ok((Err(StreamError::Closed),)) })
        }
        ("io/streams", "[method]input-stream.skip" | "[method]input-stream.blocking-skip") => {
            linker.func_wrap(name, |_, _: (Input, u64)| -> Streamed<u64> { Ok((Err(StreamError::Closed),)) })
        }
        ("io/streams", "[method]input-stream.subscribe") => {
            linker.func_wrap(name, |store, (_,): (Input,)| pollable(store))
        }
        ("io/streams", "[method]output-stream.subscribe") => {
            linker.func_wrap(name, |store, (_,): (Output,)| pollable(store))
        }
        ("io/streams", "[method]output-stream.check-write") => {
            linker.func_wrap(name, |_, (_,): (Output,)| -> Streamed<u64> { Ok((Ok(WRITE_BYTES),)) })
        }
        ("io/streams", "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush") => linker
            .func_wrap(name, |mut store: Store<'_>, (stream, bytes): (Output, Vec<u8>)| -> Streamed<()> {
                store.data_mut().write(&stream, &bytes)?;
                Ok((Ok(()),))
            }),
        ("io/streams", "[method]output-stream.flush" | "[method]output-stream.blocking-flush") => {
            linker.func_wrap(name, |_, (_,): (Output,)| -> Streamed<()> { Ok((Ok(()),)) })
        }
        ("random/random", "get-random-bytes") | ("random/insecure", "get-insecure-random-bytes") => linker
            .func_wrap(name, |mut store: Store<'_>, (count,): (u64,)| Ok((store.data_mut().random_bytes(count)?,))),
        ("random/random", "get-random-u64") | ("random/insecure", "get-insecure-random-u64") => {
            linker.func_wrap(name, |mut store: Store<'_>, (): ()| Ok((store.data_mut().inert_wasi.random.word(),)))
        }
        ("random/insecure-seed", "insecure-seed") => linker.func_wrap(name, |mut store: Store<'_>, (): ()| {
            let random = &mut store.data_mut().inert_wasi.random;
            Ok(((random.word(), random.word()),))
        }),
        _ => {
            let sentence = format!("`wasi:{interface}#{name}` has nothing behind it");
            linker.func_new(name, move |_, _, _, _| Err(Error::msg(sentence.clone())))
        }
    }
}

/// A program that ends itself ends a run that is not done.
fn exit(code: u8) -> Result<()> {
    Err(Exited(code).into())
}
