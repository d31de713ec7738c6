//! `kilnbox keygen`: a pair of keys to sign with, in the files of minisign.

use std::path::{Path, PathBuf};

use kilnbox_bundle::SecretKey;

use crate::errors::{CliError, file_error};
use crate::log::print;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file of the secret key; that of the public key ends with `.pub` instead.
    pub key: PathBuf,
    /// Whether the secret key is to lie on the disk as it is.
    pub no_password: bool,
}

/// Runs the command.
///
/// # Errors
///
/// There is such a file already, or it cannot be written.
pub fn run(request: &Request) -> Result<(), CliError> {
    let (secret_path, public_path) = (&request.key, request.key.with_extension("pub"));
    if *secret_path == public_path {
        return Err(CliError::input(format!("`{}` is the name of a public key", secret_path.display()))
            .hint("name the secret key's file; that of the public key ends with `.pub` instead"));
    }
    for path in [secret_path, &public_path] {
        // Also a link that leads nowhere.
        if path.symlink_metadata().is_ok() {
            return Err(CliError::input(format!(
                "`{}` is there already, and keys are never overwritten",
                path.display()
            ))
            .hint("choose another name with `--output`"));
        }
    }
    let password = match request.no_password {
        true => None,
        false => Some(super::sign::new_password()?),
    };
    let (text, public) =
        SecretKey::generate(password).map_err(|error| CliError::input("no key can be made").caused_by(&error))?;
    write_new(secret_path, &text, 0o600)?;
    write_new(&public_path, &public.to_text(), 0o644)?;
    print(&format!("The secret key is in `{}`: keep it to yourself", secret_path.display()));
    print(&format!("The public key is in `{}`: give it to those who shall trust you", public_path.display()));
    print(&format!("A line for their `trust.yaml`:\nYour Name: {public}"));
    Ok(())
}

/// Writes a file that is not there yet, with these permissions from its first moment on.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CliError> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(|error| file_error("write", path, &error))
}
