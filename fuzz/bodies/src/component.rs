//! Loading a component from bytes: it is an architecture, or there is a sentence about why it is none.

use kilnbox_host::{Engine, EngineOptions, HostError};
use sha2::{Digest, Sha256};

use crate::text::check_message;

/// The magic number and layer of a component, and those of a plain module inside of one.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MODULE: &[u8] = b"\0asm\x01\0\0\0";
/// The kind of a section that holds a module.
const MODULE_SECTION: u8 = 1;

/// Loads what `bytes` describe: a component as it is; after `(`, its text; else its sections one by one, whose headers and lengths are made right, so that what is
/// wrong with them lies deeper.
///
/// # Panics
/// Loading panics, blames the program, or says what nobody should read.
pub fn component(bytes: &[u8]) {
    let component = match bytes {
        [0, b'a', b's', b'm', ..] => bytes.to_vec(),
        [b'(', ..] => match std::str::from_utf8(bytes).ok().and_then(|text| wat::parse_str(text).ok()) {
            Some(component) => component,
            None => return,
        },
        _ => sections(bytes),
    };
    let engine = Engine::new(&EngineOptions::default()).unwrap_or_else(|error| panic!("there is no engine: {error}"));
    match engine.load(&component) {
        Ok(loaded) => {
            let digest: String = Sha256::digest(&component).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(loaded.digest(), format!("sha256:{digest}"));
        }
        Err(error @ HostError::Refused { .. }) => check_message(&error.to_string()),
        // Nothing this small reaches a limit on components.
        Err(error) => panic!("bytes are refused as {error:?}"),
    }
}

/// A component of sections. Each is a kind, a length and that many bytes; a kind of 32 or more is a section of a module, and neighbours of these are put in one.
fn sections(bytes: &[u8]) -> Vec<u8> {
    let mut component = COMPONENT.to_vec();
    let mut module = Vec::new();
    let mut rest = bytes;
    while let [kind, length, following @ ..] = rest {
        let (content, after) = following.split_at(usize::from(*length).min(following.len()));
        rest = after;
        if *kind >= 32 {
            section(&mut module, kind % 14, content);
            continue;
        }
        close(&mut component, &mut module);
        section(&mut component, *kind % 13, content);
    }
    close(&mut component, &mut module);
    component
}

fn close(component: &mut Vec<u8>, module: &mut Vec<u8>) {
    if !module.is_empty() {
        section(component, MODULE_SECTION, &[MODULE, module].concat());
        module.clear();
    }
}

fn section(target: &mut Vec<u8>, kind: u8, content: &[u8]) {
    target.push(kind);
    // LEB128: seven bits at a time, the lowest first.
    let mut length = content.len();
    while length >= 0x80 {
        target.push(length as u8 | 0x80);
        length >>= 7;
    }
    target.push(length as u8);
    target.extend_from_slice(content);
}
