//! SHA-256 digests, the way OCI writes them.

use sha2::{Digest, Sha256};
use std::fmt::Write;

/// The SHA-256 of `bytes` as 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The SHA-256 of `bytes` as OCI writes a digest: `sha256:` and 64 lower-case hexadecimal digits.
///
/// ```
/// assert!(kilnbox_bundle::sha256_digest(b"").starts_with("sha256:e3b0c442"));
/// ```
pub fn sha256_digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(bytes))
}
