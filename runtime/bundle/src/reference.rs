//! Names of things in registries: `oci://ghcr.io/lab/net:1.2@sha256:...`.

use std::fmt;

/// What a reference begins with.
pub const SCHEME: &str = "oci://";

/// Where a bundle or a model is to be found. It has a tag or a digest, or both: then the digest is what counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// The registry: a host, and a port where it has one of its own.
    pub registry: String,
    /// The repository in the registry, `lab/net`.
    pub repository: String,
    /// The tag, such as a version. What it names may change.
    pub tag: Option<String>,
    /// The digest of the manifest, `sha256:` and 64 hexadecimal digits. What it names cannot change.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads `oci://host/name:tag`, `oci://host/name@sha256:...` or both.
    ///
    /// # Errors
    ///
    /// A sentence about the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| format!("it does not begin with `{SCHEME}`"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (registry, rest) = rest.split_once('/').ok_or("it has no `/` after the registry")?;
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_registry(registry) {
            return Err("the registry before the first `/` is none, expected a host with a `.` or `localhost`, and maybe a port".to_owned());
        }
        if repository.len() > 255 || !repository.split('/').all(is_path_part) {
            return Err(
                "the name in the registry may have small letters, digits, and `.`, `_`, `-` and `/` between them"
                    .to_owned(),
            );
        }
        if !tag.is_none_or(is_tag) {
            return Err("the tag after the `:` may have letters, digits, `.`, `_` and `-`, and begins with none of the last two".to_owned());
        }
        if !digest.is_none_or(is_digest) {
            return Err("the digest after the `@` is none, expected `sha256:` and 64 hexadecimal digits".to_owned());
        }
        if tag.is_none() && digest.is_none() {
            return Err("it names no version, expected `:tag` or `@sha256:...` at its end".to_owned());
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// The same thing by the digest that it has now.
    pub fn pinned(&self, digest: &str) -> Self {
        Self { digest: Some(digest.to_owned()), ..self.clone() }
    }

    /// The last part of the repository's name.
    pub fn short_name(&self) -> &str {
        self.repository.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the registry runs on this very machine.
    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{SCHEME}{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(formatter, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(formatter, "@{digest}"))
    }
}

/// Whether `host` or `host:port` is this very machine, by its name or number and without asking anybody.
pub(crate) fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => ("a.b", rest.strip_prefix(':')),
        _ => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Without a dot or a port, a host could not be told from the first part of a name.
    let is_host = host.len() <= 253 && host.split('.').all(is_label);
    is_host
        && (host.contains('.') || host == "localhost" || port.is_some())
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_path_part(part: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    bytes.first().is_some_and(is_plain)
        && bytes.last().is_some_and(is_plain)
        && bytes.iter().all(|byte| is_plain(byte) || b"._-".contains(byte))
        && !part.contains("..")
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

/// Whether the text is a SHA-256 digest as OCI writes it.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_as_they_are_written() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, loopback) in [
            ("oci://ghcr.io/lab/net:1.2".to_owned(), false),
            (format!("oci://ghcr.io/lab/net@{digest}"), false),
            (format!("oci://localhost:5000/net:v1@{digest}"), true),
            ("oci://127.0.0.1:5000/a.b/c_d/e-f:latest".to_owned(), true),
            ("oci://[::1]:5000/net:1".to_owned(), true),
            ("oci://localhost.example.org/net:1".to_owned(), false),
        ] {
            let reference = Reference::parse(&text).unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!(reference.to_string(), text);
            assert_eq!(reference.is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_its_part() {
        for (text, expected) in [
            ("ghcr.io/lab/net:1", "does not begin with"),
            ("oci://ghcr.io", "no `/`"),
            ("oci://lab/net:1", "the registry"),
            ("oci://user@ghcr.io/net:1", "no `/`"),
            ("oci://-a.b/net:1", "the registry"),
            ("oci://a.b:0/net:1", "the registry"),
            ("oci://a.b:99999/net:1", "the registry"),
            ("oci://a.b/Net:1", "the name"),
            ("oci://a.b/../net:1", "the name"),
            ("oci://a.b//net:1", "the name"),
            ("oci://a.b/a%2fb:1", "the name"),
            ("oci://a.b/net:", "the tag"),
            ("oci://a.b/net:.a", "the tag"),
            ("oci://a.b/net:a/b", "the tag"),
            ("oci://a.b/net:1@sha256:12", "the digest"),
            ("oci://a.b/net@md5:12", "the digest"),
            ("oci://a.b/net", "names no version"),
        ] {
            let problem = Reference::parse(text).expect_err(text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }
}
