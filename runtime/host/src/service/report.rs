//! What an architecture tells the user, and to whom it goes.

use std::collections::HashMap;
use std::time::Instant;

use crate::error::{escaped, printable};
use crate::limits::Limits;
use crate::service::checkpoint::Checkpoint;

/// The longest name or unit of a metric, in characters.
const LONGEST_NAME: usize = 128;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the architecture's developer.
    Debug,
    /// For the log.
    Info,
    /// Something to look at.
    Warning,
}

/// A number that describes an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Of which data: `training` or `validation`.
    pub set: String,
    /// What it is.
    pub name: String,
    /// Its unit; may be empty.
    pub unit: String,
    /// The value.
    pub value: f64,
}

/// Whoever looks on while an architecture works: the program that started it. Text has been escaped and cut.
pub trait Observer: Send {
    /// A message for the log.
    fn log(&mut self, level: Level, message: &str);
    /// So many steps of an epoch are done. Epochs count from 0.
    fn step(&mut self, epoch: u32, epochs: u32, done: u32, total: u32);
    /// The results of an epoch.
    fn epoch(&mut self, epoch: u32, learning_rate: f64, metrics: &[Metric]);
    /// Keeps a checkpoint under a name that is fit for a file.
    ///
    /// # Errors
    /// A sentence for people: the architecture is told that it was not kept.
    fn save_checkpoint(&mut self, name: &str, checkpoint: Checkpoint) -> Result<(), String>;
}

/// The way from an architecture to the observer: escapes, cuts, and drops what is too much.
pub struct Reporter {
    observer: Box<dyn Observer>,
    limits: Limits,
    lines_left: u64,
    rate: Rate,
    /// Messages that came too fast, since the last one that was passed on.
    dropped: u64,
    last_words: Option<String>,
    /// The bytes of each checkpoint that was kept, by its name.
    kept: HashMap<String, u64>,
}

/// An average rate that may be exceeded for a moment.
struct Rate {
    per_second: f64,
    /// What may still be used at once; it fills up again with time.
    left: f64,
    since: Instant,
}

impl Rate {
    /// So many seconds' worth may come at once.
    const AT_ONCE: f64 = 8.0;

    fn new(per_second: u64) -> Self {
        let per_second = per_second as f64;
        Self { per_second, left: per_second * Self::AT_ONCE, since: Instant::now() }
    }

    fn takes(&mut self, amount: usize) -> bool {
        let gained = self.since.elapsed().as_secs_f64() * self.per_second;
        self.since = Instant::now();
        self.left = (self.left + gained).min(self.per_second * Self::AT_ONCE) - amount as f64;
        if self.left < 0.0 {
            self.left += amount as f64;
            return false;
        }
        true
    }
}

/// What a line of the log takes beside its message: when, and how much it matters.
const LINE_OVERHEAD: usize = 32;

impl Reporter {
    /// A reporter that passes on what `limits` allow.
    pub fn new(observer: Box<dyn Observer>, limits: &Limits) -> Self {
        Self {
            observer,
            limits: limits.clone(),
            lines_left: limits.log_lines,
            rate: Rate::new(limits.log_bytes_per_second),
            dropped: 0,
            last_words: None,
            kept: HashMap::new(),
        }
    }

    /// Whether a line of so many bytes may be passed on.
    fn may_pass(&mut self, bytes: usize) -> bool {
        if self.lines_left == 0 {
            return false;
        }
        if !self.rate.takes(bytes + LINE_OVERHEAD) {
            self.dropped += 1;
            return false;
        }
        if self.dropped > 0 {
            let (dropped, most) = (self.dropped, self.limits.log_bytes_per_second);
            let message = format!(
                "{dropped} messages of the architecture were dropped: they were more than {most} bytes a second (`log_bytes_per_second`)"
            );
            self.observer.log(Level::Warning, &message);
            self.dropped = 0;
        }
        self.lines_left -= 1;
        if self.lines_left == 0 {
            let most = self.limits.log_lines;
            let message = format!("the architecture has logged {most} lines: later messages are dropped (`log_lines`)");
            self.observer.log(Level::Warning, &message);
        }
        true
    }

    /// A message for the log.
    pub fn log(&mut self, level: Level, message: &str) {
        let message = printable(message);
        if self.may_pass(message.len()) {
            self.observer.log(level, &message);
        }
    }

    /// A line that a client writes, whole: it is a result, not a message.
    pub(crate) fn output(&mut self, level: Level, line: &str) {
        self.observer.log(level, &escaped(line));
    }

    /// Progress within an epoch.
    pub fn step(&mut self, epoch: u32, epochs: u32, done: u32, total: u32) {
        self.observer.step(epoch, epochs, done.min(total), total);
    }

    /// The results of an epoch.
    pub fn epoch(&mut self, epoch: u32, learning_rate: f64, metrics: Vec<Metric>) {
        let metrics: Vec<Metric> = metrics
            .into_iter()
            .take(usize::try_from(self.limits.metrics).unwrap_or(usize::MAX))
            .map(|metric| Metric {
                set: short(&metric.set),
                name: short(&metric.name),
                unit: short(&metric.unit),
                value: metric.value,
            })
            .collect();
        // Each number stands in the log and in the table.
        let bytes = metrics.iter().map(|metric| metric.set.len() + metric.name.len() + metric.unit.len() + 32).sum();
        if self.may_pass(bytes) {
            self.observer.epoch(epoch, learning_rate, &metrics);
        }
    }

    /// The architecture is about to panic; the trap that follows is shown with this message.
    pub fn panic(&mut self, message: &str) {
        self.last_words = Some(printable(message));
    }

    /// What the architecture said before it trapped.
    pub fn take_last_words(&mut self) -> Option<String> {
        self.last_words.take()
    }

    /// Hands a checkpoint to the observer.
    ///
    /// # Errors
    /// A sentence: of the observer's, or about a limit. Nothing was kept, and an earlier one of this name is as it was.
    pub fn save_checkpoint(&mut self, name: &str, checkpoint: Checkpoint) -> Result<(), String> {
        let bytes = checkpoint.bytes();
        self.check_size(bytes)?;
        let others: u64 = self.kept.iter().filter(|(other, _)| *other != name).map(|(_, bytes)| bytes).sum();
        let Limits { disk_bytes, checkpoints, .. } = self.limits;
        if others.saturating_add(bytes) > disk_bytes {
            return Err(format!(
                "the checkpoint `{name}` has {bytes} bytes beside {others} of others, at most {disk_bytes} are kept (`disk_bytes`)"
            ));
        }
        if !self.kept.contains_key(name) && self.kept.len() as u64 >= checkpoints {
            return Err(format!("there are {checkpoints} checkpoints already, and no more are kept (`checkpoints`)"));
        }
        self.observer.save_checkpoint(name, checkpoint)?;
        self.kept.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Checks the size of a checkpoint that shall be kept.
    ///
    /// # Errors
    /// A sentence.
    pub fn check_size(&self, bytes: u64) -> Result<(), String> {
        let most = self.limits.checkpoint_bytes;
        if bytes <= most {
            return Ok(());
        }
        Err(format!("the checkpoint has {bytes} bytes, at most {most} are kept (`checkpoint_bytes`)"))
    }
}

/// A name on one line.
fn short(text: &str) -> String {
    printable(&text.replace(['\n', '\t'], " ")).chars().take(LONGEST_NAME).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use kilnbox_tensor::{DType, Device, Tensor};

    use super::*;

    /// Passes on what it is told, a line each.
    struct Telling(Sender<String>);

    impl Observer for Telling {
        fn log(&mut self, _: Level, message: &str) {
            let _ = self.0.send(message.to_owned());
        }

        fn step(&mut self, _: u32, _: u32, _: u32, _: u32) {}

        fn epoch(&mut self, epoch: u32, _: f64, metrics: &[Metric]) {
            let _ = self.0.send(format!("epoch {epoch}: {} metrics", metrics.len()));
        }

        fn save_checkpoint(&mut self, name: &str, _: Checkpoint) -> Result<(), String> {
            let _ = self.0.send(format!("checkpoint {name}"));
            Ok(())
        }
    }

    fn reporter(limits: Limits) -> (Reporter, Receiver<String>) {
        let (sender, receiver) = channel();
        (Reporter::new(Box::new(Telling(sender)), &limits), receiver)
    }

    #[test]
    fn lines_are_passed_on_up_to_the_bound() {
        let (mut reporter, told) = reporter(Limits { log_lines: 2, ..Limits::default() });
        for line in ["first", "second", "third"] {
            reporter.log(Level::Info, line);
        }
        reporter.epoch(7, 1.0, Vec::new());
        let told: Vec<String> = told.try_iter().collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0] == "first" && told[1].contains("`log_lines`") && told[2] == "second", "{told:?}");
    }

    #[test]
    fn a_flood_is_cut_to_the_rate_and_counted() {
        // Eight seconds' worth at once: 800 bytes, of which each line takes 82.
        let (mut reporter, told) = reporter(Limits { log_bytes_per_second: 100, ..Limits::default() });
        let line = "x".repeat(50);
        (0..100_000).for_each(|_| reporter.log(Level::Info, &line));
        std::thread::sleep(std::time::Duration::from_millis(900));
        reporter.log(Level::Info, "later");
        let told: Vec<String> = told.try_iter().collect();
        // 100 000 calls take far less than the second that each further line needs on a quiet machine, and a few on a busy one.
        assert!((9..=20).contains(&told.iter().filter(|message| **message == line).count()), "{told:?}");
        assert!(told.iter().any(|message| message.contains("messages of the architecture were dropped")), "{told:?}");
        assert_eq!(told.last().map(String::as_str), Some("later"));
    }

    #[test]
    fn metrics_and_checkpoints_are_bounded() {
        let limits = Limits { metrics: 3, checkpoints: 2, checkpoint_bytes: 102, disk_bytes: 150, ..Limits::default() };
        let (mut reporter, told) = reporter(limits);
        let metric = Metric { set: "training".into(), name: "loss".into(), unit: String::new(), value: 1.0 };
        reporter.epoch(0, 0.1, vec![metric; 10]);
        let mut save = |name: &str, floats: usize| {
            let tensor = Tensor::full(&Device::cpu(), &[floats], 0.0, DType::Float32).unwrap();
            let tensors = vec![("a".to_owned(), tensor)];
            // Two bytes of data.
            let data = "{}".to_owned();
            let checkpoint = Checkpoint { model_version: 1, trainer_version: 1, epoch: None, data, tensors };
            reporter.save_checkpoint(name, checkpoint)
        };
        assert!(save("a", 26).is_err_and(|message| message.contains("`checkpoint_bytes`")));
        assert_eq!(save("a", 25), Ok(()));
        assert_eq!(save("b", 11), Ok(()));
        assert!(save("b", 12).is_err_and(|message| message.contains("`disk_bytes`")));
        assert_eq!(save("a", 20), Ok(()), "one that is replaced does not count twice");
        assert!(save("c", 0).is_err_and(|message| message.contains("`checkpoints`")));
        let told: Vec<String> = told.try_iter().collect();
        assert_eq!(told, ["epoch 0: 3 metrics", "checkpoint a", "checkpoint b", "checkpoint a"]);
    }
}
