//! Hostile guests: from a few lines of text to a component that keeps to the contract, and its run.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, OnceLock};

use kilnbox_data::{Dataset, DatasetInfo, DatasetSource, SystemsSource};
use kilnbox_host::{Checkpoint, Component, Engine, EngineOptions, HostError, Level, Limits, Metric, Observer};
use kilnbox_host::{Session, SessionOptions, on_own_thread};
use kilnbox_tensor::{DType, Device};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::abi::{AbiVariant, WasmSignature, WasmType};
use wit_parser::{
    InterfaceId, LiftLowerAbi, ManglingAndAbi, Resolve, ResourceIntrinsic, TypeDefKind, WasmExport, WasmExportKind,
    WasmImport, WorldId, WorldItem, WorldKey,
};

use crate::table::{Ending, Fallible};

/// Core functions have the names that `wit-bindgen` gives them.
const MANGLING: ManglingAndAbi = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);

/// What a module has unless it brings its own: memory, and an allocator that never frees. Data of the text goes below 64 KiB.
const PRELUDE: [(&str, &str); 2] = [
    ("memory", r#"(memory (export "memory") 17)"#),
    (
        "cabi_realloc",
        r#"(global $top (mut i32) (i32.const 0x10000))
        (func $allocate (export "cabi_realloc") (param i32 i32 i32) (param $size i32) (result i32) (local $start i32)
            (local.set $start (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
            (global.set $top (i32.add (local.get $start) (local.get $size)))
            (block $enough
                (br_if $enough (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
                (br_if $enough (i32.ge_s
                    (memory.grow (i32.add (i32.const 1) (i32.div_u (local.get $size) (i32.const 65536)))) (i32.const 0)))
                unreachable)
            (local.get $start))"#,
    ),
];

/// The architecture that these fields of a core module are, as a component.
///
/// - A contract function that the text calls by its name is imported: `$linalg.matmul`; `$tensor.tensor.shape` is a method, `.constructor` makes a resource,
///   `$tensor.tensor.drop` gives a handle back, `$model.model.new` makes a handle of an exported resource.
/// - An export of the contract that the text lacks is added: it traps.
/// - Without a `"memory"` and a `"cabi_realloc"` of its own it gets both (and `$allocate`, `$top`).
///
/// What `describe` returns is a pointer; at 48 KiB there are zeros, which are a valid if empty answer: `(i32.const 0xc000)`.
pub fn component(fields: &str) -> Fallible<Vec<u8>> {
    component_with(fields, StringEncoding::UTF8)
}

/// The same with text in another encoding.
pub fn component_with(fields: &str, encoding: StringEncoding) -> Fallible<Vec<u8>> {
    let (resolve, world) = world("wit", "architecture")?;
    assembled(fields, encoding, &resolve, world)
}

/// The client of models that these fields are, as [`component`] makes architectures: it does this (locals first), and says that it succeeded.
pub fn client(body: &str, fields: &str) -> Fallible<Vec<u8>> {
    let (resolve, world) = world("wit/client", "client")?;
    let fields = format!(r#"{fields} (func (export "wasi:cli/run@0.2.0#run") (result i32) {body} (i32.const 0))"#);
    assembled(&fields, StringEncoding::UTF8, &resolve, world)
}

fn assembled(fields: &str, encoding: StringEncoding, resolve: &Resolve, world: WorldId) -> Fallible<Vec<u8>> {
    let mut module = String::from("(module\n");
    let names: HashSet<&str> = fields.split(|character: char| !is_of_a_name(character)).collect();
    for (name, import) in imports(resolve, world) {
        if names.contains(&name[..]) {
            module.push_str(&import);
        }
    }
    module.push_str(fields);
    for (name, text) in PRELUDE {
        if !fields.contains(&format!("{name:?}")) {
            module.push_str(text);
        }
    }
    for (name, signature) in exports(resolve, world) {
        if !fields.contains(&format!("{name:?}")) {
            let _ = write!(module, "(func (export {name:?}) {} unreachable)", signature_text(&signature));
        }
    }
    module.push(')');
    let mut bytes = wat::parse_str(&module).map_err(|error| format!("{error}\nin {module}"))?;
    embed_component_metadata(&mut bytes, resolve, world, encoding)?;
    Ok(ComponentEncoder::default().validate(true).module(&bytes)?.encode()?)
}

/// An architecture whose `describe` does this (locals first), then answers.
pub fn describing(body: &str, fields: &str) -> Fallible<Vec<u8>> {
    component(&format!(
        r#"{fields}
        (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32)
            {body}
            (i32.const 0xc000))"#
    ))
}

/// What a guest has that makes models and trainers without a question: their handles mean nothing.
pub const MODELS: &str = r#"
    (func (export "kilnbox:architecture/model@0.1.0#[static]model.new")
        (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
        (i32.store (i32.const 0xc104) (call $model.model.new (i32.const 1)))
        (i32.const 0xc100))
    (func (export "kilnbox:architecture/trainer@0.1.0#[static]trainer.new") (param i32 i32) (result i32)
        (i32.store (i32.const 0xc114) (call $trainer.trainer.new (i32.const 1)))
        (i32.const 0xc110))"#;

/// An architecture whose `train` does this (locals first), then returns. `$datasets` points at the handles of the training sets, `$folder` takes checkpoints.
pub fn training(body: &str, fields: &str) -> Fallible<Vec<u8>> {
    component(&format!(
        r#"{fields} {MODELS}
        (func (export "kilnbox:architecture/trainer@0.1.0#[method]trainer.train")
            (param $trainer i32) (param $model i32) (param $dtype i32) (param i32 i32) (param $datasets i32)
            (param i32 i32 i32) (param $folder i32) (result i32)
            {body}
            (i32.const 0xc120))"#
    ))
}

/// A world as the repository has it: the contract, or what clients have.
fn world(folder: &str, name: &str) -> Fallible<(Resolve, WorldId)> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(kilnbox_tests::repository().join(folder))?;
    let world = resolve.select_world(&[package], Some(name))?;
    Ok((resolve, world))
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || "$-._".contains(character)
}

/// Every function that a guest of this world may import, by the name that guests here call it.
fn imports(resolve: &Resolve, world: WorldId) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let world = &resolve.worlds[world];
    for (key, interface, exported) in interfaces(&world.imports, false).chain(interfaces(&world.exports, true)) {
        let interface_name = resolve.interfaces[interface].name.clone().unwrap_or_default();
        let mut add = |name: String, import: WasmImport<'_>, signature: &str| {
            let (module, field) = resolve.wasm_import_name(MANGLING, import);
            let name = format!("${interface_name}.{name}");
            let text = format!("(import {module:?} {field:?} (func {name} {signature}))\n");
            found.push((name, text));
        };
        if !exported {
            for function in resolve.interfaces[interface].functions.values() {
                let signature = signature_text(&resolve.wasm_signature(AbiVariant::GuestImport, function));
                let name = match function.name.strip_prefix("[constructor]") {
                    Some(resource) => format!("{resource}.constructor"),
                    None => function.name.trim_start_matches("[method]").to_owned(),
                };
                add(name, WasmImport::Func { interface: Some(key), func: function }, &signature);
            }
        }
        for (name, &resource) in &resolve.interfaces[interface].types {
            if !matches!(resolve.types[resource].kind, TypeDefKind::Resource) {
                continue;
            }
            let intrinsics = if exported {
                &[
                    ("new", ResourceIntrinsic::ExportedNew, "(param i32) (result i32)"),
                    ("representation", ResourceIntrinsic::ExportedRep, "(param i32) (result i32)"),
                    ("drop", ResourceIntrinsic::ExportedDrop, "(param i32)"),
                ][..]
            } else {
                &[("drop", ResourceIntrinsic::ImportedDrop, "(param i32)")]
            };
            for (verb, intrinsic, signature) in intrinsics {
                let intrinsic = match intrinsic {
                    ResourceIntrinsic::ExportedNew => ResourceIntrinsic::ExportedNew,
                    ResourceIntrinsic::ExportedRep => ResourceIntrinsic::ExportedRep,
                    ResourceIntrinsic::ExportedDrop => ResourceIntrinsic::ExportedDrop,
                    ResourceIntrinsic::ImportedDrop => ResourceIntrinsic::ImportedDrop,
                };
                let import = WasmImport::ResourceIntrinsic { interface: Some(key), resource, intrinsic };
                add(format!("{name}.{verb}"), import, signature);
            }
        }
    }
    found
}

/// Every function that a guest of this world exports.
fn exports(resolve: &Resolve, world: WorldId) -> Vec<(String, WasmSignature)> {
    let mut found = Vec::new();
    for (key, interface, _) in interfaces(&resolve.worlds[world].exports, true) {
        for func in resolve.interfaces[interface].functions.values() {
            let export = WasmExport::Func { interface: Some(key), func, kind: WasmExportKind::Normal };
            let name = resolve.wasm_export_name(MANGLING, export);
            found.push((name, resolve.wasm_signature(AbiVariant::GuestExport, func)));
        }
    }
    found
}

fn interfaces<'a>(
    items: impl IntoIterator<Item = (&'a WorldKey, &'a WorldItem)>,
    exported: bool,
) -> impl Iterator<Item = (&'a WorldKey, InterfaceId, bool)> {
    items.into_iter().filter_map(move |(key, item)| match item {
        WorldItem::Interface { id, .. } => Some((key, *id, exported)),
        _ => None,
    })
}

fn signature_text(signature: &WasmSignature) -> String {
    let kinds = |kinds: &[WasmType]| {
        let names = kinds.iter().map(|kind| match kind {
            WasmType::I64 | WasmType::PointerOrI64 => "i64",
            WasmType::F32 => "f32",
            WasmType::F64 => "f64",
            WasmType::I32 | WasmType::Pointer | WasmType::Length => "i32",
        });
        names.collect::<Vec<_>>().join(" ")
    };
    format!("(param {}) (result {})", kinds(&signature.params), kinds(&signature.results))
}

/// What reached the user's side of a session.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The log.
    pub log: Vec<(Level, String)>,
    /// Progress.
    pub steps: usize,
    /// The results of epochs.
    pub epochs: Vec<Vec<Metric>>,
    /// Checkpoints, by name.
    pub checkpoints: Vec<String>,
}

/// Keeps what it hears.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Record>>);

impl Recorder {
    fn note(&self, what: impl FnOnce(&mut Record)) {
        if let Ok(mut record) = self.0.lock() {
            what(&mut record);
        }
    }
}

impl Observer for Recorder {
    fn log(&mut self, level: Level, message: &str) {
        self.note(|record| record.log.push((level, message.to_owned())));
    }

    fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {
        self.note(|record| record.steps += 1);
    }

    fn epoch(&mut self, _: u32, _: f64, metrics: &[Metric]) {
        self.note(|record| record.epochs.push(metrics.to_vec()));
    }

    fn save_checkpoint(&mut self, name: &str, _: Checkpoint) -> Result<(), String> {
        self.note(|record| record.checkpoints.push(name.to_owned()));
        Ok(())
    }
}

/// Limits that are met quickly; an honest guest of these tests is far from them.
pub fn small() -> Limits {
    Limits {
        guest_memory_bytes: 16 << 20,
        tensor_bytes: 64 << 20,
        handles: 10_000,
        seconds_per_call: seconds(20.0),
        seconds_per_run: seconds(20.0),
        ..Limits::default()
    }
}

/// Data that was never seen: one element, nothing to learn.
pub fn info() -> DatasetInfo {
    DatasetInfo { length_unit: "angstrom".into(), atomic_types: vec![1], targets: vec![], extra_data: vec![] }
}

/// Asks the guest to describe itself.
pub fn describe(component: &[u8], limits: Limits) -> Fallible<Ending> {
    attempt(component, limits, |session| session.about()).map(|(ending, _)| ending)
}

/// Lets the guest train on these sets.
pub fn train(component: &[u8], limits: Limits, sets: Vec<Dataset>) -> Fallible<(Ending, Record)> {
    attempt(component, limits, |session| {
        let model = session.new_model("{}", &info(), DType::Float32)?;
        let trainer = session.new_trainer("{}")?;
        session.train(&trainer, &model, DType::Float32, &["cpu".to_owned()], sets, vec![])
    })
}

/// The structures of a text in extended XYZ, without targets.
pub fn structures(text: &str) -> Fallible<Dataset> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("structures.xyz");
    std::fs::write(&path, text)?;
    let systems = SystemsSource { read_from: path, reader: None, length_unit: "angstrom".into() };
    Ok(Dataset::read(&DatasetSource { systems, targets: vec![], extra_data: vec![] })?)
}

/// Loads the component, starts a session within these limits, and does `act` with it; then sees that an honest guest still runs on the same thread.
pub fn attempt<T>(
    component: &[u8],
    limits: Limits,
    act: impl FnOnce(&mut Session) -> Result<T, HostError> + Send,
) -> Fallible<(Ending, Record)> {
    on_own_thread(|| {
        let recorder = Recorder::default();
        let outcome = load(component, &limits).and_then(|component| {
            let mut session = start(&component, limits.clone(), recorder.clone())?;
            let outcome = act(&mut session).map(drop);
            match (&outcome, session.tensor_bytes()) {
                (Err(HostError::Trapped { .. } | HostError::Limit { .. }), held @ 1..) => {
                    Err(HostError::Bug(format!("{held} bytes of tensors are left")))
                }
                _ => outcome,
            }
        });
        let ending = Ending::of(outcome)?;
        honest()?;
        let record = recorder.0.lock().map_err(|error| error.to_string())?.clone();
        Ok((ending, record))
    })?
}

fn load(component: &[u8], limits: &Limits) -> Result<Component, HostError> {
    Engine::new(&EngineOptions { limits: limits.clone(), ..EngineOptions::default() })?.load(component)
}

fn start(component: &Component, limits: Limits, recorder: Recorder) -> Result<Session, HostError> {
    let options = SessionOptions { device: device()?, seed: 0, limits, on_overrun: None };
    Session::start(component, options, Box::new(recorder))
}

/// Where guests compute: the device that `cargo xtask test --device` names, else the processor.
fn device() -> Result<Device, HostError> {
    let name = std::env::var("KILNBOX_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    Device::named(&name).map_err(|error| HostError::Bug(error.to_string()))
}

/// How many times as long a device takes that is software, in which a launch for each tensor is dear.
pub fn slowness() -> u32 {
    const OF_A_DEVICE: u32 = 20;
    if std::env::var_os("KILNBOX_TEST_DEVICE").is_none() { 1 } else { OF_A_DEVICE }
}

/// So many seconds on the processor.
pub fn seconds(on_the_processor: f64) -> f64 {
    on_the_processor * f64::from(slowness())
}

/// An architecture that adds two tensors and says what it found.
fn honest() -> Fallible {
    static HONEST: OnceLock<Component> = OnceLock::new();
    let component = match HONEST.get() {
        Some(component) => component.clone(),
        None => {
            let bytes = component(include_str!("guests/honest.wat"))?;
            HONEST.get_or_init(|| load(&bytes, &small()).unwrap_or_else(|error| panic!("{error}"))).clone()
        }
    };
    let about = start(&component, small(), Recorder::default())?.about()?;
    // Two and a half and four, as it was told to add.
    if about.model_checkpoint_version == 6 { Ok(()) } else { Err(format!("an honest guest fails: {about:?}").into()) }
}
