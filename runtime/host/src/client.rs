//! A program that uses trained models through wasi-nn: a client. It is as unknown as an architecture, and has as little.

use std::fmt;

use wasmtime::component::{ComponentExportIndex, InstancePre, TypedFunc};

use crate::error::HostError;
use crate::instance::Instance;
use crate::serve::State;
use crate::serve::inert_wasi::Exited;
use crate::service::graph::Graph;
use crate::service::report::Observer;
use crate::session::SessionOptions;

/// What a client exports, as WASI has it for programs.
pub(crate) const ENTRY: &str = "wasi:cli/run@0.2.";

/// A client, compiled.
#[derive(Clone)]
pub struct ClientComponent {
    pub(crate) pre: InstancePre<State>,
    pub(crate) engine: wasmtime::Engine,
    /// The function that is the program.
    pub(crate) run: ComponentExportIndex,
}

impl fmt::Debug for ClientComponent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientComponent").finish_non_exhaustive()
    }
}

/// How a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientEnd {
    /// It did what it was for.
    Success,
    /// It says that it failed, without words.
    Failure,
    /// It left, with this exit code.
    Exit(u8),
}

/// The answer of a program: it succeeded or not.
type Answer = (Result<(), ()>,);

impl ClientComponent {
    /// Runs the client to its end. It finds `graphs` by their names, is given `arguments`, its own name first, and what it writes goes to `observer`: lines of its
    /// standard output as information, those of its standard error as warnings.
    ///
    /// # Errors
    /// It traps, or exceeds a limit. Limits count for the client alone; each model has its own.
    pub fn run(
        &self,
        graphs: Vec<Graph>,
        arguments: Vec<String>,
        options: SessionOptions,
        observer: Box<dyn Observer>,
    ) -> Result<ClientEnd, HostError> {
        let mut instance: Instance<TypedFunc<(), Answer>> =
            Instance::start(&self.engine, options, observer, |store| {
                store.data_mut().equip_client(graphs, arguments);
                self.pre.instantiate(&mut *store)?.get_typed_func(&mut *store, self.run)
            })?;
        // It is the run itself, so only a limit on runs ends it.
        instance.within(f64::INFINITY, |run, store| match run.call(&mut *store, ()) {
            Ok((Ok(()),)) => Ok(ClientEnd::Success),
            Ok((Err(()),)) => Ok(ClientEnd::Failure),
            Err(error) => match error.downcast_ref::<Exited>() {
                Some(Exited(code)) => Ok(ClientEnd::Exit(*code)),
                None => Err(error),
            },
        })
    }
}
