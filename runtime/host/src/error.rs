//! What can go wrong while an architecture runs, told apart by who has to act.

use std::any::Any;
use std::path::PathBuf;

use kilnbox_data::DataError;

/// Why an architecture refused, in its own terms. Mirrors `errors.architecture-error` of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchitectureErrorKind {
    /// It cannot learn a target, or not of this kind.
    UnsupportedTarget,
    /// It cannot use the data.
    UnsupportedDataset,
    /// Hypers that its schema cannot rule out.
    InvalidHypers,
    /// A checkpoint it cannot read, or not in this context.
    IncompatibleCheckpoint,
    /// The training cannot go on.
    TrainingFailed,
    /// Anything else.
    Other,
}

impl ArchitectureErrorKind {
    fn sentence(self) -> &'static str {
        match self {
            Self::UnsupportedTarget => "the architecture does not support a target",
            Self::UnsupportedDataset => "the architecture does not support the dataset",
            Self::InvalidHypers => "the architecture refuses its hypers",
            Self::IncompatibleCheckpoint => "the architecture cannot use the checkpoint",
            Self::TrainingFailed => "the architecture stopped the training",
            Self::Other => "the architecture reports an error",
        }
    }
}

/// Why a run in the sandbox ended early.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A component that is not an architecture, or asks for more than the contract gives. It was not run.
    #[error("the component is refused: {problem}")]
    Refused {
        /// What it is or wants.
        problem: String,
    },
    /// The architecture says no, in words for the user.
    #[error("{}: {message}", kind.sentence())]
    Architecture {
        /// What it refuses.
        kind: ArchitectureErrorKind,
        /// Its own words, escaped and cut.
        message: String,
    },
    /// The architecture has a bug: it panicked, or misused an operation.
    #[error("the architecture failed: {message}")]
    Trapped {
        /// The panic's message or what was misused.
        message: String,
        /// Its stack, innermost function first, one a line; may be empty.
        backtrace: String,
    },
    /// The architecture needed more than it may have, of memory, time or anything else.
    #[error("the architecture exceeded the limit `{limit}`: {message}")]
    Limit {
        /// The name of the limit, a field of [`crate::Limits`].
        limit: &'static str,
        /// What was needed, and the limit's value.
        message: String,
    },
    /// The device failed: its memory is exhausted, or it was lost. What it holds is gone.
    #[error("the device `{device}` failed: {message}")]
    Device {
        /// The device's name.
        device: &'static str,
        /// What its driver says.
        message: String,
    },
    /// The system does not give the memory that a component's instance needs from the start.
    #[error("the system does not give the memory that a sandbox reserves: {message}")]
    Reservation {
        /// What the system says.
        message: String,
    },
    /// The threads cannot be started that kernels share.
    #[error("the system does not start {}: {message}", count.map_or("a thread for each core".to_owned(), |count| format!("{count} threads")))]
    Threads {
        /// How many; none for one for each core.
        count: Option<usize>,
        /// What the system says.
        message: String,
    },
    /// Compiled code cannot be left for those who run this program.
    #[error("compiled code cannot be put into `{}`: {problem}", folder.display())]
    Shipping {
        /// The folder beside the program.
        folder: PathBuf,
        /// What the system says, or why nobody would trust what lies there.
        problem: String,
    },
    /// Data that cannot be had.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A mistake of this program.
    #[error("internal error: {0}")]
    Bug(String),
}

impl HostError {
    pub(crate) fn refused(problem: impl Into<String>) -> Self {
        Self::Refused { problem: problem.into() }
    }
}

/// The marker of an error that is a limit rather than a bug of the guest; it travels through wasmtime as a trap's cause.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct LimitReached {
    /// The name of the limit.
    pub(crate) limit: &'static str,
    /// What was needed, and the limit's value.
    pub(crate) message: String,
}

/// The marker of an operation that was stopped because the time of its call is up.
#[derive(Debug, thiserror::Error)]
#[error("the operation was stopped")]
pub(crate) struct TimeIsUp;

/// The marker of an operation that ended because the device failed.
#[derive(Debug, thiserror::Error)]
#[error("the device `{device}` failed: {message}")]
pub(crate) struct DeviceLost {
    /// The device's name.
    pub(crate) device: &'static str,
    /// What its driver says.
    pub(crate) message: String,
}

/// The marker of a panic of ours that was caught at the door.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct HostPanic(pub(crate) String);

/// What a caught panic says.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

/// The longest text of a guest that is shown, in characters.
const LONGEST_TEXT: usize = 4096;

/// Text of a guest as it may be shown: control characters escaped (but for line breaks and tabs), and cut.
pub(crate) fn printable(text: &str) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        None => escaped(text),
        Some((end, _)) => escaped(&text[..end]) + " ...",
    }
}

/// Text of a guest with control characters escaped, but for line breaks and tabs.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => shown.push(character),
            // Marks and overrides of the direction of writing can make a line read as another one.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_guest_cannot_steer_a_terminal() {
        let cases = [
            ("plain", "plain".to_owned()),
            ("two\nlines\tand tab", "two\nlines\tand tab".to_owned()),
            ("\u{1b}[2Jgone", "\\u{1b}[2Jgone".to_owned()),
            ("carriage\rreturn", "carriage\\u{d}return".to_owned()),
            ("over\u{202e}ride", "over\\u{202e}ride".to_owned()),
            ("mark\u{200f}ed\u{61c}", "mark\\u{200f}ed\\u{61c}".to_owned()),
            (&"x".repeat(5000), "x".repeat(4096) + " ..."),
        ];
        for (text, expected) in cases {
            assert_eq!(printable(text), expected);
        }
    }
}
