//! Options and hypers: YAML of a user's, YAML and JSON of an architecture's.

use kilnbox_cli::errors::{Blame, CliError};
use kilnbox_cli::hypers::{HypersSources, merge_hypers};
use kilnbox_cli::options::{EvalOptions, TrainOptions};
use kilnbox_cli::yaml::Node;
use serde_json::json;

use crate::text::check_message;
use crate::within;

/// Far more than any of these takes, so that only what never ends is found.
const SECONDS: u64 = 20;

fn check_error(error: &CliError) {
    check_message(&error.to_string());
    assert_eq!(error.blame(), Blame::Input, "a mistake in a file is blamed on others: {error}");
}

/// The text of an options file, after a NUL each of the overrides on the command line. What is accepted reads the same after it was written.
///
/// # Panics
/// Reading panics, or one of these does not hold.
pub fn options(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.take(4).map(str::to_owned).collect();
    within(SECONDS, || {
        if let Err(error) = EvalOptions::parse(file, "eval.yaml") {
            check_error(&error);
        }
        let options = match TrainOptions::parse(file, "options.yaml", &overrides) {
            Ok(options) => options,
            Err(error) => return check_error(&error),
        };
        options.warnings.iter().for_each(|warning| check_message(warning));
        let section = options.architecture.node.to_json();
        let hypers = json!({"model": section.get("model"), "training": section.get("training")});
        let written = options.to_yaml(&hypers).unwrap_or_else(|error| panic!("options cannot be written: {error}"));
        let again = match TrainOptions::parse(&written, "written.yaml", &[]) {
            Ok(again) => again,
            // Quoting may take a file past its limit.
            Err(_) if written.len() > kilnbox_cli::yaml::MAX_BYTES as usize => return,
            Err(error) => panic!("options that were written cannot be read: {error}\n{written}"),
        };
        assert_eq!(again.to_json(&hypers), options.to_json(&hypers), "options read otherwise after they were written");
    });
}

/// Three texts with a NUL between them: the user's section `architecture`, the architecture's defaults, its schema. An empty one is none. Hypers that are accepted
/// are so once more, as they are.
///
/// # Panics
/// Merging panics, or one of these does not hold.
pub fn hypers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut parts = text.splitn(3, '\0');
    let mut next = || parts.next().unwrap_or_default();
    let (user, defaults, schema) = (next(), next(), next());
    let Ok(user) = Node::parse(user, "options.yaml") else { return };
    let sources = HypersSources {
        defaults: (!defaults.is_empty()).then_some((defaults, "default-hypers.yaml")),
        schema: (!schema.is_empty()).then_some((schema, "schema-hypers.json")),
    };
    within(SECONDS, || {
        let hypers = match merge_hypers(sources, &user) {
            Ok(hypers) => hypers,
            Err(error) => return check_error(&error),
        };
        let keys: Vec<&String> = hypers.as_object().map(|hypers| hypers.keys().collect()).unwrap_or_default();
        assert_eq!(keys, ["model", "training"]);
        // JSON is YAML, but for what only one of the two can say.
        if let Ok(again) = Node::parse(&hypers.to_string(), "again.yaml")
            && again.to_json() == hypers
        {
            let merged = merge_hypers(sources, &again).unwrap_or_else(|error| panic!("{hypers} is refused: {error}"));
            assert_eq!(merged, hypers, "hypers change when they are merged again");
        }
    });
}
