//! What is said of data, models and architectures: plain values in metatomic's vocabulary.

use serde::{Deserialize, Serialize};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision.
    Float32,
    /// IEEE 754 double precision.
    Float64,
    /// 32-bit signed integers.
    Int32,
    /// 64-bit signed integers: the dtype of every index.
    Int64,
    /// True and false.
    Boolean,
}

/// What a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleKind {
    /// One value per system.
    System,
    /// One value per atom.
    Atom,
}

/// One irreducible representation of O(3) in a spherical target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Irrep {
    /// The degree; there are `2 * lambda + 1` components.
    pub lambda: u32,
    /// 1 for proper, -1 for pseudo-tensors.
    pub sigma: i32,
}

/// How a target turns with the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetType {
    /// It does not.
    Scalar,
    /// A Cartesian tensor of this rank.
    Cartesian(u32),
    /// Spherical components, one block per irrep.
    Spherical(Vec<Irrep>),
}

/// What is known of a target before any value is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// The physical quantity, such as `energy`; may be empty.
    pub quantity: String,
    /// The unit of its values; may be empty. Gradients have `unit / length_unit`.
    pub unit: String,
    /// For people.
    pub description: String,
    /// What a value belongs to.
    pub sample_kind: SampleKind,
    /// How it turns.
    pub target_type: TargetType,
    /// The number of properties of each block.
    pub num_subtargets: u32,
    /// Which gradients the data has: `positions` (minus the forces), `strain` (stress times volume, or minus the virial).
    pub gradients: Vec<String>,
}

impl TargetInfo {
    /// Whether it is one number per system, and so may have gradients.
    pub fn is_one_number_per_system(&self) -> bool {
        self.sample_kind == SampleKind::System && self.target_type == TargetType::Scalar && self.num_subtargets == 1
    }

    /// Whether its gradients are called forces and virial.
    pub fn is_energy(&self) -> bool {
        self.quantity == "energy"
    }
}

/// A target with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTarget {
    /// Such as `energy`, `energy/pbe` or `mtt::dipole`.
    pub name: String,
    /// What it is.
    pub info: TargetInfo,
}

impl NamedTarget {
    /// The output that predicts it.
    pub fn output(&self) -> ModelOutput {
        ModelOutput {
            name: self.name.clone(),
            quantity: self.info.quantity.clone(),
            unit: self.info.unit.clone(),
            sample_kind: self.info.sample_kind,
            description: self.info.description.clone(),
        }
    }
}

/// What is known of all data of a run before any system is seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// The unit of positions and cells; may be empty.
    pub length_unit: String,
    /// The atomic numbers that occur, sorted, each once.
    pub atomic_types: Vec<i32>,
    /// What is to be learned.
    pub targets: Vec<NamedTarget>,
    /// Further named data, inputs among them.
    pub extra_data: Vec<NamedTarget>,
}

impl DatasetInfo {
    /// The target of this name.
    pub fn target(&self, name: &str) -> Option<&TargetInfo> {
        self.targets.iter().find(|target| target.name == name).map(|target| &target.info)
    }
}

/// A request for a neighbour list.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NeighborListOptions {
    /// The cutoff in the length unit of the data; positive and finite.
    pub cutoff: f64,
    /// Whether each pair is listed in both directions.
    pub full_list: bool,
    /// Whether pairs at or beyond the cutoff are left out.
    pub strict: bool,
}

/// An output that a model can compute, or that is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOutput {
    /// The name: a target's, `feature`, `mtt::aux::...`.
    pub name: String,
    /// The physical quantity; may be empty.
    pub quantity: String,
    /// The unit; may be empty.
    pub unit: String,
    /// Per system or per atom.
    pub sample_kind: SampleKind,
    /// For people.
    pub description: String,
}

impl ModelOutput {
    /// An output of atoms that is no target, and so has neither quantity nor unit: `feature`, say.
    pub fn auxiliary(name: impl Into<String>, description: &str) -> ModelOutput {
        ModelOutput {
            name: name.into(),
            quantity: String::new(),
            unit: String::new(),
            sample_kind: SampleKind::Atom,
            description: description.to_owned(),
        }
    }
}

/// The name of the output with what a target's last layers see: that of `energy` is `mtt::aux::energy_last_layer_features`.
pub fn last_layer_features(target: &str) -> String {
    format!("mtt::aux::{}_last_layer_features", target.strip_prefix("mtt::").unwrap_or(target))
}

/// What an exported model can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What it computes.
    pub outputs: Vec<ModelOutput>,
    /// The atomic numbers it knows, sorted.
    pub atomic_types: Vec<i32>,
    /// How far away an atom can matter, in the length unit; infinity if there is no bound.
    pub interaction_range: f64,
    /// The unit of lengths.
    pub length_unit: String,
    /// The dtype of its weights.
    pub dtype: DType,
}

/// A set of distinct tuples of integers with a name for each of their dimensions: metatensor's labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// The names of the dimensions, such as `system`, `atom`.
    pub names: Vec<String>,
    /// The entries, row-major.
    pub values: Vec<i32>,
}

impl Labels {
    /// Labels of these dimensions.
    pub fn new(names: &[&str], values: Vec<i32>) -> Labels {
        Labels { names: names.iter().map(|&name| name.to_owned()).collect(), values }
    }

    /// `0 .. count` in one dimension.
    pub fn range(name: &str, count: usize) -> Labels {
        Labels::new(&[name], (0..count as i32).collect())
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.values.len() / self.names.len().max(1)
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The entries, one slice each.
    pub fn entries(&self) -> impl Iterator<Item = &[i32]> {
        self.values.chunks_exact(self.names.len().max(1))
    }
}

/// How the blocks of a target are laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// One entry per block.
    pub keys: Labels,
    /// The components of each block.
    pub components: Vec<Vec<Labels>>,
    /// The properties of every block.
    pub properties: Labels,
}

impl Layout {
    /// The blocks that `info` says the target called `name` has.
    pub fn of(name: &str, info: &TargetInfo) -> Layout {
        let property = name.rsplit("::").next().unwrap_or(name).split('/').next().unwrap_or(name);
        let properties = Labels::range(property, info.num_subtargets as usize);
        let one_block = |components| Layout {
            keys: Labels::new(&["_"], vec![0]),
            components: vec![components],
            properties: properties.clone(),
        };
        match &info.target_type {
            TargetType::Scalar => one_block(Vec::new()),
            TargetType::Cartesian(1) => one_block(vec![Labels::range("xyz", 3)]),
            TargetType::Cartesian(rank) => {
                one_block((1..=*rank).map(|axis| Labels::range(&format!("xyz_{axis}"), 3)).collect())
            }
            TargetType::Spherical(irreps) => Layout {
                keys: Labels::new(
                    &["o3_lambda", "o3_sigma"],
                    irreps.iter().flat_map(|irrep| [irrep.lambda as i32, irrep.sigma]).collect(),
                ),
                components: irreps
                    .iter()
                    .map(|irrep| {
                        vec![Labels::new(&["o3_mu"], (-(irrep.lambda as i32)..=irrep.lambda as i32).collect())]
                    })
                    .collect(),
                properties,
            },
        }
    }

    /// One block without components: features, say.
    pub fn features(count: usize) -> Layout {
        Layout {
            keys: Labels::new(&["_"], vec![0]),
            components: vec![Vec::new()],
            properties: Labels::range("feature", count),
        }
    }

    /// Whether the values of a block do not turn with the system, so that a composition can have them.
    pub fn is_invariant(&self, block: usize) -> bool {
        match self.keys.names.len() {
            1 => self.components[block].is_empty(),
            _ => self.keys.values[2 * block] == 0 && self.keys.values[2 * block + 1] == 1,
        }
    }
}

/// Works to cite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// For the architecture.
    pub architecture: Vec<String>,
    /// For this implementation.
    pub implementation: Vec<String>,
}

/// The transformations of space under which predictions turn with the system exactly, by construction and not because it was learned: an energy stays
/// the same, forces turn. Each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Equivariance {
    /// Translations only, as for a network that sees Cartesian components.
    Translations,
    /// Rotations as well.
    Rotations,
    /// Rotations and reflections as well, as for a network that sees distances and angles.
    RotationsAndReflections,
}

/// What an architecture says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Who wrote it, as `Name <address>`.
    pub authors: Vec<String>,
    /// Who looks after it.
    pub maintainers: Vec<String>,
    /// What to cite.
    pub references: References,
    /// Devices it runs on, best first: `cpu`, `cuda`, `vulkan`, `metal`.
    pub supported_devices: Vec<String>,
    /// Floating-point dtypes it runs in, best first.
    pub supported_dtypes: Vec<DType>,
    /// What its models do when a system is turned, whatever their weights.
    pub equivariance: Equivariance,
}

impl About {
    /// The authors as Cargo gives them to a crate: `About::authors(env!("CARGO_PKG_AUTHORS"))`.
    pub fn authors(cargo: &str) -> Vec<String> {
        cargo.split(':').filter(|author| !author.is_empty()).map(str::to_owned).collect()
    }
}

/// What a checkpoint is loaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// To continue the run: the latest weights, the optimizer and the epoch.
    Restart,
    /// To start another run from it: the best weights, nothing else.
    Finetune,
    /// To evaluate it: the best weights.
    Export,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(target_type: TargetType) -> TargetInfo {
        TargetInfo {
            quantity: String::new(),
            unit: String::new(),
            description: String::new(),
            sample_kind: SampleKind::System,
            target_type,
            num_subtargets: 2,
            gradients: Vec::new(),
        }
    }

    #[test]
    fn a_spherical_target_has_one_block_per_irrep() {
        let irreps = vec![Irrep { lambda: 0, sigma: 1 }, Irrep { lambda: 2, sigma: 1 }, Irrep { lambda: 0, sigma: -1 }];
        let layout = Layout::of("mtt::quadrupole", &info(TargetType::Spherical(irreps)));
        assert_eq!(layout.keys.len(), 3);
        assert_eq!(layout.components[1][0].values, [-2, -1, 0, 1, 2]);
        assert_eq!(layout.properties, Labels::range("quadrupole", 2));
        assert_eq!([0, 1, 2].map(|block| layout.is_invariant(block)), [true, false, false]);
    }

    #[test]
    fn a_scalar_has_no_components_and_a_vector_has_xyz() {
        let scalar = Layout::of("energy/pbe", &info(TargetType::Scalar));
        assert!(scalar.components[0].is_empty() && scalar.is_invariant(0));
        assert_eq!(scalar.properties.names, ["energy"]);
        let vector = Layout::of("mtt::dipole", &info(TargetType::Cartesian(1)));
        assert_eq!(vector.components[0], [Labels::range("xyz", 3)]);
        assert!(!vector.is_invariant(0));
    }
}
