//! A run that is stopped from outside ends within a second, even inside a kernel that would last for minutes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use kilnbox_tensor::context::{Context, Stopped};
use kilnbox_tensor::op::{elementwise, linalg, neural, segment, shape};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Misuse, Tensor, autodiff};
use support::{device, on_each_device, tests_processor};

mod support;

/// When a run is stopped: its operands are there, and its kernel takes many times as long.
const BEFORE: Duration = Duration::from_millis(600);
/// How long it may go on. The host promises a second; a machine that is busy with other tests gets another one. Kernels ask every few milliseconds, or hundredths of a second in large products.
const AFTER: Duration = Duration::from_secs(2);

/// Runs `long`, stops it, and checks that it was still running and soon ends.
fn stopped(name: &str, long: impl FnOnce() -> Result<(), Misuse>) {
    let context = Context::new(usize::MAX, f64::INFINITY);
    let other = context.clone();
    let watch = std::thread::spawn(move || {
        std::thread::sleep(BEFORE);
        other.stop();
        Instant::now()
    });
    let result = {
        let _entered = context.enter();
        catch_unwind(AssertUnwindSafe(long))
    };
    let ended = Instant::now();
    let since = ended.saturating_duration_since(watch.join().unwrap_or(ended));
    match result {
        Err(panic) => assert!(panic.is::<Stopped>(), "{name} panicked"),
        Ok(result) => panic!("{name} was done ({result:?}) before it could be stopped"),
    }
    assert!(since < AFTER, "{name} went on for {since:?}");
    assert_eq!(context.quota().used(), 0, "{name} left memory behind");
}

fn ones(shape: &[usize]) -> Result<Tensor, Misuse> {
    Tensor::full(&device(), shape, 1.0, DType::Float32)
}

/// Those of the processor; what another device has begun it brings to its end.
#[test]
fn kernels_end_when_they_are_stopped() {
    if !tests_processor() {
        return;
    }
    stopped("matmul", || linalg::matmul(&ones(&[12_000, 4000])?, &ones(&[4000, 12_000])?).map(drop));
    stopped("batched matmul", || linalg::matmul(&ones(&[8, 1, 3000, 3000])?, &ones(&[4, 3000, 1500])?).map(drop));
    stopped("outer-sum", || {
        let rows = ones(&[20_000, 4000])?;
        segment::outer_sum(&rows, &rows, &Tensor::full(&device(), &[20_000], 0.0, DType::Int64)?, 1).map(drop)
    });
    stopped("attention", || {
        let (rows, bias) = (ones(&[12_000, 512])?, ones(&[12_000])?);
        let one = Tensor::full(&device(), &[12_000], 0.0, DType::Int64)?;
        loop {
            neural::attention(&rows, &rows, &rows, &bias, &one, 1, 1, 0.1)?;
        }
    });
    stopped("solve", || {
        let matrix = Random::new(0).normal(&device(), &[3000, 3000], 0.0, 1.0, DType::Float64)?;
        linalg::solve(&matrix, &matrix).map(drop)
    });
    stopped("full", || {
        loop {
            ones(&[1 << 29])?;
        }
    });
    stopped("random.normal", || Random::new(0).normal(&device(), &[200_000_000], 0.0, 1.0, DType::Float64).map(drop));
}

#[test]
fn ways_back_end_when_they_are_stopped() -> Result<(), Misuse> {
    on_each_device(|| {
        check_ways_back();
        Ok(())
    })
}

fn check_ways_back() {
    stopped("grad", || {
        let x = autodiff::track(&ones(&[])?)?;
        let mut end = x.clone();
        for _ in 0..100_000 {
            end = elementwise::add_scalar(&end, 1.0)?;
        }
        loop {
            autodiff::grad(&[&end], &[&x], &[], false)?;
        }
    });
}

#[test]
fn a_stopped_run_does_not_disturb_the_next_on_its_thread() -> Result<(), Misuse> {
    on_each_device(|| {
        stopped("reshape", || {
            loop {
                shape::reshape(&ones(&[2])?, &[2, 1])?;
            }
        });
        assert_eq!(ones(&[2])?.read_float32()?, [1.0, 1.0]);
        Ok(())
    })
}
