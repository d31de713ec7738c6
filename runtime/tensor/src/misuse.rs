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
    /// The limit that was exceeded, if no rule was broken: the remedy is then a larger limit.
    pub limit: Option<&'static str>,
}

impl Misuse {
    /// A rule of `operation` is broken.
    pub fn new(operation: &'static str, problem: impl Into<String>) -> Self {
        Self { operation, problem: problem.into(), limit: None }
    }

    /// `operation` would exceed the limit of this name.
    pub fn limit(limit: &'static str, operation: &'static str, problem: impl Into<String>) -> Self {
        Self { operation, problem: problem.into(), limit: Some(limit) }
    }
}
