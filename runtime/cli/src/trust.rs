//! Whom the user trusts, and whether only they may be run.
//!
//! Two files in `$XDG_CONFIG_HOME/kilnbox` (`~/.config/kilnbox`), both optional:
//!
//! ```yaml
//! # trust.yaml: names and the public keys of minisign
//! A. Author: RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3
//! ```
//!
//! ```yaml
//! # config.yaml
//! require-signature: true      # run nothing that none of them has signed; `false` unless it is set
//! ```
//!
//! A signature says who made a file, not that it is any good: what is signed is sandboxed like all else.

use std::fs;
use std::path::{Path, PathBuf};

use kilnbox_bundle::{BundleError, FileKind, ModelFile, PublicKey, Signature, sha256_digest};

use crate::errors::{CliError, file_error};
use crate::log::printable;
use crate::yaml::{Node, Section, read_text};

/// What a signature's file ends with.
pub const SIGNATURE_SUFFIX: &str = "minisig";
/// The largest file of a signature or a key, in bytes; they have some hundreds.
const MAX_BYTES: u64 = 4096;

/// Whom the user trusts.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<(String, PublicKey)>,
    requires_signature: bool,
}

/// Whose a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signed {
    /// There is no signature beside the file.
    Unsigned,
    /// The key that signed it is none that the user trusts; so whether the signature is right cannot be told.
    ByStranger(String),
    /// Somebody the user trusts signed it, and said this beside it.
    By(String, String),
}

impl Trust {
    /// What the files of this user say; nobody is trusted and nothing required where there are none.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or says something that is not understood: then nothing is taken for granted.
    pub fn of_user() -> Result<Self, CliError> {
        configuration_folder().map_or_else(|| Ok(Self::default()), |folder| Self::read(&folder))
    }

    /// What the files of this folder say.
    ///
    /// # Errors
    ///
    /// See [`Trust::of_user`].
    pub fn read(folder: &Path) -> Result<Self, CliError> {
        let mut trust = Self::default();
        if let Some(node) = read_if_there(&folder.join("trust.yaml"))? {
            for (entry, field) in Section::new(&node, "")?.fields() {
                let key = PublicKey::parse(&field.text()?)
                    .map_err(|error| field.error("is no public key of minisign").caused_by(&error))?;
                trust.keys.push((entry.key.clone(), key));
            }
        }
        if let Some(node) = read_if_there(&folder.join("config.yaml"))? {
            let section = Section::new(&node, "")?;
            section.allow_only(&["require-signature"])?;
            trust.requires_signature = section.get("require-signature").map_or(Ok(false), |field| field.boolean())?;
        }
        Ok(trust)
    }

    /// Nobody but the holder of this key.
    pub fn only(name: &str, key: PublicKey) -> Self {
        Self { keys: vec![(name.to_owned(), key)], requires_signature: true }
    }

    /// Looks at the signature beside a file whose content is `bytes`.
    ///
    /// # Errors
    ///
    /// The signature cannot be read, or is one of somebody trusted and does not fit the content: then somebody changed it.
    pub fn signature_of(&self, path: &Path, bytes: &[u8]) -> Result<Signed, CliError> {
        self.judge(path, bytes, read_signature(path)?.as_deref())
    }

    /// Looks at a signature; `path` is what messages call the content.
    fn judge(&self, path: &Path, bytes: &[u8], signature: Option<&str>) -> Result<Signed, CliError> {
        let Some(signature) = signature else { return Ok(Signed::Unsigned) };
        let signature = Signature::parse(signature).map_err(|error| {
            CliError::input(format!("the signature of `{}` cannot be used", path.display())).caused_by(&error)
        })?;
        let id = signature.key_id();
        let Some((name, key)) = self.keys.iter().find(|(_, key)| key.id() == id) else {
            return Ok(Signed::ByStranger(id));
        };
        let comment = signature.verify(bytes, key).map_err(|_| {
            CliError::input(format!(
                "`{}` is not what `{}` has signed: one of the file and its signature was changed",
                path.display(),
                printable(name)
            ))
            .hint("get both again from where they came")
        })?;
        Ok(Signed::By(name.clone(), comment))
    }

    /// Refuses to run a file that nobody signed whom the user trusts, if the user wants that.
    ///
    /// # Errors
    ///
    /// See [`Trust::signature_of`]; and the file is unsigned, or signed by a stranger.
    pub fn check(&self, path: &Path, bytes: &[u8]) -> Result<(), CliError> {
        if !self.requires_signature {
            return Ok(());
        }
        self.check_with(path, bytes, read_signature(path)?.as_deref())
    }

    /// [`Trust::check`] for a signature that is at hand.
    ///
    /// # Errors
    ///
    /// See [`Trust::check`].
    pub fn check_with(&self, path: &Path, bytes: &[u8], signature: Option<&str>) -> Result<(), CliError> {
        if !self.requires_signature {
            return Ok(());
        }
        match self.judge(path, bytes, signature)? {
            Signed::By(..) => Ok(()),
            Signed::Unsigned => Err(refusal(path, "is not signed").hint(format!(
                "its author signs it with `kilnbox sign`, which makes `{}`",
                signature_path(path).display()
            ))),
            Signed::ByStranger(id) => {
                Err(refusal(path, &format!("is signed with the key {id}, which is not in `trust.yaml`"))
                    .hint("if you know whose it is, add a line with the name and the public key"))
            }
        }
    }

    /// Refuses what is no single file, if the user wants signatures: there is nothing that a signature could be of.
    ///
    /// # Errors
    ///
    /// The user wants signatures.
    pub fn check_unpacked(&self, path: &Path) -> Result<(), CliError> {
        if !self.requires_signature {
            return Ok(());
        }
        Err(refusal(path, "is a component with its files beside it, which cannot be signed as one")
            .hint("make a bundle of it with `kilnbox pack`, and sign that"))
    }

    /// Reads a model, after a look at its signature.
    ///
    /// # Errors
    ///
    /// The model cannot be read, or must not be run.
    pub fn read_model(&self, path: &Path) -> Result<ModelFile, CliError> {
        if !self.requires_signature {
            return Ok(ModelFile::read(path)?);
        }
        self.read_model_and_digest(path).map(|(model, _)| model)
    }

    /// The same with the digest of the file.
    ///
    /// # Errors
    ///
    /// See [`Trust::read_model`].
    pub fn read_model_and_digest(&self, path: &Path) -> Result<(ModelFile, String), CliError> {
        // What is verified, hashed and used are the same bytes, whatever becomes of the file meanwhile.
        let bytes = kilnbox_bundle::read_whole(path, FileKind::Model)?;
        self.check(path, &bytes)?;
        let model = ModelFile::from_bytes(&bytes).map_err(|source| BundleError::Unusable {
            kind: FileKind::Model,
            path: path.to_owned(),
            source,
        })?;
        Ok((model, sha256_digest(&bytes)))
    }

    /// A line about the signature of a file.
    ///
    /// # Errors
    ///
    /// See [`Trust::signature_of`].
    pub fn describe(&self, path: &Path, bytes: &[u8]) -> Result<String, CliError> {
        self.describe_with(path, bytes, read_signature(path)?.as_deref())
    }

    /// [`Trust::describe`] for a signature that is at hand.
    ///
    /// # Errors
    ///
    /// See [`Trust::signature_of`].
    pub fn describe_with(&self, path: &Path, bytes: &[u8], signature: Option<&str>) -> Result<String, CliError> {
        Ok(match self.judge(path, bytes, signature)? {
            Signed::Unsigned => "none".to_owned(),
            Signed::ByStranger(id) => format!("of the key {id}, which is not in `trust.yaml`: not verified"),
            Signed::By(name, comment) => format!("good, of {} ({})", printable(&name), printable(&comment)),
        })
    }
}

/// The content of the signature's file beside a file, if there is one.
///
/// # Errors
///
/// It cannot be read, or is far too large for one.
pub fn read_signature(path: &Path) -> Result<Option<String>, CliError> {
    let place = signature_path(path);
    if !place.exists() {
        return Ok(None);
    }
    read_text(&place, MAX_BYTES).map(Some)
}

/// Where the signature of a file lies: beside it.
pub fn signature_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{SIGNATURE_SUFFIX}"));
    PathBuf::from(name)
}

/// The folder of the user's configuration.
pub fn configuration_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    folder.or_else(|| std::env::home_dir().map(|home| home.join(".config"))).map(|folder| folder.join("kilnbox"))
}

/// A public key: itself, or the file that has it.
///
/// # Errors
///
/// It is neither.
pub fn public_key(given: &str) -> Result<PublicKey, CliError> {
    let path = Path::new(given);
    if path.is_file() {
        let text = read_text(path, MAX_BYTES)?;
        return PublicKey::parse(&text).map_err(|error| {
            CliError::input(format!("`{}` holds no public key of minisign", path.display())).caused_by(&error)
        });
    }
    PublicKey::parse(given).map_err(|error| {
        CliError::input(format!("`{}` is no public key of minisign, and no file that has one", printable(given)))
            .caused_by(&error)
    })
}

fn refusal(path: &Path, why: &str) -> CliError {
    CliError::input(format!(
        "`{}` {why}, and `config.yaml` says `require-signature: true`: it is not run",
        path.display()
    ))
}

fn read_if_there(path: &Path) -> Result<Option<Node>, CliError> {
    match fs::metadata(path) {
        Ok(_) => Node::read(path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", path, &error)),
    }
}
