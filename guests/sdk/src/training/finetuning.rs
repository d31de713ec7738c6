//! What a run trains of a network: all of it, the heads of targets, or low-rank adapters of some weights.
//!
//! A run that fine-tunes (`training.finetune`) begins by giving new targets the heads of old ones, where it is asked to. Unless it trains heads alone,
//! it then drops the targets that its data do not have: their heads would read features that are changing under them. What is not trained is
//! constant: it has no gradient, no moments and no step.
//!
//! **Adapters** ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)) need nothing of a network. The trainer keeps the weight as it was found and two narrow
//! matrices, and after each step gives the network their sum with the weight, `base + alpha / rank * down . up`. So the weights of a checkpoint
//! are always complete, and whoever evaluates or continues them need not know of adapters; only the run itself finds its own again.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Error, Result,
    checkpoint::Checkpoint,
    hypers::{FinetuneHypers, FinetuneMethod, HeadsConfig, LoraConfig},
    info::DatasetInfo,
    layers::{self, Module, Visit},
    model::AtomisticModel,
    network::Network,
    report,
    tensor::Tensor,
};

/// Where the weights are in a checkpoint that adapters are added to.
const BASE: &str = "finetuning/base/";
/// Where the adapters are.
const ADAPTERS: &str = "finetuning/adapters/";

/// What is trained.
pub(super) enum Trained {
    /// The network's parameters with these names.
    Parameters(BTreeSet<String>),
    /// Adapters of some of its weights.
    Adapters(Adapters),
}

impl Default for Trained {
    fn default() -> Trained {
        Trained::Parameters(BTreeSet::new())
    }
}

impl Trained {
    /// What a run trains that does not fine-tune: all but what belongs to targets that it does not learn. The rest of the network becomes constant.
    pub(super) fn all<N: Network>(model: &mut AtomisticModel<N>, learned: &BTreeSet<String>) -> Trained {
        let info = &model.info;
        let unlearned = |name: &str| owner::<N>(name, info).is_some_and(|target| !learned.contains(target));
        let names = names(&mut model.network).into_iter().filter(|name| !unlearned(name)).collect();
        freeze_others(&mut model.network, &names);
        Trained::Parameters(names)
    }

    /// What a fine-tuning run trains. The rest of the network becomes constant. `self` are the adapters of the run that is continued, if it has some.
    ///
    /// # Errors
    /// The options name a module that the network does not have.
    pub(super) fn finetuned<N: Network>(
        self,
        method: &FinetuneMethod,
        model: &mut AtomisticModel<N>,
        learned: &BTreeSet<String>,
    ) -> Result<Trained> {
        match method {
            FinetuneMethod::Full => Ok(Trained::all(model, learned)),
            FinetuneMethod::Heads(config) => {
                let names = head_parameters(model, config, learned)?;
                freeze_others(&mut model.network, &names);
                Ok(Trained::Parameters(names))
            }
            FinetuneMethod::Lora(config) => {
                freeze_others(&mut model.network, &BTreeSet::new());
                let adapters = match self {
                    Trained::Adapters(adapters) => adapters,
                    Trained::Parameters(_) => Adapters::fresh(&mut model.network, config)?,
                };
                adapters.merge_into(&mut model.network);
                Ok(Trained::Adapters(adapters))
            }
        }
    }

    /// The parameters that are trained.
    pub(super) fn of<'a, N: Network>(&'a mut self, network: &'a mut N) -> TrainedParameters<'a, N> {
        TrainedParameters { trained: self, network }
    }

    /// Lets the network know of a step.
    pub(super) fn after_step(&self, network: &mut impl Network) {
        if let Trained::Adapters(adapters) = self {
            adapters.merge_into(network);
        }
    }

    /// Keeps in a checkpoint what the network's own parameters do not say.
    pub(super) fn save(&mut self, checkpoint: &mut Checkpoint) {
        if let Trained::Adapters(adapters) = self {
            let bases = adapters.of.iter().map(|(name, adapter)| (name.clone(), adapter.base.clone()));
            checkpoint.add_tensors(BASE, bases.collect::<Vec<_>>());
            checkpoint.add_tensors(ADAPTERS, adapters.of.parameters());
        }
    }

    /// What [`save`](Trained::save) kept of a run with this method.
    ///
    /// # Errors
    /// An adapter is missing or has another rank than the method says.
    pub(super) fn load(checkpoint: &Checkpoint, method: &FinetuneMethod) -> Result<Trained> {
        let FinetuneMethod::Lora(config) = method else { return Ok(Trained::default()) };
        let bases = checkpoint.tensors_in(BASE);
        let adapters = bases.into_iter().map(|(name, base)| (name, Adapter::new(base, config.rank)));
        let mut adapters = Adapters { factor: config.factor(), of: adapters.collect() };
        adapters.of.set_parameters(&checkpoint.tensors_in(ADAPTERS))?;
        Ok(Trained::Adapters(adapters))
    }
}

/// Brings a loaded model to the state in which a fine-tuning run begins: heads are inherited, and targets that will not be learned are dropped.
///
/// # Errors
/// The options name a target that the model does not have, or one whose head has another shape.
pub(super) fn prepare<N: Network>(
    hypers: &FinetuneHypers,
    model: &mut AtomisticModel<N>,
    learned: &BTreeSet<String>,
) -> Result<()> {
    inherit_heads(&hypers.inherit_heads, model)?;
    if !matches!(hypers.method, FinetuneMethod::Heads(_)) {
        let dropped = model.keep_targets(learned)?;
        if !dropped.is_empty() {
            report::info(&format!(
                "The model forgets the targets {dropped:?}, which the data do not have and whose heads would no longer fit"
            ));
        }
    }
    if let FinetuneMethod::Lora(_) = hypers.method {
        let fresh = |name: &&String| {
            !model.normalization.targets.contains_key(*name) && !hypers.inherit_heads.contains_key(*name)
        };
        for name in learned.iter().filter(fresh) {
            report::warning(&format!(
                "`lora` does not train heads, and that of the new target `{name}` has random weights; let it inherit one with \
                 `training.finetune.inherit_heads`"
            ));
        }
    }
    Ok(())
}

/// A network seen as those of its parameters that are trained.
pub(super) struct TrainedParameters<'a, N> {
    trained: &'a mut Trained,
    network: &'a mut N,
}

impl<N: Network> Module for TrainedParameters<'_, N> {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        match self.trained {
            Trained::Parameters(names) => self.network.visit(&mut |name, parameter| {
                if names.contains(name) {
                    visit(name, parameter);
                }
            }),
            Trained::Adapters(adapters) => adapters.of.visit(visit),
        }
    }
}

/// Adapters of weights, by the names of these.
pub(super) struct Adapters {
    /// Multiplied with the products of the narrow matrices.
    factor: f64,
    of: BTreeMap<String, Adapter>,
}

/// A change of a weight that has a low rank.
struct Adapter {
    /// The weight as it was found, `[inputs, outputs]`; it may have one more axis before these, as for species.
    base: Tensor,
    /// `[.., inputs, rank]`.
    down: Tensor,
    /// `[.., rank, outputs]`; zeros at first, so that the network begins as it was.
    up: Tensor,
}

impl Module for Adapter {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.down.visit_in("down", visit);
        self.up.visit_in("up", visit);
    }
}

impl Adapter {
    fn new(base: Tensor, rank: usize) -> Adapter {
        let (shape, dtype) = (base.shape(), base.dtype());
        let (inputs, outputs) = (shape.len() - 2, shape.len() - 1);
        let (mut down, mut up) = (shape.clone(), shape.clone());
        (down[outputs], up[inputs]) = (rank, rank);
        Adapter { down: layers::fresh(&down, shape[inputs], dtype), up: Tensor::zeros(&up, dtype).track(), base }
    }
}

impl Adapters {
    /// Adapters for the layers that the options name.
    ///
    /// # Errors
    /// There is no such layer.
    fn fresh(network: &mut impl Network, config: &LoraConfig) -> Result<Adapters> {
        let mut weights = network.parameters();
        weights.retain(|(name, weight)| layer(name).is_some() && weight.shape().len() >= 2);
        let is_named = |name: &str, module: &str| {
            layer(name)
                .and_then(|layer| layer.strip_suffix(module))
                .is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        for module in &config.target_modules {
            if !weights.iter().any(|(name, _)| is_named(name, module)) {
                let example = weights.first().and_then(|(name, _)| layer(name)).unwrap_or_default();
                return Err(Error::InvalidHypers(format!(
                    "`training.finetune.config.target_modules` has `{module}`, which is neither a layer of the model, such as `{example}`, nor the end \
                     of the name of one"
                )));
            }
        }
        weights.retain(|(name, _)| config.target_modules.iter().any(|module| is_named(name, module)));
        let adapter = |(name, weight): (String, Tensor)| (name, Adapter::new(weight.detach(), config.rank));
        Ok(Adapters { factor: config.factor(), of: weights.into_iter().map(adapter).collect() })
    }

    /// Gives the network its adapted weights.
    fn merge_into(&self, network: &mut impl Network) {
        network.visit(&mut |name, weight| {
            if let Some(Adapter { base, down, up }) = self.of.get(name) {
                *weight = base + down.matmul(&(up * self.factor));
            }
        });
    }
}

/// The layer that a weight belongs to.
fn layer(parameter: &str) -> Option<&str> {
    parameter.strip_suffix(".weight")
}

fn names(network: &mut impl Module) -> BTreeSet<String> {
    network.parameters().into_iter().map(|(name, _)| name).collect()
}

/// Makes all parameters constant but these.
fn freeze_others(network: &mut impl Module, trained: &BTreeSet<String>) {
    network.visit(&mut |name, parameter| {
        if !trained.contains(name) {
            *parameter = parameter.detach();
        }
    });
}

/// The target whose head or last layer has this parameter. Where names of targets contain each other, the longest is meant.
fn owner<'a, N: Network>(parameter: &str, info: &'a DatasetInfo) -> Option<&'a str> {
    let targets = info.targets.iter().map(|target| target.name.as_str());
    targets.filter(|target| N::is_of_target(parameter, target)).max_by_key(|target| target.len())
}

/// The names of the parameters that `method: heads` trains: of the modules that the options name, or of all heads and last layers, without those of
/// targets that are not learned.
fn head_parameters<N: Network>(
    model: &mut AtomisticModel<N>,
    config: &HeadsConfig,
    learned: &BTreeSet<String>,
) -> Result<BTreeSet<String>> {
    let all = names(&mut model.network);
    let is_below = |name: &str, module: &str| {
        name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let modules = config.modules();
    if let Some(unknown) = modules.iter().flatten().find(|module| !all.iter().any(|name| is_below(name, module))) {
        let known: BTreeSet<&str> = all.iter().filter_map(|name| name.split('.').next()).collect();
        return Err(Error::InvalidHypers(format!(
            "`training.finetune.config` names the module `{unknown}`, which the model does not have; it has {known:?}"
        )));
    }
    let is_trained = |name: &String| {
        let owner = owner::<N>(name, &model.info);
        let is_chosen = match &modules {
            Some(modules) => modules.iter().any(|module| is_below(name, module)),
            None => owner.is_some(),
        };
        is_chosen && owner.is_none_or(|target| learned.contains(target))
    };
    let trained: BTreeSet<String> = all.iter().filter(|name| is_trained(name)).cloned().collect();
    if trained.is_empty() {
        return Err(Error::InvalidHypers(
            "`training.finetune.method: heads` leaves nothing to train: the model has no head or last layer of the data's targets in these modules"
                .to_owned(),
        ));
    }
    Ok(trained)
}

/// Copies heads and last layers: from the value to the key of each entry.
fn inherit_heads<N: Network>(heirs: &BTreeMap<String, String>, model: &mut AtomisticModel<N>) -> Result<()> {
    let parameters: BTreeMap<String, Tensor> = model.network.parameters().into_iter().collect();
    let mut inherited = BTreeMap::new();
    for (heir, source) in heirs {
        if let Some(unknown) = [heir, source].into_iter().find(|name| model.info.target(name).is_none()) {
            let known: Vec<&str> = model.info.targets.iter().map(|target| target.name.as_str()).collect();
            return Err(Error::InvalidHypers(format!(
                "`training.finetune.inherit_heads` names the target `{unknown}`, which neither the model nor the data have; there are {known:?}"
            )));
        }
        let of = |target: &str| {
            let named = |name: &&String| owner::<N>(name, &model.info) == Some(target);
            parameters.keys().filter(named).cloned().collect::<BTreeSet<String>>()
        };
        let mut heirs_own = of(heir);
        for name in of(source) {
            let own = name.replacen(&format!(".{source}."), &format!(".{heir}."), 1);
            let fits = heirs_own.remove(&own) && parameters[&own].shape() == parameters[&name].shape();
            if !fits {
                heirs_own.insert(own);
                break;
            }
            inherited.insert(own, parameters[&name].clone());
        }
        if let Some(own) = heirs_own.first() {
            return Err(Error::InvalidHypers(format!(
                "`training.finetune.inherit_heads` cannot give `{heir}` the head of `{source}`: they differ in `{own}`"
            )));
        }
    }
    model.network.visit(&mut |name, parameter| {
        if let Some(tensor) = inherited.get(name) {
            *parameter = tensor.detach().track();
        }
    });
    Ok(())
}
