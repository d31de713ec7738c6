//! `kilnbox pack`: an architecture's folder becomes one file, a bundle.

use std::path::{Path, PathBuf};

use kilnbox_bundle::{
    ArchitectureBundle, FileKind, FormatError, Metadata, Parts, pack, sha256_digest, write_atomically,
};

use crate::architectures::{ArchitectureFiles, read_to_pack};
use crate::errors::{CliError, file_error, nearest};
use crate::hypers::merge_hypers;
use crate::log::{bytes, print, printable};
use crate::sandbox::Sandbox;
use crate::yaml::Node;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The folder, or a component with its files beside it, or a bundle to be packed anew.
    pub source: PathBuf,
    /// Where to put the bundle; none takes the architecture's name, in the working directory.
    pub output: Option<PathBuf>,
    /// What the bundle shall say of itself, `name=value`.
    pub metadata: Vec<String>,
    /// With what it is checked.
    pub sandbox: Sandbox,
}

/// Runs the command.
///
/// # Errors
///
/// The folder holds no architecture, or one that no user could run, or the bundle cannot be written.
pub fn run(request: &Request) -> Result<(), CliError> {
    let files = read_to_pack(&request.source)?;
    let bundle = make(&files, &request.metadata, &request.sandbox)?;
    write(&bundle, request.output.as_deref())
}

/// The bytes of the bundle, after a look at whether it would run: what its users would meet, its author shall meet first.
pub(super) fn make(files: &ArchitectureFiles, metadata: &[String], sandbox: &Sandbox) -> Result<Vec<u8>, CliError> {
    let metadata = read_metadata(metadata)?;
    // Defaults must keep to their own schema.
    merge_hypers(files.hypers_sources(), &Node::parse("{}", "no options")?)?;
    let old = ArchitectureBundle::read(&files.component).map(|bundle| bundle.parts.metadata).unwrap_or_default();
    let parts = Parts { metadata: metadata.or(old), ..files.parts() };
    let bundle = pack(&files.component, &parts).map_err(|error| match error {
        FormatError::NotAComponent(_) => crate::architectures::unusable(&files.path, error),
        error => CliError::input(format!("`{}` cannot be packed", files.path.display())).caused_by(&error),
    })?;
    sandbox.engine()?.load(&bundle)?;
    Ok(bundle)
}

/// Writes the bundle and says what it is.
pub(super) fn write(bundle: &[u8], output: Option<&Path>) -> Result<(), CliError> {
    let parts = ArchitectureBundle::read(bundle)
        .map_err(|error| CliError::input("the bundle cannot be read back").caused_by(&error))?
        .parts;
    let output = output.map_or_else(|| PathBuf::from(format!("{}.wasm", parts.name)), Path::to_owned);
    super::check_suffix(&output, "wasm", FileKind::Architecture)?;
    super::check_folder_of(&output)?;
    write_atomically(&output, |file| file.write_all(bundle)).map_err(|error| file_error("write", &output, &error))?;
    let version = parts.metadata.version.map(|version| format!(" {}", printable(&version))).unwrap_or_default();
    print(&format!(
        "Packed `{}`{version} into `{}`: {}, {}",
        printable(&parts.name),
        output.display(),
        bytes(bundle.len() as u64),
        sha256_digest(bundle)
    ));
    Ok(())
}

/// Reads `name=value` for the standard sections.
fn read_metadata(given: &[String]) -> Result<Metadata, CliError> {
    let mut metadata = Metadata::default();
    for text in given {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            CliError::input(format!("the metadata `{}` have no value", printable(text)))
                .hint("write `--metadata NAME=VALUE`, as in `--metadata version=0.2.0`")
        })?;
        let names = || Metadata::default().entries().map(|(name, _)| name);
        let entry = metadata.entry(name.trim()).ok_or_else(|| {
            let hint = match nearest(name.trim(), names()) {
                Some(near) => format!("use `{near}`"),
                None => format!("there are {}", names().map(|name| format!("`{name}`")).join(", ")),
            };
            CliError::input(format!("there are no metadata `{}`", printable(name))).hint(hint)
        })?;
        *entry = Some(value.trim().to_owned());
    }
    Ok(metadata)
}
