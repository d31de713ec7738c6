//! Operations that are promised, within a context and on a thread of a pool, cannot be told from others but by their time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kilnbox_tensor::context::{Context, Stopped};
use kilnbox_tensor::op::{elementwise, linalg, reduce, shape};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};
use rayon::prelude::*;

fn unbounded() -> Arc<Context> {
    Context::new(usize::MAX, f64::INFINITY)
}

/// What `work` gives on a thread of a pool of so many, within `context`.
fn within<T: Send>(threads: usize, context: &Arc<Context>, work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    pool.install(|| {
        let _entered = context.enter();
        work()
    })
}

fn normal(shape: &[usize], seed: u64) -> Result<Tensor, Misuse> {
    Random::new(seed).normal(&Device::cpu(), shape, 0.0, 1.0, DType::Float32)
}

/// A few hundred operations of all sizes, of which the last ones need the first; `look` is asked after each.
fn chain(seed: u64, look: impl Fn(&Tensor) -> Result<(), Misuse>) -> Result<Tensor, Misuse> {
    let weight = autodiff::track(&elementwise::multiply_scalar(&normal(&[96, 96], seed)?, 0.1)?)?;
    let mut x = normal(&[200, 96], seed + 1)?;
    let first = x.clone();
    for k in 0..60 {
        x = elementwise::tanh(&linalg::matmul(&x, &weight)?)?;
        look(&x)?;
        let part = shape::slice(&x, 0, k, k + 3)?;
        look(&part)?;
        x = elementwise::add(&x, &reduce::sum(&part, &[], false)?)?;
        x = shape::reshape(&shape::reshape(&x, &[96, 200])?, &[200, 96])?;
    }
    let loss = reduce::sum(&elementwise::multiply(&x, &first)?, &[], false)?;
    let gradients = autodiff::grad(&[&loss], &[&weight], &[], false)?;
    elementwise::add(&gradients[0], &loss)
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>, Misuse> {
    Ok(tensor.read_float32()?.into_iter().map(f32::to_bits).collect())
}

#[test]
fn what_is_promised_has_the_same_bits_whoever_looks_when() -> Result<(), Misuse> {
    // On this thread, which is of no pool, nothing is promised.
    let expected = bits(&chain(1, |_| Ok(()))?)?;
    for threads in [1, 2, 3, 8] {
        let lazily = within(threads, &unbounded(), || chain(1, |_| Ok(())).and_then(|tensor| bits(&tensor)))?;
        assert!(lazily == expected, "with {threads} threads");
        let at_once = |tensor: &Tensor| tensor.read_float32().map(drop);
        let eagerly = within(threads, &unbounded(), || chain(1, at_once).and_then(|tensor| bits(&tensor)))?;
        assert!(eagerly == expected, "with {threads} threads that look at every value");
    }
    Ok(())
}

#[test]
fn a_context_is_left_when_everything_has_been_computed() -> Result<(), Misuse> {
    let expected = bits(&chain(1, |_| Ok(()))?)?;
    let context = unbounded();
    for _ in 0..10 {
        let left = within(2, &context, || autodiff::detach(&chain(1, |_| Ok(()))?))?;
        let used = context.quota().used();
        assert!(used < 100_000, "{used} bytes are counted beside the result's 36864");
        // Here it is nobody's to compute any more.
        assert!(bits(&left)? == expected);
    }
    assert_eq!(context.quota().used(), 0);
    Ok(())
}

#[test]
fn runs_side_by_side_do_not_wait_for_one_another() -> Result<(), Misuse> {
    let expected: Vec<Vec<u32>> =
        (0..12).map(|seed| chain(seed, |_| Ok(())).and_then(|tensor| bits(&tensor))).collect::<Result<_, _>>()?;
    for threads in [2, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let found: Vec<Vec<u32>> = pool.install(|| {
            (0..12_u32)
                .into_par_iter()
                .with_max_len(1)
                .map(|seed| {
                    let _entered = unbounded().enter();
                    let looks = |tensor: &Tensor| if seed % 2 == 0 { bits(tensor).map(drop) } else { Ok(()) };
                    chain(seed.into(), looks).and_then(|tensor| bits(&tensor))
                })
                .collect::<Result<_, _>>()
        })?;
        assert!(found == expected, "with {threads} threads");
    }
    Ok(())
}

#[test]
fn memory_is_refused_for_what_is_alive_and_not_for_what_is_yet_to_be_computed() -> Result<(), Misuse> {
    const BYTES: usize = 1 << 20;
    // Two values are alive at a time.
    let context = Context::new(5 * BYTES / 2, f64::INFINITY);
    let refused = within(2, &context, || {
        let mut x = Tensor::full(&Device::cpu(), &[BYTES / 4], 0.0, DType::Float32)?;
        for _ in 0..500 {
            x = elementwise::add_scalar(&x, 1.0)?;
        }
        assert!(x.read_float32()?.iter().all(|&value| value == 500.0));
        let more = [elementwise::add_scalar(&x, 1.0)?];
        Ok::<_, Misuse>(elementwise::add(&x, &more[0]).err())
    })?;
    assert_eq!(refused.and_then(|misuse| misuse.limit), Some("tensor_bytes"));
    assert_eq!(context.quota().used(), 0);
    assert!(context.quota().peak() <= context.quota().limit());
    Ok(())
}

#[test]
fn a_run_that_is_stopped_ends_soon_with_all_that_was_promised() {
    let context = unbounded();
    let other = context.clone();
    let watch = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        other.stop();
        Instant::now()
    });
    let (ended, last) = within(2, &context, || {
        let mut last = None;
        // Nothing is ever looked at.
        let ended = catch_unwind(AssertUnwindSafe(|| -> Result<(), Misuse> {
            let a = Tensor::full(&Device::cpu(), &[300, 300], 1.0, DType::Float64)?;
            loop {
                last = Some(linalg::matmul(&a, &a)?);
            }
        }));
        (ended, catch_unwind(AssertUnwindSafe(|| last.map(|tensor| tensor.read_float64()))))
    });
    let since = Instant::now().saturating_duration_since(watch.join().expect("a watch"));
    assert!(ended.is_err_and(|panic| panic.is::<Stopped>()));
    // It was computed before, or never will be.
    assert!(last.is_ok() || last.is_err_and(|panic| panic.is::<Stopped>()));
    // A machine that is busy with other tests gets more than a moment.
    assert!(since < Duration::from_secs(2), "it went on for {since:?}");
    assert_eq!(context.quota().used(), 0);
    // Nothing is computed any more, but what is there can be read.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        within(2, &context, || normal(&[2, 2], 1).and_then(|a| linalg::matmul(&a, &a)))
    }));
    assert!(ended.is_err_and(|panic| panic.is::<Stopped>()));
}
