//! What was pulled, kept on this machine under its digest.
//!
//! Whatever is read from here is hashed again: a file that was damaged or changed is as good as none. So it does not matter who can write here.

use crate::atomic_file::write_atomically;
use crate::digest::sha256_digest;
use crate::reference::is_digest;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

/// A folder of blobs. Everything about it is optional: where it cannot be used, things are pulled each time.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// The store in this folder, which is made when something is kept.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The content of this digest, if it is here and has at most `limit` bytes.
    pub fn get(&self, digest: &str, limit: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)?).ok()?;
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= limit && sha256_digest(&bytes) == digest).then_some(bytes)
    }

    /// Keeps the content under its digest. Failing is no error.
    pub fn keep(&self, digest: &str, bytes: &[u8]) {
        if let Some(path) =
            self.path(digest).filter(|path| !path.exists() || self.get(digest, bytes.len() as u64).is_none())
        {
            let _ = std::fs::create_dir_all(&self.folder);
            let _ = write_atomically(&path, |file| file.write_all(bytes));
        }
    }

    /// The signature of what has this digest, as it was when it was last pulled. Unlike all else here, it is not verified by its name; whoever uses it verifies it.
    pub fn signature(&self, digest: &str) -> Option<String> {
        let mut text = String::new();
        let file = File::open(self.path(digest)?.with_extension("minisig")).ok()?;
        file.take(4096).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Keeps a signature of what has this digest.
    pub fn keep_signature(&self, digest: &str, signature: &str) {
        if let Some(path) = self.path(digest) {
            let _ = std::fs::create_dir_all(&self.folder);
            let _ = write_atomically(&path.with_extension("minisig"), |file| file.write_all(signature.as_bytes()));
        }
    }

    fn path(&self, digest: &str) -> Option<PathBuf> {
        is_digest(digest).then(|| self.folder.join(digest.replace(':', "-")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_what_was_changed_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path().join("a/b"));
        let digest = sha256_digest(b"content");
        assert_eq!(store.get(&digest, 100), None);
        store.keep(&digest, b"content");
        assert_eq!(store.get(&digest, 7).as_deref(), Some(b"content".as_slice()));
        assert_eq!(store.get(&digest, 6), None);
        let path = folder.path().join("a/b").join(digest.replace(':', "-"));
        std::fs::write(&path, b"Content").expect("it is changed");
        assert_eq!(store.get(&digest, 100), None);
        store.keep(&digest, b"content");
        assert!(store.get(&digest, 100).is_some(), "it is mended");
        for name in ["../../x", "sha256:x", ""] {
            store.keep(name, b"content");
            assert_eq!(store.get(name, 100), None);
        }
    }
}
