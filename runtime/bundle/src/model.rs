//! Exported models: the component, its weights and what there is to know of them in one OCI image layout.
//!
//! ```text
//! index.json names             manifest of the component (`architecture`) and of the model (`model`)
//! the component's manifest     a CNCF wasm artifact: config, one layer `application/wasm`
//! the model's manifest         its `subject` is the component's; a config (JSON), the weights (safetensors), the model card (Markdown)
//! ```
//!
//! Any OCI tool can carry such a file to a registry, and any wasm tool can pull the component from there, because its
//! artifact has exactly one layer, as the CNCF layout demands.

use crate::architecture::MAX_COMPONENT_BYTES;
use crate::atomic_file::write_atomically;
use crate::checkpoint::{ArchitectureIdentity, CheckpointFile, MAX_FILE_BYTES, check_format, open};
use crate::digest::sha256_digest;
use crate::error::{BundleError, FileKind, FormatError};
use crate::layout::{
    Blobs, Descriptor, Layout, MANIFEST_TYPE, MAX_JSON_BYTES, MAX_MANIFEST_BYTES, Manifest, TAR_BLOCK, TITLE,
    WASM_CONFIG_TYPE, check_size, from_tar, is_null, is_tar, parse_json, write_tar,
};
use crate::safetensors_file::printable;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// The OCI artifact type of the manifest that describes a trained model.
pub const MODEL_ARTIFACT_TYPE: &str = "application/vnd.kilnbox.model.v1";

pub(crate) const MODEL_CONFIG_TYPE: &str = "application/vnd.kilnbox.model.config.v1+json";
/// The types of the CNCF's ModelPack for weights and for documents.
const WEIGHTS_TYPE: &str = "application/vnd.cncf.model.weight.v1.safetensors";
const CARD_TYPE: &str = "application/vnd.cncf.model.doc.v1.raw";

/// The names of the two manifests in the index.
pub(crate) const NAMES: [&str; 2] = ["architecture", "model"];

/// The marker and version of the model's config.
const FORMAT: &str = "kilnbox-model";
const FORMAT_VERSION: u32 = 1;

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
    /// The options of the training in full, as the user wrote them; null where they are not known.
    pub options: Value,
    /// The errors of the model on the sets of its training; null where they are not known.
    pub metrics: Value,
    /// The model card, in Markdown; may be empty.
    pub card: String,
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
    #[serde(default, skip_serializing_if = "is_null")]
    options: Value,
    #[serde(default, skip_serializing_if = "is_null")]
    metrics: Value,
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
        if beginning.len() >= 262 && !is_tar(&beginning) {
            return Err(FormatError::NotALayout("it does not begin as a tar archive does".to_owned()));
        }
        Self::from_layout(Layout::read(beginning.as_slice().chain(reader), size)?)
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
            options: self.options.clone(),
            metrics: self.metrics.clone(),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        check_size("the component's size in bytes", self.component.len() as u64, MAX_COMPONENT_BYTES)?;
        check_size("the size of the model card in bytes", self.card.len() as u64, MAX_JSON_BYTES)?;
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
        let component = blobs.add_component(&self.component)?;
        let config = blobs.add_json(MODEL_CONFIG_TYPE, &self.config(), MAX_JSON_BYTES)?;
        let mut layers = vec![blobs.add(WEIGHTS_TYPE, self.checkpoint.to_bytes()?).called(TITLE, "model.safetensors")];
        if !self.card.is_empty() {
            layers.push(blobs.add(CARD_TYPE, self.card.clone().into_bytes()).called(TITLE, "README.md"));
        }
        let mut manifest = Manifest::new(Some(MODEL_ARTIFACT_TYPE), config, layers);
        manifest.subject = Some(Descriptor { media_type: MANIFEST_TYPE.to_owned(), ..component.clone() });
        let model = blobs.add_manifest(&manifest)?;
        let [architecture_name, model_name] = NAMES;
        blobs.into_entries(vec![(component, architecture_name), (model, model_name)])
    }

    /// The model of a layout whose blobs' digests have been verified.
    pub(crate) fn from_layout(mut layout: Layout) -> Result<Self, FormatError> {
        let (component_digest, component_manifest, model_manifest) = manifests(&mut layout)?;
        let component = layout.blob(component_manifest.component_layer()?, MAX_COMPONENT_BYTES)?.to_vec();
        layout.blob(&component_manifest.config, MAX_MANIFEST_BYTES)?;

        let subject = model_manifest.subject.as_ref().map(|subject| subject.digest.as_str());
        if subject != Some(component_digest.as_str()) {
            return Err(FormatError::Inconsistent(
                "the weights name another component than the one beside them".to_owned(),
            ));
        }
        let (weights, card) = match model_manifest.layers.as_slice() {
            [weights] if weights.media_type == WEIGHTS_TYPE => (weights, None),
            [weights, card] if weights.media_type == WEIGHTS_TYPE && card.media_type == CARD_TYPE => {
                (weights, Some(card))
            }
            layers => {
                return Err(FormatError::NotALayout(format!(
                    "the model's manifest has {} layers where one of type `{WEIGHTS_TYPE}` and at most one of type `{CARD_TYPE}` are expected",
                    layers.len()
                )));
            }
        };
        let checkpoint = CheckpointFile::from_bytes(layout.blob(weights, MAX_FILE_BYTES)?)?;
        let card = match card {
            Some(card) => String::from_utf8(layout.blob(card, MAX_JSON_BYTES)?.to_vec())
                .map_err(|_| FormatError::Description("the model card is not UTF-8".to_owned()))?,
            None => String::new(),
        };
        let config: Value = parse_json("the model's config", layout.blob(&model_manifest.config, MAX_JSON_BYTES)?)?;
        check_format(&config, FORMAT, FORMAT_VERSION)?;
        let config: ModelConfig =
            serde_json::from_value(config).map_err(|error| FormatError::Description(printable(&error.to_string())))?;
        layout.check_all_used()?;

        let model = ModelFile {
            component,
            checkpoint,
            capabilities: config.capabilities.clone(),
            metadata: config.metadata.clone(),
            options: config.options.clone(),
            metrics: config.metrics.clone(),
            card,
        };
        model.check()?;
        if model.config() != config {
            return Err(FormatError::Inconsistent(
                "the model's config describes other weights than those beside it".to_owned(),
            ));
        }
        Ok(model)
    }
}

/// The digest and manifest of the component, and the manifest of the model.
fn manifests(layout: &mut Layout) -> Result<(String, Manifest, Manifest), FormatError> {
    let (mut component, mut model) = (None, None);
    for (descriptor, manifest) in layout.manifests()? {
        let repeated = if is_model(&manifest) {
            model.replace(manifest).is_some()
        } else if manifest.config.media_type == WASM_CONFIG_TYPE {
            component.replace((descriptor.digest, manifest)).is_some()
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
    let (digest, component) = component.ok_or_else(|| FormatError::NotALayout("it holds no component".to_owned()))?;
    let model = model.ok_or_else(|| FormatError::NotALayout("it holds a component, but no model".to_owned()))?;
    Ok((digest, component, model))
}

/// Whether a manifest is that of a model.
pub(crate) fn is_model(manifest: &Manifest) -> bool {
    manifest.artifact_type.as_deref() == Some(MODEL_ARTIFACT_TYPE) && manifest.config.media_type == MODEL_CONFIG_TYPE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::sha256_hex;
    use crate::layout::{BLOB_FOLDER, Index, MAX_ENTRIES, to_json};
    use serde_json::json;

    fn sample() -> ModelFile {
        ModelFile {
            component: b"a component".to_vec(),
            checkpoint: crate::checkpoint::tests::sample(),
            capabilities: json!({"outputs": {"energy": {"unit": "eV"}}, "interaction_range": 5.0}),
            metadata: json!({"name": "ethanol", "authors": ["A. Author"]}),
            options: json!({"seed": 7}),
            metrics: json!({"test": [{"energy": {"rmse": 0.1}}]}),
            card: "# Ethanol\n".to_owned(),
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
    fn what_is_not_known_is_left_out() {
        let bare = ModelFile { options: Value::Null, metrics: Value::Null, card: String::new(), ..sample() };
        let entries = bare.entries().expect("the entries are made");
        assert_eq!(entries.len(), 2 + 6, "two manifests, two configs, the component and the weights");
        assert!(entries.iter().all(|(_, bytes)| !String::from_utf8_lossy(bytes).contains("metrics")));
        assert_eq!(ModelFile::from_bytes(&tar_of(&entries)).expect("the model is read"), bare);
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
        assert!(message.contains("config.v1+json` in bytes is 4194"), "{message}");
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
        let config = blobs.add_json(MODEL_CONFIG_TYPE, &model.config(), MAX_JSON_BYTES).expect("a config");
        let mut layout = {
            let bytes = sample().to_bytes().expect("a model");
            Layout::read(bytes.as_slice(), bytes.len() as u64).expect("a layout")
        };
        layout.blobs.insert(weights.digest.clone(), other.checkpoint.to_bytes().expect("weights"));
        layout.blobs.extend(blobs.entries.into_iter().map(|(_, bytes)| (sha256_digest(&bytes), bytes)));
        let index: Index = serde_json::from_slice(layout.index.as_ref().expect("an index")).expect("an index");
        let old = layout.blobs.remove(&index.manifests[1].digest).expect("the model's manifest");
        let mut manifest: Manifest = serde_json::from_slice(&old).expect("a manifest");
        for unused in manifest.layers.iter().chain([&manifest.config]) {
            layout.blobs.remove(&unused.digest);
        }
        manifest.config = config;
        manifest.layers = vec![weights];
        let manifest = to_json(&manifest).expect("a manifest");
        let descriptor =
            Descriptor { digest: sha256_digest(&manifest), size: manifest.len() as u64, ..index.manifests[1].clone() };
        layout.blobs.insert(descriptor.digest.clone(), manifest);
        let index = Index { manifests: vec![index.manifests[0].clone(), descriptor], ..index };
        layout.index = Some(to_json(&index).expect("an index"));

        let message = ModelFile::from_layout(layout).expect_err("the model is refused").to_string();
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
