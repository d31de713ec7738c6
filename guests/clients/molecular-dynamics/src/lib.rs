//! A short simulation of ethanol with a trained model: an example of a client of wasi-nn.

pub mod arguments;
#[cfg(target_arch = "wasm32")]
mod model;
pub mod simulation;
