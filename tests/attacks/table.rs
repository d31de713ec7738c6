//! Attacks, how they are to end, how they ended, and the table of them.

use std::error::Error;
use std::fmt::Write;

use kilnbox_host::{HostError, LIMITS, Limits};

pub type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// How an attack ends for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The component is refused, nothing of it ran.
    Refused,
    /// A file or an option is refused.
    InputError,
    /// The architecture says no, in its own words, which are made harmless.
    ArchitectureError,
    /// The architecture is stopped for what it did.
    Trapped,
    /// The architecture needs more than this limit allows.
    Limit(&'static str),
    /// The run goes on: what was tried has no effect.
    Harmless,
}

impl Outcome {
    /// As the table has it.
    fn sentence(self) -> &'static str {
        match self {
            Self::Refused => "refused before anything runs",
            Self::InputError => "refused as an input error",
            Self::ArchitectureError => "ends with the architecture's error",
            Self::Trapped => "stopped at once",
            Self::Limit(_) => "stopped at a limit",
            Self::Harmless => "no effect; the run goes on",
        }
    }
}

/// How an attack ended.
#[derive(Clone, Debug)]
pub struct Ending {
    /// The kind of its ending.
    pub outcome: Outcome,
    /// What the user is told.
    pub message: String,
}

impl Ending {
    /// The attack had no effect; `message` is what there is to see of it, if anything.
    pub fn harmless(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Harmless, message: message.into() }
    }

    /// A file or an option was refused with this message.
    pub fn input_error(message: impl Into<String>) -> Self {
        Self { outcome: Outcome::InputError, message: message.into() }
    }

    /// The ending of work in the sandbox. A bug of the host, or a device that fails, is none: it fails the test.
    pub fn of<T>(result: Result<T, HostError>) -> Fallible<Self> {
        let Err(error) = result else { return Ok(Self::harmless("")) };
        let outcome = match &error {
            HostError::Refused { .. } => Outcome::Refused,
            HostError::Architecture { .. } => Outcome::ArchitectureError,
            HostError::Trapped { .. } => Outcome::Trapped,
            HostError::Limit { limit, .. } => Outcome::Limit(limit),
            HostError::Data(_) => Outcome::InputError,
            HostError::Device { .. }
            | HostError::Reservation { .. }
            | HostError::Threads { .. }
            | HostError::Shipping { .. }
            | HostError::Bug(_) => {
                return Err(error.to_string().into());
            }
        };
        Ok(Self { outcome, message: error.to_string() })
    }

    /// The ending of a run of the program, by its exit code.
    pub fn of_program(outcome: &kilnbox_tests::Outcome) -> Fallible<Self> {
        let message = outcome.errors.clone();
        let outcome = match outcome.code {
            Some(0) => Outcome::Harmless,
            Some(1) if message.contains("the component is refused") => Outcome::Refused,
            Some(1) if message.contains("the architecture") => Outcome::ArchitectureError,
            Some(1) => Outcome::InputError,
            Some(3) => Outcome::Trapped,
            Some(4) => {
                let named = LIMITS.iter().find(|limit| message.contains(&format!("the limit `{}`", limit.name)));
                Outcome::Limit(named.ok_or_else(|| format!("no limit is named: {message}"))?.name)
            }
            code => return Err(format!("the program ended with {code:?}: {message}").into()),
        };
        Ok(Self { outcome, message })
    }

    /// This ending, if its message has these words.
    pub fn saying(self, words: &[&str]) -> Fallible<Self> {
        match words.iter().find(|words| !self.message.contains(**words)) {
            None => Ok(self),
            Some(words) => Err(format!("`{words}` is not in: {self:?}").into()),
        }
    }
}

/// The endings of an attack in all its variants, which end alike.
pub struct Endings(Vec<Ending>);

impl From<Ending> for Endings {
    fn from(ending: Ending) -> Self {
        Self(vec![ending])
    }
}

impl From<Vec<Ending>> for Endings {
    fn from(endings: Vec<Ending>) -> Self {
        Self(endings)
    }
}

/// An attack and its outcome.
pub struct Attack {
    /// Its number, and a letter where one number has several: `4`, `4b`.
    pub number: &'static str,
    /// The name of its test.
    pub name: &'static str,
    /// What is tried, for users.
    pub title: &'static str,
    /// How it ends.
    pub expected: Outcome,
    /// What every message about it says.
    pub words: &'static [&'static str],
    /// Tries it.
    pub attempt: fn() -> Fallible<Endings>,
}

impl Attack {
    /// The number and the letter.
    pub fn key(&self) -> (u32, &'static str) {
        let digits = self.number.trim_end_matches(|character: char| character.is_ascii_lowercase());
        let number = digits.parse().unwrap_or_else(|_| panic!("`{}` is not a number with a letter", self.number));
        (number, &self.number[digits.len()..])
    }
}

/// Tries the attack called `name` and compares its endings with the declared one.
pub fn hold(attacks: &[Attack], name: &str) {
    let attack = attacks.iter().find(|attack| attack.name == name).unwrap_or_else(|| panic!("no attack `{name}`"));
    let Endings(endings) = (attack.attempt)().unwrap_or_else(|error| panic!("attack {}: {error}", attack.number));
    assert!(!endings.is_empty(), "attack {} was not tried", attack.number);
    for ending in endings {
        let Attack { number, expected, .. } = attack;
        assert!(ending.outcome == *expected, "attack {number} should have ended with {expected:?}: {ending:?}");
        assert!(!ending.message.contains("internal error"), "attack {}: {ending:?}", attack.number);
        for words in attack.words {
            assert!(ending.message.contains(words), "attack {}: `{words}` is not in: {ending:?}", attack.number);
        }
    }
}

/// Declares attacks: a test for each, and the module's part of the table, `ATTACKS`.
///
/// ```text
/// attacks! {
///     "4b" the_name_of_the_test:
///     "what is tried, in one line for users" => Outcome::Limit("instances"), says ["words", "of the message"], {
///         // Yields an `Ending`, or several that must all be as declared.
///     }
/// }
/// ```
macro_rules! attacks {
    ($($number:literal $name:ident: $title:literal => $expected:expr, says [$($words:literal),* $(,)?], $attempt:block)*) => {
        /// The attacks of this module.
        pub const ATTACKS: &[$crate::table::Attack] = &[$(
            $crate::table::Attack {
                number: $number,
                name: stringify!($name),
                title: $title,
                expected: $expected,
                words: &[$($words),*],
                attempt: || -> $crate::table::Fallible<$crate::table::Endings> { Ok($crate::table::Endings::from($attempt)) },
            }
        ),*];
        $(
            #[test]
            fn $name() {
                $crate::table::hold(ATTACKS, stringify!($name));
            }
        )*
    };
}

/// `text` with the tables between their markers: of the limits, and of the attacks.
pub fn insert(text: &str, attacks: &[&Attack]) -> Fallible<String> {
    let text = between_markers(text, "limits", &Limits::documentation())?;
    between_markers(&text, "attacks", &table(attacks))
}

fn between_markers(text: &str, name: &str, table: &str) -> Fallible<String> {
    let (begin, end) = (format!("<!-- {name}: begin; made by tests/attacks -->\n"), format!("<!-- {name}: end -->\n"));
    let (before, rest) = text.split_once(&begin).ok_or_else(|| format!("the document lacks the line {begin}"))?;
    let (_, after) = rest.split_once(&end).ok_or_else(|| format!("the document lacks the line {end}"))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

fn table(attacks: &[&Attack]) -> String {
    let mut text = String::from("| | What is tried | What happens | Limit |\n|---|---|---|---|\n");
    for attack in attacks {
        let limit = match attack.expected {
            Outcome::Limit(name) => {
                assert!(
                    LIMITS.iter().any(|limit| limit.name == name),
                    "attack {}: no limit is called `{name}`",
                    attack.number
                );
                format!("`{name}`")
            }
            _ => String::new(),
        };
        let Attack { number, title, expected, .. } = attack;
        let _ = writeln!(text, "| {number} | {title} | {} | {limit} |", expected.sentence());
    }
    text
}
