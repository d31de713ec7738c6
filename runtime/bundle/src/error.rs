//! What can be wrong with a file, as types that callers can match on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What a file was meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A training checkpoint, one safetensors file.
    Checkpoint,
    /// An exported model, a tar in the OCI image layout.
    Model,
    /// An architecture bundle, a component with a manifest.
    Architecture,
}

impl FileKind {
    /// The kind of a file that begins with these bytes; 512 of them are enough.
    pub fn of(beginning: &[u8]) -> Option<Self> {
        if beginning.starts_with(b"\0asm") {
            Some(Self::Architecture)
        } else if crate::layout::is_tar(beginning) {
            Some(Self::Model)
        } else {
            crate::checkpoint::CheckpointFile::is_likely(beginning).then_some(Self::Checkpoint)
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            FileKind::Checkpoint => "checkpoint",
            FileKind::Model => "exported model",
            FileKind::Architecture => "architecture bundle",
        })
    }
}

/// An error of reading or writing one file; it always names the file.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The file cannot be opened or read.
    #[error("cannot read the {kind} `{}`", path.display())]
    Read {
        /// What the file was meant to be.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be written; what was there before is untouched.
    #[error("cannot write the {kind} `{}`", path.display())]
    Write {
        /// What the file was to be.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file was read, and its content is not what it should be.
    #[error("`{}` is not a usable {kind}", path.display())]
    Unusable {
        /// What the file was meant to be.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What is wrong with its content.
        source: FormatError,
    },
    /// What was to be written is not fit to be a file.
    #[error("the {kind} `{}` cannot be made from these tensors", path.display())]
    Unwritable {
        /// What the file was to be.
        kind: FileKind,
        /// The file.
        path: PathBuf,
        /// What is wrong with the content.
        source: FormatError,
    },
}

impl BundleError {
    pub(crate) fn unusable(kind: FileKind, path: &Path) -> impl FnOnce(FormatError) -> Self {
        move |source| Self::Unusable { kind, path: path.to_owned(), source }
    }

    pub(crate) fn unwritable(kind: FileKind, path: &Path) -> impl FnOnce(FormatError) -> Self {
        move |source| Self::Unwritable { kind, path: path.to_owned(), source }
    }

    pub(crate) fn read(kind: FileKind, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { kind, path: path.to_owned(), source }
    }

    pub(crate) fn write(kind: FileKind, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { kind, path: path.to_owned(), source }
    }

    /// What the user can do about it, where there is something better than the message itself.
    pub fn hint(&self) -> Option<String> {
        let (Self::Unusable { path, source, .. } | Self::Unwritable { path, source, .. }) = self else {
            return None;
        };
        match source {
            FormatError::IsACheckpoint => Some(format!("export it first: `kilnbox export {}`", path.display())),
            FormatError::NotALayout(_) => {
                Some("give the file that `kilnbox train` or `kilnbox export` wrote (`*.kiln`)".to_owned())
            }
            FormatError::IsAModel => Some(
                "give a checkpoint (`*.ckpt`): an exported model can be fine-tuned, and not continued".to_owned(),
            ),
            FormatError::NoManifest => Some(
                "tools that strip or optimise components drop it: get the file as its author packed it, or pack it again with `kilnbox pack`".to_owned(),
            ),
            FormatError::Truncated { .. } => {
                Some("copy or download the file again; kilnbox itself never leaves half a file behind".to_owned())
            }
            FormatError::NewerFormat { .. } => Some("use a newer kilnbox".to_owned()),
            _ => None,
        }
    }
}

/// What is wrong with the content of a file.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A folder, a device or a pipe.
    #[error("it is not a plain file")]
    NotAFile,
    /// The file ends before what it promises.
    #[error("the file is truncated: {detail}")]
    Truncated {
        /// What was expected and what was found.
        detail: String,
    },
    /// Something is larger than anything kilnbox writes.
    #[error("{what} is {found}, and at most {limit} is accepted")]
    TooLarge {
        /// What is too large, with its unit.
        what: String,
        /// Its size or number.
        found: u64,
        /// The largest size or number that is accepted.
        limit: u64,
    },
    /// The bytes are not a safetensors file.
    #[error("the content is not in the safetensors format: {0}")]
    NotSafetensors(String),
    /// A safetensors file that kilnbox did not write.
    #[error("it holds tensors, but no description by kilnbox")]
    NoDescription,
    /// The description is not the one that was asked for.
    #[error("its description says `{found}` where `{expected}` is expected")]
    OtherKind {
        /// The marker that was expected.
        expected: &'static str,
        /// The marker in the file.
        found: String,
    },
    /// The file is a checkpoint where a model is expected.
    #[error("it is a training checkpoint")]
    IsACheckpoint,
    /// The file is a model where a checkpoint is expected.
    #[error("it is an exported model")]
    IsAModel,
    /// The file was written by a later version of the program.
    #[error("it is in version {found} of the format, and this kilnbox reads versions up to {newest}")]
    NewerFormat {
        /// The version in the file.
        found: u32,
        /// The newest version that this program reads.
        newest: u32,
    },
    /// The JSON of the description does not say what it must.
    #[error("its description cannot be read: {0}")]
    Description(String),
    /// A tensor's number type is none that kilnbox uses.
    #[error("tensor `{tensor}` holds numbers of type `{found}`; F32, F64, I32, I64, BOOL and U8 are read")]
    ElementType {
        /// The tensor's name.
        tensor: String,
        /// The number type in the file.
        found: String,
    },
    /// A tensor's bytes do not fit its shape, or are no valid numbers of its type.
    #[error("tensor `{tensor}`: {detail}")]
    Tensor {
        /// The tensor's name.
        tensor: String,
        /// What does not fit.
        detail: String,
    },
    /// The bytes are not a tar of the OCI image layout.
    #[error("the content is not an OCI image layout: {0}")]
    NotALayout(String),
    /// The bytes are not a component, or not one of an architecture.
    #[error("it is not a component of an architecture: {0}")]
    NotAComponent(String),
    /// A component without what a bundle says of itself.
    #[error("it has no manifest (`kilnbox:manifest`); was the file stripped?")]
    NoManifest,
    /// A section of a bundle is not what it should be.
    #[error("the section `{section}` {problem}")]
    Section {
        /// The section's name.
        section: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An entry of the tar that has no place in a model.
    #[error("entry `{entry}` {problem}")]
    Entry {
        /// The entry's name, with control characters escaped.
        entry: String,
        /// Why it is refused.
        problem: String,
    },
    /// A blob's bytes are not those that its name promises.
    #[error("the content of blob `{expected}` has digest `{found}`: the file is damaged or was tampered with")]
    DigestMismatch {
        /// The digest in the name.
        expected: String,
        /// The digest of the bytes.
        found: String,
    },
    /// Two parts of the file disagree.
    #[error("{0}")]
    Inconsistent(String),
    /// The file belongs to another architecture.
    #[error("it belongs to architecture `{found}`, not to `{expected}`")]
    OtherArchitecture {
        /// The architecture that is being used.
        expected: String,
        /// The architecture in the file.
        found: String,
    },
}
