//! Binds the contract to wasmtime: handles become values, misuse becomes a trap.
//!
//! Nothing is decided here. Each function looks up its handles, calls the operation or the service, and hands out a handle for the result.

mod checkpoint;
pub(crate) mod convert;
mod data;
mod handles;
pub(crate) mod inert_wasi;
pub(crate) mod neural_network;
mod operations;
mod report;
mod tensor;

use std::panic::{AssertUnwindSafe, catch_unwind};

use kilnbox_tensor::context::{DeviceFailed, Stopped};
use kilnbox_tensor::random::Random;
use kilnbox_tensor::{Device, Misuse, Tensor};
use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime::{ResourceLimiter, Result};

use self::handles::{Handled, Handles, Other};
use self::inert_wasi::InertWasi;
use self::neural_network::NeuralNetworks;
use crate::error::{DeviceLost, HostPanic, LimitReached, TimeIsUp, panic_message, printable};
use crate::limits::Limits;
use crate::service::graph::Graph;
use crate::service::report::Reporter;

/// The contract as Rust types, made from `wit/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "architecture",
        imports: { default: trappable },
        with: {
            "kilnbox:architecture/tensor.tensor": kilnbox_tensor::Tensor,
            "kilnbox:architecture/data.systems": crate::service::data::Systems,
            "kilnbox:architecture/data.batch": crate::service::data::Batch,
            "kilnbox:architecture/data.batches": crate::service::data::Batches,
            "kilnbox:architecture/data.dataset": crate::service::data::Dataset,
            "kilnbox:architecture/checkpoint.checkpoint-folder": crate::serve::CheckpointFolder,
        },
    });
}

/// The permission to keep checkpoints; there is nothing to it but having it.
pub struct CheckpointFolder;

impl Other for CheckpointFolder {}

/// What one instance, of an architecture or of a client, may touch.
pub(crate) struct State {
    pub(crate) handles: Handles,
    pub(crate) device: Device,
    pub(crate) random: Random,
    pub(crate) reporter: Reporter,
    inert_wasi: InertWasi,
    neural_networks: NeuralNetworks,
    limits: Limits,
    /// What all memories of the guest have, and all its tables.
    memory_bytes: u64,
    table_entries: u64,
}

impl State {
    pub(crate) fn new(device: Device, seed: u64, reporter: Reporter, limits: Limits) -> Self {
        Self {
            handles: Handles::new(usize::try_from(limits.handles).unwrap_or(usize::MAX)),
            device,
            random: Random::new(seed),
            reporter,
            inert_wasi: InertWasi::new(seed),
            neural_networks: NeuralNetworks::default(),
            limits,
            memory_bytes: 0,
            table_entries: 0,
        }
    }

    /// Gives a client its models and the words that it was started with. What it writes is its result, so it is bounded as files are.
    pub(crate) fn equip_client(&mut self, graphs: Vec<Graph>, arguments: Vec<String>) {
        self.neural_networks = NeuralNetworks::new(graphs);
        self.inert_wasi.equip_client(arguments, self.limits.disk_bytes);
    }

    /// Logs what the guest wrote without ending the line.
    pub(crate) fn end_lines(&mut self) {
        self.inert_wasi.end_lines(&mut self.reporter);
    }

    /// The value behind a handle.
    pub(crate) fn tensor(&self, handle: &Resource<Tensor>) -> Result<&Tensor> {
        Ok(self.handles.get(handle)?)
    }

    /// The values behind handles.
    pub(crate) fn tensors(&self, handles: &[Resource<Tensor>]) -> Result<Vec<&Tensor>> {
        handles.iter().map(|handle| self.tensor(handle)).collect()
    }

    /// A handle for a value.
    pub(crate) fn hand_out<T: Handled>(&mut self, value: T) -> Result<Resource<T>> {
        let most = self.limits.handles;
        self.handles.push(value).map_err(|_| limit("handles", format!("it would hold more than {most} handles")))
    }

    /// Checks that `bytes` may be copied to the guest, before they are gathered: what it may send, the engine checks by itself.
    pub(crate) fn check_copy(&self, bytes: usize) -> Result<()> {
        let most = self.limits.call_bytes;
        if bytes as u64 <= most {
            return Ok(());
        }
        Err(limit("call_bytes", format!("{bytes} bytes would be copied in one call, at most {most}")))
    }

    /// Runs an operation and hands out its result.
    pub(crate) fn operate(
        &mut self,
        operation: impl FnOnce(&Self) -> Result<Result<Tensor, Misuse>>,
    ) -> Result<Resource<Tensor>> {
        let tensor = guarded(|| operation(self))??;
        self.hand_out(tensor)
    }
}

/// The trap of a guest that would exceed a limit.
pub(crate) fn limit(limit: &'static str, message: String) -> wasmtime::Error {
    LimitReached { limit, message }.into()
}

/// Calls into the engine. A panic there is a mistake of ours, but it must end this run only, not the program.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if panic.is::<Stopped>() {
            return Err(TimeIsUp.into());
        }
        if let Some(DeviceFailed { device, message }) = panic.downcast_ref() {
            return Err(DeviceLost { device, message: printable(message) }.into());
        }
        Err(HostPanic(panic_message(&*panic)).into())
    })
}

/// Sizes and axes as the engine counts them.
pub(crate) fn sizes(values: &[u32]) -> Vec<usize> {
    values.iter().map(|&value| value as usize).collect()
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let (total, most) = (grown(self.memory_bytes, current, desired), self.limits.guest_memory_bytes);
        if total > most {
            return Err(limit(
                "guest_memory_bytes",
                format!("its own memory would grow to {total} bytes, at most {most}"),
            ));
        }
        self.memory_bytes = total;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let (total, most) = (grown(self.table_entries, current, desired), self.limits.table_entries);
        if total > most {
            let message = format!("its function tables would grow to {total} entries, at most {most}");
            return Err(limit("table_entries", message));
        }
        self.table_entries = total;
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.most_instances()
    }

    fn tables(&self) -> usize {
        self.most_instances()
    }

    fn memories(&self) -> usize {
        self.most_instances()
    }
}

/// A total of which one part grows.
fn grown(total: u64, current: usize, desired: usize) -> u64 {
    total.saturating_sub(current as u64).saturating_add(desired as u64)
}

impl State {
    fn most_instances(&self) -> usize {
        usize::try_from(self.limits.instances).unwrap_or(usize::MAX)
    }
}

/// Everything that an architecture may import.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    bindings::Architecture::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}
