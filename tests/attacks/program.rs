//! Attacks by way of the whole program: what the user sees, in which files, and with which exit code. Parts of numbers before, and those beyond the list.

use std::fs;
use std::time::Instant;

use kilnbox_tests::{Workplace, ethanol_structures};

use crate::execution::{number, section};
use crate::guest::{MODELS, component, training};
use crate::table::Outcome::{ArchitectureError, Harmless, Limit, Trapped};
use crate::table::{Ending, Fallible};

const OPTIONS: &str = "\
seed: 0
architecture: {name: hostile}
training_set:
  systems: {read_from: ethanol.xyz, length_unit: angstrom}
  targets:
    energy: {key: energy, unit: eV}
validation_set: 0.2
test_set: 0.2
";

/// A description that the program is content with: it runs on `cpu` in `float32`.
const ABOUT: &str = r#"
    (data (i32.const 0xa020) "\40\a0\00\00\01\00\00\00\50\a0\00\00\01\00\00\00")
    (data (i32.const 0xa040) "\48\a0\00\00\03\00\00\00cpu")
    (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32) (i32.const 0xa000))"#;

attacks! {
    "1c" the_program_ends_at_the_deadline:
    "a call that never returns, in the program" => Limit("seconds_per_call"), says ["--limit"], {
        let start = Instant::now();
        let attempt = Attempt::train(&component(include_str!("guests/endless-loop.wat"))?, &["--limit", "seconds_per_call=0.5"])?;
        // To start the program and to read the data takes a while on a busy machine.
        assert!(start.elapsed().as_secs_f64() < 10.0, "{:?}", start.elapsed());
        attempt.ending()?
    }

    "6b" last_words_do_not_steer_the_terminal:
    "a panic that steers the terminal, in the program" => Trapped, says ["\\u{1b}[2J", "words"], {
        let guest = component(
            r#"(data (i32.const 64) "words \1b[2J\07\00\e2\80\ae\n[INFO] more")
            (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32)
                (call $report.panic (i32.const 64) (i32.const 28)) unreachable)"#,
        )?;
        Attempt::train(&guest, &[])?.ending()?
    }

    "8c" an_endless_error_is_cut_in_the_program:
    "an error message of 100 MiB, in the program" => ArchitectureError, says ["xxxx", "..."], {
        let guest = component(&format!(
            r#"(memory (export "memory") 1700) {ABOUT}
            (func (export "kilnbox:architecture/model@0.1.0#[static]model.new")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
                (memory.fill (i32.const 0x80000) (i32.const 120) (i32.const 0x6400000))
                (i32.store8 (i32.const 0xc100) (i32.const 1))
                (i32.store8 (i32.const 0xc104) (i32.const 5))
                (i32.store (i32.const 0xc108) (i32.const 0x80000))
                (i32.store (i32.const 0xc10c) (i32.const 0x6400000))
                (i32.const 0xc100))"#
        ))?;
        let attempt = Attempt::train(&guest, &[])?;
        assert!(attempt.shown.len() < 64 << 10, "{} bytes", attempt.shown.len());
        attempt.ending()?
    }

    "29c" a_flood_leaves_a_short_log:
    "200,000 lines of log and reports of progress, in the program" => Harmless, says [], {
        let guest = training(
            "(local $i i32)
            (loop $again
                (call $report.log (i32.const 1) (i32.const 0x4000) (i32.const 100))
                (call $report.step (i32.const -1) (i32.const -1) (i32.const -1) (i32.const -1))
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $again (i32.lt_u (local.get $i) (i32.const 200000))))",
            ABOUT,
        )?;
        let start = Instant::now();
        let attempt = Attempt::train(&guest, &["--limit", "log_bytes_per_second=10000"])?;
        // Eight seconds' worth at once, then so much in each second; zeros are six characters each, which count.
        let most = 3.0 * 10_000.0 * (8.0 + start.elapsed().as_secs_f64());
        let bytes = attempt.files.iter().filter(|(name, _)| name.ends_with("train.log")).map(|(_, text)| text.len()).sum::<usize>();
        assert!(bytes > 1000 && (bytes as f64) < most, "{bytes} bytes");
        Ending::harmless(format!("{bytes} bytes"))
    }

    "30b" tables_hold_no_formulas:
    "names of metrics that a spreadsheet would compute, or that leave the row" => Harmless, says [], {
        let guest = training(
            "(call $report.epoch (i32.const 0) (f64.const 0) (i32.const 0x4000) (i32.const 1))",
            &format!(
                r#"{ABOUT} (data (i32.const 0x4000) "\40\40\00\00\08\00\00\00\48\40\00\00\10\00\00\00\40\40\00\00\08\00\00\00")
                (data (i32.const 0x4040) "=cmd|'/C" "a\nb,\"c\" \1b[2J\e2\80\ae")"#
            ),
        )?;
        let attempt = Attempt::train(&guest, &[])?;
        let (_, table) = attempt.files.iter().find(|(name, _)| name.ends_with("train.csv")).ok_or("no table")?;
        assert_eq!(table.lines().count(), 3, "{table}");
        let guarded = |cell: &str| !cell.trim_matches('"').starts_with(['=', '+', '@']);
        assert!(table.split([',', '\n']).all(guarded), "{table}");
        Ending::harmless(table.clone())
    }

    "33" a_bomb_for_the_compiler_ends_in_time:
    "files that take hours to compile: a million blocks, 100,000 functions, parts that are made of ten others ten levels deep"
    => Limit("compile_seconds"), says ["compiling it takes longer than 0.25 s"], {
        bombs()?.iter().map(|bomb| Attempt::train(bomb, &["--limit", "compile_seconds=0.25"])?.ending()).collect::<Fallible<Vec<_>>>()?
    }

    "33c" a_bomb_for_the_compiler_gets_only_so_much_memory:
    "files that take all memory to compile" => Limit("compile_memory_bytes"), says ["more than 100663296 bytes of memory"], {
        bombs()?
            .iter()
            .map(|bomb| Attempt::train(bomb, &["--limit", "compile_memory_bytes=96MiB"])?.ending())
            .collect::<Fallible<Vec<_>>>()?
    }

    "67" lines_of_the_log_cannot_be_forged:
    "a message that goes on as if it were the program's next line" => Harmless, says [], {
        let guest = training(
            "(call $report.log (i32.const 1) (i32.const 0x4000) (i32.const 70))",
            &format!(r#"{ABOUT} (data (i32.const 0x4000) "all is well\n[2026-01-01 00:00:00][INFO] - The model is in `x`\r\1b")"#),
        )?;
        let attempt = Attempt::train(&guest, &[])?;
        let (_, log) = attempt.files.iter().find(|(name, _)| name.ends_with("train.log")).ok_or("no log")?;
        assert!(log.contains("all is well"), "{log}");
        assert!(!log.contains("\n[2026-01-01"), "{log}");
        Ending::harmless("")
    }

    "68" a_description_is_short:
    "a description with a million works to cite" => Harmless, says [], {
        // All of them are the same eight bytes: a list of a million texts.
        let guest = component(&format!(
            r#"(memory (export "memory") 300) {MODELS}
            (data (i32.const 0xa020) "\40\a0\00\00\01\00\00\00\50\a0\00\00\01\00\00\00")
            (data (i32.const 0xa040) "\48\a0\00\00\03\00\00\00cpu")
            (func (export "kilnbox:architecture/about@0.1.0#describe") (result i32) (local $i i32)
                (loop $again
                    (i32.store (i32.add (i32.const 0x20000) (i32.mul (local.get $i) (i32.const 8))) (i32.const 0xa048))
                    (i32.store (i32.add (i32.const 0x20004) (i32.mul (local.get $i) (i32.const 8))) (i32.const 3))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $i) (i32.const 1000000))))
                (i32.store (i32.const 0xa010) (i32.const 0x20000))
                (i32.store (i32.const 0xa014) (i32.const 1000000))
                (i32.store (i32.const 0xa000) (i32.const 0x20000))
                (i32.store (i32.const 0xa004) (i32.const 1000000))
                (i32.const 0xa000))"#
        ))?;
        let attempt = Attempt::train(&guest, &[])?;
        assert!(attempt.shown.contains("To cite: cpu"), "{}", attempt.shown);
        assert!(attempt.shown.len() < 64 << 10, "{} bytes", attempt.shown.len());
        Ending::harmless("")
    }
}

/// A run of the program with a hostile architecture.
struct Attempt {
    outcome: kilnbox_tests::Outcome,
    /// All that it printed.
    shown: String,
    /// The text files that it left, by their names.
    files: Vec<(String, String)>,
}

impl Attempt {
    /// Trains the architecture on a few structures. Whatever it does, nothing raw reaches the terminal or a file of the run, and no bug is reported.
    fn train(component: &[u8], arguments: &[&str]) -> Fallible<Self> {
        let place = Workplace::new()?;
        place.write("options.yaml", OPTIONS)?;
        place.write("ethanol.xyz", &ethanol_structures(20)?)?;
        fs::create_dir(place.path("hostile"))?;
        fs::write(place.path("hostile/architecture.wasm"), component)?;
        let outcome = place.run(&[arguments, &["train", "options.yaml"]].concat())?;
        let mut files = Vec::new();
        for name in place.entries()?.into_iter().filter(|name| name.starts_with("outputs") && name.contains('.')) {
            if let Ok(text) = fs::read_to_string(place.path(&name)) {
                files.push((name, text));
            }
        }
        let shown = format!("{}{}", outcome.output, outcome.errors);
        for text in files.iter().map(|(_, text)| text).chain([&shown]) {
            let steers = |character: char| character.is_control() && !"\n\t".contains(character);
            let turns = |character| matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if text.chars().any(|character| steers(character) || turns(character)) {
                return Err(format!("raw text of the guest was shown: {text:?}").into());
            }
        }
        Ok(Self { outcome, shown, files })
    }

    fn ending(&self) -> Fallible<Ending> {
        Ending::of_program(&self.outcome)
    }
}

/// Small components that compilers do not get to the end of.
fn bombs() -> Fallible<Vec<Vec<u8>>> {
    // A block that is left early if the argument is not zero.
    const BLOCK: [u8; 7] = [0x02, 0x40, 0x20, 0x00, 0x0d, 0x00, 0x0b];
    let functions = |count: u32, blocks: usize| {
        let body = [&[0][..], &BLOCK.repeat(blocks), &[0x0b]].concat();
        let body = [number(body.len() as u32), body].concat();
        let module = [
            &b"\0asm\x01\0\0\0"[..],
            // One type, of functions that take a number.
            &section(1, &[1, 0x60, 1, 0x7f, 0]),
            &section(3, &[number(count), vec![0; count as usize]].concat()),
            &section(10, &[number(count), body.repeat(count as usize)].concat()),
        ];
        [&b"\0asm\x0d\0\x01\0"[..], &section(1, &module.concat())].concat()
    };
    let mut part = "(component $part (core module $m) (core instance (instantiate $m)))".to_owned();
    for _ in 0..10 {
        part = format!("(component $part {part} {})", "(instance (instantiate $part))".repeat(10));
    }
    Ok(vec![functions(1, 1_000_000), functions(100_000, 20), wat::parse_str(part)?])
}
