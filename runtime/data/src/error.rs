//! What can be wrong with data, in a sentence that says where.

use std::fmt;
use std::path::Path;

/// Data that cannot be used. `Display` is one sentence: what, where, what was expected; [`hint`](Self::hint) says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataError {
    message: String,
    hint: Option<String>,
}

impl DataError {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// An error in one frame of a file. Frames count from 0, lines from 1.
    pub(crate) fn in_frame(path: &Path, frame: usize, message: impl fmt::Display) -> Self {
        Self::new(format!("`{}`, frame {frame}: {message}", path.display()))
    }

    /// The same error, said to be in a frame.
    pub(crate) fn of_frame(self, path: &Path, frame: usize) -> Self {
        Self { hint: self.hint, ..Self::in_frame(path, frame, self.message) }
    }

    pub(crate) fn on_line(path: &Path, frame: usize, line: usize, message: impl fmt::Display) -> Self {
        Self::new(format!("`{}`, frame {frame}, line {line}: {message}", path.display()))
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for DataError {}
