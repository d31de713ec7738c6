//! From the bytes of a component to compiled code that may be run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use wasmtime::component::{Component as Compiled, Linker};
use wasmtime::{Config, OptLevel};

use crate::CONTRACT_VERSION;
use crate::cache::{CodeCache, ShippedCode};
use crate::client::{ClientComponent, ENTRY};
use crate::compile::Compiler;
use crate::deadline::TICK;
use crate::error::{HostError, printable};
use crate::imports::imported_names;
use crate::limits::Limits;
use crate::serve::bindings::ArchitecturePre;
use crate::serve::{self, State, inert_wasi, neural_network};

/// Every interface of the contract has this prefix.
const CONTRACT: &str = "kilnbox:architecture/";
/// The most imports that a refusal lists: more than any honest component has.
const MOST_LISTED: usize = 100;
/// The longest name of an import that a refusal shows, in characters.
const LONGEST_NAME: usize = 256;

/// How components are compiled.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Where compiled code is kept from one run to the next; none to compile each time.
    pub compiled_code_cache: Option<PathBuf>,
    /// Where compiled code lies that came with the program, for components that are not in the cache yet: see [`Engine::compile_ahead`]. It is used if
    /// the folder, its file and the program's file belong to one user, and nobody else may write them.
    pub shipped_code: Option<ShippedCode>,
    /// Where components are compiled.
    pub compiler: Compiler,
    /// What a component may take to be compiled, and what its sessions will have: without any limit on time, guests are compiled without looking at the clock.
    pub limits: Limits,
    /// Whether imports of WASI 0.2 are served with nothing behind them: no folder, no socket, no environment, no time.
    pub allow_inert_wasi: bool,
}

/// Compiles components. All engines of a process share one compiler and one clock.
#[derive(Clone, Debug)]
pub struct Engine {
    engine: wasmtime::Engine,
    cache: Option<CodeCache>,
    shipped: Option<ShippedCode>,
    compiler: Compiler,
    limits: Limits,
    allow_inert_wasi: bool,
}

/// A component that keeps to the contract, compiled.
#[derive(Clone)]
pub struct Component {
    pub(crate) pre: ArchitecturePre<State>,
    pub(crate) engine: wasmtime::Engine,
    digest: String,
}

impl std::fmt::Debug for Component {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Component").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Component {
    /// The SHA-256 of the component's bytes, as `sha256:` and 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl Engine {
    /// The process's engine.
    ///
    /// # Errors
    /// This machine cannot run wasmtime ([`HostError::Bug`]).
    pub fn new(options: &EngineOptions) -> Result<Self, HostError> {
        let engine = shared_engine(Settings::of(&options.limits))?;
        let cache = options.compiled_code_cache.as_deref().and_then(CodeCache::open);
        Ok(Self {
            engine,
            cache,
            shipped: options.shipped_code.clone(),
            compiler: options.compiler.clone(),
            limits: options.limits.clone(),
            allow_inert_wasi: options.allow_inert_wasi,
        })
    }

    /// Checks that `bytes` are a component which wants nothing but the contract, and compiles it or takes its compiled code from the cache.
    ///
    /// # Errors
    /// [`HostError::Refused`] with everything that it wants beyond the contract, or what it lacks to be an architecture; [`HostError::Limit`] if it
    /// is too large, or compiling it takes too much.
    pub fn load(&self, bytes: &[u8]) -> Result<Component, HostError> {
        self.check(bytes)?;
        let digest = hexadecimal(&Sha256::digest(bytes));
        let pre = self.link(&self.compiled(bytes, &digest)?)?;
        Ok(Component { pre, engine: self.engine.clone(), digest: format!("sha256:{digest}") })
    }

    /// Whether `bytes` are a component which wants nothing but the contract, before anything is compiled.
    fn check(&self, bytes: &[u8]) -> Result<(), HostError> {
        self.check_container(bytes)?;
        check_imports(bytes, self.allow_inert_wasi)
    }

    /// Gives the component what it imports, which it must use as the contract has it.
    fn link(&self, compiled: &Compiled) -> Result<ArchitecturePre<State>, HostError> {
        let mut linker = Linker::new(&self.engine);
        serve::add_to_linker(&mut linker).map_err(|error| HostError::Bug(format!("{error:#}")))?;
        if self.allow_inert_wasi {
            add_inert_wasi(&mut linker, compiled)?;
        }
        linker
            .instantiate_pre(compiled)
            .and_then(ArchitecturePre::new)
            .map_err(|error| HostError::refused(printable(&format!("it does not keep to the contract: {error:#}"))))
    }

    /// Checks that `bytes` are a program that wants nothing but models and WASI, and compiles it or takes its compiled code from the cache. WASI is served with
    /// nothing behind it, whatever the options say: there is no program without.
    ///
    /// # Errors
    /// As [`Self::load`], for what is no client.
    pub fn load_client(&self, bytes: &[u8]) -> Result<ClientComponent, HostError> {
        self.check_container(bytes)?;
        check_imports_of_client(bytes)?;
        let compiled = self.compiled(bytes, &hexadecimal(&Sha256::digest(bytes)))?;
        let mut linker = Linker::new(&self.engine);
        neural_network::add_to_linker(&mut linker).map_err(|error| HostError::Bug(format!("{error:#}")))?;
        add_inert_wasi(&mut linker, &compiled)?;
        let kind = compiled.component_type();
        let entry = kind.exports(&self.engine).find(|(name, _)| name.starts_with(ENTRY)).map(|(name, _)| name);
        let run = entry
            .and_then(|entry| compiled.get_export_index(None, entry))
            .and_then(|instance| compiled.get_export_index(Some(&instance), "run"))
            .ok_or_else(|| HostError::refused(format!("it is no program: it does not export `{ENTRY}0`")))?;
        let pre = linker.instantiate_pre(&compiled).map_err(|error| {
            HostError::refused(printable(&format!("what it imports is not what it names: {error:#}")))
        })?;
        Ok(ClientComponent { pre, engine: self.engine.clone(), run })
    }

    /// Compiles a component that keeps to the contract for every processor of this kind, and puts the code into the folder of
    /// [`EngineOptions::shipped_code`], for all who run this program: their first start has no more to compile than the others. Answers with the file.
    ///
    /// # Errors
    /// As [`Self::load`]. [`HostError::Shipping`] where nothing can be put there, or nobody would trust it.
    pub fn compile_ahead(&self, bytes: &[u8]) -> Result<PathBuf, HostError> {
        let shipped = self.shipped.as_ref().ok_or_else(|| HostError::Bug("no folder for shipped code".to_owned()))?;
        self.check(bytes)?;
        let digest = hexadecimal(&Sha256::digest(bytes));
        let settings = Settings::of(&self.limits).for_any_processor();
        let (compiled, code) = self.compile(settings, bytes)?;
        // What only fits the contract at first sight is refused here, and not at its users'.
        self.link(&compiled)?;
        let engine = compatibility(&new_engine(settings)?);
        let failed = |problem: String| HostError::Shipping { folder: shipped.folder.clone(), problem };
        shipped.keep(&digest, engine, &code).map_err(|error| failed(error.to_string()))?;
        let untrusted = "it and the program must belong to one user, and nobody else may write them";
        shipped.file(&digest, engine).ok_or_else(|| failed(untrusted.to_owned()))
    }

    fn check_container(&self, bytes: &[u8]) -> Result<(), HostError> {
        let limit = self.limits.component_bytes;
        if bytes.len() as u64 > limit {
            let message = format!("the component has {} bytes, at most {limit}", bytes.len());
            return Err(HostError::Limit { limit: "component_bytes", message });
        }
        if !has_component_header(bytes) {
            return Err(HostError::refused(
                "it is not a WebAssembly component (a plain module, or another kind of file?)",
            ));
        }
        Ok(())
    }

    fn compiled(&self, bytes: &[u8], digest: &str) -> Result<Compiled, HostError> {
        let file = self.cache.as_ref().map(|cache| cache.file(digest, compatibility(&self.engine)));
        if let Some(compiled) =
            file.as_deref().filter(|file| file.exists()).and_then(|file| self.trust(Code::Kept(file)).ok())
        {
            return Ok(compiled);
        }
        if let Some(compiled) = self.shipped_code(digest) {
            return Ok(compiled);
        }
        let (compiled, code) = self.compile(Settings::of(&self.limits), bytes)?;
        if let (Some(cache), Some(file)) = (&self.cache, &file) {
            cache.keep(file, &code);
        }
        Ok(compiled)
    }

    /// Compiles for these settings; the code itself, too.
    fn compile(&self, settings: Settings, bytes: &[u8]) -> Result<(Compiled, Vec<u8>), HostError> {
        let code = self.compiler.compile(settings, bytes, &self.limits)?;
        let compiled = self
            .trust(Code::Made(&code))
            .map_err(|error| HostError::Bug(format!("compiled code is not accepted: {error:#}")))?;
        Ok((compiled, code))
    }

    /// The code that came with the program for the component of this digest.
    fn shipped_code(&self, digest: &str) -> Option<Compiled> {
        // Without a folder, there is no need to know what its files would be called.
        let shipped = self.shipped.as_ref().filter(|shipped| shipped.folder.is_dir())?;
        let settings = Settings::of(&self.limits).for_any_processor();
        let file = shipped.file(digest, compatibility(&new_engine(settings).ok()?))?;
        self.trust(Code::Kept(&file)).ok()
    }

    #[expect(unsafe_code, reason = "compiled code is native code; wasmtime asks for a promise about where it is from")]
    fn trust(&self, code: Code<'_>) -> wasmtime::Result<Compiled> {
        // SAFETY: what is made was made a moment ago by `compile::compile`, either here or in a child process, which is this program again,
        // started by us, and answers through a pipe that nobody else holds. What is kept lies in a folder that only this user can write to, and
        // only `CodeCache::keep` gives files there this name: it holds what was made, for a component of this digest and an engine of this hash. Or it
        // came with this program and belongs to whom this program belongs to, as `ShippedCode::file` has looked up: they put it there as they did this.
        // Damaged code is an error, found by wasmtime's own header; whoever could forge it could as well replace this program.
        unsafe {
            match code {
                Code::Made(code) => Compiled::deserialize(&self.engine, code),
                Code::Kept(file) => Compiled::deserialize_file(&self.engine, file),
            }
        }
    }
}

/// Native code of our own making.
#[derive(Clone, Copy, Debug)]
enum Code<'a> {
    /// The compiler's answer.
    Made(&'a [u8]),
    /// A file of the cache, or one that came with the program.
    Kept(&'a Path),
}

/// Serves the imports of WASI with nothing behind them.
fn add_inert_wasi(linker: &mut Linker<State>, compiled: &Compiled) -> Result<(), HostError> {
    inert_wasi::add_to_linker(linker, compiled)
        .map_err(|error| HostError::refused(printable(&format!("what it asks of WASI cannot be served: {error:#}"))))
}

/// Names everything that the component imports from elsewhere than the contract, before anything is compiled.
fn check_imports(component: &[u8], allow_inert_wasi: bool) -> Result<(), HostError> {
    let (ours, foreign) = imports(component, |name| name.starts_with(CONTRACT))?;
    let only_wasi = foreign.len() <= inert_wasi::MOST_INTERFACES
        && foreign.iter().all(|name| inert_wasi::interface(name).is_some());
    if foreign.is_empty() || allow_inert_wasi && only_wasi {
        return check_version(&ours);
    }
    // Told only where it is all that is missing.
    let advice = if !allow_inert_wasi && only_wasi {
        "; `--allow-inert-wasi` serves these imports with nothing behind them"
    } else {
        ""
    };
    Err(HostError::refused(format!(
        "it asks for {}, but an architecture is given `{CONTRACT}*` and nothing else{advice}",
        listed(&foreign)
    )))
}

/// Names everything that a client imports beside models and WASI, before anything is compiled.
fn check_imports_of_client(component: &[u8]) -> Result<(), HostError> {
    let is_served = |name: &str| neural_network::INTERFACES.contains(&name) || inert_wasi::interface(name).is_some();
    let (served, foreign) = imports(component, is_served)?;
    if served.len() > inert_wasi::MOST_INTERFACES {
        return Err(HostError::refused(format!("it imports {} interfaces, more than there are", served.len())));
    }
    if foreign.is_empty() {
        return Ok(());
    }
    let [first, ..] = neural_network::INTERFACES;
    let version = first.split_once('@').map_or("", |(_, version)| version);
    Err(HostError::refused(format!(
        "it asks for {}, but a client is given `wasi:nn@{version}` and WASI 0.2 with nothing behind it",
        listed(&foreign)
    )))
}

/// The names of a component's imports, those that are served apart from all others.
fn imports(component: &[u8], is_served: impl Fn(&str) -> bool) -> Result<(Vec<&str>, Vec<&str>), HostError> {
    let names = imported_names(component)
        .map_err(|problem| HostError::refused(printable(&format!("it cannot be read: {problem}"))))?;
    Ok(names.into_iter().partition(|name| is_served(name)))
}

/// Some names, as a refusal shows them.
fn listed(names: &[&str]) -> String {
    let listed: Vec<String> = names.iter().take(MOST_LISTED).map(|name| format!("`{}`", one_line(name))).collect();
    let more = match names.len().saturating_sub(MOST_LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    listed.join(", ") + &more
}

/// Says which version of the contract a component was made for, if it is another one than ours. Versions before 1 fit one another if they differ in their
/// last number only.
fn check_version(imports: &[&str]) -> Result<(), HostError> {
    let track = CONTRACT_VERSION.rsplit_once('.').map_or(CONTRACT_VERSION, |(track, _)| track);
    let is_ours = |version: &str| {
        let last = version.strip_prefix(track).and_then(|rest| rest.strip_prefix('.'));
        // A preliminary version fits itself only.
        last.is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let versions = imports.iter().filter_map(|name| name.split_once('@')).map(|(_, version)| version);
    match versions.into_iter().find(|version| !is_ours(version)) {
        None => Ok(()),
        Some(version) => Err(HostError::refused(format!(
            "it was made for version {} of the contract, and this program serves {CONTRACT_VERSION}: get a build for that, or another version of kilnbox",
            one_line(version)
        ))),
    }
}

/// A name of a component's, as it may be shown: escaped, cut, and on one line.
fn one_line(name: &str) -> String {
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    let cut = if shown.len() < name.len() { " ..." } else { "" };
    printable(&shown).replace('\n', "\\n").replace('\t', "\\t") + cut
}

/// What compiled code depends on, of what a user may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Settings {
    pub(crate) stack_bytes: u64,
    /// Whether the guest looks at the clock as it runs: there is no other way to end its own loops.
    pub(crate) has_deadlines: bool,
    /// Whether the code shall run on every processor of this kind, and not only on such as is in this machine.
    pub(crate) any_processor: bool,
}

impl Settings {
    /// Those that keep `limits`: who has no limit on time pays for none.
    pub(crate) fn of(limits: &Limits) -> Self {
        let has_deadlines = limits.seconds_per_call.is_finite() || limits.seconds_per_run.is_finite();
        Self { stack_bytes: limits.stack_bytes, has_deadlines, any_processor: false }
    }

    /// The same for code that others shall run, on processors that are not known.
    fn for_any_processor(self) -> Self {
        Self { any_processor: true, ..self }
    }
}

/// One engine for the process and its settings: wasmtime's types must not mix between engines.
fn shared_engine(settings: Settings) -> Result<wasmtime::Engine, HostError> {
    static SHARED: Mutex<BTreeMap<Settings, wasmtime::Engine>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = shared.get(&settings) {
        return Ok(engine.clone());
    }
    let engine = new_engine(settings)?;
    if settings.has_deadlines {
        start_ticking(engine.clone());
    }
    shared.insert(settings, engine.clone());
    Ok(engine)
}

/// An engine of its own.
pub(crate) fn new_engine(settings: Settings) -> Result<wasmtime::Engine, HostError> {
    let bug = |error: wasmtime::Error| HostError::Bug(format!("{error:#}"));
    configuration(settings).and_then(|config| wasmtime::Engine::new(&config)).map_err(bug)
}

/// The settings that all compiled code depends on; they stand in one place because cached code is only right for one set of them.
fn configuration(settings: Settings) -> wasmtime::Result<Config> {
    let mut config = Config::new();
    let stack = usize::try_from(settings.stack_bytes).unwrap_or(usize::MAX);
    config
        // Guests come from optimising compilers, and what takes time runs in the host: optimising once more makes an epoch no faster, and
        // the first start a quarter slower.
        .cranelift_opt_level(OptLevel::None)
        .epoch_interruption(settings.has_deadlines)
        .max_wasm_stack(stack)
        // Guests never run on stacks of the engine's own, but it wants to know that one would have room.
        .async_stack_size(stack.saturating_mul(2))
        .wasm_component_model(true)
        // Calls are two to three times faster without the machinery of asynchronous components.
        .concurrency_support(false)
        .wasm_relaxed_simd(false)
        // The bits of a result that is not a number must not depend on the machine.
        .cranelift_nan_canonicalization(true)
        .wasm_memory64(false)
        .wasm_multi_memory(true);
    if settings.any_processor {
        // Who names a target gets what all of its processors have, and not what this one has beside.
        config.target(&target_lexicon::HOST.to_string())?;
    }
    Ok(config)
}

fn start_ticking(engine: wasmtime::Engine) {
    let weak = engine.weak();
    // If no thread can be had, deadlines are not kept, which is no reason to refuse work.
    let _ = std::thread::Builder::new().name("deadline clock".into()).spawn(move || {
        while let Some(engine) = weak.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    });
}

/// A number that is the same for engines that can share compiled code.
fn compatibility(engine: &wasmtime::Engine) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// The first eight bytes of a component: the magic number, then version 13 (0x0d) of layer 1.
fn has_component_header(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\0asm\x0d\0\x01\0")
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
