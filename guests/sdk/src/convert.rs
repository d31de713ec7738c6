//! Between the SDK's plain values and the contract's records. Nothing is checked or changed here.

use crate::{
    Error,
    contract::{checkpoint, data, errors, model, tensor},
    info::{
        Capabilities, Context, DType, DatasetInfo, Irrep, Labels, ModelOutput, NamedTarget, NeighborListOptions,
        SampleKind, TargetInfo, TargetType,
    },
};

impl From<Error> for errors::ArchitectureError {
    fn from(error: Error) -> Self {
        match error {
            Error::UnsupportedTarget(message) => Self::UnsupportedTarget(message),
            Error::UnsupportedDataset(message) => Self::UnsupportedDataset(message),
            Error::InvalidHypers(message) => Self::InvalidHypers(message),
            Error::IncompatibleCheckpoint(message) => Self::IncompatibleCheckpoint(message),
            Error::TrainingFailed(message) => Self::TrainingFailed(message),
            Error::Other(message) => Self::Other(message),
        }
    }
}

impl From<data::DataError> for Error {
    fn from(error: data::DataError) -> Self {
        match error {
            data::DataError::UnknownType(atomic_number) => Error::UnsupportedDataset(format!(
                "a system has the element `{atomic_number}`, which the model does not know"
            )),
            data::DataError::Missing(name) => Error::UnsupportedDataset(format!("the data has no `{name}`")),
            data::DataError::Other(message) => Error::UnsupportedDataset(message),
        }
    }
}

impl From<DType> for tensor::Dtype {
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

impl From<tensor::Dtype> for DType {
    fn from(dtype: tensor::Dtype) -> Self {
        match dtype {
            tensor::Dtype::Float32 => Self::Float32,
            tensor::Dtype::Float64 => Self::Float64,
            tensor::Dtype::Int32 => Self::Int32,
            tensor::Dtype::Int64 => Self::Int64,
            tensor::Dtype::Boolean => Self::Boolean,
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

impl From<data::TargetType> for TargetType {
    fn from(target_type: data::TargetType) -> Self {
        match target_type {
            data::TargetType::Scalar => Self::Scalar,
            data::TargetType::Cartesian(rank) => Self::Cartesian(rank),
            data::TargetType::Spherical(irreps) => Self::Spherical(
                irreps.into_iter().map(|irrep| Irrep { lambda: irrep.lambda, sigma: irrep.sigma }).collect(),
            ),
        }
    }
}

impl From<data::TargetInfo> for TargetInfo {
    fn from(info: data::TargetInfo) -> Self {
        TargetInfo {
            quantity: info.quantity,
            unit: info.unit,
            description: info.description,
            sample_kind: info.sample_kind.into(),
            target_type: info.target_type.into(),
            num_subtargets: info.num_subtargets,
            gradients: info.gradients,
        }
    }
}

fn named_targets(targets: Vec<data::NamedTarget>) -> Vec<NamedTarget> {
    targets.into_iter().map(|target| NamedTarget { name: target.name, info: target.info.into() }).collect()
}

impl From<data::DatasetInfo> for DatasetInfo {
    fn from(info: data::DatasetInfo) -> Self {
        DatasetInfo {
            length_unit: info.length_unit,
            atomic_types: info.atomic_types,
            targets: named_targets(info.targets),
            extra_data: named_targets(info.extra_data),
        }
    }
}

impl From<NeighborListOptions> for data::NeighborListOptions {
    fn from(options: NeighborListOptions) -> Self {
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

impl From<ModelOutput> for model::ModelOutput {
    fn from(output: ModelOutput) -> Self {
        Self {
            name: output.name,
            quantity: output.quantity,
            unit: output.unit,
            sample_kind: output.sample_kind.into(),
            description: output.description,
        }
    }
}

impl From<model::ModelOutput> for ModelOutput {
    fn from(output: model::ModelOutput) -> Self {
        Self {
            name: output.name,
            quantity: output.quantity,
            unit: output.unit,
            sample_kind: output.sample_kind.into(),
            description: output.description,
        }
    }
}

impl From<Capabilities> for model::Capabilities {
    fn from(capabilities: Capabilities) -> Self {
        Self {
            outputs: capabilities.outputs.into_iter().map(Into::into).collect(),
            atomic_types: capabilities.atomic_types,
            interaction_range: capabilities.interaction_range,
            length_unit: capabilities.length_unit,
            dtype: capabilities.dtype.into(),
        }
    }
}

impl From<checkpoint::Context> for Context {
    fn from(context: checkpoint::Context) -> Self {
        match context {
            checkpoint::Context::Restart => Self::Restart,
            checkpoint::Context::Finetune => Self::Finetune,
            checkpoint::Context::Export => Self::Export,
        }
    }
}
