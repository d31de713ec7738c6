//! What a tensor takes beside its elements is counted: histories of small tensors cannot fill the memory behind the quota's back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use kilnbox_tensor::context::Context;
use kilnbox_tensor::op::{elementwise, index, linalg, neural, reduce, segment, shape};
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};
use support::{device, on_each_device};

mod support;

/// Counts the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator has no safe interface")]
// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of this function, which are the same there.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often an operation follows on itself.
const TIMES: usize = 10_000;

type Operation<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor, Misuse>;

/// Of devices only what the engine itself keeps can be told: their drivers keep memory for queues and pools of their own.
#[test]
fn a_history_takes_no_more_than_is_counted() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        if device != Device::cpu() && device != Device::portable() {
            return Ok(());
        }
        let context = Context::new(usize::MAX, f64::INFINITY);
        let _entered = context.enter();
        let x = autodiff::track(&Tensor::full(&device, &[1, 1], 1.0, DType::Float64)?)?;
        let zero = Tensor::full(&device, &[1], 0.0, DType::Int64)?;
        let bias = shape::reshape(&x, &[1])?;
        let own = || Tensor::full(&device, &[1], 0.0, DType::Int64);
        let operations: [(&str, Operation<'_>); 15] = [
            ("add", &|a| elementwise::add(a, &x)),
            ("add-scalar", &|a| elementwise::add_scalar(a, 1.0)),
            ("power-scalar", &|a| elementwise::power_scalar(a, 1.5)),
            ("where", &|a| elementwise::where_(&elementwise::less(a, &x)?, a, &x)),
            ("reshape", &|a| shape::reshape(&shape::reshape(a, &[1])?, &[1, 1])),
            ("permute", &|a| shape::permute(a, &[1, 0])),
            ("sum", &|a| reduce::sum(a, &[0], true)),
            ("select", &|a| index::select(a, 0, &zero)),
            ("select with indices of its own", &|a| index::select(a, 0, &own()?)),
            ("index-add with indices of its own", &|a| index::index_add(a, 0, &own()?, 1)),
            ("matmul", &|a| linalg::matmul(a, &x)),
            ("attention", &|a| neural::attention(a, a, a, &bias, &zero, 1, 1, 1.0)),
            ("attention among empty segments", &|a| neural::attention(a, a, a, &bias, &zero, 1000, 1, 1.0)),
            ("concatenate", &|a| shape::slice(&shape::concatenate(&[a; 500], 0)?, 0, 0, 1)),
            ("contract-left", &|a| {
                segment::contract_left(a, &Tensor::full(&device, &[1, 1, 1], 1.0, DType::Float64)?, &zero)
            }),
        ];
        for (name, operation) in operations {
            let (bytes, counted) = (IN_USE.load(Ordering::Relaxed), context.quota().used());
            let mut end = x.clone();
            for _ in 0..TIMES {
                end = operation(&end)?;
            }
            let bytes = IN_USE.load(Ordering::Relaxed).saturating_sub(bytes);
            let counted = context.quota().used() - counted;
            assert!(bytes <= counted, "{name}: {bytes} bytes in use, {counted} counted");
        }
        Ok(())
    })
}
