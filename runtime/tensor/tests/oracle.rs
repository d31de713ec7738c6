//! Every operation of the contract, with its first and second derivatives, against two independent judges: what PyTorch computed
//! (`oracle/oracle.json`, made by `oracle/make_oracle.py`) and finite differences.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use kilnbox_tensor::op::{self, elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};
use serde_json::Value;
use support::{device, on_each_device};

mod support;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

struct Case(Value);

impl Case {
    fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    fn number(&self, key: &str) -> f64 {
        self.0["arguments"][key].as_f64().unwrap_or(f64::NAN)
    }

    fn integer(&self, key: &str) -> usize {
        self.0["arguments"][key].as_u64().and_then(|value| value.try_into().ok()).unwrap_or(usize::MAX)
    }

    fn integers(&self, key: &str) -> Vec<usize> {
        sizes(&self.0["arguments"][key])
    }

    fn argument(&self, key: &str) -> Result<Tensor, Misuse> {
        tensor(&self.0["arguments"][key])
    }

    fn tensors(&self, key: &str) -> Result<Vec<Tensor>, Misuse> {
        self.0[key].as_array().into_iter().flatten().map(tensor).collect()
    }

    fn is_differentiable(&self) -> bool {
        !self.0["cotangent"].is_null()
    }

    /// The operation itself; `None` for one that no branch knows.
    fn run(&self, inputs: &[Tensor]) -> Option<Result<Tensor, Misuse>> {
        let keep = self.0["arguments"]["keep"].as_bool().unwrap_or_default();
        let operands = |apply: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>| apply(&inputs[0], &inputs[1]);
        let flagged = |apply: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>| {
            apply(&self.argument("mask")?, &self.argument("other")?)
        };
        Some(match self.name() {
            "elementwise.add" => operands(&elementwise::add),
            "elementwise.subtract" => operands(&elementwise::subtract),
            "elementwise.multiply" => operands(&elementwise::multiply),
            "elementwise.divide" => operands(&elementwise::divide),
            "elementwise.maximum" => operands(&elementwise::maximum),
            "elementwise.minimum" => operands(&elementwise::minimum),
            "elementwise.add-scalar" => elementwise::add_scalar(&inputs[0], self.number("scalar")),
            "elementwise.multiply-scalar" => elementwise::multiply_scalar(&inputs[0], self.number("scalar")),
            "elementwise.power-scalar" => elementwise::power_scalar(&inputs[0], self.number("exponent")),
            "elementwise.clamp" => elementwise::clamp(&inputs[0], self.number("low"), self.number("high")),
            "elementwise.negative" => elementwise::negative(&inputs[0]),
            "elementwise.reciprocal" => elementwise::reciprocal(&inputs[0]),
            "elementwise.absolute" => elementwise::absolute(&inputs[0]),
            "elementwise.sign" => elementwise::sign(&inputs[0]),
            "elementwise.exp" => elementwise::exp(&inputs[0]),
            "elementwise.log" => elementwise::log(&inputs[0]),
            "elementwise.sqrt" => elementwise::sqrt(&inputs[0]),
            "elementwise.sin" => elementwise::sin(&inputs[0]),
            "elementwise.cos" => elementwise::cos(&inputs[0]),
            "elementwise.tanh" => elementwise::tanh(&inputs[0]),
            "elementwise.erf" => elementwise::erf(&inputs[0]),
            "elementwise.sigmoid" => elementwise::sigmoid(&inputs[0]),
            "elementwise.silu" => elementwise::silu(&inputs[0]),
            "elementwise.equal" => operands(&elementwise::equal),
            "elementwise.less" => operands(&elementwise::less),
            "elementwise.less-equal" => operands(&elementwise::less_equal),
            "elementwise.is-finite" => elementwise::is_finite(&inputs[0]),
            "elementwise.logical-and" => flagged(&elementwise::logical_and),
            "elementwise.logical-or" => flagged(&elementwise::logical_or),
            "elementwise.logical-not" => self.argument("mask").and_then(|mask| elementwise::logical_not(&mask)),
            "elementwise.where" => {
                self.argument("mask").and_then(|mask| elementwise::where_(&mask, &inputs[0], &inputs[1]))
            }
            "shape.reshape" => shape::reshape(&inputs[0], &self.integers("shape")),
            "shape.permute" => shape::permute(&inputs[0], &self.integers("axes")),
            "shape.broadcast-to" => shape::broadcast_to(&inputs[0], &self.integers("shape")),
            "shape.concatenate" => shape::concatenate(&inputs.iter().collect::<Vec<_>>(), self.integer("axis")),
            "shape.slice" => shape::slice(&inputs[0], self.integer("axis"), self.integer("start"), self.integer("end")),
            "reduce.sum" => reduce::sum(&inputs[0], &self.integers("axes"), keep),
            "reduce.mean" => reduce::mean(&inputs[0], &self.integers("axes"), keep),
            "reduce.maximum" => reduce::maximum(&inputs[0], self.integer("axis"), keep),
            "reduce.minimum" => reduce::minimum(&inputs[0], self.integer("axis"), keep),
            "reduce.all" => self.argument("mask").and_then(|mask| reduce::all(&mask)),
            "reduce.any" => self.argument("mask").and_then(|mask| reduce::any(&mask)),
            "index.select" => {
                self.argument("indices").and_then(|indices| index::select(&inputs[0], self.integer("axis"), &indices))
            }
            "index.index-add" => self
                .argument("indices")
                .and_then(|indices| index::index_add(&inputs[0], self.integer("axis"), &indices, self.integer("size"))),
            "index.gather" => {
                self.argument("indices").and_then(|indices| index::gather(&inputs[0], self.integer("axis"), &indices))
            }
            "index.scatter-add" => self.argument("indices").and_then(|indices| {
                index::scatter_add(&inputs[0], self.integer("axis"), &indices, self.integer("size"))
            }),
            "linalg.matmul" => operands(&linalg::matmul),
            "linalg.solve" => {
                operands(&|a, b| linalg::solve(a, b)?.map_err(|error| Misuse::new("linalg.solve", error.to_string())))
            }
            "neural.softmax" => neural::softmax(&inputs[0], self.integer("axis")),
            "neural.layer-norm" => neural::layer_norm(&inputs[0], self.number("epsilon")),
            "neural.rms-norm" => neural::rms_norm(&inputs[0], self.number("epsilon")),
            "neural.linear" => neural::linear(&inputs[0], &inputs[1], inputs.get(2)),
            "neural.gated-linear-unit" => neural::gated_linear_unit(&inputs[0]),
            "neural.attention" => self.argument("segments").and_then(|segments| {
                let [queries, keys, values, bias] = inputs else {
                    return Err(Misuse::new("oracle", "attention has four inputs"));
                };
                let (count, heads) = (self.integer("count"), self.integer("heads"));
                neural::attention(queries, keys, values, bias, &segments, count, heads, self.number("scale"))
            }),
            "segment.outer-sum" => self
                .argument("segments")
                .and_then(|segments| segment::outer_sum(&inputs[0], &inputs[1], &segments, self.integer("count"))),
            "segment.contract-left" => {
                self.argument("segments").and_then(|segments| segment::contract_left(&inputs[0], &inputs[1], &segments))
            }
            "segment.contract-right" => self
                .argument("segments")
                .and_then(|segments| segment::contract_right(&inputs[0], &inputs[1], &segments)),
            "spherical.solid-harmonics" => spherical::solid_harmonics(&inputs[0], self.integer("degree")),
            "spherical.piecewise-polynomial" => self.argument("coefficients").and_then(|table| {
                let table = op::cast(&table, inputs[0].dtype())?;
                spherical::piecewise_polynomial(&inputs[0], &table, self.number("lower"), self.number("upper"))
            }),
            "tensor.cast" => op::cast(&inputs[0], DType::Float64),
            _ => return None,
        })
    }
}

fn sizes(value: &Value) -> Vec<usize> {
    value.as_array().into_iter().flatten().filter_map(|size| size.as_u64()?.try_into().ok()).collect()
}

/// A stored tensor; its values say which dtype it has.
fn tensor(stored: &Value) -> Result<Tensor, Misuse> {
    let (device, shape) = (device(), sizes(&stored["shape"]));
    let values: Vec<&Value> = stored["values"].as_array().into_iter().flatten().collect();
    match values.first() {
        Some(Value::Bool(_)) => Tensor::from_boolean(
            &device,
            &shape,
            &values.iter().filter_map(|value| value.as_bool()).collect::<Vec<_>>(),
        ),
        Some(value) if value.is_i64() => {
            Tensor::from_int64(&device, &shape, &values.iter().filter_map(|value| value.as_i64()).collect::<Vec<_>>())
        }
        _ => {
            let values: Vec<f64> = values.iter().filter_map(|value| value.as_f64()).collect();
            Tensor::from_float64(&device, &shape, &values, DType::Float64)
        }
    }
}

fn cases() -> Fallible<Vec<Case>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/oracle.json");
    let values: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    Ok(values.into_iter().map(Case).collect())
}

fn differentiable() -> Fallible<impl Iterator<Item = Case>> {
    Ok(cases()?.into_iter().filter(Case::is_differentiable))
}

fn run(case: &Case, inputs: &[Tensor]) -> Result<Tensor, Misuse> {
    case.run(inputs).unwrap_or_else(|| Err(Misuse::new("oracle", format!("no branch runs {}", case.name()))))
}

fn tracked(tensors: &[Tensor]) -> Result<Vec<Tensor>, Misuse> {
    tensors.iter().map(autodiff::track).collect()
}

/// The gradients of `<output, cotangent>` by the inputs.
fn gradients(case: &Case, inputs: &[Tensor], create_graph: bool) -> Fallible<Vec<Tensor>> {
    let output = run(case, inputs)?;
    let cotangent = tensor(&case.0["cotangent"])?;
    Ok(autodiff::grad(&[&output], &inputs.iter().collect::<Vec<_>>(), &[&cotangent], create_graph)?)
}

/// The gradients of `sum of <gradients[k], directions[k]>` by the inputs.
fn second_gradients(case: &Case, inputs: &[Tensor]) -> Fallible<Vec<Tensor>> {
    let first = gradients(case, inputs, true)?;
    let directions = case.tensors("directions")?;
    let by = inputs.iter().collect::<Vec<_>>();
    Ok(autodiff::grad(&first.iter().collect::<Vec<_>>(), &by, &directions.iter().collect::<Vec<_>>(), false)?)
}

fn assert_close(case: &Case, what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) -> Fallible {
    let name = case.name();
    assert_eq!(found.shape(), expected.shape(), "{name}: shape of {what}");
    assert_eq!(found.dtype(), expected.dtype(), "{name}: dtype of {what}");
    if found.dtype() == DType::Boolean {
        assert_eq!(found.read_boolean()?, expected.read_boolean()?, "{name}: {what}");
        return Ok(());
    }
    for (k, (found, expected)) in found.read_float64()?.into_iter().zip(expected.read_float64()?).enumerate() {
        let near = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
        if !near {
            return Err(format!("{name}: {what}, element {k} is {found}, expected {expected}").into());
        }
    }
    Ok(())
}

/// Checks each case, and says of all that fail what is wrong first: a device that errs in one operation may err in others.
fn check_each(cases: impl IntoIterator<Item = Case>, check: impl Fn(&Case) -> Fallible) -> Fallible {
    let wrong: Vec<String> =
        cases.into_iter().filter_map(|case| check(&case).err()).map(|error| error.to_string()).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

#[test]
fn every_operation_of_the_contract_has_a_case() -> Fallible {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
    let covered: BTreeSet<String> = cases()?.iter().map(|case| case.name().to_owned()).collect();
    let mut expected = BTreeSet::new();
    for interface in ["elementwise", "shape", "reduce", "index", "linalg", "neural", "segment", "spherical"] {
        let text = std::fs::read_to_string(folder.join(format!("{interface}.wit")))?;
        let functions = text.lines().map(str::trim).filter(|line| !line.starts_with("///"));
        let names =
            functions.filter_map(|line| line.split_once(": func(")).map(|(name, _)| name.trim_start_matches('%'));
        expected.extend(names.map(|name| format!("{interface}.{name}")));
    }
    assert!(expected.len() > 50, "the contract was not found: {expected:?}");
    let missing: Vec<_> = expected.difference(&covered).collect();
    assert!(missing.is_empty(), "without a case: {missing:?}");
    Ok(())
}

/// Both sides round in float64; sums of up to 20 terms and a 4 by 4 system lose a few digits.
const ROUNDING: f64 = 1e-12;

#[test]
fn values_equal_those_of_pytorch() -> Fallible {
    on_each_device(|| {
        check_each(cases()?, |case| {
            let output = run(case, &case.tensors("inputs")?)?;
            assert_close(case, "output", &output, &tensor(&case.0["output"])?, ROUNDING)
        })
    })
}

/// Float32 runs other instantiations of the same kernels, and all that there is on devices without double precision.
#[test]
fn single_precision_gives_the_same_within_its_digits() -> Fallible {
    on_each_device(|| {
        let single = |tensor: &Tensor| op::cast(tensor, DType::Float32);
        let singles = |tensors: Vec<Tensor>| tensors.iter().map(single).collect::<Result<Vec<_>, _>>();
        check_each(cases()?.into_iter().filter(|case| case.name() != "tensor.cast"), |case| {
            let inputs = tracked(&singles(case.tensors("inputs")?)?)?;
            let output = run(case, &inputs)?;
            let expected = tensor(&case.0["output"])?;
            if !case.is_differentiable() {
                // The one case with a number that is finite in double precision only.
                if case.name() != "elementwise.is-finite" {
                    assert_close(case, "output", &output, &expected, 0.0)?;
                }
                return Ok(());
            }
            assert_eq!(output.dtype(), DType::Float32, "{}", case.name());
            // Six digits, less one for sums and for the condition of the system of equations.
            let tolerance = 2e-5;
            assert_close(case, "output", &op::cast(&output, DType::Float64)?, &expected, tolerance)?;
            let cotangent = single(&tensor(&case.0["cotangent"])?)?;
            let by = inputs.iter().collect::<Vec<_>>();
            let found = autodiff::grad(&[&output], &by, &[&cotangent], true)?;
            let directions = singles(case.tensors("directions")?)?;
            let weights = directions.iter().collect::<Vec<_>>();
            let second = autodiff::grad(&found.iter().collect::<Vec<_>>(), &by, &weights, true)?;
            let third = autodiff::grad(&second.iter().collect::<Vec<_>>(), &by, &weights, false)?;
            let expected_third = third_gradients(case, &tracked(&case.tensors("inputs")?)?)?;
            for (what, found, expected, tolerance) in [
                ("gradient", found, case.tensors("gradients")?, tolerance),
                ("second derivative", second, case.tensors("second")?, 10.0 * tolerance),
                ("third derivative", third, expected_third, 100.0 * tolerance),
            ] {
                for (found, expected) in found.iter().zip(&expected) {
                    assert_close(case, what, &op::cast(found, DType::Float64)?, expected, tolerance)?;
                }
            }
            Ok(())
        })
    })
}

#[test]
fn integers_are_added_compared_and_chosen() -> Fallible {
    on_each_device(|| {
        let device = device();
        let row = Tensor::from_int64(&device, &[3], &[1, -2, 3])?;
        let column = Tensor::from_int64(&device, &[2, 1], &[10, i64::MAX])?;
        assert_eq!(elementwise::add(&row, &column)?.read_int64()?, [11, 8, 13, i64::MIN, i64::MAX - 2, i64::MIN + 2]);
        assert_eq!(elementwise::multiply(&row, &row)?.read_int64()?, [1, 4, 9]);
        assert_eq!(elementwise::subtract(&row, &row)?.read_int64()?, [0, 0, 0]);
        assert_eq!(elementwise::negative(&row)?.read_int64()?, [-1, 2, -3]);
        assert_eq!(elementwise::add_scalar(&row, -1.9)?.read_int64()?, [0, -3, 2]);
        assert_eq!(elementwise::multiply_scalar(&row, 2.9)?.read_int64()?, [2, -4, 6]);
        assert_eq!(elementwise::less(&row, &column)?.read_boolean()?, [true; 6]);
        assert_eq!(reduce::sum(&row, &[], false)?.read_int64()?, [2]);
        let taken = elementwise::where_(&elementwise::less(&row, &Tensor::arange(&device, 3)?)?, &row, &column)?;
        assert_eq!(taken.read_int64()?, [10, -2, 10, i64::MAX, -2, i64::MAX]);
        assert_eq!(index::select(&row, 0, &Tensor::from_int64(&device, &[2], &[2, 0])?)?.read_int64()?, [3, 1]);
        let single = op::cast(&row, DType::Int32)?;
        assert_eq!((single.dtype(), single.read_int64()?), (DType::Int32, vec![1, -2, 3]));
        assert_eq!(elementwise::add(&single, &single)?.read_int64()?, [2, -4, 6]);
        Ok(())
    })
}

#[test]
fn conversions_truncate_and_saturate() -> Fallible {
    on_each_device(|| {
        let device = device();
        let numbers = [1.9, -1.9, 0.0, f64::NAN, f64::INFINITY, -1e300];
        let floats = Tensor::from_float64(&device, &[6], &numbers, DType::Float64)?;
        assert_eq!(op::cast(&floats, DType::Int64)?.read_int64()?, [1, -1, 0, 0, i64::MAX, i64::MIN]);
        let small = op::cast(&floats, DType::Int32)?.read_int64()?;
        assert_eq!(small, [1, -1, 0, 0, i64::from(i32::MAX), i64::from(i32::MIN)]);
        assert_eq!(op::cast(&floats, DType::Boolean)?.read_boolean()?, [true, true, false, true, true, true]);
        // Up to where a number in double precision has no more fractions, and beyond.
        let sizes = (0..70).map(|power| 2_f64.powi(power)).flat_map(|size| [size - 0.5, size, size + 0.75]);
        let signed: Vec<f64> = sizes.flat_map(|size| [size, -size]).chain([0.0, -0.0, 0.999, -0.999]).collect();
        for count in [signed.len(), 2 * 48 * 3] {
            let numbers = &signed[..count];
            let floats = Tensor::from_float64(&device, &[count], numbers, DType::Float64)?;
            let expected: Vec<i64> = numbers.iter().map(|&number| number as i64).collect();
            assert_eq!(op::cast(&floats, DType::Int64)?.read_int64()?, expected);
            let expected: Vec<i64> = numbers.iter().map(|&number| number as f32 as i64).collect();
            assert_eq!(op::cast(&op::cast(&floats, DType::Float32)?, DType::Int64)?.read_int64()?, expected);
        }
        let flags = Tensor::from_boolean(&device, &[2], &[true, false])?;
        for dtype in [DType::Float32, DType::Float64] {
            assert_eq!(op::cast(&flags, dtype)?.read_float64()?, [1.0, 0.0]);
        }
        for dtype in [DType::Int32, DType::Int64] {
            assert_eq!(op::cast(&flags, dtype)?.read_int64()?, [1, 0]);
        }
        Ok(())
    })
}

#[test]
fn first_derivatives_equal_those_of_pytorch() -> Fallible {
    on_each_device(|| {
        check_each(differentiable()?, |case| {
            let found = gradients(case, &tracked(&case.tensors("inputs")?)?, false)?;
            for (k, expected) in case.tensors("gradients")?.iter().enumerate() {
                assert_close(case, &format!("gradient by input {k}"), &found[k], expected, ROUNDING)?;
            }
            Ok(())
        })
    })
}

#[test]
fn second_derivatives_equal_those_of_pytorch() -> Fallible {
    on_each_device(|| {
        check_each(differentiable()?, |case| {
            let found = second_gradients(case, &tracked(&case.tensors("inputs")?)?)?;
            for (k, expected) in case.tensors("second")?.iter().enumerate() {
                // A second derivative of a norm or of a solution is a difference of larger terms.
                assert_close(case, &format!("second derivative by input {k}"), &found[k], expected, 10.0 * ROUNDING)?;
            }
            Ok(())
        })
    })
}

/// Zeros, infinities, numbers that overflow and what is no number: devices have ways of their own with each. The processor's are those of IEEE 754.
#[test]
fn special_numbers_give_what_they_give_on_the_processor() -> Fallible {
    const SPECIAL: [f32; 16] = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -2.5,
        20.0,
        -20.0,
        100.0,
        -100.0,
        1e4,
        -1e4,
        3e38,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    type Operation = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>);
    let operations: [Operation; 39] = [
        ("add", elementwise::add),
        ("subtract", elementwise::subtract),
        ("multiply", elementwise::multiply),
        ("divide", elementwise::divide),
        ("maximum", elementwise::maximum),
        ("minimum", elementwise::minimum),
        ("equal", elementwise::equal),
        ("less", elementwise::less),
        ("less-equal", elementwise::less_equal),
        ("where", |a, b| elementwise::where_(&elementwise::less(a, b)?, a, b)),
        ("negative", |a, _| elementwise::negative(a)),
        ("reciprocal", |a, _| elementwise::reciprocal(a)),
        ("absolute", |a, _| elementwise::absolute(a)),
        ("sign", |a, _| elementwise::sign(a)),
        ("exp", |a, _| elementwise::exp(a)),
        ("log", |a, _| elementwise::log(a)),
        ("sqrt", |a, _| elementwise::sqrt(a)),
        ("tanh", |a, _| elementwise::tanh(a)),
        ("erf", |a, _| elementwise::erf(a)),
        ("sigmoid", |a, _| elementwise::sigmoid(a)),
        ("silu", |a, _| elementwise::silu(a)),
        ("is-finite", |a, _| elementwise::is_finite(a)),
        ("add-scalar of an infinity", |a, _| elementwise::add_scalar(a, f64::INFINITY)),
        ("multiply-scalar by NaN", |a, _| elementwise::multiply_scalar(a, f64::NAN)),
        ("multiply-scalar by what is finite in double precision only", |a, _| elementwise::multiply_scalar(a, 1e300)),
        ("power-scalar to 2", |a, _| elementwise::power_scalar(a, 2.0)),
        ("power-scalar to -3", |a, _| elementwise::power_scalar(a, -3.0)),
        ("power-scalar to 1001", |a, _| elementwise::power_scalar(a, 1001.0)),
        ("power-scalar to 0.5", |a, _| elementwise::power_scalar(a, 0.5)),
        ("power-scalar to -1.5", |a, _| elementwise::power_scalar(a, -1.5)),
        ("clamp", |a, _| elementwise::clamp(a, -2.0, 3.0)),
        ("clamp to infinities", |a, _| elementwise::clamp(a, f64::NEG_INFINITY, f64::INFINITY)),
        ("sum of rows", |a, b| reduce::sum(&elementwise::add(a, b)?, &[1], false)),
        ("largest of rows", |a, b| reduce::maximum(&elementwise::add(a, b)?, 1, false)),
        ("smallest of rows", |a, b| reduce::minimum(&elementwise::add(a, b)?, 1, false)),
        ("softmax of columns", |a, b| neural::softmax(&elementwise::maximum(a, b)?, 0)),
        ("cast to boolean", |a, _| op::cast(a, DType::Boolean)),
        ("cast to int32", |a, _| op::cast(a, DType::Int32)),
        ("cast to float64", |a, _| op::cast(a, DType::Float64)),
    ];
    let results = |device: &Device, operation: &Operation| -> Fallible<Vec<f64>> {
        let count = SPECIAL.len();
        let column = Tensor::from_float32(device, &[count, 1], &SPECIAL)?;
        let row = Tensor::from_float32(device, &[1, count], &SPECIAL)?;
        let result = (operation.1)(&column, &row)?;
        Ok(op::cast(&result, DType::Float64)?.read_float64()?)
    };
    /// Up to here Vulkan's specification says how exact quotients are.
    const LARGEST_DIVISOR: f64 = (1_u128 << 126) as f64;
    on_each_device(|| {
        let is_graphics = ["metal", "vulkan", "webgpu"].contains(&device().name());
        for operation in &operations {
            let (found, expected) = (results(&device(), operation)?, results(&Device::cpu(), operation)?);
            assert_eq!(found.len(), expected.len(), "{}", operation.0);
            for (k, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // As above, and a rounding of 1: some functions are put together from terms of that size.
                let near = (found - expected).abs() <= 2e-5 * expected.abs() + f64::from(f32::EPSILON);
                let same = found == expected || found.is_nan() && expected.is_nan() || near && expected.is_finite();
                // Graphics promise no quotients by larger numbers: NVIDIA's driver multiplies by 0 instead.
                let is_huge = f64::from(SPECIAL[k % SPECIAL.len()]).abs() > LARGEST_DIVISOR;
                let is_by_zero = operation.0 == "divide" && is_graphics && is_huge && (*found == 0.0 || found.is_nan());
                assert!(same || is_by_zero, "{}: element {k} is {found}, on the processor {expected}", operation.0);
            }
        }
        Ok(())
    })
}

/// The inputs with one element moved.
fn moved(inputs: &[Tensor], which: usize, element: usize, by: f64) -> Fallible<Vec<Tensor>> {
    let mut inputs = inputs.to_vec();
    let mut values = inputs[which].read_float64()?;
    values[element] += by;
    inputs[which] = Tensor::from_float64(&device(), inputs[which].shape(), &values, DType::Float64)?;
    Ok(inputs)
}

fn dot(a: &[Tensor], b: &[Tensor]) -> Fallible<f64> {
    let mut total = 0.0;
    for (a, b) in a.iter().zip(b) {
        total += a.read_float64()?.iter().zip(b.read_float64()?).map(|(a, b)| a * b).sum::<f64>();
    }
    Ok(total)
}

/// Compares `derivative` with central differences of `function`, element by element of every input.
fn assert_slope(
    case: &Case,
    what: &str,
    function: &dyn Fn(&[Tensor]) -> Fallible<f64>,
    derivative: &[Tensor],
) -> Fallible {
    // The error of a central difference is step^2 f''' / 6 (about 1e-9 here) plus rounding / step (about 1e-11).
    let (step, tolerance) = (1e-5, 1e-7);
    let inputs = case.tensors("inputs")?;
    for (which, derivative) in derivative.iter().enumerate() {
        for (element, found) in derivative.read_float64()?.into_iter().enumerate() {
            let upper = function(&moved(&inputs, which, element, step)?)?;
            let lower = function(&moved(&inputs, which, element, -step)?)?;
            let expected = (upper - lower) / (2.0 * step);
            let near = (found - expected).abs() <= tolerance * (1.0 + expected.abs());
            if !near {
                let name = case.name();
                return Err(format!(
                    "{name}: {what} by element {element} of input {which} is {found}, by finite differences {expected}"
                )
                .into());
            }
        }
    }
    Ok(())
}

#[test]
fn first_derivatives_equal_finite_differences() -> Fallible {
    on_each_device(|| {
        check_each(differentiable()?, |case| {
            let found = gradients(case, &tracked(&case.tensors("inputs")?)?, false)?;
            let cotangent = [tensor(&case.0["cotangent"])?];
            assert_slope(case, "derivative", &|inputs| dot(&[run(case, inputs)?], &cotangent), &found)
        })
    })
}

#[test]
fn second_derivatives_equal_finite_differences() -> Fallible {
    on_each_device(|| {
        check_each(differentiable()?, |case| {
            let found = second_gradients(case, &tracked(&case.tensors("inputs")?)?)?;
            let directions = case.tensors("directions")?;
            let first = |inputs: &[Tensor]| dot(&gradients(case, &tracked(inputs)?, false)?, &directions);
            assert_slope(case, "second derivative", &first, &found)
        })
    })
}

/// The gradients of `sum of <second[k], directions[k]>` by the inputs.
fn third_gradients(case: &Case, inputs: &[Tensor]) -> Fallible<Vec<Tensor>> {
    let by = inputs.iter().collect::<Vec<_>>();
    let first = gradients(case, inputs, true)?;
    let directions = case.tensors("directions")?;
    let weights = directions.iter().collect::<Vec<_>>();
    let second = autodiff::grad(&first.iter().collect::<Vec<_>>(), &by, &weights, true)?;
    Ok(autodiff::grad(&second.iter().collect::<Vec<_>>(), &by, &weights, false)?)
}

/// Some operations have kernels for two derivatives, and are taken apart for the third.
#[test]
fn third_derivatives_equal_finite_differences() -> Fallible {
    on_each_device(|| {
        check_each(differentiable()?, |case| {
            let found = third_gradients(case, &tracked(&case.tensors("inputs")?)?)?;
            let directions = case.tensors("directions")?;
            let second = |inputs: &[Tensor]| dot(&second_gradients(case, &tracked(inputs)?)?, &directions);
            assert_slope(case, "third derivative", &second, &found)
        })
    })
}

/// The gradient of a gradient of a gradient: third derivatives of x^4 and of the sine.
#[test]
fn gradients_go_to_any_order() -> Fallible {
    on_each_device(|| {
        let x = autodiff::track(&Tensor::from_float64(&device(), &[2], &[0.5, -1.5], DType::Float64)?)?;
        let mut value = elementwise::multiply(&elementwise::power_scalar(&x, 4.0)?, &elementwise::sin(&x)?)?;
        for _ in 0..3 {
            value = autodiff::grad(&[&value], &[&x], &[], true)?.remove(0);
        }
        // (x^4 sin x)''' by the product rule.
        let expected = |x: f64| (24.0 * x - 12.0 * x.powi(3)) * x.sin() + (36.0 * x * x - x.powi(4)) * x.cos();
        for (found, x) in value.read_float64()?.into_iter().zip([0.5, -1.5]) {
            assert!((found - expected(x)).abs() < 1e-12, "{found}, expected {}", expected(x));
        }
        Ok(())
    })
}

/// What no gradient reaches is zero, and what was not asked for is not computed.
#[test]
fn gradients_of_what_does_not_connect_are_zero() -> Fallible {
    on_each_device(|| {
        let leaf = |value: f64| -> Result<Tensor, Misuse> {
            autodiff::track(&Tensor::from_float64(&device(), &[], &[value], DType::Float64)?)
        };
        let (x, y) = (leaf(2.0)?, leaf(3.0)?);
        let output = elementwise::multiply(&x, &autodiff::detach(&y)?)?;
        let found = autodiff::grad(&[&output], &[&x, &y], &[], false)?;
        assert_eq!((found[0].read_float64()?, found[1].read_float64()?), (vec![3.0], vec![0.0]));
        let recording = autodiff::set_recording(false);
        assert!(recording && !elementwise::multiply(&x, &y)?.is_tracked());
        assert!(!autodiff::set_recording(true));
        Ok(())
    })
}

/// A history of a hundred thousand operations is differentiated and dropped without a deep stack.
#[test]
fn a_long_history_does_not_overflow_the_stack() -> Fallible {
    on_each_device(|| {
        let x = autodiff::track(&Tensor::from_float64(&device(), &[], &[1.0], DType::Float64)?)?;
        let mut value = x.clone();
        for _ in 0..100_000 {
            value = elementwise::add_scalar(&value, 1e-6)?;
        }
        assert_eq!(autodiff::grad(&[&value], &[&x], &[], false)?[0].read_float64()?, [1.0]);
        Ok(())
    })
}
