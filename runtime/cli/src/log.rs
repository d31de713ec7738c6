//! What the user sees while a run goes on: `train.log`, `train.csv`, and the terminal.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use jiff::Zoned;
use kilnbox_host::{Level, Metric};

use crate::errors::{CliError, file_error};

/// The longest text that a message quotes, in characters.
const LONGEST_QUOTE: usize = 200;

/// Text from outside as it may stand in a message: on one line, without control characters, and not too long.
pub fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(LONGEST_QUOTE).flat_map(char::escape_debug).collect();
    // Quotes are harmless in backticks, and escaped ones are hard to read.
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().count() > LONGEST_QUOTE {
        shown.push_str("...");
    }
    shown
}

/// A size as people read it, in units of 1000 bytes.
pub fn bytes(size: u64) -> String {
    match size {
        0..1_000 => format!("{size} B"),
        1_000..1_000_000 => format!("{:.1} kB", size as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", size as f64 / 1e6),
        _ => format!("{:.1} GB", size as f64 / 1e9),
    }
}

/// The log of one command. Clones write to the same place, and from any thread.
#[derive(Clone)]
pub struct Log(Arc<Mutex<Sinks>>);

struct Sinks {
    file: Option<File>,
    bar: Option<ProgressBar>,
    shows_debug: bool,
}

impl Log {
    /// A log to the terminal alone.
    pub fn to_terminal(shows_debug: bool) -> Self {
        Self(Arc::new(Mutex::new(Sinks { file: None, bar: None, shows_debug })))
    }

    /// Writes all further lines to `path` as well.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn keep_in(&self, path: &Path) -> Result<(), CliError> {
        let file = File::create(path).map_err(|error| file_error("write", path, &error))?;
        self.sinks().file = Some(file);
        Ok(())
    }

    /// A line that says what goes on.
    pub fn info(&self, message: impl AsRef<str>) {
        self.line(Level::Info, message.as_ref());
    }

    /// A line that the user should look at.
    pub fn warning(&self, message: impl AsRef<str>) {
        self.line(Level::Warning, message.as_ref());
    }

    /// A line of this level.
    pub fn line(&self, level: Level, message: &str) {
        let word = match level {
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warning => "WARNING",
        };
        let mut sinks = self.sinks();
        if level == Level::Debug && !sinks.shows_debug {
            return;
        }
        // Further lines of a message stand apart, so that they cannot pass for messages of their own.
        let message = message.replace('\n', "\n    ");
        let line = format!("[{}][{word}] - {message}", Zoned::now().strftime("%Y-%m-%d %H:%M:%S"));
        if let Some(file) = &mut sinks.file {
            // A full disk must not end a run whose results can still be shown.
            let _ = writeln!(file, "{line}");
        }
        match &sinks.bar {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| print(&line)),
            _ => print(&line),
        }
    }

    /// Moves the bar that shows how far the training is; there is none where the output is no terminal.
    pub fn progress(&self, epoch: u32, epochs: u32, done: u32, total: u32) {
        let mut sinks = self.sinks();
        let bar = sinks.bar.get_or_insert_with(|| {
            let target =
                if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
            let style = ProgressStyle::with_template("epoch {msg} {wide_bar} {percent:>3} % {rate}, {eta} left")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(None, target).with_style(style.with_key("rate", write_rate))
        });
        bar.set_length(u64::from(epochs) * u64::from(total));
        bar.set_message(format!("{}/{epochs}", u64::from(epoch) + 1));
        bar.set_position(u64::from(epoch) * u64::from(total) + u64::from(done));
    }

    /// Takes the bar away.
    pub fn end_progress(&self) {
        if let Some(bar) = self.sinks().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn sinks(&self) -> MutexGuard<'_, Sinks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number with five significant digits, as in a table of results.
pub fn significant(value: f64) -> String {
    Format::for_first(value).write(value)
}

/// Prints a line; a reader that has gone away (`kilnbox train | head`) is no reason to fail.
pub fn print(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// The table of epochs: a line in the log and a row in `train.csv` for each, with the same digits.
pub struct EpochTable {
    file: Option<File>,
    columns: Vec<Column>,
}

struct Column {
    name: String,
    unit: String,
    format: Format,
}

/// How the numbers of a column are written. The first one decides, so that all line up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    /// Three digits after the point, and an exponent.
    Exponent,
    /// So many digits after the point, in so many columns.
    Fixed { decimals: usize, width: usize },
}

impl Format {
    /// Five significant digits of a first value.
    fn for_first(value: f64) -> Self {
        let magnitude = value.abs();
        if !magnitude.is_finite() || magnitude == 0.0 || !(1e-4..1e5).contains(&magnitude) {
            return Self::Exponent;
        }
        let before_the_point = magnitude.log10().floor().max(0.0) as usize + 1;
        let decimals = if magnitude < 1.0 { 5 } else { 5_usize.saturating_sub(before_the_point).max(1) };
        Self::Fixed { decimals, width: before_the_point + 1 + decimals }
    }

    fn write(self, value: f64) -> String {
        match self {
            Self::Exponent => exponent(value),
            Self::Fixed { decimals, width } => format!("{value:width$.decimals$}"),
        }
    }
}

/// `1.234e-05`, as C and Python write it.
fn exponent(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let text = format!("{value:.3e}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |power| ('-', power));
            format!("{digits}e{sign}{power:0>2}")
        }
        None => text,
    }
}

impl EpochTable {
    /// A table that is also kept in `path`, below the rows that are there where a run continues in its folder.
    ///
    /// # Errors
    ///
    /// When the file cannot be made.
    pub fn create(path: &Path) -> Result<Self, CliError> {
        let file = File::create(path).map_err(|error| file_error("write", path, &error))?;
        Ok(Self { file: Some(file), columns: Vec::new() })
    }

    /// Adds an epoch and gives the line for the log.
    pub fn add(&mut self, epoch: u32, learning_rate: f64, metrics: &[Metric]) -> String {
        if self.columns.is_empty() {
            self.columns = metrics
                .iter()
                .map(|metric| Column {
                    name: format!("{} {}", metric.set, metric.name),
                    unit: metric.unit.clone(),
                    format: if metric.name == "loss" { Format::Exponent } else { Format::for_first(metric.value) },
                })
                .collect();
            let names = self.columns.iter().map(|column| column.name.as_str());
            let units = self.columns.iter().map(|column| column.unit.as_str());
            let header = row(["Epoch", "learning rate"].into_iter().chain(names).map(no_formula));
            let units = row(["", ""].into_iter().chain(units).map(no_formula));
            self.write(&format!("{header}\n{units}"));
        }
        let value = |column: &Column| {
            let metric = metrics.iter().find(|metric| column.name == format!("{} {}", metric.set, metric.name));
            metric.map(|metric| column.format.write(metric.value)).unwrap_or_default()
        };
        let values: Vec<String> = self.columns.iter().map(value).collect();
        let first = [format!("{epoch:>4}"), exponent(learning_rate)];
        let cells = first.iter().chain(&values).map(String::as_str);
        self.write(&row(cells));
        let mut line = format!("Epoch: {epoch:>4} | learning rate: {}", exponent(learning_rate));
        for (column, value) in self.columns.iter().zip(&values) {
            let unit = if column.unit.is_empty() { String::new() } else { format!(" {}", column.unit) };
            line.push_str(&format!(" | {}: {value}{unit}", column.name));
        }
        line
    }

    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            // The log has the same numbers, so that a full disk loses nothing that cannot be found.
            let _ = writeln!(file, "{line}");
        }
    }
}

/// Text of an architecture that a spreadsheet would compute, with a mark that keeps it text.
fn no_formula(cell: &str) -> Cow<'_, str> {
    if cell.starts_with(['=', '+', '-', '@']) { Cow::Owned(format!("'{cell}")) } else { Cow::Borrowed(cell) }
}

/// Cells of a table, quoted where they hold a comma or a quote.
fn row<'a>(cells: impl Iterator<Item = impl Into<Cow<'a, str>>>) -> String {
    let quote = |cell: Cow<'_, str>| {
        if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.into_owned() }
    };
    cells.map(Into::into).map(quote).collect::<Vec<_>>().join(",")
}

/// The rate of a progress bar, with as many digits as one can read while it runs.
fn write_rate(state: &ProgressState, text: &mut dyn fmt::Write) {
    let rate = state.per_sec();
    // Nobody reads an incomplete line of a progress bar.
    let _ = if rate < 10.0 { write!(text, "{rate:.1} steps/s") } else { write!(text, "{rate:.0} steps/s") };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_metatrain_writes_them() {
        let cases = [
            (9.619e-4, "9.619e-04"),
            (3.827e4, "3.827e+04"),
            (0.0, "0.000e+00"),
            (-1.5e-12, "-1.500e-12"),
            (f64::NAN, "NaN"),
        ];
        for (value, expected) in cases {
            assert_eq!(exponent(value), expected);
        }
        let cases = [
            (0.737_61, 1.918_15, "1.91815"),
            (26.639, 9.875, " 9.875"),
            (1.284, 12.3, "12.3000"),
            (123.456, 7.0, "  7.00"),
        ];
        for (first, value, expected) in cases {
            assert_eq!(Format::for_first(first).write(value), expected);
        }
    }

    #[test]
    fn a_table_has_names_units_and_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.csv");
        let metric = |set: &str, name: &str, unit: &str, value| Metric {
            set: set.into(),
            name: name.into(),
            unit: unit.into(),
            value,
        };
        let mut table = EpochTable::create(&path).unwrap();
        let line = table.add(
            0,
            1e-3,
            &[metric("training", "loss", "", 12.0), metric("training", "energy RMSE (per atom)", "eV", 0.5)],
        );
        assert_eq!(
            line,
            "Epoch:    0 | learning rate: 1.000e-03 | training loss: 1.200e+01 | training energy RMSE (per atom): 0.50000 eV"
        );
        table.add(5, 5e-4, &[metric("training", "energy RMSE (per atom)", "eV", 0.25)]);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "Epoch,learning rate,training loss,training energy RMSE (per atom)\n,,,eV\n   0,1.000e-03,1.200e+01,0.50000\n   5,5.000e-04,,0.25000\n"
        );
    }

    #[test]
    fn names_of_metrics_are_no_formulas() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.csv");
        let metric = Metric { set: "=1+1".into(), name: "a, \"b\"".into(), unit: "@SUM(A1)".into(), value: -1.0 };
        EpochTable::create(&path).unwrap().add(0, -1e-3, &[metric]);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "Epoch,learning rate,\"'=1+1 a, \"\"b\"\"\"\n,,'@SUM(A1)\n   0,-1.000e-03,-1.0000\n"
        );
    }

    #[test]
    fn a_message_of_several_lines_is_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.log");
        let log = Log::to_terminal(false);
        log.keep_in(&path).unwrap();
        log.info("first\n[2026-01-01 00:00:00][INFO] - forged");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("- first\n    [2026-01-01 00:00:00][INFO] - forged\n"), "{text}");
    }

    #[test]
    fn quotes_stay_on_one_line() {
        assert_eq!(printable("a\nb\u{1b}[2J \"c\""), "a\\nb\\u{1b}[2J \"c\"");
        assert!(printable(&"x".repeat(300)).ends_with("x..."));
    }
}
