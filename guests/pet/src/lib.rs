//! PET, the Point-Edge Transformer: attention among an atom and its neighbours, and messages that go back along the edges.
//!
//! `hypers` are its settings, `edges` what it sees of a batch, `transformer` its layers, `model` the network, `trainer` says how it is trained.

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod edges;
pub mod hypers;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod model;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod trainer;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod transformer;

#[cfg(any(target_arch = "wasm32", feature = "native"))]
mod about {
    use kilnbox_sdk::info::{About, DType, Equivariance, References};

    /// What the architecture says of itself.
    pub fn about() -> About {
        About {
            authors: About::authors(env!("CARGO_PKG_AUTHORS")),
            maintainers: About::authors(env!("CARGO_PKG_AUTHORS")),
            references: References {
                architecture: vec!["https://doi.org/10.48550/arXiv.2305.19302".to_owned()],
                implementation: vec!["https://doi.org/10.48550/arXiv.2508.15704".to_owned()],
            },
            supported_devices: ["cuda", "metal", "vulkan", "webgpu", "cpu"].map(str::to_owned).to_vec(),
            supported_dtypes: vec![DType::Float32, DType::Float64],
            // It sees Cartesian components.
            equivariance: Equivariance::Translations,
        }
    }
}

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub use about::about;

kilnbox_sdk::export_architecture!(about, trainer::Trainer);
