//! Clients that use models through wasi-nn: attacks 51 to 53, and what a client may reach for beside models.

use kilnbox_host::{
    ClientEnd, ElementType, Engine, EngineOptions, FailureCode, Graph, GraphTensor, HostError, Limits, on_own_thread,
};
use kilnbox_tensor::DType;
use kilnbox_tests::{Nobody, on_processor, untrained_predictor};
use serde_json::json;

use crate::guest::{client, component, small};
use crate::table::Outcome::{Harmless, Limit, Refused};
use crate::table::{Ending, Fallible};

/// The name of the model, and its context's handle in `$context`.
const MODEL: &str = r#"
    (data (i32.const 64) "ethanol")
    (func $model (result i32)
        (call $graph.load-by-name (i32.const 64) (i32.const 7) (i32.const 256))
        (if (i32.load8_u (i32.const 256)) (then unreachable))
        (call $graph.graph.init-execution-context (i32.load (i32.const 260)) (i32.const 256))
        (if (i32.load8_u (i32.const 256)) (then unreachable))
        (i32.load (i32.const 260)))
    (func $code-of-failure (result i32)
        (if (i32.eqz (i32.load8_u (i32.const 256))) (then unreachable))
        (call $errors.error.code (i32.load (i32.const 260))))"#;
/// Codes of wasi-nn.
const INVALID_ARGUMENT: u32 = 0;
const UNSUPPORTED_OPERATION: u32 = 4;
const NOT_FOUND: u32 = 6;

attacks! {
    "51" wrong_inputs_are_told_and_the_model_answers_on:
    "a client's inputs for a model that are missing, doubled, unknown, of another type or shape, or with too little data"
    => Harmless, says [], {
        on_own_thread(|| {
            let mut graph = Graph::new("ethanol", untrained_predictor(DType::Float32)?, &json!({}));
            let answer = graph.compute(water())?;
            for (inputs, words) in wrong_inputs() {
                match graph.compute(inputs) {
                    Err(failure) if failure.code == FailureCode::InvalidArgument && failure.message.contains(words) => {}
                    other => return Err(format!("`{words}` was expected: {other:?}").into()),
                }
                // The very same bits as before.
                if graph.compute(water())? != answer {
                    return Err(format!("after `{words}` the model answers otherwise").into());
                }
            }
            Fallible::Ok(())
        })??;
        // The same door, from the other side: a tensor whose size is beyond any count, then none at all.
        let guest = client(
            &format!(
                "(local $context i32) (local.set $context (call $model))
                (i32.store (i32.const 512) (i32.const -1)) (i32.store (i32.const 516) (i32.const -1)) (i32.store (i32.const 520) (i32.const -1))
                (i32.store (i32.const 304) (i32.const 320)) (i32.store (i32.const 308) (i32.const 9))
                (i32.store (i32.const 312) (call $tensor.tensor.constructor (i32.const 512) (i32.const 3) (i32.const 2) (i32.const 512) (i32.const 8)))
                (call $inference.graph-execution-context.compute (local.get $context) (i32.const 304) (i32.const 1) (i32.const 256))
                (if (i32.ne (call $code-of-failure) (i32.const {INVALID_ARGUMENT})) (then unreachable))
                (call $inference.graph-execution-context.compute (local.get $context) (i32.const 0) (i32.const 0) (i32.const 256))
                (if (i32.ne (call $code-of-failure) (i32.const {INVALID_ARGUMENT})) (then unreachable))"
            ),
            &format!(r#"(data (i32.const 320) "positions") {MODEL}"#),
        )?;
        run(&guest, small())?
    }

    "52" models_have_only_the_names_that_the_user_gave:
    "a client that loads a model from bytes in each format, by a path, by no name, or by one of a mebibyte" => Harmless, says [], {
        let guest = client(
            &format!(
                "(local $format i32)
                (loop $formats
                    (call $graph.load (i32.const 1024) (i32.const 1) (local.get $format) (i32.const 0) (i32.const 256))
                    (if (i32.ne (call $code-of-failure) (i32.const {UNSUPPORTED_OPERATION})) (then unreachable))
                    (local.set $format (i32.add (local.get $format) (i32.const 1)))
                    (br_if $formats (i32.lt_u (local.get $format) (i32.const 7))))
                (call $graph.load-by-name (i32.const 96) (i32.const 10) (i32.const 256))
                (if (i32.ne (call $code-of-failure) (i32.const {NOT_FOUND})) (then unreachable))
                (call $graph.load-by-name (i32.const 0) (i32.const 0) (i32.const 256))
                (if (i32.ne (call $code-of-failure) (i32.const {NOT_FOUND})) (then unreachable))
                (call $graph.load-by-name (i32.const 0) (i32.const 0x100000) (i32.const 256))
                (if (i32.ne (call $code-of-failure) (i32.const {NOT_FOUND})) (then unreachable))
                (drop (call $model))"
            ),
            &format!(r#"(data (i32.const 96) "../ethanol") {MODEL}"#),
        )?;
        run(&guest, small())?
    }

    "53" what_a_client_never_gives_back_is_counted:
    "a client that keeps contexts, tensors and errors until the memory is full" => Limit("handles"), says ["handles"], {
        [
            // Contexts, small tensors, errors.
            "(loop $for-ever (drop (call $model)) (br $for-ever))",
            "(loop $for-ever
                (drop (call $tensor.tensor.constructor (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0))) (br $for-ever))",
            "(loop $for-ever (call $graph.load-by-name (i32.const 0) (i32.const 9) (i32.const 256)) (br $for-ever))",
        ]
        .into_iter()
        .map(|body| run(&client(body, MODEL)?, Limits { handles: 1000, ..small() }))
        .collect::<Fallible<Vec<_>>>()?
    }

    "53b" bytes_that_a_client_never_gives_back_are_counted:
    "a client that keeps a few tensors, or errors, which are large" => Limit("tensor_bytes"), says ["at most 1048576"], {
        [
            "(loop $for-ever
                (drop (call $tensor.tensor.constructor (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 0x40000))) (br $for-ever))",
            "(loop $for-ever
                (drop (call $tensor.tensor.constructor (i32.const 0) (i32.const 0x10000) (i32.const 4) (i32.const 0) (i32.const 0))) (br $for-ever))",
            "(loop $for-ever (call $graph.load-by-name (i32.const 0x10000) (i32.const 0x1000) (i32.const 256)) (br $for-ever))",
        ]
        .into_iter()
        .map(|body| run(&client(body, MODEL)?, Limits { tensor_bytes: 1 << 20, ..small() }))
        .collect::<Fallible<Vec<_>>>()?
    }

    "53c" a_client_ends_at_its_deadline:
    "a client that never ends" => Limit("seconds_per_run"), says ["0.5 s"], {
        run(&client("(loop $for-ever (br $for-ever))", "")?, Limits { seconds_per_run: 0.5, ..small() })?
    }

    "53d" a_client_has_no_more_than_models:
    "a client that asks for what architectures have, for another wasi-nn or for a stranger's door; or is no program" => Refused, says [], {
        let asking = |import: &str| wat::parse_str(format!(r#"(component (import "{import}" (instance)))"#));
        let mut endings = Vec::new();
        for import in ["kilnbox:architecture/tensor@0.1.0", "wasi:nn/graph@0.2.0", "wasi:nn/other@0.2.0-rc-2024-10-28", "stranger:thing/door@1.0.0"] {
            endings.push(run(&asking(import)?, small())?.saying(&[&format!("`{import}`")])?);
        }
        endings.push(run(&wat::parse_str("(component)")?, small())?.saying(&["it is no program"])?);
        endings.push(run(&component("")?, small())?.saying(&["kilnbox:architecture/"])?);
        endings
    }

    "53e" a_client_writes_only_so_much:
    "a client that writes without end" => Limit("disk_bytes"), says ["more than 1048576 bytes"], {
        let guest = client(
            "(local $output i32) (local.set $output (call $stdout.get-stdout))
            (loop $for-ever
                (call $streams.output-stream.blocking-write-and-flush (local.get $output) (i32.const 0) (i32.const 4096) (i32.const 256))
                (br $for-ever))",
            "",
        )?;
        run(&guest, Limits { disk_bytes: 1 << 20, ..small() })?
    }
}

/// Runs the client with a model called `ethanol`, and sees that the model still answers afterwards.
fn run(client: &[u8], limits: Limits) -> Fallible<Ending> {
    on_own_thread(|| {
        let engine = Engine::new(&EngineOptions { limits: limits.clone(), ..EngineOptions::default() })?;
        let graph = Graph::new("ethanol", untrained_predictor(DType::Float32)?, &json!({}));
        let options = on_processor(limits);
        let outcome = engine
            .load_client(client)
            .and_then(|client| client.run(vec![graph], Vec::new(), options, Box::new(Nobody)))
            .and_then(|end| match end {
                ClientEnd::Success => Ok(()),
                end => Err(HostError::Bug(format!("the client ended with {end:?}"))),
            });
        Ending::of(outcome)
    })?
}

fn tensor(dimensions: &[u32], element_type: ElementType, data: Vec<u8>) -> GraphTensor {
    GraphTensor { dimensions: dimensions.to_vec(), element_type, data }
}

fn floats(dimensions: &[u32], values: &[f64]) -> GraphTensor {
    tensor(dimensions, ElementType::Float64, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

fn integers(dimensions: &[u32], values: &[i32]) -> GraphTensor {
    tensor(dimensions, ElementType::Int32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

type Inputs = Vec<(String, GraphTensor)>;

/// A molecule in a box, with the pairs that are close.
fn water() -> Inputs {
    [
        ("positions", floats(&[3, 3], &[0.0, 0.0, 0.0, 0.96, 0.0, 0.0, -0.24, 0.93, 0.0])),
        ("types", integers(&[3], &[8, 1, 1])),
        ("cell", floats(&[3, 3], &[9.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0, 9.0])),
        ("pbc", tensor(&[3], ElementType::UInt8, vec![1, 1, 0])),
        ("system", integers(&[3], &[0, 0, 0])),
        ("pairs", integers(&[3, 2], &[0, 1, 0, 2, 2, 1])),
        ("shifts", integers(&[3, 3], &[0; 9])),
        ("outputs", tensor(&[13], ElementType::UInt8, b"energy forces".to_vec())),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .to_vec()
}

/// All that can be wrong with it, and what the client is told.
fn wrong_inputs() -> Vec<(Inputs, &'static str)> {
    let without = |name: &str| water().into_iter().filter(|(known, _)| known != name).collect::<Inputs>();
    let with = |name: &str, tensor: GraphTensor| [without(name), vec![(name.to_owned(), tensor)]].concat();
    let doubled = || [water(), vec![("types".to_owned(), integers(&[3], &[8, 1, 1]))]].concat();
    let bytes = |dimensions: &[u32], data: &[u8]| tensor(dimensions, ElementType::UInt8, data.to_vec());
    let positions = [0.0, 0.0, 0.0, 0.96, 0.0, 0.0, -0.24, 0.93, 0.0];
    let mut cases = vec![
        (Vec::new(), "`positions` is missing"),
        (without("types"), "`types` is missing"),
        (without("cell"), "`pbc` needs `cell`"),
        (without("pbc"), "`cell` needs `pbc`"),
        (without("pairs"), "`shifts` needs `pairs`"),
        (without("shifts"), "`pairs` needs `shifts`"),
        (doubled(), "`types` was given twice"),
        (with("charges", integers(&[3], &[0; 3])), "there is no input `charges`"),
        (with("\u{1b}[2J", integers(&[3], &[0; 3])), "there is no input `\\u{1b}[2J`"),
        (with("positions", floats(&[9], &positions)), "[9], expected [3, 3]"),
        (with("positions", floats(&[3, 4], &[0.0; 12])), "[3, 4], expected [3, 3]"),
        (with("positions", floats(&[2, 3], &[0.0; 6])), "[2, 3], expected [3, 3]"),
        (with("positions", floats(&[3, 3], &[f64::NAN; 9])), "finite"),
        (with("positions", floats(&[3, 3], &[1e300; 9])), "1e300"),
        (with("positions", tensor(&[3, 3], ElementType::Float64, vec![0; 71])), "71 bytes"),
        (with("positions", tensor(&[3, 3], ElementType::Float32, vec![0; 72])), "72 bytes"),
        (with("positions", tensor(&[3, 3], ElementType::Int64, vec![0; 72])), "is i64, expected fp32 or fp64"),
        (with("types", integers(&[0], &[])), "no atoms"),
        (with("types", integers(&[3, 1], &[8, 1, 1])), "[3, 1], expected [any]"),
        (with("types", tensor(&[u32::MAX], ElementType::Int32, vec![0; 12])), "12 bytes"),
        (with("types", integers(&[3], &[8, 1, 92])), "the model knows"),
        (with("types", integers(&[3], &[8, 1, -1])), "the model knows"),
        (with("cell", floats(&[3, 3], &[0.0; 9])), "no volume"),
        (with("cell", floats(&[2, 3, 3], &[0.0; 18])), "[2, 3, 3], expected [1, 3, 3]"),
        (with("cell", floats(&[3, 3], &[f64::INFINITY; 9])), "finite"),
        (with("pbc", bytes(&[3], &[1, 2, 0])), "expected 0 or 1"),
        (with("pbc", bytes(&[4], &[0; 4])), "[4], expected [3]"),
        (with("system", integers(&[3], &[0, 2, 2])), "the atom 1 is in the system 2"),
        (with("system", integers(&[3], &[0, 1, 0])), "the atom 2 is in the system 0"),
        (with("system", integers(&[3], &[-1, 0, 0])), "the atom 0 is in the system -1"),
        (with("pairs", integers(&[3, 2], &[0, 1, 0, 3, 2, 1])), "the atom 3"),
        (with("pairs", integers(&[3, 2], &[0, 1, 0, -1, 2, 1])), "the atom -1"),
        (with("pairs", integers(&[3, 2], &[0, 1, 0, 0, 2, 1])), "twice the atom 0"),
        (with("pairs", integers(&[2, 2], &[0, 1, 0, 2])), "[3, 3], expected [2, 3]"),
        (with("shifts", integers(&[3, 3], &[0, 0, 1, 0, 0, 0, 0, 0, 0])), "not periodic"),
        (with("shifts", integers(&[3, 3], &[i32::MIN, 0, 0, 0, 0, 0, 0, 0, 0])), "at most"),
        (with("outputs", bytes(&[0], b"")), "names none"),
        (with("outputs", bytes(&[3], b"a b")), "no output `a`"),
        (with("outputs", bytes(&[13], b"energy energy")), "`energy` twice"),
        (with("outputs", bytes(&[6], b"stress")), "no stress"),
        (with("outputs", bytes(&[2], b"\xff\xfe")), "not text"),
        (with("outputs", bytes(&[5000], &[b' '; 5000])), "at most 4096"),
    ];
    // Pairs of two systems, which can be only where there are two.
    let mut two = with("system", integers(&[3], &[0, 0, 1]));
    two.retain(|(name, _)| name != "cell" && name != "pbc");
    cases.push((two, "in different systems"));
    cases
}
