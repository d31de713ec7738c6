//! Guests that are a few calls of the contract, one after another.

use std::fmt::{Display, Write};

use kilnbox_host::Limits;

use crate::guest::{describe, describing};
use crate::table::{Ending, Fallible};

/// Where the data of a script begins.
const DATA: usize = 64;
/// Where data must end: behind it are zeros, which `describe` answers with.
const END: usize = 0xb000;
/// Where lists and results that a call returns are put, unless the script says otherwise.
pub const RESULT: &str = "(i32.const 0xb000)";

/// The dtypes of the contract as numbers.
pub const FLOAT32: &str = "(i32.const 0)";
pub const FLOAT64: &str = "(i32.const 1)";
pub const INT32: &str = "(i32.const 2)";
pub const INT64: &str = "(i32.const 3)";
pub const BOOLEAN: &str = "(i32.const 4)";

/// Calls that `describe` makes. Values are expressions of the text format, such as `(local.get $v3)`.
#[derive(Default)]
pub struct Script {
    data: Vec<u8>,
    code: String,
    values: usize,
}

/// A number as an argument of type `i32`.
pub fn int(value: u32) -> String {
    format!("(i32.const {value})")
}

/// A number as an argument of type `f64`.
pub fn float(value: f64) -> String {
    let text = if value.is_nan() { "nan".to_owned() } else { format!("{value:?}") };
    format!("(f64.const {text})")
}

impl Script {
    /// Puts a list into the guest's memory: its two arguments.
    pub fn list<const N: usize>(&mut self, values: impl IntoIterator<Item = [u8; N]>) -> String {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let start = self.data.len();
        self.data.extend(values.into_iter().flatten());
        assert!(DATA + self.data.len() <= END, "the data of a script is too long");
        format!("(i32.const {}) (i32.const {})", DATA + start, (self.data.len() - start) / N)
    }

    /// A list of sizes, axes or other numbers.
    pub fn sizes(&mut self, values: &[u32]) -> String {
        self.list(values.iter().map(|value| value.to_le_bytes()))
    }

    /// A text.
    pub fn text(&mut self, text: &str) -> String {
        self.list(text.bytes().map(|byte| [byte]))
    }

    /// A list of handles, which are known when the guest runs.
    pub fn handles(&mut self, handles: &[&str]) -> String {
        let list = self.sizes(&vec![0; handles.len()]);
        let start = DATA + self.data.len() - 4 * handles.len();
        for (k, handle) in handles.iter().enumerate() {
            let _ = writeln!(self.code, "(i32.store (i32.const {}) {handle})", start + 4 * k);
        }
        list
    }

    /// A line of the text format.
    pub fn line(&mut self, line: impl Display) {
        let _ = writeln!(self.code, "{line}");
    }

    /// A call without a result.
    pub fn run(&mut self, function: &str, arguments: &[&str]) {
        self.line(format!("(call ${function} {})", arguments.join(" ")));
    }

    /// A call with a result: a handle or a number.
    pub fn call(&mut self, function: &str, arguments: &[&str]) -> String {
        let value = format!("$v{}", self.values);
        self.values += 1;
        self.line(format!("(local.set {value} (call ${function} {}))", arguments.join(" ")));
        format!("(local.get {value})")
    }

    /// A call whose result is not kept.
    pub fn try_call(&mut self, function: &str, arguments: &[&str]) {
        let _ = self.call(function, arguments);
    }

    /// A tensor with one value everywhere.
    pub fn full(&mut self, shape: &[u32], value: f64, dtype: &str) -> String {
        let shape = self.sizes(shape);
        self.call("tensor.full", &[&shape, &float(value), dtype])
    }

    /// A `float32` tensor.
    pub fn ones(&mut self, shape: &[u32]) -> String {
        self.full(shape, 1.0, FLOAT32)
    }

    /// A row of indices.
    pub fn indices(&mut self, values: &[i64]) -> String {
        let shape = self.sizes(&[values.len() as u32]);
        let values = self.list(values.iter().map(|value| value.to_le_bytes()));
        self.call("tensor.from-int64", &[&shape, &values])
    }

    /// The guest.
    pub fn guest(&self) -> Fallible<Vec<u8>> {
        let bytes: String = self.data.iter().map(|byte| format!("\\{byte:02x}")).collect();
        let locals: String = (0..self.values).map(|value| format!("(local $v{value} i32)")).collect();
        describing(&format!("{locals} {}", self.code), &format!("(data (i32.const {DATA}) \"{bytes}\")"))
    }

    /// How its run ends within these limits.
    pub fn ending(&self, limits: Limits) -> Fallible<Ending> {
        describe(&self.guest()?, limits)
    }
}

/// How each of these scripts ends; its message has the words beside it.
pub fn endings(limits: &Limits, cases: &[(&str, &dyn Fn(&mut Script))]) -> Fallible<Vec<Ending>> {
    cases
        .iter()
        .map(|(words, write)| {
            let mut script = Script::default();
            write(&mut script);
            script.ending(limits.clone())?.saying(&[words])
        })
        .collect()
}
