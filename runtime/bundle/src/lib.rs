//! Checkpoints and models as portable files.
//!
//! Two kinds of file, neither of which can hold code of the host's or a pickle:
//!
//! * [`CheckpointFile`]: one safetensors file, which holds tensors and a JSON description of whose they are. It names
//!   the architecture and the digest of its component, but does not carry the component, so that saving one every few
//!   epochs stays cheap.
//! * [`ModelFile`]: an exported model, one tar in the OCI image layout, which carries the component beside the
//!   weights. It can be evaluated on a machine that has never heard of the architecture.
//!
//! Both are written atomically (see [`write_atomically`]): a reader sees the old file or the new one, never half of one.
//! Everything that is read is a claim until checked: sizes are capped before memory is taken, digests are verified, and
//! nothing is ever unpacked to disk.

mod atomic_file;
mod checkpoint;
mod digest;
mod error;
mod model;
mod safetensors_file;

pub use atomic_file::write_atomically;
pub use checkpoint::{ArchitectureIdentity, CheckpointFile};
pub use digest::{sha256_digest, sha256_hex};
pub use error::{BundleError, FileKind, FormatError};
pub use model::{MODEL_ARTIFACT_TYPE, ModelFile};
pub use safetensors_file::{ElementType, NamedTensor, TensorFile};
