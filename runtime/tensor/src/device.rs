//! Where tensors live.
//!
//! A device holds the elements of some dtypes and runs kernels on them; elements of all others stay in the memory of the host, and the processor
//! computes with them, exactly as the contract says. So every operation works on every device, and each dtype has one place:
//!
//! | dtype | on an accelerator |
//! |---|---|
//! | `float32` | on the device |
//! | `float64` | on the device if all of its functions have double precision (CUDA), else with the host |
//! | `boolean` | on the device |
//! | `int32`, `int64` | with the host |
//!
//! Integers are indices. Kernels of accelerators do not check these, so those that a kernel sees are copies of numbers that were checked here.

use std::fmt;

use burn_backend::BoolDType;
use burn_dispatch::DispatchDevice;
use burn_flex::FlexDevice;
use thiserror::Error;

use crate::DType;

#[cfg(feature = "accelerator")]
mod accelerator;
/// What this build has instead of accelerators.
#[cfg(not(feature = "accelerator"))]
mod accelerator {
    use super::{Family, Properties};

    pub(super) fn open(_: Family) -> Result<(), String> {
        Err("it is not in this build".to_owned())
    }

    pub(super) fn opened(_: Family) -> &'static Properties {
        unreachable!("no device of this build was opened")
    }

    pub(super) fn all_opened() -> impl Iterator<Item = &'static Properties> {
        std::iter::empty()
    }

    pub(super) fn release_unused(_: Family) {}
}

/// A device that holds tensors and runs their kernels, chosen at run time.
#[derive(Clone, PartialEq, Eq)]
pub struct Device(Place);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Processor,
    Portable,
    /// Opened: its properties are known.
    Accelerator(Family),
}

/// A way to reach accelerators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Cuda,
    Metal,
    Vulkan,
    Webgpu,
}

/// All of them, the fastest first.
const FAMILIES: [Family; 4] = [Family::Cuda, Family::Metal, Family::Vulkan, Family::Webgpu];

/// What is known of an accelerator that was opened.
struct Properties {
    /// The driver's name for it.
    description: String,
    device: DispatchDevice,
    float64: bool,
    booleans: BoolDType,
    /// Whether it is a program on the processor that behaves like one.
    is_software: bool,
    memory: Option<u64>,
    /// Whether products of matrices are right there: see `multiplies_matrices`.
    multiplies: bool,
    /// Whether the exponential of NaN is NaN there.
    keeps_nan: bool,
}

/// The truth values of a device whose exponentials make numbers of NaN; none if they do not, as it should be.
pub(crate) fn loses_nan(device: &DispatchDevice) -> Option<BoolDType> {
    let opened = accelerator::all_opened().find(|opened| opened.device == *device)?;
    (!opened.keeps_nan).then_some(opened.booleans)
}

/// Whether products of matrices are right on this device, as was tried when it was opened: in their kernels units share memory, which rests on more of a driver than other kernels do, and where it
/// lacks something, parts of the result are missing without a word. SwiftShader is one.
pub(crate) fn multiplies_matrices(device: &DispatchDevice) -> bool {
    accelerator::all_opened().find(|opened| opened.device == *device).is_none_or(|opened| opened.multiplies)
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Webgpu => "webgpu",
        }
    }

    fn is_built(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Webgpu => cfg!(feature = "webgpu"),
        }
    }

    fn open(self) -> Result<Device, DeviceError> {
        if !self.is_built() {
            return Err(DeviceError::NotBuilt(self.name()));
        }
        match accelerator::open(self) {
            Ok(()) => Ok(Device(Place::Accelerator(self))),
            Err(reason) => Err(DeviceError::NotPresent { name: self.name(), reason }),
        }
    }
}

/// Why there is no device of a name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// No build has a device of this name.
    #[error("there is no device `{0}`")]
    Unknown(String),
    /// Other builds have it.
    #[error("this program was built without the device `{0}`")]
    NotBuilt(&'static str),
    /// This machine does not have it, or its driver does not work.
    #[error("this machine has no device `{name}`: {reason}")]
    NotPresent {
        /// The device.
        name: &'static str,
        /// What the driver says.
        reason: String,
    },
}

impl DeviceError {
    /// What the user can do.
    pub fn hint(&self) -> String {
        let built = || Device::built().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match self {
            Self::Unknown(_) => format!("this program knows {}", built()),
            Self::NotBuilt("gpu") => {
                format!("build it with `--features vulkan`, `cuda`, `metal` or `webgpu`; it has {}", built())
            }
            Self::NotBuilt(name) => format!("build it with `--features {name}`; it has {}", built()),
            Self::NotPresent { .. } => "check the driver, or take `cpu`".to_owned(),
        }
    }
}

impl Device {
    /// The name of whichever accelerator is there, the fastest if there are several.
    pub const ANY_ACCELERATOR: &str = "gpu";

    /// The processor; always there.
    pub fn cpu() -> Self {
        Self(Place::Processor)
    }

    /// The processor, running what accelerators run: operations put together from burn's. For tests, which can thus see everywhere whether
    /// these are right.
    #[doc(hidden)]
    pub fn portable() -> Self {
        Self(Place::Portable)
    }

    /// The device with this name: `cpu`, `cuda`, `metal`, `vulkan`, `webgpu`, or `gpu` for the first of these that is there and not the processor.
    /// The first time, it is opened.
    ///
    /// # Errors
    /// There is none of this name, or not in this build or on this machine.
    pub fn named(name: &str) -> Result<Self, DeviceError> {
        if name == "cpu" {
            return Ok(Self::cpu());
        }
        if name == Self::ANY_ACCELERATOR {
            return Self::any_accelerator();
        }
        match FAMILIES.into_iter().find(|family| family.name() == name) {
            Some(family) => family.open(),
            None => Err(DeviceError::Unknown(name.to_owned())),
        }
    }

    fn any_accelerator() -> Result<Self, DeviceError> {
        let mut reasons = Vec::new();
        for family in FAMILIES.into_iter().filter(|family| family.is_built()) {
            match family.open() {
                // A program that pretends is slower than the processor's own kernels.
                Ok(device) if accelerator::opened(family).is_software => {
                    reasons.push(format!("{} is {}, which is software", family.name(), device.description()));
                }
                Ok(device) => return Ok(device),
                Err(DeviceError::NotPresent { name, reason }) => reasons.push(format!("{name}: {reason}")),
                Err(other) => reasons.push(other.to_string()),
            }
        }
        let name = Self::ANY_ACCELERATOR;
        if reasons.is_empty() {
            return Err(DeviceError::NotBuilt(name));
        }
        Err(DeviceError::NotPresent { name, reason: reasons.join("; ") })
    }

    /// The names of the devices that this build can use, where they are present.
    pub fn built() -> impl Iterator<Item = &'static str> {
        let accelerators = FAMILIES.into_iter().filter(|family| family.is_built()).map(Family::name);
        std::iter::once("cpu").chain(accelerators)
    }

    /// Its name as users write it.
    pub fn name(&self) -> &'static str {
        match self.0 {
            Place::Processor => "cpu",
            Place::Portable => "portable",
            Place::Accelerator(family) => family.name(),
        }
    }

    /// What the driver calls it; its name, where there is no driver.
    pub fn description(&self) -> &str {
        match self.0 {
            Place::Accelerator(family) => &accelerator::opened(family).description,
            _ => self.name(),
        }
    }

    /// Whether a run in this dtype makes sense: whether the device itself computes with it.
    pub fn computes(&self, dtype: DType) -> bool {
        self.0 == Place::Processor || self.holds(dtype)
    }

    /// The bytes of its own memory, if it has one and says so.
    pub fn memory(&self) -> Option<u64> {
        match self.0 {
            Place::Accelerator(family) => accelerator::opened(family).memory,
            _ => None,
        }
    }

    /// Gives back what its pool of memory keeps for tensors to come. Where there is no pool, nothing is kept.
    pub fn release_unused(&self) {
        if let Place::Accelerator(family) = self.0 {
            accelerator::release_unused(family);
        }
    }

    /// Whether elements of this dtype live on the device rather than with the host.
    #[inline]
    pub(crate) fn holds(&self, dtype: DType) -> bool {
        match (self.0, dtype) {
            (Place::Processor, _) | (_, DType::Int32 | DType::Int64) => false,
            (Place::Accelerator(family), DType::Float64) => accelerator::opened(family).float64,
            _ => true,
        }
    }

    /// Whether its memory is another one than the host's.
    pub(crate) fn is_accelerator(&self) -> bool {
        matches!(self.0, Place::Accelerator(_))
    }

    /// Where burn makes tensors of the dtypes that it holds.
    pub(crate) fn dispatch(&self) -> DispatchDevice {
        match self.0 {
            Place::Accelerator(family) => accelerator::opened(family).device.clone(),
            _ => DispatchDevice::Flex(FlexDevice),
        }
    }

    /// How it stores truth values.
    pub(crate) fn booleans(&self) -> BoolDType {
        match self.0 {
            Place::Accelerator(family) => accelerator::opened(family).booleans,
            _ => BoolDType::Native,
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_name_or_refused_with_a_sentence() {
        assert_eq!(Device::named("cpu"), Ok(Device::cpu()));
        assert_eq!(Device::built().next(), Some("cpu"));
        match Device::named("abacus") {
            Err(error) => {
                assert_eq!(error.to_string(), "there is no device `abacus`");
                assert!(error.hint().starts_with("this program knows `cpu`"), "{}", error.hint());
            }
            Ok(device) => panic!("{device:?}"),
        }
        for family in FAMILIES {
            match Device::named(family.name()) {
                Ok(device) => assert_eq!(device.name(), family.name()),
                Err(error) => {
                    let expected = if family.is_built() { "this machine has no device" } else { "was built without" };
                    assert!(error.to_string().contains(expected) && !error.hint().is_empty(), "{error}");
                }
            }
        }
    }

    #[test]
    fn integers_stay_with_the_host_and_so_does_everything_on_the_processor() {
        for dtype in [DType::Float32, DType::Float64, DType::Boolean] {
            assert!(!Device::cpu().holds(dtype) && Device::portable().holds(dtype) && Device::cpu().computes(dtype));
        }
        for dtype in [DType::Int32, DType::Int64] {
            assert!(!Device::cpu().holds(dtype) && !Device::portable().holds(dtype));
        }
    }
}
