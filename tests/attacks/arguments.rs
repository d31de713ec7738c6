//! Guests that call the host with arguments that break it: attacks 11 to 30.

use kilnbox_host::Limits;
use kilnbox_tensor::memory::BOOKKEEPING;

use crate::guest::{attempt, describe, describing, seconds, slowness, small};
use crate::script::{BOOLEAN, FLOAT32, FLOAT64, INT32, INT64, RESULT, Script, endings, float, int};
use crate::table::Outcome::{ArchitectureError, Harmless, Limit, Trapped};
use crate::table::{Ending, Fallible};

/// Half of what 32 bits can count.
const HALF: u32 = 1 << 31;
/// The largest size that can be written.
const MOST: u32 = u32::MAX;

attacks! {
    "11" shapes_that_overflow_are_refused:
    "tensors whose number of elements overflows, or with 9 or 1000 axes" => Trapped, says [], {
        endings(&small(), &[
            ("tensor.full: shape [2147483648, 2147483648] has more elements than can be addressed",
                &|s| _ = s.ones(&[HALF, HALF])),
            ("more elements than can be addressed", &|s| _ = s.ones(&[MOST; 8])),
            ("more elements than can be addressed", &|s| _ = s.full(&[MOST, MOST, 4, 0], 0.0, FLOAT64)),
            ("rank 9 is above 8", &|s| _ = s.ones(&[1; 9])),
            ("rank 1000 is above 8", &|s| _ = s.ones(&[1; 1000])),
            ("tensor.from-float32", &|s| {
                let (shape, values) = (s.sizes(&[HALF, 2, HALF, 2]), s.sizes(&[]));
                s.try_call("tensor.from-float32", &[&shape, &values]);
            }),
            ("random.normal", &|s| {
                let shape = s.sizes(&[MOST; 3]);
                s.try_call("random.normal", &[&shape, &float(0.0), &float(1.0), FLOAT32]);
            }),
            ("shape.reshape", &|s| {
                let a = s.ones(&[4]);
                let shape = s.sizes(&[MOST; 8]);
                s.try_call("shape.reshape", &[&a, &shape]);
            }),
            ("shape.broadcast-to", &|s| {
                let a = s.ones(&[1]);
                let shape = s.sizes(&[MOST; 8]);
                s.try_call("shape.broadcast-to", &[&a, &shape]);
            }),
            // A list of sizes that is not in the guest's memory.
            ("out of bounds", &|s| s.try_call("tensor.full", &["(i32.const 64)", &int(1 << 29), &float(0.0), FLOAT32])),
        ])?
    }

    "11b" shapes_without_elements_are_ordinary:
    "tensors of rank 0, and those without elements, in every kind of operation" => Harmless, says [], {
        let mut script = Script::default();
        script.ones(&[]);
        let empty = script.ones(&[0, MOST]);
        let other = script.ones(&[MOST, 0]);
        let none = script.indices(&[]);
        for function in ["exp", "negative", "sign"] {
            script.try_call(&format!("elementwise.{function}"), &[&empty]);
        }
        script.try_call("elementwise.add", &[&empty, &empty]);
        script.try_call("index.select", &[&empty, &int(0), &none]);
        script.try_call("shape.slice", &[&empty, &int(1), &int(5), &int(MOST)]);
        let axes = script.sizes(&[1, 0]);
        script.try_call("shape.permute", &[&empty, &axes]);
        script.try_call("linalg.matmul", &[&empty, &other]);
        let axes = script.sizes(&[]);
        script.try_call("reduce.sum", &[&empty, &axes, &int(0)]);
        script.try_call("neural.softmax", &[&empty, &int(1)]);
        script.ending(small())?
    }

    "11c" tensors_beyond_the_quota_are_never_allocated:
    "one tensor of 2 TiB" => Limit("tensor_bytes"), says ["needs 22517998136"], {
        endings(&small(), &[
            ("tensor.full", &|s| _ = s.full(&[1 << 16, 1 << 16, 1 << 16], 0.0, FLOAT64)),
            ("random.uniform", &|s| {
                let shape = s.sizes(&[1 << 16, 1 << 16, 1 << 16]);
                s.try_call("random.uniform", &[&shape, &float(0.0), &float(1.0), FLOAT64]);
            }),
        ])?
    }

    "12" values_must_be_as_many_as_the_shape_says:
    "more or fewer values than the shape needs, or values that are not in place" => Trapped, says [], {
        endings(&small(), &[
            ("tensor.from-float32: shape [4] needs 4 values, found 3", &|s| {
                let (shape, values) = (s.sizes(&[4]), s.sizes(&[0; 3]));
                s.try_call("tensor.from-float32", &[&shape, &values]);
            }),
            ("shape [2, 2] needs 4 values, found 5", &|s| {
                let (shape, values) = (s.sizes(&[2, 2]), s.sizes(&[0; 5]));
                s.try_call("tensor.from-float32", &[&shape, &values]);
            }),
            ("shape [] needs 1 values, found 0", &|s| {
                let (shape, values) = (s.sizes(&[]), s.sizes(&[]));
                s.try_call("tensor.from-int64", &[&shape, &values]);
            }),
            ("shape [0, 4294967295] needs 0 values, found 1", &|s| {
                let (shape, values) = (s.sizes(&[0, MOST]), s.list([[0; 8]]));
                s.try_call("tensor.from-int64", &[&shape, &values]);
            }),
            ("tensor.from-boolean: shape [9] needs 9 values, found 8", &|s| {
                let (shape, values) = (s.sizes(&[9]), s.list([[1]; 8]));
                s.try_call("tensor.from-boolean", &[&shape, &values]);
            }),
            ("not aligned", &|s| {
                let shape = s.sizes(&[2]);
                s.try_call("tensor.from-float32", &[&shape, "(i32.const 65)", &int(2)]);
            }),
            ("dtype is int64, expected float32 or float64", &|s| {
                let (shape, values) = (s.sizes(&[1]), s.list([[0; 8]]));
                s.try_call("tensor.from-float64", &[&shape, &values, INT64]);
            }),
            ("unexpected discriminant: 5", &|s| {
                let shape = s.sizes(&[1]);
                s.try_call("tensor.full", &[&shape, &float(0.0), &int(5)]);
            }),
        ])?
    }

    "13" a_list_beyond_the_guests_memory_is_refused:
    "a list of 4 GiB that is not in the guest's memory" => Trapped, says ["out of bounds"], {
        endings(&small(), &[
            ("", &|s| {
                let shape = s.sizes(&[1 << 30]);
                s.try_call("tensor.from-float32", &[&shape, "(i32.const 64)", &int(1 << 30)]);
            }),
            ("", &|s| {
                let shape = s.sizes(&[MOST]);
                s.try_call("tensor.from-float32", &[&shape, "(i32.const -8)", &int(MOST)]);
            }),
            ("", &|s| s.run("report.log", &[&int(1), "(i32.const -1)", &int(MOST)])),
        ])?
    }

    "13b" too_much_cannot_be_copied_in_one_call:
    "a list of 160 MiB in one call" => Limit("call_bytes"), says [], {
        describe(&values_in_parts(40 << 20, 40 << 20)?, roomy())?
    }

    "13c" the_same_in_parts_is_no_attack:
    "the same list in parts of 16 MiB" => Harmless, says [], {
        describe(&values_in_parts(40 << 20, 4 << 20)?, roomy())?
    }

    "14" tensors_fill_the_quota_and_no_more:
    "tensors made in a loop until memory is full" => Limit("tensor_bytes"), says [], {
        // Sixteen tensors of 64 KiB and what is counted beside each fit; a seventeenth does not.
        let most = 16 * ((64 << 10) + 2 * BOOKKEEPING as u64);
        let limits = Limits { tensor_bytes: most, ..small() };
        let filled = describe(&tensors_in_a_loop(17, false)?, limits.clone())?;
        assert_eq!(describe(&tensors_in_a_loop(16, false)?, limits)?.outcome, Harmless);
        filled.saying(&[&format!("of {most} are in use")])?
    }

    "14b" what_is_given_back_can_be_used_again:
    "a thousand times the quota, given back in between" => Harmless, says [], {
        describe(&tensors_in_a_loop(16_000, true)?, Limits { tensor_bytes: 80 << 10, ..small() })?
    }

    "15" handles_are_counted:
    "handles that are never given back" => Limit("handles"), says ["1000 handles"], {
        let limits = Limits { handles: 1000, ..small() };
        let shared = describing(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
            (loop $again (drop (call $tensor.tensor.share (local.get $a))) (br $again))",
            "",
        )?;
        let made = describing(
            "(loop $again (drop (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0))) (br $again))",
            "",
        )?;
        vec![describe(&shared, limits.clone())?, describe(&made, limits)?]
    }

    "16" handles_cannot_be_forged:
    "handles that were given back, are of another kind, or are invented" => Trapped, says [], {
        endings(&small(), &[
            ("unknown handle index", &|s| {
                let a = s.ones(&[1]);
                s.run("tensor.tensor.drop", &[&a]);
                s.try_call("elementwise.exp", &[&a]);
            }),
            ("unknown handle index", &|s| {
                let a = s.ones(&[1]);
                s.run("tensor.tensor.drop", &[&a]);
                s.run("tensor.tensor.drop", &[&a]);
            }),
            ("unknown handle index", &|s| s.try_call("elementwise.exp", &[&int(0)])),
            ("unknown handle index", &|s| s.try_call("elementwise.exp", &[&int(77)])),
            ("unknown handle index", &|s| s.try_call("elementwise.exp", &["(i32.const -1)"])),
            ("handle index 1 used with the wrong type", &|s| {
                let a = s.ones(&[1]);
                s.try_call("data.systems.count", &[&a]);
            }),
            ("handle index 1 used with the wrong type", &|s| {
                let a = s.ones(&[1]);
                s.run("data.batches.drop", &[&a]);
            }),
            // One that is good, in a list with one that is not.
            ("unknown handle index", &|s| {
                let a = s.ones(&[1]);
                let list = s.handles(&[&a, &int(55)]);
                s.try_call("shape.concatenate", &[&list, &int(0)]);
            }),
        ])?
    }

    "17" the_history_of_gradients_is_counted:
    "a history of operations that no gradient is ever asked of" => Limit("tensor_bytes"), says [], {
        describe(&history(10_000_000, false)?, Limits { tensor_bytes: 16 << 20, ..small() })?
    }

    "17b" a_long_history_does_not_overflow_the_stack:
    "gradients through 100,000 operations in a row" => Harmless, says [], {
        let limits = Limits { tensor_bytes: 512 << 20, seconds_per_call: seconds(60.0), ..small() };
        describe(&history(100_000 / slowness() as usize, true)?, limits)?
    }

    "18" indices_out_of_range_are_found:
    "indices just past the end, negative, or beyond 32 bits, in all that reads or writes by index (on the CPU)"
    => Trapped, says ["is outside of 0 .. "], {
        let mut found = Vec::new();
        for wrong in [3, -1, i64::MIN, i64::MAX, (1 << 32) + 1, i64::from(i32::MIN)] {
            found.extend(by_index(&|s| s.indices(&[0, wrong]))?);
        }
        found
    }

    "19" computed_indices_are_checked_as_well:
    "indices that were computed: positions plus 1000, casts of random and infinite numbers (on the CPU)"
    => Trapped, says ["is outside of 0 .. "], {
        let mut found = by_index(&|s| {
            let places = s.call("tensor.arange", &[&int(2)]);
            s.call("elementwise.add-scalar", &[&places, &float(1000.0)])
        })?;
        found.extend(by_index(&|s| {
            let shape = s.sizes(&[2]);
            let values = s.call("random.uniform", &[&shape, &float(1e6), &float(2e9), FLOAT32]);
            s.call("tensor.cast", &[&values, INT64])
        })?);
        found.extend(by_index(&|s| {
            let values = s.full(&[2], f64::INFINITY, FLOAT64);
            s.call("tensor.cast", &[&values, INT64])
        })?);
        found
    }

    "20" slices_stay_within_their_axis:
    "slices whose start is past their end, or whose end is past the axis" => Trapped, says [], {
        let slice = |axis: u32, start: u32, end: u32| move |s: &mut Script| {
            let a = s.ones(&[3, 2]);
            s.try_call("shape.slice", &[&a, &int(axis), &int(start), &int(end)]);
        };
        endings(&small(), &[
            ("shape.slice: 2 .. 1 of an axis of size 3", &slice(0, 2, 1)),
            ("0 .. 4 of an axis of size 3", &slice(0, 0, 4)),
            ("4294967295 .. 0 of an axis of size 3", &slice(0, MOST, 0)),
            ("4294967295 .. 4294967295 of an axis of size 2", &slice(1, MOST, MOST)),
            ("axis 2 of a tensor of shape [3, 2]", &slice(2, 0, 1)),
            ("axis 4294967295 of a tensor", &slice(MOST, 0, 1)),
        ])?
    }

    "21" operands_that_do_not_fit_are_named:
    "operands whose shapes do not fit, 0 or 4 billion heads, degrees, segments, axes twice" => Trapped, says [], {
        endings(&small(), &[
            ("linalg.matmul", &|s| { let (a, b) = (s.ones(&[2, 3]), s.ones(&[4, 5])); s.try_call("linalg.matmul", &[&a, &b]); }),
            ("linalg.matmul", &|s| { let (a, b) = (s.ones(&[3]), s.ones(&[3])); s.try_call("linalg.matmul", &[&a, &b]); }),
            ("linalg.solve", &|s| {
                let (a, b) = (s.ones(&[2, 3]), s.ones(&[2, 1]));
                s.run("linalg.solve", &[&a, &b, RESULT]);
            }),
            ("neural.linear", &|s| {
                let (a, weight) = (s.ones(&[2, 3]), s.ones(&[4, 5]));
                s.try_call("neural.linear", &[&a, &weight, &int(0), &int(0)]);
            }),
            ("neural.linear", &|s| {
                let (a, weight, bias) = (s.ones(&[2, 3]), s.ones(&[3, 5]), s.ones(&[4]));
                s.try_call("neural.linear", &[&a, &weight, &int(1), &bias]);
            }),
            ("neural.gated-linear-unit", &|s| { let a = s.ones(&[2, 3]); s.try_call("neural.gated-linear-unit", &[&a]); }),
            ("neural.attention: 0 heads", &|s| attention(s, 2, 0, 1.0)),
            ("neural.attention: 4294967295 heads", &|s| attention(s, 2, MOST, 1.0)),
            ("scale is NaN", &|s| attention(s, 2, 1, f64::NAN)),
            ("neural.attention", &|s| attention(s, 3, 1, 1.0)),
            ("neural.softmax: axis 2", &|s| { let a = s.ones(&[2, 3]); s.try_call("neural.softmax", &[&a, &int(2)]); }),
            ("epsilon is NaN", &|s| { let a = s.ones(&[2, 3]); s.try_call("neural.layer-norm", &[&a, &float(f64::NAN)]); }),
            ("epsilon is -1", &|s| { let a = s.ones(&[2, 3]); s.try_call("neural.rms-norm", &[&a, &float(-1.0)]); }),
            ("degree 4294967295 is above 16", &|s| {
                let a = s.ones(&[2, 3]);
                s.try_call("spherical.solid-harmonics", &[&a, &int(MOST)]);
            }),
            ("expected [rows, 3]", &|s| { let a = s.ones(&[2, 4]); s.try_call("spherical.solid-harmonics", &[&a, &int(1)]); }),
            ("spherical.piecewise-polynomial", &|s| {
                let (x, coefficients) = (s.ones(&[2]), s.ones(&[0, 4, 2]));
                s.try_call("spherical.piecewise-polynomial", &[&x, &coefficients, &float(0.0), &float(1.0)]);
            }),
            ("bounds are", &|s| {
                let (x, coefficients) = (s.ones(&[2]), s.ones(&[1, 4, 2]));
                s.try_call("spherical.piecewise-polynomial", &[&x, &coefficients, &float(1.0), &float(f64::NAN)]);
            }),
            ("axis 0 is given twice", &|s| {
                let (a, axes) = (s.ones(&[2, 3]), s.sizes(&[0, 0]));
                s.try_call("reduce.sum", &[&a, &axes, &int(0)]);
            }),
            ("is empty", &|s| { let a = s.ones(&[2, 0]); s.try_call("reduce.maximum", &[&a, &int(1), &int(0)]); }),
            ("is no permutation", &|s| {
                let (a, axes) = (s.ones(&[2, 3]), s.sizes(&[1, 1]));
                s.try_call("shape.permute", &[&a, &axes]);
            }),
            ("is no permutation", &|s| {
                let (a, axes) = (s.ones(&[2, 3]), s.sizes(&[0, MOST]));
                s.try_call("shape.permute", &[&a, &axes]);
            }),
            ("shape [4294967295, 4294967295]", &|s| {
                let (a, shape) = (s.ones(&[2, 3]), s.sizes(&[MOST, MOST]));
                s.try_call("shape.reshape", &[&a, &shape]);
            }),
            ("do not broadcast", &|s| {
                let (a, shape) = (s.ones(&[2, 3]), s.sizes(&[2]));
                s.try_call("shape.broadcast-to", &[&a, &shape]);
            }),
            ("there is no tensor", &|s| { let list = s.sizes(&[]); s.try_call("shape.concatenate", &[&list, &int(0)]); }),
            ("do not broadcast", &|s| { let (a, b) = (s.ones(&[2]), s.ones(&[3])); s.try_call("elementwise.add", &[&a, &b]); }),
            ("rows, `segments`", &|s| {
                let (left, right, segments) = (s.ones(&[2, 3]), s.ones(&[2, 3]), s.indices(&[0]));
                s.try_call("segment.outer-sum", &[&left, &right, &segments, &int(1)]);
            }),
            ("does not fit blocks", &|s| {
                let (left, blocks, segments) = (s.ones(&[2, 3]), s.ones(&[1, 4, 5]), s.indices(&[0, 0]));
                s.try_call("segment.contract-left", &[&left, &blocks, &segments]);
            }),
            ("bounds are", &|s| {
                let a = s.ones(&[2]);
                s.try_call("elementwise.clamp", &[&a, &float(1.0), &float(0.0)]);
            }),
            ("expected finite and in order", &|s| {
                let shape = s.sizes(&[2]);
                s.try_call("random.uniform", &[&shape, &float(f64::NEG_INFINITY), &float(f64::INFINITY), FLOAT32]);
            }),
        ])?
    }

    "22" results_of_a_terabyte_are_never_begun:
    "operations on small tensors whose result has a terabyte" => Limit("tensor_bytes"), says [], {
        const LONG: u32 = 1 << 19;
        let start = std::time::Instant::now();
        let found = endings(&small(), &[
            ("elementwise.multiply", &|s| {
                let (a, b) = (s.ones(&[LONG, 1]), s.ones(&[1, LONG]));
                s.try_call("elementwise.multiply", &[&a, &b]);
            }),
            ("linalg.matmul", &|s| {
                let (a, b) = (s.ones(&[LONG, 1]), s.ones(&[1, LONG]));
                s.try_call("linalg.matmul", &[&a, &b]);
            }),
            ("linalg.matmul", &|s| {
                let (a, b) = (s.ones(&[LONG, 0]), s.ones(&[0, LONG]));
                s.try_call("linalg.matmul", &[&a, &b]);
            }),
            ("shape.broadcast-to", &|s| {
                let (a, shape) = (s.ones(&[1]), s.sizes(&[LONG, LONG]));
                s.try_call("shape.broadcast-to", &[&a, &shape]);
            }),
            ("index.index-add", &|s| {
                let (a, places) = (s.ones(&[2, 64]), s.indices(&[0, 1]));
                s.try_call("index.index-add", &[&a, &int(0), &places, &int(MOST)]);
            }),
            ("index.scatter-add", &|s| {
                let (a, places) = (s.ones(&[2]), s.indices(&[0, 1]));
                s.try_call("index.scatter-add", &[&a, &int(0), &places, &int(MOST)]);
            }),
            ("segment.outer-sum", &|s| {
                let (left, segments) = (s.ones(&[2, 16]), s.indices(&[0, 1]));
                s.try_call("segment.outer-sum", &[&left, &left, &segments, &int(MOST)]);
            }),
            ("segment.outer-sum", &|s| {
                let (left, right) = (s.ones(&[1, LONG]), s.ones(&[1, LONG]));
                let segments = s.indices(&[0]);
                s.try_call("segment.outer-sum", &[&left, &right, &segments, &int(1)]);
            }),
            ("spherical.solid-harmonics", &|s| {
                let a = s.ones(&[LONG, 3]);
                s.try_call("spherical.solid-harmonics", &[&a, &int(16)]);
            }),
            ("spherical.piecewise-polynomial", &|s| {
                let (x, coefficients) = (s.ones(&[LONG]), s.ones(&[1, 1, LONG]));
                s.try_call("spherical.piecewise-polynomial", &[&x, &coefficients, &float(0.0), &float(2.0)]);
            }),
            ("shape.concatenate", &|s| {
                let a = s.ones(&[1 << 20]);
                let list = s.handles(&vec![&a[..]; 64]);
                s.try_call("shape.concatenate", &[&list, &int(0)]);
            }),
            ("neural.linear", &|s| {
                let (a, weight) = (s.ones(&[LONG, 1]), s.ones(&[1, LONG]));
                s.try_call("neural.linear", &[&a, &weight, &int(0), &int(0)]);
            }),
            // The result is small, but there are four billion segments.
            ("neural.attention", &|s| {
                let (a, bias, segments) = (s.ones(&[1, 4]), s.ones(&[1]), s.indices(&[0]));
                s.try_call("neural.attention", &[&a, &a, &a, &bias, &segments, &int(MOST), &int(1), &float(1.0)]);
            }),
            ("reduce.sum", &|s| {
                let (a, axes) = (s.ones(&[MOST, 0]), s.sizes(&[1]));
                s.try_call("reduce.sum", &[&a, &axes, &int(0)]);
            }),
            ("tensor.arange", &|s| s.try_call("tensor.arange", &[&int(MOST)])),
        ])?;
        // A second for each, on a busy machine: nothing of that size was computed.
        assert!(start.elapsed().as_secs() < 16, "{:?}", start.elapsed());
        found
    }

    "23" a_product_that_costs_too_much_is_refused:
    "a product of matrices that takes more operations than one call may" => Limit("operation_cost"), says ["linalg.matmul"], {
        let mut script = Script::default();
        let a = script.ones(&[1024, 1024]);
        script.try_call("linalg.matmul", &[&a, &a]);
        script.ending(Limits { operation_cost: 1e9, ..small() })?
    }

    "23b" a_long_kernel_is_interrupted:
    "single operations that take minutes" => Limit("seconds_per_call"), says ["0.5 s"], {
        let limits = Limits { seconds_per_call: 0.5, tensor_bytes: 1 << 30, ..small() };
        let kernels: [&dyn Fn(&mut Script); 3] = [
            &|s| {
                let a = s.ones(&[6144, 6144]);
                s.try_call("linalg.matmul", &[&a, &a]);
            },
            &|s| {
                let shape = s.sizes(&[3000, 3000]);
                let a = s.call("random.normal", &[&shape, &float(0.0), &float(1.0), FLOAT64]);
                s.run("linalg.solve", &[&a, &a, RESULT]);
            },
            &|s| {
                let left = s.ones(&[20_000, 4096]);
                let shape = s.sizes(&[20_000]);
                let segments = s.call("tensor.full", &[&shape, &float(0.0), INT64]);
                s.try_call("segment.outer-sum", &[&left, &left, &segments, &int(1)]);
            },
        ];
        let mut found = Vec::new();
        for kernel in kernels {
            let mut script = Script::default();
            kernel(&mut script);
            let (guest, start) = (script.guest()?, std::time::Instant::now());
            let ending = describe(&guest, limits.clone())?;
            // On a machine that is busy with other tests; uninterrupted they take a quarter of a minute on an idle one. What a device has begun is not stopped.
            assert!(start.elapsed().as_secs_f64() < seconds(5.0), "{:?}", start.elapsed());
            // A card does in milliseconds what takes a processor so long, but systems of equations, which stay with the processor.
            let is_done = slowness() > 1 && ending.outcome == Harmless;
            found.extend((!is_done).then_some(ending));
        }
        found
    }

    "24" ten_thousand_shapes_need_nothing_more:
    "10,000 different shapes, so that something is kept for each (on the CPU nothing is)" => Harmless, says [], {
        let guest = describing(
            "(local $i i32) (local $a i32) (local $b i32)
            (loop $again
                (i32.store (i32.const 64) (i32.add (local.get $i) (i32.const 1)))
                (local.set $a (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
                (local.set $b (call $elementwise.exp (local.get $a)))
                (call $tensor.tensor.drop (local.get $a))
                (call $tensor.tensor.drop (local.get $b))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 10000))))",
            "",
        )?;
        describe(&guest, small())?
    }

    "25" dtypes_do_not_mix:
    "operands of different or unfit types" => Trapped, says [], {
        endings(&small(), &[
            ("operands are float32 and float64: convert one with `cast`", &|s| {
                let (a, b) = (s.ones(&[2]), s.full(&[2], 1.0, FLOAT64));
                s.try_call("elementwise.add", &[&a, &b]);
            }),
            ("convert one with `cast`", &|s| {
                let (a, b) = (s.ones(&[2, 2]), s.full(&[2, 2], 1.0, FLOAT64));
                s.try_call("linalg.matmul", &[&a, &b]);
            }),
            ("elementwise.exp", &|s| { let a = s.full(&[2], 1.0, INT32); s.try_call("elementwise.exp", &[&a]); }),
            ("reduce.all", &|s| { let a = s.ones(&[2]); s.try_call("reduce.all", &[&a]); }),
            ("elementwise.add", &|s| { let a = s.full(&[2], 1.0, BOOLEAN); s.try_call("elementwise.add", &[&a, &a]); }),
            ("index.select", &|s| {
                let (a, places) = (s.ones(&[2]), s.full(&[2], 1.0, INT32));
                s.try_call("index.select", &[&a, &int(0), &places]);
            }),
            ("autodiff.track", &|s| { let a = s.full(&[2], 1.0, INT64); s.try_call("autodiff.track", &[&a]); }),
            ("autodiff.grad", &|s| {
                let a = s.full(&[2], 1.0, INT64);
                let list = s.handles(&[&a]);
                s.run("autodiff.grad", &[&list, &list, &int(64), &int(0), &int(0), RESULT]);
            }),
            ("tensor.read-float32", &|s| { let a = s.full(&[2], 1.0, FLOAT64); s.run("tensor.tensor.read-float32", &[&a, RESULT]); }),
            ("tensor.read-boolean", &|s| { let a = s.ones(&[2]); s.run("tensor.tensor.read-boolean", &[&a, RESULT]); }),
            ("dtype is boolean", &|s| {
                let shape = s.sizes(&[2]);
                s.try_call("random.normal", &[&shape, &float(0.0), &float(1.0), BOOLEAN]);
            }),
        ])?
    }

    "26" a_parameter_twice_in_a_step_is_two_results:
    "one parameter twice in a step of the optimizer, and with all its roles" => Harmless, says [], {
        let mut script = Script::default();
        let a = script.ones(&[4]);
        let list = script.handles(&[&a, &a]);
        let numbers = [0.1, 0.9, 0.999, 1e-8, 0.0].map(float).join(" ");
        script.run("optimizer.adam", &[&list, &list, &list, &list, &numbers, &int(0), "(i64.const 1)", RESULT]);
        // What went in is as it was.
        script.run("tensor.tensor.read-float32", &[&a, RESULT]);
        script.line("(if (f32.ne (f32.load (i32.load (i32.const 0xb000))) (f32.const 1)) (then unreachable))");
        script.ending(small())?
    }

    "27" a_loss_that_is_not_finite_ends_the_training:
    "numbers that explode until the loss is infinite or NaN" => ArchitectureError, says ["the training loss is", "in epoch"], {
        crate::isolation::exploding_training()?
    }

    "28" random_numbers_are_the_runs_own:
    "setting the state of the random numbers, or a state that is none" => Harmless, says [], {
        // Three numbers of a run alone, and of one during which another guest sets its own stream's state.
        let numbers = |hostile: bool| -> Fallible<String> {
            let draws = describing(
                "(local $a i32)
                (local.set $a (call $random.uniform (i32.const 64) (i32.const 1) (f64.const 0) (f64.const 1) (i32.const 1)))
                (call $tensor.tensor.read-float64 (local.get $a) (i32.const 0xb000))
                (i32.store (i32.const 0xc000) (i32.const 0))
                (call $report.log (i32.const 1) (i32.load (i32.const 0xb000)) (i32.const 8))",
                r#"(data (i32.const 64) "\03\00\00\00")"#,
            )?;
            let resets = describing(
                "(call $random.state (i32.const 0xb000))
                (call $random.set-state (i32.load (i32.const 0xb000)) (i32.load (i32.const 0xb004)) (i32.const 0xb010))
                (call $random.set-state (i32.const 64) (i32.const 7) (i32.const 0xb010))
                (if (i32.ne (i32.load8_u (i32.const 0xb010)) (i32.const 1)) (then unreachable))",
                "",
            )?;
            let (ending, record) = attempt(&draws, small(), |session| {
                if hostile {
                    let other = describe(&resets, small()).map_err(|error| kilnbox_host::HostError::Bug(error.to_string()))?;
                    if other.outcome != Harmless {
                        return Err(kilnbox_host::HostError::Bug(format!("{other:?}")));
                    }
                }
                session.about()
            })?;
            Ok(format!("{ending:?} {:?}", record.log))
        };
        let alone = numbers(false)?;
        assert_eq!(alone, numbers(true)?);
        Ending::harmless(alone)
    }

    "29" a_flood_of_the_log_is_dropped:
    "a million lines of log and one of 5 MiB" => Harmless, says [], {
        let guest = describing(
            "(local $i i32)
            (memory.fill (i32.const 0x100000) (i32.const 120) (i32.const 0x500000))
            (call $report.log (i32.const 1) (i32.const 0x100000) (i32.const 0x500000))
            (loop $again
                (call $report.log (i32.const 1) (i32.const 64) (i32.const 4))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))",
            r#"(memory (export "memory") 128) (data (i32.const 64) "line")"#,
        )?;
        let (ending, record) = attempt(&guest, Limits { log_lines: 1000, ..small() }, |session| session.about())?;
        // The lines that may pass, and the one that says so.
        assert_eq!(record.log.len(), 1001);
        assert!(record.log.iter().all(|(_, line)| line.len() < 5000));
        assert!(record.log.iter().any(|(_, line)| line.contains("`log_lines`")), "{:?}", record.log);
        // So many bytes in a second, and eight seconds' worth at once.
        let start = std::time::Instant::now();
        let rare = Limits { log_bytes_per_second: 1000, ..small() };
        let (slower, record) = attempt(&guest, rare, |session| session.about())?;
        let most = (start.elapsed().as_secs_f64() + 8.0) * 1000.0;
        let bytes: usize = record.log.iter().map(|(_, line)| line.len()).sum();
        assert!((bytes as f64) < most, "{bytes} bytes");
        vec![ending, slower]
    }

    "29b" a_flood_of_progress_is_bearable:
    "a million reports of progress, some beyond their own total" => Harmless, says [], {
        let guest = describing(
            "(local $i i32)
            (loop $again
                (call $report.step (local.get $i) (i32.const -1) (i32.const -1) (i32.const 0))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))",
            "",
        )?;
        describe(&guest, small())?
    }

    "30" names_of_metrics_cannot_leave_their_line:
    "names of metrics with line breaks, terminal escapes, text turned around, `../`, 10,000 characters" => Harmless, says [], {
        let mut script = Script::default();
        let names = ["a\nb\tc\r", "\u{1b}[2J\u{7}\0", "\u{202e}gpj.exe\u{2066}", "../../etc/passwd", "=cmd|' /C calc'!A0,\"x"];
        let mut texts: Vec<String> = names.iter().map(|name| script.text(name)).collect();
        texts.push(script.text(&"x".repeat(10_000)));
        // A metric is three texts and a number.
        for (k, text) in texts.iter().enumerate() {
            for field in 0..3 {
                let address = 0xb100 + 32 * k + 8 * field;
                let parts: Vec<&str> = text.split_inclusive(')').collect();
                script.line(format!("(i32.store (i32.const {address}) {})", parts[0]));
                script.line(format!("(i32.store (i32.const {}) {})", address + 4, parts[1]));
            }
        }
        script.run("report.epoch", &[&int(0), &float(1e-3), "(i32.const 0xb100)", &int(texts.len() as u32)]);
        let (ending, record) = attempt(&script.guest()?, small(), |session| session.about())?;
        let metrics = record.epochs.first().ok_or("no metrics arrived")?;
        assert_eq!(metrics.len(), texts.len());
        for metric in metrics {
            for text in [&metric.set, &metric.name, &metric.unit] {
                let turned = |character| matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
                assert!(!text.chars().any(|character| character.is_control() || turned(character)), "{text:?}");
                assert!(text.chars().count() <= 128, "{text:?}");
            }
        }
        ending
    }

    "69" numbers_that_are_none_break_nothing:
    "infinities and NaN in every operation that counts, sorts or looks up" => Harmless, says [], {
        let mut script = Script::default();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 5e-324] {
            for dtype in [FLOAT32, FLOAT64] {
                let (a, row) = (script.full(&[3, 3], value, dtype), script.full(&[3], value, dtype));
                let places = script.indices(&[0, 1, 1]);
                script.run("linalg.solve", &[&a, &a, RESULT]);
                script.try_call("linalg.matmul", &[&a, &a]);
                script.try_call("spherical.solid-harmonics", &[&a, &int(16)]);
                let coefficients = script.full(&[7, 3, 2], value, dtype);
                for [lower, upper] in [[0.0, 5e-324], [-1e300, 1e300], [f64::MIN, f64::MAX]] {
                    let (lower, upper) = (float(lower), float(upper));
                    script.try_call("spherical.piecewise-polynomial", &[&row, &coefficients, &lower, &upper]);
                }
                script.try_call("neural.softmax", &[&a, &int(0)]);
                script.try_call("neural.layer-norm", &[&a, &float(0.0)]);
                script.try_call("neural.attention", &[&a, &a, &a, &row, &places, &int(2), &int(3), &float(1e300)]);
                script.try_call("reduce.maximum", &[&a, &int(0), &int(0)]);
                script.try_call("elementwise.power-scalar", &[&a, &float(f64::NAN)]);
                script.try_call("elementwise.clamp", &[&a, &float(f64::NEG_INFINITY), &float(f64::INFINITY)]);
                let whole = script.call("tensor.cast", &[&a, INT64]);
                script.try_call("elementwise.multiply", &[&whole, &whole]);
                script.try_call("elementwise.negative", &[&whole]);
                script.try_call("elementwise.absolute", &[&a]);
            }
        }
        script.ending(small())?
    }

    "70" tables_kept_for_gradients_are_counted:
    "a history whose tensors are small and whose tables of segments, or lists of operands, are large" => Limit("tensor_bytes"), says [], {
        // Each keeps sixteen megabytes, or eight, forty times: so many bytes for each of a million places. Where each takes a launch there are fewer.
        let count = 1_000_000 / slowness();
        let bytes = (256 << 20) / u64::from(slowness());
        let limits = Limits { tensor_bytes: bytes, guest_memory_bytes: 64 << 20, handles: 2_000_000, ..small() };
        let segments = repeated(&format!(
            "(call $neural.attention (local.get $a) (local.get $a) (local.get $a) (local.get $bias) (local.get $places)
                (i32.const {count}) (i32.const 1) (f64.const 1))"
        ))?;
        let operands =
            repeated(&format!("(call $shape.concatenate (i32.const 0x100000) (i32.const {count}) (i32.const 0))"))?;
        vec![
            describe(&segments, limits.clone())?.saying(&["neural.attention"])?,
            describe(&operands, limits)?.saying(&["shape.concatenate"])?,
        ]
    }

    "71" overlapping_slices_end_at_the_deadline:
    "gradients through 20,000 slices that overlap" => Limit("seconds_per_call"), says ["0.3 s"], {
        let guest = describing(
            "(local $i i32) (local $a i32)
            (local.set $a (call $autodiff.track (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0))))
            (loop $again
                (i32.store (i32.add (i32.const 0x20000) (i32.mul (local.get $i) (i32.const 4)))
                    (call $shape.slice (local.get $a) (i32.const 0) (i32.const 0) (i32.const 1000)))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 20000))))
            (i32.store (i32.const 68) (local.get $a))
            (loop $again
                (call $autodiff.grad (i32.const 0x20000) (i32.const 20000) (i32.const 68) (i32.const 1)
                    (i32.const 64) (i32.const 0) (i32.const 0) (i32.const 0xb000))
                (br $again))",
            r#"(data (i32.const 64) "\e8\03\00\00")"#,
        )?;
        let start = std::time::Instant::now();
        let limits = Limits { seconds_per_call: 0.3, tensor_bytes: 1 << 30, handles: 1_000_000, ..small() };
        let ending = describe(&guest, limits)?;
        assert!(start.elapsed().as_secs_f64() < seconds(5.0), "{:?}", start.elapsed());
        ending
    }
}

/// What reads or writes by index, with two indices into an axis of three.
fn by_index(indices: &dyn Fn(&mut Script) -> String) -> Fallible<Vec<Ending>> {
    endings(
        &small(),
        &[
            ("index.select", &|s| {
                let (a, places) = (s.ones(&[3, 2]), indices(s));
                s.try_call("index.select", &[&a, &int(0), &places]);
            }),
            ("index.gather", &|s| {
                let (a, places) = (s.ones(&[3]), indices(s));
                s.try_call("index.gather", &[&a, &int(0), &places]);
            }),
            ("index.index-add", &|s| {
                let (a, places) = (s.ones(&[2, 2]), indices(s));
                s.try_call("index.index-add", &[&a, &int(0), &places, &int(3)]);
            }),
            ("index.scatter-add", &|s| {
                let (a, places) = (s.ones(&[2]), indices(s));
                s.try_call("index.scatter-add", &[&a, &int(0), &places, &int(3)]);
            }),
            ("segment.outer-sum", &|s| {
                let (a, places) = (s.ones(&[2, 4]), indices(s));
                s.try_call("segment.outer-sum", &[&a, &a, &places, &int(3)]);
            }),
            ("segment.contract-left", &|s| {
                let (a, blocks, places) = (s.ones(&[2, 4]), s.ones(&[3, 4, 5]), indices(s));
                s.try_call("segment.contract-left", &[&a, &blocks, &places]);
            }),
            ("segment.contract-right", &|s| {
                let (a, blocks, places) = (s.ones(&[2, 5]), s.ones(&[3, 4, 5]), indices(s));
                s.try_call("segment.contract-right", &[&a, &blocks, &places]);
            }),
            ("neural.attention", &|s| {
                let (a, bias, places) = (s.ones(&[2, 4]), s.ones(&[2]), indices(s));
                s.try_call("neural.attention", &[&a, &a, &a, &bias, &places, &int(3), &int(1), &float(1.0)]);
            }),
        ],
    )
}

/// Attention over two rows of four columns, with a bias of so many rows.
fn attention(script: &mut Script, biases: u32, heads: u32, scale: f64) {
    let (a, bias, segments) = (script.ones(&[2, 4]), script.ones(&[biases]), script.indices(&[0, 0]));
    script.try_call("neural.attention", &[&a, &a, &a, &bias, &segments, &int(1), &int(heads), &float(scale)]);
}

/// Room for a guest that holds 160 MiB itself and hands them over.
fn roomy() -> Limits {
    Limits { guest_memory_bytes: 256 << 20, tensor_bytes: 512 << 20, ..small() }
}

/// A guest that hands over so many zeros, in parts.
fn values_in_parts(count: usize, part: usize) -> Fallible<Vec<u8>> {
    describing(
        &format!(
            "(local $done i32)
            (i32.store (i32.const 64) (i32.const {part}))
            (loop $again
                (drop (call $tensor.from-float32 (i32.const 64) (i32.const 1)
                    (i32.add (i32.const 0x20000) (i32.mul (local.get $done) (i32.const 4))) (i32.const {part})))
                (local.set $done (i32.add (local.get $done) (i32.const {part})))
                (br_if $again (i32.lt_u (local.get $done) (i32.const {count}))))"
        ),
        r#"(memory (export "memory") 2600)"#,
    )
}

/// A guest that makes so many tensors of 64 KiB, and gives each back if it is told to.
fn tensors_in_a_loop(count: usize, give_back: bool) -> Fallible<Vec<u8>> {
    let after = if give_back { "(call $tensor.tensor.drop (local.get $a))" } else { "" };
    describing(
        &format!(
            r"(local $i i32) (local $a i32)
            (loop $again
                (local.set $a (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
                {after}
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const {count}))))"
        ),
        r#"(data (i32.const 64) "\00\40\00\00")"#,
    )
}

/// A guest that adds a tracked number to itself so many times, keeping one handle, and asks for the gradient if it is told to.
fn history(length: usize, gradient: bool) -> Fallible<Vec<u8>> {
    let ask = "(i32.store (i32.const 64) (local.get $sum))
        (i32.store (i32.const 68) (local.get $leaf))
        (call $autodiff.grad
            (i32.const 64) (i32.const 1) (i32.const 68) (i32.const 1) (i32.const 64) (i32.const 0) (i32.const 0) (i32.const 0xb000))";
    let ask = if gradient { ask } else { "" };
    describing(
        &format!(
            "(local $i i32) (local $leaf i32) (local $sum i32) (local $next i32)
            (local.set $leaf (call $autodiff.track (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0))))
            (local.set $sum (call $tensor.tensor.share (local.get $leaf)))
            (loop $again
                (local.set $next (call $elementwise.add (local.get $sum) (local.get $leaf)))
                (call $tensor.tensor.drop (local.get $sum))
                (local.set $sum (local.get $next))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const {length}))))
            {ask}"
        ),
        "",
    )
}

/// A guest that does this operation forty times and keeps the results. `$a` is a tracked `[1, 1]`; a million handles of it are at 0x100000.
fn repeated(operation: &str) -> Fallible<Vec<u8>> {
    describing(
        &format!(
            "(local $i i32) (local $a i32) (local $bias i32) (local $places i32)
            (local.set $a (call $autodiff.track (call $tensor.full (i32.const 64) (i32.const 2) (f64.const 1) (i32.const 0))))
            (local.set $bias (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
            (local.set $places (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 0) (i32.const 3)))
            (loop $again
                (i32.store (i32.add (i32.const 0x100000) (i32.mul (local.get $i) (i32.const 4))) (local.get $a))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))
            (local.set $i (i32.const 0))
            (loop $again
                (drop {operation})
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 40))))"
        ),
        r#"(memory (export "memory") 100) (data (i32.const 64) "\01\00\00\00\01\00\00\00")"#,
    )
}
