//! Between the options, the data, the host's checkpoints and the files that keep them.

use kilnbox_bundle::{ArchitectureIdentity, CheckpointFile, ElementType, NamedTensor};
use kilnbox_data::{
    DataError, Dataset, DatasetInfo, DatasetSource, GradientSource, Irrep, SystemsSource, TargetInfo, TargetSource,
};
use kilnbox_host::{Capabilities, Checkpoint, HostError, ModelOutput};
use kilnbox_tensor::{DType, Device, Misuse, Tensor};
use serde_json::{Value as Json, json};

use crate::errors::{Blame, CliError};
use crate::options::{DatasetOptions, GradientOptions, SampleKind, TargetOptions, TargetType};

impl From<DataError> for CliError {
    fn from(error: DataError) -> Self {
        Self::input(error.to_string()).maybe_hint(error.hint().map(str::to_owned))
    }
}

impl From<HostError> for CliError {
    fn from(error: HostError) -> Self {
        Self::of_guest("the architecture", error)
    }
}

impl CliError {
    /// An error of a component in the sandbox, which a message calls `who`.
    pub fn of_guest(who: &str, error: HostError) -> Self {
        match error {
            HostError::Data(data) => data.into(),
            HostError::Refused { .. } | HostError::Architecture { .. } => Self::input(error.to_string()),
            HostError::Trapped { message, backtrace } => {
                let result = Self::new(Blame::Architecture, format!("{who} failed: {message}"))
                    .hint(format!("this is a mistake in {who}'s code: report it to its maintainers"));
                if backtrace.is_empty() {
                    result
                } else {
                    result.hint(format!("where it happened, innermost first:\n{backtrace}"))
                }
            }
            HostError::Limit { limit, message } => {
                Self::new(Blame::Limit, format!("{who} exceeded the limit `{limit}`: {message}"))
                    .hint(format!("if you want to allow it more, raise the limit: `--limit {limit}=VALUE`"))
            }
            HostError::Device { .. } => Self::new(Blame::Limit, error.to_string()).hint(
                "smaller batches need less of its memory, and so does a smaller `--limit tensor_bytes=VALUE` refuse \
                 sooner; `device: cpu` does without it",
            ),
            HostError::Reservation { .. } => Self::input(error.to_string()).hint(
                "it reserves 4 GiB of addresses for each memory of a component, however little of them is used: where \
                 the system bounds a process's addresses (`ulimit -v`), let it have 6 GiB at least",
            ),
            HostError::Threads { .. } => Self::input(error.to_string())
                .hint("ask for fewer with `--threads`, or raise what the system allows a process, such as `ulimit -u` and `ulimit -v`"),
            HostError::Shipping { .. } => Self::input(error.to_string())
                .hint("run this as the user that the program belongs to; `chmod go-w` takes the right to write from others"),
            HostError::Bug(_) => Self::new(Blame::Kilnbox, error.to_string()),
        }
    }
}

impl From<kilnbox_tensor::DeviceError> for CliError {
    fn from(error: kilnbox_tensor::DeviceError) -> Self {
        Self::input(error.to_string()).hint(error.hint())
    }
}

/// Reads a dataset that the options name, with the structures that they pick.
///
/// # Errors
///
/// The data cannot be read, or is of a kind that cannot be served yet.
pub fn read_dataset(options: &DatasetOptions) -> Result<Dataset, CliError> {
    let sources = |targets: &[TargetOptions]| targets.iter().map(target_source).collect::<Result<Vec<_>, _>>();
    let source = DatasetSource {
        systems: SystemsSource {
            read_from: options.systems.read_from.clone(),
            reader: options.systems.reader.clone(),
            length_unit: options.systems.length_unit.clone(),
        },
        targets: sources(&options.targets)?,
        extra_data: sources(&options.extra_data)?,
    };
    let dataset = Dataset::read(&source)?;
    match &options.indices {
        Some(indices) => Ok(dataset.select(&indices.load()?)?),
        None => Ok(dataset),
    }
}

fn target_source(target: &TargetOptions) -> Result<TargetSource, CliError> {
    let unsupported = |what: &str| {
        CliError::input(format!("the target `{}` {what}, which is not supported yet", target.name))
            .hint("leave the target out, or use scalars and Cartesian tensors of systems and atoms")
    };
    let sample_kind = match target.sample_kind {
        SampleKind::System => kilnbox_data::SampleKind::System,
        SampleKind::Atom => kilnbox_data::SampleKind::Atom,
        SampleKind::AtomPair => return Err(unsupported("belongs to pairs of atoms")),
    };
    let target_type = match &target.target_type {
        TargetType::Scalar => kilnbox_data::TargetType::Scalar,
        TargetType::Cartesian { rank } => kilnbox_data::TargetType::Cartesian(*rank as u32),
        TargetType::Spherical { product: Some(_), .. } => return Err(unsupported("is a product of spherical tensors")),
        TargetType::Spherical { irreps, .. } => {
            let irrep = |irrep: &crate::options::SphericalIrrep| Irrep {
                lambda: irrep.o3_lambda as u32,
                sigma: irrep.o3_sigma.into(),
            };
            kilnbox_data::TargetType::Spherical(irreps.iter().map(irrep).collect())
        }
    };
    let gradient = |gradient: &GradientOptions| GradientSource {
        read_from: gradient.read_from.clone(),
        key: gradient.key.clone(),
        required: gradient.required,
    };
    Ok(TargetSource {
        name: target.name.clone(),
        info: TargetInfo {
            quantity: target.quantity.clone(),
            unit: target.unit.clone(),
            description: target.description.clone(),
            sample_kind,
            target_type,
            num_subtargets: target.num_subtargets as u32,
            gradients: Vec::new(),
        },
        read_from: target.read_from.clone(),
        reader: target.reader.clone(),
        key: target.key.clone(),
        forces: target.forces.as_ref().map(gradient),
        stress: target.stress.as_ref().map(gradient),
        virial: target.virial.as_ref().map(gradient),
    })
}

/// What a checkpoint's file says besides what the architecture gave.
#[derive(Clone, Debug)]
pub struct CheckpointContext {
    /// Whose it is.
    pub architecture: ArchitectureIdentity,
    /// `{"model": ..., "training": ...}`.
    pub hypers: Json,
    /// What the model was made for.
    pub dataset_info: DatasetInfo,
    /// The seed of the run.
    pub seed: u64,
}

impl CheckpointContext {
    /// What a file says.
    ///
    /// # Errors
    ///
    /// Its dataset info is not one.
    pub fn of(file: &CheckpointFile) -> Result<Self, CliError> {
        let dataset_info = serde_json::from_value(file.dataset_info.clone()).map_err(|error| {
            CliError::input("the checkpoint does not say what its model was made for").caused_by(&error)
        })?;
        Ok(Self { architecture: file.architecture.clone(), hypers: file.hypers.clone(), dataset_info, seed: file.seed })
    }

    /// The checkpoint as a file keeps it.
    ///
    /// # Errors
    ///
    /// A sentence: the architecture's data is no JSON, or a tensor cannot be read back.
    pub fn file(&self, checkpoint: &Checkpoint) -> Result<CheckpointFile, String> {
        let data = serde_json::from_str(&checkpoint.data).map_err(|error| format!("its data is not JSON: {error}"))?;
        let dataset_info = serde_json::to_value(&self.dataset_info).map_err(|error| error.to_string())?;
        let tensors = checkpoint
            .tensors
            .iter()
            .map(|(name, tensor)| named_tensor(name, tensor).map_err(|misuse| misuse.to_string()))
            .collect::<Result<_, _>>()?;
        Ok(CheckpointFile {
            architecture: self.architecture.clone(),
            contract_version: kilnbox_host::CONTRACT_VERSION.to_owned(),
            model_version: checkpoint.model_version,
            trainer_version: checkpoint.trainer_version,
            hypers: self.hypers.clone(),
            dataset_info,
            epoch: checkpoint.epoch.map(u64::from),
            seed: self.seed,
            data,
            tensors,
        })
    }
}

/// A file's checkpoint on a device.
///
/// # Errors
///
/// The memory for its tensors is not there.
pub fn checkpoint_on_device(file: &CheckpointFile, device: &Device) -> Result<Checkpoint, CliError> {
    let tensors = file
        .tensors
        .iter()
        .map(|named| {
            Ok((
                named.name.clone(),
                tensor(named, device).map_err(|misuse| CliError::new(Blame::Limit, misuse.to_string()))?,
            ))
        })
        .collect::<Result<_, CliError>>()?;
    Ok(Checkpoint {
        model_version: file.model_version,
        trainer_version: file.trainer_version,
        epoch: file.epoch.and_then(|epoch| u32::try_from(epoch).ok()),
        data: file.data.to_string(),
        tensors,
    })
}

fn named_tensor(name: &str, tensor: &Tensor) -> Result<NamedTensor, Misuse> {
    fn bytes<const N: usize, T>(values: Vec<T>, to_bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.into_iter().flat_map(to_bytes).collect()
    }
    let (element_type, bytes) = match tensor.dtype() {
        DType::Float32 => (ElementType::F32, bytes(tensor.read_float32()?, f32::to_le_bytes)),
        DType::Float64 => (ElementType::F64, bytes(tensor.read_float64()?, f64::to_le_bytes)),
        // An int32 tensor is read widened; every value fits back.
        DType::Int32 => (ElementType::I32, bytes(tensor.read_int64()?, |value| (value as i32).to_le_bytes())),
        DType::Int64 => (ElementType::I64, bytes(tensor.read_int64()?, i64::to_le_bytes)),
        DType::Boolean => (ElementType::Bool, tensor.read_boolean()?.into_iter().map(u8::from).collect()),
    };
    Ok(NamedTensor { name: name.to_owned(), element_type, shape: tensor.shape().to_vec(), bytes })
}

fn tensor(named: &NamedTensor, device: &Device) -> Result<Tensor, Misuse> {
    fn values<const N: usize, T>(bytes: &[u8], from_bytes: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| from_bytes(*chunk)).collect()
    }
    let (shape, bytes) = (&named.shape, &named.bytes);
    match named.element_type {
        ElementType::F32 => Tensor::from_float32(device, shape, &values(bytes, f32::from_le_bytes)),
        ElementType::F64 => Tensor::from_float64(device, shape, &values(bytes, f64::from_le_bytes), DType::Float64),
        ElementType::I32 => Tensor::from_int32(device, shape, &values(bytes, i32::from_le_bytes)),
        ElementType::I64 => Tensor::from_int64(device, shape, &values(bytes, i64::from_le_bytes)),
        ElementType::Bool | ElementType::U8 => {
            Tensor::from_boolean(device, shape, &bytes.iter().map(|&byte| byte != 0).collect::<Vec<_>>())
        }
    }
}

/// What a model can do, as its file says it; infinity, which JSON lacks, is null.
pub fn capabilities_to_json(capabilities: &Capabilities, devices: &[String]) -> Json {
    let outputs: Vec<Json> = capabilities
        .outputs
        .iter()
        .map(|output| {
            json!({
                "name": output.name,
                "quantity": output.quantity,
                "unit": output.unit,
                "sample_kind": output.sample_kind.to_string(),
                "description": output.description,
            })
        })
        .collect();
    json!({
        "outputs": outputs,
        "atomic_types": capabilities.atomic_types,
        "interaction_range": capabilities.interaction_range.is_finite().then_some(capabilities.interaction_range),
        "length_unit": capabilities.length_unit,
        "dtype": capabilities.dtype.to_string(),
        "supported_devices": devices,
    })
}

/// What a model's file says about its dtype.
pub fn dtype_of(capabilities: &Json) -> DType {
    if capabilities["dtype"] == "float64" { DType::Float64 } else { DType::Float32 }
}

/// The output that predicts a target.
pub fn output_of(name: &str, info: &TargetInfo) -> ModelOutput {
    ModelOutput {
        name: name.to_owned(),
        quantity: info.quantity.clone(),
        unit: info.unit.clone(),
        sample_kind: info.sample_kind,
        description: info.description.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_file() {
        let device = Device::cpu();
        let tensors = [
            Tensor::from_float32(&device, &[2], &[1.5, -0.0]).unwrap(),
            Tensor::from_float64(&device, &[1, 2], &[0.1, f64::MAX], DType::Float64).unwrap(),
            Tensor::from_int32(&device, &[2], &[i32::MIN, 7]).unwrap(),
            Tensor::from_int64(&device, &[], &[i64::MAX]).unwrap(),
            Tensor::from_boolean(&device, &[3], &[true, false, true]).unwrap(),
            Tensor::from_float32(&device, &[0, 4], &[]).unwrap(),
        ];
        for original in tensors {
            let named = named_tensor("x", &original).unwrap();
            let back = tensor(&named, &device).unwrap();
            assert_eq!((back.dtype(), back.shape()), (original.dtype(), original.shape()));
            assert_eq!(named_tensor("x", &back).unwrap(), named);
        }
    }
}
