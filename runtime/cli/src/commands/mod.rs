//! What the program does, a module for each of its commands, and what they share.

pub mod build;
mod card;
pub mod eval;
pub mod export;
pub mod keygen;
pub mod pack;
pub mod precompile;
pub mod pull;
pub mod push;
pub mod run;
pub mod show;
pub mod sign;
pub mod train;
pub mod verify;

use std::path::Path;

use kilnbox_bundle::{CheckpointFile, FileKind, ModelFile, SCHEME};
use kilnbox_host::{About, Checkpoint, Component, Context, Limits, Model, Session};
use kilnbox_tensor::{DType, Device};
use serde_json::{Value as Json, json};

use crate::architectures::{ArchitectureFiles, SearchPath};
use crate::convert::{CheckpointContext, capabilities_to_json, checkpoint_on_device, dtype_of};
use crate::errors::{Blame, CliError};
use crate::log::{Log, printable};
use crate::registries::{Access, reference};
use crate::run_folder::MODEL_SUFFIX;
use crate::sandbox::Sandbox;

/// The device to run on: the one that the user wants, else the processor. It must be one that the architecture supports, and compute with `dtype`.
fn choose_device(supported: &[String], wanted: Option<&str>, dtype: DType) -> Result<Device, CliError> {
    let device = Device::named(wanted.unwrap_or("cpu"))?;
    let name = device.name();
    if !supported.iter().any(|supported| supported == name) {
        // A model's file says what it likes.
        let names: Vec<String> = supported.iter().take(20).map(|name| format!("`{}`", printable(name))).collect();
        return Err(CliError::input(format!("the architecture does not run on the device `{name}`"))
            .hint(format!("it runs on {}", names.join(", "))));
    }
    if !device.computes(dtype) {
        return Err(CliError::input(format!(
            "the device `{name}` ({}) does not compute in {dtype}",
            device.description()
        ))
        .hint("train with `base_precision: 32`, or on `cpu`"));
    }
    Ok(device)
}

/// A model that can be started, as often as it is wanted.
struct Startable<'a> {
    component: Component,
    device: Device,
    checkpoint: Checkpoint,
    sandbox: &'a Sandbox,
    log: &'a Log,
}

impl<'a> Startable<'a> {
    /// The model of a file, on the device that the user wants. Says so if it has weights that are no numbers.
    fn of_file(file: &ModelFile, device: Option<&str>, sandbox: &'a Sandbox, log: &'a Log) -> Result<Self, CliError> {
        if let Some(name) = file.checkpoint.first_non_finite_tensor() {
            log.warning(format!("the tensor `{}` of the model has numbers that are not finite", printable(name)));
        }
        let component = sandbox.engine()?.load(&file.component)?;
        let supported: Vec<String> =
            serde_json::from_value(file.capabilities["supported_devices"].clone()).unwrap_or_default();
        let wanted = device.map(crate::options::device).transpose()?;
        let device = choose_device(&supported, wanted.as_deref(), dtype_of(&file.capabilities))?;
        let checkpoint = checkpoint_on_device(&file.checkpoint, &device)?;
        Ok(Self { component, device, checkpoint, sandbox, log })
    }

    fn start(&self) -> Result<(Session, Model), CliError> {
        self.start_within(self.sandbox)
    }

    /// Once more, for [`Session::evaluate`].
    fn another(&self, limits: Limits) -> Option<(Session, Model)> {
        self.start_within(&Sandbox { limits, ..self.sandbox.clone() }).ok()
    }

    fn start_within(&self, sandbox: &Sandbox) -> Result<(Session, Model), CliError> {
        let mut session = sandbox.quiet_session(&self.component, &self.device, self.log)?;
        let model = session.load_model(&self.checkpoint, Context::Export)?;
        Ok((session, model))
    }
}

/// What is known of the people behind a model, and what to cite.
fn metadata_json(about: &About, user: Json) -> Json {
    let mut metadata = json!({
        "name": "",
        "description": "",
        "authors": [],
        "references": {"model": [], "architecture": about.references.architecture, "implementation": about.references.implementation},
    });
    let Json::Object(given) = user else { return metadata };
    for (key, value) in given {
        if let ("references", Json::Object(references)) = (key.as_str(), &value) {
            for (kind, list) in references {
                let mut all: Vec<Json> = list.as_array().cloned().unwrap_or_default();
                all.extend(metadata["references"][kind].as_array().cloned().unwrap_or_default());
                metadata["references"][kind] = Json::Array(all);
            }
        } else {
            metadata[key] = value;
        }
    }
    metadata
}

/// Makes a model's file of a checkpoint's.
fn export_model(
    sandbox: &Sandbox,
    component: &Component,
    component_bytes: Vec<u8>,
    checkpoint: &CheckpointFile,
    metadata: Json,
    log: &Log,
) -> Result<ModelFile, CliError> {
    // Any device can hold weights; the one that a model runs on is chosen when it runs.
    let device = Device::cpu();
    let mut session = sandbox.quiet_session(component, &device, log)?;
    let about = session.about()?;
    let model = session.load_model(&checkpoint_on_device(checkpoint, &device)?, Context::Export)?;
    let capabilities = session.export_model(&model)?;
    // What is exported is the model alone, with its best weights: no optimizer, no history.
    let exported = session.model_checkpoint(&model)?;
    let mut context = CheckpointContext::of(checkpoint)?;
    component.digest().clone_into(&mut context.architecture.digest);
    let mut of_model = context.file(&exported).map_err(|message| CliError::new(Blame::Architecture, message))?;
    of_model.epoch = checkpoint.epoch;
    let mut model = ModelFile {
        component: component_bytes,
        checkpoint: of_model,
        capabilities: capabilities_to_json(&capabilities, &about.supported_devices),
        metadata: metadata_json(&about, metadata),
        options: Json::Null,
        metrics: Json::Null,
        card: String::new(),
    };
    model.card = card::card(&model);
    Ok(model)
}

/// The architecture that the options name: by a reference into a registry, or by a name or path on this machine.
fn find_architecture(name: &str, access: &Access) -> Result<ArchitectureFiles, CliError> {
    if !name.starts_with(SCHEME) {
        return SearchPath::from_environment().find(name);
    }
    let reference = reference(name)?;
    ArchitectureFiles::pulled(&reference, access.get(&reference)?)
}

/// Checks where a model shall go, before any work is done for it.
fn check_model_path(path: &Path) -> Result<(), CliError> {
    check_suffix(path, MODEL_SUFFIX, FileKind::Model)?;
    check_folder_of(path)
}

fn check_suffix(path: &Path, expected: &str, kind: FileKind) -> Result<(), CliError> {
    if path.extension().is_some_and(|suffix| suffix == expected) {
        return Ok(());
    }
    Err(CliError::input(format!(
        "the file of the {kind} is named `{}`, expected a name that ends with `.{expected}`",
        path.display()
    )))
}

fn check_folder_of(path: &Path) -> Result<(), CliError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(CliError::input(format!("there is no folder `{}` for `{}`", folder.display(), path.display()))
                .hint("make the folder, or choose another one"))
        }
        _ => Ok(()),
    }
}
