//! Hostile components, bundles, options, data, checkpoints and registries: attacks 31 to 50, and those of their kind beyond the list.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use kilnbox_bundle::{
    ArchitectureIdentity, CheckpointFile, ElementType, Metadata, ModelFile, NamedTensor, Parts, pack, sha256_digest,
};
use kilnbox_host::{Engine, EngineOptions, Limits};
use kilnbox_tests::{Workplace, ethanol_structures};
use serde_json::json;

use crate::guest::{component, describe, small, train, training};
use crate::table::Outcome::{Harmless, InputError, Refused};
use crate::table::{Ending, Fallible};

attacks! {
    "31" a_component_with_other_imports_is_refused_with_all_of_them:
    "a component that imports files, sockets and other worlds" => Refused,
    says ["`wasi:filesystem/types@0.2.0`", "`wasi:sockets/tcp@0.2.0`", "and nothing else"], {
        let component = wat::parse_str(
            r#"(component
                (import "wasi:filesystem/types@0.2.0" (instance))
                (import "wasi:sockets/tcp@0.2.0" (instance)))"#,
        )?;
        describe(&component, small())?
    }

    "31b" an_interface_that_the_contract_lacks_is_refused:
    "a component that imports an interface which only looks like the contract's" => Refused, says ["contract"], {
        let names = ["kilnbox:architecture/files@0.1.0", "kilnbox:architecture/tensor-files@0.1.0"];
        let mut endings = Vec::new();
        for name in names {
            let interface = "(instance (export \"open\" (func)))";
            let component = wat::parse_str(format!("(component (import \"{name}\" {interface}))"))?;
            endings.push(describe(&component, small())?);
        }
        endings
    }

    "32" what_is_no_component_is_refused:
    "a module, half a component, an empty one, other files, single changed bytes" => Refused, says [], {
        let honest = honest()?;
        let mut files = vec![
            wat::parse_str("(module)")?,
            Vec::new(),
            b"\0".to_vec(),
            b"\0asm".to_vec(),
            // The header alone is a valid component, which is no architecture.
            honest[..8].to_vec(),
            honest[..honest.len() / 2].to_vec(),
            honest[..honest.len() - 1].to_vec(),
            numbers(1).take(100_000).map(|number| number as u8).collect(),
            [&honest[..8], &numbers(2).take(1000).map(|number| number as u8).collect::<Vec<_>>()].concat(),
        ];
        // A changed byte may leave a component that is as good as before; all others are refused.
        let engine = Engine::new(&EngineOptions::default())?;
        let mut refused = 0;
        for number in numbers(3).take(300) {
            let mut changed = honest.clone();
            let place = number as usize % changed.len();
            changed[place] ^= 1 << (number >> 40 & 7);
            let start = Instant::now();
            if let Err(error) = engine.load(&changed) {
                refused += 1;
                Ending::of::<()>(Err(error))?;
            }
            // They compile in some hundredths of a second.
            if start.elapsed() > Duration::from_secs(10) {
                files.push(changed);
                return Err(format!("a changed byte at {place} takes {:?}", start.elapsed()).into());
            }
        }
        if refused < 100 {
            return Err(format!("only {refused} of 300 changed bytes were noticed").into());
        }
        files.iter().map(|file| describe(file, small())).collect::<Fallible<Vec<_>>>()?
    }

    "33b" a_component_that_is_too_large_is_not_read:
    "a component of more than 64 MiB" => InputError, says ["more than 67108864 bytes"], {
        let place = architecture("", "")?;
        let file = fs::OpenOptions::new().write(true).open(place.path("net/architecture.wasm"))?;
        // A hole in the file takes no room on the disk.
        file.set_len(1 << 40)?;
        refusal(&place, &["train", "options.yaml"])?
    }

    "34" native_code_is_never_loaded:
    "compiled native code (`.cwasm`) instead of a component, as an architecture and within a model" => Refused, says [], {
        let place = architecture("", "")?;
        // A real one: what the program keeps for itself of a component that it ran.
        place.write("options.yaml", COMPOSITION)?;
        let mut training = place.command(&["train", "options.yaml"]);
        training.env("XDG_CACHE_HOME", place.path("cache"));
        succeeds(&mut training)?;
        let compiled = fs::read_dir(place.path("cache/kilnbox"))?.next().ok_or("nothing was kept")??.path();
        let code = fs::read(&compiled)?;
        fs::copy(&compiled, place.path("net/architecture.wasm"))?;
        place.write("other.yaml", &COMPOSITION.replace("composition", "./net"))?;
        let architecture = Ending::of_program(&place.run(&["train", "other.yaml"])?)?.saying(&["native code", "never loaded"])?;
        let mut model = ModelFile::read(&place.path("model.kiln"))?;
        model.checkpoint.architecture.digest = sha256_digest(&code);
        model.component = code;
        model.write(&place.path("other.kiln"))?;
        place.write("eval.yaml", "systems: {read_from: data.xyz, length_unit: angstrom}\n")?;
        vec![architecture, Ending::of_program(&place.run(&["eval", "other.kiln", "eval.yaml"])?)?]
    }

    "35" another_version_of_the_contract_is_refused:
    "a component made for a newer, an older or another version of the contract" => Refused, says ["contract"], {
        let honest = honest()?;
        let mut endings = Vec::new();
        for version in ["@0.2.0", "@9.9.9", "@0.0.9", "@1.0.0"] {
            endings.push(describe(&replaced(&honest, b"@0.1.0", version.as_bytes()), small())?);
        }
        endings
    }

    "36" sections_of_a_bundle_are_what_they_must_be:
    "a bundle whose sections are there twice, too large, not UTF-8, changed, or only in a nested component" => InputError, says ["net.wasm"], {
        let bundle = bundle()?;
        let with = |name: &[u8], content: &[u8]| [bundle.clone(), section(name, content)].concat();
        let changed = |from: &[u8], to: &[u8]| replaced(&bundle, from, to);
        let nested = {
            let honest = honest()?;
            [&honest[..], &[4], &leb128(bundle.len()), &bundle].concat()
        };
        let cases = [
            (with(b"kilnbox:manifest", b"{}"), "`kilnbox:manifest` is there twice"),
            (with(b"kilnbox:docs", b"others"), "`kilnbox:docs` is there twice"),
            (with(b"version", b"9"), "`version` is there twice"),
            (with(b"kilnbox:capabilities", b"all"), "is none that this kilnbox knows"),
            (with(b"kilnbox:schema-hypers", b"{}"), "is not in the manifest"),
            (with(b"description", &[b'x'; 1 << 20]), "at most 65536 is accepted"),
            (with(b"homepage", &[0xff; 100]), "is not UTF-8"),
            (changed(b"model: {}", b"model: []"), "has another digest"),
            (changed(b"\"kilnbox-architecture\"", b"\"kilnbox-nonsense----\""), "`kilnbox-nonsense----`"),
            (nested, "was the file stripped?"),
        ];
        let place = Workplace::new()?;
        place.write("data.xyz", &ethanol_structures(8)?)?;
        place.write("options.yaml", &options("{name: ./net.wasm}"))?;
        let mut endings = Vec::new();
        for (bytes, words) in cases {
            fs::write(place.path("net.wasm"), bytes)?;
            for command in [&["train", "options.yaml"][..], &["show", "net.wasm"]] {
                endings.push(quick_refusal(&place, command)?.saying(&[words])?);
            }
        }
        endings
    }

    "36b" sections_of_others_mean_nothing:
    "custom sections of others: of 8 MiB, not UTF-8, named like those of tools" => Harmless, says [], {
        let sections = [section(b"component-type", b"nonsense"), section(b"", &vec![0xff; 8 << 20])];
        describe(&[bundle()?, sections.concat()].concat(), small())?
    }

    "37" a_stripped_bundle_is_explained:
    "a bundle that was stripped of all custom sections" => InputError,
    says ["has no manifest (`kilnbox:manifest`); was the file stripped?", "kilnbox pack"], {
        let bundle = bundle()?;
        let stripped = stripped(&bundle)?;
        if stripped.len() >= bundle.len() {
            return Err("there was nothing to strip".into());
        }
        let place = Workplace::new()?;
        place.write("data.xyz", &ethanol_structures(8)?)?;
        place.write("options.yaml", &options("{name: ./net.wasm}"))?;
        fs::write(place.path("net.wasm"), stripped)?;
        vec![refusal(&place, &["train", "options.yaml"])?, refusal(&place, &["show", "net.wasm"])?]
    }

    "38" yaml_bombs_are_refused_at_once:
    "options that expand, nest or repeat without end, or hold tags, objects and numbers without end" => InputError, says [], {
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            laughs.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        let merges: String = (1..50)
            .map(|level| format!("a{level}: &a{level}\n  <<: [*a{0}, *a{0}]\n", level - 1))
            .collect();
        let cases = [
            (laughs, "expands to too much"),
            ("[".repeat(100_000), "nested too deeply"),
            ("- ".repeat(100_000), "nested too deeply"),
            ("{a: ".repeat(50_000), "nested too deeply"),
            (format!("a0: &a0 {{x: 1}}\n{merges}"), "options.yaml"),
            ("a: &a\n  <<: *a\n".to_owned(), "options.yaml"),
            ("a: !!python/object/apply:os.system ['touch owned']\n".to_owned(), "options.yaml"),
            ("a: !include /etc/passwd\n".to_owned(), "options.yaml"),
            ("seed: 1\nseed: 2\n".to_owned(), "options.yaml:2:1: key `seed` is given twice"),
            ("seed: .inf\n".to_owned(), "not a finite number"),
            ("seed: 1e999\n".to_owned(), "not a finite number"),
            ("\u{1b}[2J: 1\n".to_owned(), "options.yaml"),
        ];
        let place = Workplace::new()?;
        let mut endings = Vec::new();
        for (text, words) in cases {
            place.write("options.yaml", &text)?;
            endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&[words])?);
        }
        // A gibibyte, most of it a hole.
        let mut file = fs::File::create(place.path("options.yaml"))?;
        file.write_all(b"a: '")?;
        file.set_len(1 << 30)?;
        endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&["larger than 262144 bytes"])?);
        endings
    }

    "39" a_schema_reads_nothing_and_ends:
    "a schema that refers to the network, to files or to itself, or that takes for ever" => InputError,
    says ["schema-hypers.json"], {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let laughs: String = (0..30)
            .map(|level| {
                let next = format!(r##"{{"$ref": "#/$defs/{}"}}"##, level + 1);
                format!(r#""{level}": {{"allOf": [{next}, {next}]}}, "#)
            })
            .collect();
        let deep = format!("{}{{}}{}", r#"{"not":"#.repeat(100_000), "}".repeat(100_000));
        let schemas = [
            (format!(r#"{{"$ref": "http://127.0.0.1:{port}/schema.json"}}"#), "nothing outside is read"),
            (format!(r#"{{"$schema": "http://127.0.0.1:{port}/schema.json"}}"#), "JSON schema"),
            (format!(r#"{{"$id": "http://127.0.0.1:{port}/", "$ref": "schema.json"}}"#), "nothing outside is read"),
            (r#"{"$ref": "file:///etc/passwd"}"#.to_owned(), "nothing outside is read"),
            (r##"{"$ref": "#"}"##.to_owned(), "refers to itself"),
            (r##"{"properties": {"model": {"$ref": "#"}}}"##.to_owned(), "refers to itself"),
            (format!(r##"{{"$defs": {{{laughs}"30": {{}}}}, "$ref": "#/$defs/0"}}"##), "too large"),
            (format!(r#"{{"anyOf": [{}{{}}]}}"#, r#"{"const":1},"#.repeat(80_000)), "too large"),
            (r#"{"pattern": "(((a{100}){100}){100}){100}"}"#.to_owned(), "JSON schema"),
            (deep, "schema-hypers.json"),
            ("{\"not\": {}".repeat(200_000), "larger than 1048576 bytes"),
        ];
        let mut endings = Vec::new();
        for (schema, words) in schemas {
            let place = architecture("model: {a: 1}\n", &schema)?;
            endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&[words])?);
        }
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => endings,
            other => return Err(format!("somebody connected: {other:?}").into()),
        }
    }

    "39b" a_catastrophic_pattern_takes_no_time:
    "a pattern in a schema that makes other matchers search for ever" => InputError, says ["must be text that matches"], {
        let text = "a".repeat(200);
        let schema = r#"{"properties": {"model": {"properties": {"a": {"pattern": "^(a+)+$"}}}}}"#;
        let place = architecture(&format!("model: {{a: {text}b}}\n"), schema)?;
        quick_refusal(&place, &["train", "options.yaml"])?
    }

    "40" defaults_that_break_their_own_schema_are_the_architectures_mistake:
    "default hypers that their own schema refuses" => InputError,
    says ["default-hypers.yaml:1:12", "`architecture.model.a` must be a number", "report it to its maintainers"], {
        let schema = r#"{"properties": {"model": {"properties": {"a": {"type": "number"}}}}}"#;
        refusal(&architecture("model: {a: many}\n", schema)?, &["train", "options.yaml"])?
    }

    "41" hypers_are_checked_before_the_component_is_looked_at:
    "hypers with an unknown key, or of another type" => InputError, says ["options.yaml:3"], {
        let schema = r#"{"properties": {"model": {"additionalProperties": false, "properties": {"cutoff": {"type": "number"}}}}}"#;
        let cases =
            [("model: {cutof: 1.0}", "use `cutoff`"), ("model: {cutoff: far}", "must be a number, and is the text `far`")];
        let mut endings = Vec::new();
        for (line, words) in cases {
            // Its component is none, and would be refused if anybody looked.
            let place = architecture("model: {cutoff: 5.0}\n", schema)?;
            place.write("options.yaml", &options(&format!("{{name: ./net,\n  {line}}}")))?;
            endings.push(refusal(&place, &["train", "options.yaml"])?.saying(&[words])?);
        }
        endings
    }

    "42" an_archive_that_leaves_its_folder_is_refused:
    "a model's archive with paths that lead out, links, devices, lies about sizes, too many entries; a zip" => InputError, says [], {
        const OUTSIDE: &str = "../kilnbox-attack-42";
        let passwd = |kind: u8, name: &str| [tar_entry(name.as_bytes(), kind, b"", None, b"/etc/passwd"), tar_entry(b"index.json", b'0', b"{}", None, b"")].concat();
        let file = |name: &[u8]| tar_entry(name, b'0', b"content", None, b"");
        let archives: Vec<(Vec<u8>, &str)> = vec![
            (file(OUTSIDE.as_bytes()), "has no place in a model"),
            (file(b"/tmp/kilnbox-attack-42"), "has no place in a model"),
            (file(b"blobs/sha256/../../../kilnbox-attack-42"), "has no place in a model"),
            (file(b"INDEX.JSON"), "has no place in a model"),
            (file(b"CON"), "has no place in a model"),
            (file(b"blobs/sha256/\xff\xfe"), "has no place in a model"),
            (file(b"\x1b[2J"), "\\u{1b}"),
            ([file(b"oci-layout"), file(b"oci-layout")].concat(), "is there twice"),
            (passwd(b'2', "index.json"), "plain files only"),
            (passwd(b'1', "index.json"), "plain files only"),
            (passwd(b'3', "index.json"), "plain files only"),
            (passwd(b'4', "index.json"), "plain files only"),
            (passwd(b'6', "index.json"), "plain files only"),
            (passwd(b'5', OUTSIDE), "plain files only"),
            (passwd(b'S', "index.json"), "plain files only"),
            (passwd(b'L', "index.json"), "plain files only"),
            (passwd(b'x', "index.json"), "plain files only"),
            (tar_entry(b"index.json", b'0', b"{}", Some(1 << 32), b""), "truncated"),
            (tar_entry(b"index.json", b'0', b"{}", Some(0), b""), "not an OCI image layout"),
            (file(b"index.json\0../x"), "is missing"),
            (tar_entry(b"oci-layout", b'0', &vec![b' '; 1 << 20], None, b""), "at most 65536 is accepted"),
            ((0..10_000).flat_map(|_| tar_entry(b"blobs/", b'5', b"", None, b"")).collect(), "number of its entries is 33"),
            (b"PK\x03\x04 a zip".repeat(100), "not begin as a tar archive"),
            (b"\x1f\x8b a compressed tar".repeat(100), "not begin as a tar archive"),
            (b"BZh a compressed tar".repeat(100), "not begin as a tar archive"),
        ];
        let place = Workplace::new()?;
        place.write("data.xyz", &ethanol_structures(1)?)?;
        place.write("eval.yaml", "systems: {read_from: data.xyz, length_unit: angstrom}\n")?;
        let mut endings = Vec::new();
        for (bytes, words) in archives {
            fs::write(place.path("model.kiln"), [bytes, vec![0; 1024]].concat())?;
            endings.push(quick_refusal(&place, &["eval", "model.kiln", "eval.yaml"])?.saying(&[words])?);
        }
        if place.path(OUTSIDE).exists() || Path::new("/tmp/kilnbox-attack-42").exists() {
            return Err("something was written outside".into());
        }
        endings
    }

    "43" a_models_parts_must_be_what_they_are_said_to_be:
    "a model whose parts have another digest or size, are missing, too many or too large" => InputError, says [], {
        let place = Workplace::new()?;
        place.write("data.xyz", &ethanol_structures(1)?)?;
        place.write("eval.yaml", "systems: {read_from: data.xyz, length_unit: angstrom}\n")?;
        let whole = model()?.to_bytes()?;
        let change = |from: &[u8], to: &[u8]| replaced(&whole, from, to);
        let without = |name: &str| -> Fallible<Vec<u8>> {
            Ok(tar_entries(&whole).into_iter().filter(|(entry, _)| entry != name).flat_map(|(name, content)| tar_entry(name.as_bytes(), b'0', &content, None, b"")).collect())
        };
        let with = |name: &str, content: &[u8]| -> Vec<u8> {
            let end = whole.len() - 1024;
            [&whole[..end], &tar_entry(name.as_bytes(), b'0', content, None, b"")].concat()
        };
        let blob = |content: &[u8]| format!("blobs/sha256/{}", sha256_digest(content).trim_start_matches("sha256:"));
        let component_digest = blob(b"a component");
        let annotated = format!(r#"{{"annotations": {{"a": "{}"}}}}"#, "x".repeat(10 << 20));
        // The first size that a descriptor names, in the index, whose own digest nobody knows.
        let mut lying = whole.clone();
        let size = whole.windows(7).position(|window| window == br#""size":"#).ok_or("no size")? + 7;
        lying[size] = if lying[size] == b'9' { b'8' } else { lying[size] + 1 };
        let cases = [
            (change(b"a component", b"A component"), "damaged or was tampered with"),
            (without(&component_digest)?, "is missing"),
            (without("index.json")?, "`index.json` is missing"),
            (with(&blob(b"hidden"), b"hidden"), "nothing refers to"),
            (with("index.json", annotated.as_bytes()), "at most 65536 is accepted"),
            (with("index.json", b"{}"), "is there twice"),
            (lying, "and its descriptor says"),
            (with_manifests(&whole, |manifest| {
                let layer = manifest["layers"][0].clone();
                if manifest["subject"].is_null() {
                    manifest["layers"] = json!([layer, layer]);
                }
            })?, "has 2 layers where exactly one"),
            (with_manifests(&whole, |manifest| {
                if !manifest["subject"].is_null() {
                    let layer = manifest["layers"][1].clone();
                    manifest["layers"].as_array_mut().into_iter().for_each(|layers| layers.push(layer.clone()));
                }
            })?, "has 3 layers where one"),
            (with_manifests(&whole, |manifest| {
                if !manifest["subject"].is_null() {
                    manifest["subject"]["digest"] = json!(sha256_digest(b"another"));
                }
            })?, "name another component"),
            (whole[..whole.len() / 2].to_vec(), ""),
        ];
        let mut endings = Vec::new();
        for (bytes, words) in cases {
            fs::write(place.path("model.kiln"), bytes)?;
            endings.push(quick_refusal(&place, &["eval", "model.kiln", "eval.yaml"])?.saying(&[words])?);
        }
        endings
    }

    "77" a_registry_is_not_believed:
    "a registry that sends something else, without end, or elsewhere" => InputError, says ["127.0.0.1"], {
        let endless: fn(&mut TcpStream) -> io::Result<()> = |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b'{'; 1 << 16])?;
            }
        };
        let cases: [(fn(&mut TcpStream) -> io::Result<()>, &str); 5] = [
            (endless, "more than the 65536 bytes"),
            (|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), "damaged or was tampered with"),
            (|stream| stream.write_all(b"HTTP/1.1 307 Go\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"), "answers wrongly: 307"),
            (|stream| stream.write_all(b"HTTP/1.1 500 \x1b[2J\r\nContent-Length: 4\r\n\r\n\x1b[2J"), "127.0.0.1"),
            (|stream| stream.write_all(&[b'x'; 1 << 20]), "cannot be reached"),
        ];
        let mut endings = Vec::new();
        for (answer, words) in cases {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let digest = sha256_digest(b"what was asked for");
            let reference = format!("oci://127.0.0.1:{}/net@{digest}", listener.local_addr()?.port());
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept()?;
                // The request fits into one packet; whoever answers before it was read resets the connection.
                let _ = stream.read(&mut [0; 4096])?;
                answer(&mut stream)
            });
            let place = Workplace::new()?;
            let before = place.entries()?;
            let ending = input_error(place.run_after("unset http_proxy HTTP_PROXY all_proxy ALL_PROXY; export XDG_CACHE_HOME=\"$PWD/cache\"; ulimit -v 524288", &["pull", &reference])?)?;
            let mut after = place.entries()?;
            after.retain(|entry| !entry.starts_with("cache"));
            if after != before {
                return Err(format!("{after:?} are left of {before:?}").into());
            }
            // The endless answer ends when nobody listens any more.
            let _ = server.join();
            endings.push(ending.saying(&[words])?);
        }
        endings
    }

    "78" a_changed_file_has_no_good_signature:
    "a bundle that was changed after somebody signed it, a signature cut short, another one's" => InputError, says ["net.wasm"], {
        let place = Workplace::new()?;
        fs::write(place.path("net.wasm"), bundle()?)?;
        for key in ["me", "other"] {
            succeeds(&mut place.command(&["keygen", "--no-password", "-o", &format!("{key}.key")]))?;
        }
        succeeds(&mut place.command(&["sign", "net.wasm", "-k", "me.key"]))?;
        let (file, signature) = (fs::read(place.path("net.wasm"))?, fs::read(place.path("net.wasm.minisig"))?);
        let mut endings = Vec::new();
        let mut attempt = |file: &[u8], signature: &[u8], key: &str, words: &str| -> Fallible {
            fs::write(place.path("net.wasm"), file)?;
            fs::write(place.path("net.wasm.minisig"), signature)?;
            endings.push(refusal(&place, &["verify", "net.wasm", "-k", key])?.saying(&[words])?);
            Ok(())
        };
        attempt(&replaced(&file, b"# Net", b"# Not"), &signature, "me.pub", "is not what")?;
        attempt(&file, &replaced(&signature, b"timestamp:1", b"timestamp:2"), "me.pub", "is not what")?;
        attempt(&file, &signature, "other.pub", "another key")?;
        attempt(&file, &signature[..signature.len() / 2], "me.pub", "cannot be used")?;
        attempt(&file, &[b'\n'; 100], "me.pub", "cannot be used")?;
        attempt(&file, "é\né\né\né\n".as_bytes(), "me.pub", "cannot be used")?;
        attempt(&file, &vec![b'x'; 1 << 20], "me.pub", "larger than 4096 bytes")?;
        endings
    }

    "44" a_hostile_header_of_tensors_is_refused:
    "weights whose header lies about sizes, places, names, shapes and types, or is far too large" => InputError, says ["x.ckpt"], {
        const DESCRIBED: &str = r#""__metadata__":{"kilnbox":"{}"}"#;
        let raw = |header: &str, data: usize| {
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
        };
        let tensors = |tensors: &str, data: usize| raw(&format!("{{{DESCRIBED},{tensors}}}"), data);
        let length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
        let many: String = (0..200_000)
            .map(|number| format!(r#","{number}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        let one = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        let cases = [
            (length(u64::MAX), "at most 16777216 is accepted"),
            (length(101 << 20), "at most 16777216 is accepted"),
            (length(1000), "truncated"),
            (tensors(r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}"#, 6), "overlaps"),
            (tensors(r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}"#, 10), "leaves a gap"),
            (tensors(&format!("{one},{one}"), 4), "two tensors of this name"),
            (tensors(r#""a":{"dtype":"U8","shape":[4294967296,4294967296,16],"data_offsets":[0,4]}"#, 4), "overflow"),
            (tensors(r#""a":{"dtype":"F7","shape":[4],"data_offsets":[0,4]}"#, 4), "F7"),
            (tensors(r#""a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}"#, 4), "type `F16`"),
            (tensors(r#""a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}"#, 1), "more than 8 axes"),
            (tensors(r#""\u001b[2J":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}"#, 1), "x.ckpt"),
            (tensors(one, 5), "do not end where the file ends"),
            (tensors(one, 3), "truncated"),
            (raw(&format!("{{{DESCRIBED}{many}}}"), 0), "at most 100000 is accepted"),
            (raw(&format!("{{{DESCRIBED}{many}{many}}}"), 0), "at most 16777216 is accepted"),
            (raw(&format!("{{{DESCRIBED},\"a\":{}", "[".repeat(1_000_000)), 0), "x.ckpt"),
        ];
        let place = Workplace::new()?;
        let mut endings = Vec::new();
        for (bytes, words) in cases {
            fs::write(place.path("x.ckpt"), bytes)?;
            endings.push(quick_refusal(&place, &["export", "x.ckpt"])?.saying(&[words])?);
        }
        // Files with holes: one that is too large, and one that is no checkpoint, which is not read to its end.
        let file = fs::File::create(place.path("x.ckpt"))?;
        for (size, words) in [((16 << 30) + 1, "at most 17179869184 is accepted"), (16 << 30, "safetensors")] {
            file.set_len(size)?;
            endings.push(quick_refusal(&place, &["export", "x.ckpt"])?.saying(&[words])?);
        }
        fs::remove_file(place.path("x.ckpt"))?;
        symlink("/dev/zero", place.path("x.ckpt"))?;
        endings.push(quick_refusal(&place, &["export", "x.ckpt"])?.saying(&["not a plain file"])?);
        endings
    }

    "45" a_checkpoint_of_something_else_is_refused:
    "a checkpoint of another architecture, with other hypers or tensors of other shapes" => InputError, says [], {
        let place = trained()?;
        place.write("options.yaml", &options("{name: soap-bpnn, training: {num_epochs: 1, batch_size: 2}}"))?;
        succeeds(&mut place.command(&["train", "options.yaml"]))?;
        let changes: [(fn(&mut CheckpointFile), &str); 5] = [
            (|file| file.architecture.name = "pet".into(), "is one of `pet`"),
            (|file| file.architecture.name = "\u{1b}[2J\u{202e}".into(), "\\u{1b}[2J\\u{202e}"),
            (|file| file.hypers["model"]["secret"] = json!(1), "`architecture.model.secret`"),
            (|file| file.tensors.retain(|tensor| !tensor.name.ends_with("norm.scale")), "parameter `norm.scale` is not in the checkpoint"),
            (
                |file| file.tensors.iter_mut().for_each(|tensor| tensor.shape.push(1)),
                "parameter `norm.scale` is [3, 2556, 1] in the checkpoint, expected [3, 2556]",
            ),
        ];
        let mut endings = Vec::new();
        for (change, words) in changes {
            let mut file = CheckpointFile::read(&place.path("model.ckpt"))?;
            change(&mut file);
            file.write(&place.path("other.ckpt"))?;
            let outcome = place.run(&["train", "options.yaml", "--restart", "other.ckpt", "-o", "other.kiln"])?;
            endings.push(input_error(outcome)?.saying(&[words])?);
        }
        endings
    }

    "46" weights_that_are_no_numbers_are_called_out:
    "a checkpoint with weights that are not finite" => Harmless, says ["numbers that are not finite"], {
        let place = trained()?;
        let mut file = CheckpointFile::read(&place.path("model.ckpt"))?;
        let tensor = file.tensors.iter_mut().find(|tensor| tensor.element_type == ElementType::F64).ok_or("no tensor")?;
        tensor.bytes[..8].copy_from_slice(&f64::NAN.to_le_bytes());
        file.write(&place.path("nan.ckpt"))?;
        place.write("eval.yaml", "systems: {read_from: data.xyz, length_unit: angstrom}\n")?;
        let commands: [&[&str]; 3] = [
            &["train", "options.yaml", "--restart", "nan.ckpt", "-o", "other.kiln"],
            &["export", "nan.ckpt", "-o", "nan.kiln"],
            &["eval", "nan.kiln", "eval.yaml"],
        ];
        let mut endings = Vec::new();
        for command in commands {
            let outcome = place.run(command)?;
            endings.push(Ending { message: outcome.output.clone(), ..Ending::of_program(&outcome)? });
        }
        endings
    }

    "47" a_checkpoints_name_is_no_path:
    "checkpoints with names that lead out of the run's folder, or that no file can have" => Harmless,
    says ["letters, digits, `_` and `-`"], {
        let long = "a".repeat(65);
        let names: [&str; 10] = [
            "../../.ssh/authorized_keys", "/etc/passwd", "..", ".", "", "a/b", "a.ckpt", "a\\00b", "\\1b[2J", &long,
        ];
        let (ending, record) = train(&saving(&names.map(|name| (name, false)))?, small(), vec![])?;
        let told: Vec<String> = record.log.into_iter().map(|(_, message)| message).collect();
        if !record.checkpoints.is_empty() || told.len() != names.len() {
            return Err(format!("{:?} were kept, {told:?} was told", record.checkpoints).into());
        }
        told.into_iter().map(|message| Ending { message, ..ending.clone() }).collect::<Vec<_>>()
    }

    "48" checkpoints_fill_no_disk:
    "more, larger and altogether more bytes of checkpoints than a run may leave" => Harmless, says ["are kept (`"], {
        // Each has one number and `{}`, six bytes.
        let cases: [(Limits, &[(&str, bool)]); 3] = [
            (Limits { checkpoints: 2, ..small() }, &[("a", true), ("b", true), ("a", true), ("c", false)]),
            (Limits { checkpoint_bytes: 5, ..small() }, &[("a", false)]),
            (Limits { disk_bytes: 13, ..small() }, &[("a", true), ("b", true), ("b", true), ("c", false)]),
        ];
        let mut endings = Vec::new();
        for (limits, names) in cases {
            let (ending, record) = train(&saving(names)?, limits, vec![])?;
            endings.push(Ending { message: record.log.into_iter().map(|(_, message)| message).collect(), ..ending });
        }
        endings
    }

    "49" hostile_data_is_refused_with_its_line:
    "structures with impossible counts, numbers, elements, cells and labels" => InputError, says ["data.xyz"], {
        let keys: String = (0..1_000_000).map(|key| format!(" k{key}")).collect();
        let columns: String = (0..900).map(|key| format!(":k{key}:R:100000")).collect();
        let cases = [
            ("1000000000000\nenergy=1\nH 0 0 0\n".to_owned(), "the frame has 1000000000000 atoms, but the file ends after 1"),
            ("0\nenergy=1\n".to_owned(), "line 1: the frame has no atoms"),
            ("1\nenergy=1\nH 0 nan 0\n".to_owned(), "line 3: `nan` in the column `pos` is not a finite number"),
            ("1\nenergy=1\nH 0 1e300 0\n".to_owned(), "expected numbers of at most 1e9"),
            ("1\nenergy=1\n255 0 0 0\n".to_owned(), "line 3: `255` is not a chemical element"),
            ("1\nenergy=1\n-2147483648 0 0 0\n".to_owned(), "is not a chemical element"),
            ("1\nenergy=1\n\u{1b}[2J 0 0 0\n".to_owned(), "`\\u{1b}[2J` is not a chemical element"),
            ("1\nenergy=1 Lattice=\"1 0 0 0 1 0 1 1 0\"\nH 0 0 0\n".to_owned(), "the cell has no volume"),
            ("1\nenergy=1 Lattice=\"nan 0 0 0 1 0 0 0 1\"\nH 0 0 0\n".to_owned(), "not finite"),
            ("1\nenergy=inf\nH 0 0 0\n".to_owned(), "`energy` is inf"),
            (format!("1\nenergy=1{keys}\nH 0 0 0\n"), "more than 1000 keys"),
            (format!("1\nenergy=1 Properties=species:S:1:pos:R:3{columns}\nH 0 0 0\n"), "columns, and the whole file"),
            ("1\nenergy=1 a=[[[[\nH 0 0 0\n".to_owned(), "no closing"),
        ];
        let place = architecture("", "")?;
        let mut endings = Vec::new();
        for (text, words) in cases {
            place.write("data.xyz", &text)?;
            endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&[words])?);
        }
        fs::write(place.path("data.xyz"), b"1\nenergy=1\n\xff\xfe 0 0 0\n")?;
        endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&["line 3", "UTF-8"])?);
        fs::remove_file(place.path("data.xyz"))?;
        symlink("/dev/zero", place.path("data.xyz"))?;
        endings.push(quick_refusal(&place, &["train", "options.yaml"])?.saying(&["a device or a pipe"])?);
        endings
    }

    "49b" pairs_without_end_are_counted:
    "structures and cutoffs with more pairs of atoms than memory holds" => InputError, says ["too many pairs"], {
        let place = Workplace::new()?;
        // 9000 atoms within reach of each other are 81 million pairs.
        let heap: String = (0..9000).map(|atom| format!("H 0 0 {}\n", f64::from(atom) / 9000.0)).collect();
        let crystal = "1\nenergy=1 Lattice=\"0.01 0 0 0 0.01 0 0 0 0.01\"\nH 0 0 0\n";
        let mut endings = Vec::new();
        for structure in [format!("9000\nenergy=1\n{heap}"), crystal.to_owned()] {
            place.write("data.xyz", &structure.repeat(4))?;
            place.write("options.yaml", &options("{name: soap-bpnn, training: {num_epochs: 1, batch_size: 1}}"))?;
            endings.push(input_error(place.run(&["train", "options.yaml"])?)?);
        }
        endings
    }

    "50" a_killed_writer_leaves_the_previous_checkpoint:
    "the program is killed while it writes a checkpoint" => Harmless, says [], {
        const WRITER: &str = "KILNBOX_TEST_WRITER";
        if let Some(path) = env::var_os(WRITER) {
            // This is the process that will be killed.
            for version in 0.. {
                checkpoint(version)?.write(Path::new(&path))?;
            }
        }
        let place = Workplace::new()?;
        let path = place.path("model.ckpt");
        checkpoint(0)?.write(&path)?;
        let (mut versions, mut in_the_middle) = (std::collections::BTreeSet::new(), 0);
        for wait in numbers(4).take(40) {
            let mut writer = Command::new(env::current_exe()?)
                .args(["--exact", "files::a_killed_writer_leaves_the_previous_checkpoint"])
                .env(WRITER, &path)
                .stdout(std::process::Stdio::null())
                .spawn()?;
            thread::sleep(Duration::from_millis(40 + wait % 60));
            writer.kill()?;
            writer.wait()?;
            let found = CheckpointFile::read(&path)?;
            let version = found.seed;
            if found != checkpoint(version)? {
                return Err(format!("checkpoint {version} is not what was written").into());
            }
            versions.insert(version);
            for entry in place.entries()?.iter().filter(|entry| entry.ends_with(".tmp")) {
                in_the_middle += 1;
                fs::remove_file(place.path(entry))?;
            }
        }
        // Otherwise nothing was shown.
        if versions.len() < 2 || in_the_middle == 0 {
            return Err(format!("versions {versions:?} were found, {in_the_middle} in the middle of a write").into());
        }
        Ending::harmless("")
    }

    "50b" a_full_disk_leaves_the_previous_checkpoint:
    "the disk is full while a checkpoint is written" => InputError, says ["cannot write", "model.ckpt", "File too large"], {
        let place = trained()?;
        let previous = fs::read(place.path("model.ckpt"))?;
        let before: Vec<String> = place.entries()?.into_iter().filter(|entry| !entry.starts_with("outputs")).collect();
        // No file may grow beyond 512 bytes, and the signal that says so is ignored, as it is for a disk that is full.
        let outcome = place.run_after("trap '' XFSZ; ulimit -f 1", &["train", "options.yaml", "--restart", "model.ckpt"])?;
        let ending = input_error(outcome)?;
        if fs::read(place.path("model.ckpt"))? != previous {
            return Err("the previous checkpoint was changed".into());
        }
        let after: Vec<String> = place.entries()?.into_iter().filter(|entry| !entry.starts_with("outputs")).collect();
        if after != before {
            return Err(format!("{after:?} are left of {before:?}").into());
        }
        ending
    }
}

/// Options for a training on `data.xyz` with this `architecture` section.
fn options(architecture: &str) -> String {
    format!(
        "seed: 7\narchitecture: {architecture}
training_set:
  systems: {{read_from: data.xyz, length_unit: angstrom}}
  targets: {{energy: {{key: energy, unit: eV, forces: false}}}}
validation_set: 0.25
test_set: 0
"
    )
}

const COMPOSITION: &str = "\
seed: 7
architecture: {name: composition}
training_set:
  systems: {read_from: data.xyz, length_unit: angstrom}
  targets: {energy: {key: energy, unit: eV, forces: false}}
validation_set: 0.25
test_set: 0
";

/// A folder with data, options, and the architecture `net` that they name, whose component is none: it is refused by whoever looks at it.
fn architecture(hypers: &str, schema: &str) -> Fallible<Workplace> {
    let place = Workplace::new()?;
    fs::create_dir(place.path("net"))?;
    place.write("net/architecture.wasm", "this is no component")?;
    for (name, text) in [("net/default-hypers.yaml", hypers), ("net/schema-hypers.json", schema)] {
        if !text.is_empty() {
            place.write(name, text)?;
        }
    }
    place.write("options.yaml", &options("{name: ./net}"))?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    Ok(place)
}

/// A folder with a training that has ended: `model.ckpt` and `model.kiln`.
fn trained() -> Fallible<Workplace> {
    let place = Workplace::new()?;
    place.write("options.yaml", COMPOSITION)?;
    place.write("data.xyz", &ethanol_structures(8)?)?;
    succeeds(&mut place.command(&["train", "options.yaml"]))?;
    Ok(place)
}

fn succeeds(command: &mut Command) -> Fallible {
    let output = command.output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// Runs the program, which must refuse and leave nothing behind.
fn refusal(place: &Workplace, arguments: &[&str]) -> Fallible<Ending> {
    let before = place.entries()?;
    let ending = input_error(place.run(arguments)?)?;
    let after = place.entries()?;
    if after == before { Ok(ending) } else { Err(format!("{after:?} are left of {before:?}").into()) }
}

/// [`refusal`] within the memory and the time that a refusal may take: half a gigabyte of addresses, of which little is used, and two seconds on a busy
/// machine.
fn quick_refusal(place: &Workplace, arguments: &[&str]) -> Fallible<Ending> {
    let before = place.entries()?;
    let start = Instant::now();
    let ending = input_error(place.run_after("ulimit -v 524288", arguments)?)?;
    if start.elapsed() > Duration::from_secs(2) {
        return Err(format!("{:?} for {ending:?}", start.elapsed()).into());
    }
    let after = place.entries()?;
    if after == before { Ok(ending) } else { Err(format!("{after:?} are left of {before:?}").into()) }
}

/// The ending of a run that refused its input: exit code 1, one error, nothing raw.
fn input_error(outcome: kilnbox_tests::Outcome) -> Fallible<Ending> {
    let kilnbox_tests::Outcome { code, errors, .. } = outcome;
    let is_clean = !errors.chars().any(|character| character.is_control() && character != '\n');
    if code == Some(1)
        && errors.contains("error: ")
        && !errors.contains("panicked")
        && is_clean
        && errors.len() < 20_000
    {
        return Ok(Ending::input_error(errors));
    }
    Err(format!("exit code {code:?}: {errors:.2000}").into())
}

/// A guest that saves checkpoints of these names and says why one was refused. It traps where it is not as said whether they are kept.
fn saving(names: &[(&str, bool)]) -> Fallible<Vec<u8>> {
    let mut body = String::from("(local $number i32)");
    let mut data = String::from(r#"(data (i32.const 68) "{}") (data (i32.const 72) "a")"#);
    for (place, (name, is_kept)) in names.iter().enumerate() {
        let at = 0x1000 + 0x100 * place;
        // Of an escape, `\\00`, three characters stand for one byte.
        let length = name.len() - 2 * name.matches('\\').count();
        let otherwise = if *is_kept { "" } else { "i32.eqz" };
        data.push_str(&format!(r#"(data (i32.const {at}) "{name}")"#));
        body.push_str(&format!(
            "(local.set $number (call $tensor.full (i32.const 64) (i32.const 0) (f64.const 1) (i32.const 0)))
            (i32.store (i32.const 0xb100) (i32.const 72)) (i32.store (i32.const 0xb104) (i32.const 1))
            (i32.store (i32.const 0xb108) (local.get $number))
            (call $checkpoint.checkpoint-folder.save (local.get $folder) (i32.const {at}) (i32.const {length})
                (i32.const 1) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 68) (i32.const 2)
                (i32.const 0xb100) (i32.const 1) (i32.const 0xb000))
            (i32.load8_u (i32.const 0xb000)) {otherwise} (if (then unreachable))"
        ));
        if !is_kept {
            body.push_str(
                "(call $report.log (i32.const 1) (i32.load (i32.const 0xb004)) (i32.load (i32.const 0xb008)))",
            );
        }
    }
    training(&body, &data)
}

/// A custom section.
fn section(name: &[u8], content: &[u8]) -> Vec<u8> {
    let body = [&leb128(name.len()), name, content].concat();
    [&[0][..], &leb128(body.len()), &body].concat()
}

/// A bundle of the honest component.
fn bundle() -> Fallible<Vec<u8>> {
    let parts = Parts {
        name: "net".to_owned(),
        default_hypers: Some("model: {}\n".to_owned()),
        docs: Some("# Net\n".to_owned()),
        metadata: Metadata { version: Some("1.0".to_owned()), ..Metadata::default() },
        ..Parts::default()
    };
    Ok(pack(&honest()?, &parts)?)
}

fn honest() -> Fallible<Vec<u8>> {
    component(include_str!("guests/honest.wat"))
}

/// A model whose component is none.
fn model() -> Fallible<ModelFile> {
    let mut checkpoint = checkpoint(0)?;
    checkpoint.tensors.clear();
    Ok(ModelFile {
        component: b"a component".to_vec(),
        checkpoint,
        capabilities: json!({}),
        metadata: json!({}),
        options: json!(null),
        metrics: json!(null),
        card: "# A model\n".to_owned(),
    })
}

/// A checkpoint that takes some milliseconds to write; all its numbers are `version`.
fn checkpoint(version: u64) -> Fallible<CheckpointFile> {
    const NUMBERS: usize = 1 << 18;
    let digest = sha256_digest(b"a component");
    Ok(CheckpointFile {
        architecture: ArchitectureIdentity { name: "net".to_owned(), version: None, digest },
        contract_version: "0.1.0".to_owned(),
        model_version: 1,
        trainer_version: 1,
        hypers: json!({}),
        dataset_info: json!({}),
        epoch: None,
        seed: version,
        data: json!({}),
        tensors: vec![NamedTensor {
            name: "numbers".to_owned(),
            element_type: ElementType::I64,
            shape: vec![NUMBERS],
            bytes: i64::try_from(version)?.to_le_bytes().repeat(NUMBERS),
        }],
    })
}

/// Numbers that are the same in every run: Knuth's MMIX generator.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |state| {
        Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    })
    .skip(1)
    .map(|state| state >> 16)
}

/// `bytes` with `to` for every `from`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(bytes.len());
    let mut place = 0;
    while place < bytes.len() {
        if bytes[place..].starts_with(from) {
            result.extend(to);
            place += from.len();
        } else {
            result.push(bytes[place]);
            place += 1;
        }
    }
    result
}

/// A number as WebAssembly writes it.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (number & 0x7f) as u8;
        number >>= 7;
        bytes.push(if number == 0 { byte } else { byte | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}

/// A component without the custom sections of its outermost level.
fn stripped(component: &[u8]) -> Fallible<Vec<u8>> {
    let mut reader = io::Cursor::new(component);
    let mut kept = vec![0; 8];
    reader.read_exact(&mut kept)?;
    while (reader.position() as usize) < component.len() {
        let start = reader.position() as usize;
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        let is_custom = byte[0] == 0;
        let (mut size, mut shift) = (0_u64, 0);
        loop {
            reader.read_exact(&mut byte)?;
            size |= u64::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let end = reader.seek(SeekFrom::Current(i64::try_from(size)?))? as usize;
        if !is_custom {
            kept.extend(&component[start..end]);
        }
    }
    Ok(kept)
}

/// One entry of a tar: `size` is what its header claims, if not the truth.
fn tar_entry(name: &[u8], kind: u8, content: &[u8], size: Option<u64>, link: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..108].copy_from_slice(b"0000644\0");
    let size = format!("{:011o}\0", size.unwrap_or(content.len() as u64));
    header[124..136].copy_from_slice(size.as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link);
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [&header[..], content, &padding].concat()
}

/// A model's archive after a change to its manifests, with all digests and sizes made right.
fn with_manifests(whole: &[u8], change: impl Fn(&mut serde_json::Value)) -> Fallible<Vec<u8>> {
    const BLOBS: &str = "blobs/sha256/";
    let mut entries = tar_entries(whole);
    let index = entries.iter().position(|(name, _)| name == "index.json").ok_or("no index")?;
    let mut listed: serde_json::Value = serde_json::from_slice(&entries[index].1)?;
    // Both change, and the second names the first.
    let mut renamed: Vec<(String, String, usize)> = Vec::new();
    for descriptor in listed["manifests"].as_array_mut().ok_or("no manifests")? {
        let digest = descriptor["digest"].as_str().ok_or("no digest")?.to_owned();
        let name = format!("{BLOBS}{}", digest.trim_start_matches("sha256:"));
        let entry = entries.iter_mut().find(|(entry, _)| *entry == name).ok_or("no manifest")?;
        let mut manifest: serde_json::Value = serde_json::from_slice(&entry.1)?;
        for (old, new, size) in &renamed {
            if manifest["subject"]["digest"] == **old {
                manifest["subject"]["digest"] = json!(new);
                manifest["subject"]["size"] = json!(size);
            }
        }
        change(&mut manifest);
        entry.1 = serde_json::to_vec(&manifest)?;
        let new = sha256_digest(&entry.1);
        entry.0 = format!("{BLOBS}{}", new.trim_start_matches("sha256:"));
        descriptor["digest"] = json!(new);
        descriptor["size"] = json!(entry.1.len());
        renamed.push((digest, new, entry.1.len()));
    }
    entries[index].1 = serde_json::to_vec(&listed)?;
    Ok(entries.into_iter().flat_map(|(name, content)| tar_entry(name.as_bytes(), b'0', &content, None, b"")).collect())
}

/// Names and contents of a tar of plain files.
fn tar_entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut rest = bytes;
    while rest.len() > 512 && rest[0] != 0 {
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&rest[range]).trim_end_matches(['\0', ' ']).to_owned()
        };
        let size = usize::from_str_radix(&text(124..136), 8).unwrap_or_default();
        entries.push((text(0..100), rest[512..512 + size].to_vec()));
        rest = &rest[512 + size.next_multiple_of(512)..];
    }
    entries
}
