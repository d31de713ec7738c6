//! Where tensors live.

use burn_dispatch::DispatchDevice;
use burn_flex::FlexDevice;

/// A device that holds tensors and runs their kernels, chosen at run time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device(pub(crate) DispatchDevice);

impl Device {
    /// The processor, through burn-flex; always there.
    pub fn cpu() -> Self {
        Self(DispatchDevice::Flex(FlexDevice))
    }

    /// The device with this name as users write it; `None` if this build or this machine does not have it.
    pub fn named(name: &str) -> Option<Self> {
        (name == "cpu").then(Self::cpu)
    }

    /// The names of the devices that are present, in no order of preference.
    pub fn present() -> &'static [&'static str] {
        &["cpu"]
    }
}
