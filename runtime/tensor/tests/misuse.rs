//! Whatever a caller sends, an operation answers or refuses in a sentence: no panic, no undefined value, nothing beyond the quota.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kilnbox_tensor::context::Context;
use kilnbox_tensor::op::optimizer::{AdamOptions, adam};
use kilnbox_tensor::op::{self, elementwise, index, linalg, neural, reduce, segment, shape, spherical};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{DType, Device, Misuse, Tensor, autodiff};
use support::{device, on_each_device};

mod support;

const DTYPES: [DType; 5] = [DType::Float32, DType::Float64, DType::Int32, DType::Int64, DType::Boolean];

/// Tensors of all dtypes and of many shapes: scalars, empty ones, ones of rank 8, indices in and out of range.
fn zoo() -> Result<Vec<Tensor>, Misuse> {
    let device = device();
    let float = if device.computes(DType::Float64) { DType::Float64 } else { DType::Float32 };
    let shapes: [&[usize]; 13] = [
        &[],
        &[0],
        &[1],
        &[3],
        &[4],
        &[0, 3],
        &[3, 0],
        &[3, 3],
        &[2, 3],
        &[2, 0, 3],
        &[2, 3, 4],
        &[1, 1, 3, 3],
        &[1, 2, 1, 2, 1, 2, 1, 2],
    ];
    let mut zoo = Vec::new();
    for shape in shapes {
        for dtype in DTYPES {
            zoo.push(Tensor::full(&device, shape, 1.0, dtype)?);
        }
        zoo.push(autodiff::track(&Tensor::full(&device, shape, -0.5, float)?)?);
    }
    for indices in [[0, 1, 2], [-1, 0, 1], [0, 3, 1_i64 << 40], [i64::MIN, i64::MAX, 0]] {
        zoo.push(Tensor::from_int64(&device, &[3], &indices)?);
    }
    zoo.push(Tensor::from_float64(&device, &[3], &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY], float)?);
    Ok(zoo)
}

/// Runs an operation on arguments that may be anything, and its derivative; says whether it was accepted.
#[track_caller]
fn attempt(what: &str, operation: impl Fn() -> Result<Tensor, Misuse>) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), Misuse> {
        let output = operation()?;
        match output.dtype() {
            DType::Boolean => drop(output.read_boolean()?),
            dtype if dtype.is_integer() => drop(output.read_int64()?),
            _ => {
                drop(output.read_float64()?);
                let first = autodiff::grad(&[&output], &[&output], &[], true)?;
                assert_eq!(first[0].shape(), output.shape());
            }
        }
        Ok(())
    }));
    match outcome {
        Ok(Ok(())) => true,
        Ok(Err(misuse)) => {
            assert!(misuse.operation.contains('.') && !misuse.problem.is_empty(), "{what}: {misuse:?}");
            false
        }
        Err(_) => panic!("{what} panicked"),
    }
}

type Unary = fn(&Tensor) -> Result<Tensor, Misuse>;
type Binary = fn(&Tensor, &Tensor) -> Result<Tensor, Misuse>;

/// The gradient of an operation's output by its operands, so that derivatives meet odd shapes as well.
fn with_gradient(a: &[&Tensor], run: impl Fn(&[&Tensor]) -> Result<Tensor, Misuse>) -> Result<Tensor, Misuse> {
    let leaves: Vec<Tensor> = a
        .iter()
        .map(|&tensor| if tensor.dtype().is_float() { autodiff::track(tensor) } else { Ok(tensor.clone()) })
        .collect::<Result<_, _>>()?;
    let output = run(&leaves.iter().collect::<Vec<_>>())?;
    if output.dtype().is_float() {
        let by: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.dtype().is_float()).collect();
        let first = autodiff::grad(&[&output], &by, &[], true)?;
        for (gradient, leaf) in first.iter().zip(&by) {
            assert_eq!(gradient.shape(), leaf.shape(), "the gradient of {output:?}");
        }
        autodiff::grad(&first.iter().collect::<Vec<_>>(), &by, &[], false)?;
    }
    Ok(output)
}

#[test]
fn operations_of_one_tensor_never_panic() -> Result<(), Misuse> {
    on_each_device(|| {
        let unary: &[(&str, Unary)] = &[
            ("negative", elementwise::negative),
            ("reciprocal", elementwise::reciprocal),
            ("absolute", elementwise::absolute),
            ("sign", elementwise::sign),
            ("exp", elementwise::exp),
            ("log", elementwise::log),
            ("sqrt", elementwise::sqrt),
            ("sin", elementwise::sin),
            ("cos", elementwise::cos),
            ("tanh", elementwise::tanh),
            ("erf", elementwise::erf),
            ("sigmoid", elementwise::sigmoid),
            ("silu", elementwise::silu),
            ("is-finite", elementwise::is_finite),
            ("logical-not", elementwise::logical_not),
            ("all", reduce::all),
            ("any", reduce::any),
            ("add-scalar", |a| elementwise::add_scalar(a, f64::NAN)),
            ("add-scalar", |a| elementwise::add_scalar(a, 1e300)),
            ("multiply-scalar", |a| elementwise::multiply_scalar(a, f64::INFINITY)),
            ("power-scalar", |a| elementwise::power_scalar(a, -2.5)),
            ("power-scalar", |a| elementwise::power_scalar(a, 0.0)),
            ("clamp", |a| elementwise::clamp(a, -1.0, 1.0)),
            ("clamp", |a| elementwise::clamp(a, 1.0, -1.0)),
            ("clamp", |a| elementwise::clamp(a, f64::NAN, 1.0)),
            ("layer-norm", |a| neural::layer_norm(a, 1e-5)),
            ("layer-norm", |a| neural::layer_norm(a, -1.0)),
            ("rms-norm", |a| neural::rms_norm(a, 0.0)),
            ("gated-linear-unit", neural::gated_linear_unit),
            ("reshape", |a| shape::reshape(a, &[a.count()])),
            ("reshape", |a| shape::reshape(a, &[1, 3])),
            ("reshape", |a| shape::reshape(a, &[usize::MAX, usize::MAX])),
            ("reshape", |a| shape::reshape(a, &[1; 9])),
            ("reshape", |a| shape::reshape(a, &[])),
            ("broadcast-to", |a| shape::broadcast_to(a, &[2, 3, 4])),
            ("broadcast-to", |a| shape::broadcast_to(a, &[])),
            ("broadcast-to", |a| shape::broadcast_to(a, &[1 << 40, 1 << 40])),
            ("permute", |a| shape::permute(a, &(0..a.shape().len()).rev().collect::<Vec<_>>())),
            ("permute", |a| shape::permute(a, &[0, 0])),
            ("permute", |a| shape::permute(a, &[usize::MAX])),
            ("sum", |a| reduce::sum(a, &[], false)),
            ("sum", |a| reduce::sum(a, &[0], true)),
            ("sum", |a| reduce::sum(a, &[1, 0], false)),
            ("sum", |a| reduce::sum(a, &[0, 0], false)),
            ("sum", |a| reduce::sum(a, &[usize::MAX], false)),
            ("mean", |a| reduce::mean(a, &[], true)),
            ("mean", |a| reduce::mean(a, &[1], false)),
            ("solid-harmonics", |a| spherical::solid_harmonics(a, 0)),
            ("solid-harmonics", |a| spherical::solid_harmonics(a, 4)),
            ("solid-harmonics", |a| spherical::solid_harmonics(a, 17)),
            ("solid-harmonics", |a| spherical::solid_harmonics(a, usize::MAX)),
        ];
        let zoo = zoo()?;
        for (name, run) in unary {
            for a in &zoo {
                attempt(&format!("{name} of {a:?}"), || with_gradient(&[a], |leaves| run(leaves[0])));
            }
        }
        for a in &zoo {
            for axis in [0, 1, 7, 8, usize::MAX] {
                for keep in [false, true] {
                    attempt("maximum", || with_gradient(&[a], |leaves| reduce::maximum(leaves[0], axis, keep)));
                    attempt("minimum", || with_gradient(&[a], |leaves| reduce::minimum(leaves[0], axis, keep)));
                }
                attempt("softmax", || with_gradient(&[a], |leaves| neural::softmax(leaves[0], axis)));
                for (start, end) in [(0, 0), (0, 1), (1, 2), (2, 1), (0, usize::MAX), (usize::MAX, 0)] {
                    attempt("slice", || with_gradient(&[a], |leaves| shape::slice(leaves[0], axis, start, end)));
                }
            }
            for dtype in DTYPES {
                assert!(attempt("cast", || with_gradient(&[a], |leaves| op::cast(leaves[0], dtype))));
            }
        }
        Ok(())
    })
}

/// One number for each row.
fn first_column(a: &Tensor) -> Result<Tensor, Misuse> {
    reduce::sum(a, &[1], false)
}

#[test]
fn operations_of_several_tensors_never_panic() -> Result<(), Misuse> {
    on_each_device(|| {
        let binary: &[(&str, Binary)] = &[
            ("add", elementwise::add),
            ("subtract", elementwise::subtract),
            ("multiply", elementwise::multiply),
            ("divide", elementwise::divide),
            ("maximum", elementwise::maximum),
            ("minimum", elementwise::minimum),
            ("equal", elementwise::equal),
            ("less", elementwise::less),
            ("less-equal", elementwise::less_equal),
            ("logical-and", elementwise::logical_and),
            ("logical-or", elementwise::logical_or),
            ("matmul", linalg::matmul),
            ("solve", |a, b| linalg::solve(a, b)?.map_err(|error| Misuse::new("linalg.solve", error.to_string()))),
            ("concatenate", |a, b| shape::concatenate(&[a, b], 0)),
            ("concatenate", |a, b| shape::concatenate(&[a, b, a], 1)),
            ("select", |a, b| index::select(a, 0, b)),
            ("select", |a, b| index::select(a, 1, b)),
            ("index-add", |a, b| index::index_add(a, 0, b, 3)),
            ("index-add", |a, b| index::index_add(a, 0, b, 0)),
            ("gather", |a, b| index::gather(a, 0, b)),
            ("scatter-add", |a, b| index::scatter_add(a, 0, b, 3)),
            ("scatter-add", |a, b| index::scatter_add(a, 9, b, usize::MAX)),
            ("linear", |a, b| neural::linear(a, b, None)),
            ("linear", |a, b| neural::linear(a, b, Some(a))),
            ("linear", |a, b| neural::linear(a, a, Some(b))),
            ("attention", |a, b| neural::attention(a, a, a, &first_column(a)?, b, 3, 1, 1.0)),
            ("attention", |a, b| neural::attention(a, a, a, &first_column(a)?, b, 3, 3, -0.5)),
            ("attention", |a, b| neural::attention(a, a, a, &first_column(a)?, b, usize::MAX, 1, 1.0)),
            ("attention", |a, b| neural::attention(a, b, a, &first_column(a)?, b, 3, 0, 1.0)),
            ("attention", |a, b| neural::attention(a, a, b, b, b, 3, 2, f64::NAN)),
            ("outer-sum", |a, b| segment::outer_sum(a, a, b, 3)),
            ("outer-sum", |a, b| segment::outer_sum(a, a, b, usize::MAX)),
            ("piecewise-polynomial", |a, b| spherical::piecewise_polynomial(a, b, 0.0, 2.0)),
            ("piecewise-polynomial", |a, b| spherical::piecewise_polynomial(a, b, 2.0, 0.0)),
            ("piecewise-polynomial", |a, b| spherical::piecewise_polynomial(a, &autodiff::detach(b)?, -1e300, 1e300)),
            ("grad", |a, b| Ok(autodiff::grad(&[a], &[b], &[b], true)?.remove(0))),
        ];
        let zoo = zoo()?;
        for (name, run) in binary {
            for a in &zoo {
                for b in &zoo {
                    attempt(&format!("{name} of {a:?} and {b:?}"), || {
                        with_gradient(&[a, b], |leaves| run(leaves[0], leaves[1]))
                    });
                }
            }
        }
        // Three tensors: every third of the zoo in each place, or it takes minutes.
        for (k, a) in zoo.iter().enumerate() {
            for (l, b) in zoo.iter().enumerate().filter(|(l, _)| (k + l) % 3 == 0) {
                for (_, c) in zoo.iter().enumerate().filter(|(m, _)| (l + m) % 2 == 0) {
                    attempt("where", || {
                        with_gradient(&[a, b, c], |three| elementwise::where_(three[0], three[1], three[2]))
                    });
                    attempt("contract-left", || {
                        with_gradient(&[a, b, c], |three| segment::contract_left(three[0], three[1], three[2]))
                    });
                    attempt("contract-right", || {
                        with_gradient(&[a, b, c], |three| segment::contract_right(three[0], three[1], three[2]))
                    });
                }
            }
        }
        assert!(shape::concatenate(&[], 0).is_err());
        Ok(())
    })
}

/// Who calls the engine without a run may have tensors of two devices: no operation takes both.
#[test]
fn tensors_of_two_devices_do_not_mix() -> Result<(), Misuse> {
    on_each_device(|| {
        let here = device();
        let there = if here == Device::cpu() { Device::portable() } else { Device::cpu() };
        let ones = |device: &Device, shape: &[usize]| Tensor::full(device, shape, 1.0, DType::Float32);
        let flags = |device: &Device| Tensor::from_boolean(device, &[2], &[true, false]);
        let zeros = |device: &Device| Tensor::full(device, &[2], 0.0, DType::Int64);
        for (one, other) in [(&here, &there), (&there, &here)] {
            let (a, b) = (autodiff::track(&ones(one, &[2, 2])?)?, ones(other, &[2, 2])?);
            let (row, other_row) = (ones(one, &[2])?, ones(other, &[2])?);
            let (places, other_blocks, table) = (zeros(one)?, ones(other, &[1, 2, 2])?, ones(other, &[1, 2, 2])?);
            let options = AdamOptions {
                learning_rate: 0.1,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                decoupled: false,
                step: 1,
            };
            let step = |four: [&Tensor; 4]| {
                adam(&[four[0]], &[four[1]], &[four[2]], &[four[3]], &options)
                    .map(|mut states| states.remove(0).parameter)
            };
            let cases: [(&str, &dyn Fn() -> Result<Tensor, Misuse>); 25] = [
                ("add", &|| elementwise::add(&a, &b)),
                ("add of a row", &|| elementwise::add(&a, &other_row)),
                ("maximum", &|| elementwise::maximum(&a, &b)),
                ("less", &|| elementwise::less(&a, &b)),
                ("logical-and", &|| elementwise::logical_and(&flags(one)?, &flags(other)?)),
                ("where, its sides", &|| elementwise::where_(&flags(one)?, &row, &other_row)),
                ("where, its condition", &|| elementwise::where_(&flags(other)?, &row, &row)),
                ("concatenate", &|| shape::concatenate(&[&a, &b], 0)),
                ("matmul", &|| linalg::matmul(&a, &b)),
                ("solve", &|| linalg::solve(&a, &b)?.map_err(|error| Misuse::new("linalg.solve", error.to_string()))),
                ("linear", &|| neural::linear(&a, &b, None)),
                ("linear, its bias", &|| neural::linear(&a, &a, Some(&other_row))),
                ("attention, its keys", &|| neural::attention(&a, &b, &a, &row, &places, 1, 1, 1.0)),
                ("attention, its values", &|| neural::attention(&a, &a, &b, &row, &places, 1, 1, 1.0)),
                ("attention, its bias", &|| neural::attention(&a, &a, &a, &other_row, &places, 1, 1, 1.0)),
                ("outer-sum", &|| segment::outer_sum(&a, &b, &places, 1)),
                ("contract-left", &|| segment::contract_left(&a, &other_blocks, &places)),
                ("contract-right", &|| segment::contract_right(&a, &other_blocks, &places)),
                ("piecewise-polynomial", &|| spherical::piecewise_polynomial(&row, &table, 0.0, 2.0)),
                ("grad", &|| Ok(autodiff::grad(&[&elementwise::exp(&a)?], &[&a], &[&b], false)?.remove(0))),
                ("grad of a leaf", &|| Ok(autodiff::grad(&[&a], &[&a], &[&b], false)?.remove(0))),
                ("adam, its gradient", &|| step([&a, &b, &a, &a])),
                ("adam, its first moment", &|| step([&a, &a, &b, &a])),
                ("adam, its second moment", &|| step([&a, &a, &a, &b])),
                ("adam, its parameter", &|| step([&b, &a, &a, &a])),
            ];
            for (name, run) in cases {
                match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(Err(misuse)) => assert!(misuse.problem.contains("are on `"), "{name}: {misuse}"),
                    Ok(Ok(tensor)) => panic!("{name} of {one:?} and {other:?} gave {tensor:?}"),
                    Err(_) => panic!("{name} of {one:?} and {other:?} panicked"),
                }
            }
        }
        Ok(())
    })
}

/// Indices that a device computed are checked as others are, and those that a kernel makes for itself stay within its table, whatever its operand
/// holds: kernels of devices do not look where they read.
#[test]
fn indices_that_were_computed_are_checked() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        let beside = Tensor::from_float32(&device, &[4], &[1.5, -2.5, 3.5, -4.5])?;
        let row = |values: &[f32]| Tensor::from_float32(&device, &[values.len()], values);
        let table = row(&[10.0, 20.0, 30.0])?;
        for wrong in [3.0, -1.0, 1e9, -1e9, 1e30, f32::INFINITY, f32::NEG_INFINITY] {
            // The device computes what the index will be.
            let places = op::cast(&elementwise::add_scalar(&row(&[0.0, wrong])?, 0.0)?, DType::Int64)?;
            let refused: [(&str, Result<Tensor, Misuse>); 6] = [
                ("select", index::select(&table, 0, &places)),
                ("gather", index::gather(&table, 0, &places)),
                ("index-add", index::index_add(&row(&[1.0, 2.0])?, 0, &places, 3)),
                ("scatter-add", index::scatter_add(&row(&[1.0, 2.0])?, 0, &places, 3)),
                ("outer-sum", {
                    let rows = Tensor::full(&device, &[2, 2], 1.0, DType::Float32)?;
                    segment::outer_sum(&rows, &rows, &places, 3)
                }),
                ("attention", {
                    let (rows, bias) = (Tensor::full(&device, &[2, 2], 1.0, DType::Float32)?, row(&[0.0, 0.0])?);
                    neural::attention(&rows, &rows, &rows, &bias, &places, 3, 1, 1.0)
                }),
            ];
            for (name, outcome) in refused {
                match outcome {
                    Err(misuse) => assert!(misuse.problem.contains("is outside of 0 .. 3"), "{name}: {misuse}"),
                    Ok(tensor) => panic!("{name} took the index {wrong} and gave {tensor:?}"),
                }
            }
        }
        // Two intervals from 0 to 2, with the values 1 and 2 on them.
        let steps = Tensor::from_float32(&device, &[2, 1, 1], &[1.0, 2.0])?;
        let x = [0.5, 1.5, 2.0, -0.1, 2.1, 1e9, -1e9, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let found = spherical::piecewise_polynomial(&row(&x)?, &steps, 0.0, 2.0)?.read_float32()?;
        assert_eq!(found[..11], [1.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(found[11].is_nan(), "{found:?}");
        assert_eq!(beside.read_float32()?, [1.5, -2.5, 3.5, -4.5]);
        Ok(())
    })
}

#[test]
fn an_optimizer_step_never_panics() -> Result<(), Misuse> {
    on_each_device(|| {
        let options = AdamOptions {
            learning_rate: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            step: 1,
        };
        let zoo = zoo()?;
        let accepts = |options: &AdamOptions, four: [&[&Tensor]; 4]| {
            attempt("adam", || {
                let states = adam(four[0], four[1], four[2], four[3], options)?;
                Ok(states.into_iter().next().map_or_else(|| zoo[0].clone(), |state| state.parameter))
            })
        };
        for a in &zoo {
            for b in &zoo {
                let fits = a.dtype().is_float() && a.dtype() == b.dtype() && a.shape() == b.shape();
                assert_eq!(accepts(&options, [&[a], &[b], &[a], &[b]]), fits, "{a:?} and {b:?}");
            }
        }
        let one = &zoo[0];
        assert!(accepts(&options, [&[], &[], &[], &[]]));
        assert!(!accepts(&options, [&[one], &[], &[one], &[one]]));
        for wrong in [
            AdamOptions { step: 0, ..options },
            AdamOptions { beta1: 1.0, ..options },
            AdamOptions { beta2: f64::NAN, ..options },
            AdamOptions { beta1: -0.1, ..options },
        ] {
            assert!(!accepts(&wrong, [&[one], &[one], &[one], &[one]]), "{wrong:?}");
        }
        assert!(accepts(&AdamOptions { step: u64::MAX, ..options }, [&[one], &[one], &[one], &[one]]));
        Ok(())
    })
}

/// One step by hand, from the paper: with zero moments the first step is the learning rate times the sign.
#[test]
fn adam_takes_the_step_of_the_paper() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        // A few roundings of each precision.
        let dtypes = [(DType::Float64, 1e-14), (DType::Float32, 1e-6)];
        let kinds = [(false, 0.0), (false, 0.1), (true, 0.1)];
        for ((dtype, tolerance), (decoupled, weight_decay)) in
            dtypes.into_iter().flat_map(|dtype| kinds.map(|kind| (dtype, kind)))
        {
            let row = |values: &[f64]| Tensor::from_float64(&device, &[2], values, dtype);
            let zero = row(&[0.0, 0.0])?;
            let options = |step| AdamOptions {
                learning_rate: 0.01,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-8,
                weight_decay,
                decoupled,
                step,
            };
            let (mut parameter, mut first, mut second) = (row(&[1.0, -2.0])?, zero.clone(), zero.clone());
            let (mut p, mut m, mut v) = ([1.0, -2.0], [0.0; 2], [0.0; 2]);
            for (step, gradient) in [(1, [0.3, -4.0]), (2, [-0.1, 2.0]), (3, [0.0, 1.0])] {
                let state = adam(&[&parameter], &[&row(&gradient)?], &[&first], &[&second], &options(step))?.remove(0);
                (parameter, first, second) = (state.parameter, state.first_moment, state.second_moment);
                for k in 0..2 {
                    let g = gradient[k] + if decoupled { 0.0 } else { weight_decay * p[k] };
                    m[k] = 0.9 * m[k] + 0.1 * g;
                    v[k] = 0.99 * v[k] + 0.01 * g * g;
                    let (unbiased_m, unbiased_v) =
                        (m[k] / (1.0 - 0.9_f64.powi(step as i32)), v[k] / (1.0 - 0.99_f64.powi(step as i32)));
                    p[k] -= if decoupled { 0.01 * weight_decay * p[k] } else { 0.0 };
                    p[k] -= 0.01 * unbiased_m / (f64::sqrt(unbiased_v) + 1e-8);
                }
                for (found, expected) in parameter.read_float64()?.into_iter().zip(p) {
                    assert!((found - expected).abs() < tolerance, "{found}, expected {expected}");
                }
            }
            assert!(parameter.is_tracked());
        }
        Ok(())
    })
}

#[test]
fn constructors_never_panic() -> Result<(), Misuse> {
    on_each_device(|| {
        check_constructors();
        Ok(())
    })
}

fn check_constructors() {
    let device = device();
    for shape in [&[][..], &[0], &[3], &[2, 2], &[usize::MAX], &[usize::MAX, 2], &[1 << 40, 1 << 40, 0], &[1; 9]] {
        attempt("from-float32", || Tensor::from_float32(&device, shape, &[1.0; 3]));
        attempt("from-float64", || Tensor::from_float64(&device, shape, &[1.0; 4], DType::Int32));
        attempt("from-int64", || Tensor::from_int64(&device, shape, &[1]));
        attempt("from-boolean", || Tensor::from_boolean(&device, shape, &[]));
    }
    let random = |low: f64, high: f64, dtype: DType| {
        attempt("uniform", || Random::new(0).uniform(&device, &[2, 0], low, high, dtype))
    };
    assert!(random(0.0, 1.0, DType::Float32) && random(1.0, 1.0, DType::Float64));
    assert!(
        !random(1.0, 0.0, DType::Float32) && !random(f64::NAN, 0.0, DType::Float32) && !random(0.0, 1.0, DType::Int64)
    );
}

/// What would not fit is refused before memory is asked for: each of these would take terabytes.
#[test]
fn the_quota_is_asked_before_memory_is() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        let context = Context::new(1 << 20, f64::INFINITY);
        let (_entered, quota) = (context.enter(), context.quota());
        let row = Tensor::full(&device, &[64], 1.0, DType::Float64)?;
        let column = shape::reshape(&row, &[64, 1])?;
        let huge = 1_usize << 40;
        let refused: &[(&str, &dyn Fn() -> Result<Tensor, Misuse>)] = &[
            ("full", &|| Tensor::full(&device, &[huge], 0.0, DType::Float32)),
            ("arange", &|| Tensor::arange(&device, huge)),
            ("uniform", &|| Random::new(0).uniform(&device, &[huge], 0.0, 1.0, DType::Float64)),
            ("broadcast-to", &|| shape::broadcast_to(&column, &[64, huge])),
            ("index-add", &|| index::index_add(&row, 0, &Tensor::arange(&device, 64)?, huge)),
            ("outer-sum", &|| segment::outer_sum(&column, &column, &Tensor::arange(&device, 64)?, huge)),
            ("matmul", &|| {
                let tall = shape::broadcast_to(&column, &[16, 64, 1])?;
                let wide = shape::reshape(&Tensor::full(&device, &[4096], 0.0, DType::Float64)?, &[1, 4096])?;
                linalg::matmul(&tall, &wide)
            }),
        ];
        for (name, run) in refused {
            match run() {
                Err(misuse) => assert!(misuse.limit == Some("tensor_bytes"), "{name}: {misuse}"),
                Ok(tensor) => panic!("{name} made {tensor:?}"),
            }
        }
        // Blocks without elements take no memory, however many there are.
        let nothing = Tensor::full(&device, &[huge, 0, 1], 0.0, DType::Float64)?;
        let sums = segment::contract_left(
            &Tensor::full(&device, &[64, 0], 0.0, DType::Float64)?,
            &nothing,
            &Tensor::arange(&device, 64)?,
        )?;
        assert_eq!(sums.read_float64()?, [0.0; 64]);
        drop((row, column, nothing, sums));
        assert_eq!(quota.used(), 0, "bytes stay counted");
        assert!(quota.peak() <= quota.limit());
        Ok(())
    })
}

/// What would last for ever is refused before it begins.
#[test]
fn the_cost_of_an_operation_is_bounded() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        let square = Tensor::full(&device, &[64, 64], 1.0, DType::Float32)?;
        let (row, nowhere) =
            (Tensor::full(&device, &[64], 0.0, DType::Float32)?, Tensor::full(&device, &[64], 0.0, DType::Int64)?);
        let blocks = shape::reshape(&square, &[1, 64, 64])?;
        let cases: &[(&str, &dyn Fn() -> Result<Tensor, Misuse>)] = &[
            ("matmul", &|| linalg::matmul(&square, &square)),
            ("batched matmul", &|| linalg::matmul(&square, &blocks)),
            ("solve", &|| linalg::solve(&square, &square)?.or(Ok(square.clone()))),
            ("linear", &|| neural::linear(&square, &square, None)),
            ("outer-sum", &|| segment::outer_sum(&square, &square, &nowhere, 1)),
            ("contract-left", &|| segment::contract_left(&square, &blocks, &nowhere)),
            ("contract-right", &|| segment::contract_right(&square, &blocks, &nowhere)),
            ("attention", &|| neural::attention(&square, &square, &square, &row, &nowhere, 1, 4, 1.0)),
        ];
        let cost = 64.0 * 64.0 * 64.0;
        for (name, run) in cases {
            let within = |most: f64| {
                let _entered = Context::new(usize::MAX, most).enter();
                run()
            };
            assert!(within(cost).is_ok(), "{name} at the bound");
            match within(cost - 1.0) {
                Err(misuse) => assert_eq!(misuse.limit, Some("operation_cost"), "{name}: {misuse}"),
                Ok(_) => panic!("{name} was not refused"),
            }
        }
        Ok(())
    })
}

/// What fuzzing found refused, or worse, though the contract allows it.
#[test]
fn what_the_contract_allows_is_computed() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        let row = Tensor::from_float64(&device, &[3], &[2.0, 1.0, 0.5], DType::Float64)?;
        // Exponents that are whole but no integer of any machine.
        for (exponent, expected) in [(f64::INFINITY, [f64::INFINITY, 1.0, 0.0]), (-1e300, [0.0, 1.0, f64::INFINITY])] {
            assert_eq!(elementwise::power_scalar(&row, exponent)?.read_float64()?, expected);
        }
        let empty = Tensor::full(&device, &[2, 0], 0.0, DType::Float64)?;
        for axis in [0, 1] {
            assert_eq!(neural::softmax(&empty, axis)?.shape(), [2, 0]);
        }
        // Truth values that were picked are truth values like others.
        let flags = Tensor::from_boolean(&device, &[2], &[true, false])?;
        let picked = index::select(&flags, 0, &Tensor::from_int64(&device, &[2], &[1, 0])?)?;
        let gathered = index::gather(&flags, 0, &Tensor::from_int64(&device, &[1], &[0])?)?;
        let joined = shape::concatenate(&[&flags, &picked, &gathered], 0)?;
        assert_eq!(joined.read_boolean()?, [true, false, false, true, true]);
        // The gradient of a solution by way of a gradient that is no number.
        let matrix = autodiff::track(&Tensor::from_float64(&device, &[1, 1], &[2.0], DType::Float64)?)?;
        let solution = linalg::solve(&matrix, &Tensor::full(&device, &[1, 1], 1.0, DType::Float64)?)?;
        let solution = solution.unwrap_or_else(|error| panic!("{error}"));
        let weight = Tensor::full(&device, &[1, 1], f64::INFINITY, DType::Float64)?;
        let gradient = &autodiff::grad(&[&solution], &[&matrix], &[&weight], false)?[0];
        assert!(gradient.read_float64()?[0].is_nan());
        // Bounds whose difference overflows.
        let drawn = Random::new(1).uniform(&device, &[100], -1e308, 1e308, DType::Float64)?;
        assert!(drawn.read_float64()?.iter().all(|value| value.abs() <= 1e308));
        Ok(())
    })
}

#[test]
fn what_is_as_large_as_a_caller_says_is_refused_before_memory_is_taken() -> Result<(), Misuse> {
    on_each_device(|| {
        let device = device();
        let huge = u32::MAX as usize;
        // Sizes that cannot be counted, whichever of them is 0.
        for sizes in [[0, huge, huge, huge], [huge, huge, huge, 0]] {
            assert!(
                Tensor::full(&device, &sizes, 0.0, DType::Float32)
                    .is_err_and(|misuse| misuse.problem.contains("addressed"))
            );
        }
        // Blocks without elements, but four thousand millions of them: their sums are 0.
        let blocks = Tensor::full(&device, &[huge, 2, 0], 0.0, DType::Float64)?;
        let rows = Tensor::full(&device, &[3, 0], 0.0, DType::Float64)?;
        let segments = Tensor::from_int64(&device, &[3], &[0, 7, huge as i64 - 1])?;
        assert_eq!(segment::contract_right(&rows, &blocks, &segments)?.read_float64()?, [0.0; 6]);
        // A list that is no permutation is not repeated in full.
        let message =
            shape::permute(&rows, &vec![0; 100_000]).map_or_else(|misuse| misuse.to_string(), |_| String::new());
        assert!(
            message.ends_with("0] and more is no permutation of the axes of shape [3, 0]") && message.len() < 200,
            "{message}"
        );
        Ok(())
    })
}
