//! Between the contract's types, made from `wit/`, and the ones the rest of the program uses.

use kilnbox_data::{DatasetInfo, Irrep, Labels, NamedTarget, NeighborListOptions, SampleKind, TargetInfo, TargetType};
use kilnbox_tensor::DType;
use wasmtime::Result;

use super::State;
use super::bindings::exports::kilnbox::architecture::{about, model};
use super::bindings::kilnbox::architecture::{checkpoint, data, errors, tensor::Dtype};
use crate::error::{ArchitectureErrorKind, HostError, printable};
use crate::service::checkpoint::Context;
use crate::service::data::{GradientBlock, TensorBlock, TensorMap, Unavailable};
use crate::service::model::{About, Capabilities, Equivariance, ModelOutput, References};

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float32,
            Dtype::Float64 => Self::Float64,
            Dtype::Int32 => Self::Int32,
            Dtype::Int64 => Self::Int64,
            Dtype::Boolean => Self::Boolean,
        }
    }
}

impl From<DType> for Dtype {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::Float32 => Self::Float32,
            DType::Float64 => Self::Float64,
            DType::Int32 => Self::Int32,
            DType::Int64 => Self::Int64,
            DType::Boolean => Self::Boolean,
        }
    }
}

impl From<SampleKind> for data::SampleKind {
    fn from(kind: SampleKind) -> Self {
        match kind {
            SampleKind::System => Self::System,
            SampleKind::Atom => Self::Atom,
        }
    }
}

impl From<data::SampleKind> for SampleKind {
    fn from(kind: data::SampleKind) -> Self {
        match kind {
            data::SampleKind::System => Self::System,
            data::SampleKind::Atom => Self::Atom,
        }
    }
}

impl From<&NamedTarget> for data::NamedTarget {
    fn from(target: &NamedTarget) -> Self {
        let TargetInfo { quantity, unit, description, sample_kind, target_type, num_subtargets, gradients } =
            &target.info;
        let irrep = |irrep: &Irrep| data::Irrep { lambda: irrep.lambda, sigma: irrep.sigma };
        Self {
            name: target.name.clone(),
            info: data::TargetInfo {
                quantity: quantity.clone(),
                unit: unit.clone(),
                description: description.clone(),
                sample_kind: (*sample_kind).into(),
                target_type: match target_type {
                    TargetType::Scalar => data::TargetType::Scalar,
                    TargetType::Cartesian(rank) => data::TargetType::Cartesian(*rank),
                    TargetType::Spherical(irreps) => data::TargetType::Spherical(irreps.iter().map(irrep).collect()),
                },
                num_subtargets: *num_subtargets,
                gradients: gradients.clone(),
            },
        }
    }
}

impl From<&DatasetInfo> for data::DatasetInfo {
    fn from(info: &DatasetInfo) -> Self {
        Self {
            length_unit: info.length_unit.clone(),
            atomic_types: info.atomic_types.clone(),
            targets: info.targets.iter().map(Into::into).collect(),
            extra_data: info.extra_data.iter().map(Into::into).collect(),
        }
    }
}

impl From<data::NeighborListOptions> for NeighborListOptions {
    fn from(options: data::NeighborListOptions) -> Self {
        Self { cutoff: options.cutoff, full_list: options.full_list, strict: options.strict }
    }
}

impl From<Labels> for data::Labels {
    fn from(labels: Labels) -> Self {
        Self { names: labels.names, values: labels.values }
    }
}

impl From<data::Labels> for Labels {
    fn from(labels: data::Labels) -> Self {
        Self { names: labels.names, values: labels.values }
    }
}

impl From<Unavailable> for data::DataError {
    fn from(unavailable: Unavailable) -> Self {
        match unavailable {
            Unavailable::UnknownType(atomic_type) => Self::UnknownType(atomic_type),
            Unavailable::Missing(name) => Self::Missing(name),
            Unavailable::Other(message) => Self::Other(message),
        }
    }
}

impl From<Context> for checkpoint::Context {
    fn from(context: Context) -> Self {
        match context {
            Context::Restart => Self::Restart,
            Context::Finetune => Self::Finetune,
            Context::Export => Self::Export,
        }
    }
}

impl From<errors::ArchitectureError> for HostError {
    fn from(error: errors::ArchitectureError) -> Self {
        use errors::ArchitectureError as Given;
        let (kind, message) = match error {
            Given::UnsupportedTarget(message) => (ArchitectureErrorKind::UnsupportedTarget, message),
            Given::UnsupportedDataset(message) => (ArchitectureErrorKind::UnsupportedDataset, message),
            Given::InvalidHypers(message) => (ArchitectureErrorKind::InvalidHypers, message),
            Given::IncompatibleCheckpoint(message) => (ArchitectureErrorKind::IncompatibleCheckpoint, message),
            Given::TrainingFailed(message) => (ArchitectureErrorKind::TrainingFailed, message),
            Given::Other(message) => (ArchitectureErrorKind::Other, message),
        };
        Self::Architecture { kind, message: printable(&message) }
    }
}

/// The most people, works, devices and so on that an architecture's description may name; the user is shown each.
const MOST_NAMED: usize = 100;

impl From<about::About> for About {
    fn from(about: about::About) -> Self {
        let clean = |texts: Vec<String>| texts.iter().take(MOST_NAMED).map(|text| printable(text)).collect();
        Self {
            authors: clean(about.authors),
            maintainers: clean(about.maintainers),
            references: References {
                architecture: clean(about.references.architecture),
                implementation: clean(about.references.implementation),
            },
            supported_devices: clean(about.supported_devices),
            supported_dtypes: about.supported_dtypes.into_iter().take(MOST_NAMED).map(Into::into).collect(),
            equivariance: match about.equivariance {
                about::Equivariance::Translations => Equivariance::Translations,
                about::Equivariance::Rotations => Equivariance::Rotations,
                about::Equivariance::RotationsAndReflections => Equivariance::RotationsAndReflections,
            },
            model_checkpoint_version: about.model_checkpoint_version,
            trainer_checkpoint_version: about.trainer_checkpoint_version,
        }
    }
}

impl From<model::ModelOutput> for ModelOutput {
    fn from(output: model::ModelOutput) -> Self {
        Self {
            name: printable(&output.name),
            quantity: printable(&output.quantity),
            unit: printable(&output.unit),
            sample_kind: output.sample_kind.into(),
            description: printable(&output.description),
        }
    }
}

impl From<&ModelOutput> for model::ModelOutput {
    fn from(output: &ModelOutput) -> Self {
        Self {
            name: output.name.clone(),
            quantity: output.quantity.clone(),
            unit: output.unit.clone(),
            sample_kind: output.sample_kind.into(),
            description: output.description.clone(),
        }
    }
}

impl From<model::Capabilities> for Capabilities {
    fn from(capabilities: model::Capabilities) -> Self {
        Self {
            outputs: capabilities.outputs.into_iter().map(Into::into).collect(),
            atomic_types: capabilities.atomic_types,
            interaction_range: capabilities.interaction_range,
            length_unit: printable(&capabilities.length_unit),
            dtype: capabilities.dtype.into(),
        }
    }
}

impl State {
    /// Hands a map to the architecture, which owns its handles.
    pub(crate) fn give_map(&mut self, map: TensorMap) -> Result<data::TensorMap> {
        let blocks = map.blocks.into_iter().map(|block| self.give_block(block)).collect::<Result<_>>()?;
        Ok(data::TensorMap { keys: map.keys.into(), blocks })
    }

    fn give_block(&mut self, block: TensorBlock) -> Result<data::TensorBlock> {
        let labels = |labels: Vec<Labels>| labels.into_iter().map(Into::into).collect();
        let gradients = block
            .gradients
            .into_iter()
            .map(|gradient| {
                Ok(data::GradientBlock {
                    parameter: gradient.parameter,
                    values: self.hand_out(gradient.values)?,
                    samples: gradient.samples.into(),
                    components: labels(gradient.components),
                })
            })
            .collect::<Result<_>>()?;
        Ok(data::TensorBlock {
            values: self.hand_out(block.values)?,
            samples: block.samples.into(),
            components: labels(block.components),
            properties: block.properties.into(),
            gradients,
        })
    }

    /// Takes a map from the architecture: its handles become values.
    pub(crate) fn receive_map(&mut self, map: data::TensorMap) -> Result<TensorMap> {
        let blocks = map.blocks.into_iter().map(|block| self.receive_block(block)).collect::<Result<_>>()?;
        Ok(TensorMap { keys: map.keys.into(), blocks })
    }

    fn receive_block(&mut self, block: data::TensorBlock) -> Result<TensorBlock> {
        let labels = |labels: Vec<data::Labels>| labels.into_iter().map(Into::into).collect();
        let gradients = block
            .gradients
            .into_iter()
            .map(|gradient| {
                Ok(GradientBlock {
                    parameter: gradient.parameter,
                    values: self.handles.take(gradient.values)?,
                    samples: gradient.samples.into(),
                    components: labels(gradient.components),
                })
            })
            .collect::<Result<_>>()?;
        Ok(TensorBlock {
            values: self.handles.take(block.values)?,
            samples: block.samples.into(),
            components: labels(block.components),
            properties: block.properties.into(),
            gradients,
        })
    }
}
