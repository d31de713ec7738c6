//! wasi-nn for clients: trained models as named graphs.
//!
//! The interfaces are those of `wasi:nn`; there is a crate of the engine's makers that serves them as well. It keeps the tensors of a client without counting their bytes, so that a
//! client could fill the memory of the machine, and it says `runtime-error` for whatever is wrong; here both are as everywhere else.

use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource};

use self::bindings::wasi::nn::errors::ErrorCode;
use self::bindings::wasi::nn::graph::{ExecutionTarget, GraphEncoding};
use self::bindings::wasi::nn::tensor::TensorType;
use self::bindings::wasi::nn::{errors, graph, inference, tensor};
use super::{Other, State, limit};
use crate::service::graph::{DESCRIPTION, ElementType, Failure, FailureCode, Graph, GraphTensor, shown};

/// The interfaces that a client may import, with the version that clients are built for: a preliminary one fits itself only.
pub(crate) const INTERFACES: [&str; 4] = [
    "wasi:nn/errors@0.2.0-rc-2024-10-28",
    "wasi:nn/graph@0.2.0-rc-2024-10-28",
    "wasi:nn/inference@0.2.0-rc-2024-10-28",
    "wasi:nn/tensor@0.2.0-rc-2024-10-28",
];
/// What a tensor or an error takes beside what it holds: a place in the table of handles, and the allocations around it.
const BOOKKEEPING: u64 = 256;

/// wasi-nn as Rust types, made from `wit/client/`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/client",
        world: "wasi:nn/ml@0.2.0-rc-2024-10-28",
        imports: { default: trappable },
        with: {
            "wasi:nn/tensor.tensor": crate::service::graph::GraphTensor,
            "wasi:nn/graph.graph": super::GraphName,
            "wasi:nn/inference.graph-execution-context": super::GraphName,
            "wasi:nn/errors.error": crate::service::graph::Failure,
        },
    });
}

/// A graph, or its description, by its place among the named ones.
#[derive(Clone, Copy)]
pub struct GraphName {
    place: usize,
    is_description: bool,
}

/// What one client has of wasi-nn.
#[derive(Default)]
pub(crate) struct NeuralNetworks {
    graphs: Vec<Graph>,
    /// The bytes of all tensors and errors that the client holds.
    bytes: u64,
}

impl NeuralNetworks {
    /// These graphs, and nothing held yet.
    pub(crate) fn new(graphs: Vec<Graph>) -> Self {
        Self { graphs, bytes: 0 }
    }

    fn find(&self, name: &str) -> std::result::Result<GraphName, Failure> {
        let (of, is_description) = match name.strip_suffix(DESCRIPTION) {
            Some(of) => (of, true),
            None => (name, false),
        };
        match self.graphs.iter().position(|graph| graph.name() == of) {
            Some(place) => Ok(GraphName { place, is_description }),
            None => {
                let names: Vec<String> = self.graphs.iter().map(|graph| format!("`{}`", graph.name())).collect();
                let known = if names.is_empty() {
                    "there are none".to_owned()
                } else {
                    format!("there are {}", names.join(", "))
                };
                Err(Failure::new(FailureCode::NotFound, format!("there is no model `{}`: {known}", shown(name))))
            }
        }
    }

    fn compute(
        &mut self,
        name: GraphName,
        inputs: Vec<(String, GraphTensor)>,
    ) -> std::result::Result<Vec<(String, GraphTensor)>, Failure> {
        match (self.graphs.get_mut(name.place), name.is_description) {
            (Some(graph), false) => graph.compute(inputs),
            (Some(graph), true) => graph.describe(&inputs),
            (None, _) => Err(Failure::new(FailureCode::NotFound, "this model is gone")),
        }
    }
}

/// What the client holds, and with it what it takes.
trait Held: Other {
    fn bytes(&self) -> u64;
}

impl Other for GraphName {}

impl Other for GraphTensor {}

impl Other for Failure {}

impl Held for GraphTensor {
    fn bytes(&self) -> u64 {
        BOOKKEEPING + (self.data.len() + 4 * self.dimensions.len()) as u64
    }
}

impl Held for Failure {
    fn bytes(&self) -> u64 {
        BOOKKEEPING + self.message.len() as u64
    }
}

impl State {
    /// A handle for something of the client's, whose bytes count until it is given back.
    fn hold<T: Held>(&mut self, value: T) -> Result<Resource<T>> {
        let (bytes, most) = (self.neural_networks.bytes.saturating_add(value.bytes()), self.limits.tensor_bytes);
        if bytes > most {
            return Err(limit("tensor_bytes", format!("its tensors would have {bytes} bytes, at most {most}")));
        }
        let handle = self.hand_out(value)?;
        self.neural_networks.bytes = bytes;
        Ok(handle)
    }

    fn give_back<T: Held>(&mut self, handle: Resource<T>) -> Result<T> {
        let value = self.handles.take(handle)?;
        self.neural_networks.bytes = self.neural_networks.bytes.saturating_sub(value.bytes());
        Ok(value)
    }

    fn failed<T>(&mut self, failure: Failure) -> Result<std::result::Result<T, Resource<Failure>>> {
        Ok(Err(self.hold(failure)?))
    }
}

impl tensor::Host for State {}

impl tensor::HostTensor for State {
    fn new(&mut self, dimensions: Vec<u32>, ty: TensorType, data: Vec<u8>) -> Result<Resource<GraphTensor>> {
        self.hold(GraphTensor { dimensions, element_type: ty.into(), data })
    }

    fn dimensions(&mut self, handle: Resource<GraphTensor>) -> Result<Vec<u32>> {
        let dimensions = &self.handles.get(&handle)?.dimensions;
        self.check_copy(4 * dimensions.len())?;
        Ok(dimensions.clone())
    }

    fn ty(&mut self, handle: Resource<GraphTensor>) -> Result<TensorType> {
        Ok(self.handles.get(&handle)?.element_type.into())
    }

    fn data(&mut self, handle: Resource<GraphTensor>) -> Result<Vec<u8>> {
        let data = &self.handles.get(&handle)?.data;
        self.check_copy(data.len())?;
        Ok(data.clone())
    }

    fn drop(&mut self, handle: Resource<GraphTensor>) -> Result<()> {
        self.give_back(handle).map(|_| ())
    }
}

impl graph::Host for State {
    fn load(
        &mut self,
        _: Vec<Vec<u8>>,
        encoding: GraphEncoding,
        _: ExecutionTarget,
    ) -> Result<std::result::Result<Resource<GraphName>, Resource<Failure>>> {
        let message = format!(
            "no graph is loaded from bytes ({encoding:?}): models are those that the user named, and `load-by-name` finds them"
        );
        self.failed(Failure::new(FailureCode::UnsupportedOperation, message))
    }

    fn load_by_name(&mut self, name: String) -> Result<std::result::Result<Resource<GraphName>, Resource<Failure>>> {
        match self.neural_networks.find(&name) {
            Ok(graph) => Ok(Ok(self.hand_out(graph)?)),
            Err(failure) => self.failed(failure),
        }
    }
}

impl graph::HostGraph for State {
    fn init_execution_context(
        &mut self,
        handle: Resource<GraphName>,
    ) -> Result<std::result::Result<Resource<GraphName>, Resource<Failure>>> {
        let graph = *self.handles.get(&handle)?;
        Ok(Ok(self.hand_out(graph)?))
    }

    fn drop(&mut self, handle: Resource<GraphName>) -> Result<()> {
        self.handles.take(handle)?;
        Ok(())
    }
}

impl inference::Host for State {}

impl inference::HostGraphExecutionContext for State {
    fn compute(
        &mut self,
        handle: Resource<GraphName>,
        inputs: Vec<(String, Resource<GraphTensor>)>,
    ) -> Result<std::result::Result<Vec<(String, Resource<GraphTensor>)>, Resource<Failure>>> {
        let graph = *self.handles.get(&handle)?;
        let inputs = inputs.into_iter().map(|(name, handle)| Ok((name, self.give_back(handle)?)));
        let inputs: Vec<(String, GraphTensor)> = inputs.collect::<Result<_>>()?;
        match self.neural_networks.compute(graph, inputs) {
            Ok(outputs) => {
                let handles = outputs.into_iter().map(|(name, tensor)| Ok((name, self.hold(tensor)?)));
                Ok(Ok(handles.collect::<Result<_>>()?))
            }
            Err(failure) => self.failed(failure),
        }
    }

    fn drop(&mut self, handle: Resource<GraphName>) -> Result<()> {
        self.handles.take(handle)?;
        Ok(())
    }
}

impl errors::Host for State {}

impl errors::HostError for State {
    fn code(&mut self, handle: Resource<Failure>) -> Result<ErrorCode> {
        Ok(self.handles.get(&handle)?.code.into())
    }

    fn data(&mut self, handle: Resource<Failure>) -> Result<String> {
        Ok(self.handles.get(&handle)?.message.clone())
    }

    fn drop(&mut self, handle: Resource<Failure>) -> Result<()> {
        self.give_back(handle).map(|_| ())
    }
}

impl From<TensorType> for ElementType {
    fn from(kind: TensorType) -> Self {
        match kind {
            TensorType::Fp16 => Self::Float16,
            TensorType::Fp32 => Self::Float32,
            TensorType::Fp64 => Self::Float64,
            TensorType::Bf16 => Self::BFloat16,
            TensorType::U8 => Self::UInt8,
            TensorType::I32 => Self::Int32,
            TensorType::I64 => Self::Int64,
        }
    }
}

impl From<ElementType> for TensorType {
    fn from(kind: ElementType) -> Self {
        match kind {
            ElementType::Float16 => Self::Fp16,
            ElementType::Float32 => Self::Fp32,
            ElementType::Float64 => Self::Fp64,
            ElementType::BFloat16 => Self::Bf16,
            ElementType::UInt8 => Self::U8,
            ElementType::Int32 => Self::I32,
            ElementType::Int64 => Self::I64,
        }
    }
}

impl From<FailureCode> for ErrorCode {
    fn from(code: FailureCode) -> Self {
        match code {
            FailureCode::InvalidArgument => Self::InvalidArgument,
            FailureCode::Timeout => Self::Timeout,
            FailureCode::RuntimeError => Self::RuntimeError,
            FailureCode::UnsupportedOperation => Self::UnsupportedOperation,
            FailureCode::TooLarge => Self::TooLarge,
            FailureCode::NotFound => Self::NotFound,
        }
    }
}

/// Everything of wasi-nn.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> Result<()> {
    bindings::Ml::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}
