//! A model over a whole dataset: outputs, and their gradients into forces and stress.

use kilnbox_data::{BatchOptions, Dataset, TensorBlock, TensorMap};
use kilnbox_tensor::op::{elementwise, reduce};
use kilnbox_tensor::{DType, Misuse, Tensor, autodiff};

use crate::error::HostError;
use crate::serve::bindings::exports::kilnbox::architecture::model;
use crate::service::data::{Systems, TensorMap as Map};
use crate::service::model::ModelOutput;
use crate::session::{Model, Session};

/// What is asked for each system.
#[derive(Clone, Debug)]
pub struct EvaluationRequest {
    /// The output.
    pub output: ModelOutput,
    /// Whether its gradient with respect to positions is wanted: minus the forces, for an energy.
    pub position_gradients: bool,
    /// Whether its gradient with respect to strain is wanted: stress times volume, for an energy.
    pub strain_gradients: bool,
}

/// The answers for the systems of one batch.
#[derive(Clone, Debug)]
pub struct EvaluatedBatch {
    /// Which systems of the dataset.
    pub indices: Vec<u32>,
    /// In the order of the requests.
    pub outputs: Vec<EvaluatedOutput>,
}

/// One output of one batch, in double precision.
#[derive(Clone, Debug)]
pub struct EvaluatedOutput {
    /// Its name.
    pub name: String,
    /// Its values.
    pub values: TensorMap,
    /// The gradient of the sum of its values with respect to positions, three numbers for each atom.
    pub position_gradients: Option<Vec<f64>>,
    /// The gradient of the sum of its values with respect to strain, nine numbers for each system.
    pub strain_gradients: Option<Vec<f64>>,
}

impl Session {
    /// Evaluates `requests` for all systems of `dataset`, `batch_size` at a time, in order.
    ///
    /// # Errors
    /// The model cannot compute an output, or gives another shape than was asked for; data that cannot be had; as every call.
    pub fn evaluate(
        &mut self,
        model: &Model,
        dtype: DType,
        dataset: &Dataset,
        requests: &[EvaluationRequest],
        batch_size: usize,
        on_batch: &mut dyn FnMut(EvaluatedBatch),
    ) -> Result<(), HostError> {
        let lists = self.call(|architecture, store| {
            architecture.kilnbox_architecture_model().model().call_requested_neighbor_lists(store, model.0)
        })?;
        let inputs = self.call(|architecture, store| {
            architecture.kilnbox_architecture_model().model().call_requested_inputs(store, model.0)
        })?;
        let options = BatchOptions {
            neighbor_lists: lists.into_iter().map(Into::into).collect(),
            targets: Vec::new(),
            extra_data: inputs,
        };
        let indices: Vec<u32> = (0..dataset.len() as u32).collect();
        let parts: Vec<Vec<u32>> = indices.chunks(batch_size.max(1)).map(<[u32]>::to_vec).collect();
        let mut batches = dataset.batches(parts.clone(), options)?;
        for indices in parts {
            let Some(batch) = batches.next()? else { break };
            let device = self.store.data().device.clone();
            let systems = self.host(|_| Ok(Systems::new(batch.systems, batch.extra_data, &device, dtype)?))?;
            let outputs = self.evaluate_batch(model, systems, requests)?;
            on_batch(EvaluatedBatch { indices, outputs });
        }
        Ok(())
    }

    fn evaluate_batch(
        &mut self,
        model: &Model,
        systems: Systems,
        requests: &[EvaluationRequest],
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        let positions = requests.iter().any(|request| request.position_gradients);
        let strain = requests.iter().any(|request| request.strain_gradients);
        let samples = [systems.atom_counts().len(), systems.atom_counts().iter().map(|&count| count as usize).sum()];
        let tracked = self.host(|_| Ok(systems.track(positions, strain)?))?;
        let maps = self.forward(model, tracked.systems, requests)?;
        let outputs = maps.into_iter().zip(requests).map(|(map, request)| {
            let of = |leaf: &Option<Tensor>, wanted: bool| match leaf {
                Some(leaf) if wanted => gradient(&map, leaf).map(Some),
                _ => Ok(None),
            };
            Ok(EvaluatedOutput {
                name: request.output.name.clone(),
                position_gradients: of(&tracked.positions, request.position_gradients)?,
                strain_gradients: of(&tracked.strain, request.strain_gradients)?,
                values: read_map(&map)?,
            })
        });
        let outputs: Result<Vec<_>, Misuse> = outputs.collect();
        let outputs = self.host(|_| Ok(outputs?))?;
        for (output, request) in outputs.iter().zip(requests) {
            check_samples(output, request, samples)?;
        }
        Ok(outputs)
    }

    fn forward(
        &mut self,
        model: &Model,
        systems: Systems,
        requests: &[EvaluationRequest],
    ) -> Result<Vec<Map>, HostError> {
        let outputs: Vec<model::ModelOutput> = requests.iter().map(|request| (&request.output).into()).collect();
        let handle = self.host(|state| state.hand_out(systems))?;
        let borrowed = wasmtime::component::Resource::new_borrow(handle.rep());
        let maps = self.ask(|architecture, store| {
            architecture.kilnbox_architecture_model().model().call_forward(store, model.0, borrowed, &outputs, None)
        })?;
        if maps.len() != requests.len() {
            return Err(broken(format!("`forward` gave {} outputs, {} were asked for", maps.len(), requests.len())));
        }
        self.host(|state| {
            state.table.delete(handle)?;
            maps.into_iter().map(|map| state.receive_map(map)).collect()
        })
    }
}

/// The gradient of the sum of all values.
fn gradient(map: &Map, leaf: &Tensor) -> Result<Vec<f64>, Misuse> {
    let mut total: Option<Tensor> = None;
    for block in &map.blocks {
        let sum = reduce::sum(&block.values, &[], false)?;
        total = Some(match total {
            None => sum,
            Some(total) => elementwise::add(&total, &sum)?,
        });
    }
    match total {
        None => Ok(vec![0.0; leaf.count()]),
        Some(total) => autodiff::grad(&[&total], &[leaf], &[], false)?[0].read_float64(),
    }
}

fn read_map(map: &Map) -> Result<TensorMap, Misuse> {
    let blocks = map
        .blocks
        .iter()
        .map(|block| {
            Ok(TensorBlock {
                shape: block.values.shape().to_vec(),
                values: block.values.read_float64()?,
                samples: block.samples.clone(),
                components: block.components.clone(),
                properties: block.properties.clone(),
                gradients: Vec::new(),
            })
        })
        .collect::<Result<_, Misuse>>()?;
    Ok(TensorMap { keys: map.keys.clone(), blocks })
}

/// What the rest of the program indexes by must have the size it trusts.
fn check_samples(
    output: &EvaluatedOutput,
    request: &EvaluationRequest,
    [systems, atoms]: [usize; 2],
) -> Result<(), HostError> {
    let expected = match request.output.sample_kind {
        kilnbox_data::SampleKind::System => systems,
        kilnbox_data::SampleKind::Atom => atoms,
    };
    for block in &output.values.blocks {
        let rows = block.shape.first().copied().unwrap_or(0);
        if rows != expected || block.shape.len() < 2 {
            return Err(broken(format!(
                "`forward` gave `{}` the shape {:?}, expected {expected} rows (one per {}) and an axis of properties",
                output.name, block.shape, request.output.sample_kind
            )));
        }
    }
    Ok(())
}

fn broken(message: String) -> HostError {
    HostError::Trapped { message, backtrace: String::new() }
}
