//! `kilnbox export`: a checkpoint and its architecture become one file.

use std::path::{Path, PathBuf};

use kilnbox_bundle::{ArchitectureIdentity, CheckpointFile, MAX_COMPONENT_BYTES};
use serde_json::Value as Json;

use crate::architectures::{ArchitectureFiles, SearchPath};
use crate::errors::CliError;
use crate::log::{Log, printable};
use crate::run_folder::MODEL_SUFFIX;
use crate::sandbox::Sandbox;
use crate::trust::Trust;
use crate::yaml::{Field, Node, Section};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Where to put the model; none takes the checkpoint's name, in the working directory.
    pub output: Option<PathBuf>,
    /// A file that describes the model.
    pub metadata: Option<PathBuf>,
    /// What the architecture may use.
    pub sandbox: Sandbox,
    /// Whether to show messages for developers.
    pub debug: bool,
}

/// Runs the command.
///
/// # Errors
///
/// The checkpoint or its architecture cannot be used, or the model not be written.
pub fn run(request: &Request) -> Result<(), CliError> {
    let log = Log::to_terminal(request.debug);
    let output = match &request.output {
        Some(output) => output.clone(),
        None => Path::new(request.checkpoint.file_stem().unwrap_or_default()).with_extension(MODEL_SUFFIX),
    };
    super::check_model_path(&output)?;
    let metadata = request.metadata.as_deref().map_or(Ok(Json::Null), read_metadata)?;
    let checkpoint = CheckpointFile::read(&request.checkpoint)?;
    let architecture = find(&checkpoint.architecture)?;
    architecture.check_signature(&Trust::of_user()?)?;
    let bundle = architecture.bundle()?;
    let component = request.sandbox.engine()?.load(&bundle)?;
    if component.digest() != checkpoint.architecture.digest {
        log.warning(format!(
            "the checkpoint was made by another build of `{}` than that in `{}`",
            printable(&checkpoint.architecture.name),
            architecture.path.display()
        ));
    }
    if let Some(name) = checkpoint.first_non_finite_tensor() {
        log.warning(format!("the tensor `{name}` of the checkpoint has numbers that are not finite"));
    }
    let model = super::export_model(&request.sandbox, &component, bundle, &checkpoint, metadata, &log)?;
    model.write(&output)?;
    log.info(format!("The model is in `{}`", output.display()));
    Ok(())
}

/// The architecture of a checkpoint: the very component that made it, if it was pulled from a registry and is still kept, or what has its name now.
fn find(identity: &ArchitectureIdentity) -> Result<ArchitectureFiles, CliError> {
    let kept = crate::registries::store().and_then(|store| store.get(&identity.digest, MAX_COMPONENT_BYTES));
    match kept {
        Some(component) => ArchitectureFiles::kept(component, &identity.digest),
        None => SearchPath::from_environment().find(&identity.name),
    }
}

/// Reads `metadata.yaml`: `name`, `description`, `authors`, and `references` with lists for `model`, `architecture` and `implementation`.
fn read_metadata(path: &Path) -> Result<Json, CliError> {
    let node = Node::read(path)?;
    let section = Section::new(&node, "")?;
    section.allow_only(&["name", "description", "authors", "references", "extra"])?;
    let words = |field: Field<'_>| field.list()?.iter().map(Field::text).collect::<Result<Vec<String>, _>>();
    for key in ["name", "description"] {
        section.get(key).map(|field| field.text()).transpose()?;
    }
    section.get("authors").map(words).transpose()?;
    if let Some(references) = section.get("references") {
        let references = references.section()?;
        let kinds = ["model", "architecture", "implementation"];
        references.allow_only(&kinds)?;
        for kind in kinds {
            references.get(kind).map(words).transpose()?;
        }
    }
    section.get("extra").map(|field| field.section()).transpose()?;
    Ok(node.to_json())
}
