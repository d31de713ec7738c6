//! What an architecture tells the user, and to whom it goes.

use crate::error::printable;
use crate::service::checkpoint::Checkpoint;

/// The most metrics of one epoch.
const MOST_METRICS: usize = 256;
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
    lines_left: usize,
    last_words: Option<String>,
}

impl Reporter {
    /// A reporter that passes on at most `log_lines` messages.
    pub fn new(observer: Box<dyn Observer>, log_lines: usize) -> Self {
        Self { observer, lines_left: log_lines, last_words: None }
    }

    /// A message for the log.
    pub fn log(&mut self, level: Level, message: &str) {
        if self.lines_left == 0 {
            return;
        }
        self.lines_left -= 1;
        self.observer.log(level, &printable(message));
        if self.lines_left == 0 {
            self.observer.log(Level::Warning, "the architecture has logged too much: its later messages are dropped");
        }
    }

    /// Progress within an epoch.
    pub fn step(&mut self, epoch: u32, epochs: u32, done: u32, total: u32) {
        self.observer.step(epoch, epochs, done.min(total), total);
    }

    /// The results of an epoch.
    pub fn epoch(&mut self, epoch: u32, learning_rate: f64, metrics: Vec<Metric>) {
        let metrics: Vec<Metric> = metrics
            .into_iter()
            .take(MOST_METRICS)
            .map(|metric| Metric {
                set: short(&metric.set),
                name: short(&metric.name),
                unit: short(&metric.unit),
                value: metric.value,
            })
            .collect();
        self.observer.epoch(epoch, learning_rate, &metrics);
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
    /// A sentence from the observer.
    pub fn save_checkpoint(&mut self, name: &str, checkpoint: Checkpoint) -> Result<(), String> {
        self.observer.save_checkpoint(name, checkpoint)
    }
}

/// A name on one line.
fn short(text: &str) -> String {
    printable(&text.replace(['\n', '\t'], " ")).chars().take(LONGEST_NAME).collect()
}
