//! What an author of an architecture depends on.
//!
//! An architecture implements [`network::Network`] (numbers for each atom) and gets a model and a trainer; one that does not learn by gradients
//! implements [`architecture::Model`] and [`architecture::Trainer`] itself. [`export_architecture!`] makes a component of either. The README shows
//! a whole architecture on one page.
//!
//! Modules that talk to the host exist in the sandbox (`wasm32`) and with the feature `native`; the others are pure mathematics and are compiled, and
//! tested, anywhere.
//!
//! ```
//! use kilnbox_sdk::{hypers::TrainingHypers, schedule::WarmupCosine};
//!
//! let hypers = TrainingHypers::parse(r#"{"num_epochs": 10, "learning_rate": 0.01, "warmup_fraction": 0.1}"#)?;
//! let steps = 10 * u64::from(hypers.num_epochs);
//! let schedule = WarmupCosine::new(hypers.learning_rate, hypers.warmup_fraction, steps);
//! assert_eq!(schedule.rate(10), 0.01);
//! # Ok::<(), kilnbox_sdk::Error>(())
//! ```

pub mod batching;
#[doc(hidden)]
pub mod contract;
mod error;
pub mod hypers;
pub mod info;
pub mod loss;
pub mod metrics;
pub mod schedule;
pub mod statistics;

#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod architecture;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod augmentation;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod checkpoint;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
mod convert;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod data;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod export;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod layers;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod model;
#[cfg(all(feature = "native", not(target_arch = "wasm32")))]
pub mod native;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod network;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod normalization;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod optimizer;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod random;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod report;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod tensor;
#[cfg(any(target_arch = "wasm32", feature = "native"))]
pub mod training;

pub use error::{Error, Result};

/// Exports an architecture as a component: what it says of itself (a function that returns [`About`](info::About)) and its trainer, which
/// knows its model. On other targets than wasm it does nothing.
///
/// ```ignore
/// kilnbox_sdk::export_architecture!(about, GradientTrainer<MyNetwork>);
/// ```
#[macro_export]
macro_rules! export_architecture {
    ($about:path, $trainer:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Exported;

            impl $crate::export::Architecture for Exported {
                type Trainer = $trainer;

                fn about() -> $crate::info::About {
                    $about()
                }
            }

            // What Cargo knows of the package, for `kilnbox pack` to put where every tool finds it. Each entry ends with a zero.
            const PACKAGE: &str = concat!(
                "name=",
                env!("CARGO_PKG_NAME"),
                "\0version=",
                env!("CARGO_PKG_VERSION"),
                "\0authors=",
                env!("CARGO_PKG_AUTHORS"),
                "\0description=",
                env!("CARGO_PKG_DESCRIPTION"),
                "\0licenses=",
                env!("CARGO_PKG_LICENSE"),
                "\0source=",
                env!("CARGO_PKG_REPOSITORY"),
                "\0homepage=",
                env!("CARGO_PKG_HOMEPAGE"),
                "\0",
            );

            #[used]
            #[allow(unsafe_code, reason = "a section of the module's file, which nothing loads or runs")]
            #[unsafe(link_section = "kilnbox:package")]
            static PACKAGE_SECTION: [u8; PACKAGE.len()] = $crate::export::bytes(PACKAGE);

            type ExportedComponent = $crate::export::Component<Exported>;
    $crate::contract::bindings::export!(ExportedComponent with_types_in $crate::contract::bindings);
        };
    };
}
