//! What the user is told.

use crate::{contract::report, metrics::Metric};

/// A line in the log.
pub fn info(message: &str) {
    report::log(report::Level::Info, message);
}

/// Something the user should look at.
pub fn warning(message: &str) {
    report::log(report::Level::Warning, message);
}

/// For the architecture's developer; hidden by default.
pub fn debug(message: &str) {
    report::log(report::Level::Debug, message);
}

/// Moves the progress bar: `done` of `total` steps of the epoch are done.
pub fn step(epoch: u32, epochs: u32, done: usize, total: usize) {
    report::step(epoch, epochs, done as u32, total as u32);
}

/// The results of an epoch: a line in the log and a row in the table. The first call decides the columns.
pub fn epoch(epoch: u32, learning_rate: f64, training: &[Metric], validation: &[Metric]) {
    let named = |set: &str, metrics: &[Metric]| {
        let metric = |metric: &Metric| report::Metric {
            set: set.to_owned(),
            name: metric.name.clone(),
            unit: metric.unit.clone(),
            value: metric.value,
        };
        metrics.iter().map(metric).collect::<Vec<_>>()
    };
    report::epoch(epoch, learning_rate, &[named("training", training), named("validation", validation)].concat());
}
