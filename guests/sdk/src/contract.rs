//! The seam between the SDK and its host: everything above it names only `crate::contract`.
//!
//! In the sandbox these are the bindings generated from `wit/`. With the feature `native` the same names come from `native.rs`, which calls the
//! host's services directly; that is how the cost of the sandbox is measured. On a plain host build neither exists, and only the SDK's
//! pure mathematics is compiled (and tested).

/// What `wit-bindgen` generates from the contract.
#[cfg(target_arch = "wasm32")]
#[expect(missing_docs, reason = "generated; the contract's own text is in `wit/`")]
#[allow(clippy::all, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "architecture",
        pub_export_macro: true,
        default_bindings_module: "kilnbox_sdk::contract::bindings",
    });
}

#[cfg(target_arch = "wasm32")]
pub use bindings::{
    exports::kilnbox::architecture::{about, model, trainer},
    kilnbox::architecture::{
        autodiff, checkpoint, data, elementwise, errors, index, linalg, neural, optimizer, random, reduce, report,
        segment, shape, spherical, tensor,
    },
};

#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
pub use crate::native::*;
