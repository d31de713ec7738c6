//! The model: one weight per element and target.

use kilnbox_sdk::{
    Error, Result, architecture,
    architecture::parse_hypers,
    checkpoint::Checkpoint,
    data::{Systems, TensorMap},
    info::{Capabilities, Context, DType, DatasetInfo, Labels, Layout, ModelOutput, NamedTarget},
    model::Samples,
    normalization::Normalization,
    tensor::Tensor,
};
use serde::{Deserialize, Serialize};

/// The `model` section of the options: there is nothing to choose.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hypers {}

/// Weights of each element for each target.
pub struct Model {
    /// What it predicts, and for which elements.
    pub info: DatasetInfo,
    /// The weights. The SDK calls them the baseline of a target; other models add a network to it.
    pub baseline: Normalization,
    dtype: DType,
}

/// What a checkpoint says besides the weights.
#[derive(Serialize, Deserialize)]
struct Description {
    info: DatasetInfo,
    dtype: DType,
}

/// Refuses targets without a composition.
fn check_targets(info: &DatasetInfo) -> Result<()> {
    for target in &info.targets {
        let layout = Layout::of(&target.name, &target.info);
        if (0..layout.keys.len()).any(|block| !layout.is_invariant(block)) {
            return Err(Error::UnsupportedTarget(format!(
                "`{}` turns with the system, which its composition does not",
                target.name
            )));
        }
    }
    Ok(())
}

impl architecture::Model for Model {
    const CHECKPOINT_VERSION: u32 = 1;

    fn new(hypers: &str, info: DatasetInfo, dtype: DType) -> Result<Self> {
        let Hypers {} = parse_hypers("model", hypers)?;
        check_targets(&info)?;
        Ok(Model { info, baseline: Normalization::default(), dtype })
    }

    // There are no better or later weights here, so that the context makes no difference.
    fn load_checkpoint(checkpoint: &Checkpoint, _: Context) -> Result<Self> {
        let Description { info, dtype } = checkpoint.section("model")?;
        let baseline = Normalization::load(checkpoint, &info);
        Ok(Model { info, baseline, dtype })
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
        let atomic_types = systems.type_indices(&self.info.atomic_types)?;
        let samples = Samples::new(systems, selected_atoms)?;
        let atoms: usize = systems.atom_counts().iter().sum();
        let predict = |output: &ModelOutput| {
            let target = self
                .info
                .target(&output.name)
                .ok_or_else(|| Error::UnsupportedTarget(format!("the model has no output `{}`", output.name)))?;
            let layout = Layout::of(&output.name, target);
            let block = |block: usize| {
                // an atom has nothing but its weight: 0 from a network that is not there
                let mut shape = vec![atoms];
                shape.extend(layout.components[block].iter().map(Labels::len));
                shape.push(layout.properties.len());
                let network = Tensor::zeros(&shape, DType::Float64);
                let values = self.baseline.to_physical(&output.name, block, &network, &atomic_types);
                samples.of_kind(output.sample_kind, &values)
            };
            let blocks = (0..layout.keys.len()).map(block).collect();
            Ok(samples.map(output.sample_kind, layout, blocks))
        };
        outputs.iter().map(predict).collect()
    }

    fn supported_outputs(&self) -> Vec<ModelOutput> {
        self.info.targets.iter().map(NamedTarget::output).collect()
    }

    fn restart(&mut self, info: DatasetInfo) -> Result<()> {
        check_targets(&info)?;
        if info.atomic_types.iter().any(|number| !self.info.atomic_types.contains(number)) {
            return Err(Error::UnsupportedDataset(format!(
                "the new data has the atomic types {:?}, the checkpoint knows only {:?}",
                info.atomic_types, self.info.atomic_types
            )));
        }
        for target in info.targets {
            match self.info.targets.iter_mut().find(|known| known.name == target.name) {
                Some(known) => *known = target,
                None => self.info.targets.push(target),
            }
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint::default();
        checkpoint.set_section("model", &Description { info: self.info.clone(), dtype: self.dtype })?;
        self.baseline.save(&mut checkpoint);
        Ok(checkpoint)
    }

    fn export(&mut self) -> Result<Capabilities> {
        Ok(Capabilities {
            outputs: self.supported_outputs(),
            atomic_types: self.info.atomic_types.clone(),
            interaction_range: 0.0,
            length_unit: self.info.length_unit.clone(),
            dtype: self.dtype,
        })
    }
}
