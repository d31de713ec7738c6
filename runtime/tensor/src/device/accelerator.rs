//! Accelerators through cubecl's runtimes. A machine that lacks one, or its driver, is told so: nothing here panics over it.

use std::any::Any;
use std::panic::catch_unwind;
use std::sync::OnceLock;

use burn_backend::ops::FloatTensorOps;
use burn_backend::{Backend, DType as BurnDType, TensorData, get_or_init_device_settings, read_sync};
use burn_dispatch::devices::CubeDevice;
use burn_dispatch::{Dispatch, DispatchDevice};

use super::{Family, Properties};
use crate::kernel::device::product_as_it_is;

/// What opening each family gave.
static OPENED: [OnceLock<Result<Properties, String>>; 4] = [const { OnceLock::new() }; 4];

/// Opens the first device of a family; the second time, the answer is the same.
pub(super) fn open(family: Family) -> Result<(), String> {
    let opened = OPENED[family as usize].get_or_init(|| {
        // Drivers are found at run time, and what wraps them panics where they are broken.
        catch_unwind(|| first_device(family)).unwrap_or_else(|panic| Err(message(&*panic)))
    });
    match opened {
        Ok(_) => Ok(()),
        Err(reason) => Err(reason.clone()),
    }
}

/// The properties of a family's device, which MUST have been opened.
pub(super) fn opened(family: Family) -> &'static Properties {
    match OPENED[family as usize].get() {
        Some(Ok(properties)) => properties,
        _ => unreachable!("a device exists after it was opened"),
    }
}

/// The properties of all devices that have been opened.
pub(super) fn all_opened() -> impl Iterator<Item = &'static Properties> {
    OPENED.iter().filter_map(|opened| opened.get()?.as_ref().ok())
}

/// Gives back what a family's pool of memory keeps. Should the device have failed, its driver will.
pub(super) fn release_unused(family: Family) {
    let _ = catch_unwind(|| Dispatch::memory_cleanup(&opened(family).device));
}

fn first_device(family: Family) -> Result<Properties, String> {
    match family {
        #[cfg(feature = "cuda")]
        Family::Cuda => cuda(),
        #[cfg(feature = "metal")]
        Family::Metal => graphics(burn_dispatch::devices::wgpu::WgpuBackend::Metal),
        #[cfg(feature = "vulkan")]
        Family::Vulkan => graphics(burn_dispatch::devices::wgpu::WgpuBackend::Vulkan),
        // Whatever graphics interface the machine has.
        #[cfg(feature = "webgpu")]
        Family::Webgpu => graphics(burn_dispatch::devices::wgpu::WgpuBackend::Auto),
        #[allow(unreachable_patterns, reason = "a build may have them all")]
        _ => Err("it is not in this build".to_owned()),
    }
}

#[cfg(feature = "cuda")]
fn cuda() -> Result<Properties, String> {
    use burn_dispatch::devices::RuntimeId;
    let first = Dispatch::enumerate_cube(RuntimeId::Cuda).into_iter().next();
    match first {
        Some(DispatchDevice::Cube(device)) => properties(device, true, false),
        _ => Err("there is no NVIDIA driver, or it finds no device".to_owned()),
    }
}

#[cfg(any(feature = "metal", feature = "vulkan", feature = "webgpu"))]
fn graphics(backend: burn_dispatch::devices::wgpu::WgpuBackend) -> Result<Properties, String> {
    use burn_dispatch::devices::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, try_init_setup, wgpu};
    let device = WgpuDevice::default().on(backend);
    let options = RuntimeOptions::try_default().map_err(|error| error.to_string())?;
    let setup = try_init_setup::<AutoGraphicsApi>(&device, options).map_err(|error| error.to_string())?;
    let is_software = setup.adapter.get_info().device_type == wgpu::DeviceType::Cpu;
    // Shaders have double precision for arithmetic at most, not for exponentials and the like.
    properties(CubeDevice::Wgpu(device), false, is_software)
}

fn properties(device: CubeDevice, float64: bool, is_software: bool) -> Result<Properties, String> {
    let client = device.client();
    let known = client.properties();
    let (description, memory) = (known.identity.name.clone(), known.memory.max_memory());
    let device = DispatchDevice::Cube(device);
    let supports = |dtype: BurnDType| Dispatch::supports_dtype(&device, dtype);
    if !supports(BurnDType::F32) || !supports(BurnDType::I32) {
        return Err(format!("{description} does not compute with 32-bit numbers"));
    }
    let booleans = get_or_init_device_settings::<Dispatch>(&device).bool_dtype;
    let float64 = float64 && supports(BurnDType::F64);
    let multiplies = PRODUCTS.iter().all(|&sizes| multiplies(&device, sizes));
    let Some(keeps_nan) = keeps_nan(&device) else {
        return Err(format!("{description} computes no exponentials{}", if float64 { NEEDS_LIBDEVICE } else { "" }));
    };
    Ok(Properties { description, device, float64, booleans, is_software, memory, multiplies, keeps_nan })
}

/// What a device of CUDA lacks that computes no exponentials: its instructions have none.
const NEEDS_LIBDEVICE: &str = ", which are in `nvvm/libdevice/libdevice.10.bc` of a CUDA toolkit: install one in `/usr/local/cuda`, or say where it is with `CUDA_PATH`";

/// Whether the exponential of what is no number is none either, which graphics leave to the driver; none if there are no exponentials at all.
fn keeps_nan(device: &DispatchDevice) -> Option<bool> {
    let exponential = Dispatch::float_exp(Dispatch::float_from_data(TensorData::new(vec![f32::NAN], [1]), device));
    let found = read_sync(Dispatch::float_into_data(exponential)).ok()?.try_into_vec::<f32>().ok()?;
    Some(found[0].is_nan())
}

/// Rows, inner size and columns of products that are tried: there are several kernels, taken by the sizes.
const PRODUCTS: [[usize; 3]; 5] = [[1, 64, 48], [8, 8, 8], [33, 70, 21], [64, 64, 64], [300, 128, 64]];

/// Whether the device multiplies matrices of these sizes as arithmetic does. The numbers have a dozen bits, so nothing is rounded in single precision, and much in any that is less.
fn multiplies(device: &DispatchDevice, [rows, inner, columns]: [usize; 3]) -> bool {
    let number = |k: usize, step: usize| (k * step % 7) as f32 - 3.0;
    let exact = |k: usize| number(k, 3) * (1.0 + 1.0 / 4096.0);
    let left: Vec<f32> = (0..rows * inner).map(exact).collect();
    let right: Vec<f32> = (0..inner * columns).map(|k| number(k, 5)).collect();
    let entry = |k: usize| -> f32 {
        (0..inner).map(|i| left[k / columns * inner + i] * right[i * columns + k % columns]).sum()
    };
    let expected: Vec<f32> = (0..rows * columns).map(entry).collect();
    let on_device =
        |values: &[f32], sizes: [usize; 2]| Dispatch::float_from_data(TensorData::new(values.to_vec(), sizes), device);
    let transposed: Vec<f32> = (0..inner * columns).map(|k| right[k % inner * columns + k / inner]).collect();
    let transposed = Dispatch::float_swap_dims(on_device(&transposed, [columns, inner]), 0, 1);
    [on_device(&right, [inner, columns]), transposed].into_iter().all(|right| {
        let product = product_as_it_is(on_device(&left, [rows, inner]), right);
        let found = read_sync(Dispatch::float_into_data(product)).ok().and_then(|data| data.try_into_vec::<f32>().ok());
        found.is_some_and(|found| found == expected)
    })
}

/// What a caught panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "its driver failed".to_owned())
}
