//! What the words of the contract mean, on native types: this folder knows nothing of wasm.
//!
//! The operations on tensors are `kilnbox-tensor`'s; here is the rest: systems, batches and targets as tensors, messages to the user, checkpoints.
//! `serve/` offers it to components; an architecture that is linked natively calls it directly. `graph` is what trained models are to other programs.

pub mod checkpoint;
pub mod data;
pub mod graph;
pub mod model;
pub mod report;
