//! A client of OCI registries, which trusts none of them.
//!
//! It speaks the part of the distribution specification that pushing and pulling takes, over TLS with the certificates of the system. Every body has a bound
//! before it is read, every content a digest. A redirect is followed for content alone, never to plain HTTP, and never with credentials.

use crate::artifact::{Artifact, Blob, Wanted, assemble, assemble_signature, signature_tag};
use crate::checkpoint::MAX_FILE_BYTES;
use crate::digest::sha256_digest;
use crate::error::{FileKind, FormatError};
use crate::layout::{MANIFEST_TYPE, MAX_MANIFEST_BYTES};
use crate::reference::{Reference, is_loopback};
use crate::safetensors_file::printable;
use crate::store::Store;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// What is read of an answer that is no content: a token, or the reason for a refusal.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// How often a registry may send the client elsewhere for one content.
const MAX_REDIRECTS: u32 = 5;
/// Registries are asked by people who wait.
const TIME_TO_CONNECT: Duration = Duration::from_secs(15);
/// A registry that says nothing for so long says nothing more.
const TIME_TO_ANSWER: Duration = Duration::from_secs(60);

/// How a registry is spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Allows HTTP without TLS to a registry that is not on this machine.
    pub plain_http: bool,
}

/// A user and a password, or a token in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Credentials of {}", self.user)
    }
}

/// What can go wrong with a registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It cannot be reached, or stopped in the middle.
    #[error("the registry `{registry}` cannot be reached")]
    Unreachable {
        /// The registry.
        registry: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// It wants credentials, or others than these.
    #[error("the registry `{registry}` does not allow that: {message}")]
    Denied {
        /// The registry.
        registry: String,
        /// What it says.
        message: String,
    },
    /// There is no such thing.
    #[error("the registry `{registry}` has no `{what}`")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// It answered with something else than it should.
    #[error("the registry `{registry}` answers wrongly: {message}")]
    Wrong {
        /// The registry.
        registry: String,
        /// What is wrong.
        message: String,
    },
    /// What it sent is not what it should be.
    #[error("what `{what}` names cannot be used")]
    Content {
        /// The reference.
        what: String,
        /// What is wrong.
        source: FormatError,
    },
    /// The credentials of this user for the registry cannot be read.
    #[error("the credentials for `{registry}` in `{}` cannot be read", path.display())]
    Credentials {
        /// The registry.
        registry: String,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: docker_credential::CredentialRetrievalError,
    },
    /// Credentials would be sent for all to read.
    #[error("there are credentials for `{registry}`, and they are not sent over plain HTTP")]
    PlainCredentials {
        /// The registry.
        registry: String,
    },
}

impl RegistryError {
    /// What the user can do about it, where there is something better than the message itself.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { registry, .. } => Some(format!(
                "log in with `docker login {registry}` or `skopeo login {registry}`, whose credentials are used"
            )),
            Self::Unreachable { .. } => Some("what was pulled once needs no network: `--offline`".to_owned()),
            Self::Content { source: FormatError::DigestMismatch { .. }, .. } => {
                Some("the registry is damaged or lies: tell whoever runs it".to_owned())
            }
            _ => None,
        }
    }
}

impl From<FormatError> for RegistryError {
    fn from(source: FormatError) -> Self {
        Self::Content { what: String::new(), source }
    }
}

/// What was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// What kind of file it is.
    pub kind: FileKind,
    /// The content of the file.
    pub bytes: Vec<u8>,
    /// The digest of its manifest, which a reference can name.
    pub digest: String,
    /// The content of the signature's file, if it was pushed with one. It is not verified.
    pub signature: Option<String>,
}

/// One repository in a registry.
#[derive(Debug)]
pub struct Registry {
    agent: Agent,
    reference: Reference,
    /// `https://host`, without a `/` at the end.
    base: String,
    plain: bool,
    credentials: Option<Credentials>,
    /// What goes into the header `Authorization`, once it is known.
    authorization: Option<String>,
}

type Answer<T> = Result<T, RegistryError>;

impl Registry {
    /// The repository of a reference, with the credentials that Docker or Podman keep for this user. Nothing is asked of it yet.
    ///
    /// # Errors
    ///
    /// The credentials cannot be read, or must not be sent.
    pub fn open(reference: &Reference, options: &RegistryOptions) -> Answer<Self> {
        let plain = reference.is_loopback() || options.plain_http;
        let credentials = credentials(&reference.registry)?;
        if credentials.is_some() && plain && !reference.is_loopback() {
            return Err(RegistryError::PlainCredentials { registry: reference.registry.clone() });
        }
        Ok(Self::with_credentials(reference, plain, credentials))
    }

    fn with_credentials(reference: &Reference, plain: bool, credentials: Option<Credentials>) -> Self {
        let tls = TlsConfig::builder()
            // The certificates of the system: institutes have registries with certificates of their own.
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("kilnbox/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(TIME_TO_CONNECT))
            .timeout_recv_response(Some(TIME_TO_ANSWER))
            .timeout_per_read(Some(TIME_TO_ANSWER))
            .timeout_per_write(Some(TIME_TO_ANSWER))
            .build()
            .new_agent();
        // Where Docker's own registry really is.
        let host = if reference.registry == "docker.io" { "registry-1.docker.io" } else { &reference.registry };
        let base = format!("{}://{host}", if plain { "http" } else { "https" });
        Self { agent, reference: reference.clone(), base, plain, credentials, authorization: None }
    }

    /// The digest of what the reference names now; the one that it has itself, if it has one.
    ///
    /// # Errors
    ///
    /// The registry cannot be asked, or has no such thing.
    pub fn resolve(&mut self, store: Option<&Store>) -> Answer<String> {
        if let Some(digest) = &self.reference.digest {
            return Ok(digest.clone());
        }
        let tag = self.reference.tag.clone().unwrap_or_default();
        let bytes = self.manifest(&tag)?.ok_or_else(|| self.not_found(&self.reference.to_string()))?;
        let digest = sha256_digest(&bytes);
        if let Some(store) = store {
            store.keep(&digest, &bytes);
        }
        Ok(digest)
    }

    /// Pulls what has this digest, as far as it is not in the store.
    ///
    /// # Errors
    ///
    /// The registry cannot be asked, or has no such thing, or what it sends is something else.
    pub fn pull(&mut self, digest: &str, store: Option<&Store>) -> Answer<Pulled> {
        let name = self.reference.pinned(digest).to_string();
        pull(digest, store, Some(self)).map_err(|error| match error {
            RegistryError::Content { source, .. } => RegistryError::Content { what: name, source },
            other => other,
        })
    }

    /// Pushes an artifact under the reference's tag, and under its digest if it has no tag. A model's component gets a tag of its own, so that tools which know nothing
    /// of models find it.
    ///
    /// # Errors
    ///
    /// The registry cannot be asked, does not allow it, or takes something else than was sent.
    pub fn push(&mut self, artifact: &Artifact) -> Answer<()> {
        for blob in &artifact.blobs {
            self.push_blob(blob)?;
        }
        let tag = self.reference.tag.clone();
        if let Some(component) = &artifact.component_manifest {
            self.push_manifest(
                component,
                &tag.as_ref().map_or_else(|| component.digest.clone(), |tag| format!("{tag}-architecture")),
            )?;
        }
        self.push_manifest(&artifact.manifest, &tag.unwrap_or_else(|| artifact.manifest.digest.clone()))
    }

    /// Pushes a signature of what was pushed.
    ///
    /// # Errors
    ///
    /// As [`Registry::push`].
    pub fn push_signature(&mut self, signature: &str, of: &Artifact) -> Answer<()> {
        let artifact = Artifact::of_signature(signature, &of.manifest)?;
        for blob in &artifact.blobs {
            self.push_blob(blob)?;
        }
        self.push_manifest(&artifact.manifest, &signature_tag(&of.manifest.digest))
    }

    /// The manifest of a tag or digest; none if there is none.
    fn manifest(&mut self, name: &str) -> Answer<Option<Vec<u8>>> {
        let url = self.url(&format!("manifests/{name}"));
        let answer = self.ask("pull", |agent, authorization| {
            with(agent.get(&url).header("Accept", MANIFEST_TYPE), authorization).call()
        })?;
        match answer.status() {
            StatusCode::OK => self.body(answer, MAX_MANIFEST_BYTES).map(Some),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refusal(answer, name)),
        }
    }

    fn content(&mut self, wanted: Wanted<'_>) -> Answer<Vec<u8>> {
        let not_found = self.not_found(wanted.digest);
        if wanted.is_manifest {
            return self.manifest(wanted.digest)?.ok_or(not_found);
        }
        let mut url = self.url(&format!("blobs/{}", wanted.digest));
        let mut answer = self.ask("pull", |agent, authorization| with(agent.get(&url), authorization).call())?;
        for _ in 0..MAX_REDIRECTS {
            if !answer.status().is_redirection() {
                break;
            }
            url = self.redirect(&answer, &url)?;
            answer = self.agent.get(&url).call().map_err(|error| self.unreachable(error))?;
        }
        match answer.status() {
            StatusCode::OK => self.body(answer, wanted.limit.min(MAX_FILE_BYTES)),
            StatusCode::NOT_FOUND => Err(not_found),
            _ => Err(self.refusal(answer, wanted.digest)),
        }
    }

    /// Where the registry sends for content. From TLS to plain HTTP nobody is sent, and from this machine nobody else's.
    fn redirect(&self, answer: &Response<Body>, from: &str) -> Answer<String> {
        let to = self.location(answer, from)?;
        let authority = to.authority().map(|authority| authority.as_str()).unwrap_or_default();
        let own = self.base.split_once("://").map(|(_, host)| host).unwrap_or_default();
        match to.scheme_str() {
            Some("https") if !is_loopback(authority) || self.reference.is_loopback() => Ok(to.to_string()),
            Some("http") if self.plain && authority == own => Ok(to.to_string()),
            _ => Err(self.wrong(format!(
                "it sends elsewhere for content, to `{}`, where nothing is fetched from",
                printable(&to.to_string())
            ))),
        }
    }

    /// The header `Location`, which may leave out what is as in `from`.
    fn location(&self, answer: &Response<Body>, from: &str) -> Answer<Uri> {
        let text = answer.headers().get("location").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let text = match text.strip_prefix('/') {
            Some(rest) if !rest.starts_with('/') => {
                let authority = from.split('/').take(3).collect::<Vec<_>>().join("/");
                format!("{authority}{text}")
            }
            _ => text.to_owned(),
        };
        text.parse().map_err(|_| self.wrong(format!("it sends to `{}`, which is no URL", printable(&text))))
    }

    fn push_blob(&mut self, blob: &Blob) -> Answer<()> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        let present = self.ask("pull,push", |agent, authorization| with(agent.head(&url), authorization).call())?;
        if present.status() == StatusCode::OK {
            return Ok(());
        }
        let url = self.url("blobs/uploads/");
        let begun = self.ask("pull,push", |agent, authorization| with(agent.post(&url), authorization).send_empty())?;
        if begun.status() != StatusCode::ACCEPTED {
            return Err(self.refusal(begun, "an upload"));
        }
        let to = self.location(&begun, &url)?.to_string();
        // Content and credentials go where the user wants them.
        if !to.starts_with(&format!("{}/", self.base)) {
            return Err(self.wrong(format!("it wants the content sent elsewhere, to `{}`", printable(&to))));
        }
        let separator = if to.contains('?') { '&' } else { '?' };
        let to = format!("{to}{separator}digest={}", blob.digest);
        let done = self.ask("pull,push", |agent, authorization| {
            let put = agent.put(&to).header("Content-Type", "application/octet-stream");
            with(put, authorization).send(&blob.bytes[..])
        })?;
        if done.status() != StatusCode::CREATED {
            return Err(self.refusal(done, &blob.digest));
        }
        Ok(())
    }

    fn push_manifest(&mut self, manifest: &Blob, name: &str) -> Answer<()> {
        let url = self.url(&format!("manifests/{name}"));
        let done = self.ask("pull,push", |agent, authorization| {
            with(agent.put(&url).header("Content-Type", MANIFEST_TYPE), authorization).send(&manifest.bytes[..])
        })?;
        if done.status() != StatusCode::CREATED {
            return Err(self.refusal(done, name));
        }
        match done.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()) {
            Some(digest) if digest != manifest.digest => {
                Err(self.wrong(format!("it was sent {}, and has kept `{}`", manifest.digest, printable(digest))))
            }
            _ => Ok(()),
        }
    }

    /// Asks, and asks once more with a token or password if that is what is missing.
    fn ask(
        &mut self,
        actions: &str,
        request: impl Fn(&Agent, Option<&str>) -> Result<Response<Body>, ureq::Error>,
    ) -> Answer<Response<Body>> {
        let answer = request(&self.agent, self.authorization.as_deref()).map_err(|error| self.unreachable(error))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let challenge = answer.headers().get("www-authenticate").and_then(|value| value.to_str().ok());
        let challenge = challenge.unwrap_or_default().to_owned();
        self.authorization = Some(self.authorize(&challenge, actions)?);
        request(&self.agent, self.authorization.as_deref()).map_err(|error| self.unreachable(error))
    }

    /// What a registry wants to see, by its challenge: the password itself, or a token that another server gives for it.
    fn authorize(&self, challenge: &str, actions: &str) -> Answer<String> {
        let denied = |message: &str| RegistryError::Denied {
            registry: self.reference.registry.clone(),
            message: message.to_owned(),
        };
        let basic = self.credentials.as_ref().map(|Credentials { user, password }| {
            format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
        });
        let (scheme, rest) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return basic.ok_or_else(|| denied("it asks for a password"));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(denied("it asks for credentials of an unknown kind"));
        }
        let realm = parameter(rest, "realm").unwrap_or_default();
        let uri: Uri = realm.parse().map_err(|_| self.wrong("it names no server for tokens".to_owned()))?;
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        // Passwords go there.
        if uri.scheme_str() != Some("https") && !(self.plain && is_loopback(authority) && self.reference.is_loopback())
        {
            return Err(self.wrong(format!("its server for tokens is `{}`, expected one with TLS", printable(&realm))));
        }
        let mut request = self.agent.get(&realm);
        if let Some(service) = parameter(rest, "service") {
            request = request.query("service", service);
        }
        request = request.query("scope", format!("repository:{}:{actions}", self.reference.repository));
        let answer = with(request, basic.as_deref()).call().map_err(|error| self.unreachable(error))?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer, "a token"));
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = self.body(answer, MAX_ANSWER_BYTES)?;
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        match token.filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())) {
            Some(token) => Ok(format!("Bearer {token}")),
            None => Err(self.wrong("its server for tokens gives none".to_owned())),
        }
    }

    /// The body of an answer, if it has no more bytes than it may.
    fn body(&self, answer: Response<Body>, limit: u64) -> Answer<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut body = answer.into_body();
        body.as_reader()
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.unreachable(ureq::Error::Io(error)))?;
        if bytes.len() as u64 > limit {
            return Err(self.wrong(format!("it sends more than the {limit} bytes that it may")));
        }
        Ok(bytes)
    }

    fn url(&self, rest: &str) -> String {
        // Docker's own registry keeps what has no owner under `library`.
        let library = if self.reference.registry == "docker.io" && !self.reference.repository.contains('/') {
            "library/"
        } else {
            ""
        };
        format!("{}/v2/{library}{}/{rest}", self.base, self.reference.repository)
    }

    fn refusal(&self, answer: Response<Body>, what: &str) -> RegistryError {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Error>,
        }
        #[derive(Deserialize)]
        struct Error {
            code: Option<String>,
            message: Option<String>,
        }
        let status = answer.status();
        let registry = self.reference.registry.clone();
        let body = self.body(answer, MAX_ANSWER_BYTES).unwrap_or_default();
        let told = serde_json::from_slice::<Errors>(&body).ok().and_then(|errors| errors.errors.into_iter().next());
        let told = told.and_then(|error| error.message.or(error.code)).unwrap_or_default();
        let message = format!("{} for `{}` ({})", status.as_u16(), printable(what), printable(&told));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { registry, message },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, what: printable(what) },
            _ => RegistryError::Wrong { registry, message },
        }
    }

    fn not_found(&self, what: &str) -> RegistryError {
        RegistryError::NotFound { registry: self.reference.registry.clone(), what: what.to_owned() }
    }

    fn wrong(&self, message: String) -> RegistryError {
        RegistryError::Wrong { registry: self.reference.registry.clone(), message }
    }

    fn unreachable(&self, error: ureq::Error) -> RegistryError {
        RegistryError::Unreachable { registry: self.reference.registry.clone(), source: Box::new(error) }
    }
}

/// Puts together what has this digest of what is in the store alone, without any registry; none where something is missing.
///
/// # Errors
///
/// What is there is no bundle and no model.
pub fn pull_from_store(digest: &str, store: &Store) -> Answer<Option<Pulled>> {
    match pull(digest, Some(store), None) {
        Ok(pulled) => Ok(Some(pulled)),
        Err(RegistryError::NotFound { .. }) => Ok(None),
        Err(RegistryError::Content { source, .. }) => Err(RegistryError::Content { what: digest.to_owned(), source }),
        Err(error) => Err(error),
    }
}

fn pull(digest: &str, store: Option<&Store>, mut registry: Option<&mut Registry>) -> Answer<Pulled> {
    let mut fetch = |wanted: Wanted<'_>| -> Answer<Vec<u8>> {
        if let Some(bytes) = store.and_then(|store| store.get(wanted.digest, wanted.limit)) {
            return Ok(bytes);
        }
        let Some(registry) = registry.as_deref_mut() else {
            return Err(RegistryError::NotFound { registry: String::new(), what: wanted.digest.to_owned() });
        };
        let bytes = registry.content(wanted)?;
        let found = sha256_digest(&bytes);
        if found != wanted.digest {
            return Err(FormatError::DigestMismatch { expected: wanted.digest.to_owned(), found }.into());
        }
        if let Some(store) = store {
            store.keep(wanted.digest, &bytes);
        }
        Ok(bytes)
    };
    let manifest = fetch(Wanted { digest, limit: MAX_MANIFEST_BYTES, is_manifest: true })?;
    let (kind, bytes) = assemble(&manifest, &mut fetch)?;
    let signature = match registry {
        Some(registry) => registry.signature(digest, store)?,
        None => store.and_then(|store| store.signature(digest)),
    };
    Ok(Pulled { kind, bytes, digest: digest.to_owned(), signature })
}

impl Registry {
    /// The signature that was pushed with what has this digest.
    fn signature(&mut self, digest: &str, store: Option<&Store>) -> Answer<Option<String>> {
        let Some(manifest) = self.manifest(&signature_tag(digest))? else { return Ok(None) };
        let signature = assemble_signature(&manifest, |wanted| self.content(wanted))?;
        if let Some(store) = store {
            store.keep_signature(digest, &signature);
        }
        Ok(Some(signature))
    }
}

fn with<B>(request: ureq::RequestBuilder<B>, authorization: Option<&str>) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(authorization) => request.header("Authorization", authorization),
        None => request,
    }
}

/// The value of a parameter in a challenge, `name="value"`.
fn parameter(challenge: &str, name: &str) -> Option<String> {
    let mut rest = challenge;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value.to_owned());
        }
        rest = after;
    }
    None
}

/// The credentials that Docker, Podman, Skopeo or their helpers keep for a registry, in the first of their files that has some.
fn credentials(registry: &str) -> Answer<Option<Credentials>> {
    use docker_credential::{CredentialRetrievalError, DockerCredential};
    /// These files have a line or two for each registry.
    const MAX_FILE_BYTES: u64 = 1 << 20;
    let server = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
    for path in credential_files() {
        // What is not there, or another's, has nothing for this user.
        let Ok(file) = std::fs::File::open(&path) else { continue };
        match docker_credential::get_credential_from_reader(file.take(MAX_FILE_BYTES), server) {
            Ok(DockerCredential::UsernamePassword(user, password)) => return Ok(Some(Credentials { user, password })),
            // A token in a password's place, as registries take it from users of this name.
            Ok(DockerCredential::IdentityToken(password)) => {
                return Ok(Some(Credentials { user: "<token>".to_owned(), password }));
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // What helpers say, in these words, of a registry that nobody has logged in to.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            }
            Err(source) => return Err(RegistryError::Credentials { registry: registry.to_owned(), path, source }),
        }
    }
    Ok(None)
}

fn credential_files() -> Vec<std::path::PathBuf> {
    use std::path::{Path, PathBuf};
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG").or_else(|| std::env::home_dir().map(|home| home.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        docker.as_deref().map(|folder: &Path| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let challenge =
            r#"realm="https://auth.example.org/token",service="registry, the second",scope=repository:a:pull"#;
        assert_eq!(parameter(challenge, "realm").as_deref(), Some("https://auth.example.org/token"));
        assert_eq!(parameter(challenge, "service").as_deref(), Some("registry, the second"));
        assert_eq!(parameter(challenge, "scope").as_deref(), Some("repository:a:pull"));
        assert_eq!(parameter(challenge, "error"), None);
        assert_eq!(parameter("realm=\"open", "realm"), None);
        assert_eq!(parameter("", "realm"), None);
    }
}
