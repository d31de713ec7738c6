//! What one run of an architecture may use.

use std::fmt::Write;

/// What a limit counts, and so how its value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: `8GiB`, `512MiB`, `1000`.
    Bytes,
    /// Things: `1000`.
    Count,
    /// Seconds: `600`, `0.5`.
    Seconds,
    /// Multiplications: `1e14`.
    Multiplications,
}

/// A limit by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitInfo {
    /// The name, in options and messages.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// What it bounds, in a sentence.
    pub description: &'static str,
}

/// Declares the limits once: the fields, their defaults, and the table that options, messages and documentation are made from.
macro_rules! limits {
    ($($(#[doc = $line:literal])+ $name:ident: $unit:ident = $default:expr;)+) => {
        /// Bounds of a run. Each has a default that ordinary work does not meet; the largest number, or infinity, is no bound.
        #[derive(Clone, Debug, PartialEq)]
        pub struct Limits {
            $($(#[doc = $line])+ pub $name: limits!(@type $unit),)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        /// All limits, in the order of their documentation.
        pub const LIMITS: &[LimitInfo] = &[
            $(LimitInfo { name: stringify!($name), unit: Unit::$unit, description: concat!($($line),+) },)+
        ];

        impl Limits {
            /// No limit but those that nothing works without: to measure what limits cost.
            pub fn none() -> Self {
                Self { $($name: limits!(@none $unit),)+ }.with_engine_defaults()
            }

            /// The value of the limit of this name, as a user would write it.
            pub fn value(&self, name: &str) -> Option<String> {
                match name {
                    $(stringify!($name) => Some(limits!(@write $unit, self.$name)),)+
                    _ => None,
                }
            }

            /// Sets the limit of this name to what a user wrote.
            ///
            /// # Errors
            /// A sentence: there is no such limit, or the text is no value of its unit.
            pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = limits!(@read $unit, name, text),)+
                    _ => return Err(format!("there is no limit `{}`", crate::error::printable(name))),
                }
                self.check()
            }
        }
    };
    (@type Seconds) => { f64 };
    (@type Multiplications) => { f64 };
    (@type $unit:ident) => { u64 };
    (@none Seconds) => { f64::INFINITY };
    (@none Multiplications) => { f64::INFINITY };
    (@none $unit:ident) => { u64::MAX };
    (@write Seconds, $value:expr) => { write_number($value) };
    (@write Multiplications, $value:expr) => { write_number($value) };
    (@write $unit:ident, $value:expr) => { write_count(Unit::$unit, $value) };
    (@read Seconds, $name:expr, $text:expr) => { read_number(Unit::Seconds, $name, $text)? };
    (@read Multiplications, $name:expr, $text:expr) => { read_number(Unit::Multiplications, $name, $text)? };
    (@read $unit:ident, $name:expr, $text:expr) => { read_count(Unit::$unit, $name, $text)? };
}

limits! {
    /// The file of a component.
    component_bytes: Bytes = 64 << 20;
    /// Compiling a component that is not in the cache of compiled code.
    compile_seconds: Seconds = 60.0;
    /// The memory of the process that compiles.
    compile_memory_bytes: Bytes = 4 << 30;
    /// All memories of the guest together. They hold hypers, indices and small tables; numbers live with the host.
    guest_memory_bytes: Bytes = 1 << 30;
    /// All function tables of the guest together.
    table_entries: Count = 100_000;
    /// The guest's core instances, its memories and its tables, each.
    instances: Count = 100;
    /// The guest's call stack; at most 32 MiB.
    stack_bytes: Bytes = 2 << 20;
    /// Handles (tensors, batches, systems) that live at one time.
    handles: Count = 1_000_000;
    /// All tensors that live at one time, the history of gradients included, each with 400 bytes beside its elements. By default half of the
    /// machine's memory, 64 GiB at most.
    tensor_bytes: Bytes = default_tensor_bytes();
    /// One operation.
    operation_cost: Multiplications = 1e14;
    /// What one call copies between the guest's memory and the host's.
    call_bytes: Bytes = 128 << 20;
    /// One call of the guest other than `train`.
    seconds_per_call: Seconds = 600.0;
    /// The whole run, from its first call on.
    seconds_per_run: Seconds = f64::INFINITY;
    /// Lines of the log, the results of epochs included; later ones are dropped.
    log_lines: Count = 1_000_000;
    /// Text for the log on average; what is beyond it is dropped.
    log_bytes_per_second: Bytes = 256 << 10;
    /// The metrics of an epoch; later ones are dropped.
    metrics: Count = 256;
    /// Checkpoints of different names in one run.
    checkpoints: Count = 10_000;
    /// One checkpoint.
    checkpoint_bytes: Bytes = 16 << 30;
    /// All checkpoints that a run leaves on the disk.
    disk_bytes: Bytes = 64 << 30;
}

/// The deepest stack of a guest: the threads that sessions run on have room for it and for the host below.
const DEEPEST_STACK: u64 = 32 << 20;

impl Limits {
    /// The engine cannot do without a bound on the stack.
    fn with_engine_defaults(self) -> Self {
        Self { stack_bytes: Self::default().stack_bytes, ..self }
    }

    /// What each of so many instances may use that together shall use no more than one with these limits.
    pub(crate) fn shared_by(&self, instances: u64) -> Self {
        let share = |all: u64| if all == u64::MAX { all } else { all / instances.max(1) };
        Self {
            guest_memory_bytes: share(self.guest_memory_bytes),
            table_entries: share(self.table_entries),
            handles: share(self.handles),
            tensor_bytes: share(self.tensor_bytes),
            log_lines: share(self.log_lines),
            log_bytes_per_second: share(self.log_bytes_per_second),
            ..self.clone()
        }
    }

    fn check(&self) -> Result<(), String> {
        if self.stack_bytes > DEEPEST_STACK {
            return Err(format!(
                "`stack_bytes` is {}, at most 32MiB are possible",
                write_count(Unit::Bytes, self.stack_bytes)
            ));
        }
        if self.stack_bytes == 0 {
            return Err("`stack_bytes` is 0: nothing runs without a stack".to_owned());
        }
        Ok(())
    }

    /// A table of all limits for the documentation, in Markdown.
    pub fn documentation() -> String {
        let defaults = Self { tensor_bytes: 0, ..Self::default() };
        let mut table = "| limit | default | what it bounds |\n|---|---|---|\n".to_owned();
        for limit in LIMITS {
            let value = match limit.name {
                "tensor_bytes" => "half of the memory".to_owned(),
                name => format!("`{}`", defaults.value(name).unwrap_or_default()),
            };
            let _ = writeln!(table, "| `{}` | {value} | {} |", limit.name, limit.description.trim());
        }
        table
    }
}

/// What no bound is called.
const UNBOUNDED: &str = "none";

fn write_number(value: f64) -> String {
    if value.is_infinite() {
        UNBOUNDED.to_owned()
    } else if value >= 1e6 {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

fn write_count(unit: Unit, value: u64) -> String {
    if value == u64::MAX {
        return UNBOUNDED.to_owned();
    }
    if unit == Unit::Bytes {
        for (suffix, size) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if value != 0 && value.is_multiple_of(size) {
                return format!("{}{suffix}", value / size);
            }
        }
    }
    value.to_string()
}

fn read_number(unit: Unit, name: &str, text: &str) -> Result<f64, String> {
    let text = text.trim();
    if text == UNBOUNDED {
        return Ok(f64::INFINITY);
    }
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0).ok_or_else(|| expected(unit, name, text))
}

fn read_count(unit: Unit, name: &str, text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text == UNBOUNDED {
        return Ok(u64::MAX);
    }
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor: u64 = match (&text[digits.len()..], unit) {
        ("", _) => 1,
        ("KiB", Unit::Bytes) => 1 << 10,
        ("MiB", Unit::Bytes) => 1 << 20,
        ("GiB", Unit::Bytes) => 1 << 30,
        ("TiB", Unit::Bytes) => 1 << 40,
        _ => return Err(expected(unit, name, text)),
    };
    let whole = digits.trim().replace('_', "").parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    whole.ok_or_else(|| expected(unit, name, text))
}

fn expected(unit: Unit, name: &str, text: &str) -> String {
    let example = match unit {
        Unit::Bytes => "a number of bytes such as `8GiB`, `512MiB` or `1000`",
        Unit::Count => "a whole number",
        Unit::Seconds => "a number of seconds",
        Unit::Multiplications => "a number such as `1e14`",
    };
    format!("`{name}` is `{}`, expected {example}, or `{UNBOUNDED}`", crate::error::printable(text))
}

/// Half of the memory that this process may use: kernels and data need some beside tensors, and a run that needs too much shall be told so before the
/// system ends it.
fn default_tensor_bytes() -> u64 {
    const MOST: u64 = 64 << 30;
    // In whole steps, so that the value can be read.
    const STEP: u64 = 64 << 20;
    available_memory().map_or(MOST, |bytes| (bytes / 2 / STEP * STEP).clamp(STEP, MOST))
}

/// The memory of the machine, or of the control group if that is less. Known on Linux only.
fn available_memory() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 = machine
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?
        .trim()
        .trim_end_matches("kB")
        .trim()
        .parse()
        .ok()?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some((kibibytes << 10).min(group.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let cases = [
            ("tensor_bytes", "8GiB", Ok("8GiB")),
            ("tensor_bytes", " 1536 MiB", Ok("1536MiB")),
            ("call_bytes", "1_000", Ok("1000")),
            ("call_bytes", "2048", Ok("2KiB")),
            ("handles", "none", Ok("none")),
            ("handles", "10GiB", Err("expected a whole number")),
            ("seconds_per_run", "0.5", Ok("0.5")),
            ("seconds_per_run", "none", Ok("none")),
            ("seconds_per_run", "-1", Err("expected a number of seconds")),
            ("seconds_per_run", "NaN", Err("expected a number of seconds")),
            ("operation_cost", "1e14", Ok("1e14")),
            ("tensor_bytes", "many", Err("such as `8GiB`")),
            ("tensor_bytes", "99999999999TiB", Err("such as `8GiB`")),
            ("tensor_bytes", "", Err("such as `8GiB`")),
            ("stack_bytes", "1GiB", Err("at most 32MiB")),
            ("stack_bytes", "0", Err("nothing runs")),
            ("tensor_byte", "1", Err("no limit `tensor_byte`")),
        ];
        for (name, text, expected) in cases {
            let mut limits = Limits::default();
            match (limits.set(name, text), expected) {
                (Ok(()), Ok(value)) => assert_eq!(limits.value(name).as_deref(), Some(value), "{name} {text}"),
                (Err(message), Err(part)) => assert!(message.contains(part), "{message}"),
                (result, _) => panic!("{name} {text}: {result:?}"),
            }
        }
    }

    #[test]
    fn every_limit_can_be_set_to_its_default() {
        let defaults = Limits::default();
        for limit in LIMITS {
            let mut limits = defaults.clone();
            let value = defaults.value(limit.name).unwrap_or_default();
            assert_eq!(limits.set(limit.name, &value), Ok(()), "{}", limit.name);
            assert_eq!(limits, defaults, "{}", limit.name);
        }
    }

    #[test]
    fn the_default_leaves_memory_to_others() {
        let bytes = default_tensor_bytes();
        assert!(bytes >= 1 << 28, "{bytes}");
        assert!(available_memory().is_none_or(|memory| bytes <= memory / 2));
    }
}
