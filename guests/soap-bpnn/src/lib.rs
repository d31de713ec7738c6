//! SOAP-BPNN: a SOAP power spectrum of each atom's surroundings, and a small neural network per species.
//!
//! `radial` tabulates the radial basis, `model` is the network, `trainer` says how it is trained.

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod model;
pub mod radial;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod trainer;

#[cfg(any(target_arch = "wasm32", feature = "native"))]
mod about {
    use kilnbox_sdk::info::{About, DType, Equivariance, References};

    /// What the architecture says of itself.
    pub fn about() -> About {
        About {
            authors: About::authors(env!("CARGO_PKG_AUTHORS")),
            maintainers: About::authors(env!("CARGO_PKG_AUTHORS")),
            references: References {
                architecture: vec![
                    "https://doi.org/10.1103/PhysRevB.87.184115".to_owned(),
                    "https://doi.org/10.1103/PhysRevLett.98.146401".to_owned(),
                    "https://doi.org/10.1063/5.0124363".to_owned(),
                ],
                implementation: vec!["https://doi.org/10.48550/arXiv.2508.15704".to_owned()],
            },
            supported_devices: ["cuda", "metal", "vulkan", "webgpu", "cpu"].map(str::to_owned).to_vec(),
            supported_dtypes: vec![DType::Float32, DType::Float64],
            equivariance: Equivariance::RotationsAndReflections,
        }
    }
}

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub use about::about;

kilnbox_sdk::export_architecture!(about, trainer::Trainer);
