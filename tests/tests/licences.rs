//! Every crate that is compiled in may be used under a licence that `deny.toml` allows. (Advisories need a network: `cargo deny check` knows them.)

use std::collections::BTreeSet;
use std::error::Error;
use std::process::Command;

use kilnbox_tests::repository;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

fn allowed() -> Fallible<Vec<String>> {
    let text = std::fs::read_to_string(repository().join("deny.toml"))?;
    let list = text.split_once("allow = [").and_then(|(_, rest)| rest.split_once(']')).ok_or("no list of licences")?.0;
    Ok(list.split(',').map(|name| name.trim().trim_matches('"').to_owned()).filter(|name| !name.is_empty()).collect())
}

/// Whether an SPDX expression is satisfied by the allowed licences. `/` is how `OR` was written once.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace(" / ", "/").replace('/', " OR ");
    let choices = outside_of_brackets(&expression, " OR ");
    if choices.len() > 1 {
        return choices.iter().any(|choice| is_allowed(choice, allowed));
    }
    let parts = outside_of_brackets(&expression, " AND ");
    if parts.len() > 1 {
        return parts.iter().all(|part| is_allowed(part, allowed));
    }
    match expression.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.iter().any(|name| name == expression.trim()),
    }
}

/// The parts between `separator`s that stand outside of brackets.
fn outside_of_brackets<'a>(expression: &'a str, separator: &str) -> Vec<&'a str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_usize);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && at >= start && expression[at..].starts_with(separator) => {
                parts.push(&expression[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}

#[test]
fn every_dependency_has_an_allowed_licence() -> Fallible {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{l}|{p}"])
        .current_dir(repository())
        .output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let packages: BTreeSet<(&str, &str)> = text.lines().filter_map(|line| line.split_once('|')).collect();
    assert!(packages.len() > 100, "only {} packages were found", packages.len());
    let allowed = allowed()?;
    let refused: Vec<_> = packages.iter().filter(|(licence, _)| !is_allowed(licence, &allowed)).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    Ok(())
}

#[test]
fn expressions_are_read_as_they_are_meant() {
    let allowed = ["MIT", "Apache-2.0"].map(str::to_owned);
    for (expression, expected) in [
        ("MIT", true),
        ("", false),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT/Apache-2.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND Apache-2.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("MIT AND (GPL-3.0 OR (Apache-2.0 AND MIT))", true),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
