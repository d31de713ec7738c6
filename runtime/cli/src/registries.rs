//! Bundles and models in registries: pinned by `kilnbox.lock`, kept in the user's cache, pulled where they are not.

use std::path::{Path, PathBuf};

use kilnbox_bundle::{
    LOCK_FILE, Lock, MAX_LOCK_BYTES, Pulled, Reference, Registry, RegistryError, RegistryOptions, SCHEME, Store,
    pull_from_store, write_atomically,
};

use crate::errors::{Blame, CliError, file_error};
use crate::log::printable;
use crate::yaml::read_text;

/// What the user allows.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Nothing may be pulled that `kilnbox.lock` does not pin.
    pub locked: bool,
    /// The network may not be used.
    pub offline: bool,
    /// How registries are spoken to.
    pub options: RegistryOptions,
}

impl From<RegistryError> for CliError {
    fn from(error: RegistryError) -> Self {
        let hint = error.hint();
        Self::from_error(Blame::Input, &error).maybe_hint(hint)
    }
}

/// Reads a reference that the user wrote.
///
/// # Errors
///
/// It is none.
pub fn reference(text: &str) -> Result<Reference, CliError> {
    Reference::parse(text).map_err(|problem| {
        CliError::input(format!("`{}` names nothing in a registry: {problem}", printable(text)))
            .hint(format!("write `{SCHEME}HOST/NAME:TAG`, as in `{SCHEME}ghcr.io/lab/net:1.2`"))
    })
}

/// What was pulled, where it is kept.
pub fn store() -> Option<Store> {
    crate::sandbox::cache_folder().map(|folder| Store::new(folder.join("blobs")))
}

impl Access {
    /// What a reference names: by its own digest, or by the one that `kilnbox.lock` has, or by the one that it has now, which is written there.
    ///
    /// # Errors
    ///
    /// It is not pinned where it must be, or cannot be pulled, or is not what it should be.
    pub fn get(&self, reference: &Reference) -> Result<Pulled, CliError> {
        let path = Path::new(LOCK_FILE);
        let mut lock = read_lock(path)?;
        let pinned = lock.digest(reference).map(str::to_owned);
        if self.locked {
            match (&pinned, &reference.digest) {
                (Some(pinned), Some(digest)) if pinned != digest => {
                    return Err(CliError::input(format!(
                        "`{reference}` has another digest than `{LOCK_FILE}`, which has {pinned}"
                    )));
                }
                (None, _) if reference.tag.is_some() => {
                    return Err(CliError::input(format!(
                        "`{reference}` is not in `{LOCK_FILE}`, and `--locked` allows nothing else"
                    ))
                    .hint("run it once without `--locked`, which writes it there"));
                }
                _ => {}
            }
        }
        let digest = reference.digest.clone().or(pinned);
        let pulled = match &digest {
            Some(digest) => self.get_pinned(&reference.pinned(digest))?,
            None => self.get_newest(reference)?,
        };
        if lock.set(reference, &pulled.digest) {
            write_lock(path, &lock)?;
        }
        Ok(pulled)
    }

    /// What a reference names now, whatever it named before; an entry in `kilnbox.lock` follows it.
    ///
    /// # Errors
    ///
    /// See [`Access::get`].
    pub fn update(&self, reference: &Reference) -> Result<Pulled, CliError> {
        if self.locked || self.offline || reference.digest.is_some() {
            return self.get(reference);
        }
        let pulled = self.get_newest(reference)?;
        let path = Path::new(LOCK_FILE);
        let mut lock = read_lock(path)?;
        if lock.digest(reference).is_some() && lock.set(reference, &pulled.digest) {
            write_lock(path, &lock)?;
        }
        Ok(pulled)
    }

    fn get_pinned(&self, reference: &Reference) -> Result<Pulled, CliError> {
        let digest = reference.digest.clone().unwrap_or_default();
        let store = store();
        // What is here is what was named, whatever the registry says today.
        if let Some(store) = &store
            && let Some(pulled) = pull_from_store(&digest, store)?
        {
            return Ok(pulled);
        }
        self.check_network(reference)?;
        Ok(Registry::open(reference, &self.options)?.pull(&digest, store.as_ref())?)
    }

    fn get_newest(&self, reference: &Reference) -> Result<Pulled, CliError> {
        self.check_network(reference)?;
        let store = store();
        let mut registry = Registry::open(reference, &self.options)?;
        let digest = registry.resolve(store.as_ref())?;
        Ok(registry.pull(&digest, store.as_ref())?)
    }

    fn check_network(&self, reference: &Reference) -> Result<(), CliError> {
        if !self.offline {
            return Ok(());
        }
        Err(CliError::input(format!("`{reference}` is not on this machine, and `--offline` allows no network"))
            .hint(format!("pull it once without `--offline`; a tag is known offline if `{LOCK_FILE}` has it")))
    }
}

fn read_lock(path: &Path) -> Result<Lock, CliError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Lock::default()),
        Err(error) => Err(file_error("read", path, &error)),
        Ok(_) => Lock::parse(&read_text(path, MAX_LOCK_BYTES)?).map_err(|problem| {
            CliError::input(format!("`{}` is not a lock file: {}", path.display(), printable(&problem)))
                .hint("mend it, or delete it to have what is newest looked up again")
        }),
    }
}

fn write_lock(path: &Path, lock: &Lock) -> Result<(), CliError> {
    let text = lock.to_text().map_err(|problem| CliError::new(Blame::Kilnbox, problem))?;
    write_atomically(path, |file| file.write_all(text.as_bytes())).map_err(|error| file_error("write", path, &error))
}

/// A path that stands for a reference in messages.
pub(crate) fn as_path(reference: &Reference) -> PathBuf {
    PathBuf::from(reference.to_string())
}
