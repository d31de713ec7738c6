//! Bundles and models as registries keep them: manifests and blobs, each under its digest.

use crate::architecture::{ArchitectureBundle, MAX_COMPONENT_BYTES};
use crate::checkpoint::MAX_FILE_BYTES;
use crate::digest::sha256_digest;
use crate::error::{FileKind, FormatError};
use crate::layout::{
    Blobs, Descriptor, Layout, MANIFEST_TYPE, MAX_ENTRIES, MAX_JSON_BYTES, MAX_MANIFEST_BYTES, Manifest,
    WASM_CONFIG_TYPE, check_size, write_tar,
};
use crate::model::{ModelFile, NAMES, is_model};
use crate::reference::is_digest;
use crate::safetensors_file::printable;
use crate::signature::Signature;

/// The OCI artifact type of a signature of minisign.
pub(crate) const SIGNATURE_ARTIFACT_TYPE: &str = "application/vnd.kilnbox.signature.v1";
const SIGNATURE_TYPE: &str = "application/vnd.kilnbox.signature.minisign";
/// The largest signature, in bytes; they have some hundreds.
const MAX_SIGNATURE_BYTES: u64 = 4096;
/// OCI's config of what needs none.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// Something to be kept under its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: sha256_digest(&bytes), bytes }
    }
}

/// What is pushed for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// What kind of file it is of.
    pub kind: FileKind,
    /// The manifest that stands for the whole.
    pub manifest: Blob,
    /// The manifest of the component in a model, which is one that any wasm tool can pull.
    pub component_manifest: Option<Blob>,
    /// Configs and layers.
    pub blobs: Vec<Blob>,
}

impl Artifact {
    /// The artifact of a bundle or a model, given as its file's content.
    ///
    /// # Errors
    ///
    /// The content is neither, or damaged: what nobody could use is not pushed.
    pub fn of(bytes: &[u8]) -> Result<Self, FormatError> {
        match FileKind::of(bytes) {
            Some(FileKind::Architecture) => {
                ArchitectureBundle::read(bytes)?;
                let mut blobs = Blobs::default();
                let descriptor = blobs.add_component(bytes)?;
                Self::new(FileKind::Architecture, blobs.entries, &descriptor, None)
            }
            Some(FileKind::Model) => {
                let model = ModelFile::from_bytes(bytes)?;
                // As this program writes it, so that what is pulled is the same file, bit for bit.
                if model.to_bytes()? != bytes {
                    return Err(FormatError::Inconsistent(
                        "the model was written by another program or version; export it again to push it".to_owned(),
                    ));
                }
                let mut layout = Layout::read(bytes, bytes.len() as u64)?;
                let mut manifests = layout.manifests()?;
                manifests.sort_by_key(|(_, manifest)| is_model(manifest));
                let [(component, _), (model, _)] = manifests.as_slice() else {
                    return Err(FormatError::NotALayout("it does not hold two manifests".to_owned()));
                };
                Self::new(FileKind::Model, layout.blobs, model, Some(component))
            }
            Some(FileKind::Checkpoint) => Err(FormatError::IsACheckpoint),
            None => Err(FormatError::NotALayout("it is neither a bundle nor a model".to_owned())),
        }
    }

    fn new(
        kind: FileKind,
        contents: impl IntoIterator<Item = (String, Vec<u8>)>,
        manifest: &Descriptor,
        component: Option<&Descriptor>,
    ) -> Result<Self, FormatError> {
        let mut blobs: Vec<Blob> = contents.into_iter().map(|(_, bytes)| Blob::new(bytes)).collect();
        let mut take = |descriptor: &Descriptor| {
            let place = blobs.iter().position(|blob| blob.digest == descriptor.digest);
            place
                .map(|place| blobs.swap_remove(place))
                .ok_or_else(|| FormatError::Truncated { detail: format!("blob `{}` is missing", descriptor.digest) })
        };
        let manifest = take(manifest)?;
        let component_manifest = component.map(&mut take).transpose()?;
        blobs.sort_by(|left, right| left.digest.cmp(&right.digest));
        Ok(Self { kind, manifest, component_manifest, blobs })
    }

    /// A signature of what has this manifest.
    ///
    /// # Errors
    ///
    /// The text is no signature.
    pub fn of_signature(signature: &str, manifest: &Blob) -> Result<Self, FormatError> {
        Signature::parse(signature).map_err(|error| FormatError::Description(error.to_string()))?;
        let mut blobs = Blobs::default();
        let config = blobs.add(EMPTY_TYPE, b"{}".to_vec());
        let layer = blobs.add(SIGNATURE_TYPE, signature.as_bytes().to_vec());
        let mut own = Manifest::new(Some(SIGNATURE_ARTIFACT_TYPE), config, vec![layer]);
        own.subject = Some(Descriptor {
            media_type: MANIFEST_TYPE.to_owned(),
            digest: manifest.digest.clone(),
            size: manifest.bytes.len() as u64,
            artifact_type: None,
            annotations: Default::default(),
        });
        let descriptor = blobs.add_manifest(&own)?;
        Self::new(FileKind::Architecture, blobs.entries, &descriptor, None)
    }
}

/// The tag under which a signature is kept: registries without the API of referrers know no other way from a thing to what is said of it.
pub fn signature_tag(digest: &str) -> String {
    format!("{}.minisig", digest.replace(':', "-"))
}

/// What is asked of a registry, or of whatever has the blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The digest, which has the right form and is to be verified.
    pub digest: &'a str,
    /// The most bytes that it may have.
    pub limit: u64,
    /// Whether it is a manifest, which registries keep apart.
    pub is_manifest: bool,
}

/// Puts a file together from its manifest and what `fetch` brings; everything is checked, whatever it brings.
///
/// # Errors
///
/// Those of `fetch`; or what is named is missing, too large, another thing than its digest says, or no bundle and no model.
pub fn assemble<E: From<FormatError>>(
    manifest_bytes: &[u8],
    mut fetch: impl FnMut(Wanted<'_>) -> Result<Vec<u8>, E>,
) -> Result<(FileKind, Vec<u8>), E> {
    let mut get = |descriptor: &Descriptor, limit: u64, is_manifest: bool| -> Result<Vec<u8>, E> {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        if !is_digest(digest) {
            return Err(FormatError::Description(format!("`{}` is no digest", printable(digest))).into());
        }
        check_size(&format!("the size in bytes of a `{}`", printable(media_type)), *size, limit)?;
        let bytes = fetch(Wanted { digest, limit: *size, is_manifest })?;
        let found = sha256_digest(&bytes);
        if found != *digest {
            return Err(FormatError::DigestMismatch { expected: digest.clone(), found }.into());
        }
        if bytes.len() as u64 != *size {
            let found = bytes.len();
            return Err(FormatError::Inconsistent(format!(
                "blob `{digest}` has {found} bytes, and its descriptor says {size}"
            ))
            .into());
        }
        Ok(bytes)
    };
    check_size("the size of a manifest in bytes", manifest_bytes.len() as u64, MAX_MANIFEST_BYTES)?;
    let manifest = Manifest::parse(manifest_bytes)?;
    if manifest.config.media_type == WASM_CONFIG_TYPE {
        let component = get(manifest.component_layer()?, MAX_COMPONENT_BYTES, false)?;
        ArchitectureBundle::read(&component)?;
        return Ok((FileKind::Architecture, component));
    }
    if !is_model(&manifest) {
        return Err(FormatError::NotALayout(format!(
            "it is neither a component nor a model: `{}`",
            printable(manifest.artifact_type.as_deref().unwrap_or(&manifest.config.media_type))
        ))
        .into());
    }
    let subject =
        manifest.subject.as_ref().ok_or_else(|| FormatError::NotALayout("the model names no component".to_owned()))?;
    let component_bytes = get(subject, MAX_MANIFEST_BYTES, true)?;
    let component = Manifest::parse(&component_bytes)?;
    check_size("the number of the model's layers", manifest.layers.len() as u64, MAX_ENTRIES)?;
    let mut blobs = Blobs::default();
    let component_descriptor = blobs.add(MANIFEST_TYPE, component_bytes);
    let mut add = |blobs: &mut Blobs, descriptor: &Descriptor, limit: u64| -> Result<(), E> {
        blobs.add(&descriptor.media_type, get(descriptor, limit, false)?);
        Ok(())
    };
    add(&mut blobs, &component.config, MAX_MANIFEST_BYTES)?;
    add(&mut blobs, component.component_layer()?, MAX_COMPONENT_BYTES)?;
    add(&mut blobs, &manifest.config, MAX_JSON_BYTES)?;
    for (number, layer) in manifest.layers.iter().enumerate() {
        // The weights come first, and nothing else is large.
        add(&mut blobs, layer, if number == 0 { MAX_FILE_BYTES } else { MAX_JSON_BYTES })?;
    }
    let artifact_type = manifest.artifact_type.clone();
    let model_descriptor = Descriptor { artifact_type, ..blobs.add(MANIFEST_TYPE, manifest_bytes.to_vec()) };
    let [component_name, model_name] = NAMES;
    let entries = blobs.into_entries(vec![(component_descriptor, component_name), (model_descriptor, model_name)])?;
    let mut bytes = Vec::new();
    write_tar(&mut bytes, &entries).map_err(|error| FormatError::NotALayout(error.to_string()))?;
    ModelFile::from_bytes(&bytes)?;
    Ok((FileKind::Model, bytes))
}

/// The signature of an artifact of one, by what `fetch` brings.
///
/// # Errors
///
/// As [`assemble`].
pub fn assemble_signature<E: From<FormatError>>(
    manifest_bytes: &[u8],
    mut fetch: impl FnMut(Wanted<'_>) -> Result<Vec<u8>, E>,
) -> Result<String, E> {
    check_size("the size of a manifest in bytes", manifest_bytes.len() as u64, MAX_MANIFEST_BYTES)?;
    let manifest = Manifest::parse(manifest_bytes)?;
    let [layer] = manifest.layers.as_slice() else {
        return Err(FormatError::NotALayout("a signature has more than one layer, or none".to_owned()).into());
    };
    if layer.media_type != SIGNATURE_TYPE || !is_digest(&layer.digest) {
        return Err(FormatError::NotALayout("a signature is of another type than minisign's".to_owned()).into());
    }
    check_size("the size of a signature in bytes", layer.size, MAX_SIGNATURE_BYTES)?;
    let bytes = fetch(Wanted { digest: &layer.digest, limit: layer.size, is_manifest: false })?;
    let found = sha256_digest(&bytes);
    if found != layer.digest {
        return Err(FormatError::DigestMismatch { expected: layer.digest.clone(), found }.into());
    }
    String::from_utf8(bytes).map_err(|_| FormatError::Description("a signature is not UTF-8".to_owned()).into())
}
