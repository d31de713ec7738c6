//! Architecture bundles: a component with everything that belongs to it in custom sections.
//!
//! ```text
//! kilnbox:manifest          JSON: the format's version, name, contract, the digests of the sections below
//! kilnbox:default-hypers    `default-hypers.yaml`
//! kilnbox:schema-hypers     `schema-hypers.json`
//! kilnbox:docs              `README.md`
//! version, authors, description, licenses, source, homepage, revision     as `wasm-tools metadata` writes and shows them
//! ```
//!
//! The file stays a valid component, which any tool for WebAssembly can carry. Only sections of the outermost component count: what is nested was put
//! there by whoever made the parts, and cannot speak for the whole. Tools that strip custom sections take the manifest with the rest, so that a stripped
//! bundle is noticed.

use crate::digest::sha256_digest;
use crate::error::FormatError;
use crate::layout::check_size;
use crate::safetensors_file::printable;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use wasm_encoder::{ComponentSection, CustomSection};
use wasmparser::{Chunk, Encoding, Parser, Payload};

/// The largest component that is read or packed, in bytes; the same limit holds wherever a component is loaded.
pub const MAX_COMPONENT_BYTES: u64 = 64 << 20;

/// The marker and the newest version of the manifest.
const FORMAT: &str = "kilnbox-architecture";
const FORMAT_VERSION: u32 = 1;
/// Names for debuggers of what is inside of a component, a hundredth of its size. Functions keep theirs, which are in the core module.
const DEBUGGING: &str = "component-name";
/// What sections of ours begin with.
const PREFIX: &str = "kilnbox:";
const MANIFEST: &str = "kilnbox:manifest";
/// The sections with files of the architecture's folder, and the most bytes of each.
const FILES: [(&str, u64); 3] =
    [("kilnbox:default-hypers", 256 << 10), ("kilnbox:schema-hypers", 1 << 20), ("kilnbox:docs", 4 << 20)];
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// The most bytes of one of the standard sections.
const MAX_METADATA_BYTES: u64 = 64 << 10;
/// The longest name of an architecture, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// Every interface of the contract has this prefix.
const CONTRACT: &str = "kilnbox:architecture/";
/// Where the SDK leaves what Cargo knows of the package: in the component's core module, for [`pack`] to lift out.
const PACKAGE: &str = "kilnbox:package";

/// What an architecture's package says of itself, in the words of the OCI annotations of the same names. All of it is optional, and none of it is checked
/// by anybody: it is what the author says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The version, such as `0.1.0`.
    pub version: Option<String>,
    /// The authors, with commas between them.
    pub authors: Option<String>,
    /// A sentence.
    pub description: Option<String>,
    /// The licences, as an SPDX expression.
    pub licenses: Option<String>,
    /// The URL of the source code.
    pub source: Option<String>,
    /// A URL.
    pub homepage: Option<String>,
    /// The revision of the source code, such as a commit.
    pub revision: Option<String>,
}

impl Metadata {
    /// The entries by the names of their sections, in the order in which they are written.
    pub fn entries(&self) -> [(&'static str, &Option<String>); 7] {
        [
            ("version", &self.version),
            ("authors", &self.authors),
            ("description", &self.description),
            ("licenses", &self.licenses),
            ("source", &self.source),
            ("homepage", &self.homepage),
            ("revision", &self.revision),
        ]
    }

    /// The entry of this name, if there is one of that name.
    pub fn entry(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "version" => &mut self.version,
            "authors" => &mut self.authors,
            "description" => &mut self.description,
            "licenses" => &mut self.licenses,
            "source" => &mut self.source,
            "homepage" => &mut self.homepage,
            "revision" => &mut self.revision,
            _ => return None,
        })
    }

    /// Takes from `other` what is not said here.
    pub fn or(mut self, other: Self) -> Self {
        for (name, value) in other.entries() {
            if let Some(entry) = self.entry(name) {
                *entry = entry.take().or_else(|| value.clone());
            }
        }
        self
    }

    /// Refuses what other tools could not read: they expect URLs and SPDX expressions, and fail where they find none.
    fn check(&self) -> Result<(), FormatError> {
        let problem = |name: &str, value: &str, expected: &str| {
            Err(FormatError::Section {
                section: name.to_owned(),
                problem: format!("is `{}`, expected {expected}", printable(value)),
            })
        };
        for (name, value) in self.entries() {
            let Some(value) = value else { continue };
            check_size(&format!("the size of the section `{name}` in bytes"), value.len() as u64, MAX_METADATA_BYTES)?;
            match name {
                "source" | "homepage" if !is_url(value) => {
                    return problem(name, value, "a URL that begins with `https://` or `http://`");
                }
                "licenses" if !is_licence_expression(value) => {
                    return problem(name, value, "an SPDX expression such as `MIT OR Apache-2.0`");
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What belongs to a component besides its code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The architecture's name, `soap-bpnn` or `experimental.mace`.
    pub name: String,
    /// `default-hypers.yaml`.
    pub default_hypers: Option<String>,
    /// `schema-hypers.json`.
    pub schema_hypers: Option<String>,
    /// `README.md`.
    pub docs: Option<String>,
    /// What the package says of itself.
    pub metadata: Metadata,
}

impl Parts {
    fn files(&self) -> [&Option<String>; 3] {
        [&self.default_hypers, &self.schema_hypers, &self.docs]
    }
}

/// What can be read from an architecture bundle without running anything of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchitectureBundle {
    /// Name, hypers, documentation and metadata.
    pub parts: Parts,
    /// The version of the contract that the component was made for, `0.1.0`.
    pub contract: String,
    /// What it imports, in the order of the file.
    pub imports: Vec<String>,
    /// What it exports, in the order of the file.
    pub exports: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    format_version: u32,
    name: String,
    contract: String,
    /// The digest of each section with a file.
    sections: BTreeMap<String, String>,
}

impl ArchitectureBundle {
    /// Reads what a component says of itself.
    ///
    /// # Errors
    ///
    /// The bytes are no component, or there is no manifest, or a section is there twice, too large, no UTF-8, missing, or another one than the manifest
    /// says.
    pub fn read(bytes: &[u8]) -> Result<Self, FormatError> {
        let component = Outline::read(bytes)?;
        let mut found: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for (name, data) in component.custom_sections().filter(|(name, _)| is_ours(name)) {
            let refuse = |problem: &str| FormatError::Section { section: printable(name), problem: problem.to_owned() };
            if found.insert(name, data).is_some() {
                return Err(refuse("is there twice"));
            }
            let limit = section_limit(name).ok_or_else(|| refuse("is none that this kilnbox knows"))?;
            check_size(&format!("the size of the section `{name}` in bytes"), data.len() as u64, limit)?;
        }
        let text = |name: &str| found.get(name).map(|data| text_of(name, data)).transpose();
        let manifest = read_manifest(text(MANIFEST)?.as_deref())?;
        for (name, _) in FILES {
            let listed = manifest.sections.get(name).map(String::as_str);
            let digest = found.get(name).map(|data| sha256_digest(data));
            if listed != digest.as_deref() {
                let problem = match (listed, digest) {
                    (Some(_), None) => "is missing, and the manifest lists it; was the file stripped?",
                    (None, Some(_)) => "is not in the manifest",
                    _ => "has another digest than the manifest says",
                };
                return Err(FormatError::Section { section: name.to_owned(), problem: problem.to_owned() });
            }
        }
        let contract = component.contract()?;
        if manifest.contract != contract {
            return Err(FormatError::Inconsistent(format!(
                "the manifest names version {} of the contract, and the component uses {}",
                printable(&manifest.contract),
                printable(&contract)
            )));
        }
        check_name(&manifest.name)?;
        let mut metadata = Metadata::default();
        for (name, _) in Metadata::default().entries() {
            if let Some(entry) = metadata.entry(name) {
                *entry = text(name)?;
            }
        }
        let [default_hypers, schema_hypers, docs] = FILES.map(|(name, _)| text(name));
        Ok(Self {
            parts: Parts {
                name: manifest.name,
                default_hypers: default_hypers?,
                schema_hypers: schema_hypers?,
                docs: docs?,
                metadata,
            },
            contract,
            imports: component.imports.iter().map(|&name| name.to_owned()).collect(),
            exports: component.exports.iter().map(|&name| name.to_owned()).collect(),
        })
    }

    /// Whether the bytes are a component with any section of ours, and so meant as a bundle, whether it is a good one or not.
    pub fn is_likely(bytes: &[u8]) -> bool {
        Outline::read(bytes).is_ok_and(|component| {
            component.custom_sections().any(|(name, _)| name == MANIFEST || FILES.iter().any(|(file, _)| name == *file))
        })
    }
}

/// Puts `parts` into the component, as its last sections; what it had of these sections is replaced. The same component and parts give the same bytes, whether
/// it was packed before or not.
///
/// What `parts` leaves out of the metadata is taken from where the SDK puts what Cargo knows of the package.
///
/// # Errors
///
/// The bytes are no component of an architecture, or a part is too large or could not be read back.
pub fn pack(bytes: &[u8], parts: &Parts) -> Result<Vec<u8>, FormatError> {
    let component = Outline::read(bytes)?;
    let contract = component.contract()?;
    check_name(&parts.name)?;
    let metadata = parts.metadata.clone().or(package_metadata(&component));
    metadata.check()?;
    let mut packed = bytes[..Outline::HEADER].to_vec();
    let is_kept = |section: &&Section<'_>| !section.custom.is_some_and(|(name, _)| is_ours(name) || name == DEBUGGING);
    for section in component.sections.iter().filter(is_kept) {
        packed.extend_from_slice(&bytes[section.range.clone()]);
    }
    let mut sections = BTreeMap::new();
    for ((name, limit), text) in FILES.iter().zip(parts.files()) {
        let Some(text) = text else { continue };
        check_size(&format!("the size of the section `{name}` in bytes"), text.len() as u64, *limit)?;
        sections.insert((*name).to_owned(), sha256_digest(text.as_bytes()));
    }
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        format_version: FORMAT_VERSION,
        name: parts.name.clone(),
        contract,
        sections,
    };
    let manifest = serde_json::to_string(&manifest).map_err(|error| FormatError::Description(error.to_string()))?;
    append(&mut packed, MANIFEST, &manifest);
    for ((name, _), text) in FILES.iter().zip(parts.files()) {
        text.iter().for_each(|text| append(&mut packed, name, text));
    }
    for (name, text) in metadata.entries() {
        text.iter().for_each(|text| append(&mut packed, name, text));
    }
    check_size("the component's size in bytes", packed.len() as u64, MAX_COMPONENT_BYTES)?;
    Ok(packed)
}

/// The name that the package gives itself in what the SDK leaves, if anything.
pub fn package_name(bytes: &[u8]) -> Option<String> {
    let component = Outline::read(bytes).ok()?;
    package_entries(&component).find(|(key, _)| *key == "name").map(|(_, value)| value.to_owned())
}

/// The imports and exports of a component.
pub(crate) fn interface(bytes: &[u8]) -> Result<(Vec<&str>, Vec<&str>), FormatError> {
    Outline::read(bytes).map(|component| (component.imports, component.exports))
}

fn append(component: &mut Vec<u8>, name: &str, text: &str) {
    let section = CustomSection { name: Cow::Borrowed(name), data: Cow::Borrowed(text.as_bytes()) };
    section.append_to_component(component);
}

fn read_manifest(text: Option<&str>) -> Result<Manifest, FormatError> {
    let text = text.ok_or(FormatError::NoManifest)?;
    let of_manifest = |error: &dyn std::fmt::Display| FormatError::Section {
        section: MANIFEST.to_owned(),
        problem: format!("cannot be read: {}", printable(&error.to_string())),
    };
    let value: Value = serde_json::from_str(text).map_err(|error| of_manifest(&error))?;
    crate::checkpoint::check_format(&value, FORMAT, FORMAT_VERSION)?;
    serde_json::from_value(value).map_err(|error| of_manifest(&error))
}

fn text_of(name: &str, data: &[u8]) -> Result<String, FormatError> {
    std::str::from_utf8(data)
        .map(str::to_owned)
        .map_err(|_| FormatError::Section { section: name.to_owned(), problem: "is not UTF-8".to_owned() })
}

/// Whether the section is one that [`pack`] writes, or might in a later version.
fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || Metadata::default().entry(name).is_some()
}

fn section_limit(name: &str) -> Option<u64> {
    if name == MANIFEST {
        return Some(MAX_MANIFEST_BYTES);
    }
    let file = FILES.iter().find(|(file, _)| *file == name).map(|(_, limit)| *limit);
    file.or_else(|| Metadata::default().entry(name).map(|_| MAX_METADATA_BYTES))
}

/// A name that can stand in options, in messages and in the name of a file.
fn check_name(name: &str) -> Result<(), FormatError> {
    let is_fit = |character: char| character.is_alphanumeric() || "-_. +()".contains(character);
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(is_fit) && !name.starts_with('.') {
        return Ok(());
    }
    Err(FormatError::Section {
        section: MANIFEST.to_owned(),
        problem: format!(
            "names the architecture `{}`, expected 1 to {MAX_NAME_BYTES} bytes of letters, digits, `-`, `_` and `.`",
            printable(name)
        ),
    })
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        rest.starts_with(|first: char| first.is_ascii_alphanumeric())
            && rest.chars().all(|character| !character.is_whitespace() && !character.is_control())
    })
}

/// Whether the text has the form of an SPDX expression; whether its licences exist is not looked at.
fn is_licence_expression(text: &str) -> bool {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let (mut depth, mut wants_licence) = (0_u32, true);
    for word in spaced.split_whitespace() {
        let is_licence = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+:".contains(&byte));
        match word {
            "(" if wants_licence => depth += 1,
            ")" if !wants_licence && depth > 0 => depth -= 1,
            "AND" | "OR" | "WITH" if !wants_licence => wants_licence = true,
            "AND" | "OR" | "WITH" | "(" | ")" => return false,
            _ if wants_licence && is_licence => wants_licence = false,
            _ => return false,
        }
    }
    depth == 0 && !wants_licence
}

/// What Cargo knows of the package, in the component's core modules. An author packs what the author built, so what is nested is the author's own.
fn package_metadata(component: &Outline<'_>) -> Metadata {
    let mut metadata = Metadata::default();
    for (key, value) in package_entries(component) {
        let value = match key {
            // Cargo puts colons between authors, and once allowed a slash for `OR`.
            "authors" => value.replace(':', ", "),
            "licenses" => value.replace(" / ", "/").replace('/', " OR "),
            _ => value.to_owned(),
        };
        let is_fit = match key {
            "source" | "homepage" => is_url(&value),
            "licenses" => is_licence_expression(&value),
            _ => !value.is_empty(),
        };
        if let Some(entry) = metadata.entry(key).filter(|_| is_fit) {
            *entry = Some(value);
        }
    }
    metadata
}

/// The `key=value` entries of the SDK's section, each of which ends with a zero.
fn package_entries<'a>(component: &Outline<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let text = component.package.and_then(|data| std::str::from_utf8(data).ok()).unwrap_or_default();
    text.split('\0').filter_map(|entry| entry.split_once('='))
}

/// The outermost level of a component.
struct Outline<'a> {
    sections: Vec<Section<'a>>,
    imports: Vec<&'a str>,
    exports: Vec<&'a str>,
    /// The first section [`PACKAGE`] of a core module of this level.
    package: Option<&'a [u8]>,
}

struct Section<'a> {
    /// Where it lies, its kind and length included.
    range: Range<usize>,
    /// The name and content of a custom section.
    custom: Option<(&'a str, &'a [u8])>,
}

impl<'a> Outline<'a> {
    /// The magic number, the version and the layer, in bytes.
    const HEADER: usize = 8;

    fn read(bytes: &'a [u8]) -> Result<Self, FormatError> {
        check_size("the component's size in bytes", bytes.len() as u64, MAX_COMPONENT_BYTES)?;
        let damaged = |error: wasmparser::BinaryReaderError| FormatError::NotAComponent(printable(error.message()));
        let mut outline = Self { sections: Vec::new(), imports: Vec::new(), exports: Vec::new(), package: None };
        let mut parser = Parser::new(0);
        let mut start = 0;
        loop {
            let (consumed, payload) =
                match parser.parse(bytes.get(start..).unwrap_or_default(), true).map_err(damaged)? {
                    Chunk::Parsed { consumed, payload } => (consumed, payload),
                    Chunk::NeedMoreData(_) => {
                        return Err(FormatError::NotAComponent("it ends in the middle".to_owned()));
                    }
                };
            let mut end = start + consumed;
            let mut custom = None;
            match payload {
                Payload::Version { encoding: Encoding::Component, .. } => {
                    start = end;
                    continue;
                }
                Payload::Version { .. } => {
                    return Err(FormatError::NotAComponent("it is a plain module".to_owned()));
                }
                Payload::CustomSection(section) => custom = Some((section.name(), section.data())),
                Payload::ComponentImportSection(section) => {
                    for import in section {
                        outline.imports.push(import.map_err(damaged)?.name.name);
                    }
                }
                Payload::ComponentExportSection(section) => {
                    for export in section {
                        outline.exports.push(export.map_err(damaged)?.name.name);
                    }
                }
                Payload::ModuleSection { unchecked_range: range, .. } => {
                    let module = bytes
                        .get(range.clone())
                        .ok_or_else(|| FormatError::NotAComponent("a part reaches beyond its end".to_owned()))?;
                    outline.package = outline.package.or_else(|| package_section(module));
                    end = range.end;
                }
                Payload::ComponentSection { unchecked_range: range, .. } => end = range.end,
                Payload::End(_) => return Ok(outline),
                _ => {}
            }
            if end > bytes.len() {
                return Err(FormatError::NotAComponent("a part reaches beyond its end".to_owned()));
            }
            outline.sections.push(Section { range: start..end, custom });
            start = end;
        }
    }

    fn custom_sections(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.sections.iter().filter_map(|section| section.custom)
    }

    /// The version of the contract, as the imports name it, or the exports where there are no imports.
    fn contract(&self) -> Result<String, FormatError> {
        let names = self.imports.iter().chain(&self.exports);
        let version = names.filter_map(|name| name.strip_prefix(CONTRACT)?.split_once('@')).map(|(_, version)| version);
        version.map(str::to_owned).next().ok_or_else(|| {
            FormatError::NotAComponent(format!("it neither imports nor exports anything of `{CONTRACT}*`"))
        })
    }
}

/// The section [`PACKAGE`] of a core module. A damaged module has none: whoever runs it will say what is wrong.
fn package_section(module: &[u8]) -> Option<&[u8]> {
    let mut start = 0;
    let mut parser = Parser::new(0);
    loop {
        let Ok(Chunk::Parsed { consumed, payload }) = parser.parse(module.get(start..)?, true) else { return None };
        start += consumed;
        match payload {
            Payload::CustomSection(section) if section.name() == PACKAGE => return Some(section.data()),
            Payload::CodeSectionStart { size, .. } => {
                parser.skip_section();
                start += size as usize;
            }
            Payload::End(_) => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A component that imports one interface of the contract, with `more` in it.
    fn component(more: &str) -> Vec<u8> {
        let text = format!(r#"(component {more} (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#);
        wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn parts() -> Parts {
        Parts {
            name: "net".to_owned(),
            default_hypers: Some("model: {}\n".to_owned()),
            schema_hypers: Some("{}".to_owned()),
            docs: Some("# Net\n".to_owned()),
            metadata: Metadata {
                version: Some("1.2.3".to_owned()),
                authors: Some("A. Author, B. Author".to_owned()),
                description: Some("a net".to_owned()),
                licenses: Some("MIT OR Apache-2.0".to_owned()),
                source: Some("https://example.org/net".to_owned()),
                homepage: None,
                revision: Some("0a1b".to_owned()),
            },
        }
    }

    fn section(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        CustomSection { name: name.into(), data: data.into() }.append_to_component(&mut bytes);
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        ArchitectureBundle::read(bytes).expect_err("the bundle is refused").to_string()
    }

    #[test]
    fn what_was_packed_is_read_and_the_file_stays_a_component() {
        let bytes = pack(&component(""), &parts()).expect("a bundle");
        let bundle = ArchitectureBundle::read(&bytes).expect("it is read");
        assert_eq!(bundle.parts, parts());
        assert_eq!(bundle.contract, "0.1.0");
        assert_eq!(bundle.imports, ["kilnbox:architecture/tensor@0.1.0"]);
        wasmparser::Validator::new().validate_all(&bytes).expect("a valid component");
    }

    #[test]
    fn packing_again_replaces_what_was_packed() {
        let once = pack(&component(""), &parts()).expect("a bundle");
        assert_eq!(pack(&once, &parts()).expect("a bundle"), once);
        let bare = Parts { name: "net".to_owned(), ..Parts::default() };
        let bare = pack(&once, &bare).expect("a bundle");
        assert_eq!(ArchitectureBundle::read(&bare).expect("it is read").parts.default_hypers, None);
        assert!(bare.len() < once.len());
        // What is not ours stays.
        let other = [component(""), section("producers", b"\0"), section("name-of-others", b"x")].concat();
        let packed = pack(&other, &parts()).expect("a bundle");
        assert!(packed.starts_with(&other));
    }

    #[test]
    fn what_cargo_knows_is_lifted_out_of_the_core_module() {
        let package = "name=deep\\00version=3.0\\00authors=A. Author:B. Author\\00licenses=MIT/Apache-2.0\\00source=not a url\\00homepage=\\00";
        let module = format!(r#"(core module (func) (@custom "kilnbox:package" "{package}"))"#);
        let bytes = component(&module);
        assert_eq!(package_name(&bytes).as_deref(), Some("deep"));
        let given = Metadata { version: Some("4.0".to_owned()), ..Metadata::default() };
        let packed = pack(&bytes, &Parts { name: "deep".to_owned(), metadata: given, ..Parts::default() });
        let metadata = ArchitectureBundle::read(&packed.expect("a bundle")).expect("it is read").parts.metadata;
        assert_eq!(
            metadata,
            Metadata {
                version: Some("4.0".to_owned()),
                authors: Some("A. Author, B. Author".to_owned()),
                licenses: Some("MIT OR Apache-2.0".to_owned()),
                ..Metadata::default()
            }
        );
    }

    #[test]
    fn only_sections_of_the_outermost_component_count() {
        let inner = pack(&component(""), &parts()).expect("a bundle");
        let mut outer = component("");
        // A component section with a whole bundle in it.
        outer.push(4);
        let mut length = inner.len();
        while length >= 0x80 {
            outer.push(length as u8 | 0x80);
            length >>= 7;
        }
        outer.push(length as u8);
        outer.extend_from_slice(&inner);
        assert!(matches!(ArchitectureBundle::read(&outer), Err(FormatError::NoManifest)));
        assert!(!ArchitectureBundle::is_likely(&outer));
        // And what is nested does not get in the way of what is not.
        let packed = pack(&outer, &parts()).expect("a bundle");
        assert_eq!(ArchitectureBundle::read(&packed).expect("it is read").parts, parts());
    }

    #[test]
    fn hostile_sections_are_refused() {
        let good = pack(&component(""), &parts()).expect("a bundle");
        let with = |name: &str, data: &[u8]| [good.clone(), section(name, data)].concat();
        let manifest = |text: &str| [component(""), section(MANIFEST, text.as_bytes())].concat();
        let cases = [
            (component(""), "was the file stripped?"),
            (with(MANIFEST, b"{}"), "section `kilnbox:manifest` is there twice"),
            (with("kilnbox:docs", b"x"), "section `kilnbox:docs` is there twice"),
            (with("version", b"2"), "section `version` is there twice"),
            (with("kilnbox:other", b""), "is none that this kilnbox knows"),
            (with("homepage", &[0xff]), "section `homepage` is not UTF-8"),
            (with("homepage", &[b'x'; 70_000]), "is 70000, and at most 65536 is accepted"),
            (manifest(&" ".repeat(70_000)), "is 70000, and at most 65536 is accepted"),
            (manifest("nonsense"), "section `kilnbox:manifest` cannot be read"),
            (manifest("{}"), "says `` where `kilnbox-architecture` is expected"),
            (manifest(r#"{"format":"kilnbox-architecture","format_version":2}"#), "version 2 of the format"),
            (manifest(r#"{"format":"kilnbox-architecture","format_version":1}"#), "missing field `name`"),
            (
                manifest(
                    r#"{"format":"kilnbox-architecture","format_version":1,"name":"a","contract":"0.2.0","sections":{}}"#,
                ),
                "names version 0.2.0 of the contract, and the component uses 0.1.0",
            ),
            (
                manifest(
                    r#"{"format":"kilnbox-architecture","format_version":1,"name":"../a","contract":"0.1.0","sections":{}}"#,
                ),
                "names the architecture `../a`",
            ),
            (
                manifest(
                    r#"{"format":"kilnbox-architecture","format_version":1,"name":"a","contract":"0.1.0","sections":{"kilnbox:docs":"sha256:0"}}"#,
                ),
                "section `kilnbox:docs` is missing, and the manifest lists it",
            ),
            (good[..good.len() - 1].to_vec(), "not a component"),
            (b"\0asm\x01\0\0\0".to_vec(), "a plain module"),
            (b"PK\x03\x04".to_vec(), "not a component"),
            (Vec::new(), "not a component"),
        ];
        for (bytes, expected) in cases {
            let message = refusal(&bytes);
            assert!(message.contains(expected), "{message}");
        }
        let mut changed = good.clone();
        let place = changed.windows(5).position(|window| window == b"# Net").expect("the docs");
        changed[place] = b'!';
        assert!(refusal(&changed).contains("section `kilnbox:docs` has another digest"));
        let listed = pack(&component(""), &Parts { docs: None, ..parts() }).expect("a bundle");
        assert!(refusal(&[listed, section("kilnbox:docs", b"x")].concat()).contains("is not in the manifest"));
    }

    #[test]
    fn what_could_not_be_read_back_is_not_packed() {
        let with = |change: &dyn Fn(&mut Parts)| {
            let mut parts = parts();
            change(&mut parts);
            pack(&component(""), &parts).expect_err("it is refused").to_string()
        };
        let other = pack(&wat::parse_str("(component)").expect("a component"), &parts()).expect_err("it is refused");
        assert!(other.to_string().contains("neither imports nor exports"), "{other}");
        assert!(with(&|parts| parts.docs = Some("x".repeat(5 << 20))).contains("at most 4194304 is accepted"));
        assert!(with(&|parts| parts.name = "a/b".to_owned()).contains("`a/b`"));
        assert!(with(&|parts| parts.metadata.source = Some("example.org".to_owned())).contains("expected a URL"));
        assert!(with(&|parts| parts.metadata.licenses = Some("MIT/X11".to_owned())).contains("SPDX"));
    }

    #[test]
    fn licences_are_expressions() {
        for good in ["MIT", "MIT OR Apache-2.0", "(MIT OR Apache-2.0) AND GPL-3.0+ WITH Classpath-exception-2.0"] {
            assert!(is_licence_expression(good), "{good}");
        }
        for bad in ["", "MIT/Apache-2.0", "MIT OR", "OR MIT", "(MIT", "MIT)", "MIT Apache-2.0", "MIT, Apache"] {
            assert!(!is_licence_expression(bad), "{bad}");
        }
    }
}
