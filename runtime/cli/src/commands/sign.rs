//! `kilnbox sign`: a file that says who made another one.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use kilnbox_bundle::{FileKind, SecretKey, write_atomically};

use crate::errors::{CliError, file_error};
use crate::log::{print, printable};
use crate::trust::signature_path;
use crate::yaml::read_text;

/// Where a password is taken from before anybody is asked.
pub const PASSWORD: &str = "KILNBOX_KEY_PASSWORD";

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The file to sign.
    pub file: PathBuf,
    /// The file of the secret key.
    pub key: PathBuf,
    /// What the signature shall say besides; none says when it was made, and of which file.
    pub comment: Option<String>,
}

/// Runs the command.
///
/// # Errors
///
/// The file or the key cannot be read, or the password is wrong.
pub fn run(request: &Request) -> Result<(), CliError> {
    let kind = super::show::kind(&request.file)?;
    let bytes = kilnbox_bundle::read_whole(&request.file, kind)?;
    if kind == FileKind::Architecture {
        // A signature of what nobody could run helps nobody.
        kilnbox_bundle::ArchitectureBundle::read(&bytes)
            .map_err(|error| crate::architectures::unusable(&request.file, error))?;
    }
    let text = read_text(&request.key, 4096)?;
    let unusable = || format!("the secret key `{}` cannot be used", request.key.display());
    let is_encrypted = SecretKey::is_encrypted(&text).map_err(|error| CliError::input(unusable()).caused_by(&error))?;
    let password = if is_encrypted { Some(password("Password of the key: ")?) } else { None };
    let key = SecretKey::parse(&text, password).map_err(|error| CliError::input(unusable()).caused_by(&error))?;
    let name = request.file.file_name().unwrap_or_default().to_string_lossy();
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let comment =
        request.comment.clone().unwrap_or_else(|| format!("timestamp:{since}\tfile:{}\thashed", printable(&name)));
    if comment.chars().any(|character| character.is_control() && character != '\t') {
        return Err(CliError::input("the comment has more than one line"));
    }
    let signature =
        key.sign(&bytes, &comment).map_err(|error| CliError::input("the file cannot be signed").caused_by(&error))?;
    let place = signature_path(&request.file);
    write_atomically(&place, |file| file.write_all(signature.as_bytes()))
        .map_err(|error| file_error("write", &place, &error))?;
    let id = key.public().map(|public| format!(", by the key {}", public.id())).unwrap_or_default();
    print(&format!("The signature is in `{}`{id}", place.display()));
    Ok(())
}

/// A password, from the environment or the terminal.
fn password(prompt: &str) -> Result<String, CliError> {
    if let Some(password) = std::env::var_os(PASSWORD) {
        return password.into_string().map_err(|_| CliError::input(format!("`{PASSWORD}` is not UTF-8")));
    }
    rpassword::prompt_password(prompt).map_err(|error| {
        CliError::input("no password can be asked for").caused_by(&error).hint(format!("give it in `{PASSWORD}`"))
    })
}

/// A password for a new key, asked for twice.
pub(super) fn new_password() -> Result<String, CliError> {
    let first = password("Password for the key: ")?;
    if first.is_empty() {
        return Err(CliError::input("the password is empty").hint("`--no-password` makes a key without one"));
    }
    if std::env::var_os(PASSWORD).is_none() && password("The same again: ")? != first {
        return Err(CliError::input("the two passwords differ"));
    }
    Ok(first)
}
