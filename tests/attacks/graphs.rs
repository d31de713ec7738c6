//! wasi-nn, which is not offered yet: attacks 51 to 53. A component that asks for it is refused by name, so nothing of what follows can happen.

use crate::guest::{describe, small};
use crate::table::Fallible;
use crate::table::Outcome::Refused;

/// A component that asks for one interface of wasi-nn.
fn asking_for(interface: &str) -> Fallible<Vec<u8>> {
    Ok(wat::parse_str(format!(r#"(component (import "wasi:nn/{interface}@0.2.0-rc-2024-10-28" (instance)))"#))?)
}

attacks! {
    "51" inference_is_not_offered:
    "wasi-nn: inputs that are missing, doubled, unknown or of the wrong size" => Refused, says ["`wasi:nn/inference@0.2.0-rc-2024-10-28`"], {
        describe(&asking_for("inference")?, small())?
    }

    "52" graphs_are_not_offered:
    "wasi-nn: loading a graph from bytes, or by a name that is a path" => Refused, says ["`wasi:nn/graph@0.2.0-rc-2024-10-28`"], {
        describe(&asking_for("graph")?, small())?
    }

    "53" tensors_and_errors_of_graphs_are_not_offered:
    "wasi-nn: contexts, tensors and errors that are never given back" => Refused, says ["wasi:nn/"], {
        vec![describe(&asking_for("tensor")?, small())?, describe(&asking_for("errors")?, small())?]
    }
}
