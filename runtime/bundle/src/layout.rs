//! An OCI image layout in one tar, written and read without ever touching a path.
//!
//! ```text
//! oci-layout                   {"imageLayoutVersion": "1.0.0"}
//! index.json                   descriptors of the manifests, each with a name (`org.opencontainers.image.ref.name`)
//! blobs/sha256/<digest>        manifests, configs and layers
//! ```

use crate::architecture::{ArchitectureBundle, MAX_COMPONENT_BYTES, interface};
use crate::checkpoint::MAX_FILE_BYTES;
use crate::digest::sha256_hex;
use crate::error::FormatError;
use crate::safetensors_file::printable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const WASM_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
pub(crate) const WASM_LAYER_TYPE: &str = "application/wasm";

/// The names that tools give to files that they make of layers (ORAS) and to manifests of a layout (skopeo).
pub(crate) const TITLE: &str = "org.opencontainers.image.title";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

/// Seven blobs, two JSON files and at most two folders; the rest is room for what later versions may add.
pub(crate) const MAX_ENTRIES: u64 = 32;
/// The largest of `oci-layout`, `index.json`, the manifests and the component's config; ours have some kilobytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// The largest other JSON: hypers and metadata are thousands of bytes.
pub(crate) const MAX_JSON_BYTES: u64 = 4 << 20;
/// The size of a tar's header, in bytes.
pub(crate) const TAR_BLOCK: u64 = 512;
/// The first bytes of a file decide what kind it is; the marker of a tar lies at this offset.
const TAR_MARKER: std::ops::Range<usize> = 257..262;

pub(crate) const BLOB_FOLDER: &str = "blobs/sha256/";

/// Whether a file that begins so is a tar.
pub(crate) fn is_tar(beginning: &[u8]) -> bool {
    beginning.get(TAR_MARKER) == Some(b"ustar")
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The same thing with a name.
    pub(crate) fn called(mut self, key: &str, name: &str) -> Self {
        self.annotations.insert(key.to_owned(), name.to_owned());
        self
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// A manifest of what is in its place: nothing.
    pub(crate) fn new(artifact_type: Option<&str>, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: artifact_type.map(str::to_owned),
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads a manifest; its size has been checked.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        parse_json("a manifest", bytes)
    }

    /// The one layer, of the one type, that the CNCF layout of components allows.
    pub(crate) fn component_layer(&self) -> Result<&Descriptor, FormatError> {
        match self.layers.as_slice() {
            [layer] if layer.media_type == WASM_LAYER_TYPE => Ok(layer),
            layers => Err(FormatError::NotALayout(format!(
                "the component's manifest has {} layers where exactly one of type `{WASM_LAYER_TYPE}` is expected",
                layers.len()
            ))),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutVersion {
    image_layout_version: String,
}

/// The blobs of a layout or of a push that is being made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blobs {
    /// Names in the tar, and contents.
    pub(crate) entries: Vec<(String, Vec<u8>)>,
}

impl Blobs {
    pub(crate) fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = sha256_hex(&bytes);
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{digest}"),
            size: bytes.len() as u64,
            artifact_type: None,
            annotations: BTreeMap::new(),
        };
        let name = format!("{BLOB_FOLDER}{digest}");
        if !self.entries.iter().any(|(existing, _)| *existing == name) {
            self.entries.push((name, bytes));
        }
        descriptor
    }

    pub(crate) fn add_json(
        &mut self,
        media_type: &str,
        value: &impl Serialize,
        limit: u64,
    ) -> Result<Descriptor, FormatError> {
        let bytes = to_json(value)?;
        check_size(&format!("the size of a `{media_type}` in bytes"), bytes.len() as u64, limit)?;
        Ok(self.add(media_type, bytes))
    }

    pub(crate) fn add_manifest(&mut self, manifest: &Manifest) -> Result<Descriptor, FormatError> {
        let artifact_type = manifest.artifact_type.clone();
        Ok(Descriptor { artifact_type, ..self.add_json(MANIFEST_TYPE, manifest, MAX_MANIFEST_BYTES)? })
    }

    /// Adds a component in the CNCF layout: one layer, and a config that names what it imports and exports. The annotations of its manifest are what it says of
    /// itself, under the names that registries show.
    pub(crate) fn add_component(&mut self, component: &[u8]) -> Result<Descriptor, FormatError> {
        check_size("the component's size in bytes", component.len() as u64, MAX_COMPONENT_BYTES)?;
        let layer = self.add(WASM_LAYER_TYPE, component.to_vec());
        // The layout knows no other system for a component than `wasip2`, with or without imports of WASI.
        let mut config = json!({"architecture": "wasm", "os": "wasip2", "layerDigests": [layer.digest]});
        // What is no component is refused by whoever runs it; here it has no interface.
        if let Ok((imports, exports)) = interface(component) {
            config["component"] = json!({"imports": imports, "exports": exports});
        }
        let config = self.add_json(WASM_CONFIG_TYPE, &config, MAX_MANIFEST_BYTES)?;
        let mut manifest = Manifest::new(None, config, vec![layer]);
        if let Ok(bundle) = ArchitectureBundle::read(component) {
            manifest.annotations = annotations(&bundle);
        }
        self.add_manifest(&manifest)
    }

    /// The entries of the tar in their fixed order: what a reader needs first comes first. Each manifest has a name.
    pub(crate) fn into_entries(
        mut self,
        manifests: Vec<(Descriptor, &str)>,
    ) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
        let manifests =
            manifests.into_iter().map(|(descriptor, name)| descriptor.called(REFERENCE_NAME, name)).collect();
        let index = Index { schema_version: 2, media_type: INDEX_TYPE.to_owned(), manifests };
        let layout = LayoutVersion { image_layout_version: "1.0.0".to_owned() };
        let mut entries =
            vec![("oci-layout".to_owned(), to_json(&layout)?), ("index.json".to_owned(), to_json(&index)?)];
        // The small JSON blobs before the component, and the weights last.
        self.entries.sort_by(|(left_name, left), (right_name, right)| {
            (left.len(), left_name.as_str()).cmp(&(right.len(), right_name.as_str()))
        });
        entries.extend(self.entries);
        Ok(entries)
    }
}

/// What a bundle says of itself, in the words of OCI. Long texts are for the bundle alone: a manifest is small.
fn annotations(bundle: &ArchitectureBundle) -> BTreeMap<String, String> {
    /// As much as all annotations together may have with room for the rest of a manifest.
    const LONGEST: usize = 4096;
    let metadata = bundle.parts.metadata.entries().into_iter().filter_map(|(name, value)| {
        // OCI calls a homepage `url`.
        let name = if name == "homepage" { "url" } else { name };
        Some((format!("org.opencontainers.image.{name}"), value.clone()?))
    });
    metadata
        .chain([(TITLE.to_owned(), bundle.parts.name.clone())])
        .filter(|(_, value)| value.len() <= LONGEST)
        .collect()
}

/// The entries of a tar that was read: each blob's digest has been verified.
#[derive(Debug)]
pub(crate) struct Layout {
    version: Option<Vec<u8>>,
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// The digests that something has referred to; at the end that must be all of them.
    used: BTreeSet<String>,
}

impl Layout {
    /// Reads a layout of `size` bytes entry by entry, so that whatever is none is not read as a whole.
    pub(crate) fn read(reader: impl Read, size: u64) -> Result<Self, FormatError> {
        let mut layout = Self { version: None, index: None, blobs: BTreeMap::new(), used: BTreeSet::new() };
        let mut archive = tar::Archive::new(reader);
        // Raw: no long names, no extended attributes, no sparse files. We write none of these, so there is no reason to
        // have them interpreted.
        for (number, entry) in (1..).zip(archive.entries().map_err(from_tar)?.raw(true)) {
            check_size("the number of its entries", number, MAX_ENTRIES)?;
            layout.add(entry.map_err(from_tar)?, size)?;
        }
        Ok(layout)
    }

    fn add(&mut self, mut entry: tar::Entry<'_, impl Read>, size_of_all: u64) -> Result<(), FormatError> {
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |problem: String| FormatError::Entry { entry: printable(&name), problem };
        match entry.header().entry_type() {
            tar::EntryType::Regular => {}
            tar::EntryType::Directory if name == "blobs/" || name == BLOB_FOLDER => return Ok(()),
            other => {
                return Err(refuse(format!("is of kind {other:?}; a model holds plain files only")));
            }
        }
        let declared = entry.size();
        if declared > size_of_all {
            return Err(FormatError::Truncated {
                detail: format!("entry `{}` has {declared} bytes, and the whole file {size_of_all}", printable(&name)),
            });
        }
        let limit = if name.starts_with(BLOB_FOLDER) { self.blob_limit() } else { MAX_MANIFEST_BYTES };
        check_size(&format!("the size in bytes of the entry `{}`", printable(&name)), declared, limit)?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(from_tar)?;
        if bytes.len() as u64 != declared {
            return Err(FormatError::Truncated {
                detail: format!("entry `{}` has {declared} bytes, and {} are there", printable(&name), bytes.len()),
            });
        }
        let repeated = match name.as_str() {
            "oci-layout" => self.version.replace(bytes).is_some(),
            "index.json" => self.index.replace(bytes).is_some(),
            _ => {
                let digest = blob_digest(&name).ok_or_else(|| {
                    refuse(
                        "has no place in a model: only `oci-layout`, `index.json` and `blobs/sha256/<digest>` do"
                            .to_owned(),
                    )
                })?;
                let found = sha256_hex(&bytes);
                if found != digest {
                    return Err(FormatError::DigestMismatch { expected: digest.to_owned(), found });
                }
                self.blobs.insert(format!("sha256:{digest}"), bytes).is_some()
            }
        };
        if repeated { Err(refuse("is there twice".to_owned())) } else { Ok(()) }
    }

    /// How large the next blob may be: the weights are of any size, and no other blob is larger than a component may be.
    fn blob_limit(&self) -> u64 {
        let is_large = |bytes: &Vec<u8>| bytes.len() as u64 > MAX_COMPONENT_BYTES;
        if self.blobs.values().any(is_large) { MAX_COMPONENT_BYTES } else { MAX_FILE_BYTES }
    }

    /// The manifests that the index names, with their descriptors.
    pub(crate) fn manifests(&mut self) -> Result<Vec<(Descriptor, Manifest)>, FormatError> {
        let missing = |name: &str| FormatError::NotALayout(format!("`{name}` is missing"));
        let version: LayoutVersion =
            parse_json("`oci-layout`", self.version.as_deref().ok_or_else(|| missing("oci-layout"))?)?;
        if version.image_layout_version != "1.0.0" {
            return Err(FormatError::NotALayout(format!(
                "version `{}` of the layout is not known",
                printable(&version.image_layout_version)
            )));
        }
        let index: Index = parse_json("`index.json`", self.index.as_deref().ok_or_else(|| missing("index.json"))?)?;
        let mut manifests = Vec::new();
        for descriptor in index.manifests {
            let manifest = Manifest::parse(self.blob(&descriptor, MAX_MANIFEST_BYTES)?)?;
            manifests.push((descriptor, manifest));
        }
        Ok(manifests)
    }

    /// The blob that a descriptor names, after checking its size.
    pub(crate) fn blob(&mut self, descriptor: &Descriptor, limit: u64) -> Result<&[u8], FormatError> {
        let bytes = self.blobs.get(&descriptor.digest).ok_or_else(|| FormatError::Truncated {
            detail: format!("blob `{}` is missing", printable(&descriptor.digest)),
        })?;
        let size = bytes.len() as u64;
        check_size(&format!("the size in bytes of a `{}`", printable(&descriptor.media_type)), size, limit)?;
        if size != descriptor.size {
            return Err(FormatError::Inconsistent(format!(
                "blob `{}` has {size} bytes, and its descriptor says {}",
                descriptor.digest, descriptor.size
            )));
        }
        self.used.insert(descriptor.digest.clone());
        Ok(bytes)
    }

    /// Refuses blobs that nothing refers to: they could only be there to hide something.
    pub(crate) fn check_all_used(&self) -> Result<(), FormatError> {
        match self.blobs.keys().find(|digest| !self.used.contains(*digest)) {
            None => Ok(()),
            Some(digest) => Err(FormatError::Entry {
                entry: digest.clone(),
                problem: "is a blob that nothing refers to".to_owned(),
            }),
        }
    }
}

/// The digest in the name of a blob, when the name is one that a blob may have.
fn blob_digest(name: &str) -> Option<&str> {
    let digest = name.strip_prefix(BLOB_FOLDER)?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest.then_some(digest)
}

/// Refuses what is larger than `limit`.
pub(crate) fn check_size(what: &str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found > limit {
        return Err(FormatError::TooLarge { what: what.to_owned(), found, limit });
    }
    Ok(())
}

pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(value).map_err(|error| FormatError::Description(error.to_string()))
}

pub(crate) fn parse_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, FormatError> {
    check_size(&format!("the size of {what} in bytes"), bytes.len() as u64, MAX_JSON_BYTES)?;
    serde_json::from_slice(bytes)
        .map_err(|error| FormatError::Description(format!("{what}: {}", printable(&error.to_string()))))
}

pub(crate) fn from_tar(error: io::Error) -> FormatError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return FormatError::Truncated { detail: "it ends within an entry".to_owned() };
    }
    FormatError::NotALayout(printable(&error.to_string()))
}

/// Writes a tar whose bytes depend on nothing but the entries: no owner, no time.
pub(crate) fn write_tar(writer: &mut dyn Write, entries: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(writer);
    for (name, bytes) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        archive.append(&header, bytes.as_slice())?;
    }
    archive.finish()
}

/// An empty value is not written.
pub(crate) fn is_null(value: &Value) -> bool {
    value.is_null()
}
