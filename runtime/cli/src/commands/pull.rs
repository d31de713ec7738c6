//! `kilnbox pull`: a bundle or a model comes from a registry, and its signature with it.

use std::path::PathBuf;

use kilnbox_bundle::{FileKind, sha256_digest, write_atomically};

use crate::errors::{CliError, file_error};
use crate::log::{bytes, print};
use crate::registries::{Access, reference};
use crate::run_folder::MODEL_SUFFIX;
use crate::trust::{Trust, signature_path};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// What, `oci://host/name:tag`, with a digest or without.
    pub reference: String,
    /// Where to put the file; none takes the last part of the name, in the working directory.
    pub output: Option<PathBuf>,
    /// What the user allows.
    pub access: Access,
}

/// Runs the command.
///
/// # Errors
///
/// It cannot be pulled, or is not what it should be, or the file cannot be written.
pub fn run(request: &Request) -> Result<(), CliError> {
    let reference = reference(&request.reference)?;
    let pulled = request.access.update(&reference)?;
    let suffix = if pulled.kind == FileKind::Model { MODEL_SUFFIX } else { "wasm" };
    let output = match &request.output {
        Some(output) => {
            super::check_suffix(output, suffix, pulled.kind)?;
            output.clone()
        }
        None => {
            let output = PathBuf::from(format!("{}.{suffix}", reference.short_name()));
            if output.exists() && !std::fs::read(&output).is_ok_and(|present| present == pulled.bytes) {
                return Err(CliError::input(format!("there is another `{}` already", output.display()))
                    .hint("say where to put the file with `--output`"));
            }
            output
        }
    };
    super::check_folder_of(&output)?;
    let what = Trust::of_user()?.describe_with(&output, &pulled.bytes, pulled.signature.as_deref())?;
    let place = signature_path(&output);
    match &pulled.signature {
        Some(signature) => write_atomically(&place, |file| file.write_all(signature.as_bytes())),
        // One of the file that was there before would be wrong.
        None if place.exists() => std::fs::remove_file(&place),
        None => Ok(()),
    }
    .map_err(|error| file_error("write", &place, &error))?;
    write_atomically(&output, |file| file.write_all(&pulled.bytes))
        .map_err(|error| file_error("write", &output, &error))?;
    print(&format!(
        "Pulled `{}`, {}, {}\n{}\nsignature: {what}",
        output.display(),
        bytes(pulled.bytes.len() as u64),
        sha256_digest(&pulled.bytes),
        reference.pinned(&pulled.digest)
    ));
    Ok(())
}
