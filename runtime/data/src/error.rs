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
    /// An error that says `message`, in which what files gave is escaped and cut.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: printable(message.into()), hint: None }
    }

    /// An error in one frame of a file. Frames count from 0, lines from 1.
    pub(crate) fn in_frame(path: &Path, frame: usize, message: impl fmt::Display) -> Self {
        Self::new(format!("`{}`, frame {frame}: {message}", path.display()))
    }

    /// The same error, said to be in a frame.
    pub(crate) fn of_frame(self, path: &Path, frame: usize) -> Self {
        Self { hint: self.hint, ..Self::in_frame(path, frame, self.message) }
    }

    /// The same error, said to be in one of several structures.
    pub(crate) fn of_structure(self, index: usize) -> Self {
        Self { hint: self.hint, ..Self::new(format!("structure {index}: {}", self.message)) }
    }

    pub(crate) fn on_line(path: &Path, frame: usize, line: usize, message: impl fmt::Display) -> Self {
        Self::new(format!("`{}`, frame {frame}, line {line}: {message}", path.display()))
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(printable(hint.into()));
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

/// Messages quote keys and words of files, which must not steer a terminal or fill it. One door for all of them is one that none goes past.
fn printable(message: String) -> String {
    /// A path takes some hundred characters, and no sentence needs more beside it.
    const LONGEST: usize = 1000;
    // Whoever cannot be seen is escaped: control characters, and those that turn the direction of writing.
    let is_plain = |character: char| {
        character == '\'' || character == '"' || character == '\\' || character.escape_debug().len() == 1
    };
    if message.len() <= LONGEST && message.chars().all(is_plain) {
        return message;
    }
    let mut shown = String::with_capacity(LONGEST);
    for (count, character) in message.chars().enumerate() {
        if count == LONGEST {
            shown.push_str("...");
            break;
        }
        if is_plain(character) { shown.push(character) } else { shown.extend(character.escape_debug()) }
    }
    shown
}
