//! What a component wants, read from its bytes before anything is made of them.

use wasmparser::{Parser, Payload};

/// The names that a component imports, in the order of the file. Nested components and modules are skipped: what they import, the component gives them.
///
/// # Errors
/// The parser's sentence, where the file is damaged.
pub(crate) fn imported_names(component: &[u8]) -> Result<Vec<&str>, String> {
    let mut names = Vec::new();
    let mut parser = Parser::new(0);
    let mut rest = component;
    loop {
        let (consumed, payload) = match parser.parse(rest, true).map_err(|error| error.to_string())? {
            wasmparser::Chunk::Parsed { consumed, payload } => (consumed, payload),
            wasmparser::Chunk::NeedMoreData(_) => return Err("it ends in the middle".to_owned()),
        };
        rest = rest.get(consumed..).unwrap_or_default();
        match payload {
            Payload::ComponentImportSection(section) => {
                for import in section {
                    names.push(import.map_err(|error| error.to_string())?.name.name);
                }
            }
            Payload::ModuleSection { unchecked_range: range, .. }
            | Payload::ComponentSection { unchecked_range: range, .. } => {
                rest = rest.get(range.len()..).ok_or("a part of it reaches beyond its end")?;
            }
            Payload::End(_) => return Ok(names),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(text: &str) -> Vec<u8> {
        wat::parse_str(text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn only_the_components_own_imports_count() {
        let bytes = component(
            r#"(component
                (component (import "inner" (func)))
                (core module (import "core" "inner" (func)))
                (import "a:b/c@1.0.0" (instance))
                (core module)
                (import "plain" (func)))"#,
        );
        assert_eq!(imported_names(&bytes), Ok(vec!["a:b/c@1.0.0", "plain"]));
    }

    #[test]
    fn damaged_components_are_errors() {
        let bytes = component(r#"(component (core module (func)) (import "plain" (func)))"#);
        for length in 8..bytes.len() {
            // A file may end after any of its sections, and is whole then.
            let names = imported_names(&bytes[..length]);
            assert!(names.as_ref().map_or(true, Vec::is_empty), "{length}: {names:?}");
        }
        let mut long = bytes.clone();
        // The length of the module's section, after the header of eight bytes and the section's number.
        long[9] = 0x7f;
        assert!(imported_names(&long).is_err());
    }
}
