//! YAML as a tree in which every value knows its place, so that every later complaint can point at a line.

use crate::errors::{CliError, nearest};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value as Json;
use serde_saphyr::{DuplicateKeyPolicy, Options, Spanned};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The largest file of options or hypers, in bytes; real ones have a few kilobytes.
pub const MAX_BYTES: u64 = 256 << 10;
/// The deepest nesting; real files reach 7.
const MAX_DEPTH: usize = 32;
/// The most aliases (`*name`); they are rare, and what they expand to is what makes a small file a bomb.
const MAX_ALIASES: usize = 100;
/// The most values that aliases may add.
const MAX_REPLAYED: usize = 5_000;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line and column of a file, both counted from 1.
    File {
        /// The file's name, as the user gave it.
        file: Arc<str>,
        /// The line.
        line: u64,
        /// The column.
        column: u64,
    },
    /// An override on the command line, `-r KEY=VALUE`.
    Override(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(formatter, "{file}:{line}:{column}"),
            Self::Override(text) => write!(formatter, "in override `-r {}`", crate::log::printable(text)),
        }
    }
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where the value is written.
    pub place: Place,
    /// The value.
    pub value: Value,
}

/// A value as YAML knows it.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, `null` or `~`.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number without a decimal point.
    Integer(i128),
    /// A number with a decimal point or exponent; always finite.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map in the order of the file.
    Map(Vec<Entry>),
}

/// One entry of a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key; numbers are turned to text.
    pub key: String,
    /// Where the key is written.
    pub key_place: Place,
    /// The value.
    pub node: Node,
}

impl Node {
    /// Parses YAML text; `file` is the name that places show.
    ///
    /// # Errors
    ///
    /// Malformed YAML, duplicate keys, numbers that are not finite, nesting or aliases beyond the limits; all with
    /// line and column.
    pub fn parse(text: &str, file: &str) -> Result<Self, CliError> {
        let file: Arc<str> = file.into();
        parse_located(text, &|location| Place::File {
            file: file.clone(),
            line: location.line(),
            column: location.column(),
        })
        .and_then(|node| match node.value {
            Value::Null => Err((None, "the file is empty".to_owned())),
            _ => Ok(node),
        })
        .map_err(|(place, message)| match place {
            Some(place) => CliError::input(format!("{place}: {message}")),
            None => CliError::input(format!("{file}: {message}")),
        })
    }

    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    ///
    /// See [`Node::parse`]; also when the file cannot be read, is larger than 256 KiB or no UTF-8.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        Self::parse(&read_text(path, MAX_BYTES)?, &path.display().to_string())
    }

    /// Parses the value of an override; `text` is the whole override, `KEY=VALUE`.
    fn parse_override(value: &str, text: &str) -> Result<Self, CliError> {
        let place = Place::Override(text.into());
        if value.trim().is_empty() {
            return Ok(Self { place, value: Value::Null });
        }
        parse_located(value, &|_| place.clone()).map_err(|(_, message)| CliError::input(format!("{place}: {message}")))
    }

    /// The entries of a map; `None` for anything else.
    pub fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The value of `key`, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entries()?.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// What this is, as one says it in a message: ``the text `abc` ``.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Boolean(value) => format!("`{value}`"),
            Value::Integer(value) => format!("the integer `{value}`"),
            Value::Float(value) => format!("the number `{value:?}`"),
            Value::Text(value) => format!("the text `{}`", crate::log::printable(value)),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a section with keys".to_owned(),
        }
    }

    /// The value as JSON, without places.
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Boolean(value) => Json::Bool(*value),
            Value::Integer(value) => integer_to_json(*value),
            Value::Float(value) => Json::from(*value),
            Value::Text(value) => Json::String(value.clone()),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect())
            }
        }
    }

    /// Sets one value from the command line: `text` is `key.sub=value`, and the value is read as YAML.
    ///
    /// Sections on the way are made when they are absent; a number in the key picks an item of a list.
    ///
    /// # Errors
    ///
    /// When there is no `=`, the key is empty, the value is no YAML, or the key leads into something that has no keys.
    pub fn apply_override(&mut self, text: &str) -> Result<(), CliError> {
        let malformed = || {
            let place = Place::Override(text.into());
            CliError::input(format!("{place}: a key, `=` and a value are expected"))
                .hint("for example `-r architecture.training.num_epochs=10`")
        };
        let (path, value) = text.split_once('=').ok_or_else(malformed)?;
        let keys: Vec<&str> = path.trim().split('.').collect();
        if keys.len() > MAX_DEPTH || keys.iter().any(|key| key.is_empty()) {
            return Err(malformed());
        }
        let node = Self::parse_override(value, text)?;
        // Options are written into the folder of a run, and have to be read from there.
        if keys.len() + node.depth() > MAX_DEPTH {
            let place = Place::Override(text.into());
            return Err(CliError::input(format!(
                "{place}: it is nested too deeply: at most {MAX_DEPTH} levels are read"
            )));
        }
        self.set(&keys, node, text)
    }

    /// How many sections and lists lie in one another here.
    fn depth(&self) -> usize {
        match &self.value {
            Value::Map(entries) => 1 + entries.iter().map(|entry| entry.node.depth()).max().unwrap_or(0),
            Value::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn set(&mut self, keys: &[&str], node: Self, text: &str) -> Result<(), CliError> {
        let [key, rest @ ..] = keys else {
            // An override merges like OmegaConf's dotlist: a section given flow style adds to the section in the file.
            *self = merge(self.clone(), node);
            return Ok(());
        };
        let place = Place::Override(text.into());
        if matches!(self.value, Value::Null) {
            self.value = Value::Map(Vec::new());
        }
        match &mut self.value {
            Value::Map(entries) => {
                let index = entries.iter().position(|entry| entry.key == *key).unwrap_or_else(|| {
                    let node = Self { place: place.clone(), value: Value::Null };
                    entries.push(Entry { key: (*key).to_owned(), key_place: place.clone(), node });
                    entries.len() - 1
                });
                entries[index].node.set(rest, node, text)
            }
            Value::List(items) => {
                let length = items.len();
                let item =
                    key.parse::<usize>().ok().and_then(|index| items.get_mut(index)).ok_or_else(|| {
                        CliError::input(format!("{place}: `{key}` picks no item of a list of {length}"))
                    })?;
                item.set(rest, node, text)
            }
            _ => Err(CliError::input(format!("{place}: `{key}` cannot be set inside {}", self.describe()))),
        }
    }
}

/// Merges `over` over `base`: maps are merged key by key, and anything else is replaced as a whole.
pub fn merge(base: Node, over: Node) -> Node {
    match (base.value, over.value) {
        (Value::Map(mut entries), Value::Map(overrides)) => {
            for new in overrides {
                match entries.iter().position(|entry| entry.key == new.key) {
                    Some(index) => {
                        let old = std::mem::replace(&mut entries[index].node.value, Value::Null);
                        let old = Node { place: entries[index].node.place.clone(), value: old };
                        entries[index] = Entry { node: merge(old, new.node), ..new };
                    }
                    None => entries.push(new),
                }
            }
            Node { place: over.place, value: Value::Map(entries) }
        }
        (_, value) => Node { place: over.place, value },
    }
}

/// Reads a text file with a limit on its size.
///
/// # Errors
///
/// When it cannot be read, is larger than `limit` bytes, or is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, CliError> {
    use std::io::Read;
    let unreadable = |error: &std::io::Error| crate::errors::file_error("read", path, error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(|error| unreadable(&error))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > limit {
        return Err(CliError::input(format!("`{}` is larger than {limit} bytes", path.display())));
    }
    String::from_utf8(bytes).map_err(|_| CliError::input(format!("`{}` is not UTF-8 text", path.display())))
}

fn integer_to_json(value: i128) -> Json {
    u64::try_from(value)
        .map(Json::from)
        .or_else(|_| i64::try_from(value).map(Json::from))
        // Beyond 64 bits JSON readers see a floating-point number anyway.
        .unwrap_or_else(|_| Json::from(value as f64))
}

/// The tree as serde-saphyr hands it out: places are still its own.
#[derive(Clone)]
enum Raw {
    Null,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Key>, Spanned<Raw>)>),
}

/// A key of a map as text.
#[derive(Clone)]
struct Key(String);

type Located<'a> = &'a dyn Fn(serde_saphyr::Location) -> Place;

fn parse_located(text: &str, place: Located<'_>) -> Result<Node, (Option<Place>, String)> {
    if text.len() as u64 > MAX_BYTES {
        return Err((None, format!("the text is larger than {MAX_BYTES} bytes")));
    }
    let raw: Spanned<Raw> = serde_saphyr::from_str_with_options(text, yaml_options()).map_err(|error| {
        let error = error.without_snippet();
        (error.location().map(place), yaml_message(error))
    })?;
    Ok(from_raw(raw, place))
}

fn yaml_options() -> Options {
    let mut options = Options::default();
    let mut budget = serde_saphyr::Budget::default();
    budget.max_reader_input_bytes = Some(MAX_BYTES as usize);
    budget.max_depth = MAX_DEPTH;
    budget.flow_nesting_limit = MAX_DEPTH;
    // The second one is refused by name, not as too much.
    budget.max_documents = 2;
    budget.max_aliases = MAX_ALIASES;
    budget.max_anchors = MAX_ALIASES;
    budget.max_merge_keys = MAX_ALIASES;
    options.budget = Some(budget);
    options.alias_limits.max_total_replayed_events = MAX_REPLAYED;
    options.alias_limits.max_replay_stack_depth = MAX_DEPTH;
    options.duplicate_keys = DuplicateKeyPolicy::Error;
    options.non_finite_float_policy = serde_saphyr::NonFiniteFloatPolicy::Reject;
    // `y` and `n` would be booleans otherwise, and they are names of components; `yes`, `no`, `on` and `off` are
    // turned to booleans where a boolean is expected.
    options.strict_booleans = true;
    // Whoever writes `!!python/object` means something that would be dropped without a word.
    options.reject_unsupported_tags = true;
    options.with_snippet = false;
    options
}

/// The message of a YAML error in our own form, where ours helps more.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let too_much = || {
        format!(
            "the file is nested too deeply or expands to too much: at most {MAX_DEPTH} levels and {MAX_ALIASES} aliases are read"
        )
    };
    match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("key `{key}` is given twice"),
        Error::NonFiniteFloat { value, .. } => format!("`{value}` is not a finite number"),
        // What an alias refers to is wrong.
        Error::AliasError { error, .. } => yaml_message(error),
        Error::Budget { .. }
        | Error::AliasReplayLimitExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. }
        | Error::AliasReplayStackDepthExceeded { .. } => too_much(),
        Error::Eof { .. } => "the file is empty".to_owned(),
        Error::MultipleDocuments { .. } => "only one YAML document is expected".to_owned(),
        other => {
            // Its message ends in a place of its own; ours stands before.
            let text = other.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            // The parser has a limit of its own for brackets, of which only the text is left.
            if text.contains("recursion limit exceeded") {
                return too_much();
            }
            format!("this is not valid YAML: {}", crate::log::printable(text))
        }
    }
}

fn from_raw(raw: Spanned<Raw>, place: Located<'_>) -> Node {
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Boolean(value) => Value::Boolean(value),
        Raw::Integer(value) => Value::Integer(value),
        Raw::Float(value) => Value::Float(value),
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => Value::List(items.into_iter().map(|item| from_raw(item, place)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, node)| Entry {
                    key_place: place(key.referenced),
                    key: key.value.0,
                    node: from_raw(node, place),
                })
                .collect(),
        ),
    };
    Node { place: place(raw.referenced), value }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Boolean(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Integer(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        if !value.is_finite() {
            return Err(E::custom("a finite number is expected"));
        }
        Ok(Raw::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Raw::deserialize(deserializer)? {
            Raw::Text(text) => Ok(Self(text)),
            Raw::Integer(number) => Ok(Self(number.to_string())),
            Raw::Float(number) => Ok(Self(format!("{number:?}"))),
            Raw::Boolean(value) => Ok(Self(value.to_string())),
            Raw::Null | Raw::List(_) | Raw::Map(_) => Err(de::Error::custom("a key must be text or a number")),
        }
    }
}

/// A section of a file that is being checked: a map, and the path of keys that leads to it.
pub struct Section<'a> {
    path: String,
    node: &'a Node,
    entries: &'a [Entry],
}

impl<'a> Section<'a> {
    /// Takes a node as a section; `path` is empty for the whole file.
    ///
    /// # Errors
    ///
    /// When the node is no map, or a key has `${...}` in it.
    pub fn new(node: &'a Node, path: impl Into<String>) -> Result<Self, CliError> {
        let path = path.into();
        let Some(entries) = node.entries() else {
            return Err(Field { path, node }.wrong("a section with keys"));
        };
        // Names become values elsewhere, where this is refused: a target's is the key that is read unless another is given.
        if let Some(entry) = entries.iter().find(|entry| entry.key.contains("${")) {
            let key = join(&path, &crate::log::printable(&entry.key));
            return Err(CliError::input(format!(
                "{}: the key `{key}`: `${{...}}` is not replaced by kilnbox",
                entry.key_place
            ))
            .hint("write the name itself"));
        }
        Ok(Self { path, node, entries })
    }

    /// Refuses every key that is not in `keys`, with the nearest one as a hint.
    ///
    /// # Errors
    ///
    /// Points at the first unknown key.
    pub fn allow_only(&self, keys: &[&str]) -> Result<(), CliError> {
        match self.entries.iter().find(|entry| !keys.contains(&entry.key.as_str())) {
            None => Ok(()),
            Some(entry) => Err(unknown_key(&entry.key_place, &self.path, &entry.key, keys.iter().copied())),
        }
    }

    /// The value of a key; a key without a value (`device:`) counts as absent.
    pub fn get(&self, key: &str) -> Option<Field<'a>> {
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        if matches!(entry.node.value, Value::Null) {
            return None;
        }
        Some(Field { path: join(&self.path, key), node: &entry.node })
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    ///
    /// Points at the section when it is not.
    pub fn require(&self, key: &str) -> Result<Field<'a>, CliError> {
        self.get(key)
            .ok_or_else(|| CliError::input(format!("{}: `{}` is missing", self.node.place, join(&self.path, key))))
    }

    /// All keys, with their values.
    pub fn fields(&self) -> impl Iterator<Item = (&'a Entry, Field<'a>)> {
        self.entries.iter().map(|entry| (entry, Field { path: join(&self.path, &entry.key), node: &entry.node }))
    }

    /// An error about this section as a whole.
    pub fn error(&self, message: impl fmt::Display) -> CliError {
        CliError::input(format!("{}: `{}` {message}", self.node.place, self.path))
    }
}

/// One value of a file that is being checked, and the path of keys that leads to it.
#[derive(Clone)]
pub struct Field<'a> {
    /// The path of keys, `architecture.training.batch_size`.
    pub path: String,
    /// The value.
    pub node: &'a Node,
}

impl<'a> Field<'a> {
    /// The error that something else was expected here.
    pub fn wrong(&self, expected: &str) -> CliError {
        let name = if self.path.is_empty() { "the file".to_owned() } else { format!("`{}`", self.path) };
        CliError::input(format!("{}: {name} must be {expected}, and is {}", self.node.place, self.node.describe()))
    }

    /// An error about this value.
    pub fn error(&self, message: impl fmt::Display) -> CliError {
        CliError::input(format!("{}: `{}` {message}", self.node.place, self.path))
    }

    /// The value as a section.
    ///
    /// # Errors
    ///
    /// When it is no map.
    pub fn section(&self) -> Result<Section<'a>, CliError> {
        Section::new(self.node, self.path.clone())
    }

    /// The value as text.
    ///
    /// # Errors
    ///
    /// When it is anything else; also when it holds `${...}`, which metatrain would replace and kilnbox does not.
    pub fn text(&self) -> Result<String, CliError> {
        match &self.node.value {
            Value::Text(text) if text.contains("${") => Err(self
                .error(format!("is `{text}`, and `${{...}}` is not replaced by kilnbox"))
                .hint("write the value itself")),
            Value::Text(text) => Ok(text.clone()),
            _ => Err(self.wrong("text")),
        }
    }

    /// The value as one of a few words.
    ///
    /// # Errors
    ///
    /// When it is none of them; the nearest is the hint.
    pub fn one_of(&self, words: &[&str]) -> Result<String, CliError> {
        let text = self.text()?;
        if words.contains(&text.as_str()) {
            return Ok(text);
        }
        let list: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
        let error = self.wrong(&format!("one of {}", list.join(", ")));
        Err(error.maybe_hint(nearest(&text, words.iter().copied()).map(|word| format!("use `{word}`"))))
    }

    /// The value as a boolean, when it is one; `yes`, `no`, `on` and `off` count, as they do for metatrain.
    pub fn as_boolean(&self) -> Option<bool> {
        match &self.node.value {
            Value::Boolean(value) => Some(*value),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "yes" | "on" => Some(true),
                "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// The value as a boolean.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn boolean(&self) -> Result<bool, CliError> {
        self.as_boolean().ok_or_else(|| self.wrong("`true` or `false`"))
    }

    /// The value as an integer from 0 to `largest`; `8.0` and `true` are no integers.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn integer(&self, largest: u64) -> Result<u64, CliError> {
        match self.node.value {
            Value::Integer(value) => u64::try_from(value)
                .ok()
                .filter(|value| *value <= largest)
                .ok_or_else(|| self.wrong(&format!("an integer from 0 to {largest}"))),
            _ => Err(self.wrong("an integer")),
        }
    }

    /// The value as a number; integers are numbers too.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn number(&self) -> Result<f64, CliError> {
        match self.node.value {
            Value::Integer(value) => Ok(value as f64),
            Value::Float(value) => Ok(value),
            _ => Err(self.wrong("a number")),
        }
    }

    /// The items of a list.
    ///
    /// # Errors
    ///
    /// When it is anything else.
    pub fn list(&self) -> Result<Vec<Field<'a>>, CliError> {
        match &self.node.value {
            Value::List(items) => Ok(items
                .iter()
                .enumerate()
                .map(|(index, node)| Field { path: format!("{}[{index}]", self.path), node })
                .collect()),
            _ => Err(self.wrong("a list")),
        }
    }
}

/// The path of a key in a section.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The error for a key that nobody knows.
pub fn unknown_key<'a>(place: &Place, path: &str, key: &str, known: impl IntoIterator<Item = &'a str>) -> CliError {
    /// Nobody mistypes a longer key, and comparing two of many kilobytes takes minutes.
    const LONGEST: usize = 100;
    /// A line holds no more, and a reader neither.
    const MOST: usize = 50;
    let error = CliError::input(format!("{place}: unknown key `{}`", join(path, &crate::log::printable(key))));
    let mut known: Vec<_> = known.into_iter().filter(|known| known.len() <= LONGEST).collect();
    if key.len() > LONGEST {
        return error;
    }
    if let Some(nearest) = nearest(key, known.iter().copied()) {
        return error.hint(format!("use `{}`", crate::log::printable(nearest)));
    }
    if known.is_empty() {
        return error;
    }
    known.sort_unstable();
    let more = if known.len() > MOST { format!(" and {} more", known.len() - MOST) } else { String::new() };
    known.truncate(MOST);
    error.hint(format!(
        "the keys here are `{}`{more}",
        known.into_iter().map(crate::log::printable).collect::<Vec<_>>().join("`, `")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value of YAML text as JSON, or the error.
    fn read(text: &str) -> String {
        match Node::parse(text, "o.yaml") {
            Ok(node) => node.to_json().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn scalars_are_read_as_metatrain_reads_them() {
        let text = "{a: 1, b: 1.0, c: 1e-3, d: yes, e: y, f: true, g: ~, h: '1', i: -2, j: \"x\"}";
        let json = r#"{"a":1,"b":1.0,"c":0.001,"d":"yes","e":"y","f":true,"g":null,"h":"1","i":-2,"j":"x"}"#;
        assert_eq!(read(text), json);
    }

    #[test]
    fn keys_may_be_numbers_and_keep_their_order() {
        assert_eq!(read("z: 0\n8: -0.5\n1: 2\n"), r#"{"z":0,"8":-0.5,"1":2}"#);
    }

    #[test]
    fn every_value_and_key_knows_its_place() {
        let node = Node::parse("a:\n  b: [1,\n    2]\n", "o.yaml").expect("the text is YAML");
        let b = node.get("a").and_then(|a| a.get("b")).expect("a.b is there");
        assert_eq!(b.place.to_string(), "o.yaml:2:6");
        let Value::List(items) = &b.value else { unreachable!("a.b is a list") };
        assert_eq!(items[1].place.to_string(), "o.yaml:3:5");
        let entries = node.get("a").and_then(Node::entries).expect("a is a map");
        assert_eq!(entries[0].key_place.to_string(), "o.yaml:2:3");
    }

    #[test]
    fn what_is_not_plain_yaml_is_refused_with_its_place() {
        let cases = [
            ("a: 1\nb: 2\na: 3\n", "o.yaml:3:1: key `a` is given twice"),
            ("a: .nan\n", "o.yaml:1:4: `.nan` is not a finite number"),
            ("a: [1, 2\n", "o.yaml:"),
            ("", "empty"),
            ("a: 1\n---\nb: 2\n", "only one YAML document"),
            ("a: *b\n", "o.yaml:1:4: this is not valid YAML"),
            ("[1]: 2\n", "a key must be text or a number"),
            ("a: \tb\n\t- c", "not valid YAML"),
        ];
        for (text, expected) in cases {
            let message = read(text);
            assert!(message.starts_with("error: o.yaml") && message.contains(expected), "{text:?}: {message}");
        }
    }

    #[test]
    fn bombs_are_refused_quickly() {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        let deep = "[".repeat(100_000);
        let large = format!("a: '{}'", "x".repeat(MAX_BYTES as usize));
        let merges: String = (1..50)
            .map(|level| format!("a{level}: &a{level}\n  <<: [{0}, {0}]\n", format!("*a{}", level - 1)))
            .collect();
        let cases = [
            (laughs, "expands to too much"),
            (deep, "nested too deeply"),
            ("{a: ".repeat(50_000), "nested too deeply"),
            (
                "a:\n".to_owned() + &(1..300).map(|depth| " ".repeat(depth) + "a:\n").collect::<String>(),
                "nested too deeply",
            ),
            ("- ".repeat(100_000), "nested too deeply"),
            (large, "larger than 262144 bytes"),
            (format!("a0: &a0 {{x: 1}}\n{merges}"), "o.yaml:"),
            ("a: &a\n  <<: *a\n".to_owned(), "o.yaml:"),
            ("a: &a [*a]\n".to_owned(), "o.yaml:"),
            ("&a ".repeat(80_000), "o.yaml:"),
            (format!("? {}", "? ".repeat(100_000)), "nested too deeply"),
            (format!("{{{}: 1}}", "x".repeat(200_000)), ""),
            ((0..25_000).map(|key| format!("k{key}: {key}\n")).collect(), ""),
            ("a: !!python/object/apply:os.system ['true']\n".to_owned(), "o.yaml:1:"),
            ("a: !include /etc/passwd\n".to_owned(), "o.yaml:1:"),
            ("a: ${HOME}\n".to_owned(), ""),
            ("%YAML 9.9\n---\na: 1\n".to_owned(), ""),
            ("%TAG ! tag:x,2000:\n---\na: !x 1\n".to_owned(), "o.yaml:3:"),
            ("a: \u{0}\n".to_owned(), "o.yaml:1:"),
            ("a: \"\\x1b[2J\"\n".to_owned(), ""),
            ("a: 1e999\n".to_owned(), "not a finite number"),
            ("a: -.INF\n".to_owned(), "not a finite number"),
            ("a: 999999999999999999999999999999999999999999999999\n".to_owned(), ""),
        ];
        let mut problems = Vec::new();
        for (text, expected) in cases {
            let start = std::time::Instant::now();
            let message = read(&text);
            let taken = start.elapsed();
            // A bomb that goes off takes minutes, and these some milliseconds each.
            if taken.as_secs_f64() > 1.0 || !message.contains(expected) {
                problems.push(format!("{text:.40?} takes {taken:?}, and {expected:?} is wanted in {message:.200}"));
            }
        }
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn overrides_set_values_and_make_sections() {
        let mut node = Node::parse("a: {b: 1}\nl: [{x: 1}]\n", "o.yaml").expect("the text is YAML");
        for text in ["a.b=2.5", "a.c=[1, 2]", "n.m=true", "l.0.x=s", "a={d: 4}", "a.e="] {
            node.apply_override(text).expect("the override is applied");
        }
        assert_eq!(
            node.to_json().to_string(),
            r#"{"a":{"b":2.5,"c":[1,2],"d":4,"e":null},"l":[{"x":"s"}],"n":{"m":true}}"#
        );
    }

    #[test]
    fn malformed_overrides_are_refused() {
        let cases = [
            ("a", "a key, `=` and a value are expected"),
            ("=1", "a key, `=` and a value are expected"),
            ("a..b=1", "a key, `=` and a value are expected"),
            ("a=[1", "in override `-r a=[1`: this is not valid YAML"),
            ("s.t=1", "`t` cannot be set inside the integer `1`"),
            ("l.7=1", "`7` picks no item of a list of 1"),
        ];
        // Two levels more than the path has.
        let deep = |keys: usize| format!("{}a={{b: {{c: 1}}}}", "a.".repeat(keys - 1));
        let mut node = Node::parse("s: 1\n", "o.yaml").expect("the text is YAML");
        node.apply_override(&deep(MAX_DEPTH - 2)).expect("it is as deep as may be");
        let cases = cases.map(|(text, expected)| (text.to_owned(), expected));
        for (text, expected) in cases.into_iter().chain([(deep(MAX_DEPTH - 1), "nested too deeply: at most 32 levels")])
        {
            let mut node = Node::parse("s: 1\nl: [1]\n", "o.yaml").expect("the text is YAML");
            let message = node.apply_override(&text).expect_err("the override is refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
