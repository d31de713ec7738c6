//! The layers: attention among the tokens of an atom, and feed-forward networks.
//!
//! An atom has one token for itself and one for each of its edges. Tokens are the rows of one matrix, those of the atoms first and those of the edges below them;
//! nothing is padded, whatever the number of neighbours.

use std::cell::RefCell;

use kilnbox_sdk::info::DType;
use kilnbox_sdk::layers::{AfterNorm, Embedding, LayerNorm, Linear, Module, Norm, RmsNorm, Visit, is_constant};
use kilnbox_sdk::tensor::{Segments, Tensor};

use crate::edges::Edges;
use crate::hypers::{FeedForwardActivation, Hypers, Normalization, TransformerType};

/// Attention weights of edges at the cutoff are no smaller, so that their logarithms are finite.
const SMALLEST_WEIGHT: f64 = 1e-15;

/// Which tokens attend to one another, and how much each one counts.
pub struct Tokens {
    atoms: usize,
    edges: usize,
    /// The atom of each token.
    segments: Segments,
    /// The logarithm of each token's weight, `[atoms + edges]`: 0 for atoms, and that of the cut-off for edges.
    bias: Tensor,
}

impl Tokens {
    /// The tokens of `atoms` atoms and their edges.
    pub fn new(atoms: usize, edges: &Edges) -> Tokens {
        let weights = edges.cutoff.clamp(SMALLEST_WEIGHT, f64::INFINITY).log();
        let own = Tensor::zeros(&[atoms], weights.dtype());
        let indices = Tensor::concatenate(&[&Tensor::arange(atoms), &edges.centers], 0);
        Tokens {
            atoms,
            edges: weights.size(0),
            segments: Segments { indices, count: atoms },
            bias: Tensor::concatenate(&[&own, &weights], 0),
        }
    }

    fn split(&self, tokens: &Tensor) -> (Tensor, Tensor) {
        (tokens.slice(0, 0..self.atoms), tokens.slice(0, self.atoms..self.atoms + self.edges))
    }
}

/// A linear layer, an activation and another linear layer.
pub struct FeedForward {
    input: Linear,
    output: Linear,
    activation: FeedForwardActivation,
    after_norm: AfterNorm,
}

impl FeedForward {
    /// From `[inputs, hidden, outputs]`.
    pub fn new([inputs, hidden, outputs]: [usize; 3], activation: FeedForwardActivation, dtype: DType) -> FeedForward {
        // A gated unit has as many gates as values.
        let width = if activation == FeedForwardActivation::Gated { 2 * hidden } else { hidden };
        FeedForward {
            input: Linear::new(inputs, width, true, dtype),
            output: Linear::new(hidden, outputs, true, dtype),
            activation,
            after_norm: AfterNorm::default(),
        }
    }

    /// As [`new`](FeedForward::new), with an output that is 0 until something is learned.
    pub fn silent(sizes: [usize; 3], activation: FeedForwardActivation, dtype: DType) -> FeedForward {
        let mut network = FeedForward::new(sizes, activation, dtype);
        network.output.visit(&mut |_, parameter| *parameter = Tensor::zeros(&parameter.shape(), dtype).track());
        network
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.after_input(&self.input.forward(x))
    }

    /// `self.forward(norm.forward(x))`, always with the same norm.
    pub fn forward_normalised(&self, x: &Tensor, norm: &Norm) -> Tensor {
        self.after_input(&self.after_norm.forward(&self.input, norm, x))
    }

    fn after_input(&self, x: &Tensor) -> Tensor {
        self.output.forward(&match self.activation {
            FeedForwardActivation::Gated => x.gated_linear_unit(),
            FeedForwardActivation::Silu => x.silu(),
        })
    }
}

impl Module for FeedForward {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.after_norm.forget();
        self.input.visit_in("w_in", visit);
        self.output.visit_in("w_out", visit);
    }
}

struct Attention {
    /// Queries, keys and values, side by side.
    input: Linear,
    output: Linear,
    heads: usize,
    scale: f64,
    after_norm: AfterNorm,
}

impl Attention {
    fn new(hypers: &Hypers, dtype: DType) -> Attention {
        let width = hypers.d_pet / hypers.num_heads;
        Attention {
            input: Linear::new(hypers.d_pet, 3 * hypers.d_pet, true, dtype),
            output: Linear::new(hypers.d_pet, hypers.d_pet, true, dtype),
            heads: hypers.num_heads,
            scale: 1.0 / ((width as f64).sqrt() * hypers.attention_temperature),
            after_norm: AfterNorm::default(),
        }
    }

    /// Each token to what its atom's tokens tell it.
    fn forward(&self, x: &Tensor, tokens: &Tokens) -> Tensor {
        self.after_input(&self.input.forward(x), tokens)
    }

    /// `self.forward(norm.forward(x))`, always with the same norm.
    fn forward_normalised(&self, x: &Tensor, norm: &Norm, tokens: &Tokens) -> Tensor {
        self.after_input(&self.after_norm.forward(&self.input, norm, x), tokens)
    }

    fn after_input(&self, packed: &Tensor, tokens: &Tokens) -> Tensor {
        let width = packed.size(1) / 3;
        let part = |k: usize| packed.slice(1, k * width..(k + 1) * width);
        let mixed = part(0).attention(&part(1), &part(2), &tokens.bias, &tokens.segments, self.heads, self.scale);
        self.output.forward(&mixed)
    }
}

impl Module for Attention {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.after_norm.forget();
        self.input.visit_in("input_linear", visit);
        self.output.visit_in("output_linear", visit);
    }
}

/// Between what is known of an atom and its token, where they differ in size.
struct Center {
    contraction: Linear,
    expansion: Linear,
    norm: Norm,
    feed_forward: FeedForward,
}

impl Center {
    fn new(hypers: &Hypers, dtype: DType) -> Center {
        let (node, token) = (hypers.d_node, hypers.d_pet);
        Center {
            contraction: Linear::new(node, token, true, dtype),
            expansion: Linear::new(token, node, true, dtype),
            norm: new_norm(hypers.normalization, node, dtype),
            feed_forward: FeedForward::new([node, 2 * node, node], hypers.activation, dtype),
        }
    }

    /// What is known of the atoms after their tokens have changed.
    fn update(&self, nodes: &Tensor, tokens: &Tensor) -> Tensor {
        let nodes = nodes + self.expansion.forward(tokens);
        &nodes + self.feed_forward.forward_normalised(&nodes, &self.norm)
    }
}

impl Module for Center {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.contraction.visit_in("center_contraction", visit);
        self.expansion.visit_in("center_expansion", visit);
        self.norm.visit_in("norm_center_features", visit);
        self.feed_forward.visit_in("center_mlp", visit);
    }
}

/// One layer of a transformer.
struct TransformerLayer {
    attention: Attention,
    norm_attention: Norm,
    norm_feed_forward: Norm,
    feed_forward: FeedForward,
    /// None if atoms are their tokens.
    center: Option<Center>,
    transformer_type: TransformerType,
}

fn new_norm(normalization: Normalization, features: usize, dtype: DType) -> Norm {
    match normalization {
        Normalization::Rms => Norm::Rms(RmsNorm::new(features, dtype)),
        Normalization::Layer => Norm::Layer(LayerNorm::new(features, dtype)),
    }
}

impl TransformerLayer {
    fn new(hypers: &Hypers, dtype: DType) -> TransformerLayer {
        let norm = || new_norm(hypers.normalization, hypers.d_pet, dtype);
        let sizes = [hypers.d_pet, hypers.d_feedforward, hypers.d_pet];
        TransformerLayer {
            attention: Attention::new(hypers, dtype),
            norm_attention: norm(),
            norm_feed_forward: norm(),
            feed_forward: FeedForward::new(sizes, hypers.activation, dtype),
            center: (hypers.d_node != hypers.d_pet).then(|| Center::new(hypers, dtype)),
            transformer_type: hypers.transformer_type,
        }
    }

    /// What is known of atoms, `[atoms, d_node]`, and the tokens of edges, `[edges, d_pet]`, after this layer.
    fn forward(&self, nodes: &Tensor, edges: &Tensor, tokens: &Tokens) -> (Tensor, Tensor) {
        let centers = match &self.center {
            Some(center) => center.contraction.forward(nodes),
            None => nodes.clone(),
        };
        let x = Tensor::concatenate(&[&centers, edges], 0);
        let (centers, edges) = match self.transformer_type {
            TransformerType::Before => {
                let told = self.attention.forward_normalised(&x, &self.norm_attention, tokens);
                let (centers, told) = tokens.split(&told);
                let edges = edges + told;
                let update = self.feed_forward.forward_normalised(&edges, &self.norm_feed_forward);
                (centers, edges + update)
            }
            TransformerType::After => {
                let told = self.attention.forward(&x, tokens);
                let x = self.norm_attention.forward(&(x + told));
                let x = self.norm_feed_forward.forward(&(&x + self.feed_forward.forward(&x)));
                tokens.split(&x)
            }
        };
        match &self.center {
            Some(center) => (center.update(nodes, &centers), edges),
            // As metatrain has it: an atom that is its token keeps nothing of what it was.
            None => (centers, edges),
        }
    }
}

impl Module for TransformerLayer {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.attention.visit_in("attention", visit);
        self.norm_attention.visit_in("norm_attention", visit);
        self.norm_feed_forward.visit_in("norm_mlp", visit);
        self.feed_forward.visit_in("mlp", visit);
        if let Some(center) = &mut self.center {
            center.visit(visit);
        }
    }
}

/// A transformer over the edges of each atom, and what makes tokens of them.
pub struct GnnLayer {
    edge_embedder: Linear,
    /// Of neighbours' species; none in the first layer, whose messages say no more than that.
    neighbor_embedder: Option<Embedding>,
    compress: FeedForward,
    layers: Vec<TransformerLayer>,
    /// Kept while it is constant.
    of_weights: RefCell<Option<OfWeights>>,
}

/// What `compress` makes of what embeds an edge, before there are edges.
struct OfWeights {
    /// Of each of the four numbers of its geometry.
    geometry: Tensor,
    /// Of each species of its neighbour, biases included.
    species: Tensor,
    /// Of each number of its message, in layers that have some.
    message: Option<Tensor>,
    is_constant: bool,
}

impl GnnLayer {
    /// The layer at `position`, for so many species.
    pub fn new(hypers: &Hypers, position: usize, species: usize, dtype: DType) -> GnnLayer {
        let size = hypers.d_pet;
        let parts = if position == 0 { 2 } else { 3 };
        GnnLayer {
            edge_embedder: Linear::new(4, size, true, dtype),
            neighbor_embedder: (position > 0).then(|| Embedding::new(species, size, dtype)),
            compress: FeedForward::new([parts * size, size, size], FeedForwardActivation::Silu, dtype),
            layers: (0..hypers.num_attention_layers).map(|_| TransformerLayer::new(hypers, dtype)).collect(),
            of_weights: RefCell::default(),
        }
    }

    /// What is known of atoms, and messages, `[edges, d_pet]`, after this layer. Before the first one there are no `messages` but what `species` says of neighbours.
    pub fn forward(
        &self,
        nodes: &Tensor,
        messages: Option<&Tensor>,
        species: &Embedding,
        edges: &Edges,
        tokens: &Tokens,
    ) -> (Tensor, Tensor) {
        let start = self.tokens_of_edges(messages, self.neighbor_embedder.as_ref().unwrap_or(species), edges);
        self.layers.iter().fold((nodes.clone(), start), |(nodes, edges), layer| layer.forward(&nodes, &edges, tokens))
    }

    /// `compress` of what is known of each edge: its embedded geometry, what is said of the neighbour's species, and its message, side by side. They are not put there: geometry has
    /// four numbers and there are few species, so what embeds them is multiplied with the weights first, and what is left for each edge is a product with its message.
    fn tokens_of_edges(&self, messages: Option<&Tensor>, species: &Embedding, edges: &Edges) -> Tensor {
        let mut kept = self.of_weights.borrow_mut();
        let of_weights = kept.get_or_insert_with(|| self.of_weights(species, messages.is_some()));
        let known =
            edges.geometry.linear(&of_weights.geometry, None) + of_weights.species.select(0, &edges.neighbor_species);
        let tokens = self.compress.after_input(&match messages.zip(of_weights.message.as_ref()) {
            Some((messages, weight)) => known + messages.linear(weight, None),
            None => known,
        });
        if !of_weights.is_constant {
            *kept = None;
        }
        tokens
    }

    fn of_weights(&self, species: &Embedding, has_messages: bool) -> OfWeights {
        let Linear { weight, bias } = &self.compress.input;
        let size = weight.size(1);
        let part = |position: usize| weight.slice(0, position * size..(position + 1) * size);
        let of_geometry = part(0);
        let bias = match &self.edge_embedder.bias {
            Some(shift) => Some(shift.reshape(&[1, size]).linear(&of_geometry, bias.as_ref()).reshape(&[size])),
            None => bias.clone(),
        };
        let geometry = self.edge_embedder.weight.linear(&of_geometry, None);
        let species = species.weight.linear(&part(1), bias.as_ref());
        let message = has_messages.then(|| part(2));
        let is_constant = is_constant([&geometry, &species].into_iter().chain(&message));
        OfWeights { geometry, species, message, is_constant }
    }
}

impl Module for GnnLayer {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.of_weights.take();
        self.edge_embedder.visit_in("edge_embedder", visit);
        if let Some(embedder) = &mut self.neighbor_embedder {
            embedder.visit_in("neighbor_embedder", visit);
        }
        self.compress.visit_in("compress", visit);
        self.layers.visit_in("layers", visit);
    }
}
