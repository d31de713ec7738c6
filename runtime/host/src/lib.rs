//! Runs an architecture in its sandbox and serves the contract to it.
//!
//! An [`Engine`] turns the bytes of a component into a [`Component`]: checked against the contract, compiled, and kept in a cache of compiled
//! code. A [`Session`] is one instance of it in a store of its own, with [`Limits`]; it offers what the component exports (models and
//! trainers) as methods. What the component imports is served in two layers:
//!
//! - `service/` holds what the words of the contract mean, on native types: systems as tensors, batches, messages to the user. It knows
//!   nothing of wasm, so an architecture that is linked natively uses the very same code.
//! - `serve/` binds it, and the operations of `kilnbox-tensor`, to wasmtime: handles to values, misuse to traps.
//!
//! A trained model is used through a [`Predictor`], by this process, or as a [`Graph`] by a [`ClientComponent`]: another component, which finds it by
//! its name through wasi-nn.
//!
//! A session belongs to the thread that started it, which is best a worker with a large stack: see [`on_worker`] and [`on_own_thread`].

mod cache;
mod client;
mod compile;
mod deadline;
mod engine;
mod error;
mod evaluate;
mod evaluators;
mod imports;
mod instance;
mod limits;
mod predict;
mod serve;
pub mod service;
mod session;

pub use cache::ShippedCode;
pub use client::{ClientComponent, ClientEnd};
pub use compile::{Compiler, compile_for_parent};
pub use deadline::OnOverrun;
pub use engine::{Component, Engine, EngineOptions};
pub use error::{ArchitectureErrorKind, HostError};
pub use evaluate::{EvaluatedBatch, EvaluatedOutput, EvaluationRequest, EvaluationTask};
pub use evaluators::Another;
pub use limits::{LIMITS, LimitInfo, Limits, Unit};
pub use predict::Predictor;
pub use service::checkpoint::{Checkpoint, Context};
pub use service::graph::{ElementType, Failure, FailureCode, Graph, GraphTensor};
pub use service::model::{About, Capabilities, Equivariance, ModelOutput, References};
pub use service::report::{Level, Metric, Observer};
pub use session::{Model, Session, SessionOptions, Trainer, on_own_thread, on_worker};

/// The version of the contract that this host serves, as in `wit/`.
pub const CONTRACT_VERSION: &str = "0.1.0";
