//! What a caller did wrong.

use thiserror::Error;

/// A call that does not fit its operation: shapes, dtypes, an index out of range, memory beyond the quota.
///
/// It is a mistake in the calling code, not a condition to recover from: the host turns it into a trap.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{operation}: {problem}")]
pub struct Misuse {
    /// The operation as the contract names it, such as `linalg.matmul`.
    pub operation: &'static str,
    /// One sentence with the values found and those expected.
    pub problem: String,
    /// Whether a limit was exceeded, rather than a rule broken: the remedy is then a larger limit.
    pub limit: bool,
}

impl Misuse {
    /// A rule of `operation` is broken.
    pub fn new(operation: &'static str, problem: impl Into<String>) -> Self {
        Self { operation, problem: problem.into(), limit: false }
    }

    /// A limit of `operation` is exceeded.
    pub fn limit(operation: &'static str, problem: impl Into<String>) -> Self {
        Self { operation, problem: problem.into(), limit: true }
    }
}
