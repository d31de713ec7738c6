//! The network (Pozdnyakov and Ceriotti 2023, as in metatrain).
//!
//! Every atom `i` has features `h_i`, and every edge `i -> j` a message `m_ij`; both begin as learned vectors of a species. In each GNN layer a transformer
//! ([`GnnLayer`]) lets the tokens of an atom's edges, made of message and geometry, attend to one another and to the atom; then the messages of both directions of
//! an edge meet. A node head reads the atoms and an edge head the edges, which are summed up with the cut-off.
//!
//! Vectors enter with their Cartesian components, so the network is not invariant under rotation: it learns to be, from rotated structures.
//!
//! Parameters (`G` GNN layer, `L` attention layer, `R` read-out, `B` block of a target; `[inputs, outputs]` where metatrain's are transposed):
//! `node_embedders.R.weight`, `edge_embedder.weight`; `gnn_layers.G.{edge_embedder, neighbor_embedder, compress.{w_in, w_out}}`;
//! `gnn_layers.G.layers.L.{attention.{input_linear, output_linear}, norm_attention, norm_mlp, mlp.{w_in, w_out}, center_contraction, center_expansion,
//! norm_center_features, center_mlp.{w_in, w_out}}`; `combination_norms.G`, `combination_mlps.G.{w_in, w_out}`; `system_conditioning.{charge, spin_multiplicity,
//! project.{w_in, w_out}}`; for each target `{node, edge}_heads.TARGET.R.layers.{0, 1}` and `{node, edge}_last_layers.TARGET.R.B`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use kilnbox_sdk::augmentation::Augmentation;
use kilnbox_sdk::data::Systems;
use kilnbox_sdk::info::{
    DType, DatasetInfo, Labels, Layout, ModelOutput, NamedTarget, NeighborListOptions, last_layer_features,
};
use kilnbox_sdk::layers::{Activation, Embedding, LayerNorm, Linear, Mlp, Module, Norm, Visit};
use kilnbox_sdk::network::Network;
use kilnbox_sdk::tensor::Tensor;
use kilnbox_sdk::{Error, Result};

use crate::edges::{self, Edges};
pub use crate::hypers::Hypers;
use crate::hypers::{FeaturizerType, FeedForwardActivation};
use crate::transformer::{FeedForward, GnnLayer, Tokens};

/// PET.
pub struct Pet {
    atomic_types: Vec<i32>,
    hypers: Hypers,
    /// One, or one for each read-out.
    node_embedders: Vec<Embedding>,
    edge_embedder: Embedding,
    gnn_layers: Vec<GnnLayer>,
    /// How messages of both directions meet after each layer; none where they are averaged.
    combinations: Vec<Combination>,
    conditioning: Option<SystemConditioning>,
    targets: BTreeMap<String, Target>,
}

/// How a target is read out.
struct Target {
    /// The components and properties of each block.
    block_shapes: Vec<Vec<usize>>,
    /// For each read-out, of atoms.
    nodes: Vec<Readout>,
    /// For each read-out, of edges.
    edges: Vec<Readout>,
}

/// Features of atoms, `[atoms, d_node]`, and messages, `[edges, d_pet]`, that are read out.
type Features = Vec<(Tensor, Tensor)>;

struct Combination {
    norm: Norm,
    feed_forward: FeedForward,
}

/// A head, and a last layer for each block of the target.
struct Readout {
    head: Mlp,
    last_layers: Vec<Linear>,
}

impl Readout {
    fn new(inputs: usize, size: usize, block_shapes: &[Vec<usize>], dtype: DType) -> Readout {
        let last_layer = |shape: &Vec<usize>| Linear::new(size, shape.iter().product(), true, dtype);
        Readout {
            head: Mlp::new(&[inputs, size, size], true, Activation::Silu, dtype),
            last_layers: block_shapes.iter().map(last_layer).collect(),
        }
    }
}

impl Module for Pet {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.node_embedders.visit_in("node_embedders", visit);
        self.edge_embedder.visit_in("edge_embedder", visit);
        self.gnn_layers.visit_in("gnn_layers", visit);
        for (position, combination) in self.combinations.iter_mut().enumerate() {
            combination.norm.visit_in(&format!("combination_norms.{position}"), visit);
            combination.feed_forward.visit_in(&format!("combination_mlps.{position}"), visit);
        }
        self.conditioning.visit_in("system_conditioning", visit);
        for (name, target) in &mut self.targets {
            for (what, readouts) in [("node", &mut target.nodes), ("edge", &mut target.edges)] {
                for (position, readout) in readouts.iter_mut().enumerate() {
                    readout.head.visit_in(&format!("{what}_heads.{name}.{position}"), visit);
                    readout.last_layers.visit_in(&format!("{what}_last_layers.{name}.{position}"), visit);
                }
            }
        }
    }
}

impl Network for Pet {
    type Hypers = Hypers;

    const AUGMENTATION: Augmentation = Augmentation::RotationsAndInversions;

    fn new(hypers: &Hypers, info: &DatasetInfo, dtype: DType) -> Result<Pet> {
        hypers.check()?;
        let species = info.atomic_types.len();
        let size = hypers.d_pet;
        let combination = || Combination {
            norm: Norm::Layer(LayerNorm::new(2 * size, dtype)),
            feed_forward: FeedForward::new([2 * size, 2 * size, size], FeedForwardActivation::Silu, dtype),
        };
        let combinations = match hypers.featurizer_type {
            FeaturizerType::Feedforward => hypers.num_gnn_layers,
            FeaturizerType::Residual => 0,
        };
        let mut network = Pet {
            atomic_types: info.atomic_types.clone(),
            node_embedders: (0..hypers.readouts()).map(|_| Embedding::new(species, hypers.d_node, dtype)).collect(),
            edge_embedder: Embedding::new(species, size, dtype),
            gnn_layers: (0..hypers.num_gnn_layers).map(|layer| GnnLayer::new(hypers, layer, species, dtype)).collect(),
            combinations: (0..combinations).map(|_| combination()).collect(),
            conditioning: hypers.system_conditioning.then(|| SystemConditioning::new(hypers, dtype)),
            targets: BTreeMap::new(),
            hypers: hypers.clone(),
        };
        network.add_targets(hypers, &info.targets, dtype)?;
        Ok(network)
    }

    fn add_targets(&mut self, hypers: &Hypers, targets: &[NamedTarget], dtype: DType) -> Result<()> {
        for NamedTarget { name, info } in targets {
            let layout = Layout::of(name, info);
            let shape = |components: &Vec<Labels>| {
                components.iter().chain([&layout.properties]).map(Labels::len).collect::<Vec<usize>>()
            };
            let block_shapes: Vec<Vec<usize>> = layout.components.iter().map(shape).collect();
            let readouts = |inputs| {
                (0..hypers.readouts()).map(|_| Readout::new(inputs, hypers.d_head, &block_shapes, dtype)).collect()
            };
            let (nodes, edges) = (readouts(hypers.d_node), readouts(hypers.d_pet));
            self.targets.insert(name.clone(), Target { block_shapes, nodes, edges });
        }
        Ok(())
    }

    fn neighbor_lists(&self) -> Vec<NeighborListOptions> {
        vec![edges::neighbor_list(&self.hypers)]
    }

    fn requested_inputs(&self) -> Vec<String> {
        self.conditioning.iter().flat_map(|_| [CHARGE, SPIN_MULTIPLICITY]).map(str::to_owned).collect()
    }

    fn interaction_range(&self) -> f64 {
        // Each layer brings in the neighbours of neighbours. What edges are told last comes from the other atom as well, which has seen as far from where it is; and where the radius of
        // a pair follows from the number of neighbours of both atoms, those of the last pair count too. (metatrain says the first of the three.)
        let told_back = self.hypers.featurizer_type == FeaturizerType::Feedforward;
        let adaptive = self.hypers.num_neighbors_adaptive.is_some();
        let layers = self.hypers.num_gnn_layers + usize::from(told_back) + usize::from(adaptive);
        self.hypers.cutoff * layers as f64
    }

    fn auxiliary_outputs(&self) -> Vec<ModelOutput> {
        let features = ModelOutput::auxiliary("feature", "What is known of each atom and, summed up, of its edges.");
        let last = self
            .targets
            .keys()
            .map(|target| ModelOutput::auxiliary(last_layer_features(target), "What the last layers see."));
        std::iter::once(features).chain(last).collect()
    }

    fn forward(&self, systems: Systems<'_>, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>> {
        let species = systems.type_indices(&self.atomic_types)?;
        let edges = Edges::new(systems, &species, &self.hypers)?;
        let features = self.features(systems, &species, &edges)?;
        let mut heads = BTreeMap::new();
        let values = outputs.iter().map(|&output| {
            let asked = |name: &str| name == output || last_layer_features(name) == output;
            let Some((name, target)) = self.targets.iter().find(|(name, _)| asked(name)) else {
                let (nodes, messages): (Vec<Tensor>, Vec<Tensor>) = features.iter().cloned().unzip();
                let sums = messages.iter().map(|messages| edges.sums(messages, species.size(0)));
                return vec![side_by_side(nodes.into_iter().chain(sums))];
            };
            let heads = heads.entry(name).or_insert_with(|| target.heads(&features));
            if name == output {
                target.values(heads, &edges)
            } else {
                let parts = heads.iter().flat_map(|(nodes, edge)| [nodes.clone(), edges.sums(edge, nodes.size(0))]);
                vec![side_by_side(parts)]
            }
        });
        Ok(values.collect())
    }
}

fn side_by_side(parts: impl Iterator<Item = Tensor>) -> Tensor {
    let parts: Vec<Tensor> = parts.collect();
    Tensor::concatenate(&parts.iter().collect::<Vec<_>>(), 1)
}

impl Pet {
    /// What is known of atoms and edges after each layer that is read out.
    fn features(&self, systems: Systems<'_>, species: &Tensor, edges: &Edges) -> Result<Features> {
        let condition = match &self.conditioning {
            Some(conditioning) => Some(conditioning.forward(systems)?),
            None => None,
        };
        let tokens = Tokens::new(species.size(0), edges);
        let mut nodes = self.node_embedders[0].forward(species);
        let mut messages = self.edge_embedder.forward(&edges.neighbor_species);
        let mut readouts = Vec::new();
        for (position, layer) in self.gnn_layers.iter().enumerate() {
            if self.hypers.featurizer_type == FeaturizerType::Residual {
                nodes = self.node_embedders[position].forward(species);
            }
            let told_before = (position > 0).then_some(&messages);
            let (told_nodes, told) = layer.forward(&nodes, told_before, &self.edge_embedder, edges, &tokens);
            nodes = match &condition {
                Some(condition) => told_nodes + condition,
                None => told_nodes,
            };
            let reverse = told.select(0, &edges.reverse);
            match self.combinations.get(position) {
                Some(combination) => {
                    let both = Tensor::concatenate(&[&told, &reverse], 1);
                    let combined = combination.feed_forward.forward_normalised(&both, &combination.norm);
                    messages = messages + told + combined;
                }
                None => {
                    messages = (messages + reverse) * 0.5;
                    readouts.push((nodes.clone(), told));
                }
            }
        }
        if self.hypers.featurizer_type == FeaturizerType::Feedforward {
            readouts.push((nodes, messages));
        }
        Ok(readouts)
    }
}

impl Target {
    /// What the last layers see of atoms and of edges, for each read-out.
    fn heads(&self, features: &Features) -> Features {
        let heads = self.nodes.iter().zip(&self.edges).zip(features);
        heads.map(|((node, edge), (nodes, messages))| (node.head.forward(nodes), edge.head.forward(messages))).collect()
    }

    /// The values of each block, `[atoms, .. components, properties]`.
    fn values(&self, heads: &Features, edges: &Edges) -> Vec<Tensor> {
        let block = |(block, shape): (usize, &Vec<usize>)| {
            let readouts = self.nodes.iter().zip(&self.edges).zip(heads);
            let parts = readouts.map(|((node, edge), (nodes, messages))| {
                let own = node.last_layers[block].forward(nodes);
                let atoms = own.size(0);
                own + edges.sums(&edge.last_layers[block].forward(messages), atoms)
            });
            let sum = parts.reduce(|sum, part| sum + part).unwrap_or_else(|| unreachable!("there is a read-out"));
            let shape: Vec<usize> = std::iter::once(sum.size(0)).chain(shape.iter().copied()).collect();
            sum.reshape(&shape)
        };
        self.block_shapes.iter().enumerate().map(block).collect()
    }
}

/// The charge and the spin multiplicity of a system, which all its atoms see.
struct SystemConditioning {
    charge: Embedding,
    spin_multiplicity: Embedding,
    project: FeedForward,
    largest_charge: usize,
    largest_spin_multiplicity: usize,
}

impl SystemConditioning {
    fn new(hypers: &Hypers, dtype: DType) -> SystemConditioning {
        let size = hypers.d_node;
        SystemConditioning {
            charge: Embedding::new(2 * hypers.max_charge + 1, size, dtype),
            spin_multiplicity: Embedding::new(hypers.max_spin_multiplicity, size, dtype),
            // It is silent at first: the network learns without it, and it joins in.
            project: FeedForward::silent([2 * size, size, size], FeedForwardActivation::Silu, dtype),
            largest_charge: hypers.max_charge,
            largest_spin_multiplicity: hypers.max_spin_multiplicity,
        }
    }

    /// What is added to the features of each atom, `[atoms, d_node]`.
    fn forward(&self, systems: Systems<'_>) -> Result<Tensor> {
        let largest = self.largest_charge as i64;
        let charges = whole_numbers(systems, CHARGE, 0, -largest..=largest)?;
        let spins = whole_numbers(systems, SPIN_MULTIPLICITY, 1, 1..=self.largest_spin_multiplicity as i64)?;
        let row = |values: Vec<i64>| Tensor::from_vec_i64(&[values.len()], values);
        let charges = self.charge.forward(&row(charges.iter().map(|charge| charge + largest).collect()));
        let spins = self.spin_multiplicity.forward(&row(spins.iter().map(|spin| spin - 1).collect()));
        let condition = self.project.forward(&Tensor::concatenate(&[&charges, &spins], 1));
        Ok(condition.select(0, &systems.system_indices()))
    }
}

impl Module for SystemConditioning {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        self.charge.visit_in("charge", visit);
        self.spin_multiplicity.visit_in("spin_multiplicity", visit);
        self.project.visit_in("project", visit);
    }
}

const CHARGE: &str = "charge";
const SPIN_MULTIPLICITY: &str = "spin_multiplicity";

/// A whole number of each system, `missing` where the data has none.
fn whole_numbers(systems: Systems<'_>, name: &str, missing: i64, range: RangeInclusive<i64>) -> Result<Vec<i64>> {
    let Ok(map) = systems.data(name) else { return Ok(vec![missing; systems.count()]) };
    let values = map.blocks.first().map(|block| block.values.to_vec_f64()).unwrap_or_default();
    if values.len() != systems.count() {
        return Err(Error::UnsupportedDataset(format!(
            "`{name}` has {} values for {} systems, expected one for each",
            values.len(),
            systems.count()
        )));
    }
    let whole = |value: f64| {
        let number = value as i64;
        let fits = number as f64 == value && range.contains(&number);
        if value.is_nan() {
            return Ok(missing);
        }
        fits.then_some(number).ok_or_else(|| {
            Error::UnsupportedDataset(format!(
                "`{name}` of a system is {value}, expected a whole number from {} to {}; raise `model.max_{name}` for more",
                range.start(),
                range.end()
            ))
        })
    };
    values.into_iter().map(whole).collect()
}
