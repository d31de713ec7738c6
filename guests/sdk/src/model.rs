//! A complete model around a [`Network`].

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    architecture::{Model, parse_hypers},
    checkpoint::Checkpoint,
    data::{Systems, TensorBlock, TensorMap},
    info::{
        Capabilities, Context, DType, DatasetInfo, Labels, Layout, ModelOutput, NamedTarget, NeighborListOptions,
        SampleKind,
    },
    network::Network,
    normalization::Normalization,
    tensor::Tensor,
};

/// Where the latest weights are in a checkpoint.
const LATEST: &str = "model/";
/// Where a trainer keeps the best weights.
pub(crate) const BEST: &str = "best_model/";

/// A network with its targets, baseline and scale.
pub struct AtomisticModel<N: Network> {
    pub(crate) network: N,
    pub(crate) info: DatasetInfo,
    pub(crate) normalization: Normalization,
    pub(crate) dtype: DType,
    hypers: N::Hypers,
}

/// What a checkpoint says of a model besides its weights.
#[derive(Serialize, Deserialize)]
struct Description<H> {
    hypers: H,
    info: DatasetInfo,
    dtype: DType,
}

impl<N: Network> Model for AtomisticModel<N> {
    const CHECKPOINT_VERSION: u32 = N::CHECKPOINT_VERSION;

    fn new(hypers: &str, info: DatasetInfo, dtype: DType) -> Result<Self> {
        let hypers: N::Hypers = parse_hypers("model", hypers)?;
        let network = N::new(&hypers, &info, dtype)?;
        Ok(AtomisticModel { network, info, normalization: Normalization::default(), dtype, hypers })
    }

    fn load_checkpoint(checkpoint: &Checkpoint, context: Context) -> Result<Self> {
        let Description { hypers, info, dtype } = checkpoint.section::<Description<N::Hypers>>("model")?;
        let mut network = N::new(&hypers, &info, dtype)?;
        let best = checkpoint.tensors_in(BEST);
        let weights = if context == Context::Restart || best.is_empty() { checkpoint.tensors_in(LATEST) } else { best };
        network.set_parameters(&weights)?;
        if context == Context::Export {
            // nothing will be learned: operations on the weights alone need not be recorded
            network.visit(&mut |_, parameter| *parameter = parameter.detach());
        }
        let normalization = Normalization::load(checkpoint, &info);
        Ok(AtomisticModel { network, info, normalization, dtype, hypers })
    }

    fn upgrade_checkpoint(checkpoint: Checkpoint) -> Result<Checkpoint> {
        N::upgrade_checkpoint(checkpoint)
    }

    fn forward(
        &self,
        systems: Systems<'_>,
        outputs: &[ModelOutput],
        selected_atoms: Option<&Labels>,
    ) -> Result<Vec<TensorMap>> {
        if outputs.is_empty() {
            return Ok(Vec::new());
        }
        let supported = self.supported_outputs();
        if let Some(unknown) = outputs.iter().find(|output| !supported.iter().any(|other| other.name == output.name)) {
            let known: Vec<&str> = supported.iter().map(|output| output.name.as_str()).collect();
            return Err(Error::UnsupportedTarget(format!(
                "the model has no output `{}`; it has {known:?}",
                unknown.name
            )));
        }
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        let type_indices = systems.type_indices(&self.info.atomic_types)?;
        let samples = Samples::new(systems, selected_atoms)?;
        let (raw, type_indices) = match &samples.rows {
            None => (self.network.forward(systems, &names)?, type_indices),
            Some(rows) => (self.network.forward_selected(systems, &names, rows)?, type_indices.select(0, rows)),
        };
        let finish = |(output, blocks): (&ModelOutput, Vec<Tensor>)| {
            let layout = match self.info.target(&output.name) {
                Some(info) => Layout::of(&output.name, info),
                None => Layout::features(blocks.first().map_or(0, |block| block.shape().last().copied().unwrap_or(0))),
            };
            let values = |(block, values): (usize, Tensor)| match self.info.target(&output.name) {
                Some(_) => samples.sums(
                    output.sample_kind,
                    &self.normalization.to_physical(&output.name, block, &values, &type_indices),
                ),
                None => samples.sums(output.sample_kind, &values),
            };
            samples.map(output.sample_kind, layout, blocks.into_iter().enumerate().map(values).collect())
        };
        Ok(outputs.iter().zip(raw).map(finish).collect())
    }

    fn supported_outputs(&self) -> Vec<ModelOutput> {
        let mut outputs: Vec<ModelOutput> = self.info.targets.iter().map(NamedTarget::output).collect();
        outputs.extend(self.network.auxiliary_outputs());
        outputs
    }

    fn requested_neighbor_lists(&self) -> Vec<NeighborListOptions> {
        self.network.neighbor_lists()
    }

    fn requested_inputs(&self) -> Vec<String> {
        self.network.requested_inputs()
    }

    fn restart(&mut self, info: DatasetInfo) -> Result<()> {
        let unknown: Vec<i32> =
            info.atomic_types.iter().copied().filter(|number| !self.info.atomic_types.contains(number)).collect();
        if !unknown.is_empty() {
            return Err(Error::UnsupportedDataset(format!(
                "the new data has the atomic types {unknown:?}, which the checkpoint does not know; it knows {:?}",
                self.info.atomic_types
            )));
        }
        if info.length_unit != self.info.length_unit {
            return Err(Error::UnsupportedDataset(format!(
                "the new data has lengths in `{}`, the checkpoint in `{}`",
                info.length_unit, self.info.length_unit
            )));
        }
        let known: BTreeSet<&str> = self.info.targets.iter().map(|target| target.name.as_str()).collect();
        let (old, new): (Vec<NamedTarget>, Vec<NamedTarget>) =
            info.targets.into_iter().partition(|target| known.contains(target.name.as_str()));
        for target in old {
            let known = self.info.targets.iter_mut().find(|other| other.name == target.name);
            if let Some(known) = known {
                update_target(known, target)?;
            }
        }
        if !new.is_empty() {
            self.network.add_targets(&self.hypers, &new, self.dtype)?;
            self.info.targets.extend(new);
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { model_version: Self::CHECKPOINT_VERSION, ..Checkpoint::default() };
        let description = Description { hypers: &self.hypers, info: self.info.clone(), dtype: self.dtype };
        checkpoint.set_section("model", &description)?;
        checkpoint.add_tensors(LATEST, self.network.parameters());
        self.normalization.save(&mut checkpoint);
        Ok(checkpoint)
    }

    fn export(&mut self) -> Result<Capabilities> {
        Ok(Capabilities {
            outputs: self.supported_outputs(),
            atomic_types: self.info.atomic_types.clone(),
            interaction_range: self.network.interaction_range(),
            length_unit: self.info.length_unit.clone(),
            dtype: self.dtype,
        })
    }
}

impl<N: Network> AtomisticModel<N> {
    /// Forgets all targets but these, and gives the names of those that are gone.
    ///
    /// # Errors
    /// The network cannot be made without them.
    pub(crate) fn keep_targets(&mut self, kept: &BTreeSet<String>) -> Result<Vec<String>> {
        let (kept, dropped): (Vec<NamedTarget>, Vec<NamedTarget>) =
            self.info.targets.drain(..).partition(|target| kept.contains(&target.name));
        self.info.targets = kept;
        if !dropped.is_empty() {
            let parameters = self.network.parameters().into_iter().collect();
            self.network = N::new(&self.hypers, &self.info, self.dtype)?;
            self.network.set_parameters(&parameters)?;
        }
        let dropped: Vec<String> = dropped.into_iter().map(|target| target.name).collect();
        self.normalization.targets.retain(|name, _| !dropped.contains(name));
        Ok(dropped)
    }
}

/// Takes over what new data says of a known target: it may have other gradients, not another shape or unit.
fn update_target(known: &mut NamedTarget, target: NamedTarget) -> Result<()> {
    let same = known.info.sample_kind == target.info.sample_kind
        && known.info.target_type == target.info.target_type
        && known.info.num_subtargets == target.info.num_subtargets
        && known.info.unit == target.info.unit;
    if !same {
        return Err(Error::UnsupportedTarget(format!(
            "the target `{}` differs from the checkpoint's in kind, number of values or unit (`{}`, there `{}`); give it another name",
            target.name, target.info.unit, known.info.unit
        )));
    }
    known.info.gradients = target.info.gradients;
    Ok(())
}

/// Which atoms count, and what the rows of an output are called.
pub struct Samples {
    /// The system of each atom that counts, numbered among the systems that have one; `int64`.
    system_of_atom: Tensor,
    /// The rows of those atoms, if not all.
    rows: Option<Tensor>,
    /// The systems that have an atom that counts.
    systems: Vec<i32>,
    /// `(system, atom)` of each atom that counts, atoms numbered in their system.
    atoms: Vec<i32>,
}

impl Samples {
    /// All atoms of `systems`, or only those that are selected by labels with `system`, `atom`.
    ///
    /// # Errors
    /// When the labels have other dimensions or select an atom that does not exist.
    pub fn new(systems: Systems<'_>, selected: Option<&Labels>) -> Result<Samples> {
        let counts = systems.atom_counts();
        let Some(selected) = selected else {
            let atoms = counts
                .iter()
                .enumerate()
                .flat_map(|(system, &count)| (0..count).flat_map(move |atom| [system as i32, atom as i32]));
            return Ok(Samples {
                system_of_atom: systems.system_indices(),
                rows: None,
                systems: (0..counts.len() as i32).collect(),
                atoms: atoms.collect(),
            });
        };
        if selected.names != ["system", "atom"] {
            return Err(Error::Other(format!(
                "selected atoms have the dimensions {:?}, expected `system`, `atom`",
                selected.names
            )));
        }
        let starts: Vec<usize> =
            counts.iter().scan(0, |next, &count| Some(std::mem::replace(next, *next + count))).collect();
        let chosen: BTreeSet<(i32, i32)> = selected.entries().map(|entry| (entry[0], entry[1])).collect();
        let exists = |&(system, atom): &(i32, i32)| {
            system >= 0 && atom >= 0 && counts.get(system as usize).is_some_and(|&count| (atom as usize) < count)
        };
        if let Some((system, atom)) = chosen.iter().find(|entry| !exists(entry)) {
            return Err(Error::Other(format!("atom {atom} of system {system} is selected, which does not exist")));
        }
        let present: Vec<i32> = chosen.iter().map(|&(system, _)| system).collect::<BTreeSet<_>>().into_iter().collect();
        let position = |system: i32| present.partition_point(|&other| other < system) as i64;
        let count = chosen.len();
        Ok(Samples {
            system_of_atom: Tensor::from_vec_i64(
                &[count],
                chosen.iter().map(|&(system, _)| position(system)).collect(),
            ),
            rows: Some(Tensor::from_vec_i64(
                &[count],
                chosen.iter().map(|&(system, atom)| starts[system as usize] as i64 + i64::from(atom)).collect(),
            )),
            atoms: chosen.iter().flat_map(|&(system, atom)| [system, atom]).collect(),
            systems: present,
        })
    }

    /// Values of all atoms as values of this kind: those of the atoms that count, or their sums over systems.
    pub fn of_kind(&self, kind: SampleKind, values: &Tensor) -> Tensor {
        match &self.rows {
            Some(rows) => self.sums(kind, &values.select(0, rows)),
            None => self.sums(kind, values),
        }
    }

    /// Values of the atoms that count as values of this kind: the same, or their sums over systems.
    fn sums(&self, kind: SampleKind, values: &Tensor) -> Tensor {
        match kind {
            SampleKind::System => values.index_add(0, &self.system_of_atom, self.systems.len()),
            SampleKind::Atom => values.clone(),
        }
    }

    /// Blocks of values of this kind with their labels.
    pub fn map(&self, kind: SampleKind, layout: Layout, blocks: Vec<Tensor>) -> TensorMap {
        let samples = match kind {
            SampleKind::System => Labels::new(&["system"], self.systems.clone()),
            SampleKind::Atom => Labels::new(&["system", "atom"], self.atoms.clone()),
        };
        let block = |(values, components)| TensorBlock {
            values,
            samples: samples.clone(),
            components,
            properties: layout.properties.clone(),
            gradients: Vec::new(),
        };
        TensorMap {
            keys: layout.keys.clone(),
            blocks: blocks.into_iter().zip(layout.components.clone()).map(block).collect(),
        }
    }
}
