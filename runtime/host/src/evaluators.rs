//! Small evaluations side by side: each on a thread and in an instance of its own.
//!
//! Between the kernels of a small system lies as much as in them: calls of the guest, histories, operands that are still in another processor's cache. None of that is shared by
//! threads that share kernels, and all of it by threads that evaluate different systems. So where there are many, a session has others do it that are as it is, and
//! [go on alone](kilnbox_tensor::context::Context::compute_alone): an answer has the same bits whoever gives it.
//!
//! They are help, and nothing depends on them. Where one cannot be had or fails, the session goes on by itself, from there on or from what is missing, and what goes wrong there is what is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use kilnbox_data::{BatchData, Batches, DataError};

use crate::evaluate::{EvaluatedOutput, EvaluationTask};
use crate::limits::Limits;
use crate::session::{Model, Session, THREAD_STACK};

/// Starts the model of a session once more, within these limits; none if that cannot be. It is called on the thread that the session will live on.
pub type Another<'a> = dyn Fn(Limits) -> Option<(Session, Model)> + Sync + 'a;

/// An evaluator for fewer evaluations costs as much to start as it saves.
const FEWEST_EACH: usize = 3;
/// What an evaluation may take, over what one of as many atoms took: their neighbours differ.
const MARGIN: u64 = 2;

/// Those that evaluate side by side, before they have been started.
pub(crate) struct Evaluators<'a> {
    task: &'a EvaluationTask<'a>,
    another: &'a Another<'a>,
    count: usize,
    /// What each may use.
    limits: Limits,
}

/// What came of one evaluation, and how long it took: its share of the time, so that those of all add up to the whole.
pub(crate) type Answer = (Vec<EvaluatedOutput>, f64);

impl<'a> Evaluators<'a> {
    /// As many as are worth it for so many evaluations, each of which takes about `bytes` bytes of tensors, and as fit into `limits` together; none if that is not more than one.
    pub(crate) fn new(
        task: &'a EvaluationTask<'a>,
        another: &'a Another<'a>,
        evaluations: usize,
        bytes: u64,
        limits: &Limits,
    ) -> Option<Self> {
        let fitting = usize::try_from(limits.tensor_bytes / bytes.saturating_mul(MARGIN).max(1)).unwrap_or(usize::MAX);
        let count = rayon::current_num_threads().min(evaluations / FEWEST_EACH).min(fitting);
        (count > 1).then(|| Self { task, another, count, limits: limits.shared_by(count as u64) })
    }

    /// Evaluates the next `evaluations` of `batches`, and gives the answers to `on_answer` in order. What it gives back are those after the first that is missing, by their
    /// number; and how many came before that. All there were, if none is missing.
    pub(crate) fn evaluate(
        &self,
        evaluations: usize,
        batches: &mut Batches,
        on_answer: &mut dyn FnMut(usize, Answer),
    ) -> (usize, BTreeMap<usize, Answer>) {
        let desk = Desk { next: Mutex::new((0..evaluations, batches)), is_over: AtomicBool::new(false) };
        let (sender, answers) = mpsc::channel();
        let mut waiting = BTreeMap::new();
        let mut done = 0;
        thread::scope(|scope| {
            for _ in 0..self.count {
                let (desk, sender) = (&desk, sender.clone());
                let evaluator = thread::Builder::new().stack_size(THREAD_STACK).name("evaluator".to_owned());
                // Without this thread there is one less.
                let _ = evaluator.spawn_scoped(scope, move || self.work(desk, &sender));
            }
            drop(sender);
            for (number, answer) in answers {
                waiting.insert(number, answer);
                while let Some(answer) = waiting.remove(&done) {
                    on_answer(done, answer);
                    done += 1;
                }
            }
        });
        (done, waiting)
    }

    /// What one of them does, on its thread. It ends when nothing is left, or when one of them has failed.
    fn work(&self, desk: &Desk<'_>, answers: &mpsc::Sender<(usize, Answer)>) {
        let Some((mut session, model)) = (self.another)(self.limits.clone()) else { return };
        session.compute_alone();
        loop {
            let start = Instant::now();
            let Some((number, batch)) = desk.take() else { return };
            let outputs = batch.ok().and_then(|batch| session.evaluate_data(&model, self.task, batch).ok());
            let Some(outputs) = outputs else { return desk.close() };
            let seconds = start.elapsed().as_secs_f64() / self.count as f64;
            // Nobody hears it if the session's thread has panicked.
            let _ = answers.send((number, (outputs, seconds)));
        }
    }
}

/// Where evaluators get what is next.
struct Desk<'a> {
    next: Mutex<(std::ops::Range<usize>, &'a mut Batches)>,
    is_over: AtomicBool,
}

impl Desk<'_> {
    /// The number of the next evaluation, and its batch.
    fn take(&self) -> Option<(usize, Result<BatchData, DataError>)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, batches) = &mut *next;
        if self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        let number = numbers.next()?;
        batches.next().transpose().map(|batch| (number, batch))
    }

    fn close(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
