//! Checkpoints, exported models, architecture bundles and what stands beside them, from bytes.

use std::fmt::Write;

use kilnbox_bundle::{
    ArchitectureBundle, Artifact, CheckpointFile, FormatError, Lock, ModelFile, PublicKey, Reference, SecretKey,
    Signature, TensorFile, assemble, pack, sha256_hex,
};

use crate::text::check_message;
use crate::within;

/// A checkpoint: as it is, or, after `{`, the text of its header, a NUL and the numbers, for which the length of the header is made right. What is read and written
/// reads the same.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn checkpoint(bytes: &[u8]) {
    let bytes = if bytes.starts_with(b"{") { safetensors(bytes) } else { bytes.to_vec() };
    within(20, || {
        if let Some(file) = accepted(TensorFile::from_bytes(&bytes)) {
            let written = file.to_bytes().unwrap_or_else(|error| panic!("tensors cannot be written: {error}"));
            assert_eq!(
                TensorFile::from_bytes(&written).ok(),
                Some(file),
                "tensors read otherwise after they were written"
            );
        }
        if let Some(file) = accepted(CheckpointFile::from_bytes(&bytes)) {
            let written = file.to_bytes().unwrap_or_else(|error| panic!("a checkpoint cannot be written: {error}"));
            assert_eq!(
                CheckpointFile::from_bytes(&written).ok(),
                Some(file),
                "it reads otherwise after it was written"
            );
        }
    });
}

fn accepted<T>(read: Result<T, FormatError>) -> Option<T> {
    read.map_err(|error| check_message(&error.to_string())).ok()
}

/// A safetensors file of a header and numbers, with a NUL between them.
fn safetensors(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (header, numbers) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    [&(header.len() as u64).to_le_bytes(), header, numbers].concat()
}

/// A model: the bytes of an archive, or, after `#`, a description of one. That has entries, each after a line `#` and its name. The name of a blob is its digest,
/// whatever stands there instead of `blob`, and `$3` and `%3` in a later entry are the digest and the size of the third one: so damage lies in what the entries say
/// and not in their digests. What is read and written reads the same.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn model(bytes: &[u8]) {
    let bytes = if bytes.starts_with(b"#") { archive(bytes) } else { bytes.to_vec() };
    within(20, || {
        if let Some(file) = accepted(ModelFile::from_bytes(&bytes)) {
            let written = file.to_bytes().unwrap_or_else(|error| panic!("a model cannot be written: {error}"));
            assert_eq!(ModelFile::from_bytes(&written).ok(), Some(file), "it reads otherwise after it was written");
        }
    });
}

/// An architecture bundle: the bytes of a component, or, after `#`, its sections behind those of a small component, written as the entries of [`model`]. What is read and packed again
/// reads the same, and what is pushed is what is pulled.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn architecture(bytes: &[u8]) {
    let bytes = if bytes.starts_with(b"#") { sections(bytes) } else { bytes.to_vec() };
    within(20, || {
        let Some(bundle) = accepted(ArchitectureBundle::read(&bytes)) else { return };
        // What other tools could not read is read, and not written.
        if let Some(packed) = accepted(pack(&bytes, &bundle.parts)) {
            let again = ArchitectureBundle::read(&packed).unwrap_or_else(|error| panic!("it was packed: {error}"));
            assert_eq!(again, bundle, "it reads otherwise after it was packed");
            assert_eq!(pack(&packed, &bundle.parts).ok(), Some(packed), "packing again changes it");
        }
        if let Some(artifact) = accepted(Artifact::of(&bytes)) {
            let blobs = artifact.blobs.iter().chain([&artifact.manifest]);
            let fetch = |wanted: kilnbox_bundle::Wanted<'_>| {
                let blob = blobs.clone().find(|blob| blob.digest == wanted.digest);
                blob.map(|blob| blob.bytes.clone()).ok_or(FormatError::NoDescription)
            };
            let pulled = assemble(&artifact.manifest.bytes, fetch);
            assert!(pulled.is_ok_and(|(_, pulled)| pulled == bytes), "what is pulled is not what was pushed");
        }
    });
}

/// A component with one import of the contract, and the sections that are described.
fn sections(description: &[u8]) -> Vec<u8> {
    // `(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))`
    let mut component =
        wat::parse_str(r#"(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#).unwrap_or_default();
    let mut blobs: Vec<(String, usize)> = Vec::new();
    for entry in split_entries(description) {
        let end = entry.iter().position(|&byte| byte == b'\n').unwrap_or(entry.len());
        let content = filled_in(entry.get(end + 1..).unwrap_or_default(), &blobs);
        blobs.push((sha256_hex(&content), content.len()));
        let mut body = Vec::new();
        leb128(&mut body, end);
        body.extend_from_slice(&entry[..end]);
        body.extend_from_slice(&content);
        component.push(0);
        leb128(&mut component, body.len());
        component.extend_from_slice(&body);
    }
    component
}

fn leb128(target: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        target.push(number as u8 | 0x80);
        number >>= 7;
    }
    target.push(number as u8);
}

/// Small texts from strangers: lock files, references, keys and signatures. What is read and written reads the same, and no signature is one of everything.
///
/// # Panics
/// Reading panics, or this does not hold.
pub fn lock(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    within(20, || {
        if let Ok(lock) = Lock::parse(&text).map_err(|problem| check_message(&problem.escape_debug().to_string())) {
            let written = lock.to_text().unwrap_or_else(|problem| panic!("it cannot be written: {problem}"));
            let again = Lock::parse(&written).unwrap_or_else(|problem| panic!("it was written: {problem}"));
            assert_eq!(again.to_text().ok(), Some(written), "it reads otherwise after it was written");
        }
        if let Ok(reference) = Reference::parse(&text) {
            assert_eq!(reference.to_string(), text, "a reference reads otherwise than it is written");
            let _ = reference.is_loopback();
        }
        if let Ok(key) = PublicKey::parse(&text) {
            assert_eq!(PublicKey::parse(&key.to_text()).ok(), Some(key));
        }
        if let Ok(signature) = Signature::parse(&text) {
            let key = PublicKey::parse("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3");
            let key = key.unwrap_or_else(|error| panic!("a good key is refused: {error}"));
            assert!(signature.verify(b"what nobody has signed", &key).is_err());
            assert_eq!(signature.key_id().len(), 16);
        }
        let _ = SecretKey::is_encrypted(&text);
    });
}

fn archive(description: &[u8]) -> Vec<u8> {
    let mut blobs: Vec<(String, usize)> = Vec::new();
    let mut archive = tar::Builder::new(Vec::new());
    for entry in split_entries(description) {
        let end = entry.iter().position(|&byte| byte == b'\n').unwrap_or(entry.len());
        let name = String::from_utf8_lossy(&entry[..end]).into_owned();
        let mut content = filled_in(entry.get(end + 1..).unwrap_or_default(), &blobs);
        if content.starts_with(b"{\"__metadata__\"") {
            content = safetensors(&content);
        }
        let digest = sha256_hex(&content);
        let path = if name == "blob" { format!("blobs/sha256/{digest}") } else { name };
        blobs.push((digest, content.len()));
        let mut header = tar::Header::new_ustar();
        if header.set_path(&path).is_err() {
            continue;
        }
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        // A vector takes whatever is written to it.
        let _ = archive.append(&header, content.as_slice());
    }
    archive.into_inner().unwrap_or_default()
}

fn split_entries(description: &[u8]) -> Vec<&[u8]> {
    let mut starts: Vec<usize> = (0..description.len())
        .filter(|&at| description[at] == b'#' && (at == 0 || description[at - 1] == b'\n'))
        .collect();
    starts.push(description.len() + 1);
    starts.windows(2).map(|pair| &description[pair[0] + 1..(pair[1] - 1).max(pair[0] + 1)]).collect()
}

/// Puts digests and sizes where they are named.
fn filled_in(content: &[u8], blobs: &[(String, usize)]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut bytes = content.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let number = bytes.peek().filter(|digit| digit.is_ascii_digit()).map(|digit| usize::from(digit - b'0'));
        let blob = number.and_then(|number| blobs.get(number.checked_sub(1)?));
        match (byte, blob) {
            (b'$', Some((digest, _))) => {
                bytes.next();
                filled.extend_from_slice(digest.as_bytes());
            }
            (b'%', Some((_, size))) => {
                bytes.next();
                let mut text = String::new();
                let _ = write!(text, "{size}");
                filled.extend_from_slice(text.as_bytes());
            }
            _ => filled.push(byte),
        }
    }
    filled
}
