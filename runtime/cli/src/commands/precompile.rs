//! `kilnbox precompile`: architectures are compiled once for all who run this program.

use crate::architectures::SearchPath;
use crate::errors::CliError;
use crate::log::{bytes, print, printable};
use crate::sandbox::{Package, Sandbox};

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names or paths of architectures; none takes all that lie beside the program.
    pub architectures: Vec<String>,
    /// With what they are compiled.
    pub sandbox: Sandbox,
}

/// Runs the command.
///
/// # Errors
///
/// There is no such architecture, or it cannot be compiled, or the folder beside the program cannot be written or would be trusted by nobody.
pub fn run(request: &Request) -> Result<(), CliError> {
    let package = Package::of_this_program()?;
    let beside = SearchPath::new(vec![package.architectures()]);
    let (search, names) = if request.architectures.is_empty() {
        let names = beside.names();
        (beside, names)
    } else {
        (SearchPath::from_environment(), request.architectures.clone())
    };
    if names.is_empty() {
        return Err(CliError::input(format!("there are no architectures in `{}`", package.architectures().display()))
            .hint("put them there, beside the folder that the program is in, or name those to compile"));
    }
    let engine = request.sandbox.engine()?;
    for name in names {
        let files = search.find(&name)?;
        let file = engine.compile_ahead(&files.bundle()?)?;
        // It was written a moment ago.
        let size = std::fs::metadata(&file).map(|metadata| metadata.len()).unwrap_or_default();
        print(&format!("Compiled `{}` into `{}`: {}", printable(&files.name), file.display(), bytes(size)));
    }
    Ok(())
}
