//! The network.
//!
//! For each atom `i` and each angular momentum `l`, the neighbours' density is expanded in radial functions and spherical harmonics,
//! `c_i^l[m, q] = sum_j f_c(r_ij) R_nl(r_ij) Y_lm(r_ij) s_a(j)` with channels `q = (n, a)`. The power spectrum
//! `p_i^l[q, q'] = sum_m c_i^l[m, q] c_i^l[m, q']` does not change when the system turns. A layer norm and a multilayer perceptron make
//! features of it, and one last layer for each target its values.
//!
//! `legacy: true`: `s_a(j)` says whether `j` is of species `a`, and every species of the *centre* has a network of its own. `legacy: false`: `s` and
//! a factor for the power spectrum are learned vectors of the two species, and one network serves all.
//!
//! Parameters (`G` networks: the number of species, or 1; `D` power spectrum entries; `H` neurons; `P` properties):
//! `norm.scale` and `norm.shift` `[G, D]`; `hidden.layers.K.weight` `[G, D or H, H]`; `heads.TARGET.layers.0.weight` `[G, H, H]` where the
//! head is `mlp`; `last_layers.TARGET.weight` `[G, H, P]`; and without `legacy` `neighbor_embedding.weight` `[species, 4]` and
//! `center_embedding.weight` `[species, D]`. In metatrain's checkpoints the same are `layernorm`, `bpnn`, `heads` and `last_layers` with one
//! `module_list.K` per species and transposed matrices. The order of the power spectrum is the same: by `l`, then `q`, then `q'`, with `n` before `a`.

use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;

use kilnbox_sdk::data::{Neighbors, Systems};
use kilnbox_sdk::info::{
    DType, DatasetInfo, ModelOutput, NamedTarget, NeighborListOptions, TargetType, last_layer_features,
};
use kilnbox_sdk::layers::{
    Activation, AfterNorm, Embedding, Module, SpeciesLayerNorm, SpeciesLinear, SpeciesMlp, Visit,
};
use kilnbox_sdk::network::Network;
use kilnbox_sdk::tensor::Tensor;
use kilnbox_sdk::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::radial::RadialBasis;

/// The number of learned channels that stand for a neighbour's species without `legacy`.
const LEARNED_CHANNELS: usize = 4;
/// How many times the width of the cut-off fits into its radius at most: the radial table has as many intervals, and more.
const MOST_WIDTHS: f64 = 1000.0;
/// The largest power spectrum, in entries for each atom: beyond it, memory would run out in the first step.
const LARGEST_POWER_SPECTRUM: usize = 10_000_000;

/// The `model` section of the options.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Hypers {
    soap: SoapHypers,
    legacy: bool,
    bpnn: BpnnHypers,
    #[serde(default)]
    add_lambda_basis: bool,
    #[serde(default)]
    heads: BTreeMap<String, Head>,
    #[serde(default)]
    zbl: bool,
    #[serde(default)]
    long_range: LongRangeHypers,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct SoapHypers {
    max_angular: usize,
    max_radial: usize,
    cutoff: CutoffHypers,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct CutoffHypers {
    radius: f64,
    width: f64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct BpnnHypers {
    num_hidden_layers: usize,
    num_neurons_per_layer: usize,
    layernorm: bool,
}

/// What stands between a target's features and its last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Head {
    Linear,
    Mlp,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct LongRangeHypers {
    enable: bool,
}

impl Hypers {
    fn check(&self) -> Result<()> {
        let CutoffHypers { radius, width } = self.soap.cutoff;
        let problem = if !(radius > 0.0 && radius.is_finite()) {
            format!("`model.soap.cutoff.radius` is {radius}, expected a positive number")
        } else if !(0.0..=radius).contains(&width) {
            format!("`model.soap.cutoff.width` is {width}, expected 0 to the radius, {radius}")
        } else if width > 0.0 && radius / width > MOST_WIDTHS {
            format!("`model.soap.cutoff.width` is {width}, expected 0 or at least {}", radius / MOST_WIDTHS)
        } else if self.soap.max_angular > 16 {
            format!("`model.soap.max_angular` is {}, expected at most 16", self.soap.max_angular)
        } else if self.soap.max_radial > 100 {
            format!("`model.soap.max_radial` is {}, expected at most 100", self.soap.max_radial)
        } else if self.bpnn.num_hidden_layers > 0 && self.bpnn.num_neurons_per_layer == 0 {
            "`model.bpnn.num_neurons_per_layer` is 0, expected at least 1".to_owned()
        } else if self.zbl {
            "`model.zbl: true` is not supported by this version; set it to `false`".to_owned()
        } else if self.long_range.enable {
            "`model.long_range.enable: true` is not supported by this version; set it to `false`".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::InvalidHypers(problem))
    }
}

/// SOAP-BPNN.
pub struct SoapBpnn {
    atomic_types: Vec<i32>,
    cutoff: f64,
    radial: RadialTable,
    /// What [`atoms_of_rows`](SoapBpnn::atoms_of_rows) said last, and for how many atoms: batches of one size, which are most, share it.
    atoms_of_rows: RefCell<(usize, Vec<Tensor>)>,
    /// Learned channels for species; none with `legacy`.
    embeddings: Option<Embeddings>,
    norm: Option<SpeciesLayerNorm>,
    hidden: SpeciesMlp,
    hidden_after_norm: AfterNorm<SpeciesLinear>,
    heads: BTreeMap<String, SpeciesMlp>,
    last_layers: BTreeMap<String, SpeciesLinear>,
}

struct Embeddings {
    /// `[species, LEARNED_CHANNELS]`.
    neighbor: Embedding,
    /// `[species, D]`.
    center: Embedding,
}

/// The radial basis on the device. It is no parameter: it follows from the hypers.
struct RadialTable {
    counts: Vec<usize>,
    lower: f64,
    upper: f64,
    coefficients: Tensor,
}

impl RadialTable {
    fn new(soap: &SoapHypers, dtype: DType) -> RadialTable {
        let basis = RadialBasis::new(soap.max_angular, soap.max_radial, soap.cutoff.radius, soap.cutoff.width);
        let coefficients = Tensor::from_vec_f64(&basis.shape(), basis.coefficients, dtype);
        RadialTable { counts: basis.counts, lower: basis.lower, upper: basis.upper, coefficients }
    }

    /// Entries of the power spectrum with so many channels for species.
    fn power_spectrum_size(&self, channels: usize) -> usize {
        self.counts.iter().map(|count| (count * channels).pow(2)).sum()
    }
}

impl Module for SoapBpnn {
    fn visit(&mut self, visit: &mut Visit<'_>) {
        if let Some(embeddings) = &mut self.embeddings {
            embeddings.neighbor.visit_in("neighbor_embedding", visit);
            embeddings.center.visit_in("center_embedding", visit);
        }
        self.hidden_after_norm.forget();
        self.norm.visit_in("norm", visit);
        self.hidden.visit_in("hidden", visit);
        self.heads.visit_in("heads", visit);
        self.last_layers.visit_in("last_layers", visit);
    }
}

impl Network for SoapBpnn {
    type Hypers = Hypers;

    fn new(hypers: &Hypers, info: &DatasetInfo, dtype: DType) -> Result<SoapBpnn> {
        hypers.check()?;
        let species = info.atomic_types.len();
        let networks = if hypers.legacy { species } else { 1 };
        let radial = RadialTable::new(&hypers.soap, dtype);
        let size = radial.power_spectrum_size(if hypers.legacy { species } else { LEARNED_CHANNELS });
        if size > LARGEST_POWER_SPECTRUM {
            return Err(Error::UnsupportedDataset(format!(
                "with {species} species each atom would have {size} power spectrum entries, more than {LARGEST_POWER_SPECTRUM}; \
                 set `model.legacy: false`, whose size does not grow with the species"
            )));
        }
        let embeddings = (!hypers.legacy).then(|| Embeddings {
            neighbor: Embedding::new(species, LEARNED_CHANNELS, dtype),
            center: Embedding::new(species, size, dtype),
        });
        let mut widths = vec![size];
        widths.resize(hypers.bpnn.num_hidden_layers + 1, hypers.bpnn.num_neurons_per_layer);
        let mut network = SoapBpnn {
            atomic_types: info.atomic_types.clone(),
            cutoff: hypers.soap.cutoff.radius,
            radial,
            atoms_of_rows: RefCell::default(),
            embeddings,
            norm: hypers.bpnn.layernorm.then(|| SpeciesLayerNorm::new(networks, size, dtype)),
            hidden: SpeciesMlp::new(networks, &widths, false, Activation::Silu, dtype),
            hidden_after_norm: AfterNorm::default(),
            heads: BTreeMap::new(),
            last_layers: BTreeMap::new(),
        };
        network.add_targets(hypers, &info.targets, dtype)?;
        Ok(network)
    }

    fn add_targets(&mut self, hypers: &Hypers, targets: &[NamedTarget], dtype: DType) -> Result<()> {
        let networks = self.hidden.layers.first().map_or_else(|| self.networks(), |layer| layer.weight.size(0));
        for NamedTarget { name, info } in targets {
            if info.target_type != TargetType::Scalar {
                return Err(Error::UnsupportedTarget(format!(
                    "`{name}` is a {}, and this version of SOAP-BPNN learns scalars only",
                    match info.target_type {
                        TargetType::Cartesian(_) => "Cartesian tensor",
                        _ => "spherical tensor",
                    }
                )));
            }
            let width = self.feature_size();
            if hypers.heads.get(name) == Some(&Head::Mlp) {
                let head = SpeciesMlp::new(networks, &[width, width], false, Activation::Silu, dtype);
                self.heads.insert(name.clone(), head);
            }
            let last = SpeciesLinear::new(networks, width, info.num_subtargets as usize, false, dtype);
            self.last_layers.insert(name.clone(), last);
        }
        Ok(())
    }

    fn neighbor_lists(&self) -> Vec<NeighborListOptions> {
        vec![NeighborListOptions { cutoff: self.cutoff, full_list: true, strict: true }]
    }

    fn interaction_range(&self) -> f64 {
        self.cutoff
    }

    fn auxiliary_outputs(&self) -> Vec<ModelOutput> {
        let features = ModelOutput::auxiliary("feature", "What the hidden layers make of each atom's surroundings.");
        let last = self
            .last_layers
            .keys()
            .map(|target| ModelOutput::auxiliary(last_layer_features(target), "What the last layer sees."));
        std::iter::once(features).chain(last).collect()
    }

    fn forward(&self, systems: Systems<'_>, outputs: &[&str]) -> Result<Vec<Vec<Tensor>>> {
        let species = systems.type_indices(&self.atomic_types)?;
        let order = Order::of(&species, None);
        self.forward_in_order(systems, outputs, &species, &order)
    }

    fn forward_selected(&self, systems: Systems<'_>, outputs: &[&str], atoms: &Tensor) -> Result<Vec<Vec<Tensor>>> {
        let species = systems.type_indices(&self.atomic_types)?;
        let order = Order::of(&species, Some(&atoms.to_vec_i64()));
        self.forward_in_order(systems, outputs, &species, &order)
    }
}

impl SoapBpnn {
    /// The outputs for the atoms of `order`; `species` are those of all atoms.
    fn forward_in_order(
        &self,
        systems: Systems<'_>,
        outputs: &[&str],
        all_species: &Tensor,
        order: &Order,
    ) -> Result<Vec<Vec<Tensor>>> {
        let species = order.sorted(all_species);
        // Which network serves each atom.
        let networks =
            if self.embeddings.is_some() { Tensor::zeros(&[species.size(0)], DType::Int64) } else { species.clone() };
        let mut x = self.sorted_power_spectrum(systems, order)?;
        if let Some(embeddings) = &self.embeddings {
            x = x * embeddings.center.forward(&species);
        }
        let features = match &self.norm {
            Some(norm) => self.hidden_after_norm.forward(&self.hidden, norm, &x, &networks),
            None => self.hidden.forward(&x, &networks),
        };
        let after_head = |target: &str| match self.heads.get(target) {
            Some(head) => head.forward(&features, &networks),
            None => features.clone(),
        };
        let output = |&name: &&str| {
            let values = match self.last_layers.get(name) {
                Some(last) => last.forward(&after_head(name), &networks),
                None if name == "feature" => self.in_columns_of_networks(&features, &networks),
                None => {
                    let target = self.last_layers.keys().find(|target| last_layer_features(target) == name);
                    let values = target.map_or_else(|| features.clone(), |target| after_head(target));
                    self.in_columns_of_networks(&values, &networks)
                }
            };
            vec![order.restored(&values)]
        };
        Ok(outputs.iter().map(output).collect())
    }
}

/// The atoms of a batch by species, and in the order of each species as they come: rows that share weights then lie side by side, and no kernel has to
/// bring wide rows together.
struct Order {
    /// The species of every atom.
    species: Vec<i64>,
    /// The atom at each sorted place.
    atoms: Tensor,
    /// The sorted place of each atom that has one, in the order in which they were given.
    places: Tensor,
    /// The number of sorted places.
    count: usize,
    /// The sorted place of every atom, or `count` if it has none.
    all_places: Vec<usize>,
}

/// The pairs that begin with an atom that has a place in an [`Order`]: by that place, and those of one atom by the species of the other one.
struct SortedPairs {
    /// `[pairs, 3]`.
    vectors: Tensor,
    /// The place of the first atom, times the number of species, plus the species of the second one.
    keys: Vec<i64>,
}

impl Order {
    /// All atoms of these species, or some.
    fn of(species: &Tensor, selected: Option<&[i64]>) -> Order {
        let species = species.to_vec_i64();
        let given: Vec<i64> = selected.map_or_else(|| (0..species.len() as i64).collect(), <[i64]>::to_vec);
        let mut atoms = given.clone();
        atoms.sort_by_key(|&atom| species[atom as usize]);
        let count = atoms.len();
        let mut all_places = vec![count; species.len()];
        for (place, &atom) in atoms.iter().enumerate() {
            all_places[atom as usize] = place;
        }
        let places = given.iter().map(|&atom| all_places[atom as usize] as i64).collect();
        Order { species, atoms: row(atoms), places: row(places), count, all_places }
    }

    /// Rows of atoms, sorted.
    fn sorted(&self, rows: &Tensor) -> Tensor {
        rows.select(0, &self.atoms)
    }

    /// Sorted rows, in the order in which their atoms were given.
    fn restored(&self, rows: &Tensor) -> Tensor {
        rows.select(0, &self.places)
    }

    /// The pairs of a neighbour list whose first atoms have a place, sorted; there are `species_count` species.
    fn pairs(&self, neighbors: &Neighbors, species_count: usize) -> SortedPairs {
        let (first, second) = (neighbors.first.to_vec_i64(), neighbors.second.to_vec_i64());
        let key_of = |(&first, &second): (&i64, &i64)| {
            self.all_places[first as usize] * species_count + self.species[second as usize] as usize
        };
        let keys_of_pairs: Vec<usize> = first.iter().zip(&second).map(key_of).collect();
        // Counting sort: where the pairs of each key begin, and then each pair in its turn. Those without a place come last.
        let mut starts = vec![0; (self.count + 1) * species_count + 1];
        keys_of_pairs.iter().for_each(|key| starts[key + 1] += 1);
        (1..starts.len()).for_each(|key| starts[key] += starts[key - 1]);
        let with_a_place = starts[self.count * species_count];
        let (mut keys, mut pairs) = (vec![0; first.len()], vec![0; first.len()]);
        for (pair, key) in (0..).zip(keys_of_pairs) {
            let place = starts[key];
            starts[key] += 1;
            (keys[place], pairs[place]) = (key as i64, pair);
        }
        keys.truncate(with_a_place);
        pairs.truncate(with_a_place);
        SortedPairs { vectors: neighbors.vectors.select(0, &row(pairs)), keys }
    }
}

/// As a tensor of one axis.
fn row(values: Vec<i64>) -> Tensor {
    Tensor::from_vec_i64(&[values.len()], values)
}

/// How the species of a pair's second atom enters the density.
enum Channels {
    /// Each species is a channel. The place of the first atom and the species of the second one, as one number.
    Species(Tensor),
    /// Learned factors.
    Learned {
        /// The radial functions times the factors, `[pairs, functions * LEARNED_CHANNELS]`.
        right: Tensor,
        /// The place of the first atom.
        centers: Tensor,
    },
}

impl SoapBpnn {
    /// The atomic numbers it knows, sorted.
    pub fn atomic_types(&self) -> &[i32] {
        &self.atomic_types
    }

    fn networks(&self) -> usize {
        if self.embeddings.is_some() { 1 } else { self.atomic_types.len() }
    }

    /// The width of what the hidden layers put out.
    fn feature_size(&self) -> usize {
        match self.hidden.layers.last() {
            Some(layer) => layer.weight.size(2),
            None => self.radial.power_spectrum_size(if self.embeddings.is_some() {
                LEARNED_CHANNELS
            } else {
                self.atomic_types.len()
            }),
        }
    }

    /// The power spectrum of each atom, `[atoms, D]`, before the centre's embedding; `species` are positions in the atomic types.
    ///
    /// # Errors
    /// When the host cannot make the neighbour list.
    pub fn power_spectrum(&self, systems: Systems<'_>, species: &Tensor) -> Result<Tensor> {
        let order = Order::of(species, None);
        Ok(order.restored(&self.sorted_power_spectrum(systems, &order)?))
    }

    /// As [`power_spectrum`](SoapBpnn::power_spectrum), of the atoms of `order` as they are sorted.
    fn sorted_power_spectrum(&self, systems: Systems<'_>, order: &Order) -> Result<Tensor> {
        let atoms = order.count;
        let species_count = self.atomic_types.len();
        let SortedPairs { vectors, keys } = order.pairs(&systems.neighbors(self.neighbor_lists()[0])?, species_count);
        let distances = (&vectors * &vectors).sum(&[1]).sqrt();
        let RadialTable { counts, lower, upper, coefficients } = &self.radial;
        let radial = distances.piecewise_polynomial(coefficients, *lower, *upper);
        let angular = vectors.solid_harmonics(counts.len() - 1);
        let neighbors = self.channels_of_neighbors(&radial, keys);
        let atoms_of_rows = self.atoms_of_rows(atoms);
        let mut spectra = Vec::with_capacity(counts.len());
        let mut start = 0;
        for (l, (&count, atoms_of_rows)) in counts.iter().zip(&*atoms_of_rows).enumerate() {
            let left = angular.slice(1, l * l..(l + 1) * (l + 1));
            let (density, width) = match &neighbors {
                Channels::Species(segments) => {
                    // The density of each species by itself, then side by side: where a channel is a species, a pair adds to one of them only.
                    let right = radial.slice(1, start..start + count);
                    let density = Tensor::outer_sum(&left, &right, segments, atoms * species_count);
                    let density = density.reshape(&[atoms, species_count, 2 * l + 1, count]).permute(&[0, 2, 3, 1]);
                    (density, count * species_count)
                }
                Channels::Learned { right, centers } => {
                    let right = right.slice(1, start * LEARNED_CHANNELS..(start + count) * LEARNED_CHANNELS);
                    (Tensor::outer_sum(&left, &right, centers, atoms), count * LEARNED_CHANNELS)
                }
            };
            let density = density.reshape(&[atoms * (2 * l + 1), width]);
            spectra.push(Tensor::outer_sum(&density, &density, atoms_of_rows, atoms).reshape(&[atoms, width * width]));
            start += count;
        }
        Ok(Tensor::concatenate(&spectra.iter().collect::<Vec<_>>(), 1))
    }

    /// What the species of its second atom makes of a pair's radial functions.
    fn channels_of_neighbors(&self, radial: &Tensor, keys: Vec<i64>) -> Channels {
        let species_count = self.atomic_types.len() as i64;
        let Some(embeddings) = &self.embeddings else {
            return Channels::Species(row(keys));
        };
        let species = row(keys.iter().map(|key| key % species_count).collect());
        let centers = row(keys.iter().map(|key| key / species_count).collect());
        let (pairs, functions) = (radial.size(0), radial.size(1));
        let channels = embeddings.neighbor.forward(&species).reshape(&[pairs, 1, LEARNED_CHANNELS]);
        let right = (radial.reshape(&[pairs, functions, 1]) * channels).reshape(&[pairs, functions * LEARNED_CHANNELS]);
        Channels::Learned { right, centers }
    }

    /// For each `l` the atom of each row of a density, which has `2 l + 1` rows for each atom.
    fn atoms_of_rows(&self, atoms: usize) -> Ref<'_, [Tensor]> {
        let mut kept = self.atoms_of_rows.borrow_mut();
        if kept.0 != atoms {
            let of = |l: usize| {
                let rows = (0..atoms as i64).flat_map(|atom| std::iter::repeat_n(atom, 2 * l + 1));
                Tensor::from_vec_i64(&[atoms * (2 * l + 1)], rows.collect())
            };
            *kept = (atoms, (0..self.radial.counts.len()).map(of).collect());
        }
        drop(kept);
        Ref::map(self.atoms_of_rows.borrow(), |kept| kept.1.as_slice())
    }

    /// Features of different networks are different quantities: each network has its own columns, with zeros for the other networks' atoms.
    fn in_columns_of_networks(&self, features: &Tensor, networks: &Tensor) -> Tensor {
        let count = self.networks();
        if count == 1 {
            return features.clone();
        }
        let (atoms, width) = (features.size(0), features.size(1));
        let identity = (0..count * count).map(|entry| if entry % (count + 1) == 0 { 1.0 } else { 0.0 });
        let identity = Tensor::from_vec_f64(&[count, count], identity.collect(), features.dtype());
        let chosen = identity.select(0, networks).reshape(&[atoms, count, 1]);
        (features.reshape(&[atoms, 1, width]) * chosen).reshape(&[atoms, count * width])
    }
}
