//! Why an architecture refuses.

use std::fmt;

/// Why an architecture refuses, in words that the user reads. Lower-case start, no full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It cannot learn a target, or not of this kind.
    UnsupportedTarget(String),
    /// It cannot use the data.
    UnsupportedDataset(String),
    /// Hypers that its schema cannot rule out.
    InvalidHypers(String),
    /// A checkpoint it cannot read, or not in this context.
    IncompatibleCheckpoint(String),
    /// The training cannot go on.
    TrainingFailed(String),
    /// Anything else.
    Other(String),
}

/// What fails with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Error::UnsupportedTarget(message)
        | Error::UnsupportedDataset(message)
        | Error::InvalidHypers(message)
        | Error::IncompatibleCheckpoint(message)
        | Error::TrainingFailed(message)
        | Error::Other(message)) = self;
        formatter.write_str(message)
    }
}

impl std::error::Error for Error {}
