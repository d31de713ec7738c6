//! Signatures of minisign: who made a file, in a file beside it.
//!
//! What is signed is the BLAKE2b hash of the content, with Ed25519; a comment is signed with it. Keys and signatures are the files of minisign, so that it
//! and this program can check each other's.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::fmt;

/// Whose signatures can be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    key: minisign_verify::PublicKey,
    text: String,
}

/// What can sign. It is never shown.
pub struct SecretKey {
    secret: minisign::SecretKey,
}

/// A signature that was read, and not verified.
#[derive(Clone)]
pub struct Signature {
    signature: minisign_verify::Signature,
    key_id: String,
}

/// What is wrong with a key or a signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The text is not a public key of minisign.
    #[error("expected a line that begins with `RW`, as in minisign's `.pub` files")]
    NotAPublicKey,
    /// The text is not a secret key of minisign, or the password is wrong.
    #[error("{0}")]
    SecretKey(String),
    /// The text is not a signature of minisign.
    #[error("expected the four lines of a signature of minisign")]
    NotASignature,
    /// The content is not what was signed, or another key signed it.
    #[error("the content is not what was signed")]
    Wrong,
    /// The system or the library cannot do it.
    #[error("{0}")]
    Failed(String),
}

impl PublicKey {
    /// Reads a public key: its one line, or the two lines of its file.
    ///
    /// # Errors
    ///
    /// [`SignatureError::NotAPublicKey`].
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let key = minisign_verify::PublicKey::from_base64(line).map_err(|_| SignatureError::NotAPublicKey)?;
        Ok(Self { key, text: line.to_owned() })
    }

    /// The number of the key, as minisign shows it.
    pub fn id(&self) -> String {
        key_id(&self.text).unwrap_or_default()
    }

    /// The content of the key's file.
    pub fn to_text(&self) -> String {
        format!("untrusted comment: minisign public key {}\n{}\n", self.id(), self.text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl SecretKey {
    /// A new key, as the content of its file, and the public key to it. With a password the file is encrypted.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Failed`]: the system has no random numbers, or not the memory that encryption takes.
    pub fn generate(password: Option<String>) -> Result<(String, PublicKey), SignatureError> {
        let pair = match password {
            Some(password) => minisign::KeyPair::generate_encrypted_keypair(Some(password)),
            None => minisign::KeyPair::generate_unencrypted_keypair(),
        };
        let minisign::KeyPair { pk, sk } = pair.map_err(failed)?;
        let text = sk.to_box(None).map_err(failed)?.to_string();
        Ok((text, PublicKey::parse(&pk.to_base64())?))
    }

    /// Whether the key in this file is encrypted, so that a password is needed.
    ///
    /// # Errors
    ///
    /// [`SignatureError::SecretKey`]: it is no file of a secret key.
    pub fn is_encrypted(text: &str) -> Result<bool, SignatureError> {
        /// The algorithm Ed25519, and no function that derives a key from a password, in Base64.
        const PLAIN: &str = "RWQAAEIy";
        const ENCRYPTED: &str = "RWRTY0Iy";
        let line = text.lines().nth(1).unwrap_or_default();
        match line.get(..PLAIN.len()) {
            Some(PLAIN) => Ok(false),
            Some(ENCRYPTED) => Ok(true),
            _ => Err(SignatureError::SecretKey("it is not a file of a secret key of minisign".to_owned())),
        }
    }

    /// Reads the content of a key's file, with its password if it is encrypted.
    ///
    /// # Errors
    ///
    /// [`SignatureError::SecretKey`]: it is no file of a secret key, or the password is wrong.
    pub fn parse(text: &str, password: Option<String>) -> Result<Self, SignatureError> {
        let unusable = |error: minisign::PError| SignatureError::SecretKey(error.to_string());
        let boxed = minisign::SecretKeyBox::from_string(text).map_err(unusable)?;
        let secret = match (password, without_checksum(text)) {
            (Some(password), _) => boxed.into_secret_key(Some(password)),
            (None, Some(key)) => minisign::SecretKey::from_bytes(&key),
            (None, None) => boxed.into_unencrypted_secret_key(),
        };
        Ok(Self { secret: secret.map_err(unusable)? })
    }

    /// The public key to it.
    ///
    /// # Errors
    ///
    /// The key was put together by somebody else, and does not hold its public half.
    pub fn public(&self) -> Result<PublicKey, SignatureError> {
        PublicKey::parse(&minisign::PublicKey::from_secret_key(&self.secret).map_err(failed)?.to_base64())
    }

    /// The content of the file of a signature. The comment, one line, is signed as well.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Failed`].
    pub fn sign(&self, content: &[u8], comment: &str) -> Result<String, SignatureError> {
        let untrusted = "signature from kilnbox";
        let signed = minisign::sign(None, &self.secret, content, Some(comment), Some(untrusted)).map_err(failed)?;
        Ok(signed.to_string())
    }
}

/// The bytes of a key that is not encrypted and has zeros for its checksum: minisign up to 0.11 writes such.
fn without_checksum(text: &str) -> Option<Vec<u8>> {
    /// The algorithms, salt and limits of a key that is not encrypted; the number, the key itself, and its checksum.
    const BYTES: usize = 6 + 32 + 16 + 8 + 64 + 32;
    if !SecretKey::is_encrypted(text).is_ok_and(|encrypted| !encrypted) {
        return None;
    }
    let key = BASE64_STANDARD.decode(text.lines().nth(1)?).ok()?;
    (key.len() == BYTES && key.ends_with(&[0; 32])).then_some(key)
}

fn failed(error: minisign::PError) -> SignatureError {
    SignatureError::Failed(error.to_string())
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretKey")
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signature of {}", self.key_id)
    }
}

impl Signature {
    /// Reads the four lines of a signature's file.
    ///
    /// # Errors
    ///
    /// [`SignatureError::NotASignature`].
    pub fn parse(text: &str) -> Result<Self, SignatureError> {
        let signature = minisign_verify::Signature::decode(text).map_err(|_| SignatureError::NotASignature)?;
        let line = text.lines().nth(1).unwrap_or_default();
        let key_id = key_id(line).ok_or(SignatureError::NotASignature)?;
        Ok(Self { signature, key_id })
    }

    /// The number of the key that made it, or so it says.
    pub fn key_id(&self) -> String {
        self.key_id.clone()
    }

    /// Whether the holder of `key` has signed this content; gives the comment that was signed with it.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Wrong`].
    pub fn verify(&self, content: &[u8], key: &PublicKey) -> Result<String, SignatureError> {
        key.key.verify(content, &self.signature, false).map_err(|_| SignatureError::Wrong)?;
        Ok(self.signature.trusted_comment().to_owned())
    }
}

/// The number in a key or a signature: eight bytes after the two of the algorithm, the lowest first.
fn key_id(line: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(line).ok()?;
    let id = bytes.get(2..10)?.try_into().ok()?;
    Some(format!("{:016X}", u64::from_le_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_is_verified_and_nothing_else() {
        let (text, public) = SecretKey::generate(None).expect("a key");
        let secret = SecretKey::parse(&text, None).expect("the key is read");
        assert_eq!(secret.public().expect("a public key"), public);
        let signature = Signature::parse(&secret.sign(b"content", "by me").expect("a signature")).expect("it is read");
        assert_eq!(signature.key_id(), public.id());
        assert_eq!(signature.verify(b"content", &public).expect("it is right"), "by me");
        assert_eq!(signature.verify(b"Content", &public), Err(SignatureError::Wrong));
        let (_, other) = SecretKey::generate(None).expect("a key");
        assert_eq!(signature.verify(b"content", &other), Err(SignatureError::Wrong));
        assert_eq!(PublicKey::parse(&public.to_text()).expect("the file is read"), public);
    }

    #[test]
    fn a_password_protects_a_key() {
        let (text, public) = SecretKey::generate(Some("secret".to_owned())).expect("a key");
        assert_eq!(SecretKey::is_encrypted(&text), Ok(true));
        assert!(SecretKey::parse(&text, Some("wrong".to_owned())).is_err());
        assert!(SecretKey::parse(&text, None).is_err());
        let secret = SecretKey::parse(&text, Some("secret".to_owned())).expect("the key is read");
        assert_eq!(secret.public().expect("a public key"), public);
        assert_eq!(SecretKey::is_encrypted(&SecretKey::generate(None).expect("a key").0), Ok(false));
    }

    #[test]
    fn a_signature_of_minisign_itself_is_read() {
        // From minisign's documentation.
        let key = PublicKey::parse("RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3").expect("a key");
        assert_eq!(key.id(), "E7620F1842B4E81F");
        let signature = "untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1556193335\tfile:test
y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==
";
        let comment = Signature::parse(signature).expect("it is read").verify(b"test", &key);
        assert_eq!(comment.expect("it is right"), "timestamp:1556193335\tfile:test");
        // Without the newline at its end it is whole.
        for cut in 0..signature.len() - 1 {
            if let Ok(signature) = Signature::parse(&signature[..cut]) {
                assert_eq!(signature.verify(b"test", &key), Err(SignatureError::Wrong), "{cut} bytes are enough");
            }
        }
    }

    #[test]
    fn what_is_no_key_and_no_signature_is_refused() {
        for text in ["", "\n", "RW", "é\né\né\né", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO"] {
            assert!(PublicKey::parse(text).is_err() && Signature::parse(text).is_err(), "{text:?}");
            assert!(SecretKey::is_encrypted(text).is_err() && SecretKey::parse(text, None).is_err(), "{text:?}");
        }
    }
}
