//! A model over a dataset: small evaluations go on side by side, and nothing but the time they take shows it.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};

use kilnbox_data::Dataset;
use kilnbox_host::{
    Another, Checkpoint, Component, Context, EvaluatedOutput, EvaluationRequest, EvaluationTask, HostError, Limits,
    Model, Session,
};
use kilnbox_tensor::DType;
use kilnbox_tests::{Nobody, Untrained, on_processor};

type Fallible<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// More than this machine may have, so that the test is the same on all.
const THREADS: usize = 3;
/// As deep as those that the program starts.
const STACK: usize = 64 << 20;

/// A small model of ethanol that has learnt nothing, to be started as often as it is wanted, and structures.
struct Scene {
    component: Component,
    checkpoint: Checkpoint,
    structures: Dataset,
}

impl Scene {
    fn new() -> Fallible<Self> {
        let Untrained { component, mut session, model, mut training } = Untrained::new(DType::Float32)?;
        let checkpoint = session.model_checkpoint(&model)?;
        Ok(Self { component, checkpoint, structures: training.training.swap_remove(0) })
    }

    fn start(&self, limits: Limits) -> Result<(Session, Model), HostError> {
        let mut session = Session::start(&self.component, on_processor(limits), Box::new(Nobody))?;
        let model = session.load_model(&self.checkpoint, Context::Export)?;
        Ok((session, model))
    }

    /// Energies and forces of all structures, so many at a time, as text; on a thread for which kernels are shared.
    fn answers(&self, batch_size: usize, another: &Another<'_>) -> Fallible<Vec<String>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).stack_size(STACK).build()?;
        pool.install(|| {
            let (mut session, model) = self.start(Limits::default())?;
            let output = session.export_model(&model)?.outputs.swap_remove(0);
            let requests = [EvaluationRequest { output, position_gradients: true, strain_gradients: false }];
            let task =
                EvaluationTask { dataset: &self.structures, requests: &requests, dtype: DType::Float32, batch_size };
            let mut answers = Vec::new();
            session.evaluate(&model, &task, another, &mut |batch| {
                assert!(batch.seconds > 0.0);
                answers.push(words(&batch.indices, &batch.outputs));
            })?;
            Ok(answers)
        })
    }
}

/// Every digit of them.
fn words(indices: &[u32], outputs: &[EvaluatedOutput]) -> String {
    format!("{indices:?} {outputs:?}")
}

#[test]
fn evaluations_side_by_side_give_the_same_bits_in_the_same_order() -> Fallible {
    let scene = Scene::new()?;
    for batch_size in [1, 3] {
        let alone = scene.answers(batch_size, &|_| None)?;
        assert_eq!(alone.len(), scene.structures.len().div_ceil(batch_size));
        let started = AtomicUsize::new(0);
        let beside = scene.answers(batch_size, &|limits| {
            started.fetch_add(1, Ordering::Relaxed);
            assert!(limits.tensor_bytes <= Limits::default().tensor_bytes / THREADS as u64, "{limits:?}");
            scene.start(limits).ok()
        })?;
        assert_eq!(started.into_inner(), THREADS, "batches of {batch_size}");
        assert_eq!(beside, alone, "batches of {batch_size}");
    }
    Ok(())
}

#[test]
fn where_an_evaluator_fails_the_session_goes_on_by_itself() -> Fallible {
    let scene = Scene::new()?;
    let alone = scene.answers(1, &|_| None)?;
    // What one may use that loads the model, and has not evaluated anything.
    let (session, _model) = scene.start(Limits::default())?;
    let too_little = Limits { tensor_bytes: session.peak_tensor_bytes() as u64, ..Limits::default() };
    drop(session);
    for failing in [1, THREADS] {
        let started = AtomicUsize::new(0);
        let beside = scene.answers(1, &|limits| {
            let fails = started.fetch_add(1, Ordering::Relaxed) < failing;
            scene.start(if fails { too_little.clone() } else { limits }).ok()
        })?;
        assert_eq!(started.into_inner(), THREADS, "{failing} that fail");
        assert_eq!(beside, alone, "{failing} that fail");
    }
    Ok(())
}

#[test]
fn few_evaluations_are_not_worth_another_session() -> Fallible {
    let mut scene = Scene::new()?;
    scene.structures = scene.structures.select(&[0, 1, 2, 3, 4])?;
    let answers = scene.answers(1, &|_| unreachable!("nothing else is to be started"))?;
    assert_eq!(answers.len(), 5);
    Ok(())
}

/// Gradients were taken after the session's call once, and so without its limits.
#[test]
fn all_of_an_evaluation_is_within_the_limits_of_its_session() -> Fallible {
    let scene = Scene::new()?;
    let (mut session, model) = scene.start(Limits::default())?;
    let output = session.export_model(&model)?.outputs.swap_remove(0);
    let requests = [EvaluationRequest { output, position_gradients: true, strain_gradients: false }];
    let task =
        EvaluationTask { dataset: &scene.structures, requests: &requests, dtype: DType::Float32, batch_size: 100 };
    // Whoever calls has nothing to give.
    let _entered = kilnbox_tensor::context::Context::new(0, 0.0).enter();
    session.evaluate(&model, &task, &|_| None, &mut |_| ())?;
    Ok(())
}
