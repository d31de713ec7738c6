//! Compiling a component, which strangers' bytes can make slow, hungry, or fatal.
//!
//! wasmtime promises that what it compiles cannot leave the sandbox. It does not promise that compiling ends soon or fits into memory: a small file
//! can hold a function with a million blocks. So the program compiles in a child of its own with limits on its time and memory, and survives
//! whatever becomes of the child.
//!
//! The child is the program itself. Parent and child speak over pipes: the parent writes [`Order`] and the component, and closes; the child answers
//! with one byte that says what follows, and the rest is native code or a sentence. It writes no files, so none are left when it is killed.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::engine::{Settings, new_engine};
use crate::error::{HostError, panic_message, printable};
use crate::limits::Limits;

/// Where components are compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Compiler {
    /// In this process, on this thread's stack, with no bound on time or memory. For components that are trusted not to be a bomb, and for tests.
    #[default]
    InProcess,
    /// In a child process, within `compile_seconds` and `compile_memory_bytes` of [`Limits`].
    Child {
        /// The program to start: its `main` calls [`compile_for_parent`] for these arguments. It must be built from the same code as this process.
        program: PathBuf,
        /// What tells the program that it is such a child.
        arguments: Vec<OsString>,
    },
}

impl Compiler {
    /// Native code for the component, as wasmtime's own file format, for an engine of these settings.
    ///
    /// # Errors
    /// [`HostError::Refused`] in the compiler's words, or [`HostError::Limit`].
    pub(crate) fn compile(&self, settings: Settings, component: &[u8], limits: &Limits) -> Result<Vec<u8>, HostError> {
        match self {
            Self::InProcess => {
                let engine = new_engine(settings)?;
                compile(&engine, component).map_err(|(_, problem)| HostError::refused(printable(&problem)))
            }
            Self::Child { program, arguments } => compile_in_child(program, arguments, settings, component, limits),
        }
    }
}

/// The most threads of a child: a few are as fast as many, and each takes address space, which is limited.
const MOST_THREADS: usize = 8;
/// The stack of each of its threads.
const THREAD_STACK: usize = 16 << 20;
/// The most that is read of what a child writes to its standard error, where Rust's runtime says why it aborts.
const MOST_ERRORS: u64 = 1 << 16;

/// What the compiler's panic says where it cannot go on for want of memory.
const OUT_OF_MEMORY: &str = "out-of-memory";

/// The first byte of a child's answer.
mod answer {
    /// Native code follows.
    pub(super) const CODE: u8 = b'c';
    /// The compiler's reason for refusing the component follows.
    pub(super) const REFUSAL: u8 = b'r';
    /// It could not begin for want of memory.
    pub(super) const MEMORY: u8 = b'm';
    /// The child's own failure follows.
    pub(super) const FAILURE: u8 = b'f';
}

/// What a parent asks of its child, ahead of the component.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Order {
    memory_bytes: u64,
    seconds: f64,
    /// The settings of the engine, which the child's must be like.
    settings: Settings,
}

impl Order {
    const SIZE: usize = 40;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.memory_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seconds.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.settings.stack_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&u64::from(self.settings.has_deadlines).to_le_bytes());
        bytes[32..].copy_from_slice(&u64::from(self.settings.any_processor).to_le_bytes());
        bytes
    }

    fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut next = || {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes).map(|()| bytes)
        };
        Ok(Self {
            memory_bytes: u64::from_le_bytes(next()?),
            seconds: f64::from_le_bytes(next()?),
            settings: Settings {
                stack_bytes: u64::from_le_bytes(next()?),
                has_deadlines: u64::from_le_bytes(next()?) != 0,
                any_processor: u64::from_le_bytes(next()?) != 0,
            },
        })
    }
}

/// A child that does not outlive its parent's interest.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended and was waited for, which is what this is to bring about.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn compile_in_child(
    program: &Path,
    arguments: &[OsString],
    settings: Settings,
    component: &[u8],
    limits: &Limits,
) -> Result<Vec<u8>, HostError> {
    let failed = |error: io::Error| HostError::Bug(format!("the compiler's process cannot be started: {error}"));
    let order = Order { memory_bytes: limits.compile_memory_bytes, seconds: limits.compile_seconds, settings };
    let child = Command::new(program)
        .args(arguments)
        // A child that is out of memory shall end, and not look up where it was.
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut child = Running(child);
    let (Some(mut input), Some(output), Some(errors)) =
        (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take())
    else {
        return Err(HostError::Bug("the compiler's process has no pipes".to_owned()));
    };
    // Each pipe has a thread of its own, so that neither side ever waits for the other to empty one.
    std::thread::scope(|scope| {
        // Inside the scope: its threads end only when the child has.
        let mut child = child;
        let (sender, receiver) = mpsc::channel();
        let named = || std::thread::Builder::new().name("compiler's pipe".to_owned());
        named()
            .spawn_scoped(scope, move || {
                // A child that stops reading has a reason, which its answer or its end tells.
                let _ = input.write_all(&order.to_bytes()).and_then(|()| input.write_all(component));
            })
            .map_err(failed)?;
        let errors = named().spawn_scoped(scope, move || read_at_most(errors, MOST_ERRORS)).map_err(failed)?;
        named()
            .spawn_scoped(scope, move || {
                // Code cannot be larger than the memory in which it was made.
                let _ = sender.send(read_at_most(output, order.memory_bytes));
            })
            .map_err(failed)?;
        let time = Duration::try_from_secs_f64(order.seconds).unwrap_or(Duration::MAX);
        let Ok(mut answer) = receiver.recv_timeout(time) else {
            return Err(out_of_time(order.seconds));
        };
        let status = child.0.wait().map_err(|error| HostError::Bug(format!("the compiler's process: {error}")))?;
        let errors = errors.join().unwrap_or_default();
        let kind = answer.first().copied().filter(|_| status.success());
        let words = || printable(&String::from_utf8_lossy(answer.get(1..).unwrap_or_default()));
        match kind {
            Some(answer::CODE) => {
                answer.remove(0);
                Ok(answer)
            }
            Some(answer::REFUSAL) => Err(HostError::refused(words())),
            Some(answer::MEMORY) => Err(out_of_memory(order.memory_bytes)),
            Some(answer::FAILURE) => Err(HostError::Bug(format!("the compiler's process: {}", words()))),
            _ => Err(explain_end(status, &String::from_utf8_lossy(&errors), order)),
        }
    })
}

/// What comes through a pipe until it closes; what is beyond `most` is left, and whoever writes it finds the pipe closed.
fn read_at_most(pipe: impl Read, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A pipe that breaks has said what it had to say.
    let _ = pipe.take(most).read_to_end(&mut bytes);
    bytes
}

/// Why a child ended without an answer.
fn explain_end(status: ExitStatus, errors: &str, order: Order) -> HostError {
    // What Rust's runtime writes before it aborts is all that tells these two from other aborts.
    if errors.contains("memory allocation of") {
        return out_of_memory(order.memory_bytes);
    }
    if errors.contains("has overflowed its stack") {
        return HostError::refused("it cannot be compiled: the compiler's stack is not deep enough for it");
    }
    if status.code().is_some() {
        let errors = printable(errors.lines().next().unwrap_or_default());
        return HostError::Bug(format!("the compiler's process did not answer ({status}): {errors}"));
    }
    if ended_by_processor_time(status) {
        return out_of_time(order.seconds);
    }
    HostError::refused(format!("it cannot be compiled: the compiler crashed ({status})"))
}

#[cfg(unix)]
fn ended_by_processor_time(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;
    status.signal() == Some(rustix::process::Signal::XCPU.as_raw())
}

#[cfg(not(unix))]
fn ended_by_processor_time(_: ExitStatus) -> bool {
    false
}

fn out_of_time(seconds: f64) -> HostError {
    HostError::Limit { limit: "compile_seconds", message: format!("compiling it takes longer than {seconds} s") }
}

fn out_of_memory(bytes: u64) -> HostError {
    HostError::Limit {
        limit: "compile_memory_bytes",
        message: format!("compiling it needs more than {bytes} bytes of memory"),
    }
}

/// What a program does that was started as the child of [`Compiler::Child`], and nothing else: limits itself, reads a component from standard
/// input, and writes native code or a reason to standard output.
pub fn compile_for_parent() -> ExitCode {
    let mut output = io::stdout().lock();
    let (kind, words) = match follow_order(&mut io::stdin().lock()) {
        Ok(code) => (answer::CODE, code),
        Err((kind, words)) => (kind, words.into_bytes()),
    };
    // Without its parent, a child has nobody to tell.
    match output.write_all(&[kind]).and_then(|()| output.write_all(&words)).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn follow_order(input: &mut impl Read) -> Result<Vec<u8>, (u8, String)> {
    let failure = |error: &dyn std::fmt::Display| (answer::FAILURE, error.to_string());
    let order = Order::read(input).map_err(|error| failure(&error))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    limit_this_process(order, threads as u64).map_err(|error| failure(&error))?;
    let mut component = Vec::new();
    input.read_to_end(&mut component).map_err(|error| match error.kind() {
        io::ErrorKind::OutOfMemory => (answer::MEMORY, String::new()),
        _ => failure(&error),
    })?;
    let engine = new_engine(order.settings).map_err(|error| failure(&error))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .stack_size(THREAD_STACK)
        .build()
        .map_err(|_| (answer::MEMORY, String::new()))?;
    pool.install(|| compile(&engine, &component))
}

/// Bounds the memory and the processor time of this process, and keeps it from writing files.
#[cfg(unix)]
fn limit_this_process(order: Order, threads: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The parent ends a child that takes too long. Should the parent be gone, this does.
    let processor_seconds = (order.seconds.ceil() as u64).saturating_mul(threads).saturating_add(1);
    let limits = [(Resource::Core, 0), (Resource::Fsize, 0), (Resource::Cpu, processor_seconds)];
    // Elsewhere, address space is reserved freely or cannot be bounded.
    #[cfg(target_os = "linux")]
    let limits = limits.into_iter().chain([(Resource::As, order.memory_bytes)]);
    for (resource, most) in limits {
        // Nobody may raise a limit that is already lower.
        let present = getrlimit(resource);
        let lower = |limit: Option<u64>| Some(limit.map_or(most, |limit| limit.min(most)));
        setrlimit(resource, Rlimit { current: lower(present.current), maximum: present.maximum })?;
    }
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

#[cfg(not(unix))]
fn limit_this_process(_: Order, _: u64) -> io::Result<()> {
    Ok(())
}

/// Compiles here and now. What is wrong with the component is told as a child would answer, with a sentence.
fn compile(engine: &wasmtime::Engine, component: &[u8]) -> Result<Vec<u8>, (u8, String)> {
    // A compiler that panics on hostile bytes must not take the program with it.
    match catch_unwind(AssertUnwindSafe(|| engine.precompile_component(component))) {
        Ok(Ok(code)) => Ok(code),
        Ok(Err(error)) => {
            let kind = if error.is::<wasmtime::OutOfMemory>() { answer::MEMORY } else { answer::REFUSAL };
            Err((kind, format!("it cannot be compiled: {error:#}")))
        }
        Err(panic) => {
            let message = panic_message(&*panic);
            let kind = if message.contains(OUT_OF_MEMORY) { answer::MEMORY } else { answer::REFUSAL };
            Err((kind, format!("it cannot be compiled: the compiler failed: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_arrives_as_it_was_sent() {
        let order = Order {
            memory_bytes: u64::MAX - 1,
            seconds: 0.125,
            settings: Settings { stack_bytes: 7, has_deadlines: false, any_processor: true },
        };
        assert_eq!(Order::read(&mut order.to_bytes().as_slice()).ok(), Some(order));
        assert!(Order::read(&mut &order.to_bytes()[..Order::SIZE - 1]).is_err());
    }

    /// What a parent makes of a child that does what this script says, whatever was asked of it.
    #[cfg(unix)]
    fn outcome(script: &str) -> String {
        let limits = Limits { compile_seconds: 5.0, compile_memory_bytes: 1 << 20, ..Limits::default() };
        // Larger than a pipe's buffer: a child that does not read must not stop the parent.
        let component = vec![0; 1 << 20];
        let settings = Settings::of(&limits);
        match compile_in_child(Path::new("sh"), &["-c".into(), script.into()], settings, &component, &limits) {
            Ok(code) => format!("code {}", String::from_utf8_lossy(&code)),
            Err(HostError::Limit { limit, message }) => format!("{limit}: {message}"),
            Err(error) => error.to_string(),
        }
    }

    #[cfg(unix)]
    #[test]
    fn whatever_becomes_of_the_child_the_parent_explains_it() {
        let cases = [
            ("printf cnative", "code native"),
            ("cat > /dev/null; printf cnative", "code native"),
            ("printf r'it cannot be compiled: \\033[2J'", "refused: it cannot be compiled: \\u{1b}[2J"),
            ("printf m", "compile_memory_bytes: compiling it needs more than 1048576 bytes of memory"),
            ("printf 'fno engine'", "internal error: the compiler's process: no engine"),
            ("kill -SEGV $$", "refused: it cannot be compiled: the compiler crashed (signal: 11"),
            // Half an answer of a child that then crashes is none.
            ("printf cnati; kill -ABRT $$", "refused: it cannot be compiled: the compiler crashed (signal: 6"),
            ("kill -XCPU $$", "compile_seconds: compiling it takes longer than 5 s"),
            ("echo 'memory allocation of 4096 bytes failed' >&2; kill -ABRT $$", "compile_memory_bytes: "),
            ("echo \"thread '<unnamed>' has overflowed its stack\" >&2; kill -ABRT $$", "stack is not deep enough"),
            ("echo 'unknown command' >&2; exit 1", "did not answer (exit status: 1): unknown command"),
            ("", "did not answer (exit status: 0)"),
            // Whoever never stops writing meets a closed pipe.
            ("yes >&2; exit 3", "did not answer (exit status: 3): y"),
            ("exec sleep 60", "compile_seconds: compiling it takes longer than 5 s"),
        ];
        std::thread::scope(|scope| {
            for (script, expected) in cases {
                scope.spawn(move || {
                    let found = outcome(script);
                    assert!(found.contains(expected), "`{script}`: `{found}` is not `{expected}`");
                });
            }
        });
        let unlimited = Limits::default();
        let missing = compile_in_child(Path::new("/no/such/program"), &[], Settings::of(&unlimited), b"", &unlimited);
        assert!(matches!(missing, Err(HostError::Bug(_))), "{missing:?}");
    }
}
