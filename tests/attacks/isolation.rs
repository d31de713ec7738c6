//! Guests that reach for what belongs to others: attacks 54 to 56, and those beyond the list.

use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use kilnbox_data::SampleKind;
use kilnbox_host::{
    Engine, EngineOptions, EvaluationRequest, EvaluationTask, HostError, Limits, ModelOutput, Session, on_own_thread,
};
use kilnbox_tensor::DType;
use kilnbox_tests::{Nobody, Training, on_processor, repository};

use crate::guest::{
    MODELS, attempt, component, describe, describing, info, slowness, small, structures, train, training,
};
use crate::script::{FLOAT32, INT64, RESULT, Script, int};
use crate::table::Outcome::{Harmless, Limit, Trapped};
use crate::table::{Ending, Fallible};

attacks! {
    "54" a_run_beside_a_hostile_one_has_the_same_bits:
    "endless loops, full memory, indices out of range and long kernels beside another run of the process (on the CPU)"
    => Harmless, says [], {
        let alone = soap_bpnn(&[])??;
        let hostile = [
            (describing("(loop $for-ever (br $for-ever))", "")?, Limits { seconds_per_call: 0.1, ..small() }),
            (filling_memory()?, Limits { tensor_bytes: 16 << 20, ..small() }),
            (out_of_range()?, small()),
            (long_kernel()?, Limits { seconds_per_call: 0.2, ..small() }),
        ];
        let done = AtomicBool::new(false);
        let beside = thread::scope(|scope| {
            let attacker = scope.spawn(|| -> Fallible<usize> {
                let mut attacks = 0;
                while !done.load(Ordering::Relaxed) || attacks < hostile.len() {
                    let (guest, limits) = &hostile[attacks % hostile.len()];
                    let ending = describe(guest, limits.clone())?;
                    assert!(ending.outcome != Harmless, "an attack did not work: {ending:?}");
                    attacks += 1;
                }
                Ok(attacks)
            });
            let beside = soap_bpnn(&[]);
            done.store(true, Ordering::Relaxed);
            let attacks = attacker.join().map_err(|_| "the attacker panicked")??;
            assert!(attacks >= hostile.len(), "{attacks} attacks");
            beside
        })??;
        assert!(alone == beside, "the weights differ");
        Ending::harmless("")
    }

    "55" fresh_memory_is_zero:
    "reading new tensors and new memory for what another run left there" => Harmless, says [], {
        // What is left: 32 MiB of a number, in tensors and in the guest's own memory.
        let mut leaving = Script::default();
        for _ in 0..8 {
            leaving.full(&[1 << 20], 123.25, FLOAT32);
        }
        leaving.line("(drop (memory.grow (i32.const 200)))");
        leaving.line("(memory.fill (i32.const 0x110000) (i32.const 77) (i32.const 0xc80000))");
        let mut looking = Script::default();
        looking.line("(local $at i32)");
        let none = looking.indices(&[]);
        let nothing = looking.ones(&[0, 1 << 18]);
        let zeros = [
            looking.call("index.index-add", &[&nothing, &int(0), &none, &int(4)]),
            { let empty = looking.ones(&[0]); looking.call("index.scatter-add", &[&empty, &int(0), &none, &int(1 << 20)]) },
            {
                let (left, right) = (looking.ones(&[0, 1 << 10]), looking.ones(&[0, 1 << 10]));
                looking.call("segment.outer-sum", &[&left, &right, &none, &int(1)])
            },
            { let axes = looking.sizes(&[0]); looking.call("reduce.sum", &[&nothing, &axes, &int(0)]) },
            { let (a, b) = (looking.ones(&[1 << 10, 0]), looking.ones(&[0, 1 << 10])); looking.call("linalg.matmul", &[&a, &b]) },
        ];
        let axes = looking.sizes(&[]);
        for zero in zeros {
            let absolute = looking.call("elementwise.absolute", &[&zero]);
            let sum = looking.call("reduce.sum", &[&absolute, &axes, &int(0)]);
            looking.run("tensor.tensor.read-float32", &[&sum, RESULT]);
            looking.line("(if (f32.ne (f32.load (i32.load (i32.const 0xb000))) (f32.const 0)) (then unreachable))");
        }
        looking.line(
            "(drop (memory.grow (i32.const 200)))
            (local.set $at (i32.const 0x120000))
            (loop $again
                (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then unreachable))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const 0xd00000))))",
        );
        let (leaving, looking) = (leaving.guest()?, looking.guest()?);
        (0..3)
            .map(|_| {
                describe(&leaving, small())?;
                describe(&looking, small())
            })
            .collect::<Fallible<Vec<_>>>()?
    }

    "56" a_run_has_the_same_bits_each_time:
    "results that differ from one run to the next (on the CPU)" => Harmless, says [], {
        assert!(soap_bpnn(&[])?? == soap_bpnn(&[])??, "the weights differ");
        Ending::harmless("")
    }

    "56b" not_a_number_has_one_pattern:
    "telling machines apart by the bits of numbers that are none" => Harmless, says [], {
        let guest = describing(
            "(if (i32.ne (i32.const 0x7fc00000) (i32.reinterpret_f32 (f32.div (f32.load (i32.const 64)) (f32.load (i32.const 64)))))
                (then unreachable))",
            "",
        )?;
        describe(&guest, small())?
    }

    "62" handles_of_data_do_not_multiply_threads:
    "opening a set's batches 2,000 times without reading them" => Harmless, says [], {
        let guest = training(
            "(local $i i32)
            (loop $again
                (call $data.dataset.batches (i32.load (local.get $datasets)) (i32.const 64) (i32.const 8)
                    (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                    (i32.const 0xb000))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 2000))))
            (call $report.log (i32.const 1) (i32.const 0) (i32.const 0))",
            // Eight batches, each with the first system.
            &format!(r#"(data (i32.const 64) "{}")"#, r"\80\00\00\00\01\00\00\00".repeat(8)),
        )?;
        let threads = || -> Fallible<usize> { Ok(fs::read_dir("/proc/self/task")?.count()) };
        let set = structures(ATOM)?;
        let done = AtomicBool::new(false);
        let (ending, most) = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let mut most = 0;
                while !done.load(Ordering::Relaxed) {
                    most = most.max(threads().unwrap_or_default());
                }
                most
            });
            let ended = train(&guest, small(), vec![set]);
            done.store(true, Ordering::Relaxed);
            let most = watcher.join().map_err(|_| "the watcher panicked")?;
            ended.map(|(ending, _)| (ending, most))
        })?;
        // Other tests have threads as well, but no more than a few each.
        assert!(most < 300, "{most} threads");
        ending
    }

    "63" batches_are_no_larger_than_their_set:
    "a batch that has one system of 1,000 atoms a million times, or a million neighbour lists" => Harmless, says [], {
        let large = format!("1000\n\n{}", "H 0 0 0\n".repeat(1000));
        let refused = |arguments: &str| -> Fallible<Ending> {
            let guest = training(
                &format!(
                    "(i32.store (i32.const 64) (i32.const 0x20000))
                    (i32.store (i32.const 68) (i32.const 1000000))
                    (call $lists)
                    (call $data.dataset.batches (i32.load (local.get $datasets)) {arguments}
                        (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0xb000))
                    ;; It must be told that this cannot be had.
                    (if (i32.ne (i32.load8_u (i32.const 0xb000)) (i32.const 1)) (then unreachable))"
                ),
                // The lists have cutoffs 1, 2, 3 and so on; behind them there are zeros.
                r#"(memory (export "memory") 400) (func $lists (local $i i32)
                    (loop $again
                        (f64.store (i32.add (i32.const 0x400000) (i32.mul (local.get $i) (i32.const 16)))
                            (f64.convert_i32_u (i32.add (local.get $i) (i32.const 1))))
                        (local.set $i (i32.add (local.get $i) (i32.const 1)))
                        (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000)))))"#,
            )?;
            Ok(train(&guest, Limits { guest_memory_bytes: 32 << 20, ..small() }, vec![structures(&large)?])?.0)
        };
        vec![
            refused("(i32.const 64) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)")?,
            refused("(i32.const 64) (i32.const 0) (i32.const 0) (i32.const 0x400000) (i32.const 1000000)")?,
        ]
    }

    "64" neighbours_count_as_tensors:
    "a neighbour list with 400,000 pairs for each atom" => Limit("tensor_bytes"), says [], {
        let guest = in_a_batch(
            "(call $data.systems.neighbors (local.get $systems) (f64.const 45) (i32.const 1) (i32.const 0) (i32.const 0xb000))",
        )?;
        train(&guest, Limits { tensor_bytes: 8 << 20, ..small() }, vec![structures(CRYSTAL)?])?.0
    }

    "65" cutoffs_that_make_no_sense_are_refused:
    "neighbour lists whose cutoff is infinite, negative, NaN, or a billion cells" => Harmless, says [], {
        let mut found = Vec::new();
        for cutoff in ["inf", "-1", "nan", "0", "1e9", "1e300"] {
            let guest = in_a_batch(&format!(
                "(call $data.systems.neighbors
                    (local.get $systems) (f64.const {cutoff}) (i32.const 1) (i32.const 0) (i32.const 0xb000))
                (if (i32.ne (i32.load8_u (i32.const 0xb000)) (i32.const 1)) (then unreachable))"
            ))?;
            found.push(train(&guest, small(), vec![structures(CRYSTAL)?])?.0);
        }
        found
    }

    "66" what_is_lent_must_be_given_back:
    "keeping what was lent for one call, or handing the same tensor over twice" => Trapped, says ["handle"], {
        let twice = training(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
            (i32.store (i32.const 0xb100) (i32.const 65)) (i32.store (i32.const 0xb104) (i32.const 1))
            (i32.store (i32.const 0xb108) (local.get $a))
            (i32.store (i32.const 0xb10c) (i32.const 66)) (i32.store (i32.const 0xb110) (i32.const 1))
            (i32.store (i32.const 0xb114) (local.get $a))
            (call $checkpoint.checkpoint-folder.save (local.get $folder) (i32.const 65) (i32.const 1)
                (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 68) (i32.const 2)
                (i32.const 0xb100) (i32.const 2) (i32.const 0xb000))",
            r#"(data (i32.const 65) "ab") (data (i32.const 68) "{}")"#,
        )?;
        vec![train(&twice, small(), vec![])?.0, evaluate("", "")?.saying(&["borrow"])?]
    }

    "76" outputs_must_be_what_was_asked_for:
    "outputs for other systems than were asked for, of another shape, type or number, with lists of 4 billion labels"
    => Trapped, says [], {
        let drop = "(call $data.systems.drop (local.get $systems))";
        let store = |offset: u32, value: &str| format!("(i32.store (i32.const {}) (i32.const {value}))", MAP + offset);
        let answering = |change: &str, words: &str| -> Fallible<Ending> {
            evaluate(&format!("{drop} {change}"), "")?.saying(&[words])
        };
        assert_eq!(evaluate(drop, "")?.outcome, Harmless, "the answer that the others differ from is right");
        vec![
            answering("(i32.store (i32.const 0xc208) (i32.const 0))", "gave 0 outputs, 1 were asked for")?,
            answering("(i32.store (i32.const 0x9010) (i32.const 7))", "`forward` gave `energy`")?,
            // No rows at all, and a row too many.
            answering(&store(40, "0"), "`forward` gave `energy`")?,
            answering(&store(40, "2"), "`forward` gave `energy`")?,
            answering(&store(40, "-1"), "out of bounds")?,
            answering(&store(24, "12345"), "handle")?,
            // Values of another shape, and of another type.
            answering(&format!("(i32.store (i32.const {}) (call $tensor.full (i32.const 0x9000) (i32.const 1) (f64.const 1) (i32.const 0)))", MAP + 24), "`forward` gave `energy`")?,
            answering(&format!("(i32.store (i32.const {}) (call $tensor.full (i32.const 0x9000) (i32.const 2) (f64.const 1) (i32.const 4)))", MAP + 24), "")?,
        ]
    }
}

/// Where the answer's one map is.
const MAP: u32 = 0xa000;

/// How an evaluation ends whose model does this, then answers with one energy. `$systems` must be given back.
fn evaluate(body: &str, fields: &str) -> Fallible<Ending> {
    let guest = component(&format!(
        r#"{fields} {MODELS}
        ;; 0x9000: a shape [1, 1]. 0x9010: an index 0. 0x9020: names, each an address and a length. 0x9040: the names.
        (data (i32.const 0x9000) "\01\00\00\00\01\00\00\00")
        (data (i32.const 0x9020) "\40\90\00\00\01\00\00\00\41\90\00\00\06\00\00\00\47\90\00\00\06\00\00\00")
        (data (i32.const 0x9040) "_systemenergy")
        ;; 0xa000: keys (names, values), blocks; behind them the block: values, samples, components, properties, gradients.
        (data (i32.const 0xa000) "\20\90\00\00\01\00\00\00\14\90\00\00\01\00\00\00\18\a0\00\00\01\00\00\00")
        (data (i32.const 0xa01c) "\28\90\00\00\01\00\00\00\10\90\00\00\01\00\00\00\00\00\00\00\00\00\00\00\30\90\00\00\01\00\00\00\14\90\00\00\01\00\00\00")
        (func (export "kilnbox:architecture/model@0.1.0#[method]model.requested-neighbor-lists") (param i32) (result i32) (i32.const 0xc180))
        (func (export "kilnbox:architecture/model@0.1.0#[method]model.requested-inputs") (param i32) (result i32) (i32.const 0xc180))
        (func (export "kilnbox:architecture/model@0.1.0#[method]model.forward")
            (param i32) (param $systems i32) (param i32 i32 i32 i32 i32 i32 i32) (result i32)
            (i32.store (i32.const 0xc204) (i32.const 0xa000))
            (i32.store (i32.const 0xc208) (i32.const 1))
            (i32.store (i32.const 0xa018) (call $tensor.full (i32.const 0x9000) (i32.const 2) (f64.const 1) (i32.const 0)))
            {body}
            (i32.const 0xc200))"#
    ))?;
    let set = structures(ATOM)?;
    let output = ModelOutput {
        name: "energy".into(),
        quantity: "energy".into(),
        unit: "eV".into(),
        sample_kind: SampleKind::System,
        description: String::new(),
    };
    let requests = [EvaluationRequest { output, position_gradients: true, strain_gradients: true }];
    let (ending, _) = attempt(&guest, small(), |session| {
        let model = session.new_model("{}", &info(), DType::Float32)?;
        let task = EvaluationTask { dataset: &set, requests: &requests, dtype: DType::Float32, batch_size: 1 };
        session.evaluate(&model, &task, &|_| None, &mut |_| ())
    })?;
    Ok(ending)
}

/// An atom on its own.
const ATOM: &str = "1\n\nH 0 0 0\n";
/// Atoms an angstrom apart, without end.
const CRYSTAL: &str = "1\nLattice=\"1 0 0 0 1 0 0 0 1\" pbc=\"T T T\"\nH 0 0 0\n";

/// A guest that does this while it trains, with a batch of the first system: `$systems`.
fn in_a_batch(body: &str) -> Fallible<Vec<u8>> {
    training(
        &format!(
            "(local $batches i32) (local $systems i32)
            (call $data.dataset.batches (i32.load (local.get $datasets)) (i32.const 64) (i32.const 1)
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                (i32.const 0xb000))
            (local.set $batches (i32.load (i32.const 0xb004)))
            (call $data.batches.next (local.get $batches) (i32.const 0xb000))
            (local.set $systems (call $data.batch.systems (i32.load (i32.const 0xb008))))
            {body}"
        ),
        r#"(data (i32.const 64) "\48\00\00\00\01\00\00\00\00\00\00\00")"#,
    )
}

/// Trains SOAP-BPNN on the ethanol fixture for two epochs: all bits of the checkpoint.
fn soap_bpnn(overrides: &[&str]) -> Fallible<Result<Vec<(String, Vec<u64>)>, HostError>> {
    let mut all = vec![
        "architecture.training.num_epochs=2".to_owned(),
        "architecture.model.soap.max_angular=2".to_owned(),
        "architecture.model.bpnn.num_neurons_per_layer=8".to_owned(),
    ];
    all.extend(overrides.iter().map(|&text| text.to_owned()));
    let options = repository().join("fixtures/ethanol/options.yaml");
    let data = Training::read(&options, &all, 0).map_err(|error| error.to_string())?;
    on_own_thread(|| {
        let component = Engine::new(&EngineOptions::default())?.load(&data.component)?;
        Ok((|| {
            let options = on_processor(Limits::default());
            let mut session = Session::start(&component, options, Box::new(Nobody))?;
            let model = session.new_model(&data.hypers["model"].to_string(), &data.info, DType::Float32)?;
            let trainer = session.new_trainer(&data.hypers["training"].to_string())?;
            let device = ["cpu".to_owned()];
            session.train(&trainer, &model, DType::Float32, &device, data.training, data.validation)?;
            let checkpoint = session.save_checkpoint(&trainer, &model)?;
            let bits = checkpoint.tensors.into_iter().map(|(name, tensor)| {
                let values = match tensor.dtype() {
                    DType::Float32 | DType::Float64 => {
                        tensor.read_float64().map(|values| values.iter().map(|value| value.to_bits()).collect())
                    }
                    _ => tensor.read_int64().map(|values| values.iter().map(|&value| value as u64).collect()),
                };
                values.map(|values| (name, values)).map_err(|misuse| HostError::Bug(misuse.to_string()))
            });
            bits.collect()
        })())
    })?
}

/// How a training ends whose steps are far too long.
pub fn exploding_training() -> Fallible<Ending> {
    Ending::of(soap_bpnn(&["architecture.training.learning_rate=1e30"])?)
}

/// Makes tensors until the quota is full.
fn filling_memory() -> Fallible<Vec<u8>> {
    describing(
        "(loop $again
            (drop (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
            (br $again))",
        r#"(data (i32.const 64) "\00\00\04\00")"#,
    )
}

/// Adds beyond the end of a tensor.
fn out_of_range() -> Fallible<Vec<u8>> {
    let mut script = Script::default();
    let a = script.ones(&[4]);
    let places = script.full(&[4], 1e9, INT64);
    script.try_call("index.index-add", &[&a, &int(0), &places, &int(4)]);
    script.guest()
}

/// Multiplies large matrices for as long as it may.
fn long_kernel() -> Fallible<Vec<u8>> {
    describing(
        "(local $a i32)
        (local.set $a (call $tensor.full (i32.const 64) (i32.const 2) (f64.const 1) (i32.const 0)))
        (loop $again (call $tensor.tensor.drop (call $linalg.matmul (local.get $a) (local.get $a))) (br $again))",
        r#"(data (i32.const 64) "\00\08\00\00\00\08\00\00")"#,
    )
}

/// The environment variable that tells a process that it was started for one test.
const ALONE: &str = "KILNBOX_ATTACKS_ALONE";

/// In a process of its own, since other tests use memory as they please.
#[test]
fn memory_returns_after_hostile_sessions() -> Fallible {
    if std::env::var_os(ALONE).is_none() {
        let name = "isolation::memory_returns_after_hostile_sessions";
        let output = Command::new(std::env::current_exe()?).args(["--exact", name]).env(ALONE, "1").output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
        return Ok(());
    }
    let mut history = String::new();
    let _ = write!(history, "(local $a i32)
        (local.set $a (call $autodiff.track (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0))))
        (loop $again (local.set $a (call $elementwise.add (local.get $a) (local.get $a))) (br $again))");
    let guests = [
        filling_memory()?,
        out_of_range()?,
        describing(&history, r#"(data (i32.const 64) "\00\10\00\00")"#)?,
        describing("(loop $again (drop (memory.grow (i32.const 1))) (br $again))", "")?,
        describing("(memory.fill (i32.const 0) (i32.const 1) (i32.const 0x100000)) unreachable", "")?,
    ];
    let round = || {
        guests.iter().try_for_each(|guest| {
            let ending = describe(guest, small())?;
            assert!(ending.outcome != Harmless, "{ending:?}");
            Fallible::Ok(())
        })
    };
    round()?;
    let before = resident()?;
    for _ in 0..20 {
        round()?;
    }
    let after = resident()?;
    // Each round uses 64 MiB of tensors twice and 16 MiB of guest memory. What may stay is compiled code and what allocators keep for themselves; a device in software has one of its own
    // in this process (84 MB more after twenty rounds, 117 after eighty).
    let kept = if slowness() == 1 { 48 << 20 } else { 144 << 20 };
    assert!(after < before + kept, "{before} bytes before, {after} after twenty rounds");
    Ok(())
}

/// The bytes of this process that are in memory.
fn resident() -> Fallible<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("no second number in statm")?.parse()?;
    Ok(pages * 4096)
}
