//! Layers of neural networks, and parameters by name.
//!
//! Weights are kept as `[inputs, outputs]` (one matrix per species: `[species, inputs, outputs]`), so that a layer is one product without a transpose.
//! Fresh weights are uniform in `+-1 / sqrt(inputs)`, biases as well; norms begin as the identity; embeddings are standard normal.
//!
//! ```ignore
//! struct Network { norm: LayerNorm, hidden: Linear }
//!
//! impl Module for Network {
//!     fn visit(&mut self, visit: &mut Visit<'_>) {
//!         self.norm.visit_in("norm", visit);     // norm.scale, norm.shift
//!         self.hidden.visit_in("hidden", visit); // hidden.weight
//!     }
//! }
//! ```

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;

use crate::{
    Error, Result, random,
    tensor::{DType, Tensor},
};

/// Called with the name and the value of a parameter, which it may replace.
pub type Visit<'a> = dyn FnMut(&str, &mut Tensor) + 'a;

/// Anything with parameters: a tensor, a layer, a network.
pub trait Module {
    /// Calls `visit` with each parameter and its name below this module, always in the same order.
    fn visit(&mut self, visit: &mut Visit<'_>);

    /// As [`visit`](Module::visit), with `name.` before each name; a parameter itself is called `name`.
    fn visit_in(&mut self, name: &str, visit: &mut Visit<'_>) {
        self.visit(&mut |inner, parameter| match inner {
            "" => visit(name, parameter),
            _ => visit(&format!("{name}.{inner}"), parameter),
        });
    }

    /// All parameters by name.
    fn parameters(&mut self) -> Vec<(String, Tensor)> {
        let mut parameters = Vec::new();
        self.visit(&mut |name, parameter| parameters.push((name.to_owned(), parameter.clone())));
        parameters
    }

    /// Replaces every parameter by the tensor of its name.
    ///
    /// # Errors
    /// When one is missing or has another shape. Names that are no parameters are ignored.
    fn set_parameters(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut problem = None;
        self.visit(&mut |name, parameter| match tensors.get(name) {
            Some(tensor) if tensor.shape() == parameter.shape() => {
                *parameter = tensor.cast(parameter.dtype()).detach().track()
            }
            Some(tensor) => {
                problem.get_or_insert(format!(
                    "parameter `{name}` is {:?} in the checkpoint, expected {:?}",
                    tensor.shape(),
                    parameter.shape()
                ));
            }
            None => {
                problem.get_or_insert(format!("parameter `{name}` is not in the checkpoint"));
            }
        });
        problem.map_or(Ok(()), |message| Err(Error::IncompatibleCheckpoint(message)))
    }

    /// The number of all elements of all parameters.
    fn parameter_count(&mut self) -> usize {
        let mut count = 0;
        self.visit(&mut |_, parameter| count += parameter.shape().iter().product::<usize>());
        count
    }
}

impl Module for Tensor {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        visit("", self);
    }
}

impl<M: Module> Module for Option<M> {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        if let Some(module) = self {
            module.visit(visit);
        }
    }
}

/// Members are called by their position.
impl<M: Module> Module for Vec<M> {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        for (position, module) in self.iter_mut().enumerate() {
            module.visit_in(&position.to_string(), visit);
        }
    }
}

/// Members are called by their key.
impl<M: Module> Module for BTreeMap<String, M> {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        for (name, module) in self.iter_mut() {
            module.visit_in(name, visit);
        }
    }
}

/// Uniform in `+-1 / sqrt(inputs)`.
pub(crate) fn fresh(shape: &[usize], inputs: usize, dtype: DType) -> Tensor {
    let bound = 1.0 / (inputs.max(1) as f64).sqrt();
    random::uniform(shape, -bound, bound, dtype).track()
}

/// `x W`, plus a bias if there is one.
pub struct Linear {
    /// `[inputs, outputs]`.
    pub weight: Tensor,
    /// `[outputs]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// A layer with fresh weights.
    pub fn new(inputs: usize, outputs: usize, bias: bool, dtype: DType) -> Linear {
        Linear {
            weight: fresh(&[inputs, outputs], inputs, dtype),
            bias: bias.then(|| fresh(&[outputs], inputs, dtype)),
        }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// `self.forward(norm.forward(x))`. Where there are more rows than outputs, the norm's scale and shift are multiplied into this layer. Then there
    /// are fewer weights than numbers in the rows, and none of them in the gradients by `x`.
    pub fn forward_normalised(&self, x: &Tensor, norm: &Norm) -> Tensor {
        let shape = x.shape();
        let rows = shape[..shape.len() - 1].iter().product();
        if !pays_to_scale_weights(rows, self.weight.size(1)) {
            return self.forward(&norm.forward(x));
        }
        self.with_norm(norm).forward(&norm.normalise(x))
    }

    /// The layer that does with normalised rows what this one does with rows after the norm: `(x s + t) W + b = x (s W) + (t W + b)`.
    fn with_norm(&self, norm: &Norm) -> Linear {
        let Linear { weight, bias } = self;
        let (scale, shift) = (norm.scale(), norm.shift());
        let inputs = scale.size(0);
        let bias = match shift {
            Some(shift) => Some(shift.reshape(&[1, inputs]).linear(weight, bias.as_ref()).reshape(&[weight.size(1)])),
            None => bias.clone(),
        };
        Linear { weight: scale.reshape(&[inputs, 1]) * weight, bias }
    }
}

impl Module for Linear {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.weight.visit_in("weight", visit);
        self.bias.visit_in("bias", visit);
    }
}

/// A norm's scale and shift in the layer after it, kept while none of them is learned: then they are multiplied once, and rows and gradients by them
/// never. For a layer that has always the same norm before it.
///
/// Whoever has one must [`forget`](AfterNorm::forget) when the layer is visited, which may replace its weights and the norm's.
pub struct AfterNorm<Layer = Linear>(RefCell<Option<Layer>>);

impl<Layer> Default for AfterNorm<Layer> {
    fn default() -> Self {
        AfterNorm(RefCell::new(None))
    }
}

impl<Layer> AfterNorm<Layer> {
    /// What is kept is computed anew when it is needed.
    pub fn forget(&mut self) {
        self.0.take();
    }

    /// The layer with the norm in it, if `parts`, which it is made of, are constant.
    fn kept<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a Tensor>,
        fold: impl FnOnce() -> Layer,
    ) -> RefMut<'_, Option<Layer>> {
        let mut kept = self.0.borrow_mut();
        if kept.is_none() && is_constant(parts) {
            *kept = Some(fold());
        }
        kept
    }
}

impl AfterNorm {
    /// `layer.forward(norm.forward(x))`.
    pub fn forward(&self, layer: &Linear, norm: &Norm, x: &Tensor) -> Tensor {
        let parts = [&layer.weight, norm.scale()].into_iter().chain(&layer.bias).chain(norm.shift());
        match &*self.kept(parts, || layer.with_norm(norm)) {
            Some(layer) => layer.forward(&norm.normalise(x)),
            None => layer.forward_normalised(x, norm),
        }
    }
}

impl AfterNorm<SpeciesLinear> {
    /// `mlp.forward(norm.forward(x, species), species)`.
    pub fn forward(&self, mlp: &SpeciesMlp, norm: &SpeciesLayerNorm, x: &Tensor, species: &Tensor) -> Tensor {
        let Some(first) = mlp.layers.first() else { return norm.forward(x, species) };
        let parts = [&first.weight, &norm.scale, &norm.shift].into_iter().chain(&first.bias);
        match &*self.kept(parts, || first.with_norm(norm)) {
            Some(first) => mlp.after_first(first, &x.layer_norm(LAYER_NORM_EPSILON), species),
            None => mlp.forward_normalised(x, norm, species),
        }
    }
}

/// Whether no gradients flow to these.
pub fn is_constant<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    !tensors.into_iter().any(Tensor::is_tracked)
}

/// Whether to multiply a norm's scale into the weights of a layer with so many outputs (all matrices together) is quicker than into its so many rows. Rows
/// are scaled twice, on the way there and on the way back.
fn pays_to_scale_weights(rows: usize, outputs: usize) -> bool {
    2 * rows > outputs
}

/// A [`Linear`] with its own weights for each species.
pub struct SpeciesLinear {
    /// `[species, inputs, outputs]`.
    pub weight: Tensor,
    /// `[species, outputs]`.
    pub bias: Option<Tensor>,
}

impl SpeciesLinear {
    /// A layer with fresh weights.
    pub fn new(species: usize, inputs: usize, outputs: usize, bias: bool, dtype: DType) -> SpeciesLinear {
        SpeciesLinear {
            weight: fresh(&[species, inputs, outputs], inputs, dtype),
            bias: bias.then(|| fresh(&[species, outputs], inputs, dtype)),
        }
    }

    /// `[rows, inputs]` to `[rows, outputs]` with the weights of each row's species, an `int64` `[rows]`.
    pub fn forward(&self, x: &Tensor, species: &Tensor) -> Tensor {
        let product = x.contract_left(&self.weight, species);
        match &self.bias {
            Some(bias) => product + bias.select(0, species),
            None => product,
        }
    }

    /// As [`Linear::with_norm`], for each species.
    fn with_norm(&self, norm: &SpeciesLayerNorm) -> SpeciesLinear {
        let (count, features) = (norm.scale.size(0), norm.scale.size(1));
        let shift = norm.shift.contract_left(&self.weight, &Tensor::arange(count));
        SpeciesLinear {
            weight: &self.weight * norm.scale.reshape(&[count, features, 1]),
            bias: Some(match &self.bias {
                Some(bias) => shift + bias,
                None => shift,
            }),
        }
    }
}

impl Module for SpeciesLinear {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.weight.visit_in("weight", visit);
        self.bias.visit_in("bias", visit);
    }
}

/// Added to the variance by [`LayerNorm`], as torch does.
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Layer normalisation over the last axis.
pub struct LayerNorm {
    /// Multiplied with the normalised values, `[features]`.
    pub scale: Tensor,
    /// Added afterwards, `[features]`.
    pub shift: Tensor,
}

impl LayerNorm {
    /// The plain normalisation: scale 1, shift 0.
    pub fn new(features: usize, dtype: DType) -> LayerNorm {
        LayerNorm { scale: Tensor::ones(&[features], dtype).track(), shift: Tensor::zeros(&[features], dtype).track() }
    }

    /// Any shape with `features` as the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(LAYER_NORM_EPSILON) * &self.scale + &self.shift
    }
}

impl Module for LayerNorm {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.scale.visit_in("scale", visit);
        self.shift.visit_in("shift", visit);
    }
}

/// A [`LayerNorm`] with its own scale and shift for each species.
pub struct SpeciesLayerNorm {
    /// `[species, features]`.
    pub scale: Tensor,
    /// `[species, features]`.
    pub shift: Tensor,
}

impl SpeciesLayerNorm {
    /// The plain normalisation for all species.
    pub fn new(species: usize, features: usize, dtype: DType) -> SpeciesLayerNorm {
        let shape = [species, features];
        SpeciesLayerNorm { scale: Tensor::ones(&shape, dtype).track(), shift: Tensor::zeros(&shape, dtype).track() }
    }

    /// `[rows, features]` with the parameters of each row's species.
    pub fn forward(&self, x: &Tensor, species: &Tensor) -> Tensor {
        x.layer_norm(LAYER_NORM_EPSILON) * self.scale.select(0, species) + self.shift.select(0, species)
    }
}

impl Module for SpeciesLayerNorm {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.scale.visit_in("scale", visit);
        self.shift.visit_in("shift", visit);
    }
}

/// Root-mean-square normalisation over the last axis. Nothing is added to the mean square but the machine epsilon of the dtype.
pub struct RmsNorm {
    /// Multiplied with the normalised values, `[features]`.
    pub scale: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// The plain normalisation: scale 1.
    pub fn new(features: usize, dtype: DType) -> RmsNorm {
        let epsilon = if dtype == DType::Float64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
        RmsNorm { scale: Tensor::ones(&[features], dtype).track(), epsilon }
    }

    /// Any shape with `features` as the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.epsilon) * &self.scale
    }
}

impl Module for RmsNorm {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.scale.visit_in("scale", visit);
    }
}

/// One of the two normalisations.
pub enum Norm {
    /// By mean and variance.
    Layer(LayerNorm),
    /// By the root mean square.
    Rms(RmsNorm),
}

impl Norm {
    /// Any shape with `features` as the last axis.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Norm::Layer(norm) => norm.forward(x),
            Norm::Rms(norm) => norm.forward(x),
        }
    }

    /// As [`forward`](Norm::forward), without scale and shift.
    fn normalise(&self, x: &Tensor) -> Tensor {
        match self {
            Norm::Layer(_) => x.layer_norm(LAYER_NORM_EPSILON),
            Norm::Rms(norm) => x.rms_norm(norm.epsilon),
        }
    }

    fn scale(&self) -> &Tensor {
        match self {
            Norm::Layer(norm) => &norm.scale,
            Norm::Rms(norm) => &norm.scale,
        }
    }

    fn shift(&self) -> Option<&Tensor> {
        match self {
            Norm::Layer(norm) => Some(&norm.shift),
            Norm::Rms(_) => None,
        }
    }
}

impl Module for Norm {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        match self {
            Norm::Layer(norm) => norm.visit(visit),
            Norm::Rms(norm) => norm.visit(visit),
        }
    }
}

/// One learned vector per index.
pub struct Embedding {
    /// `[entries, features]`.
    pub weight: Tensor,
}

impl Embedding {
    /// Standard normal vectors.
    pub fn new(entries: usize, features: usize, dtype: DType) -> Embedding {
        Embedding { weight: random::normal(&[entries, features], 0.0, 1.0, dtype).track() }
    }

    /// `int64` `[rows]` to `[rows, features]`.
    pub fn forward(&self, indices: &Tensor) -> Tensor {
        self.weight.select(0, indices)
    }
}

impl Module for Embedding {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.weight.visit_in("weight", visit);
    }
}

/// A function of one number between two layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `a * sigmoid(a)`.
    Silu,
    /// The hyperbolic tangent.
    Tanh,
    /// `max(a, 0)`.
    Relu,
    /// `a / 2 * (1 + erf(a / sqrt 2))`.
    Gelu,
}

impl Activation {
    /// The function of each element.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Silu => x.silu(),
            Activation::Tanh => x.tanh(),
            Activation::Relu => x.clamp(0.0, f64::INFINITY),
            Activation::Gelu => x * ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5,
        }
    }
}

/// [`Linear`] layers with an activation after each.
pub struct Mlp {
    /// From the first to the last.
    pub layers: Vec<Linear>,
    /// After each layer.
    pub activation: Activation,
}

impl Mlp {
    /// Layers from each of `widths` to the next.
    pub fn new(widths: &[usize], bias: bool, activation: Activation, dtype: DType) -> Mlp {
        Mlp { layers: widths.windows(2).map(|pair| Linear::new(pair[0], pair[1], bias, dtype)).collect(), activation }
    }

    /// `[.., widths[0]]` to `[.., last width]`; rank 2 or more.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.layers.iter().fold(x.clone(), |x, layer| self.activation.apply(&layer.forward(&x)))
    }
}

impl Module for Mlp {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.layers.visit_in("layers", visit);
    }
}

/// An [`Mlp`] with its own weights for each species.
pub struct SpeciesMlp {
    /// From the first to the last.
    pub layers: Vec<SpeciesLinear>,
    /// After each layer.
    pub activation: Activation,
}

impl SpeciesMlp {
    /// Layers from each of `widths` to the next.
    pub fn new(species: usize, widths: &[usize], bias: bool, activation: Activation, dtype: DType) -> SpeciesMlp {
        SpeciesMlp {
            layers: widths.windows(2).map(|pair| SpeciesLinear::new(species, pair[0], pair[1], bias, dtype)).collect(),
            activation,
        }
    }

    /// `[rows, widths[0]]` to `[rows, last width]` with the weights of each row's species.
    pub fn forward(&self, x: &Tensor, species: &Tensor) -> Tensor {
        self.layers.iter().fold(x.clone(), |x, layer| self.activation.apply(&layer.forward(&x, species)))
    }

    /// `self.forward(norm.forward(x))`. Where there are more rows than outputs of all species, the norm's scale and shift are multiplied into the first
    /// layer, as in [`Linear::forward_normalised`].
    pub fn forward_normalised(&self, x: &Tensor, norm: &SpeciesLayerNorm, species: &Tensor) -> Tensor {
        let Some(first) = self.layers.first() else { return norm.forward(x, species) };
        let shape = first.weight.shape();
        if !pays_to_scale_weights(x.size(0), shape[0] * shape[2]) {
            return self.forward(&norm.forward(x, species), species);
        }
        self.after_first(&first.with_norm(norm), &x.layer_norm(LAYER_NORM_EPSILON), species)
    }

    /// What it makes of `x` with this layer in place of its first one.
    fn after_first(&self, first: &SpeciesLinear, x: &Tensor, species: &Tensor) -> Tensor {
        let layers = std::iter::once(first).chain(self.layers.iter().skip(1));
        layers.fold(x.clone(), |x, layer| self.activation.apply(&layer.forward(&x, species)))
    }
}

impl Module for SpeciesMlp {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.layers.visit_in("layers", visit);
    }
}
