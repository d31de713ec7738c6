//! A model that is ready to predict: for simulations, which ask again and again.

use std::fmt;

use kilnbox_data::{DataError, NeighborListOptions, PartOptions, Parts, StructureView, SystemsData};
use kilnbox_tensor::DType;

use crate::error::HostError;
use crate::evaluate::{Cut, EvaluatedOutput, EvaluationRequest};
use crate::service::data::Systems;
use crate::service::model::Capabilities;
use crate::session::{Model, Session};

/// A model with its session. What the model needs is asked for once.
pub struct Predictor {
    session: Session,
    model: Model,
    dtype: DType,
    capabilities: Capabilities,
    neighbor_lists: Vec<NeighborListOptions>,
}

impl fmt::Debug for Predictor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Predictor").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}

impl Predictor {
    /// A predictor that computes in the dtype of the model's weights.
    ///
    /// # Errors
    /// As every call of a session.
    pub fn new(mut session: Session, model: Model) -> Result<Self, HostError> {
        let capabilities = session.export_model(&model)?;
        let neighbor_lists = session.requested_neighbor_lists(&model)?;
        Ok(Self { session, model, dtype: capabilities.dtype, capabilities, neighbor_lists })
    }

    /// What the model can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The neighbour lists that the model uses.
    pub fn neighbor_lists(&self) -> &[NeighborListOptions] {
        &self.neighbor_lists
    }

    /// The answers to `requests`, in their order. Neighbour lists that `systems` lack are made. A large structure that is alone and has no lists is evaluated in parts, if the model
    /// lets it.
    ///
    /// # Errors
    /// A neighbour list cannot be made; the model cannot compute an output, or gives another shape than was asked for; as every call of a session.
    pub fn predict(
        &mut self,
        mut systems: SystemsData,
        requests: &[EvaluationRequest],
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        if systems.neighbor_lists.is_empty() {
            let cut = Cut::of(&self.capabilities, &self.neighbor_lists, requests);
            let parts = cut.zip(alone(&systems)).and_then(|(cut, structure)| cut.parts_of(structure));
            if let Some(parts) = parts {
                return self.session.evaluate_in_parts(&self.model, self.dtype, parts, requests);
            }
        }
        for options in &self.neighbor_lists {
            let pairs = systems.neighbors(options)?;
            systems.set_neighbors(*options, pairs);
        }
        let dtype = self.dtype;
        let systems = self.session.host(|state| {
            let device = state.device.clone();
            Ok(Systems::new(systems, Vec::new(), &device, dtype)?)
        })?;
        self.session.evaluate_batch(&self.model, systems, requests)
    }

    /// The answers to `requests` for one system, in blocks of about so many atoms: those of the whole but for rounding.
    ///
    /// # Errors
    /// There are several systems, or the model sets no bound on how far atoms matter; as [`predict`](Self::predict).
    pub fn predict_in_blocks(
        &mut self,
        system: &SystemsData,
        requests: &[EvaluationRequest],
        atoms_of_block: usize,
    ) -> Result<Vec<EvaluatedOutput>, HostError> {
        let structure = alone(system)
            .ok_or_else(|| DataError::new(format!("{} systems cannot be cut, only one", system.atom_counts.len())))?;
        let options = PartOptions {
            interaction_range: self.capabilities.interaction_range,
            neighbor_lists: self.neighbor_lists.clone(),
            atoms_of_block,
        };
        let parts = Parts::new(structure, options)?;
        self.session.evaluate_in_parts(&self.model, self.dtype, parts, requests)
    }
}

/// The structure, if there is one alone.
fn alone(systems: &SystemsData) -> Option<StructureView<'_>> {
    let cell = systems.cells[..].try_into().ok()?;
    let periodic = systems.periodic[..].try_into().ok()?;
    Some(StructureView { types: &systems.types, positions: &systems.positions, cell, periodic })
}
