//! Training checkpoints.

use crate::architecture::MAX_COMPONENT_BYTES;
use crate::atomic_file::write_atomically;
use crate::error::{BundleError, FileKind, FormatError};
use crate::layout::{check_size, is_tar};
use crate::safetensors_file::{LaidOut, NamedTensor, TensorFile, printable};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The marker of a checkpoint's description.
const FORMAT: &str = "kilnbox-checkpoint";
/// The version of the description that this program writes, and the newest that it reads.
const FORMAT_VERSION: u32 = 1;
/// The largest checkpoint or model, in bytes; it is read into memory whole. A billion weights with the state of their optimizer take 12 GB.
pub(crate) const MAX_FILE_BYTES: u64 = 16 << 30;

/// Which architecture a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchitectureIdentity {
    /// The architecture's name, `soap-bpnn` or `experimental.mace`. A `-` and a `_` are the same to a reader.
    pub name: String,
    /// The version that the architecture gives itself, when it gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The digest of the component, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
}

impl ArchitectureIdentity {
    /// Whether both are the same architecture by name. Versions and digests may differ: a newer component of the same
    /// architecture upgrades the checkpoints of an older one.
    pub fn has_same_name(&self, other: &Self) -> bool {
        self.name.replace('_', "-") == other.name.replace('_', "-")
    }
}

/// The state of a training run, or the weights of a trained model, with all that is needed to check whose they are.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointFile {
    /// The architecture whose checkpoint this is.
    pub architecture: ArchitectureIdentity,
    /// The version of the contract that the component was built against.
    pub contract_version: String,
    /// The version of the model's part, by the architecture's own count; a newer architecture upgrades older ones.
    pub model_version: u32,
    /// The version of the trainer's part, by the architecture's own count.
    pub trainer_version: u32,
    /// The hypers in full, defaults included: `{"model": ..., "training": ...}`.
    pub hypers: Value,
    /// What the model was made for: length unit, atomic types, targets.
    pub dataset_info: Value,
    /// The last epoch that was finished, counted from 0; none before the first.
    pub epoch: Option<u64>,
    /// The seed of the run.
    pub seed: u64,
    /// What the architecture wants to remember besides tensors; its own business.
    pub data: Value,
    /// The weights, and whatever else the architecture keeps (optimizer state, scales, ...).
    pub tensors: Vec<NamedTensor>,
}

/// The JSON form of everything but the tensors.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format: String,
    format_version: u32,
    architecture: ArchitectureIdentity,
    contract_version: String,
    model_version: u32,
    trainer_version: u32,
    hypers: Value,
    dataset_info: Value,
    epoch: Option<u64>,
    seed: u64,
    data: Value,
}

impl CheckpointFile {
    /// Writes the checkpoint to `path`, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the tensors are no fit content (see [`TensorFile::to_bytes`]) or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), BundleError> {
        let laid_out = self.laid_out().map_err(BundleError::unwritable(FileKind::Checkpoint, path))?;
        write_atomically(path, |file| laid_out.write_to(file)).map_err(BundleError::write(FileKind::Checkpoint, path))
    }

    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not a checkpoint, or is truncated or beyond the limits.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let (mut file, size) = open(path, FileKind::Checkpoint)?;
        let mut bytes = Vec::new();
        let mut read = |bytes: &mut Vec<u8>, limit: u64| {
            let read = Read::by_ref(&mut file).take(limit).read_to_end(bytes);
            read.map(drop).map_err(BundleError::read(FileKind::Checkpoint, path))
        };
        // The beginning first: whatever is no checkpoint is not read as a whole.
        read(&mut bytes, TensorFile::MAX_BEGINNING_BYTES)?;
        let unusable = || BundleError::unusable(FileKind::Checkpoint, path);
        if is_tar(&bytes) {
            return Err(unusable()(FormatError::IsAModel));
        }
        TensorFile::check_beginning(&bytes, size).map_err(unusable())?;
        let rest = size.saturating_sub(bytes.len() as u64);
        read(&mut bytes, rest)?;
        Self::from_bytes(&bytes).map_err(unusable())
    }

    /// The checkpoint as the bytes of a safetensors file; the same checkpoint always gives the same bytes.
    ///
    /// # Errors
    ///
    /// See [`TensorFile::to_bytes`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        Ok(self.laid_out()?.to_bytes())
    }

    fn laid_out(&self) -> Result<LaidOut<'_>, FormatError> {
        LaidOut::new(&self.description()?, &self.tensors)
    }

    /// Reads what [`CheckpointFile::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// Names what the bytes are instead, where that can be told.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        if is_tar(bytes) {
            return Err(FormatError::IsAModel);
        }
        let file = TensorFile::from_bytes(bytes)?;
        check_format(&file.description, FORMAT, FORMAT_VERSION)?;
        let description: Description = serde_json::from_value(file.description)
            .map_err(|error| FormatError::Description(printable(&error.to_string())))?;
        Ok(Self {
            architecture: description.architecture,
            contract_version: description.contract_version,
            model_version: description.model_version,
            trainer_version: description.trainer_version,
            hypers: description.hypers,
            dataset_info: description.dataset_info,
            epoch: description.epoch,
            seed: description.seed,
            data: description.data,
            tensors: file.tensors,
        })
    }

    /// Whether the bytes could be a checkpoint, judged by their first few: a header's length and the brace that opens it.
    pub(crate) fn is_likely(bytes: &[u8]) -> bool {
        bytes.len() > 8 && bytes[8] == b'{'
    }

    /// Refuses a checkpoint of an architecture of another name, naming both.
    ///
    /// A component with the same name and another digest is accepted, because it may be a newer version that upgrades
    /// the checkpoint; compare [`ArchitectureIdentity::digest`] to tell the user so.
    ///
    /// # Errors
    ///
    /// [`FormatError::OtherArchitecture`].
    pub fn check_architecture(&self, expected: &ArchitectureIdentity) -> Result<(), FormatError> {
        if self.architecture.has_same_name(expected) {
            return Ok(());
        }
        Err(FormatError::OtherArchitecture {
            expected: expected.name.clone(),
            found: printable(&self.architecture.name),
        })
    }

    /// The name of the first tensor with a number that is not finite, if any; a caller should warn about it.
    pub fn first_non_finite_tensor(&self) -> Option<&str> {
        self.tensors.iter().find(|tensor| !tensor.is_finite()).map(|tensor| tensor.name.as_str())
    }

    /// Everything but the tensors, as JSON.
    pub(crate) fn description(&self) -> Result<Value, FormatError> {
        serde_json::to_value(Description {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            architecture: self.architecture.clone(),
            contract_version: self.contract_version.clone(),
            model_version: self.model_version,
            trainer_version: self.trainer_version,
            hypers: self.hypers.clone(),
            dataset_info: self.dataset_info.clone(),
            epoch: self.epoch,
            seed: self.seed,
            data: self.data.clone(),
        })
        .map_err(|error| FormatError::Description(error.to_string()))
    }
}

/// Opens a file of the user's and says how large it is.
///
/// # Errors
///
/// When it is no plain file, or larger than any that kilnbox writes.
pub(crate) fn open(path: &Path, kind: FileKind) -> Result<(File, u64), BundleError> {
    let file = File::open(path).map_err(BundleError::read(kind, path))?;
    let metadata = file.metadata().map_err(BundleError::read(kind, path))?;
    // A device has no end, and a pipe may have no writer.
    if !metadata.is_file() {
        return Err(BundleError::unusable(kind, path)(FormatError::NotAFile));
    }
    let size = metadata.len();
    if size > MAX_FILE_BYTES {
        let what = "the file's size in bytes".to_owned();
        return Err(BundleError::unusable(kind, path)(FormatError::TooLarge {
            what,
            found: size,
            limit: MAX_FILE_BYTES,
        }));
    }
    Ok((file, size))
}

/// Reads a file of this kind into memory, as it is.
///
/// # Errors
///
/// It is no plain file, or larger than one of its kind may be, or cannot be read.
pub fn read_whole(path: &Path, kind: FileKind) -> Result<Vec<u8>, BundleError> {
    let (file, size) = open(path, kind)?;
    let limit = if kind == FileKind::Architecture { MAX_COMPONENT_BYTES } else { MAX_FILE_BYTES };
    check_size("the file's size in bytes", size, limit).map_err(BundleError::unusable(kind, path))?;
    let mut bytes = Vec::new();
    // A file that grows meanwhile is cut, and so will not be what its end says.
    file.take(size).read_to_end(&mut bytes).map_err(BundleError::read(kind, path))?;
    Ok(bytes)
}

/// Checks the marker and version of a description before the rest of it, so that a file of another kind or of a later
/// version gets the message that helps.
pub(crate) fn check_format(description: &Value, format: &'static str, newest: u32) -> Result<(), FormatError> {
    let found = description.get("format").and_then(Value::as_str).unwrap_or_default();
    if found != format {
        return Err(FormatError::OtherKind { expected: format, found: printable(found) });
    }
    let version = description.get("format_version").and_then(Value::as_u64);
    let version = version
        .and_then(|version| u32::try_from(version).ok())
        .ok_or_else(|| FormatError::Description("`format_version` is missing or no number".to_owned()))?;
    if version > newest {
        return Err(FormatError::NewerFormat { found: version, newest });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::safetensors_file::ElementType;
    use serde_json::json;

    pub(crate) fn sample() -> CheckpointFile {
        CheckpointFile {
            architecture: ArchitectureIdentity {
                name: "soap-bpnn".to_owned(),
                version: Some("0.1.0".to_owned()),
                digest: crate::sha256_digest(b"a component"),
            },
            contract_version: "0.1.0".to_owned(),
            model_version: 1,
            trainer_version: 2,
            hypers: json!({"model": {"cutoff": 5.0}, "training": {"num_epochs": 10}}),
            dataset_info: json!({"length_unit": "angstrom", "atomic_types": [1, 6, 8]}),
            epoch: Some(9),
            seed: u64::MAX,
            // A number whose shortest decimal form must come back to the same bits.
            data: json!({"best_metric": 0.1 + 0.2}),
            tensors: vec![NamedTensor {
                name: "network.weight".to_owned(),
                element_type: ElementType::F32,
                shape: vec![2],
                bytes: [1.0_f32, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect(),
            }],
        }
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model_9.ckpt");
        sample().write(&path).expect("the checkpoint is written");
        assert_eq!(CheckpointFile::read(&path).expect("the checkpoint is read"), sample());
    }

    #[test]
    fn what_is_not_a_checkpoint_is_named() {
        let other = |description: Value| TensorFile { description, tensors: vec![] }.to_bytes().expect("a file");
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases = [
            (other(json!({"format": "kilnbox-model"})), "its description says `kilnbox-model`"),
            (other(json!({})), "says `` where `kilnbox-checkpoint` is expected"),
            (other(json!({"format": FORMAT})), "`format_version` is missing"),
            (other(json!({"format": FORMAT, "format_version": 2})), "version 2 of the format"),
            (other(json!({"format": FORMAT, "format_version": 1})), "missing field `architecture`"),
            (tar, "it is an exported model"),
            (b"PK\x03\x04 a pickle in a zip".to_vec(), "at most 16777216 is accepted"),
            (vec![], "truncated"),
        ];
        for (bytes, expected) in cases {
            let message = CheckpointFile::from_bytes(&bytes).expect_err("the bytes are refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn another_architectures_checkpoint_is_refused_by_name() {
        let mut expected = sample().architecture;
        expected.name = "soap_bpnn".to_owned();
        expected.digest = crate::sha256_digest(b"a newer component");
        sample().check_architecture(&expected).expect("`-` and `_` are the same, and digests may differ");

        expected.name = "pet".to_owned();
        let message = sample().check_architecture(&expected).expect_err("another name is refused").to_string();
        assert_eq!(message, "it belongs to architecture `soap-bpnn`, not to `pet`");
    }

    #[test]
    fn errors_carry_the_path_and_a_hint() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model_9.ckpt");
        let bytes = sample().to_bytes().expect("the checkpoint is made");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("half a file is written");

        let error = CheckpointFile::read(&path).expect_err("half a file is refused");

        assert_eq!(error.to_string(), format!("`{}` is not a usable checkpoint", path.display()));
        assert!(error.hint().expect("a hint").contains("copy or download the file again"));
    }
}
