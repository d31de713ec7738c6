//! `report` and `errors`.

use wasmtime::Result;

use super::State;
use super::bindings::kilnbox::architecture::report;
use crate::service::report::{Level, Metric};

/// Types only.
impl super::bindings::kilnbox::architecture::errors::Host for State {}

impl report::Host for State {
    fn log(&mut self, level: report::Level, message: String) -> Result<()> {
        let level = match level {
            report::Level::Debug => Level::Debug,
            report::Level::Info => Level::Info,
            report::Level::Warning => Level::Warning,
        };
        self.reporter.log(level, &message);
        Ok(())
    }

    fn step(&mut self, epoch: u32, epochs: u32, done: u32, total: u32) -> Result<()> {
        self.reporter.step(epoch, epochs, done, total);
        Ok(())
    }

    fn epoch(&mut self, epoch: u32, learning_rate: f64, metrics: Vec<report::Metric>) -> Result<()> {
        let metrics = metrics
            .into_iter()
            .map(|metric| Metric { set: metric.set, name: metric.name, unit: metric.unit, value: metric.value })
            .collect();
        self.reporter.epoch(epoch, learning_rate, metrics);
        Ok(())
    }

    fn panic(&mut self, message: String) -> Result<()> {
        self.reporter.panic(&message);
        Ok(())
    }
}
