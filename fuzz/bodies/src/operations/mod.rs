//! Sequences of operations of the contract, decoded from bytes, under a small quota.
//!
//! The operations are functions of `kilnbox-tensor`, which the host serves one to one. Each call is compared with what [`contract`] predicts from the text of the
//! contract alone: misuse must be refused, everything else must give a tensor of the predicted shape and dtype, and its numbers must be there to read. The only
//! other way out is the quota, and only where a call may have met it.

mod contract;

use std::sync::Arc;

use arbitrary::Unstructured;
use kilnbox_tensor::context::Context;
use kilnbox_tensor::memory::Quota;
use kilnbox_tensor::op::optimizer::{self, AdamOptions};
use kilnbox_tensor::op::{elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff, op};

use crate::text::check_message;
use contract::{ALL, BOOLEAN, FLOATS, Indices, Kind, NUMBERS};

/// Bytes of all tensors: a hundred ordinary ones, and no large one.
const QUOTA: usize = 4 << 20;
/// Bytes that the operands of one call may need. Where they are not there, everything is dropped.
const ROOM: usize = 512 << 10;
/// Calls of one sequence. Longer ones find no more, and gradients of gradients grow quickly.
const MOST_CALLS: usize = 64;
/// Calls of `grad` in one sequence: each may multiply the number of operations that the next has to differentiate.
const MOST_GRADIENTS: usize = 4;
/// Tensors that are kept to be operands.
const MOST_KEPT: usize = 24;

/// Runs the sequence that `bytes` describe. Where their number is odd it runs twice, and both must read the same numbers: what a kernel left unwritten would differ.
///
/// # Panics
/// The engine disagrees with the contract, or panics itself.
pub fn operations(bytes: &[u8]) {
    let digest = run(bytes);
    if bytes.len() % 2 == 1 {
        assert_eq!(run(bytes), digest, "the same calls give other numbers");
    }
}

/// Runs the sequence and gives a digest of all numbers that it read.
fn run(bytes: &[u8]) -> u64 {
    let context = Context::new(QUOTA, f64::INFINITY);
    let _entered = context.enter();
    let quota = context.quota().clone();
    let mut sequence = Sequence::new(bytes, quota.clone());
    while !sequence.input.is_empty() && sequence.calls < MOST_CALLS {
        sequence.step();
    }
    let digest = sequence.digest;
    drop(sequence);
    assert_eq!(quota.used(), 0, "bytes are still counted when every handle is gone");
    digest
}

/// A tensor and what it must be.
#[derive(Clone)]
struct Value {
    tensor: Tensor,
    kind: Kind,
}

struct Sequence<'a> {
    input: Unstructured<'a>,
    device: Device,
    quota: Arc<Quota>,
    /// Bytes in use before the present call.
    used: usize,
    kept: Vec<Value>,
    random: Random,
    recording: bool,
    calls: usize,
    gradients: usize,
    digest: u64,
    traced: bool,
}

/// The arguments that are hostile for any size or axis.
const HOSTILE: [usize; 8] =
    [u32::MAX as usize, 1 << 31, 1 << 16, (1 << 16) + 1, (1 << 31) - 1, 1_000_003, 4096, 1 << 30];
const NUMBERS_TO_TRY: [f64; 16] = [
    0.0,
    1.0,
    -1.0,
    0.5,
    2.0,
    -0.0,
    3.25,
    1e-3,
    1e-30,
    1e30,
    -1e308,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    f64::MIN_POSITIVE,
    17.0,
];

impl<'a> Sequence<'a> {
    fn new(bytes: &'a [u8], quota: Arc<Quota>) -> Self {
        Self {
            input: Unstructured::new(bytes),
            device: Device::cpu(),
            quota,
            used: 0,
            kept: Vec::new(),
            random: Random::new(1),
            recording: true,
            calls: 0,
            gradients: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            // For whoever looks into a finding: every call, as it is made.
            traced: std::env::var_os("KILNBOX_FUZZ_TRACE").is_some(),
        }
    }

    // Arguments. What the bytes do not say any more is 0.

    fn byte(&mut self) -> u8 {
        self.input.arbitrary().unwrap_or(0)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn number(&mut self) -> f64 {
        match self.byte() {
            choice @ 0..=223 => NUMBERS_TO_TRY[usize::from(choice) % NUMBERS_TO_TRY.len()],
            _ => f64::from_bits(self.input.arbitrary().unwrap_or(0)),
        }
    }

    /// A number as tensors mostly hold.
    fn element(&mut self) -> f64 {
        match self.byte() {
            choice @ 0..=239 => f64::from(choice) / 32.0 - 3.0,
            choice => NUMBERS_TO_TRY[usize::from(choice - 240)],
        }
    }

    fn size(&mut self) -> usize {
        match self.byte() {
            choice @ 0..=219 => usize::from(choice % 6),
            choice @ 220..=239 => [7, 8, 9, 16, 17, 33, 64, 65, 100, 257][usize::from(choice % 10)],
            choice => HOSTILE[usize::from(choice) % HOSTILE.len()],
        }
    }

    fn shape(&mut self) -> Vec<usize> {
        let rank = match self.byte() {
            choice @ 0..=239 => usize::from(choice % 5),
            choice => usize::from(choice - 240).min(10),
        };
        (0..rank).map(|_| self.size()).collect()
    }

    fn axis(&mut self, rank: usize) -> usize {
        match self.byte() {
            choice @ 0..=243 => usize::from(choice) % rank.max(1),
            choice @ 244..=249 => rank + usize::from(choice - 244),
            choice => HOSTILE[usize::from(choice) % HOSTILE.len()],
        }
    }

    fn axes(&mut self, rank: usize) -> Vec<usize> {
        let count = self.below(rank + 2);
        (0..count).map(|_| self.axis(rank)).collect()
    }

    fn dtype(&mut self) -> DType {
        // The first two are what most operations want.
        [DType::Float64, DType::Float32, DType::Int64, DType::Boolean, DType::Int32, DType::Float64, DType::Float32]
            [self.below(7)]
    }

    fn float(&mut self) -> DType {
        if self.flag() { DType::Float32 } else { DType::Float64 }
    }

    /// Any tensor at hand.
    fn any(&mut self) -> Value {
        let choice = self.below(MOST_KEPT);
        match self.kept.get(choice).or_else(|| self.kept.get(choice % self.kept.len().max(1))) {
            Some(value) => value.clone(),
            None => self.made(DType::Float64, &[2, 3]),
        }
    }

    /// A tensor of this kind, or, now and then, of another one.
    fn wanted(&mut self, dtype: DType, shape: &[usize]) -> Value {
        match self.byte() {
            0..=199 => {
                let same = |value: &&Value| value.kind.dtype == dtype && value.kind.shape == shape;
                match self.kept.iter().rev().find(same) {
                    Some(value) if self.kept.len() > MOST_KEPT / 2 => value.clone(),
                    _ => self.made(dtype, shape),
                }
            }
            200..=227 => self.any(),
            228..=241 => {
                let mut other = shape.to_vec();
                match (self.byte() % 3, other.len()) {
                    (0, rank @ 1..) => {
                        let axis = self.below(rank);
                        other[axis] = self.size();
                    }
                    (1, 1..) => drop(other.pop()),
                    _ => other.push(1),
                }
                self.made(dtype, &other)
            }
            _ => {
                let other = self.dtype();
                self.made(other, shape)
            }
        }
    }

    /// A new tensor of this kind, tracked now and then. One that would not fit becomes a scalar.
    fn made(&mut self, dtype: DType, shape: &[usize]) -> Value {
        let room = self.quota.limit().saturating_sub(self.quota.used()) / 4;
        // What is made by a cast has to fit before it, too, however few elements there are.
        let before = if dtype == DType::Int32 { DType::Int64 } else { dtype };
        let fits = Kind::new(before, shape).is_some_and(|kind| kind.bytes() <= room.min(1 << 16));
        let kind = Kind::new(dtype, shape).filter(|_| fits);
        let Some(kind) = kind.or_else(|| Kind::new(dtype, &[])) else { unreachable!("a scalar may be") };
        let count = kind.count();
        // A few elements are chosen, and the others repeat them.
        let chosen: Vec<f64> = (0..count.min(4)).map(|_| self.element()).collect();
        let value = |k: usize| chosen[k % 4] + (k / 4) as f64 * 0.125;
        let made = match dtype {
            DType::Float32 => Tensor::from_float32(
                &self.device,
                &kind.shape,
                &(0..count).map(|k| value(k) as f32).collect::<Vec<_>>(),
            ),
            DType::Float64 => {
                Tensor::from_float64(&self.device, &kind.shape, &(0..count).map(value).collect::<Vec<_>>(), dtype)
            }
            DType::Int64 => {
                Tensor::from_int64(&self.device, &kind.shape, &(0..count).map(|k| value(k) as i64).collect::<Vec<_>>())
            }
            DType::Boolean => {
                Tensor::from_boolean(&self.device, &kind.shape, &(0..count).map(|k| value(k) > 0.0).collect::<Vec<_>>())
            }
            // The contract makes these by a cast.
            DType::Int32 => {
                Tensor::from_int64(&self.device, &kind.shape, &(0..count).map(|k| value(k) as i64).collect::<Vec<_>>())
                    .and_then(|made| op::cast(&made, DType::Int32))
            }
        };
        let made = made.unwrap_or_else(|misuse| panic!("{kind:?} with room for it is refused: {misuse}"));
        self.compare("a new tensor", &made, &kind);
        let tensor = if FLOATS.contains(&dtype) && self.byte() < 96 {
            autodiff::track(&made).unwrap_or_else(|misuse| panic!("{kind:?} cannot be tracked: {misuse}"))
        } else {
            made
        };
        self.used = self.quota.used();
        Value { tensor, kind }
    }

    /// Indices below `bound`, but for a few hostile ones.
    fn indices(&mut self, shape: &[usize], bound: usize) -> Value {
        if self.byte() > 235 {
            return self.wanted(DType::Int64, shape);
        }
        let count = Kind::new(DType::Int64, shape).map_or(usize::MAX, |kind| kind.count());
        if count > 4096 {
            return self.wanted(DType::Int64, &[3]);
        }
        let chosen: Vec<i64> = (0..count.min(6))
            .map(|_| match self.byte() {
                choice @ 0..=243 => i64::from(choice) % (bound.max(1) as i64),
                244..=246 => -1,
                247..=249 => bound as i64,
                250 | 251 => i64::MIN,
                252 | 253 => i64::MAX,
                254 => bound as i64 - 1,
                255 => 1 << 32,
            })
            .collect();
        let values: Vec<i64> = (0..count).map(|k| chosen[k % 6]).collect();
        match (Tensor::from_int64(&self.device, shape, &values), Kind::new(DType::Int64, shape)) {
            (Ok(tensor), Some(kind)) => {
                self.used = self.quota.used();
                Value { tensor, kind }
            }
            _ => self.made(DType::Int64, &[]),
        }
    }

    // Outcomes.

    /// One call that gives one tensor, which is kept.
    fn call(&mut self, name: &str, operands: &[&Value], expected: Option<Kind>, outcome: Result<Tensor, Misuse>) {
        self.call_within(Some(64), name, operands, expected, outcome);
    }

    /// The same with another slack, see [`Self::calls`].
    fn call_within(
        &mut self,
        slack: Option<usize>,
        name: &str,
        operands: &[&Value],
        expected: Option<Kind>,
        outcome: Result<Tensor, Misuse>,
    ) {
        let expected = expected.map(|kind| vec![kind]);
        self.calls(name, operands, expected, outcome.map(|tensor| vec![tensor]), slack);
    }

    /// One call that gives several tensors. `slack` is how many times the bytes of operands and results the call may take on its way; none where that cannot
    /// be told.
    fn calls(
        &mut self,
        name: &str,
        operands: &[&Value],
        expected: Option<Vec<Kind>>,
        outcome: Result<Vec<Tensor>, Misuse>,
        slack: Option<usize>,
    ) {
        self.calls += 1;
        let kinds = || {
            operands
                .iter()
                .map(|operand| format!("{} {:?}", operand.kind.dtype, operand.kind.shape))
                .collect::<Vec<_>>()
        };
        if self.traced {
            eprintln!("{name} of {:?}: expected {expected:?}, found {outcome:?}", kinds());
        }
        let used = std::mem::replace(&mut self.used, self.quota.used());
        match (expected, outcome) {
            (Some(expected), Ok(tensors)) => {
                assert_eq!(tensors.len(), expected.len(), "{name} of {:?} gives another number of tensors", kinds());
                for (tensor, kind) in tensors.into_iter().zip(expected) {
                    assert!(kind.bytes() <= self.quota.limit(), "{name} gives more than the quota: {kind:?}");
                    self.compare(name, &tensor, &kind);
                    self.keep(Value { tensor, kind });
                }
            }
            (None, Ok(tensors)) => {
                panic!("{name} of {:?} gives {tensors:?}, but the contract calls it misuse", kinds())
            }
            (None, Err(misuse)) => {
                check_message(&misuse.to_string());
                assert!(
                    misuse.limit.is_some() || misuse.operation == name,
                    "misuse of {name} is told as one of {}: {misuse}",
                    misuse.operation
                );
            }
            (Some(expected), Err(misuse)) => {
                check_message(&misuse.to_string());
                assert!(
                    misuse.limit.is_some(),
                    "{name} of {:?} is refused, though the contract allows it: {misuse}",
                    kinds()
                );
                let Some(slack) = slack else { return };
                let bytes = |total: usize, kind: &Kind| total.saturating_add(kind.bytes());
                let all = expected.iter().chain(operands.iter().map(|operand| &operand.kind)).fold(4096, bytes);
                assert!(
                    used.saturating_add(all.saturating_mul(slack)) > self.quota.limit(),
                    "{name} of {:?} meets the quota with {used} bytes in use: {misuse}",
                    kinds()
                );
            }
        }
    }

    /// The tensor is of the kind it must be, and its numbers can be read.
    fn compare(&mut self, name: &str, tensor: &Tensor, kind: &Kind) {
        assert_eq!(
            (tensor.dtype(), tensor.shape()),
            (kind.dtype, &kind.shape[..]),
            "{name} gives another tensor than the contract says"
        );
        let bits: Vec<u64> = match kind.dtype {
            DType::Float32 | DType::Float64 => values(tensor.read_float64()).into_iter().map(number_bits).collect(),
            DType::Int32 | DType::Int64 => values(tensor.read_int64()).into_iter().map(|value| value as u64).collect(),
            DType::Boolean => values(tensor.read_boolean()).into_iter().map(u64::from).collect(),
        };
        assert_eq!(
            bits.len(),
            kind.count(),
            "{name} gives another number of elements than its shape {:?} has",
            kind.shape
        );
        // Fowler, Noll and Vo's hash.
        self.digest = bits.iter().fold(self.digest, |digest, bits| (digest ^ bits).wrapping_mul(0x0100_0000_01b3));
    }

    fn keep(&mut self, value: Value) {
        if self.kept.len() < MOST_KEPT {
            self.kept.push(value);
        } else {
            let place = self.below(MOST_KEPT);
            self.kept[place] = value;
        }
        self.used = self.quota.used();
    }

    fn step(&mut self) {
        if self.quota.limit() - self.quota.used() < ROOM {
            self.kept.clear();
        }
        self.used = self.quota.used();
        match self.byte() % 16 {
            0 | 1 => self.constructors(),
            2 | 3 => self.binary(),
            4 => self.unary(),
            5 => self.scalars(),
            6 => self.reductions(),
            7 | 8 => self.arrangements(),
            9 => self.indexing(),
            10 => self.segments(),
            11 => self.algebra(),
            12 => self.networks(),
            13 => self.functions(),
            14 => self.derivatives(),
            _ => self.state(),
        }
    }

    fn constructors(&mut self) {
        let shape = self.shape();
        let dtype = self.dtype();
        let choice = self.byte() % 8;
        // As many values as the shape has, where that is few; one more or less now and then.
        let fitting = Kind::new(dtype, &shape).map_or(3, |kind| kind.count());
        let count = match self.byte() {
            250.. => fitting.wrapping_add(1).min(5000),
            246..=249 => fitting.saturating_sub(1).min(5000),
            _ => fitting.min(5000),
        };
        let device = self.device.clone();
        let value = self.number();
        match choice {
            0 => {
                let made = Tensor::from_float32(&device, &shape, &vec![value as f32; count]);
                self.call(
                    "tensor.from-float32",
                    &[],
                    contract::from_values(&shape, DType::Float32, FLOATS, count),
                    made,
                );
            }
            1 => {
                let made = Tensor::from_float64(&device, &shape, &vec![value; count], dtype);
                self.call("tensor.from-float64", &[], contract::from_values(&shape, dtype, FLOATS, count), made);
            }
            2 => {
                let made = Tensor::from_int64(&device, &shape, &vec![value as i64; count]);
                self.call("tensor.from-int64", &[], contract::from_values(&shape, DType::Int64, ALL, count), made);
            }
            3 => {
                let made = Tensor::from_boolean(&device, &shape, &vec![value > 0.0; count]);
                self.call("tensor.from-boolean", &[], contract::from_values(&shape, DType::Boolean, ALL, count), made);
            }
            4 | 5 => {
                let made = Tensor::full(&device, &shape, value, dtype);
                self.call("tensor.full", &[], Kind::new(dtype, &shape), made);
            }
            6 => {
                let count = self.size();
                self.call("tensor.arange", &[], Kind::new(DType::Int64, &[count]), Tensor::arange(&device, count));
            }
            _ => {
                let a = self.any();
                let expected = Kind::new(dtype, &a.kind.shape);
                self.call("tensor.cast", &[&a], expected, op::cast(&a.tensor, dtype));
            }
        }
    }

    fn binary(&mut self) {
        let a = self.any();
        let mut other = a.kind.shape.clone();
        // A shape that broadcasts: an axis of size 1, or one axis less.
        match (self.byte() % 4, other.len()) {
            (0, rank @ 1..) => {
                let axis = self.below(rank);
                other[axis] = 1;
            }
            (1, 1..) => drop(other.remove(0)),
            _ => {}
        }
        let b = self.wanted(a.kind.dtype, &other);
        let (a, b) = if self.flag() { (b, a) } else { (a, b) };
        type Function = fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>;
        let arithmetic: [(&str, Function, &[DType]); 6] = [
            ("elementwise.add", elementwise::add, NUMBERS),
            ("elementwise.subtract", elementwise::subtract, NUMBERS),
            ("elementwise.multiply", elementwise::multiply, NUMBERS),
            ("elementwise.divide", elementwise::divide, FLOATS),
            ("elementwise.maximum", elementwise::maximum, FLOATS),
            ("elementwise.minimum", elementwise::minimum, FLOATS),
        ];
        let comparisons: [(&str, Function); 3] = [
            ("elementwise.equal", elementwise::equal),
            ("elementwise.less", elementwise::less),
            ("elementwise.less-equal", elementwise::less_equal),
        ];
        match self.byte() % 13 {
            choice @ 0..=5 => {
                let (name, function, allowed) = arithmetic[usize::from(choice)];
                self.call(name, &[&a, &b], contract::binary(&a.kind, &b.kind, allowed), function(&a.tensor, &b.tensor));
            }
            choice @ 6..=8 => {
                let (name, function) = comparisons[usize::from(choice) - 6];
                self.call(name, &[&a, &b], contract::comparison(&a.kind, &b.kind), function(&a.tensor, &b.tensor));
            }
            choice @ 9..=10 => {
                let (a, b) = if self.byte() < 200 {
                    (self.wanted(DType::Boolean, &a.kind.shape), self.wanted(DType::Boolean, &b.kind.shape))
                } else {
                    (a, b)
                };
                let (name, function): (&str, Function) = if choice == 9 {
                    ("elementwise.logical-and", elementwise::logical_and)
                } else {
                    ("elementwise.logical-or", elementwise::logical_or)
                };
                self.call(name, &[&a, &b], contract::binary(&a.kind, &b.kind, BOOLEAN), function(&a.tensor, &b.tensor));
            }
            _ => {
                let condition =
                    self.wanted(DType::Boolean, if choice_is_first(&a, &b) { &a.kind.shape } else { &b.kind.shape });
                self.call(
                    "elementwise.where",
                    &[&condition, &a, &b],
                    contract::where_(&condition.kind, &a.kind, &b.kind),
                    elementwise::where_(&condition.tensor, &a.tensor, &b.tensor),
                );
            }
        }
    }

    fn unary(&mut self) {
        let a = self.any();
        type Function = fn(&Tensor) -> Result<Tensor, Misuse>;
        let functions: [(&str, Function, &[DType]); 15] = [
            ("elementwise.negative", elementwise::negative, NUMBERS),
            ("elementwise.reciprocal", elementwise::reciprocal, FLOATS),
            ("elementwise.absolute", elementwise::absolute, FLOATS),
            ("elementwise.sign", elementwise::sign, FLOATS),
            ("elementwise.exp", elementwise::exp, FLOATS),
            ("elementwise.log", elementwise::log, FLOATS),
            ("elementwise.sqrt", elementwise::sqrt, FLOATS),
            ("elementwise.sin", elementwise::sin, FLOATS),
            ("elementwise.cos", elementwise::cos, FLOATS),
            ("elementwise.tanh", elementwise::tanh, FLOATS),
            ("elementwise.erf", elementwise::erf, FLOATS),
            ("elementwise.sigmoid", elementwise::sigmoid, FLOATS),
            ("elementwise.silu", elementwise::silu, FLOATS),
            ("elementwise.logical-not", elementwise::logical_not, BOOLEAN),
            ("elementwise.is-finite", elementwise::is_finite, FLOATS),
        ];
        let (name, function, allowed) = functions[self.below(functions.len())];
        let expected = match name {
            "elementwise.is-finite" => contract::is_finite(&a.kind),
            _ => contract::unary(&a.kind, allowed),
        };
        self.call(name, &[&a], expected, function(&a.tensor));
    }

    fn scalars(&mut self) {
        let a = self.any();
        let (x, y) = (self.number(), self.number());
        match self.byte() % 4 {
            0 => self.call(
                "elementwise.add-scalar",
                &[&a],
                contract::unary(&a.kind, NUMBERS),
                elementwise::add_scalar(&a.tensor, x),
            ),
            1 => self.call(
                "elementwise.multiply-scalar",
                &[&a],
                contract::unary(&a.kind, NUMBERS),
                elementwise::multiply_scalar(&a.tensor, x),
            ),
            2 => self.call(
                "elementwise.power-scalar",
                &[&a],
                contract::unary(&a.kind, FLOATS),
                elementwise::power_scalar(&a.tensor, x),
            ),
            _ => self.call(
                "elementwise.clamp",
                &[&a],
                contract::clamp(&a.kind, x, y),
                elementwise::clamp(&a.tensor, x, y),
            ),
        }
    }

    fn reductions(&mut self) {
        let a = self.any();
        let (axes, axis, keep) = (self.axes(a.kind.rank()), self.axis(a.kind.rank()), self.flag());
        match self.byte() % 6 {
            0 => self.call(
                "reduce.sum",
                &[&a],
                contract::reduced(&a.kind, &axes, keep, NUMBERS),
                reduce::sum(&a.tensor, &axes, keep),
            ),
            1 => self.call(
                "reduce.mean",
                &[&a],
                contract::reduced(&a.kind, &axes, keep, FLOATS),
                reduce::mean(&a.tensor, &axes, keep),
            ),
            2 => self.call(
                "reduce.maximum",
                &[&a],
                contract::extreme(&a.kind, axis, keep),
                reduce::maximum(&a.tensor, axis, keep),
            ),
            3 => self.call(
                "reduce.minimum",
                &[&a],
                contract::extreme(&a.kind, axis, keep),
                reduce::minimum(&a.tensor, axis, keep),
            ),
            choice => {
                let shape = a.kind.shape.clone();
                let a = if self.byte() < 200 { self.wanted(DType::Boolean, &shape) } else { a };
                let expected = contract::all_or_any(&a.kind);
                if choice == 4 {
                    self.call("reduce.all", &[&a], expected, reduce::all(&a.tensor));
                } else {
                    self.call("reduce.any", &[&a], expected, reduce::any(&a.tensor));
                }
            }
        }
    }

    fn arrangements(&mut self) {
        let a = self.any();
        let rank = a.kind.rank();
        match self.byte() % 6 {
            0 => {
                // Two axes become one, or one of size 1 appears, or anything.
                let mut wanted = a.kind.shape.clone();
                match (self.byte() % 5, rank) {
                    (0, 2..) => {
                        let last = wanted.pop().unwrap_or(1);
                        let merged = wanted[rank - 2].saturating_mul(last);
                        wanted[rank - 2] = merged;
                    }
                    (1, _) => wanted.insert(0, 1),
                    (2, _) => wanted = vec![a.kind.count()],
                    (3, _) => wanted.extend((0..self.below(10)).map(|_| 1)),
                    _ => wanted = self.shape(),
                }
                self.call(
                    "shape.reshape",
                    &[&a],
                    contract::reshape(&a.kind, &wanted),
                    shape::reshape(&a.tensor, &wanted),
                );
            }
            1 => {
                let mut axes: Vec<usize> = (0..rank).collect();
                for _ in 0..self.below(4) {
                    let (one, other) = (self.below(rank), self.below(rank));
                    if rank > 0 {
                        axes.swap(one, other);
                    }
                }
                if self.byte() > 230 {
                    axes = self.axes(rank);
                }
                if self.byte() > 252 {
                    // As long as a guest cares to make it.
                    axes = vec![0; 10_000];
                }
                self.call("shape.permute", &[&a], contract::permute(&a.kind, &axes), shape::permute(&a.tensor, &axes));
            }
            2 => {
                let mut wanted = a.kind.shape.clone();
                for size in &mut wanted {
                    if *size == 1 {
                        *size = self.size();
                    }
                }
                if self.flag() {
                    wanted.insert(0, self.size());
                }
                if self.byte() > 230 {
                    wanted = self.shape();
                }
                let expected = contract::broadcast_to(&a.kind, &wanted);
                self.call("shape.broadcast-to", &[&a], expected, shape::broadcast_to(&a.tensor, &wanted));
            }
            3 => {
                let axis = self.axis(rank);
                let mut all = vec![a.clone()];
                for _ in 0..self.below(4) {
                    let mut other = a.kind.shape.clone();
                    if let Some(size) = other.get_mut(axis) {
                        *size = self.below(5);
                    }
                    all.push(self.wanted(a.kind.dtype, &other));
                }
                if self.byte() > 250 {
                    all.clear();
                }
                let operands: Vec<&Value> = all.iter().collect();
                let (kinds, tensors) = (kinds(&operands), tensors(&operands));
                self.call(
                    "shape.concatenate",
                    &operands,
                    contract::concatenate(&kinds, axis),
                    shape::concatenate(&tensors, axis),
                );
            }
            _ => {
                let axis = self.axis(rank);
                let size = a.kind.shape.get(axis).copied().unwrap_or(2);
                let (start, end) = (self.axis(size.min(250) + 1), self.axis(size.min(250) + 1));
                let (start, end) = if self.byte() < 220 { (start.min(end), start.max(end)) } else { (start, end) };
                let expected = contract::slice(&a.kind, axis, start, end);
                self.call("shape.slice", &[&a], expected, shape::slice(&a.tensor, axis, start, end));
            }
        }
    }

    fn indexing(&mut self) {
        let a = self.any();
        let axis = self.axis(a.kind.rank());
        let bound = a.kind.shape.get(axis).copied().unwrap_or(3);
        let choice = self.byte() % 4;
        let target = self.size();
        let places = match choice {
            0 => {
                let rows = self.below(7);
                self.indices(&[rows], bound)
            }
            1 => self.indices(&[bound], target),
            2 => {
                let mut shape = a.kind.shape.clone();
                if let Some(size) = shape.get_mut(axis) {
                    *size = self.below(5);
                }
                self.indices(&shape, bound)
            }
            _ => self.indices(&a.kind.shape, target),
        };
        let values = index_values(&places);
        let indices = Indices { kind: &places.kind, values: &values };
        let operands = [&a, &places];
        match choice {
            0 => self.call(
                "index.select",
                &operands,
                contract::select(&a.kind, axis, &indices),
                index::select(&a.tensor, axis, &places.tensor),
            ),
            1 => self.call(
                "index.index-add",
                &operands,
                contract::index_add(&a.kind, axis, &indices, target),
                index::index_add(&a.tensor, axis, &places.tensor, target),
            ),
            2 => self.call(
                "index.gather",
                &operands,
                contract::gather(&a.kind, axis, &indices),
                index::gather(&a.tensor, axis, &places.tensor),
            ),
            _ => self.call(
                "index.scatter-add",
                &operands,
                contract::scatter_add(&a.kind, axis, &indices, target),
                index::scatter_add(&a.tensor, axis, &places.tensor, target),
            ),
        }
    }

    fn segments(&mut self) {
        let dtype = self.float();
        let (rows, m, n, count) = (self.size().min(300), self.below(6), self.below(6), self.size());
        let places = self.indices(&[rows], count.min(300));
        let values = index_values(&places);
        let choice = self.byte() % 3;
        let left = self.wanted(dtype, &[rows, if choice == 2 { n } else { m }]);
        let right = match choice {
            0 => self.wanted(dtype, &[rows, n]),
            _ => self.wanted(dtype, &[count, m, n]),
        };
        let indices = Indices { kind: &places.kind, values: &values };
        let operands = [&left, &right, &places];
        // The kernels need tables of this length.
        let slack = (count < 10_000).then_some(64);
        match choice {
            0 => self.call_within(
                slack,
                "segment.outer-sum",
                &operands,
                contract::outer_sum(&left.kind, &right.kind, &indices, count),
                segment::outer_sum(&left.tensor, &right.tensor, &places.tensor, count),
            ),
            1 => self.call_within(
                slack,
                "segment.contract-left",
                &operands,
                contract::contract(&left.kind, &right.kind, &indices, false),
                segment::contract_left(&left.tensor, &right.tensor, &places.tensor),
            ),
            _ => self.call_within(
                slack,
                "segment.contract-right",
                &operands,
                contract::contract(&left.kind, &right.kind, &indices, true),
                segment::contract_right(&left.tensor, &right.tensor, &places.tensor),
            ),
        }
    }

    fn algebra(&mut self) {
        if !self.byte().is_multiple_of(3) {
            let a = self.any();
            let columns = a.kind.shape.last().copied().unwrap_or(2);
            let mut other = vec![columns, self.size()];
            for axis in 0..a.kind.rank().saturating_sub(2) {
                if self.flag() {
                    let size = if self.flag() { 1 } else { a.kind.shape[axis] };
                    other.insert(other.len() - 2, size);
                }
            }
            let b = self.wanted(a.kind.dtype, &other);
            let expected = contract::matmul(&a.kind, &b.kind);
            self.call("linalg.matmul", &[&a, &b], expected, linalg::matmul(&a.tensor, &b.tensor));
            return;
        }
        let (dtype, n, k) = (self.float(), self.below(6), self.below(4));
        let (a, b) = (self.wanted(dtype, &[n, n]), self.wanted(dtype, &[n, k]));
        let expected = contract::solve(&a.kind, &b.kind);
        let is_finite =
            |value: &Value| value.tensor.read_float64().is_ok_and(|all| all.iter().all(|number| number.is_finite()));
        match linalg::solve(&a.tensor, &b.tensor) {
            Ok(Ok(solution)) => {
                assert!(is_finite(&a) && is_finite(&b), "a system with a number that is not finite is solved");
                self.call("linalg.solve", &[&a, &b], expected, Ok(solution));
            }
            Err(misuse) => self.call("linalg.solve", &[&a, &b], expected, Err(misuse)),
            Ok(Err(error)) => {
                let Some(expected) = expected else {
                    panic!("linalg.solve of {:?} and {:?} is misuse, found {error}", a.kind, b.kind)
                };
                match error {
                    linalg::SolveError::Singular(row) => {
                        assert!(is_finite(&a) && is_finite(&b) && row < expected.shape[0], "{error}")
                    }
                    linalg::SolveError::NotFinite => {
                        assert!(!(is_finite(&a) && is_finite(&b)), "all of {:?} is finite: {error}", a.kind);
                    }
                }
            }
        }
    }

    fn networks(&mut self) {
        let a = self.any();
        match self.byte() % 8 {
            0 => {
                let axis = self.axis(a.kind.rank());
                self.call("neural.softmax", &[&a], contract::softmax(&a.kind, axis), neural::softmax(&a.tensor, axis));
            }
            choice @ (1 | 2) => {
                let epsilon = self.number();
                let expected = contract::norm(&a.kind, epsilon);
                if choice == 1 {
                    self.call("neural.layer-norm", &[&a], expected, neural::layer_norm(&a.tensor, epsilon));
                } else {
                    self.call("neural.rms-norm", &[&a], expected, neural::rms_norm(&a.tensor, epsilon));
                }
            }
            3 => {
                let (inputs, outputs) = (a.kind.shape.last().copied().unwrap_or(2), self.size());
                let weight = self.wanted(a.kind.dtype, &[inputs, outputs]);
                let bias = self.flag().then(|| self.wanted(a.kind.dtype, &[outputs]));
                let operands: Vec<&Value> = [&a, &weight].into_iter().chain(&bias).collect();
                let expected = contract::linear(&a.kind, &weight.kind, bias.as_ref().map(|bias| &bias.kind));
                let found = neural::linear(&a.tensor, &weight.tensor, bias.as_ref().map(|bias| &bias.tensor));
                self.call("neural.linear", &operands, expected, found);
            }
            4 => {
                let mut shape = a.kind.shape.clone();
                if let Some(last) = shape.last_mut() {
                    *last = self.below(9);
                }
                let a = if self.flag() { self.wanted(DType::Float64, &shape) } else { a };
                let expected = contract::gated_linear_unit(&a.kind);
                self.call("neural.gated-linear-unit", &[&a], expected, neural::gated_linear_unit(&a.tensor));
            }
            _ => {
                let dtype = self.float();
                let (rows, heads, width) = (self.size().min(40), self.below(4), self.below(4));
                let count = self.size();
                let features = [rows, heads * width];
                let [queries, keys, values] = [0; 3].map(|_| self.wanted(dtype, &features));
                let bias = self.wanted(dtype, &[rows]);
                let places = self.indices(&[rows], count.min(200));
                let heads = if self.byte() > 245 { self.size() } else { heads };
                let scale = if self.byte() < 200 { 0.5 } else { self.number() };
                let of_places = index_values(&places);
                let indices = Indices { kind: &places.kind, values: &of_places };
                let expected = contract::attention(
                    [&queries.kind, &keys.kind, &values.kind],
                    &bias.kind,
                    &indices,
                    count,
                    heads,
                    scale,
                );
                let found = neural::attention(
                    &queries.tensor,
                    &keys.tensor,
                    &values.tensor,
                    &bias.tensor,
                    &places.tensor,
                    count,
                    heads,
                    scale,
                );
                let operands = [&queries, &keys, &values, &bias, &places];
                // Its weights are as many as there are pairs of rows, and its tables as long as `count`.
                let slack = (count < 10_000 && heads < 10).then_some(64 * (rows + 4));
                self.call_within(slack, "neural.attention", &operands, expected, found);
            }
        }
    }

    fn functions(&mut self) {
        let dtype = self.float();
        let rows = self.size().min(300);
        if self.flag() {
            let vectors = self.wanted(dtype, &[rows, 3]);
            let degree = self.axis(17);
            self.call(
                "spherical.solid-harmonics",
                &[&vectors],
                contract::solid_harmonics(&vectors.kind, degree),
                spherical::solid_harmonics(&vectors.tensor, degree),
            );
            return;
        }
        let table = [self.below(6), self.below(18), self.below(4)];
        let x = self.wanted(dtype, &[rows]);
        let coefficients = self.wanted(dtype, &table);
        let (lower, upper) = if self.byte() < 200 { (-1.0, 2.5) } else { (self.number(), self.number()) };
        let expected =
            contract::piecewise_polynomial(&x.kind, &coefficients.kind, coefficients.tensor.is_tracked(), lower, upper);
        let found = spherical::piecewise_polynomial(&x.tensor, &coefficients.tensor, lower, upper);
        self.call("spherical.piecewise-polynomial", &[&x, &coefficients], expected, found);
    }

    fn derivatives(&mut self) {
        match self.byte() % 8 {
            0 => {
                let a = self.any();
                let found = autodiff::track(&a.tensor);
                assert!(found.as_ref().map_or(true, Tensor::is_tracked), "`track` gives a tensor that is not tracked");
                self.call("autodiff.track", &[&a], contract::unary(&a.kind, FLOATS), found);
            }
            1 => {
                let a = self.any();
                let found = autodiff::detach(&a.tensor);
                assert!(!found.as_ref().is_ok_and(Tensor::is_tracked), "`detach` gives a tensor that is tracked");
                self.call("autodiff.detach", &[&a], Some(a.kind.clone()), found);
            }
            2 => {
                let enabled = self.byte() < 160;
                assert_eq!(autodiff::set_recording(enabled), self.recording, "recording is not what it was set to");
                self.recording = enabled;
            }
            _ if self.gradients == MOST_GRADIENTS => {}
            _ => self.grad(),
        }
    }

    fn grad(&mut self) {
        self.gradients += 1;
        let one_that_fits = |sequence: &mut Self| {
            let start = sequence.below(MOST_KEPT);
            let count = sequence.kept.len();
            let tracked = (0..count).map(|k| (start + k) % count).find(|&k| sequence.kept[k].tensor.is_tracked());
            match tracked {
                Some(place) if sequence.byte() < 230 => sequence.kept[place].clone(),
                _ => sequence.any(),
            }
        };
        let outputs: Vec<Value> =
            (0..self.below(3) + usize::from(self.byte() < 250)).map(|_| one_that_fits(self)).collect();
        let inputs: Vec<Value> =
            (0..self.below(3) + usize::from(self.byte() < 250)).map(|_| one_that_fits(self)).collect();
        let weights: Vec<Value> = match self.byte() {
            0..=127 => Vec::new(),
            128..=249 => outputs.iter().map(|output| self.wanted(output.kind.dtype, &output.kind.shape)).collect(),
            _ => vec![self.any()],
        };
        let [outputs, inputs, weights] = [&outputs, &inputs, &weights].map(|list| list.iter().collect::<Vec<&Value>>());
        let create_graph = self.flag();
        let expected = contract::grad(&kinds(&outputs), &kinds(&inputs), &kinds(&weights));
        let (name, found) = if create_graph {
            ("autodiff.grad", autodiff::grad(&tensors(&outputs), &tensors(&inputs), &tensors(&weights), true))
        } else {
            // Those that are kept have other handles, so that nothing of them may be freed.
            let owned = outputs.iter().map(|output| output.tensor.clone()).collect();
            ("autodiff.grad-and-release", autodiff::grad_and_release(owned, &tensors(&inputs), &tensors(&weights)))
        };
        if found.is_ok() && !create_graph {
            // Constants, unless an output's own gradient is handed back.
            let allowed =
                |tensor: &Tensor| !tensor.is_tracked() || weights.iter().any(|weight| weight.tensor.is_tracked());
            assert!(found.iter().flatten().all(allowed), "a gradient without a graph is tracked");
        }
        let recording = autodiff::set_recording(self.recording);
        assert_eq!(recording, self.recording, "`grad` leaves recording changed");
        self.calls(name, &[&outputs[..], &inputs, &weights].concat(), expected, found, None);
    }

    fn state(&mut self) {
        match self.byte() % 8 {
            0 | 1 => {
                let place = self.below(MOST_KEPT);
                if place < self.kept.len() {
                    self.kept.swap_remove(place);
                }
            }
            2 => self.adam(),
            3 => {
                let (shape, dtype) = (self.shape(), self.dtype());
                let (low, high) = if self.flag() { (-1.0, 2.0) } else { (self.number(), self.number()) };
                let fits = low.is_finite() && high.is_finite() && low <= high;
                let found = self.random.uniform(&self.device, &shape, low, high, dtype);
                for value in found.iter().flat_map(Tensor::read_float64).flatten() {
                    // Rounding to single precision may reach past a bound by half a digit.
                    let within = if dtype == DType::Float32 {
                        value >= low as f32 as f64 && value <= high as f32 as f64
                    } else {
                        value >= low && value <= high
                    };
                    assert!(within, "{value} is not between {low} and {high}");
                }
                self.call("random.uniform", &[], contract::random(&shape, dtype, fits), found);
            }
            4 => {
                let (shape, dtype) = (self.shape(), self.dtype());
                let (mean, deviation) = (self.number(), self.number());
                let fits = mean.is_finite() && deviation.is_finite() && deviation >= 0.0;
                let found = self.random.normal(&self.device, &shape, mean, deviation, dtype);
                self.call("random.normal", &[], contract::random(&shape, dtype, fits), found);
            }
            5 => {
                let count = u32::from(self.byte());
                let mut order = self.random.permutation(count);
                order.sort_unstable();
                assert!(order.into_iter().eq(0..count), "a permutation of {count} numbers lacks some");
            }
            6 => {
                let state: Vec<u8> = if self.flag() {
                    self.random.state()
                } else {
                    let length = [24, 24, 24, 0, 23, 25][self.below(6)];
                    (0..length).map(|_| self.byte()).collect()
                };
                match self.random.set_state(&state) {
                    Ok(()) => assert_eq!(self.random.state(), state, "a state is kept as another one"),
                    Err(problem) => check_message(&problem),
                }
            }
            _ => self.reads(),
        }
    }

    fn reads(&mut self) {
        let Value { tensor, kind } = self.any();
        let shared = tensor.clone();
        let checks = [
            (tensor.read_float32().map(|values| values.len()), kind.dtype == DType::Float32),
            (tensor.read_float64().map(|values| values.len()), FLOATS.contains(&kind.dtype)),
            (tensor.read_int64().map(|values| values.len()), [DType::Int32, DType::Int64].contains(&kind.dtype)),
            (tensor.read_boolean().map(|values| values.len()), kind.dtype == DType::Boolean),
        ];
        drop(tensor);
        for (found, allowed) in checks {
            match found {
                Ok(length) => assert!(allowed && length == kind.count(), "{kind:?} is read as {length} numbers"),
                Err(misuse) => {
                    check_message(&misuse.to_string());
                    assert!(!allowed, "{kind:?} cannot be read: {misuse}");
                }
            }
        }
        self.keep(Value { tensor: shared, kind });
    }

    fn adam(&mut self) {
        let dtype = self.float();
        let mut lists: [Vec<Value>; 4] = Default::default();
        for _ in 0..self.below(3) + usize::from(self.byte() < 250) {
            let shape = self.shape();
            for list in &mut lists {
                let value = self.wanted(dtype, &shape);
                list.push(value);
            }
        }
        if self.byte() > 250 {
            let shorter = self.below(4);
            lists[shorter].pop();
        }
        let mut options = AdamOptions {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            decoupled: self.flag(),
            step: 1 + u64::from(self.byte()),
        };
        if self.byte() > 200 {
            let [rate, beta1, beta2, epsilon, decay] = [0; 5].map(|_| self.number());
            options = AdamOptions {
                learning_rate: rate,
                beta1,
                beta2,
                epsilon,
                weight_decay: decay,
                step: self.input.arbitrary().unwrap_or(0),
                ..options
            };
        }
        let lists = lists.each_ref().map(|list| list.iter().collect::<Vec<&Value>>());
        let of_kinds = lists.each_ref().map(|list| kinds(list));
        let expected =
            contract::adam(of_kinds.each_ref().map(|list| &list[..]), [options.beta1, options.beta2], options.step);
        let [parameters, gradients, first, second] = lists.each_ref().map(|list| tensors(list));
        let found = optimizer::adam(&parameters, &gradients, &first, &second, &options).map(|states| {
            assert!(
                states.iter().all(|state| state.parameter.is_tracked()),
                "a parameter is not tracked after its step"
            );
            states.into_iter().flat_map(|state| [state.parameter, state.first_moment, state.second_moment]).collect()
        });
        self.calls("optimizer.adam", &lists.concat(), expected, found, Some(64));
    }
}

/// Whether the first has the larger shape.
fn choice_is_first(a: &Value, b: &Value) -> bool {
    a.kind.count() >= b.kind.count()
}

fn kinds<'a>(values: &[&'a Value]) -> Vec<&'a Kind> {
    values.iter().map(|value| &value.kind).collect()
}

fn tensors<'a>(values: &[&'a Value]) -> Vec<&'a Tensor> {
    values.iter().map(|value| &value.tensor).collect()
}

/// The values of indices as their owner knows them; none for what can be no indices.
fn index_values(places: &Value) -> Vec<i64> {
    if places.kind.dtype == DType::Int64 { values(places.tensor.read_int64()) } else { Vec::new() }
}

fn values<T>(read: Result<Vec<T>, Misuse>) -> Vec<T> {
    read.unwrap_or_else(|misuse| panic!("a tensor cannot be read as what it is: {misuse}"))
}

/// The bits of a number; all NaN are one.
fn number_bits(number: f64) -> u64 {
    if number.is_nan() { f64::NAN.to_bits() } else { number.to_bits() }
}
