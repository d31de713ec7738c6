//! The `model` section of the options.

use kilnbox_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

/// The `model` section of the options; keys and meaning are metatrain's.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Hypers {
    /// The cutoff radius, in the length unit of the data.
    pub cutoff: f64,
    /// How neighbours fade out.
    pub cutoff_function: CutoffFunction,
    /// The last part of the radius, over which they do.
    pub cutoff_width: f64,
    /// With it, each atom has a radius of its own within which it has about so many neighbours.
    #[serde(default)]
    pub num_neighbors_adaptive: Option<f64>,
    /// How that radius is found.
    #[serde(default)]
    pub adaptive_cutoff_method: AdaptiveCutoffMethod,
    /// The width over which neighbours fade out when they are counted for it.
    #[serde(default = "one")]
    pub cutoff_width_adaptive: f64,
    /// The size of messages and tokens.
    pub d_pet: usize,
    /// The size of the heads' layers.
    pub d_head: usize,
    /// The size of what is known of an atom.
    pub d_node: usize,
    /// The size of the hidden layer of a feed-forward network.
    pub d_feedforward: usize,
    /// The number of attention heads.
    pub num_heads: usize,
    /// Transformer layers between two exchanges of messages.
    pub num_attention_layers: usize,
    /// Exchanges of messages.
    pub num_gnn_layers: usize,
    /// The normalisation in transformer layers.
    pub normalization: Normalization,
    /// The activation in feed-forward networks.
    pub activation: FeedForwardActivation,
    /// Divides attention scores; smaller is sharper.
    #[serde(default = "one")]
    pub attention_temperature: f64,
    /// Where normalisations stand.
    pub transformer_type: TransformerType,
    /// What is read out, and how messages are updated.
    pub featurizer_type: FeaturizerType,
    /// A repulsion between nuclei that are very close.
    #[serde(default)]
    pub zbl: bool,
    /// Interactions beyond the cutoff.
    #[serde(default)]
    pub long_range: LongRangeHypers,
    /// Whether the charge and the spin multiplicity of a system are seen.
    #[serde(default)]
    pub system_conditioning: bool,
    /// The largest charge of a system, of either sign.
    #[serde(default = "ten")]
    pub max_charge: usize,
    /// The largest spin multiplicity `2 S + 1` of a system.
    #[serde(default = "ten")]
    pub max_spin_multiplicity: usize,
}

fn one() -> f64 {
    1.0
}

fn ten() -> usize {
    10
}

/// How neighbours fade out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum CutoffFunction {
    /// Smooth to any order.
    Bump,
    /// Half a cosine.
    Cosine,
}

/// How an atom's own radius is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdaptiveCutoffMethod {
    /// By solving for it.
    #[default]
    Solver,
    /// By an average over a grid of radii, as older models did.
    Grid,
}

/// The normalisation in transformer layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Normalization {
    /// By the root mean square.
    #[serde(rename = "RMSNorm")]
    Rms,
    /// By mean and variance.
    #[serde(rename = "LayerNorm")]
    Layer,
}

/// The activation in feed-forward networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum FeedForwardActivation {
    /// A gated linear unit; the name is metatrain's.
    #[serde(rename = "SwiGLU")]
    Gated,
    /// `a * sigmoid(a)`.
    #[serde(rename = "SiLU")]
    Silu,
}

/// Where normalisations stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum TransformerType {
    /// Before attention and feed-forward networks.
    #[serde(rename = "PreLN")]
    Before,
    /// After what they are added to.
    #[serde(rename = "PostLN")]
    After,
}

/// What is read out, and how messages are updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FeaturizerType {
    /// The last layer is read out; a network combines the messages of both directions.
    Feedforward,
    /// Every layer is read out; messages of both directions are averaged.
    Residual,
}

/// Interactions beyond the cutoff; other keys are for them.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct LongRangeHypers {
    /// Whether there are any.
    #[serde(default)]
    pub enable: bool,
}

impl Hypers {
    /// Refuses what the schema cannot rule out.
    ///
    /// # Errors
    /// Says which key is wrong, and what was expected.
    pub fn check(&self) -> Result<()> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let problem = if !positive(self.cutoff) {
            format!("`model.cutoff` is {}, expected a positive number", self.cutoff)
        } else if !(positive(self.cutoff_width) && self.cutoff_width <= self.cutoff) {
            format!(
                "`model.cutoff_width` is {}, expected more than 0 and at most the cutoff, {}",
                self.cutoff_width, self.cutoff
            )
        } else if self.num_neighbors_adaptive.is_some_and(|number| !positive(number)) {
            "`model.num_neighbors_adaptive` is not positive, expected a number of neighbours or null".to_owned()
        } else if !positive(self.cutoff_width_adaptive) {
            format!("`model.cutoff_width_adaptive` is {}, expected a positive number", self.cutoff_width_adaptive)
        } else if self.num_neighbors_adaptive.is_some() && self.adaptive_cutoff_method == AdaptiveCutoffMethod::Grid {
            "`model.adaptive_cutoff_method: grid` is not supported by this version; set it to `solver`".to_owned()
        } else if let Some((key, _)) = self.sizes().into_iter().find(|&(_, size)| size == 0) {
            format!("`model.{key}` is 0, expected at least 1")
        } else if self.d_pet % self.num_heads != 0 {
            format!("`model.d_pet` is {}, expected a multiple of `model.num_heads`, {}", self.d_pet, self.num_heads)
        } else if !positive(self.attention_temperature) {
            format!("`model.attention_temperature` is {}, expected a positive number", self.attention_temperature)
        } else if self.zbl {
            "`model.zbl: true` is not supported by this version; set it to `false`".to_owned()
        } else if self.long_range.enable {
            "`model.long_range.enable: true` is not supported by this version; set it to `false`".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::InvalidHypers(problem))
    }

    fn sizes(&self) -> [(&'static str, usize); 8] {
        [
            ("d_pet", self.d_pet),
            ("d_head", self.d_head),
            ("d_node", self.d_node),
            ("d_feedforward", self.d_feedforward),
            ("num_heads", self.num_heads),
            ("num_attention_layers", self.num_attention_layers),
            ("num_gnn_layers", self.num_gnn_layers),
            ("max_spin_multiplicity", self.max_spin_multiplicity),
        ]
    }

    /// The number of layers whose atoms and messages are read out.
    pub fn readouts(&self) -> usize {
        match self.featurizer_type {
            FeaturizerType::Feedforward => 1,
            FeaturizerType::Residual => self.num_gnn_layers,
        }
    }
}
