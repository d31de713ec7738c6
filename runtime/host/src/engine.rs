//! From the bytes of a component to compiled code that may be run.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};
use wasmtime::component::{Component as Compiled, Linker};
use wasmtime::{Config, OptLevel};

use crate::cache::CodeCache;
use crate::deadline::TICK;
use crate::error::{HostError, printable};
use crate::limits::Limits;
use crate::serve::bindings::ArchitecturePre;
use crate::serve::{self, State};

/// Every interface of the contract has this prefix.
const CONTRACT: &str = "kilnbox:architecture/";
/// The most imports that a refusal lists.
const MOST_LISTED: usize = 12;

/// How components are compiled.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Where compiled code is kept from one run to the next; none to compile each time.
    pub compiled_code_cache: Option<PathBuf>,
    /// What a component may take to be compiled.
    pub limits: Limits,
}

/// Compiles components. All engines of a process share one compiler and one clock.
#[derive(Clone, Debug)]
pub struct Engine {
    engine: wasmtime::Engine,
    cache: Option<CodeCache>,
    limits: Limits,
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
        let engine = shared_engine(options.limits.stack_bytes)?;
        let cache = options.compiled_code_cache.as_deref().and_then(CodeCache::open);
        Ok(Self { engine, cache, limits: options.limits.clone() })
    }

    /// Checks that `bytes` are a component which wants nothing but the contract, and compiles it or takes its compiled code from the cache.
    ///
    /// # Errors
    /// [`HostError::Refused`] with everything that it wants beyond the contract, or what it lacks to be an architecture.
    pub fn load(&self, bytes: &[u8]) -> Result<Component, HostError> {
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
        let digest = hexadecimal(&Sha256::digest(bytes));
        let compiled = self.compiled(bytes, &digest)?;
        self.check_imports(&compiled)?;
        let mut linker = Linker::new(&self.engine);
        serve::add_to_linker(&mut linker).map_err(|error| HostError::Bug(format!("{error:#}")))?;
        let pre = linker
            .instantiate_pre(&compiled)
            .and_then(ArchitecturePre::new)
            .map_err(|error| HostError::refused(printable(&format!("it does not keep to the contract: {error:#}"))))?;
        Ok(Component { pre, engine: self.engine.clone(), digest: format!("sha256:{digest}") })
    }

    fn compiled(&self, bytes: &[u8], digest: &str) -> Result<Compiled, HostError> {
        let file = self.cache.as_ref().map(|cache| cache.file(digest, compatibility(&self.engine)));
        if let Some(compiled) = file.as_deref().filter(|file| file.exists()).and_then(|file| self.read_compiled(file)) {
            return Ok(compiled);
        }
        // A compiler that panics on hostile bytes must not take the program with it.
        let compiled = catch_unwind(AssertUnwindSafe(|| Compiled::from_binary(&self.engine, bytes)))
            .map_err(|_| HostError::refused("it cannot be compiled"))?
            .map_err(|error| HostError::refused(printable(&format!("it cannot be compiled: {error:#}"))))?;
        if let (Some(cache), Some(file)) = (&self.cache, &file)
            && let Ok(code) = compiled.serialize()
        {
            cache.keep(file, &code);
        }
        Ok(compiled)
    }

    #[expect(unsafe_code, reason = "compiled code is native code; wasmtime asks for a promise about where it is from")]
    fn read_compiled(&self, file: &std::path::Path) -> Option<Compiled> {
        // SAFETY: the file lies in a folder that only this user can write to, and only `CodeCache::keep` gives files there this name: it
        // holds what `serialize` made, for a component of this digest and an engine of this hash. A damaged file is an error, found by
        // wasmtime's own header; whoever could forge it could as well replace this program.
        unsafe { Compiled::deserialize_file(&self.engine, file) }.ok()
    }

    /// Names everything that the component imports from elsewhere than the contract, before anything is linked.
    fn check_imports(&self, compiled: &Compiled) -> Result<(), HostError> {
        let component_type = compiled.component_type();
        let foreign: Vec<String> = component_type
            .imports(&self.engine)
            .map(|(name, _)| name)
            .filter(|name| !name.starts_with(CONTRACT))
            .map(|name| format!("`{}`", printable(name)))
            .collect();
        if foreign.is_empty() {
            return Ok(());
        }
        let listed = foreign.iter().take(MOST_LISTED).cloned().collect::<Vec<_>>().join(", ");
        let more = foreign.len().saturating_sub(MOST_LISTED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(HostError::refused(format!(
            "it asks for {listed}{more}, but an architecture is given `{CONTRACT}*` and nothing else"
        )))
    }
}

/// One engine for the process and each size of stack: wasmtime's types must not mix between engines, and compiled code depends on its settings.
fn shared_engine(stack_bytes: u64) -> Result<wasmtime::Engine, HostError> {
    static SHARED: Mutex<BTreeMap<u64, wasmtime::Engine>> = Mutex::new(BTreeMap::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engine) = shared.get(&stack_bytes) {
        return Ok(engine.clone());
    }
    let engine =
        wasmtime::Engine::new(&configuration(stack_bytes)).map_err(|error| HostError::Bug(format!("{error:#}")))?;
    start_ticking(engine.clone());
    shared.insert(stack_bytes, engine.clone());
    Ok(engine)
}

/// The settings that all compiled code depends on; they stand in one place because cached code is only right for one set of them.
fn configuration(stack_bytes: u64) -> Config {
    let mut config = Config::new();
    config
        // Guests come from optimising compilers, and what takes time runs in the host: optimising once more makes an epoch no faster, and
        // the first start a quarter slower.
        .cranelift_opt_level(OptLevel::None)
        .epoch_interruption(true)
        .max_wasm_stack(usize::try_from(stack_bytes).unwrap_or(usize::MAX))
        .wasm_component_model(true)
        // Calls are two to three times faster without the machinery of asynchronous components.
        .concurrency_support(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(true);
    config
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
