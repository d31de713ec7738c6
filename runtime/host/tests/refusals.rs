//! What is refused at the door, before anything of it runs, and with which words.

use kilnbox_host::{Engine, EngineOptions, HostError, Limits};

/// The error of loading these bytes.
fn refusal(bytes: &[u8]) -> String {
    let engine = Engine::new(&EngineOptions::default()).unwrap_or_else(|error| panic!("no engine: {error}"));
    match engine.load(bytes) {
        Err(HostError::Refused { problem }) => problem,
        Err(other) => panic!("expected a refusal, found {other}"),
        Ok(component) => panic!("{component:?} was accepted"),
    }
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn what_is_no_component_is_refused() {
    let truncated = component("(component)");
    let cases: [(&[u8], &str); 5] = [
        (b"", "it is not a WebAssembly component"),
        (b"#!/bin/sh\nrm -rf /\n", "it is not a WebAssembly component"),
        (&component("(module)"), "a plain module"),
        (&truncated[..6], "it is not a WebAssembly component"),
        (&[&truncated[..], &[0xff; 64]].concat(), "it cannot be read"),
    ];
    for (bytes, expected) in cases {
        let problem = refusal(bytes);
        assert!(problem.contains(expected), "`{problem}` does not say `{expected}`");
    }
}

#[test]
fn imports_beyond_the_contract_are_refused_by_name() {
    let cases = [
        (r#"(import "wasi:filesystem/types@0.2.0" (instance))"#, "`wasi:filesystem/types@0.2.0`"),
        (r#"(import "wasi:sockets/tcp@0.2.0" (instance))"#, "`wasi:sockets/tcp@0.2.0`"),
        (r#"(import "environment" (func))"#, "`environment`"),
        (r#"(import "kilnbox:architecturex/tensor@0.1.0" (instance))"#, "`kilnbox:architecturex/tensor@0.1.0`"),
    ];
    for (import, name) in cases {
        let problem = refusal(&component(&format!("(component {import})")));
        assert!(problem.contains(name) && problem.contains("nothing else"), "{problem}");
    }
}

#[test]
fn all_foreign_imports_are_named_up_to_a_hundred() {
    let problem = |count: usize| {
        let imports: String = (0..count).map(|k| format!(r#"(import "evil{k}" (func))"#)).collect();
        refusal(&component(&format!("(component {imports})")))
    };
    let all = problem(100);
    assert!((0..100).all(|k| all.contains(&format!("`evil{k}`"))) && !all.contains("more"), "{all}");
    let most = problem(101);
    assert!(most.contains("`evil99` and 1 more,") && !most.contains("evil100"), "{most}");
}

#[test]
fn imports_are_refused_before_anything_is_compiled() {
    // The module cannot be compiled, and nobody tries.
    let text = r#"(component (import "evil" (func)) (core module (func (result i32))))"#;
    assert!(refusal(&component(text)).contains("`evil`"));
    assert!(refusal(&component(&text.replace(r#"(import "evil" (func))"#, ""))).contains("cannot be compiled"));
}

#[test]
fn a_component_may_have_so_many_bytes_and_not_one_more() {
    let bytes = component("(component)");
    let load = |component_bytes| {
        let limits = Limits { component_bytes, ..Limits::default() };
        let engine = Engine::new(&EngineOptions { limits, ..EngineOptions::default() });
        engine.unwrap_or_else(|error| panic!("no engine: {error}")).load(&bytes)
    };
    assert!(matches!(load(bytes.len() as u64), Err(HostError::Refused { .. })), "it is no architecture, but read");
    assert!(matches!(load(bytes.len() as u64 - 1), Err(HostError::Limit { limit: "component_bytes", .. })));
}

#[test]
fn control_characters_of_names_do_not_reach_the_terminal() {
    let problem =
        refusal(&component("(component (import \"plain\" (func)) (core module (import \"a\\1b[2J\" \"b\" (func))))"));
    assert!(!problem.contains('\u{1b}'), "{problem}");
}

#[test]
fn interfaces_that_the_contract_does_not_have_are_refused() {
    let problem = refusal(&component(
        r#"(component (import "kilnbox:architecture/backdoor@0.1.0" (instance (export "open" (func)))))"#,
    ));
    assert!(problem.contains("contract") && problem.contains("backdoor"), "{problem}");
}

#[test]
fn another_version_of_the_contract_is_named() {
    for (version, expected) in [
        ("0.2.0", Some("version 0.2.0 of the contract, and this program serves 0.1.0")),
        ("1.0.0", Some("version 1.0.0")),
        ("0.1.1-rc.1", Some("version 0.1.1-rc.1")),
        ("0.10.0", Some("version 0.10.0")),
        ("0.1.7", None),
    ] {
        let text = format!(r#"(component (import "kilnbox:architecture/report@{version}" (instance)))"#);
        let problem = refusal(&component(&text));
        match expected {
            Some(expected) => assert!(problem.contains(expected), "{version}: {problem}"),
            // It is of our track, and lacks what every architecture exports.
            None => assert!(problem.contains("does not keep to the contract"), "{version}: {problem}"),
        }
    }
}

#[test]
fn a_component_that_is_no_architecture_is_refused() {
    let problem = refusal(&component("(component)"));
    assert!(problem.contains("contract"), "{problem}");
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let options = EngineOptions { compiled_code_cache: Some(folder.path().join("cache")), ..EngineOptions::default() };
    let engine = Engine::new(&options).unwrap_or_else(|error| panic!("{error}"));
    let bytes = component("(component)");
    for _ in 0..2 {
        // It compiles, and is refused only afterwards: it exports nothing.
        assert!(matches!(engine.load(&bytes), Err(HostError::Refused { .. })));
        let mut kept = 0;
        for entry in std::fs::read_dir(folder.path().join("cache")).into_iter().flatten().flatten() {
            kept += 1;
            assert!(std::fs::write(entry.path(), b"not compiled code").is_ok());
        }
        assert_eq!(kept, 1, "one component leaves one file");
    }
}
