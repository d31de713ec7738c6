//! What a stranger's architecture or file may try, one test for each attack, with the outcome that a user is promised.
//!
//! Every attack is declared once, in `attacks!`: the declaration is a test and a line of the table in `docs/security.md`, so the table says what was
//! observed. `KILNBOX_UPDATE_DOCS=1 cargo xtask test attacks` writes the table.
//!
//! Most hostile guests are core modules in text form, as fields of a module without what every architecture has: [`guest::component`] adds the rest. They are
//! in `guests/`, or beside the attack where they are a few calls.

#[macro_use]
mod table;
mod guest;
mod script;

mod arguments;
mod execution;
mod files;
mod graphs;
mod isolation;
mod program;

use std::collections::BTreeSet;

use table::{Attack, Fallible};

/// How many attacks the list has that these tests began with; those that were thought of since follow.
const ATTACKS_OF_THE_LIST: u32 = 56;
/// The document with the table.
const DOCUMENT: &str = "docs/security.md";

/// All attacks, in the order of the table.
fn attacks() -> Vec<&'static Attack> {
    let modules =
        [execution::ATTACKS, arguments::ATTACKS, files::ATTACKS, graphs::ATTACKS, isolation::ATTACKS, program::ATTACKS];
    let mut attacks: Vec<&Attack> = modules.into_iter().flatten().collect();
    attacks.sort_by_key(|attack| attack.key());
    attacks
}

#[test]
fn every_attack_of_the_list_has_a_test() {
    let mut seen = BTreeSet::new();
    for attack in attacks() {
        assert!(seen.insert(attack.key()), "two attacks are called {}", attack.number);
    }
    let missing: Vec<u32> =
        (1..=ATTACKS_OF_THE_LIST).filter(|number| !seen.iter().any(|(seen, _)| seen == number)).collect();
    assert!(missing.is_empty(), "no test for the attacks {missing:?}");
    let last = seen.iter().map(|(number, _)| *number).max().unwrap_or_default();
    assert!(
        (1..=last).all(|number| seen.iter().any(|(seen, _)| *seen == number)),
        "a number before {last} is left out"
    );
}

#[test]
fn the_documentation_has_this_table() -> Fallible {
    let path = kilnbox_tests::repository().join(DOCUMENT);
    let text = std::fs::read_to_string(&path)?;
    let written = table::insert(&text, &attacks())?;
    if std::env::var_os("KILNBOX_UPDATE_DOCS").is_some() {
        std::fs::write(&path, written)?;
    } else {
        assert!(
            text == written,
            "{DOCUMENT} has another table: `KILNBOX_UPDATE_DOCS=1 cargo xtask test attacks` writes it"
        );
    }
    Ok(())
}
