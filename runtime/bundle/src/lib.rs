//! Checkpoints, models and architectures as portable files.
//!
//! Three kinds of file, none of which can hold code of the host's or a pickle:
//!
//! * [`ArchitectureBundle`]: a component with its manifest, hypers, schema and documentation in custom sections.
//! * [`CheckpointFile`]: one safetensors file, which holds tensors and a JSON description of whose they are. It names
//!   the architecture and the digest of its component, but does not carry the component, so that saving one every few
//!   epochs stays cheap.
//! * [`ModelFile`]: an exported model, one tar in the OCI image layout, which carries the component beside the
//!   weights. It can be evaluated on a machine that has never heard of the architecture.
//!
//! All are written atomically (see [`write_atomically`]): a reader sees the old file or the new one, never half of one.
//! Everything that is read is a claim until checked: sizes are capped before memory is taken, digests are verified, and
//! nothing is ever unpacked to disk.

mod architecture;
mod artifact;
mod atomic_file;
mod checkpoint;
mod digest;
mod error;
mod layout;
mod lock;
mod model;
mod reference;
mod registry;
mod safetensors_file;
mod signature;
mod store;

pub use architecture::{ArchitectureBundle, MAX_COMPONENT_BYTES, Metadata, Parts, pack, package_name};
pub use artifact::{Artifact, Blob, Wanted, assemble, assemble_signature, signature_tag};
pub use atomic_file::write_atomically;
pub use checkpoint::{ArchitectureIdentity, CheckpointFile, read_whole};
pub use digest::{sha256_digest, sha256_hex};
pub use error::{BundleError, FileKind, FormatError};
pub use lock::{LOCK_FILE, Lock, MAX_LOCK_BYTES};
pub use model::{MODEL_ARTIFACT_TYPE, ModelFile};
pub use reference::{Reference, SCHEME};
pub use registry::{Credentials, Pulled, Registry, RegistryError, RegistryOptions, pull_from_store};
pub use safetensors_file::{ElementType, NamedTensor, TensorFile};
pub use signature::{PublicKey, SecretKey, Signature, SignatureError};
pub use store::Store;
