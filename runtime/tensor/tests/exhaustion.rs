//! What a hostile run may try against a device: to have something kept for each of many shapes, and to fill its memory.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use kilnbox_tensor::context::DeviceFailed;
use kilnbox_tensor::op::{elementwise, linalg, reduce, shape};
use kilnbox_tensor::{DType, Misuse, Tensor};
use support::{device, on_each_device};

mod support;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// The bytes of this process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> Fallible<usize> {
    /// What every processor that we build for has.
    const PAGE: usize = 4096;
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    Ok(pages.split_whitespace().nth(1).ok_or("statm has a second number")?.parse::<usize>()? * PAGE)
}

/// Operations whose operands have sizes, and ranks, that none had before.
#[cfg(target_os = "linux")]
fn use_shapes(from: usize, to: usize) -> Result<(), Misuse> {
    for size in from..to {
        let row = Tensor::full(&device(), &[size], 1.0, DType::Float32)?;
        let sum = reduce::sum(&elementwise::exp(&row)?, &[], false)?;
        let mut sizes = vec![1; size % 8 + 1];
        sizes[size % 3 % (size % 8 + 1)] = size;
        let column = shape::reshape(&row, &[size, 1])?;
        let product = linalg::matmul(&shape::permute(&column, &[1, 0])?, &column)?;
        elementwise::add(&elementwise::multiply(&shape::reshape(&row, &sizes)?, &product)?, &sum)?.read_float32()?;
    }
    Ok(())
}

/// Kernels are compiled for kinds of operands, of which there are few, and not for each shape.
#[test]
#[cfg(target_os = "linux")]
fn many_shapes_need_nothing_more() -> Fallible {
    /// What an allocator and the pools of a device keep for themselves.
    const ROUGHLY: usize = 64 << 20;
    on_each_device(|| {
        use_shapes(1, 1000)?;
        let before = resident()?;
        use_shapes(1000, 5000)?;
        let grown = resident()?.saturating_sub(before);
        assert!(grown < ROUGHLY, "{grown} bytes were kept for 4000 shapes");
        Ok(())
    })
}

/// A tensor that no device has room for ends the run that asks for it, whose own numbers nobody reads; the tensors of others stay as they were.
#[test]
fn more_than_a_device_holds_ends_the_run() -> Fallible {
    on_each_device(|| {
        let device = device();
        let Some(memory) = device.memory() else { return Ok(()) };
        let numbers: Vec<f32> = (0..1000).map(|k| k as f32).collect();
        let others = Tensor::from_float32(&device, &[1000], &numbers)?;
        let count = usize::try_from(memory / 4 + 1)?;
        let operations: [(&str, &dyn Fn() -> Result<Vec<f32>, Misuse>); 3] = [
            ("full", &|| shape::slice(&Tensor::full(&device, &[count], 1.0, DType::Float32)?, 0, 0, 1)?.read_float32()),
            ("sum", &|| {
                reduce::sum(&Tensor::full(&device, &[count], 1.0, DType::Float32)?, &[], false)?.read_float32()
            }),
            ("outer product", &|| {
                let row = Tensor::full(&device, &[1, count / 1000 + 1], 1.0, DType::Float32)?;
                let product = elementwise::multiply(&shape::reshape(&others, &[1000, 1])?, &row)?;
                shape::slice(&product, 0, 0, 1)?.read_float32()
            }),
        ];
        for (name, operation) in operations {
            match catch_unwind(AssertUnwindSafe(operation)) {
                Err(panic) => {
                    let failed = panic.downcast_ref::<DeviceFailed>().unwrap_or_else(|| panic!("{name} panicked"));
                    assert!(failed.device == device.name() && !failed.message.is_empty(), "{name}: {failed:?}");
                }
                Ok(outcome) => panic!("{name} of {count} numbers gave {outcome:?} on {}", device.description()),
            }
            assert_eq!(others.read_float32()?, numbers, "after {name}");
            let doubled = elementwise::multiply_scalar(&others, 2.0)?.read_float32()?;
            assert!(doubled.iter().zip(&numbers).all(|(doubled, number)| *doubled == 2.0 * number), "after {name}");
        }
        Ok(())
    })
}
