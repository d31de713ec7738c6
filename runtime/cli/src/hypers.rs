//! Hypers: the architecture's defaults under the user's, checked against the architecture's schema.
//!
//! All of this happens without running the architecture. `default-hypers.yaml` has the keys `name`, `model` and
//! `training`; the user's `architecture` section is merged over it, maps key by key, and lists and scalars as a whole. The
//! result is validated against `schema-hypers.json` where the architecture has one, and passed on as it is where it has
//! none. A complaint points at the user's line wherever the value is the user's.

use crate::errors::CliError;
use crate::log::printable;
use crate::yaml::{self, Node, Place, Section, Value, merge, unknown_key};
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::Location;
use jsonschema::{Keyword, PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value as Json};
use std::collections::HashMap;

/// The largest program that a pattern of a schema may compile to, in bytes.
const MAX_PATTERN_BYTES: usize = 256 << 10;
/// How many values of the schema a pattern counts for.
const COST_OF_PATTERN: usize = 400;
/// The most values of a schema, each counted as often as something refers to it; real ones have some hundreds.
const MAX_SCHEMA_COST: usize = 20_000;
/// The most values of hypers times values of the schema that checks them; it takes less than a second.
const MAX_CHECKS: usize = 20_000_000;
/// The most of them for which all errors are looked at, and not only the first: an error takes a hundred times as long as a check.
const MAX_ERRORS: usize = 400_000;
/// The deepest nesting of a schema; jsonschema recurses over it.
const MAX_SCHEMA_DEPTH: usize = 64;

/// The files of an architecture that hypers are made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct HypersSources<'a> {
    /// The text of `default-hypers.yaml` and the name that messages show, when the architecture has one.
    pub defaults: Option<(&'a str, &'a str)>,
    /// The text of `schema-hypers.json` and the name that messages show, when the architecture has one.
    pub schema: Option<(&'a str, &'a str)>,
}

/// Merges the user's `architecture` section over the defaults and validates the result.
///
/// Returns `{"model": {...}, "training": {...}}`; both keys are always there.
///
/// # Errors
///
/// A mistake in the user's section names its line and the nearest key; a mistake in the architecture's own files says that
/// it is the architecture's.
pub fn merge_hypers(sources: HypersSources<'_>, user: &Node) -> Result<Json, CliError> {
    let defaults = read_defaults(sources.defaults)?;
    let mut merged = Vec::new();
    for part in ["model", "training"] {
        merged.push((part, merge_part(defaults.as_ref(), user, part)));
    }
    let mut hypers: Map<String, Json> =
        merged.iter().map(|(part, node)| ((*part).to_owned(), node.to_json())).collect();
    if let Some((text, file)) = sources.schema {
        let schema = Schema::parse(text, file)?;
        let mut instance = hypers.clone();
        if let Some(name) = defaults.as_ref().and_then(|defaults| defaults.get("name")) {
            instance.insert("name".to_owned(), name.to_json());
        }
        let places = Places { user, merged: &merged };
        schema.check(&Json::Object(instance), &places)?;
    }
    // The order of the keys is the contract's, whatever the schema made of it.
    let order = |hypers: &mut Map<String, Json>, part: &str| hypers.remove(part).unwrap_or_default();
    let (model, training) = (order(&mut hypers, "model"), order(&mut hypers, "training"));
    Ok(serde_json::json!({"model": model, "training": training}))
}

/// Reads and checks `default-hypers.yaml`.
fn read_defaults(defaults: Option<(&str, &str)>) -> Result<Option<Node>, CliError> {
    let Some((text, file)) = defaults else { return Ok(None) };
    let node = Node::parse(text, file).map_err(own_mistake)?;
    let check = || {
        let section = Section::new(&node, "")?;
        section.allow_only(&["name", "model", "training"])?;
        for part in ["model", "training"] {
            section.get(part).map(|field| field.section()).transpose()?;
        }
        section.get("name").map(|field| field.text()).transpose()
    };
    check().map_err(own_mistake)?;
    Ok(Some(node))
}

fn own_mistake(error: CliError) -> CliError {
    error.hint("this file is the architecture's; report it to its maintainers")
}

fn merge_part(defaults: Option<&Node>, user: &Node, part: &str) -> Node {
    let empty = |place: &Place| Node { place: place.clone(), value: Value::Map(Vec::new()) };
    let given = |node: &Node| node.get(part).filter(|node| node.entries().is_some()).cloned();
    let base = defaults.and_then(given).unwrap_or_else(|| empty(&user.place));
    match given(user) {
        Some(over) => merge(base, over),
        None => base,
    }
}

/// Where the values of the merged hypers were written.
struct Places<'a> {
    user: &'a Node,
    merged: &'a [(&'static str, Node)],
}

impl Places<'_> {
    /// The path of keys as the user writes it, and the place of the value. `None` for a place when nothing is there.
    fn find(&self, location: &Location) -> (String, Option<&Node>) {
        let mut path = "architecture".to_owned();
        let mut node: Option<&Node> = None;
        for (depth, segment) in location.iter().enumerate() {
            let (key, index) = match &segment {
                jsonschema::paths::LocationSegment::Property(name) => (name.to_string(), None),
                jsonschema::paths::LocationSegment::Index(index) => (index.to_string(), Some(*index)),
            };
            match index {
                Some(index) => path.push_str(&format!("[{index}]")),
                None => path = yaml::join(&path, &printable(&key)),
            }
            node = if depth == 0 {
                self.merged.iter().find(|(part, _)| *part == key).map(|(_, node)| node)
            } else {
                node.and_then(|node| match (&node.value, index) {
                    (Value::List(items), Some(index)) => items.get(index),
                    _ => node.get(&key),
                })
            };
        }
        (path, node)
    }
}

/// An architecture's schema, ready to check hypers.
struct Schema<'a> {
    json: Json,
    validator: Validator,
    file: &'a str,
    /// How many values it has, each counted as often as something refers to it.
    cost: usize,
}

impl<'a> Schema<'a> {
    fn parse(text: &str, file: &'a str) -> Result<Self, CliError> {
        let wrong = |what: String| own_mistake(CliError::input(format!("{file}: {what}")));
        // serde_json itself refuses nesting beyond 128.
        let json: Json =
            serde_json::from_str(text).map_err(|error| wrong(format!("this is not valid JSON: {error}")))?;
        if depth(&json) > MAX_SCHEMA_DEPTH {
            return Err(wrong(format!("the schema is nested deeper than {MAX_SCHEMA_DEPTH}")));
        }
        let cost = Expansion { schema: &json, references: HashMap::new() }.cost(&json).map_err(wrong)?;
        if cost > MAX_SCHEMA_COST {
            return Err(wrong(format!(
                "the schema is too large: it has more than {MAX_SCHEMA_COST} values, patterns count {COST_OF_PATTERN} each, and all as often as they are referred to"
            )));
        }
        let validator = jsonschema::options()
            .with_retriever(NoRetrieval)
            .with_pattern_options(PatternOptions::regex().size_limit(MAX_PATTERN_BYTES))
            .with_keyword("type", |_, types, _| Ok(Box::new(StrictType::parse(types)?)))
            .build(&json)
            .map_err(|error| wrong(format!("this is not a usable JSON schema: {}", printable(&error.to_string()))))?;
        Ok(Self { json, validator, file, cost })
    }

    fn check(&self, instance: &Json, places: &Places<'_>) -> Result<(), CliError> {
        let values = count(instance);
        if values.saturating_mul(self.cost) > MAX_CHECKS {
            return Err(own_mistake(CliError::input(format!(
                "{}: a schema of {} values cannot check hypers of {values}: at most {MAX_CHECKS} for the product are accepted",
                self.file, self.cost
            ))));
        }
        // Without a word about why, which takes memory: most hypers are as they should be.
        if self.validator.is_valid(instance) {
            return Ok(());
        }
        let errors: Vec<_> = if values.saturating_mul(self.cost) > MAX_ERRORS {
            self.validator.validate(instance).err().into_iter().collect()
        } else {
            self.validator.iter_errors(instance).collect()
        };
        // The user's own keys first: a default cannot be wrong because of them, and they are what can be changed.
        let first =
            errors.iter().find(|error| matches!(error.kind(), ValidationErrorKind::AdditionalProperties { .. }));
        match first.or(errors.first()) {
            None => Ok(()),
            Some(error) => Err(self.explain(error, places)),
        }
    }

    fn explain(&self, error: &ValidationError<'_>, places: &Places<'_>) -> CliError {
        let error = deepest(error);
        let (path, node) = places.find(error.instance_path());
        if let ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } = error.kind()
            && let Some(key) = unexpected.first()
        {
            let place = node
                .and_then(Node::entries)
                .and_then(|entries| entries.iter().find(|entry| entry.key == *key))
                .map_or(&places.user.place, |entry| &entry.key_place);
            let known = self.known_keys(error.schema_path());
            return unknown_key(place, &path, key, known.iter().map(String::as_str));
        }
        let place = node.map_or(&places.user.place, |node| &node.place);
        let found = node.map_or_else(|| "nothing".to_owned(), Node::describe);
        let problem = match error.kind() {
            ValidationErrorKind::Required { property } => {
                format!("misses the key `{}`", property.as_str().map(printable).unwrap_or_default())
            }
            kind => format!("must be {}, and is {found}", expectation(kind)),
        };
        let error = CliError::input(format!("{place}: `{path}` {problem}"));
        let is_default = matches!(place, Place::File { file, .. } if !self.is_users(file, places));
        if is_default {
            return own_mistake(error.hint(format!("the default does not fit `{}`", self.file)));
        }
        error
    }

    fn is_users(&self, file: &str, places: &Places<'_>) -> bool {
        match &places.user.place {
            Place::File { file: users, .. } => &**users == file,
            Place::Override(_) => false,
        }
    }

    /// The keys that the schema knows beside a keyword such as `additionalProperties`.
    fn known_keys(&self, keyword: &Location) -> Vec<String> {
        let pointer = keyword.as_str();
        let parent = pointer.rsplit_once('/').map_or("", |(parent, _)| parent);
        self.json
            .pointer(&format!("{parent}/properties"))
            .and_then(Json::as_object)
            .map(|properties| properties.keys().cloned().collect())
            .unwrap_or_default()
    }
}

/// Of the branches of `anyOf` and `oneOf`, goes down the one that got furthest into the value: the one that was meant.
/// When no branch got beyond the value itself, the choice as a whole is what to talk about.
fn deepest<'a>(error: &'a ValidationError<'a>) -> &'a ValidationError<'a> {
    let (ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context }) = error.kind() else {
        return error;
    };
    let depth = |error: &ValidationError<'_>| error.instance_path().segments().count();
    let further = context.iter().flatten().filter(|inner| {
        depth(inner) > depth(error) || matches!(inner.kind(), ValidationErrorKind::AdditionalProperties { .. })
    });
    match further.max_by_key(|inner| depth(inner)) {
        Some(inner) => deepest(inner),
        None => error,
    }
}

/// What a keyword of the schema expects, for a sentence that begins with "must be".
fn expectation(kind: &ValidationErrorKind) -> String {
    match kind {
        ValidationErrorKind::Custom { message, .. } => message.clone(),
        ValidationErrorKind::Type { kind: TypeKind::Single(kind) } => format!("of type {kind}"),
        ValidationErrorKind::Enum { options } => match options.as_array() {
            Some(options) => format!("one of {}", list(options)),
            None => "one of the accepted values".to_owned(),
        },
        ValidationErrorKind::Constant { expected_value } => format!("`{}`", printable(&expected_value.to_string())),
        ValidationErrorKind::Minimum { limit } => format!("at least {limit}"),
        ValidationErrorKind::Maximum { limit } => format!("at most {limit}"),
        ValidationErrorKind::ExclusiveMinimum { limit } => format!("above {limit}"),
        ValidationErrorKind::ExclusiveMaximum { limit } => format!("below {limit}"),
        ValidationErrorKind::MinItems { limit } => format!("a list of at least {limit} items"),
        ValidationErrorKind::MaxItems { limit } => format!("a list of at most {limit} items"),
        ValidationErrorKind::UniqueItems => "a list without repetitions".to_owned(),
        ValidationErrorKind::MinLength { limit } => format!("text of at least {limit} characters"),
        ValidationErrorKind::MaxLength { limit } => format!("text of at most {limit} characters"),
        ValidationErrorKind::MultipleOf { multiple_of } => format!("a multiple of {multiple_of}"),
        ValidationErrorKind::Pattern { pattern } => format!("text that matches `{}`", printable(pattern)),
        ValidationErrorKind::FalseSchema => "left out".to_owned(),
        ValidationErrorKind::AnyOf { .. }
        | ValidationErrorKind::OneOfNotValid { .. }
        | ValidationErrorKind::OneOfMultipleValid { .. } => {
            "in one of the forms that the architecture accepts".to_owned()
        }
        other => format!("what the schema's `{}` demands", printable(other.keyword())),
    }
}

fn list(values: &[Json]) -> String {
    /// A line holds no more, and a reader neither.
    const MOST: usize = 30;
    let more = if values.len() > MOST { format!(" and {} more", values.len() - MOST) } else { String::new() };
    let values: Vec<_> = values
        .iter()
        .take(MOST)
        .map(|value| format!("`{}`", printable(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))))
        .collect();
    values.join(", ") + &more
}

fn depth(json: &Json) -> usize {
    match json {
        Json::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Json::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn count(json: &Json) -> usize {
    match json {
        Json::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Json::Object(entries) => 1 + entries.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

/// Works out how large a schema becomes when every reference is replaced by what it refers to. A few lines can become as large as one likes, and a validator
/// goes through all of it.
struct Expansion<'a> {
    schema: &'a Json,
    /// What the targets of references cost; none for those that are being worked out.
    references: HashMap<&'a str, Option<usize>>,
}

impl<'a> Expansion<'a> {
    fn cost(&mut self, json: &'a Json) -> Result<usize, String> {
        let mut cost = 1_usize;
        match json {
            Json::Array(items) => {
                for item in items {
                    cost = cost.saturating_add(self.cost(item)?);
                }
            }
            Json::Object(entries) => {
                for (key, value) in entries {
                    cost = cost.saturating_add(self.cost_of_entry(json, key, value)?);
                }
            }
            _ => {}
        }
        Ok(cost)
    }

    fn cost_of_entry(&mut self, schema: &Json, key: &str, value: &'a Json) -> Result<usize, String> {
        match (key, value) {
            ("$ref", Json::String(target)) => self.cost_of_reference(target),
            // These give names to places in other ways, which nobody needs for hypers.
            ("$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor", Json::String(_)) => {
                Err(format!("the schema has `{key}`, and only `$ref` is read"))
            }
            ("$id" | "id", Json::String(_)) if !std::ptr::eq(schema, self.schema) => {
                Err(format!("the schema has `{key}` below its top, where it is not read"))
            }
            ("pattern", Json::String(_)) => Ok(COST_OF_PATTERN),
            ("patternProperties", Json::Object(patterns)) => {
                Ok(self.cost(value)?.saturating_add(COST_OF_PATTERN.saturating_mul(patterns.len())))
            }
            _ => self.cost(value),
        }
    }

    fn cost_of_reference(&mut self, target: &'a str) -> Result<usize, String> {
        let name = || printable(target);
        match self.references.get(target) {
            Some(Some(cost)) => return Ok(*cost),
            Some(None) => return Err(format!("the schema refers to itself, through `{}`", name())),
            None => {}
        }
        let pointer = target
            .strip_prefix('#')
            .filter(|pointer| (pointer.is_empty() || pointer.starts_with('/')) && !pointer.contains('%'))
            .ok_or_else(|| format!("`{}` lies outside the schema, and nothing outside is read", name()))?;
        let referred = self.schema.pointer(pointer).ok_or_else(|| format!("there is no `{}` in the schema", name()))?;
        self.references.insert(target, None);
        let cost = self.cost(referred)?;
        self.references.insert(target, Some(cost));
        Ok(cost)
    }
}

/// Refuses every reference that leaves the schema: an architecture's file must not make the host read files or open
/// connections.
struct NoRetrieval;

impl Retrieve for NoRetrieval {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Json, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("`{uri}` lies outside the schema, and nothing outside is read").into())
    }
}

/// The keyword `type`, as strict as metatrain: `8.0` is no integer, though JSON Schema says that it is one.
struct StrictType {
    types: Vec<String>,
}

const JSON_TYPES: [(&str, &str); 7] = [
    ("null", "nothing"),
    ("boolean", "`true` or `false`"),
    ("integer", "an integer"),
    ("number", "a number"),
    ("string", "text"),
    ("array", "a list"),
    ("object", "a section with keys"),
];

impl StrictType {
    fn parse(types: &Json) -> Result<Self, ValidationError<'static>> {
        let types: Option<Vec<String>> = match types {
            Json::String(name) => Some(vec![name.clone()]),
            Json::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        types
            .filter(|types| types.iter().all(|name| JSON_TYPES.iter().any(|(known, _)| known == name)))
            .map(|types| Self { types })
            .ok_or_else(|| ValidationError::schema("`type` names no type of JSON"))
    }

    fn accepts(&self, instance: &Json) -> bool {
        self.types.iter().any(|name| match name.as_str() {
            "null" => instance.is_null(),
            "boolean" => instance.is_boolean(),
            "integer" => instance.is_i64() || instance.is_u64(),
            "number" => instance.is_number(),
            "string" => instance.is_string(),
            "array" => instance.is_array(),
            _ => instance.is_object(),
        })
    }

    fn expected(&self) -> String {
        let words: Vec<_> = JSON_TYPES
            .iter()
            .filter(|(name, _)| self.types.iter().any(|wanted| wanted == name))
            .map(|(_, words)| *words)
            .collect();
        words.join(", or ")
    }
}

impl<'i> Keyword<'i> for StrictType {
    fn validate(&self, instance: &'i Json) -> Result<(), ValidationError<'i>> {
        if self.accepts(instance) { Ok(()) } else { Err(ValidationError::custom(self.expected())) }
    }

    fn is_valid(&self, instance: &'i Json) -> bool {
        self.accepts(instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &str = "\
name: soap-bpnn
model:
  cutoff: {radius: 5.0, width: 0.5}
  heads: {}
training:
  batch_size: 8
  learning_rate: 0.001
  loss: mse
  layers: [32, 32]
";

    const SCHEMA: &str = r##"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "required": ["model", "training"],
  "properties": {
    "name": {"const": "soap-bpnn"},
    "model": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "cutoff": {"$ref": "#/$defs/cutoff"},
        "heads": {"type": "object"}
      }
    },
    "training": {
      "type": "object",
      "additionalProperties": false,
      "properties": {
        "batch_size": {"type": "integer", "minimum": 1},
        "learning_rate": {"type": "number", "exclusiveMinimum": 0},
        "loss": {"anyOf": [{"enum": ["mse", "mae"]}, {"type": "object"}]},
        "metric": {"enum": ["rmse_prod", "mae_prod"]},
        "layers": {"type": "array", "items": {"type": "integer"}, "minItems": 1}
      }
    }
  },
  "$defs": {
    "cutoff": {
      "type": "object",
      "additionalProperties": false,
      "properties": {"radius": {"type": "number"}, "width": {"type": "number"}}
    }
  }
}"##;

    fn merged(schema: Option<&str>, user: &str) -> Result<Json, String> {
        let user = Node::parse(&format!("architecture:\n  name: soap-bpnn\n{user}"), "options.yaml").expect("YAML");
        let sources = HypersSources {
            defaults: Some((DEFAULTS, "default-hypers.yaml")),
            schema: schema.map(|schema| (schema, "schema-hypers.json")),
        };
        merge_hypers(sources, user.get("architecture").expect("the section")).map_err(|error| error.to_string())
    }

    fn refusal(user: &str) -> String {
        merged(Some(SCHEMA), user).expect_err("the hypers are refused")
    }

    #[test]
    fn the_users_hypers_are_merged_over_the_defaults() {
        let user = "  model:\n    cutoff: {radius: 6}\n  training: {layers: [16], loss: {energy: mae}}\n";
        let expected = r#"{"model":{"cutoff":{"radius":6,"width":0.5},"heads":{}},"training":{"batch_size":8,"learning_rate":0.001,"loss":{"energy":"mae"},"layers":[16]}}"#;
        assert_eq!(merged(Some(SCHEMA), user).expect("the hypers are valid").to_string(), expected);
        assert_eq!(merged(None, user).expect("no schema, no check").to_string(), expected);
    }

    #[test]
    fn without_a_schema_or_defaults_hypers_are_passed_on_unchecked() {
        let user = merged(None, "  training: {whatever: [1, x]}\n").expect("the hypers are passed on");
        assert_eq!(user["training"]["whatever"], serde_json::json!([1, "x"]));
        let node = Node::parse("{name: x, model: {a: 1}}", "o.yaml").expect("YAML");
        let hypers = merge_hypers(HypersSources::default(), &node).expect("the hypers are passed on");
        assert_eq!(hypers.to_string(), r#"{"model":{"a":1},"training":{}}"#);
    }

    #[test]
    fn a_misspelled_key_is_pointed_at_with_the_nearest_one() {
        assert_eq!(
            refusal("  training:\n    learning_rat: 0.1\n"),
            "error: options.yaml:4:5: unknown key `architecture.training.learning_rat`\n  hint: use `learning_rate`"
        );
        assert_eq!(
            refusal("  model:\n    cutoff:\n      radus: 0.1\n"),
            "error: options.yaml:5:7: unknown key `architecture.model.cutoff.radus`\n  hint: use `radius`"
        );
    }

    #[test]
    fn wrong_values_are_pointed_at() {
        let cases = [
            ("batch_size: 8.0", "4:17: `architecture.training.batch_size` must be an integer, and is the number `8.0`"),
            ("batch_size: true", "must be an integer, and is `true`"),
            ("batch_size: 0", "must be at least 1, and is the integer `0`"),
            ("learning_rate: '1'", "must be a number, and is the text `1`"),
            ("learning_rate: 0", "must be above 0"),
            ("metric: rmse", "must be one of `rmse_prod`, `mae_prod`, and is the text `rmse`"),
            ("loss: huber", "must be in one of the forms that the architecture accepts, and is the text `huber`"),
            ("layers: [1, 2.0]", "`architecture.training.layers[1]` must be an integer, and is the number `2.0`"),
            ("layers: []", "must be a list of at least 1 items"),
        ];
        for (line, expected) in cases {
            let message = refusal(&format!("  training:\n    {line}\n"));
            assert!(message.starts_with("error: options.yaml:4:") && message.contains(expected), "{line}: {message}");
        }
    }

    #[test]
    fn integers_are_numbers() {
        merged(Some(SCHEMA), "  training: {learning_rate: 1}\n").expect("an integer is a number");
    }

    #[test]
    fn defaults_that_do_not_fit_their_own_schema_are_the_architectures_mistake() {
        let schema = SCHEMA.replace(r#""minimum": 1"#, r#""minimum": 10"#);
        let message = merged(Some(&schema), "").expect_err("the default is refused");
        assert!(
            message.starts_with("error: default-hypers.yaml:6:15: `architecture.training.batch_size`"),
            "{message}"
        );
        assert!(message.contains("report it to its maintainers"), "{message}");
    }

    #[test]
    fn references_to_the_outside_are_refused_and_nothing_is_opened() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("the listener does not block");
        let port = listener.local_addr().expect("an address").port();
        let outside =
            [format!("http://127.0.0.1:{port}/schema.json"), "file:///etc/passwd".to_owned(), "other.json".to_owned()];
        for uri in outside {
            let message = merged(Some(&format!(r#"{{"$ref": "{uri}"}}"#)), "").expect_err("the reference is refused");
            assert!(message.contains("schema-hypers.json"), "{message}");
        }
        assert_eq!(listener.accept().expect_err("nobody connected").kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn hostile_schemas_are_refused_or_answered_quickly() {
        let start = std::time::Instant::now();
        let pattern = r#"{"properties": {"model": {"properties": {"a": {"pattern": "(a+)+$"}}}}}"#;
        let user = format!("  model: {{a: {}b}}\n", "a".repeat(30));
        assert!(merged(Some(pattern), &user).is_err());
        let large = r#"{"properties": {"model": {"properties": {"a": {"pattern": "(((a{100}){100}){100}){100}"}}}}}"#;
        assert!(merged(Some(large), &user).is_err());
        let references = [
            (r##"{"$ref": "#"}"##, "refers to itself, through `#`"),
            (
                r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}"##,
                "refers to itself, through `#/$defs/",
            ),
            (r##"{"properties": {"model": {"$ref": "#"}}}"##, "refers to itself, through `#`"),
            (r##"{"$dynamicRef": "#"}"##, "has `$dynamicRef`"),
            (r##"{"not": {"$id": "x"}}"##, "has `$id` below its top"),
            (r##"{"$ref": "#/$defs/%61", "$defs": {"a": {}}}"##, "lies outside the schema"),
            (r##"{"$ref": "#/absent"}"##, "there is no `#/absent` in the schema"),
            (r##"{"$schema": "http://127.0.0.1:1/schema"}"##, "is not a usable JSON schema"),
        ];
        for (schema, expected) in references {
            let message = merged(Some(schema), "").expect_err("the schema is refused");
            assert!(message.contains(expected) && message.contains("report it to its maintainers"), "{message}");
        }
        // Each of 30 definitions is two of the next: 2^30 in all.
        let laughs: String = (0..30)
            .map(|level| {
                let next = format!(r##"{{"$ref": "#/$defs/{}"}}"##, level + 1);
                format!(r#""{level}": {{"allOf": [{next}, {next}]}}, "#)
            })
            .collect();
        let laughs = format!(r##"{{"$defs": {{{laughs}"30": {{}}}}, "$ref": "#/$defs/0"}}"##);
        let ways = format!(r#"{{"anyOf": [{}{{}}]}}"#, r#"{"const": 1}, "#.repeat(60_000));
        let patterns: String = (0..60).map(|number| format!(r#""{number}[a-z]{{500}}": {{}}, "#)).collect();
        let patterns = format!(r#"{{"patternProperties": {{{patterns}"x": {{}}}}}}"#);
        for schema in [&laughs, &ways, &patterns] {
            let message = merged(Some(schema), "").expect_err("the schema is refused");
            assert!(message.contains("the schema is too large"), "{message}");
        }
        // The largest that is accepted, and none of it fits.
        let ways = format!(
            r#"{{"properties": {{"model": {{"properties": {{"a": {{"items": {{"anyOf": [{}{{"const": 2}}]}}}}}}}}}}}}"#,
            r#"{"const": 1}, "#.repeat(9_900)
        );
        let numbers = |count: usize| format!("  model: {{a: [{}0]}}\n", "0, ".repeat(count));
        let message = merged(Some(&ways), &numbers(900)).expect_err("the numbers are refused");
        assert!(message.contains("`architecture.model.a[0]` must be in one of the forms"), "{message}");
        let message = merged(Some(&ways), &numbers(1100)).expect_err("the numbers are too many");
        assert!(message.contains("at most 20000000 for the product are accepted"), "{message}");
        let many = format!(r#"{{"properties": {{"model": {{"enum": [{}0]}}}}}}"#, "0, ".repeat(9_000));
        let message = merged(Some(&many), "").expect_err("the default is none of them");
        assert!(message.contains("`0` and 8971 more") && message.len() < 1000, "{message}");
        let deep = format!("{}{}{}", r#"{"not":"#.repeat(100), "{}", "}".repeat(100));
        assert!(merged(Some(&deep), "").is_err());
        assert!(merged(Some("{"), "").is_err());
        assert!(merged(Some(r#"{"type": "float"}"#), "").is_err());
        assert!(start.elapsed().as_secs() < 5, "all of these take milliseconds");
    }
}
