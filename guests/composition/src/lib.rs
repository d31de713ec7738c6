//! Energies from composition alone: the smallest complete architecture, and the one to read first.
//!
//! An architecture is three things: what it says of itself ([`about`]), a `model::Model` that predicts, and a
//! `trainer::Trainer` that makes the model better. The last line of this file makes a component of them.
//!
//! Architectures that learn by gradients are shorter still: they write a network, and the SDK's `GradientTrainer` does the rest, as in
//! `guests/soap-bpnn`.

use kilnbox_sdk::info::{About, DType, Equivariance, References};

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod model;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod trainer;

/// What the architecture says of itself.
pub fn about() -> About {
    About {
        authors: About::authors(env!("CARGO_PKG_AUTHORS")),
        maintainers: About::authors(env!("CARGO_PKG_AUTHORS")),
        references: References::default(),
        supported_devices: ["cpu", "cuda", "metal", "vulkan", "webgpu"].map(str::to_owned).to_vec(),
        supported_dtypes: vec![DType::Float64, DType::Float32],
        equivariance: Equivariance::RotationsAndReflections,
    }
}

kilnbox_sdk::export_architecture!(crate::about, crate::trainer::Trainer);

#[cfg(test)]
mod tests {
    use kilnbox_sdk::hypers::FixedWeights;

    #[test]
    fn it_names_somebody_to_ask() {
        let about = super::about();
        assert!(!about.authors.is_empty() && !about.maintainers.is_empty());
    }

    #[test]
    fn a_baseline_of_one_number_is_for_all_elements() {
        let weights: FixedWeights = [("energy".to_owned(), kilnbox_sdk::hypers::PerType::All(-5.0))].into();
        assert_eq!(weights["energy"].values(&[1, 8], 0.0), [-5.0, -5.0]);
    }
}
