//! No operation shows memory that it did not write: results are the same whatever new memory holds.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use kilnbox_tensor::op::optimizer::{AdamOptions, adam};
use kilnbox_tensor::op::{self, elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};

/// Fills new memory with a pattern, as if another run had left its numbers there.
struct Soiled;

/// The pattern, in each byte.
static PATTERN: AtomicU8 = AtomicU8::new(0);

#[expect(unsafe_code, reason = "an allocator has no safe interface")]
// SAFETY: all is left to the system's allocator; what is written lies within a block that it has just given, which nobody else knows yet.
unsafe impl GlobalAlloc for Soiled {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of this function, which are the same there.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            // SAFETY: the block has this size.
            unsafe { block.write_bytes(PATTERN.load(Ordering::Relaxed), layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Soiled = Soiled;

/// Every operation on floating-point tensors, with sizes that fill no vector register evenly, and its first and second derivative.
fn all(dtype: DType) -> Result<Vec<Tensor>, Misuse> {
    let cpu = Device::cpu();
    let mut random = Random::new(1);
    let mut numbers = |shape: &[usize]| autodiff::track(&random.uniform(&cpu, shape, 0.1, 0.9, dtype)?);
    let indices = |count: usize, below: i64| {
        Tensor::from_int64(&cpu, &[count], &(0..count as i64).map(|k| k * 7 % below).collect::<Vec<_>>())
    };
    let (a, b, row) = (numbers(&[37, 19])?, numbers(&[37, 19])?, numbers(&[19])?);
    let (square, blocks, wide) = (numbers(&[19, 19])?, numbers(&[5, 19, 11])?, numbers(&[37, 22])?);
    let (column, vectors) = (numbers(&[37])?, numbers(&[37, 3])?);
    let table = autodiff::detach(&numbers(&[4, 6, 9])?)?;
    let (few, many) = (indices(37, 5)?, indices(61, 37)?);
    let each = reduce_places(&a)?;
    let unary: [fn(&Tensor) -> Result<Tensor, Misuse>; 14] = [
        elementwise::negative,
        elementwise::reciprocal,
        elementwise::absolute,
        elementwise::sign,
        elementwise::exp,
        elementwise::log,
        elementwise::sqrt,
        elementwise::sin,
        elementwise::cos,
        elementwise::tanh,
        elementwise::erf,
        elementwise::sigmoid,
        elementwise::silu,
        |a| neural::softmax(a, 1),
    ];
    let mut results = unary.iter().map(|operation| operation(&a)).collect::<Result<Vec<_>, _>>()?;
    let binary: [fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>; 6] = [
        elementwise::add,
        elementwise::subtract,
        elementwise::multiply,
        elementwise::divide,
        elementwise::maximum,
        elementwise::minimum,
    ];
    for operation in binary {
        results.extend([operation(&a, &b)?, operation(&a, &row)?]);
    }
    let condition = elementwise::less(&a, &b)?;
    results.extend([
        elementwise::where_(&condition, &a, &b)?,
        elementwise::clamp(&a, 0.3, 0.6)?,
        elementwise::power_scalar(&a, 1.7)?,
        elementwise::add_scalar(&a, 1.0)?,
        elementwise::multiply_scalar(&a, 3.0)?,
        reduce::sum(&a, &[0], false)?,
        reduce::sum(&a, &[1], true)?,
        reduce::mean(&a, &[], false)?,
        reduce::maximum(&a, 1, false)?,
        reduce::minimum(&a, 0, true)?,
        shape::permute(&a, &[1, 0])?,
        shape::broadcast_to(&row, &[3, 19])?,
        shape::concatenate(&[&a, &b], 1)?,
        shape::slice(&a, 1, 3, 14)?,
        index::select(&a, 0, &many)?,
        index::index_add(&a, 0, &few, 5)?,
        index::gather(&a, 1, &each)?,
        index::scatter_add(&a, 1, &each, 23)?,
        segment::outer_sum(&a, &wide, &few, 6)?,
        segment::contract_left(&a, &blocks, &few)?,
        segment::contract_right(&shape::slice(&wide, 1, 0, 11)?, &blocks, &few)?,
        linalg::matmul(&a, &square)?,
        linalg::matmul(&shape::slice(&a, 0, 0, 13)?, &blocks)?,
        linalg::matmul(&shape::slice(&a, 1, 0, 0)?, &shape::slice(&square, 0, 0, 0)?)?,
        neural::linear(&a, &square, Some(&row))?,
        neural::gated_linear_unit(&wide)?,
        neural::layer_norm(&a, 1e-5)?,
        neural::rms_norm(&a, 1e-5)?,
        neural::attention(&wide, &wide, &wide, &column, &few, 7, 2, 0.3)?,
        spherical::solid_harmonics(&vectors, 5)?,
        spherical::piecewise_polynomial(&column, &table, 0.2, 0.8)?,
        op::cast(&op::cast(&a, DType::Int32)?, dtype)?,
    ]);
    if let Ok(solution) = linalg::solve(&square, &shape::permute(&a, &[1, 0])?)? {
        results.push(solution);
    }
    let leaves = [&a, &b, &row, &square, &blocks, &wide, &column, &vectors];
    let outputs: Vec<&Tensor> = results.iter().collect();
    let first = autodiff::grad(&outputs, &leaves, &[], true)?;
    let second = autodiff::grad(&first.iter().collect::<Vec<_>>(), &leaves, &[], false)?;
    let zeros = autodiff::grad(&[&reduce::sum(&a, &[], false)?], &[&b], &[], false)?;
    let options = AdamOptions {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        weight_decay: 0.1,
        decoupled: true,
        step: 1,
    };
    let states = adam(&[&a], &[&b], &[&zeros[0]], &[&zeros[0]], &options)?;
    results.extend(first.into_iter().chain(second).chain(zeros));
    results.extend(states.into_iter().flat_map(|state| [state.parameter, state.first_moment, state.second_moment]));
    Ok(results)
}

/// An index into the second axis for every element.
fn reduce_places(a: &Tensor) -> Result<Tensor, Misuse> {
    let (rows, columns) = (a.shape()[0], a.shape()[1]);
    let places: Vec<i64> = (0..rows * columns).map(|k| (k * 5 % columns) as i64).collect();
    Tensor::from_int64(&Device::cpu(), &[rows, columns], &places)
}

#[test]
fn results_do_not_depend_on_what_memory_held() -> Result<(), Misuse> {
    for dtype in [DType::Float32, DType::Float64] {
        let bits = |pattern: u8| -> Result<Vec<Vec<u64>>, Misuse> {
            PATTERN.store(pattern, Ordering::Relaxed);
            let bits = |tensor: &Tensor| Ok(tensor.read_float64()?.into_iter().map(f64::to_bits).collect());
            all(dtype)?.iter().map(bits).collect()
        };
        let clean = bits(0)?;
        assert!(clean.len() > 60, "{} results", clean.len());
        // A small number, a large one, and one that is not a number.
        for pattern in [0x3c, 0x7e, 0xff] {
            let soiled = bits(pattern)?;
            for (number, (clean, soiled)) in clean.iter().zip(&soiled).enumerate() {
                assert_eq!(clean, soiled, "result {number} in {dtype} over memory of {pattern:#x}");
            }
        }
    }
    Ok(())
}
