//! Exported models: the component and its weights in one tar, in the OCI image layout.
//!
//! ```text
//! oci-layout                   {"imageLayoutVersion": "1.0.0"}
//! index.json                   the two manifests below
//! blobs/sha256/<digest>        manifest of the component, a CNCF wasm artifact: config, one layer `application/wasm`
//! blobs/sha256/<digest>        manifest of the model, whose `subject` is the first: config (JSON), one layer (safetensors)
//! blobs/sha256/<digest>        and what they name: two configs, the component, the weights
//! ```
//!
//! Any OCI tool can carry such a file to a registry, and any wasm tool can pull the component from there, because its
//! artifact has exactly one layer, as the CNCF layout demands.

use crate::atomic_file::write_atomically;
use crate::checkpoint::{ArchitectureIdentity, CheckpointFile, MAX_FILE_BYTES, check_format, open};
use crate::digest::{sha256_digest, sha256_hex};
use crate::error::{BundleError, FileKind, FormatError};
use crate::safetensors_file::printable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;

/// The OCI artifact type of the manifest that describes a trained model.
pub const MODEL_ARTIFACT_TYPE: &str = "application/vnd.kilnbox.model.v1";

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const WASM_CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const WASM_LAYER_TYPE: &str = "application/wasm";
const MODEL_CONFIG_TYPE: &str = "application/vnd.kilnbox.model.config.v1+json";
const WEIGHTS_TYPE: &str = "application/vnd.cncf.model.weight.v1.safetensors";

/// The marker and version of the model's config.
const FORMAT: &str = "kilnbox-model";
const FORMAT_VERSION: u32 = 1;

/// Six blobs, two JSON files and at most two folders; the rest is room for what later versions may add.
const MAX_ENTRIES: u64 = 32;
/// The largest of `oci-layout`, `index.json`, the manifests and the component's config; ours have less than a kilobyte.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// The largest config of a model: hypers and metadata are thousands of bytes.
const MAX_JSON_BYTES: u64 = 4 << 20;
/// The largest component; the same limit holds wherever a component is loaded.
const MAX_COMPONENT_BYTES: u64 = 64 << 20;
/// The size of a tar's header, in bytes.
const TAR_BLOCK: u64 = 512;

const BLOB_FOLDER: &str = "blobs/sha256/";

/// A trained model with the component that can run it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFile {
    /// The bytes of the architecture's component; `checkpoint.architecture.digest` MUST be their digest.
    pub component: Vec<u8>,
    /// The weights and all else that the architecture needs to load them in the export context.
    pub checkpoint: CheckpointFile,
    /// What the model can compute, in metatomic's terms: outputs with units, atomic types, interaction range, length
    /// unit, supported devices, dtype.
    pub capabilities: Value,
    /// Name, description, authors and references of the model.
    pub metadata: Value,
}

/// What can be learnt about a model without reading its weights.
#[derive(PartialEq, Serialize, Deserialize)]
struct ModelConfig {
    format: String,
    format_version: u32,
    architecture: ArchitectureIdentity,
    contract_version: String,
    hypers: Value,
    dataset_info: Value,
    capabilities: Value,
    metadata: Value,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutVersion {
    image_layout_version: String,
}

impl ModelFile {
    /// Writes the model to `path`, whole or not at all. The same model always gives the same bytes.
    ///
    /// # Errors
    ///
    /// When the digest in the checkpoint is not that of the component, the tensors are no fit content, or the file
    /// cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), BundleError> {
        let entries = self.entries().map_err(BundleError::unwritable(FileKind::Model, path))?;
        write_atomically(path, |file| write_tar(file, &entries)).map_err(BundleError::write(FileKind::Model, path))
    }

    /// Reads the model at `path` into memory; nothing is unpacked to disk.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is no model, or a digest or size is not what it should be.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let (file, size) = open(path, FileKind::Model)?;
        Self::from_reader(file, size).map_err(BundleError::unusable(FileKind::Model, path))
    }

    /// The model as the bytes of a tar.
    ///
    /// # Errors
    ///
    /// See [`ModelFile::write`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut bytes = Vec::new();
        write_tar(&mut bytes, &self.entries()?).map_err(|error| FormatError::NotALayout(error.to_string()))?;
        Ok(bytes)
    }

    /// Reads what [`ModelFile::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// Names what the bytes are instead, where that can be told, or the entry or blob that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::from_reader(bytes, bytes.len() as u64)
    }

    /// Reads a model of `size` bytes entry by entry, so that whatever is no model is not read as a whole.
    fn from_reader(mut reader: impl Read, size: u64) -> Result<Self, FormatError> {
        let mut beginning = Vec::new();
        reader.by_ref().take(TAR_BLOCK).read_to_end(&mut beginning).map_err(from_tar)?;
        if CheckpointFile::is_likely(&beginning) {
            return Err(FormatError::IsACheckpoint);
        }
        // Told here, because a tar's reader would quote the content.
        if beginning.get(257..262).is_some_and(|magic| magic != b"ustar") {
            return Err(FormatError::NotALayout("it does not begin as a tar archive does".to_owned()));
        }
        Layout::read(beginning.as_slice().chain(reader), size)?.into_model()
    }

    fn config(&self) -> ModelConfig {
        ModelConfig {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            architecture: self.checkpoint.architecture.clone(),
            contract_version: self.checkpoint.contract_version.clone(),
            hypers: self.checkpoint.hypers.clone(),
            dataset_info: self.checkpoint.dataset_info.clone(),
            capabilities: self.capabilities.clone(),
            metadata: self.metadata.clone(),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        check_size("the component's size in bytes", self.component.len() as u64, MAX_COMPONENT_BYTES)?;
        let digest = sha256_digest(&self.component);
        if digest != self.checkpoint.architecture.digest {
            return Err(FormatError::Inconsistent(format!(
                "the weights belong to the component {}, and the component beside them is {digest}",
                printable(&self.checkpoint.architecture.digest)
            )));
        }
        Ok(())
    }

    /// The entries of the tar in their fixed order: what a reader needs first comes first.
    fn entries(&self) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
        self.check()?;
        let mut blobs = Blobs::default();

        let layer = blobs.add(WASM_LAYER_TYPE, self.component.clone());
        let wasm_config = blobs.add_json(
            WASM_CONFIG_TYPE,
            // The layout knows no other system for a component than `wasip2`, with or without imports of WASI.
            &json!({"architecture": "wasm", "os": "wasip2", "layerDigests": [layer.digest]}),
        )?;
        let component = blobs.add_manifest(None, wasm_config, layer, None)?;

        let weights = blobs.add(WEIGHTS_TYPE, self.checkpoint.to_bytes()?);
        let config = to_json(&self.config())?;
        check_size("the size of the model's description in bytes", config.len() as u64, MAX_JSON_BYTES)?;
        let model_config = blobs.add(MODEL_CONFIG_TYPE, config);
        let subject = Descriptor { artifact_type: None, media_type: MANIFEST_TYPE.to_owned(), ..component.clone() };
        let model = blobs.add_manifest(Some(MODEL_ARTIFACT_TYPE), model_config, weights, Some(subject))?;

        let index = Index { schema_version: 2, media_type: INDEX_TYPE.to_owned(), manifests: vec![component, model] };
        let layout = LayoutVersion { image_layout_version: "1.0.0".to_owned() };
        let mut entries =
            vec![("oci-layout".to_owned(), to_json(&layout)?), ("index.json".to_owned(), to_json(&index)?)];
        // The small JSON blobs before the component, and the weights last.
        blobs.entries.sort_by_key(|(_, bytes)| bytes.len());
        entries.extend(blobs.entries);
        Ok(entries)
    }
}

/// The blobs of a layout that is being made.
#[derive(Default)]
struct Blobs {
    entries: Vec<(String, Vec<u8>)>,
}

impl Blobs {
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = sha256_hex(&bytes);
        let descriptor = Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{digest}"),
            size: bytes.len() as u64,
            artifact_type: None,
        };
        let name = format!("{BLOB_FOLDER}{digest}");
        if !self.entries.iter().any(|(existing, _)| *existing == name) {
            self.entries.push((name, bytes));
        }
        descriptor
    }

    fn add_json(&mut self, media_type: &str, value: &impl Serialize) -> Result<Descriptor, FormatError> {
        Ok(self.add(media_type, to_json(value)?))
    }

    fn add_manifest(
        &mut self,
        artifact_type: Option<&str>,
        config: Descriptor,
        layer: Descriptor,
        subject: Option<Descriptor>,
    ) -> Result<Descriptor, FormatError> {
        let artifact_type = artifact_type.map(str::to_owned);
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: artifact_type.clone(),
            config,
            layers: vec![layer],
            subject,
        };
        Ok(Descriptor { artifact_type, ..self.add_json(MANIFEST_TYPE, &manifest)? })
    }
}

/// The entries of a tar that was read: each blob's digest has been verified.
struct Layout {
    version: Option<Vec<u8>>,
    index: Option<Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// The digests that something has referred to; at the end that must be all of them.
    used: BTreeSet<String>,
}

impl Layout {
    fn read(reader: impl Read, size: u64) -> Result<Self, FormatError> {
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

    fn into_model(mut self) -> Result<ModelFile, FormatError> {
        let (component_digest, component_manifest, model_manifest) = self.manifests()?;

        let layer = only_layer(&component_manifest, WASM_LAYER_TYPE)?;
        let component = self.blob(layer, MAX_COMPONENT_BYTES)?.to_vec();
        self.blob(&component_manifest.config, MAX_MANIFEST_BYTES)?;

        let subject = model_manifest.subject.as_ref().map(|subject| subject.digest.as_str());
        if subject != Some(component_digest.as_str()) {
            return Err(FormatError::Inconsistent(
                "the weights name another component than the one beside them".to_owned(),
            ));
        }
        let weights = only_layer(&model_manifest, WEIGHTS_TYPE)?;
        let checkpoint = CheckpointFile::from_bytes(self.blob(weights, MAX_FILE_BYTES)?)?;
        let config: Value = parse_json("the model's config", self.blob(&model_manifest.config, MAX_JSON_BYTES)?)?;
        check_format(&config, FORMAT, FORMAT_VERSION)?;
        let config: ModelConfig =
            serde_json::from_value(config).map_err(|error| FormatError::Description(printable(&error.to_string())))?;
        self.check_all_used()?;

        let model = ModelFile {
            component,
            checkpoint,
            capabilities: config.capabilities.clone(),
            metadata: config.metadata.clone(),
        };
        model.check()?;
        if model.config() != config {
            return Err(FormatError::Inconsistent(
                "the model's config describes other weights than those beside it".to_owned(),
            ));
        }
        Ok(model)
    }

    /// The digest and manifest of the component, and the manifest of the model.
    fn manifests(&mut self) -> Result<(String, Manifest, Manifest), FormatError> {
        let missing = |name: &str| FormatError::NotALayout(format!("`{name}` is missing"));
        let version = self.version.take().ok_or_else(|| missing("oci-layout"))?;
        let version: LayoutVersion = parse_json("`oci-layout`", &version)?;
        if version.image_layout_version != "1.0.0" {
            return Err(FormatError::NotALayout(format!(
                "version `{}` of the layout is not known",
                printable(&version.image_layout_version)
            )));
        }
        let index: Index = parse_json("`index.json`", &self.index.take().ok_or_else(|| missing("index.json"))?)?;
        let (mut component, mut model) = (None, None);
        for descriptor in &index.manifests {
            let manifest: Manifest = parse_json("a manifest", self.blob(descriptor, MAX_MANIFEST_BYTES)?)?;
            let repeated = if manifest.artifact_type.as_deref() == Some(MODEL_ARTIFACT_TYPE)
                && manifest.config.media_type == MODEL_CONFIG_TYPE
            {
                model.replace(manifest).is_some()
            } else if manifest.config.media_type == WASM_CONFIG_TYPE {
                component.replace((descriptor.digest.clone(), manifest)).is_some()
            } else {
                return Err(FormatError::NotALayout(format!(
                    "it holds something that is neither a component nor a model: `{}`",
                    printable(&manifest.config.media_type)
                )));
            };
            if repeated {
                return Err(FormatError::NotALayout("it holds more than one component or model".to_owned()));
            }
        }
        let (digest, component) =
            component.ok_or_else(|| FormatError::NotALayout("it holds no component".to_owned()))?;
        let model = model.ok_or_else(|| FormatError::NotALayout("it holds a component, but no model".to_owned()))?;
        Ok((digest, component, model))
    }

    /// The blob that a descriptor names, after checking its size.
    fn blob(&mut self, descriptor: &Descriptor, limit: u64) -> Result<&[u8], FormatError> {
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
    fn check_all_used(&self) -> Result<(), FormatError> {
        match self.blobs.keys().find(|digest| !self.used.contains(*digest)) {
            None => Ok(()),
            Some(digest) => Err(FormatError::Entry {
                entry: digest.clone(),
                problem: "is a blob that nothing refers to".to_owned(),
            }),
        }
    }
}

fn only_layer<'a>(manifest: &'a Manifest, media_type: &str) -> Result<&'a Descriptor, FormatError> {
    match manifest.layers.as_slice() {
        [layer] if layer.media_type == media_type => Ok(layer),
        layers => Err(FormatError::NotALayout(format!(
            "a manifest has {} layers where exactly one of type `{media_type}` is expected",
            layers.len()
        ))),
    }
}

/// The digest in the name of a blob, when the name is one that a blob may have.
fn blob_digest(name: &str) -> Option<&str> {
    let digest = name.strip_prefix(BLOB_FOLDER)?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest.then_some(digest)
}

fn check_size(what: &str, found: u64, limit: u64) -> Result<(), FormatError> {
    if found > limit {
        return Err(FormatError::TooLarge { what: what.to_owned(), found, limit });
    }
    Ok(())
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(value).map_err(|error| FormatError::Description(error.to_string()))
}

fn parse_json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, FormatError> {
    check_size(&format!("the size of {what} in bytes"), bytes.len() as u64, MAX_JSON_BYTES)?;
    serde_json::from_slice(bytes)
        .map_err(|error| FormatError::Description(format!("{what}: {}", printable(&error.to_string()))))
}

fn from_tar(error: io::Error) -> FormatError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return FormatError::Truncated { detail: "it ends within an entry".to_owned() };
    }
    FormatError::NotALayout(printable(&error.to_string()))
}

/// Writes a tar whose bytes depend on nothing but the entries: no owner, no time.
fn write_tar(writer: &mut dyn Write, entries: &[(String, Vec<u8>)]) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ModelFile {
        ModelFile {
            component: b"a component".to_vec(),
            checkpoint: crate::checkpoint::tests::sample(),
            capabilities: json!({"outputs": {"energy": {"unit": "eV"}}, "interaction_range": 5.0}),
            metadata: json!({"name": "ethanol", "authors": ["A. Author"]}),
        }
    }

    fn tar_of(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_tar(&mut bytes, entries).expect("the tar is made");
        bytes
    }

    /// The message of reading a model after `change` was made to its entries.
    fn refusal(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> String {
        let mut entries = sample().entries().expect("the entries are made");
        change(&mut entries);
        ModelFile::from_bytes(&tar_of(&entries)).expect_err("the model is refused").to_string()
    }

    /// A tar of one entry whose header is made by `change`.
    fn odd_entry(name: &[u8], change: impl FnOnce(&mut tar::Header)) -> String {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        let bytes = [header.as_bytes().as_slice(), &[0; 1024]].concat();
        ModelFile::from_bytes(&bytes).expect_err("the entry is refused").to_string()
    }

    #[test]
    fn a_model_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.tar");
        sample().write(&path).expect("the model is written");
        assert_eq!(ModelFile::read(&path).expect("the model is read"), sample());
    }

    #[test]
    fn the_same_model_gives_the_same_bytes() {
        assert_eq!(sample().to_bytes().expect("a model"), sample().to_bytes().expect("a model"));
    }

    #[test]
    fn the_order_of_entries_does_not_matter_to_a_reader() {
        let mut entries = sample().entries().expect("the entries are made");
        entries.reverse();
        assert_eq!(ModelFile::from_bytes(&tar_of(&entries)).expect("the model is read"), sample());
    }

    #[test]
    fn a_truncated_model_is_refused_at_every_block() {
        let bytes = sample().to_bytes().expect("the model is made");
        // The last two blocks are the zeros that end a tar; without them a model is still whole.
        for length in (0..bytes.len() - 1024).step_by(512).chain((0..bytes.len() - 1024).step_by(391)) {
            assert!(ModelFile::from_bytes(&bytes[..length]).is_err(), "{length} bytes are accepted");
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let bytes = sample().to_bytes().expect("the model is made");
        for place in (0..bytes.len()).step_by(97) {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            // Padding between entries, and owner or time fields, may change without changing the model.
            if let Ok(model) = ModelFile::from_bytes(&changed) {
                assert_eq!(model, sample(), "byte {place}");
            }
        }
    }

    #[test]
    fn a_blob_of_another_digest_is_refused() {
        let message = refusal(|entries| {
            let (_, bytes) = entries.iter_mut().find(|(_, bytes)| bytes == b"a component").expect("the component");
            bytes[0] = b'A';
        });
        assert!(message.contains("damaged or was tampered with"), "{message}");
    }

    #[test]
    fn a_missing_blob_is_named() {
        let message = refusal(|entries| entries.retain(|(_, bytes)| bytes != b"a component"));
        assert!(message.contains("blob `sha256:") && message.contains("is missing"), "{message}");
    }

    #[test]
    fn missing_and_malformed_json_is_named() {
        assert!(refusal(|entries| drop(entries.remove(0))).contains("`oci-layout` is missing"));
        assert!(refusal(|entries| drop(entries.remove(1))).contains("`index.json` is missing"));
        assert!(refusal(|entries| entries[1].1 = b"{}".to_vec()).contains("`index.json`: missing field"));
        let message = refusal(|entries| entries[0].1 = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec());
        assert!(message.contains("version `2.0.0` of the layout"), "{message}");
    }

    #[test]
    fn entries_that_have_no_place_are_refused() {
        for name in ["../escape", "/etc/passwd", "blobs/sha256/abc", "blobs/sha256/../../x", "readme.md", "INDEX.JSON"]
        {
            let message = odd_entry(name.as_bytes(), |_| {});
            assert!(message.contains("has no place in a model"), "{name}: {message}");
        }
        assert!(refusal(|entries| entries.push(entries[0].clone())).contains("is there twice"));
        let message = refusal(|entries| {
            entries.push((format!("{BLOB_FOLDER}{}", sha256_hex(b"hidden")), b"hidden".to_vec()));
        });
        assert!(message.contains("nothing refers to"), "{message}");
    }

    #[test]
    fn links_and_devices_are_refused() {
        use tar::EntryType;
        for kind in [
            EntryType::Symlink,
            EntryType::Link,
            EntryType::Char,
            EntryType::Fifo,
            EntryType::GNUSparse,
            EntryType::GNULongName,
            EntryType::XHeader,
        ] {
            let message = odd_entry(b"index.json", |header| header.set_entry_type(kind));
            assert!(message.contains("plain files only"), "{kind:?}: {message}");
        }
    }

    #[test]
    fn an_entry_that_lies_about_its_size_is_refused() {
        let message = odd_entry(b"index.json", |header| header.set_size(1 << 40));
        assert!(message.contains("truncated"), "{message}");
    }

    #[test]
    fn small_json_is_small_and_only_one_blob_is_large() {
        let annotated = |entries: &mut Vec<(String, Vec<u8>)>| {
            entries[1].1 = format!(r#"{{"annotations":{{"a":"{}"}}}}"#, "x".repeat(10 << 20)).into_bytes();
        };
        assert!(refusal(annotated).contains("entry `index.json` is 10485784, and at most 65536 is accepted"));
        let large = |byte: u8| {
            let bytes = vec![byte; (MAX_COMPONENT_BYTES + 1) as usize];
            (format!("{BLOB_FOLDER}{}", sha256_hex(&bytes)), bytes)
        };
        let one = refusal(|entries| entries.push(large(0)));
        assert!(one.contains("nothing refers to"), "{one}");
        let two = refusal(|entries| entries.extend([large(0), large(1)]));
        assert!(two.contains("is 67108865, and at most 67108864 is accepted"), "{two}");
    }

    #[test]
    fn a_description_that_could_not_be_read_back_is_not_written() {
        let metadata = json!("x".repeat(MAX_JSON_BYTES as usize));
        let message = ModelFile { metadata, ..sample() }.to_bytes().expect_err("too large").to_string();
        assert!(message.contains("description in bytes is 4194731"), "{message}");
    }

    #[test]
    fn too_many_entries_are_refused() {
        let entries: Vec<_> = (0..=MAX_ENTRIES)
            .map(|number| {
                let bytes = number.to_le_bytes().to_vec();
                (format!("{BLOB_FOLDER}{}", sha256_hex(&bytes)), bytes)
            })
            .collect();
        let message = ModelFile::from_bytes(&tar_of(&entries)).expect_err("the tar is refused").to_string();
        assert!(message.contains("number of its entries is 33"), "{message}");
    }

    #[test]
    fn a_component_that_the_weights_do_not_know_is_refused() {
        let mut model = sample();
        model.component.push(b'!');
        let message = model.to_bytes().expect_err("the model is refused").to_string();
        assert!(message.contains("the weights belong to the component sha256:"), "{message}");
    }

    #[test]
    fn a_config_that_describes_other_weights_is_refused() {
        // The entries of two models that differ in hypers; weights of the one, everything else of the other.
        let mut other = sample();
        other.checkpoint.seed = 1;
        let mut weights = Blobs::default();
        let weights = weights.add(WEIGHTS_TYPE, other.checkpoint.to_bytes().expect("weights"));
        let mut blobs = Blobs::default();
        let mut model = sample();
        model.checkpoint.hypers = json!({});
        let config = blobs.add_json(MODEL_CONFIG_TYPE, &model.config()).expect("a config");
        let mut layout = {
            let bytes = sample().to_bytes().expect("a model");
            Layout::read(bytes.as_slice(), bytes.len() as u64).expect("a layout")
        };
        layout.blobs.insert(weights.digest.clone(), other.checkpoint.to_bytes().expect("weights"));
        layout.blobs.extend(blobs.entries.into_iter().map(|(_, bytes)| (sha256_digest(&bytes), bytes)));
        let index: Index = serde_json::from_slice(layout.index.as_ref().expect("an index")).expect("an index");
        let old = layout.blobs.remove(&index.manifests[1].digest).expect("the model's manifest");
        let mut manifest: Manifest = serde_json::from_slice(&old).expect("a manifest");
        for unused in [&manifest.config.digest, &manifest.layers[0].digest] {
            layout.blobs.remove(unused);
        }
        manifest.config = config;
        manifest.layers = vec![weights];
        let manifest = to_json(&manifest).expect("a manifest");
        let descriptor =
            Descriptor { digest: sha256_digest(&manifest), size: manifest.len() as u64, ..index.manifests[1].clone() };
        layout.blobs.insert(descriptor.digest.clone(), manifest);
        let index = Index { manifests: vec![index.manifests[0].clone(), descriptor], ..index };
        layout.index = Some(to_json(&index).expect("an index"));

        let message = layout.into_model().expect_err("the model is refused").to_string();
        assert!(message.contains("describes other weights"), "{message}");
    }

    #[test]
    fn what_is_not_a_model_is_named() {
        let checkpoint = sample().checkpoint.to_bytes().expect("a checkpoint");
        assert!(matches!(ModelFile::from_bytes(&checkpoint), Err(FormatError::IsACheckpoint)));
        assert!(ModelFile::from_bytes(b"").is_err());
        assert!(ModelFile::from_bytes(&[b'x'; 600]).is_err());
    }
}
