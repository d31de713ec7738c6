//! `kilnbox.lock`: what the tags of a project named when they were first looked up, so that they go on naming it.
//!
//! The fields are those of `wkg.lock`, the lock file of the WebAssembly package tools.
//!
//! ```toml
//! version = 1
//!
//! [[packages]]
//! name = "lab/net"
//! registry = "ghcr.io"
//!
//! [[packages.versions]]
//! requirement = "1.2"
//! version = "1.2"
//! digest = "sha256:..."
//! ```

use crate::reference::{Reference, is_digest};
use serde::{Deserialize, Serialize};

/// The name of the file, in the folder where the program runs.
pub const LOCK_FILE: &str = "kilnbox.lock";
/// The largest lock file, in bytes.
pub const MAX_LOCK_BYTES: u64 = 1 << 20;

const VERSION: u32 = 1;
const HEAD: &str = "# Written by kilnbox: the digests of what was pulled, so that the next run gets the same. Keep it with your options.\n";

/// The content of a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    packages: Vec<Package>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    registry: String,
    versions: Vec<Version>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    requirement: String,
    version: String,
    digest: String,
}

impl Default for Lock {
    fn default() -> Self {
        Self { version: VERSION, packages: Vec::new() }
    }
}

/// The beginning of what a file says, which is enough to find it there.
fn cut(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

impl Lock {
    /// Reads the text of a lock file.
    ///
    /// # Errors
    ///
    /// A sentence, with a line where there is one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lock: Self = toml::from_str(text).map_err(|error| {
            // Not as the error shows itself, with the whole line: nobody knows how long a line is.
            match error.span().and_then(|span| text.get(..span.start)) {
                Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, cut(error.message())),
                None => cut(error.message()),
            }
        })?;
        if lock.version != VERSION {
            return Err(format!("it has version {} of the format, and this kilnbox knows {VERSION}", lock.version));
        }
        let mut versions = lock.packages.iter().flat_map(|package| &package.versions);
        match versions.find(|version| !is_digest(&version.digest)) {
            Some(version) => Err(format!("`{}` is no digest", cut(&version.digest))),
            None => Ok(lock),
        }
    }

    /// The text of the file, in an order that does not depend on that of the entries.
    ///
    /// # Errors
    ///
    /// It cannot be written as TOML, which would be our bug.
    pub fn to_text(&self) -> Result<String, String> {
        let mut sorted = self.clone();
        sorted.packages.iter_mut().for_each(|package| package.versions.sort());
        sorted.packages.sort();
        toml::to_string(&sorted).map(|text| format!("{HEAD}{text}")).map_err(|error| error.to_string())
    }

    /// The digest of what the reference's tag named.
    pub fn digest(&self, reference: &Reference) -> Option<&str> {
        let tag = reference.tag.as_deref()?;
        let package = self.packages.iter().find(|package| package.is_of(reference))?;
        let version = package.versions.iter().find(|version| version.requirement == tag)?;
        Some(&version.digest)
    }

    /// Writes down what the reference's tag names; whether that is something new. A reference without a tag names its digest itself.
    pub fn set(&mut self, reference: &Reference, digest: &str) -> bool {
        let Some(tag) = &reference.tag else { return false };
        let new = Version { requirement: tag.clone(), version: tag.clone(), digest: digest.to_owned() };
        let versions = match self.packages.iter_mut().find(|package| package.is_of(reference)) {
            Some(package) => &mut package.versions,
            None => {
                let (name, registry) = (reference.repository.clone(), reference.registry.clone());
                self.packages.push(Package { name, registry, versions: vec![new] });
                return true;
            }
        };
        match versions.iter_mut().find(|version| version.requirement == *tag) {
            Some(version) if *version == new => false,
            Some(version) => {
                *version = new;
                true
            }
            None => {
                versions.push(new);
                true
            }
        }
    }
}

impl Package {
    fn is_of(&self, reference: &Reference) -> bool {
        self.name == reference.repository && self.registry == reference.registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        Reference::parse(text).unwrap_or_else(|problem| panic!("{problem}"))
    }

    #[test]
    fn a_lock_file_reads_as_it_was_written_in_any_order() {
        let (one, two) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let entries = [
            (reference("oci://ghcr.io/lab/net:1.2"), &one),
            (reference("oci://ghcr.io/lab/net:1.3"), &two),
            (reference("oci://localhost:5000/net:1.2"), &two),
        ];
        let (mut forwards, mut backwards) = (Lock::default(), Lock::default());
        entries.iter().for_each(|(reference, digest)| assert!(forwards.set(reference, digest)));
        entries.iter().rev().for_each(|(reference, digest)| assert!(backwards.set(reference, digest)));
        let text = forwards.to_text().expect("a text");
        assert_eq!(text, backwards.to_text().expect("a text"));
        let read = Lock::parse(&text).expect("it is read");
        for (reference, digest) in &entries {
            assert_eq!(read.digest(reference), Some(digest.as_str()));
        }
        assert_eq!(read.digest(&reference("oci://ghcr.io/lab/net:1.4")), None);
        assert!(!forwards.set(&entries[0].0, &one) && forwards.set(&entries[0].0, &two));
        for line in
            ["version = 1", "[[packages]]", "name = \"lab/net\"", "registry = \"ghcr.io\"", "requirement = \"1.2\""]
        {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn what_is_no_lock_file_is_refused() {
        for (text, expected) in [
            ("", "version"),
            ("version = 2", "version 2 of the format"),
            ("version = 1\nother = 2", "line 2: unknown field"),
            (&format!("version = {}", "1 ".repeat(5000)), "line 1: "),
            (&format!("version = 1\n{} = 2", "o".repeat(5000)), "ooo..."),
            ("version = 1\n[[packages]]\nname = \"a\"", "registry"),
            (
                "version = 1\n[[packages]]\nname = \"a\"\nregistry = \"b\"\nversions = [{requirement = \"1\", version = \"1\", digest = \"sha256:0\"}]",
                "`sha256:0` is no digest",
            ),
        ] {
            let problem = Lock::parse(text).expect_err(text);
            assert!(problem.contains(expected) && problem.len() < 300, "{text}: {problem}");
        }
    }
}
