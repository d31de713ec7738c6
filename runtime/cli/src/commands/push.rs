//! `kilnbox push`: a bundle or a model goes to a registry, and its signature with it.

use std::path::PathBuf;

use kilnbox_bundle::{Artifact, Registry, RegistryOptions};

use crate::errors::CliError;
use crate::log::{bytes, print};
use crate::registries::reference;
use crate::trust::{Trust, read_signature};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The bundle or the model.
    pub file: PathBuf,
    /// Where to, `oci://host/name:tag`.
    pub reference: String,
    /// How the registry is spoken to.
    pub options: RegistryOptions,
}

/// Runs the command.
///
/// # Errors
///
/// The file is none that can be pushed, or its signature is wrong, or the registry does not take it.
pub fn run(request: &Request) -> Result<(), CliError> {
    let path = &request.file;
    let reference = reference(&request.reference)?;
    if reference.digest.is_some() {
        return Err(CliError::input(format!("`{reference}` names a digest, which is known once it is pushed"))
            .hint("name a tag alone"));
    }
    let content = kilnbox_bundle::read_whole(path, super::show::kind(path)?)?;
    let artifact = Artifact::of(&content)
        .map_err(|error| CliError::input(format!("`{}` cannot be pushed", path.display())).caused_by(&error))?;
    // A signature that is known to be wrong helps nobody.
    Trust::of_user()?.signature_of(path, &content)?;
    let signature = read_signature(path)?;
    let mut registry = Registry::open(&reference, &request.options)?;
    registry.push(&artifact)?;
    if let Some(signature) = &signature {
        registry.push_signature(signature, &artifact)?;
    }
    let signed = if signature.is_some() { " and its signature" } else { "" };
    print(&format!(
        "Pushed `{}`{signed}, {}:\n{}",
        path.display(),
        bytes(content.len() as u64),
        reference.pinned(&artifact.manifest.digest)
    ));
    Ok(())
}
