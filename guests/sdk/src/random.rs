//! The run's one stream of random numbers, seeded by the user's `seed`.

use crate::{
    Error, Result,
    contract::random,
    tensor::{DType, Tensor},
};

fn sizes(shape: &[usize]) -> Vec<u32> {
    shape.iter().map(|&size| size as u32).collect()
}

/// Uniform in `[low, high)`.
pub fn uniform(shape: &[usize], low: f64, high: f64, dtype: DType) -> Tensor {
    Tensor::from_handle(random::uniform(&sizes(shape), low, high, dtype.into()))
}

/// Normal with this mean and standard deviation.
pub fn normal(shape: &[usize], mean: f64, standard_deviation: f64, dtype: DType) -> Tensor {
    Tensor::from_handle(random::normal(&sizes(shape), mean, standard_deviation, dtype.into()))
}

/// The numbers `0 .. count` in random order.
pub fn permutation(count: usize) -> Vec<usize> {
    random::permutation(count as u32).into_iter().map(|number| number as usize).collect()
}

/// Where the stream stands; opaque. Kept in a checkpoint, so that a restarted run continues with the same numbers.
pub fn state() -> Vec<u8> {
    random::state()
}

/// Continues from a kept state.
///
/// # Errors
/// When these bytes are no state.
pub fn set_state(state: &[u8]) -> Result<()> {
    random::set_state(state).map_err(Error::IncompatibleCheckpoint)
}
