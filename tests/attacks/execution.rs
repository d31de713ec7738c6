//! Guests that misuse the processor, memory and their own calls: attacks 1 to 10, and those beyond the list.

use std::time::Instant;

use kilnbox_host::{HostError, Limits};

use wit_component::StringEncoding;

use crate::guest::{MODELS, attempt, component, component_with, describe, describing, info, small, train, training};
use crate::table::Outcome::{ArchitectureError, Harmless, Limit, Refused, Trapped};
use crate::table::{Ending, Fallible};

/// A deadline that tests need not wait for.
fn hasty() -> Limits {
    Limits { seconds_per_call: 0.3, ..small() }
}

attacks! {
    "1" a_loop_without_end_ends_at_the_deadline:
    "a call that never returns" => Limit("seconds_per_call"), says ["0.3 s"], {
        let guest = component(include_str!("guests/endless-loop.wat"))?;
        let start = Instant::now();
        let ending = describe(&guest, hasty())?;
        // A tick of the clock late, on a machine that is busy with other tests.
        assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
        ending
    }

    "1b" a_training_without_end_ends_at_its_deadline:
    "a training that never ends" => Limit("seconds_per_run"), says ["0.3 s"], {
        let guest = training("(loop $for-ever (br $for-ever))", "")?;
        train(&guest, Limits { seconds_per_run: 0.3, ..small() }, vec![])?.0
    }

    "2" a_loop_of_calls_ends_at_the_deadline:
    "cheap calls of the host without end" => Limit("seconds_per_call"), says ["0.3 s"], {
        let guest = describing(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
            (loop $for-ever (drop (call $tensor.tensor.dtype (local.get $a))) (br $for-ever))",
            "",
        )?;
        describe(&guest, hasty())?
    }

    "3" memory_grows_to_its_limit:
    "own memory that grows for ever, at once or page by page" => Limit("guest_memory_bytes"), says ["16777216"], {
        let by_pages = describing("(loop $again (drop (memory.grow (i32.const 1))) (br $again))", "")?;
        let at_once = describing("(drop (memory.grow (i32.const 65000)))", "")?;
        // The host allocates in the guest's name: the list of sizes that it asked for.
        let by_lists = describing(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
            (loop $again (call $tensor.tensor.read-float32 (local.get $a) (i32.const 0xb000)) (br $again))",
            r#"(data (i32.const 64) "\00\00\10\00")"#,
        )?;
        let from_the_start = component(r#"(memory (export "memory") 257)"#)?;
        let guests = [by_pages, at_once, by_lists, from_the_start];
        guests.iter().map(|guest| describe(guest, small())).collect::<Fallible<Vec<_>>>()?
    }

    "3b" many_memories_count_together:
    "a hundred memories, each within the limit" => Limit("guest_memory_bytes"), says [], {
        let memories = "(memory 16)".repeat(90);
        describe(&component(&format!(r#"(memory (export "memory") 17) {memories}"#))?, small())?
    }

    "4" tables_grow_to_their_limit:
    "tables that grow for ever, or are too large from the start" => Limit("table_entries"), says ["1000"], {
        let limits = Limits { table_entries: 1000, ..small() };
        let growing = describing(
            "(loop $again (drop (table.grow $table (ref.null func) (i32.const 100))) (br $again))",
            "(table $table 1 funcref)",
        )?;
        let large = component("(table 1001 funcref)")?;
        let many = component(&"(table 200 funcref)".repeat(6))?;
        [growing, large, many].iter().map(|guest| describe(guest, limits.clone())).collect::<Fallible<Vec<_>>>()?
    }

    "4b" ten_thousand_instances_are_refused:
    "10,001 instances, or 1,000 memories, in one component" => Refused, says [], {
        let instances = with_instances(&component("")?, 10_001);
        let memories = component(&"(memory 0)".repeat(1000));
        // The tool that makes components of modules refuses it as well: then the bare module stands for it.
        let memories = memories.or_else(|_| module_in_a_component(&"(memory 0)".repeat(1000)))?;
        vec![
            describe(&instances, small())?.saying(&["instances"])?,
            describe(&memories, small())?.saying(&["memories"])?,
        ]
    }

    "4c" instances_are_counted:
    "as many instances, memories or tables as a file may have" => Limit("instances"), says [], {
        describe(&with_instances(&component("")?, 900), small())?
    }

    "5" recursion_ends_at_the_stack:
    "a function that calls itself for ever" => Limit("stack_bytes"), says ["call stack"], {
        let guest = describing(
            "(drop (call $deeper (i32.const 1)))",
            "(func $deeper (param i32) (result i32) (i32.add (call $deeper (local.get 0)) (i32.const 1)))",
        )?;
        describe(&guest, small())?
    }

    "5b" a_backtrace_is_cut:
    "a failure a thousand calls deep, in functions whose names steer the terminal" => Trapped, says ["unreachable"], {
        let guest = describing(
            "(call $\"\\1b[31m\\0aevil\" (i32.const 1000))",
            "(func $\"\\1b[31m\\0aevil\" (param i32)
                (if (i32.eqz (local.get 0)) (then unreachable))
                (call $\"\\1b[31m\\0aevil\" (i32.sub (local.get 0) (i32.const 1))))",
        )?;
        let mut frames = String::new();
        let (ending, _) = attempt(&guest, small(), |session| {
            session.about().inspect_err(|error| {
                if let HostError::Trapped { backtrace, .. } = error {
                    frames.clone_from(backtrace);
                }
            })
        })?;
        assert!(frames.contains("evil"), "{frames}");
        assert!(frames.lines().count() <= 64 && frames.len() < 10_000, "{frames}");
        assert!(!frames.contains('\u{1b}'), "{frames:?}");
        ending
    }

    "6" last_words_are_made_harmless:
    "a panic with a message of 1 MiB that steers the terminal" => Trapped, says ["\\u{1b}[2J", "\\u{0}", "\\u{202e}"], {
        // The message is one of 16 bytes again and again, a line break among them.
        let guest = describing(
            "(local $i i32)
            (loop $again
                (memory.copy (i32.add (i32.const 0x20000) (local.get $i)) (i32.const 64) (i32.const 16))
                (local.set $i (i32.add (local.get $i) (i32.const 16)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 0x100000))))
            (call $report.panic (i32.const 0x20000) (i32.const 0x100000))
            unreachable",
            r#"(memory (export "memory") 20) (data (i32.const 64) "\1b[2J\07\00\e2\80\ae\nwords")"#,
        )?;
        let ending = describe(&guest, small())?;
        assert!(ending.message.len() < 64 << 10, "{} bytes", ending.message.len());
        assert!(!ending.message.contains(['\u{1b}', '\0', '\u{7}', '\u{202e}']), "{:?}", ending.message);
        ending
    }

    "7" a_destructor_that_fails_is_a_failure:
    "failing while a model is given back" => Trapped, says ["unreachable"], {
        let guest = describing(
            "(call $model.model.drop (call $model.model.new (i32.const 1)))",
            r#"(func (export "kilnbox:architecture/model@0.1.0#[dtor]model") (param i32) unreachable)"#,
        )?;
        describe(&guest, small())?
    }

    "7b" a_session_ends_without_asking_the_guest:
    "a destructor that never returns" => Harmless, says [], {
        let destructor = r#"(func (export "kilnbox:architecture/model@0.1.0#[dtor]model") (param i32)
            (loop $for-ever (br $for-ever)))"#;
        let guest = component(&format!("{destructor} {MODELS}"))?;
        attempt(&guest, hasty(), |session| session.new_model("{}", &info(), kilnbox_tensor::DType::Float32))?.0
    }

    "8" an_endless_error_is_cut:
    "an error message of 100 MiB" => ArchitectureError, says ["xxxx", " ..."], {
        let (ending, _) = attempt(&refusing(100 << 20)?, roomy(), |session| session.new_trainer("{}"))?;
        assert!(ending.message.len() < 64 << 10, "{} bytes", ending.message.len());
        ending
    }

    "8b" a_larger_error_is_not_even_copied:
    "an error message of 200 MiB" => Limit("call_bytes"), says [], {
        attempt(&refusing(200 << 20)?, roomy(), |session| session.new_trainer("{}"))?.0
    }

    "9" nobody_enters_while_the_host_answers:
    "calling the host from within an allocation that the host asked for" => Trapped, says ["cannot leave component instance"], {
        let guest = describing(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
            (call $tensor.tensor.read-float32 (local.get $a) (i32.const 0xb000))",
            r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (drop (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
                (i32.const 0x10000))"#,
        )?;
        let afterwards = describing(
            "",
            r#"(func (export "cabi_post_kilnbox:architecture/about@0.1.0#describe") (param i32)
                (drop (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0))))"#,
        )?;
        vec![describe(&guest, small())?, describe(&afterwards, small())?]
    }

    "10" long_copies_end_at_the_deadline:
    "filling and copying all of its memory while the deadline passes" => Limit("seconds_per_call"), says ["0.3 s"], {
        let fill = "(memory.fill (i32.const 0) (i32.const 7) (i32.const 0x7ff0000))";
        let copy = "(memory.copy (i32.const 64) (i32.const 0) (i32.const 0x7fe0000))";
        let guest = describing(
            &format!("(loop $again {fill} {copy} (br $again))"),
            r#"(memory (export "memory") 2048)"#,
        )?;
        describe(&guest, Limits { guest_memory_bytes: 256 << 20, ..hasty() })?
    }

    "57" the_start_has_a_deadline_too:
    "never finishing to start" => Limit("seconds_per_call"), says ["0.3 s"], {
        describe(&component("(start $start) (func $start (loop $for-ever (br $for-ever)))")?, hasty())?
    }

    "58" allocations_must_lie_in_memory:
    "an allocator that answers with addresses outside of memory, or not aligned" => Trapped, says ["realloc return"], {
        let answering = |address: &str| -> Fallible<Ending> {
            let guest = describing(
                "(local $a i32)
                (local.set $a (call $tensor.full (i32.const 64) (i32.const 1) (f64.const 1) (i32.const 0)))
                (call $tensor.tensor.read-float32 (local.get $a) (i32.const 0xb000))",
                &format!(
                    r#"(data (i32.const 64) "\00\10\00\00")
                    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const {address}))"#
                ),
            )?;
            describe(&guest, small())
        };
        ["-4", "0x10fffc", "0x20001"].map(answering).into_iter().collect::<Fallible<Vec<_>>>()?
    }

    "59" answers_must_be_values:
    "answers outside of memory, of 4 billion entries, with text that is none, with cases that do not exist" => Trapped, says [], {
        let answering = |answer: &str, words: &str| -> Fallible<Ending> {
            let guest = component(&format!(
                r#"(data (i32.const 64) "\ff\fe\c0\80\ed\a0\80")
                (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32) {answer})"#
            ))?;
            describe(&guest, small())?.saying(&[words])
        };
        let field = |offset: u32, value: &str| format!("(i32.store (i32.const {}) (i32.const {value}))", 0xc000 + offset);
        let zeros = "(i32.const 0xc000)";
        let one_author = format!("{} {} {}", field(0, "0x8000"), field(4, "1"), "(i32.store (i32.const 0x8000) (i32.const 64))");
        vec![
            answering("(i32.const -8)", "out of bounds")?,
            answering("(i32.const 0x110000)", "out of bounds")?,
            answering("(i32.const 0xc001)", "not aligned")?,
            answering(&format!("{} {} {zeros}", field(0, "64"), field(4, "-1")), "out of bounds")?,
            answering(&format!("{} {} {zeros}", field(40, "64"), field(44, "1")), "unexpected discriminant")?,
            answering(&format!("{} {zeros}", field(48, "3")), "unexpected discriminant")?,
            answering(&format!("{one_author} (i32.store (i32.const 0x8004) (i32.const 7)) {zeros}"), "utf-8")?,
            answering(&format!("{one_author} (i32.store (i32.const 0x8004) (i32.const -1)) {zeros}"), "out of bounds")?,
        ]
    }

    "60" models_must_be_handles:
    "a model that is no handle, or a tensor's" => Trapped, says ["handle"], {
        let answering = |handle: &str| -> Fallible<Ending> {
            let guest = component(&format!(
                r#"(func (export "kilnbox:architecture/trainer@0.1.0#[static]trainer.new") (param i32 i32) (result i32)
                    (i32.store (i32.const 0xc104) {handle})
                    (i32.const 0xc100))"#
            ))?;
            Ok(attempt(&guest, small(), |session| session.new_trainer("{}"))?.0)
        };
        vec![
            answering("(i32.const 0)")?,
            answering("(i32.const 12345)")?,
            answering("(call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0))")?,
        ]
    }

    "61" a_failed_session_stays_failed:
    "going on after a failure" => Trapped, says [], {
        let guest = describing("unreachable", MODELS)?;
        let (ending, _) = attempt(&guest, small(), |session| {
            let first = session.about();
            // `new` would have worked.
            match session.new_trainer("{}") {
                Err(_) => first,
                Ok(_) => Err(HostError::Bug("a session went on after it had failed".to_owned())),
            }
        })?;
        ending
    }

    "72" the_deepest_stack_has_room_for_the_host:
    "calling the host from the bottom of the deepest stack" => Limit("stack_bytes"), says ["call stack"], {
        // Each level computes something that takes stack in the host.
        let guest = describing(
            "(local $a i32)
            (local.set $a (call $tensor.full (i32.const 64) (i32.const 2) (f64.const 1) (i32.const 0)))
            (call $deeper (local.get $a) (i32.const 1))",
            r#"(data (i32.const 64) "\10\00\00\00\10\00\00\00")
            (func $deeper (param $a i32) (param $level i32)
                (if (i32.eqz (i32.and (local.get $level) (i32.const 1023)))
                    (then
                        (call $linalg.solve (local.get $a) (local.get $a) (i32.const 0xb000))
                        (call $tensor.tensor.drop (call $linalg.matmul (local.get $a) (local.get $a)))))
                (call $deeper (local.get $a) (i32.add (local.get $level) (i32.const 1))))"#,
        )?;
        describe(&guest, Limits { stack_bytes: 32 << 20, seconds_per_call: 60.0, ..small() })?
    }

    "73" text_in_other_encodings_must_be_text:
    "text in UTF-16 with half a character" => Trapped, says ["unpaired surrogate"], {
        let guest = component_with(
            r#"(data (i32.const 64) "\00\d8\00\d8")
            (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32)
                (i32.store (i32.const 0xc000) (i32.const 0x8000))
                (i32.store (i32.const 0xc004) (i32.const 1))
                (i32.store (i32.const 0x8000) (i32.const 64))
                (i32.store (i32.const 0x8004) (i32.const 2))
                (i32.const 0xc000))"#,
            StringEncoding::UTF16,
        )?;
        describe(&guest, small())?
    }

    "74" features_that_nothing_needs_are_off:
    "shared memory, 64-bit memory, exceptions, garbage collection" => Refused, says ["cannot be compiled"], {
        let with = |fields: &str| describe(&module_in_a_component(fields)?, small());
        vec![
            with("(memory 1 2 shared)")?,
            with("(memory i64 1)")?,
            with("(tag)")?,
            with("(type (struct (field i32)))")?,
            with("(func (drop (i32x4.relaxed_trunc_f32x4_s (v128.const i32x4 0 0 0 0))))")?,
        ]
    }

    "75" the_contract_has_one_meaning:
    "functions of the contract with other arguments than it says" => Refused, says ["contract"], {
        let asking = |import: &str| -> Fallible<Ending> {
            describe(&wat::parse_str(format!("(component {import})"))?, small())
        };
        vec![
            asking(r#"(import "kilnbox:architecture/report@0.1.0" (instance (export "panic" (func (param "message" u32)))))"#)?,
            asking(r#"(import "kilnbox:architecture/report@0.1.0" (func))"#)?,
            asking(r#"(import "kilnbox:architecture/report@0.1.0" (instance (export "shell" (func (param "command" string)))))"#)?,
        ]
    }
}

/// A guest that says no to a trainer, in so many letters.
fn refusing(letters: usize) -> Fallible<Vec<u8>> {
    component(&format!(
        r#"(memory (export "memory") {})
        (func (export "kilnbox:architecture/trainer@0.1.0#[static]trainer.new") (param i32 i32) (result i32)
            (memory.fill (i32.const 0x20000) (i32.const 120) (i32.const {letters}))
            (i32.store8 (i32.const 0xc100) (i32.const 1))
            (i32.store8 (i32.const 0xc104) (i32.const 5))
            (i32.store (i32.const 0xc108) (i32.const 0x20000))
            (i32.store (i32.const 0xc10c) (i32.const {letters}))
            (i32.const 0xc100))"#,
        letters / 65_536 + 3
    ))
}

/// Room for an error message of 200 MiB.
fn roomy() -> Limits {
    Limits { guest_memory_bytes: 256 << 20, ..small() }
}

/// The component with an empty module at its end, and so many instances of that.
fn with_instances(component: &[u8], count: u32) -> Vec<u8> {
    const MODULE: u8 = 1;
    const INSTANCES: u8 = 2;
    const EMPTY_MODULE: &[u8] = b"\0asm\x01\0\0\0";
    let module = sections(component).filter(|&id| id == MODULE).count() as u32;
    let mut instances = number(count);
    for _ in 0..count {
        // An instance of a module, without arguments.
        instances.push(0);
        instances.extend(number(module));
        instances.push(0);
    }
    [component, &section(MODULE, EMPTY_MODULE), &section(INSTANCES, &instances)].concat()
}

/// A section of a component or module.
pub fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind][..], &number(content.len() as u32), content].concat()
}

/// The kinds of a component's sections.
fn sections(component: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = &component[8..];
    std::iter::from_fn(move || {
        let (&id, mut after) = rest.split_first()?;
        let (mut length, mut shift) = (0_usize, 0);
        while let Some((&byte, more)) = after.split_first() {
            after = more;
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        rest = &after[length..];
        Some(id)
    })
}

/// A number as components have it: seven bits in each byte, the lowest first.
pub fn number(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A component that is nothing but an instance of this module.
fn module_in_a_component(fields: &str) -> Fallible<Vec<u8>> {
    Ok(wat::parse_str(format!("(component (core module $m {fields}) (core instance (instantiate $m)))"))?)
}
