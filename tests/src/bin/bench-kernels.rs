//! The engine's side of `cargo xtask bench kernels`: each operation on sizes that matter, one at a time, as asked.
//!
//! With `--list` it prints the names of its cases. Otherwise it reads names, one in a line, and answers each with the seconds that one call takes. The other side,
//! `tests/peers/kernels_bench.py`, has the same cases for PyTorch and asks in turn.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use kilnbox_tensor::allocator::Allocator;
use kilnbox_tensor::op::optimizer::AdamOptions;
use kilnbox_tensor::op::{self, elementwise, index, linalg, neural, optimizer, reduce, segment, shape, spherical};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};

/// As in the program.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How long one answer may take: enough calls that the clock and the waking of threads do not matter.
const LONG_ENOUGH: Duration = Duration::from_millis(60);

/// One call of an operation.
type Run = Box<dyn Fn() -> Result<(), Misuse>>;

/// A case: a name that both sides know, and how to make its tensors. They are made when it is asked for, so that no case pays for the caches of another.
struct Case {
    name: String,
    prepare: Box<dyn Fn() -> Result<Run, Misuse>>,
}

/// Makes tensors of one dtype.
#[derive(Clone, Copy)]
struct Maker(DType);

impl Maker {
    /// Numbers between `low` and `high`, the same in every run.
    fn between(self, shape: &[usize], low: f64, high: f64) -> Result<Tensor, Misuse> {
        Random::new(shape.iter().sum::<usize>() as u64).uniform(&Device::cpu(), shape, low, high, self.0)
    }

    /// Numbers between -1 and 1.
    fn numbers(self, shape: &[usize]) -> Result<Tensor, Misuse> {
        self.between(shape, -1.0, 1.0)
    }
}

/// Indices below `bound` in no order.
fn indices(shape: &[usize], bound: usize) -> Result<Tensor, Misuse> {
    let count = shape.iter().product::<usize>();
    // A multiplicative generator: spread well enough that no cache foresees it.
    let values = (0..count as u64).map(|k| (k.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as i64 % bound as i64);
    Tensor::from_int64(&Device::cpu(), shape, &values.collect::<Vec<_>>())
}

/// `count` segments of `size` rows each.
fn segments(count: usize, size: usize) -> Result<Tensor, Misuse> {
    Tensor::from_int64(
        &Device::cpu(),
        &[count * size],
        &(0..count * size).map(|row| (row / size) as i64).collect::<Vec<_>>(),
    )
}

/// Which elements are above 0.
fn positive(a: &Tensor) -> Result<Tensor, Misuse> {
    elementwise::less(&Tensor::full(&a.device(), &[], 0.0, a.dtype())?, a)
}

/// All cases of a dtype. `forward!` calls an operation on tensors; `both!` takes its gradients by all of them, too.
fn cases_of(dtype: DType) -> Vec<Case> {
    let make = Maker(dtype);
    let prefix = if dtype == DType::Float32 { "f32" } else { "f64" };
    let mut cases: Vec<Case> = Vec::new();
    macro_rules! forward {
        ($name:expr, [$($tensor:ident = $made:expr),*], $call:expr) => {
            cases.push(Case {
                name: format!("{prefix}/{}", $name),
                prepare: Box::new(move || {
                    $(let $tensor = $made?;)*
                    Ok(Box::new(move || $call.map(drop)) as Run)
                }),
            })
        };
    }
    macro_rules! both {
        ($name:expr, [$($tensor:ident = $made:expr),*], by [$($input:ident),*], $call:expr) => {
            forward!($name, [$($tensor = $made),*], $call);
            cases.push(Case {
                name: format!("{prefix}/{} and gradients", $name),
                prepare: Box::new(move || {
                    $(let $tensor = $made?;)*
                    $(let $input = autodiff::track(&$input)?;)*
                    Ok(Box::new(move || {
                        let output = $call?;
                        autodiff::grad(&[&reduce::sum(&output, &[], false)?], &[$(&$input),*], &[], false).map(drop)
                    }) as Run)
                }),
            });
        };
    }

    // A chain of tiny operations: what an operation costs beside its kernel.
    forward!("add 1", [a = make.numbers(&[1]), b = make.numbers(&[1])], elementwise::add(&a, &b));
    cases.push(Case {
        name: format!("{prefix}/chain of 100 on 1 and gradients"),
        prepare: Box::new(move || {
            let a = autodiff::track(&make.numbers(&[1])?)?;
            Ok(Box::new(move || {
                let mut value = a.clone();
                for _ in 0..100 {
                    value = elementwise::multiply(&value, &a)?;
                }
                autodiff::grad(&[&reduce::sum(&value, &[], false)?], &[&a], &[], false).map(drop)
            }) as Run)
        }),
    });
    for count in [10_000, 1_000_000] {
        let named = |operation: &str| format!("{operation} {count}");
        let shape = [count];
        forward!(named("add"), [a = make.numbers(&shape), b = make.numbers(&shape)], elementwise::add(&a, &b));
        forward!(
            named("multiply"),
            [a = make.numbers(&shape), b = make.numbers(&shape)],
            elementwise::multiply(&a, &b)
        );
        forward!(named("divide"), [a = make.numbers(&shape), b = make.numbers(&shape)], elementwise::divide(&a, &b));
        forward!(named("add-scalar"), [a = make.numbers(&shape)], elementwise::add_scalar(&a, 0.3));
        forward!(named("multiply-scalar"), [a = make.numbers(&shape)], elementwise::multiply_scalar(&a, 0.3));
        forward!(named("power-scalar 2"), [a = make.between(&shape, 0.5, 1.5)], elementwise::power_scalar(&a, 2.0));
        forward!(named("power-scalar 1.5"), [a = make.between(&shape, 0.5, 1.5)], elementwise::power_scalar(&a, 1.5));
        forward!(named("maximum"), [a = make.numbers(&shape), b = make.numbers(&shape)], elementwise::maximum(&a, &b));
        forward!(named("clamp"), [a = make.numbers(&shape)], elementwise::clamp(&a, -0.5, 0.5));
        forward!(named("negative"), [a = make.numbers(&shape)], elementwise::negative(&a));
        forward!(named("reciprocal"), [a = make.between(&shape, 0.5, 1.5)], elementwise::reciprocal(&a));
        forward!(named("absolute"), [a = make.numbers(&shape)], elementwise::absolute(&a));
        forward!(named("sign"), [a = make.numbers(&shape)], elementwise::sign(&a));
        forward!(named("exp"), [a = make.numbers(&shape)], elementwise::exp(&a));
        forward!(named("log"), [a = make.between(&shape, 0.5, 1.5)], elementwise::log(&a));
        forward!(named("sqrt"), [a = make.between(&shape, 0.5, 1.5)], elementwise::sqrt(&a));
        forward!(named("sin"), [a = make.between(&shape, -3.0, 3.0)], elementwise::sin(&a));
        forward!(named("cos"), [a = make.between(&shape, -3.0, 3.0)], elementwise::cos(&a));
        forward!(named("tanh"), [a = make.between(&shape, -3.0, 3.0)], elementwise::tanh(&a));
        forward!(named("erf"), [a = make.between(&shape, -3.0, 3.0)], elementwise::erf(&a));
        forward!(named("sigmoid"), [a = make.between(&shape, -3.0, 3.0)], elementwise::sigmoid(&a));
        both!(named("silu"), [a = make.between(&shape, -3.0, 3.0)], by[a], elementwise::silu(&a));
        forward!(named("less"), [a = make.numbers(&shape), b = make.numbers(&shape)], elementwise::less(&a, &b));
        forward!(named("equal"), [a = make.numbers(&shape), b = make.numbers(&shape)], elementwise::equal(&a, &b));
        forward!(named("is-finite"), [a = make.numbers(&shape)], elementwise::is_finite(&a));
        forward!(
            named("logical-and"),
            [a = positive(&make.numbers(&shape)?), b = positive(&make.between(&shape, -2.0, 1.0)?)],
            elementwise::logical_and(&a, &b)
        );
        forward!(named("logical-not"), [a = positive(&make.numbers(&shape)?)], elementwise::logical_not(&a));
        forward!(
            named("where"),
            [a = make.numbers(&shape), b = make.between(&shape, 1.0, 2.0), c = positive(&a)],
            elementwise::where_(&c, &a, &b)
        );
        forward!(named("sum"), [a = make.numbers(&shape)], reduce::sum(&a, &[], false));
        forward!(named("all"), [a = positive(&make.between(&shape, 1.0, 2.0)?)], reduce::all(&a));
        forward!(named("cast to int64"), [a = make.numbers(&shape)], op::cast(&a, DType::Int64));
        let other = if dtype == DType::Float32 { DType::Float64 } else { DType::Float32 };
        forward!(named("cast to the other float"), [a = make.numbers(&shape)], op::cast(&a, other));
        forward!(named("full"), [], Tensor::full(&Device::cpu(), &shape, 1.5, dtype));
        forward!(named("arange"), [], Tensor::arange(&Device::cpu(), count));
        forward!(named("random normal"), [], Random::new(1).normal(&Device::cpu(), &shape, 0.0, 1.0, dtype));
        forward!(named("random uniform"), [], Random::new(1).uniform(&Device::cpu(), &shape, 0.0, 1.0, dtype));
    }
    let wide = [4096, 128];
    both!("add row 4096x128", [a = make.numbers(&wide), b = make.numbers(&[128])], by [a, b], elementwise::add(&a, &b));
    both!(
        "multiply column 4096x128",
        [a = make.numbers(&wide), b = make.numbers(&[4096, 1])],
        by [a, b],
        elementwise::multiply(&a, &b)
    );
    forward!("sum last 4096x256", [a = make.numbers(&[4096, 256])], reduce::sum(&a, &[1], false));
    forward!("sum first 4096x256", [a = make.numbers(&[4096, 256])], reduce::sum(&a, &[0], false));
    forward!("sum middle 64x64x256", [a = make.numbers(&[64, 64, 256])], reduce::sum(&a, &[1], false));
    forward!("mean last 4096x256", [a = make.numbers(&[4096, 256])], reduce::mean(&a, &[1], false));
    forward!("maximum last 4096x256", [a = make.numbers(&[4096, 256])], reduce::maximum(&a, 1, false));
    forward!("maximum first 4096x256", [a = make.numbers(&[4096, 256])], reduce::maximum(&a, 0, false));

    both!("matmul 64", [a = make.numbers(&[64, 64]), b = make.numbers(&[64, 64])], by [a, b], linalg::matmul(&a, &b));
    both!("matmul 512", [a = make.numbers(&[512, 512]), b = make.numbers(&[512, 512])], by [a, b], linalg::matmul(&a, &b));
    forward!("matmul 1024", [a = make.numbers(&[1024, 1024]), b = make.numbers(&[1024, 1024])], linalg::matmul(&a, &b));
    both!(
        "matmul 2048x128x128",
        [a = make.numbers(&[2048, 128]), b = make.numbers(&[128, 128])],
        by [a, b],
        linalg::matmul(&a, &b)
    );
    both!(
        "matmul batched 256x32x64x32",
        [a = make.numbers(&[256, 32, 64]), b = make.numbers(&[256, 64, 32])],
        by [a, b],
        linalg::matmul(&a, &b)
    );
    forward!(
        "matmul batched 4096x8x8x8",
        [a = make.numbers(&[4096, 8, 8]), b = make.numbers(&[4096, 8, 8])],
        linalg::matmul(&a, &b)
    );
    forward!("solve 256", [a = diagonal_heavy(make, 256), b = make.numbers(&[256, 1])], solved(&a, &b));

    both!("softmax 256x8x32x32", [a = make.numbers(&[256, 8, 32, 32])], by[a], neural::softmax(&a, 3));
    both!("layer-norm 4096x128", [a = make.numbers(&wide)], by[a], neural::layer_norm(&a, 1e-5));
    both!("rms-norm 4096x128", [a = make.numbers(&wide)], by[a], neural::rms_norm(&a, 1e-5));
    both!(
        "linear 4096x128x512",
        [a = make.numbers(&wide), w = make.numbers(&[128, 512]), b = make.numbers(&[512])],
        by [a, w, b],
        neural::linear(&a, &w, Some(&b))
    );
    // The edges of a molecule whose forces are asked for.
    both!(
        "linear 72x128x512",
        [a = make.numbers(&[72, 128]), w = make.numbers(&[128, 512]), b = make.numbers(&[512])],
        by[a],
        neural::linear(&a, &w, Some(&b))
    );
    both!("gated-linear-unit 4096x512", [a = make.numbers(&[4096, 512])], by[a], neural::gated_linear_unit(&a));
    // 144 atoms with 8 neighbours and themselves; 128 with 31.
    for (count, size) in [(144, 9), (128, 32)] {
        let rows = count * size;
        both!(
            format!("attention {count}x{size}, 8 heads of 16"),
            [
                q = make.numbers(&[rows, 128]),
                k = make.numbers(&[rows, 128]),
                v = make.numbers(&[rows, 128]),
                bias = make.numbers(&[rows]),
                of = segments(count, size)
            ],
            by [q, k, v],
            neural::attention(&q, &k, &v, &bias, &of, count, 8, 0.25)
        );
    }

    both!(
        "select 100000x64",
        [a = make.numbers(&[20_000, 64]), at = indices(&[100_000], 20_000)],
        by[a],
        index::select(&a, 0, &at)
    );
    both!(
        "select last 4096x256",
        [a = make.numbers(&[4096, 256]), at = indices(&[64], 256)],
        by[a],
        index::select(&a, 1, &at)
    );
    forward!(
        "index-add 100000x64",
        [a = make.numbers(&[100_000, 64]), at = indices(&[100_000], 20_000)],
        index::index_add(&a, 0, &at, 20_000)
    );
    forward!(
        "gather 4096x256",
        [a = make.numbers(&[4096, 256]), at = indices(&[4096, 256], 256)],
        index::gather(&a, 1, &at)
    );
    forward!(
        "scatter-add 4096x256",
        [a = make.numbers(&[4096, 256]), at = indices(&[4096, 256], 256)],
        index::scatter_add(&a, 1, &at, 256)
    );
    forward!(
        "outer-sum 1024x8, 7 by 16",
        [l = make.numbers(&[8192, 7]), r = make.numbers(&[8192, 16]), of = segments(1024, 8)],
        segment::outer_sum(&l, &r, &of, 1024)
    );
    // A layer with its own weights for each of four species.
    forward!(
        "contract-left 4x256, 512 to 32",
        [l = make.numbers(&[1024, 512]), blocks = make.numbers(&[4, 512, 32]), of = segments(4, 256)],
        segment::contract_left(&l, &blocks, &of)
    );
    forward!(
        "contract-right 4x256, 32 to 512",
        [r = make.numbers(&[1024, 32]), blocks = make.numbers(&[4, 512, 32]), of = segments(4, 256)],
        segment::contract_right(&r, &blocks, &of)
    );

    forward!(
        "permute 2048x1024 and add",
        [a = make.numbers(&[2048, 1024])],
        elementwise::add_scalar(&shape::permute(&a, &[1, 0])?, 0.5)
    );
    forward!(
        "permute 256x64x64 and add",
        [a = make.numbers(&[256, 64, 64])],
        elementwise::add_scalar(&shape::permute(&a, &[0, 2, 1])?, 0.5)
    );
    forward!("reshape 4096x256", [a = make.numbers(&[4096, 256])], shape::reshape(&a, &[256, 4096]));
    forward!(
        "broadcast-to 4096x256 and add",
        [a = make.numbers(&[4096, 1])],
        elementwise::add_scalar(&shape::broadcast_to(&a, &[4096, 256])?, 0.5)
    );
    both!(
        "concatenate last 4096x(128, 128)",
        [a = make.numbers(&wide), b = make.numbers(&wide)],
        by [a, b],
        shape::concatenate(&[&a, &b], 1)
    );
    forward!(
        "concatenate first (4096, 4096)x128",
        [a = make.numbers(&wide), b = make.numbers(&wide)],
        shape::concatenate(&[&a, &b], 0)
    );
    both!("slice last 4096x256", [a = make.numbers(&[4096, 256])], by[a], shape::slice(&a, 1, 64, 192));

    forward!("solid-harmonics 100000, degree 4", [a = make.numbers(&[100_000, 3])], spherical::solid_harmonics(&a, 4));
    forward!(
        "piecewise-polynomial 100000, 16 cubics on 64 intervals",
        [x = make.between(&[100_000], 0.0, 5.0), c = make.numbers(&[64, 4, 16])],
        spherical::piecewise_polynomial(&x, &c, 0.0, 5.0)
    );
    cases.push(Case {
        name: format!("{prefix}/adam 20 of 128x512"),
        prepare: Box::new(move || {
            let tensors = (0..20).map(|_| make.numbers(&[128, 512])).collect::<Result<Vec<_>, _>>()?;
            let moments = (0..20).map(|_| make.between(&[128, 512], 0.0, 1.0)).collect::<Result<Vec<_>, _>>()?;
            let options = AdamOptions {
                learning_rate: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                decoupled: false,
                step: 100,
            };
            Ok(Box::new(move || {
                let (tensors, moments): (Vec<_>, Vec<_>) = (tensors.iter().collect(), moments.iter().collect());
                optimizer::adam(&tensors, &tensors, &tensors, &moments, &options).map(drop)
            }) as Run)
        }),
    });
    // Layers of 128, SiLU between them, and the gradients of all weights: what trainings are made of.
    both!(
        "network 4096x128",
        [a = make.numbers(&wide), v = make.numbers(&[128, 128]), w = make.between(&[128, 128], -0.9, 0.9)],
        by [v, w],
        neural::linear(&elementwise::silu(&neural::linear(&a, &v, None)?)?, &w, None)
    );
    cases
}

/// A matrix that is far from singular.
fn diagonal_heavy(make: Maker, size: usize) -> Result<Tensor, Misuse> {
    let diagonal: Vec<f64> = (0..size * size).map(|at| if at % (size + 1) == 0 { size as f64 } else { 0.0 }).collect();
    elementwise::add(
        &make.numbers(&[size, size])?,
        &Tensor::from_float64(&Device::cpu(), &[size, size], &diagonal, make.0)?,
    )
}

fn solved(a: &Tensor, b: &Tensor) -> Result<Tensor, Misuse> {
    linalg::solve(a, b).map(|solution| solution.unwrap_or_else(|_| b.clone()))
}

/// The seconds of one call, from as many as fit the time.
fn seconds(run: &Run) -> Result<f64, Misuse> {
    run()?;
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < LONG_ENOUGH {
        run()?;
        calls += 1;
    }
    Ok(start.elapsed().as_secs_f64() / f64::from(calls.max(1)))
}

#[expect(clippy::print_stdout, reason = "the answers of a benchmark")]
fn answer() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let cases: Vec<Case> = [DType::Float32, DType::Float64].into_iter().flat_map(cases_of).collect();
    if std::env::args().any(|argument| argument == "--list") {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(());
    }
    for name in std::io::stdin().lock().lines() {
        let name = name?;
        let case = cases.iter().find(|case| case.name == name).ok_or_else(|| format!("there is no case `{name}`"))?;
        println!("{}", seconds(&(case.prepare)()?)?);
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // On a thread that shares the kernels' work, as trainings are.
    kilnbox_host::on_worker(None, answer)?
}
