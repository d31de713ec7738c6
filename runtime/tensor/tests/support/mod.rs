//! The device that a test runs on.

#![allow(dead_code, reason = "each test uses its part")]

use std::cell::RefCell;

use kilnbox_tensor::Device;

/// Names the one device to test, as users name it. Without it tests run on the processor, with its own kernels and with those of other devices.
const VARIABLE: &str = "KILNBOX_TEST_DEVICE";

thread_local! {
    static DEVICE: RefCell<Device> = RefCell::new(Device::cpu());
}

/// The device of the test that runs on this thread.
pub fn device() -> Device {
    DEVICE.with_borrow(Clone::clone)
}

/// The devices to test.
pub fn devices() -> Vec<Device> {
    match std::env::var(VARIABLE).as_deref() {
        Err(_) => vec![Device::cpu(), Device::portable()],
        Ok("portable") => vec![Device::portable()],
        Ok(name) => {
            let device = Device::named(name).unwrap_or_else(|error| panic!("{VARIABLE}: {error}; {}", error.hint()));
            vec![device]
        }
    }
}

/// Runs a test on each device.
pub fn on_each_device<E>(test: impl Fn() -> Result<(), E>) -> Result<(), E> {
    devices().into_iter().try_for_each(|device| {
        eprintln!("on {device:?} ({})", device.description());
        DEVICE.set(device);
        test()
    })
}

/// Whether the processor's own kernels are tested: some tests are about these alone.
pub fn tests_processor() -> bool {
    devices().contains(&Device::cpu())
}
