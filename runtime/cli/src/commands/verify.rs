//! `kilnbox verify`: whether a file is what somebody has signed.

use std::path::PathBuf;

use crate::errors::CliError;
use crate::log::{print, printable};
use crate::trust::{Signed, Trust, public_key, signature_path};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file; its signature lies beside it.
    pub file: PathBuf,
    /// The public key or its file; none takes those in `trust.yaml`.
    pub key: Option<String>,
}

/// Runs the command.
///
/// # Errors
///
/// There is no signature, or none by the key, or it is one of something else.
pub fn run(request: &Request) -> Result<(), CliError> {
    let path = &request.file;
    let bytes = kilnbox_bundle::read_whole(path, super::show::kind(path)?)?;
    let trust = match &request.key {
        Some(key) => Trust::only("the key", public_key(key)?),
        None => Trust::of_user()?,
    };
    match trust.signature_of(path, &bytes)? {
        Signed::By(name, comment) => {
            print(&format!("`{}` is as {} has signed it ({})", path.display(), printable(&name), printable(&comment)));
            Ok(())
        }
        Signed::Unsigned => Err(CliError::input(format!(
            "`{}` is not signed: there is no `{}`",
            path.display(),
            signature_path(path).display()
        ))),
        Signed::ByStranger(id) if request.key.is_some() => {
            Err(CliError::input(format!("`{}` is signed with another key, {id}", path.display())))
        }
        Signed::ByStranger(id) => Err(CliError::input(format!(
            "`{}` is signed with the key {id}, which is not in `trust.yaml`",
            path.display()
        ))
        .hint("give the public key with `--key`, or add a line with a name and the key to `trust.yaml`")),
    }
}
