//! The `training` section of the options that metatrain's trainers share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result, metrics::BestModelMetric};

/// One number for all types, or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "PerTypeText")]
pub enum PerType {
    /// The same for all.
    All(f64),
    /// By atomic number.
    ByType(BTreeMap<i32, f64>),
}

/// As JSON has it, where keys are text.
#[derive(Deserialize)]
#[serde(untagged)]
enum PerTypeText {
    All(f64),
    ByType(BTreeMap<String, f64>),
}

impl TryFrom<PerTypeText> for PerType {
    type Error = String;

    fn try_from(text: PerTypeText) -> Result<PerType, String> {
        let by_type = match text {
            PerTypeText::All(value) => return Ok(PerType::All(value)),
            PerTypeText::ByType(values) => values,
        };
        let atomic_number =
            |key: String| key.parse().map_err(|_| format!("`{key}` is not an atomic number, such as 8 for oxygen"));
        by_type
            .into_iter()
            .map(|(key, value)| Ok((atomic_number(key)?, value)))
            .collect::<Result<_, String>>()
            .map(PerType::ByType)
    }
}

impl PerType {
    /// The number of each type; types that are not named get `default`.
    pub fn values(&self, atomic_types: &[i32], default: f64) -> Vec<f64> {
        atomic_types
            .iter()
            .map(|atomic_type| match self {
                PerType::All(value) => *value,
                PerType::ByType(values) => values.get(atomic_type).copied().unwrap_or(default),
            })
            .collect()
    }
}

/// Fixed numbers for some targets.
pub type FixedWeights = BTreeMap<String, PerType>;

/// How a run goes on from the weights of another model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "FinetuneText", into = "FinetuneText")]
pub struct FinetuneHypers {
    /// The checkpoint of that model. Without one nothing is fine-tuned, whatever the rest says.
    pub read_from: Option<String>,
    /// What is trained.
    pub method: FinetuneMethod,
    /// Targets of this run, each with the target of the model whose head and last layers its own begin as.
    pub inherit_heads: BTreeMap<String, String>,
}

/// What a fine-tuning run trains.
#[derive(Clone, Debug, PartialEq)]
pub enum FinetuneMethod {
    /// All weights.
    Full,
    /// Heads and last layers of targets.
    Heads(HeadsConfig),
    /// Low-rank adapters of some layers, which are added to their weights.
    Lora(LoraConfig),
}

impl FinetuneMethod {
    /// As the options call it.
    pub fn name(&self) -> &'static str {
        match self {
            FinetuneMethod::Full => "full",
            FinetuneMethod::Heads(_) => "heads",
            FinetuneMethod::Lora(_) => "lora",
        }
    }
}

/// Which modules `method: heads` trains: those that are named, or all heads and last layers if neither list is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HeadsConfig {
    /// Where the names of parameters of heads begin, such as `node_heads`.
    pub head_modules: Option<Vec<String>>,
    /// Where those of last layers begin, such as `node_last_layers`.
    pub last_layer_modules: Option<Vec<String>>,
}

impl HeadsConfig {
    /// The modules of both lists, if any is given.
    pub fn modules(&self) -> Option<Vec<&str>> {
        let lists = [&self.head_modules, &self.last_layer_modules];
        lists
            .iter()
            .any(|list| list.is_some())
            .then(|| lists.into_iter().flatten().flatten().map(String::as_str).collect())
    }
}

/// How `method: lora` adapts layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// The rank of the change of each weight.
    pub rank: usize,
    /// Divided by the rank, it is multiplied with the change.
    pub alpha: f64,
    /// The layers: their names, or how these end.
    pub target_modules: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> LoraConfig {
        let target_modules = ["input_linear", "output_linear"].map(str::to_owned).to_vec();
        LoraConfig { rank: 4, alpha: 8.0, target_modules }
    }
}

impl LoraConfig {
    /// What the product of the two narrow matrices is multiplied with.
    pub fn factor(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// As JSON has it, where the meaning of `config` depends on the method.
#[derive(Serialize, Deserialize)]
struct FinetuneText {
    #[serde(default)]
    read_from: Option<String>,
    #[serde(default)]
    method: MethodName,
    #[serde(default)]
    config: Option<Value>,
    #[serde(default)]
    inherit_heads: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MethodName {
    #[default]
    Full,
    Heads,
    Lora,
}

impl TryFrom<FinetuneText> for FinetuneHypers {
    type Error = String;

    fn try_from(text: FinetuneText) -> Result<FinetuneHypers, String> {
        fn read<T: serde::de::DeserializeOwned>(config: Option<Value>) -> Result<T, String> {
            let config = config.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
            serde_json::from_value(config).map_err(|error| format!("`finetune.config`: {error}"))
        }
        let method = match text.method {
            // metatrain reads nothing there either, so that one may change the method and leave the rest
            MethodName::Full => FinetuneMethod::Full,
            MethodName::Heads => FinetuneMethod::Heads(read(text.config)?),
            MethodName::Lora => FinetuneMethod::Lora(read(text.config)?),
        };
        if let FinetuneMethod::Lora(LoraConfig { rank, alpha, .. }) = &method {
            if *rank == 0 || !alpha.is_finite() {
                return Err(format!(
                    "`finetune.config` has the rank {rank} and the alpha {alpha}, expected at least 1 and a finite number"
                ));
            }
        }
        Ok(FinetuneHypers { read_from: text.read_from, method, inherit_heads: text.inherit_heads })
    }
}

impl From<FinetuneHypers> for FinetuneText {
    fn from(hypers: FinetuneHypers) -> FinetuneText {
        let (method, config) = match hypers.method {
            FinetuneMethod::Full => (MethodName::Full, None),
            FinetuneMethod::Heads(config) => (MethodName::Heads, serde_json::to_value(config).ok()),
            FinetuneMethod::Lora(config) => (MethodName::Lora, serde_json::to_value(config).ok()),
        };
        FinetuneText { read_from: hypers.read_from, method, config, inherit_heads: hypers.inherit_heads }
    }
}

/// How to train by gradients. Defaults are those of SOAP-BPNN; an architecture's own are in its `default-hypers.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingHypers {
    /// Systems per step; not used with `max_atoms_per_batch`.
    pub batch_size: usize,
    /// With it, each batch has as many systems as fit into so many atoms.
    pub max_atoms_per_batch: Option<usize>,
    /// Batches with fewer atoms are left out; with `max_atoms_per_batch` only.
    pub min_atoms_per_batch: usize,
    /// Passes over the training set, those before a restart included.
    pub num_epochs: u32,
    /// The part of all steps during which the learning rate rises.
    pub warmup_fraction: f64,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Decay of the weights (AdamW); plain Adam without.
    pub weight_decay: Option<f64>,
    /// The largest norm of all gradients together; larger ones are scaled down.
    pub grad_clip_norm: Option<f64>,
    /// Epochs between lines in the log.
    pub log_interval: u32,
    /// Epochs between checkpoints.
    pub checkpoint_interval: u32,
    /// Energies of isolated atoms, instead of fitted ones.
    pub atomic_baseline: FixedWeights,
    /// Whether targets are divided by their spread.
    pub scale_targets: bool,
    /// The spreads of some targets, instead of measured ones.
    pub fixed_scaling_weights: FixedWeights,
    /// Targets of systems that are not divided by the number of atoms.
    pub per_structure_targets: Vec<String>,
    /// Whether mean absolute errors are reported as well.
    pub log_mae: bool,
    /// Whether each block of a target is reported on its own.
    pub log_separate_blocks: bool,
    /// By what the best model is chosen.
    pub best_model_metric: BestModelMetric,
    /// See [`loss`](crate::loss).
    pub loss: Value,
    /// How to go on from the weights of another model.
    pub finetune: Option<FinetuneHypers>,
}

impl Default for TrainingHypers {
    fn default() -> TrainingHypers {
        TrainingHypers {
            batch_size: 8,
            max_atoms_per_batch: None,
            min_atoms_per_batch: 0,
            num_epochs: 100,
            warmup_fraction: 0.01,
            learning_rate: 1e-3,
            weight_decay: None,
            grad_clip_norm: None,
            log_interval: 5,
            checkpoint_interval: 25,
            atomic_baseline: FixedWeights::new(),
            scale_targets: true,
            fixed_scaling_weights: FixedWeights::new(),
            per_structure_targets: Vec::new(),
            log_mae: false,
            log_separate_blocks: false,
            best_model_metric: BestModelMetric::RmseProd,
            loss: Value::from("mse"),
            finetune: None,
        }
    }
}

impl TrainingHypers {
    /// Reads and checks the section.
    ///
    /// # Errors
    /// Says which key is wrong.
    pub fn parse(json: &str) -> Result<TrainingHypers> {
        let hypers: TrainingHypers =
            serde_json::from_str(json).map_err(|error| Error::InvalidHypers(format!("`training`: {error}")))?;
        let require = |holds: bool, message: String| {
            if holds { Ok(()) } else { Err(Error::InvalidHypers(message)) }
        };
        let within = |value: f64| (0.0..=1.0).contains(&value);
        require(hypers.batch_size > 0, "`training.batch_size` is 0, expected at least 1".to_owned())?;
        require(hypers.log_interval > 0, "`training.log_interval` is 0, expected at least 1".to_owned())?;
        require(hypers.checkpoint_interval > 0, "`training.checkpoint_interval` is 0, expected at least 1".to_owned())?;
        require(
            within(hypers.warmup_fraction),
            format!("`training.warmup_fraction` is {}, expected a number from 0 to 1", hypers.warmup_fraction),
        )?;
        require(
            hypers.learning_rate >= 0.0 && hypers.learning_rate.is_finite(),
            format!("`training.learning_rate` is {}, expected a positive number", hypers.learning_rate),
        )?;
        Ok(hypers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baselines_are_one_number_or_one_for_each_atomic_number() {
        let hypers = TrainingHypers::parse(r#"{"atomic_baseline": {"energy": {"1": -0.5, "8": -75}, "mtt::x": -5.0}}"#)
            .expect("hypers");
        assert_eq!(hypers.atomic_baseline["energy"].values(&[1, 6, 8], 0.0), [-0.5, 0.0, -75.0]);
        assert_eq!(hypers.atomic_baseline["mtt::x"].values(&[1, 6], 0.0), [-5.0, -5.0]);
    }

    #[test]
    fn mistakes_are_refused() {
        for (json, expected) in [
            (r#"{"atomic_baseline": {"energy": {"H": 300.0}}}"#, "`training`: "),
            (r#"{"batch_size": 0}"#, "`training.batch_size` is 0"),
            (r#"{"warmup_fraction": 2}"#, "`training.warmup_fraction` is 2"),
            (r#"{"best_model_metric": "rmse"}"#, "`training`: unknown variant `rmse`"),
            (r#"{"finetune": {"method": "half"}}"#, "`training`: unknown variant `half`"),
            (
                r#"{"finetune": {"method": "lora", "config": {"rnk": 4}}}"#,
                "`training`: `finetune.config`: unknown field `rnk`",
            ),
            (
                r#"{"finetune": {"method": "lora", "config": {"rank": 0}}}"#,
                "`training`: `finetune.config` has the rank 0",
            ),
        ] {
            let error = TrainingHypers::parse(json).expect_err("a mistake").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_method_says_what_its_configuration_means() {
        let read = |json: &str| TrainingHypers::parse(json).expect("hypers").finetune.expect("a section");
        let none = read(r#"{"finetune": {"read_from": null, "method": "full", "config": {}, "inherit_heads": {}}}"#);
        assert_eq!((none.read_from, none.method), (None, FinetuneMethod::Full));
        let lora = read(r#"{"finetune": {"read_from": "a.ckpt", "method": "lora", "config": {"alpha": 2}}}"#);
        assert_eq!(lora.method, FinetuneMethod::Lora(LoraConfig { alpha: 2.0, ..LoraConfig::default() }));
        let heads = read(r#"{"finetune": {"method": "heads", "config": {"head_modules": ["node_heads"]}}}"#);
        let FinetuneMethod::Heads(config) = &heads.method else { panic!("{heads:?}") };
        assert_eq!(config.modules(), Some(vec!["node_heads"]));
        assert_eq!(HeadsConfig::default().modules(), None);
        for hypers in [lora, heads] {
            // as a checkpoint keeps them
            let json = serde_json::to_string(&hypers).expect("JSON");
            assert_eq!(serde_json::from_str::<FinetuneHypers>(&json).expect("hypers"), hypers);
        }
    }
}
