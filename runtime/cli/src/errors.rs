//! Errors as the user sees them, and the exit code that says whose turn it is.

use std::fmt;
use std::sync::OnceLock;

/// Who has to do something about an error; the program's exit code says so too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The user's input, or an architecture that refuses it: exit code 1.
    Input,
    /// A bug in kilnbox: exit code 2.
    Kilnbox,
    /// The architecture's code trapped: exit code 3.
    Architecture,
    /// A limit on time or memory was reached: exit code 4.
    Limit,
}

impl Blame {
    /// The exit code of the program.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Input => 1,
            Self::Kilnbox => 2,
            Self::Architecture => 3,
            Self::Limit => 4,
        }
    }
}

/// An error on its way to the user: what happened, why, and what to do about it.
///
/// Displayed, it is what the program prints:
///
/// ```
/// use kilnbox_cli::errors::CliError;
///
/// let error = CliError::input("options.yaml:12:3: unknown key `architecture.training.learning_rat`")
///     .hint("use `learning_rate`");
/// assert_eq!(
///     error.to_string(),
///     "error: options.yaml:12:3: unknown key `architecture.training.learning_rat`\n  hint: use `learning_rate`"
/// );
/// ```
#[derive(Debug)]
pub struct CliError {
    blame: Blame,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

impl CliError {
    /// An error that somebody has to act on.
    pub fn new(blame: Blame, message: impl Into<String>) -> Self {
        Self { blame, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// An error in what the user gave.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(Blame::Input, message)
    }

    /// An error in what the user gave, with the chain of causes that `error` carries below its own message.
    pub fn from_error(blame: Blame, error: &dyn std::error::Error) -> Self {
        let mut result = Self::new(blame, error.to_string());
        if let Some(source) = error.source() {
            result = result.caused_by(source);
        }
        result
    }

    /// Adds a cause and the causes of that cause.
    #[must_use]
    pub fn caused_by(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Adds what the user can do, if something is known.
    #[must_use]
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hints.extend(hint);
        self
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// The first line, without `error:`.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "error: {}", indent(&self.message))?;
        for cause in &self.causes {
            write!(formatter, "\n  caused by: {}", indent(cause))?;
        }
        for hint in &self.hints {
            write!(formatter, "\n  hint: {}", indent(hint))?;
        }
        if self.blame == Blame::Kilnbox {
            write!(formatter, "\n  this is a bug in kilnbox, please report it")?;
        }
        Ok(())
    }
}

impl std::error::Error for CliError {}

impl From<kilnbox_bundle::BundleError> for CliError {
    fn from(error: kilnbox_bundle::BundleError) -> Self {
        let hint = error.hint();
        Self::from_error(Blame::Input, &error).maybe_hint(hint)
    }
}

/// An error of reading or writing a file of the user's, with its path.
pub fn file_error(action: &str, path: &std::path::Path, error: &std::io::Error) -> CliError {
    CliError::input(format!("cannot {action} `{}`", path.display())).caused_by(error)
}

/// The longest part of an error that is shown, in characters: it may quote a file.
const LONGEST_PART: usize = 4096;

/// Keeps the further lines of a long text below the first one. Whatever a message quotes, it steers no terminal: other control characters are escaped.
fn indent(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(LONGEST_PART));
    for (count, character) in text.chars().enumerate() {
        match character {
            _ if count == LONGEST_PART => {
                shown.push_str(" ...");
                break;
            }
            '\n' => shown.push_str("\n    "),
            '\t' => shown.push('\t'),
            _ if character.is_control() => shown.extend(character.escape_unicode()),
            _ => shown.push(character),
        }
    }
    shown
}

/// The nearest of `candidates` to what the user typed, if any is near enough to be meant.
///
/// ```
/// use kilnbox_cli::errors::nearest;
///
/// assert_eq!(nearest("learning_rat", ["batch_size", "learning_rate"]), Some("learning_rate"));
/// assert_eq!(nearest("zzz", ["batch_size", "learning_rate"]), None);
/// ```
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // 0.75 lets pass a slip or two in a word, and keeps words apart that only share an ending.
    const ENOUGH: f64 = 0.75;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(typed, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= ENOUGH)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

/// The first panic of this process, for the message that ends it.
static FIRST_PANIC: OnceLock<String> = OnceLock::new();

/// Keeps Rust's panic message, which means nothing to a user, from the terminal. A panic that somebody catches on purpose (of a kernel, at the
/// sandbox's door) is that one's to report; one that nobody catches ends the program with [`uncaught_panic`].
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let what = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map_or_else(String::new, |place| format!(" ({place})"));
        FIRST_PANIC.get_or_init(|| format!("{what}{place}"));
    }));
}

/// An error that says which panic ended the program's work.
pub fn uncaught_panic() -> CliError {
    CliError::new(Blame::Kilnbox, FIRST_PANIC.get().map_or("a thread panicked", String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_hints_are_indented_below_the_message() {
        let cause = std::io::Error::other("no such file\nreally");
        let error = CliError::input("cannot read `a.xyz`").caused_by(&cause).hint("check the path");
        assert_eq!(
            error.to_string(),
            "error: cannot read `a.xyz`\n  caused by: no such file\n    really\n  hint: check the path"
        );
        assert_eq!(error.blame().exit_code(), 1);
    }

    #[test]
    fn what_a_message_quotes_cannot_steer_a_terminal_or_fill_it() {
        let error = CliError::input("o.yaml:1:1: key `\u{1b}[2J\r` is given twice").hint("a\u{7}");
        assert_eq!(error.to_string(), "error: o.yaml:1:1: key `\\u{1b}[2J\\u{d}` is given twice\n  hint: a\\u{7}");
        let long = CliError::input("x".repeat(LONGEST_PART + 1)).to_string();
        assert_eq!(long, format!("error: {} ...", "x".repeat(LONGEST_PART)));
    }

    #[test]
    fn our_own_bugs_ask_to_be_reported() {
        let error = CliError::new(Blame::Kilnbox, "the run ended without a model");
        assert!(error.to_string().ends_with("please report it"));
        assert_eq!(error.blame().exit_code(), 2);
    }
}
