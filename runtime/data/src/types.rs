//! What is said of data, in metatensor's and metatomic's vocabulary; the same words as the contract's `data` interface.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::DataError;

/// What a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleKind {
    /// One value per system.
    System,
    /// One value per atom.
    Atom,
}

impl fmt::Display for SampleKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::System => "system",
            Self::Atom => "atom",
        })
    }
}

/// One irreducible representation of O(3) in a spherical target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The unit of its values, as the user wrote it; may be empty. Gradients have `unit / length_unit`.
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

/// A target with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedTarget {
    /// Such as `energy`, `energy/pbe` or `mtt::dipole`.
    pub name: String,
    /// What it is.
    pub info: TargetInfo,
}

/// What is known of all data of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// The unit of positions and cells, as the user wrote it; may be empty.
    pub length_unit: String,
    /// The atomic numbers that occur, sorted, each once.
    pub atomic_types: Vec<i32>,
    /// What is to be learned.
    pub targets: Vec<NamedTarget>,
    /// Further named data.
    pub extra_data: Vec<NamedTarget>,
}

impl DatasetInfo {
    /// What is known of several sets together: all types, all targets, the gradients that any of them has.
    ///
    /// # Errors
    /// Two sets disagree on a unit, or on what a target is.
    pub fn merge(parts: &[&Self]) -> Result<Self, DataError> {
        let mut merged = Self {
            length_unit: parts.first().map(|part| part.length_unit.clone()).unwrap_or_default(),
            atomic_types: Vec::new(),
            targets: Vec::new(),
            extra_data: Vec::new(),
        };
        for part in parts {
            if part.length_unit != merged.length_unit {
                return Err(DataError::new(format!(
                    "the sets have different length units, `{}` and `{}`",
                    merged.length_unit, part.length_unit
                ))
                .with_hint("give all sets the same `length_unit`, and convert the data of those that differ"));
            }
            merged.atomic_types.extend(&part.atomic_types);
            merge_targets(&mut merged.targets, &part.targets)?;
            merge_targets(&mut merged.extra_data, &part.extra_data)?;
        }
        merged.atomic_types.sort_unstable();
        merged.atomic_types.dedup();
        Ok(merged)
    }
}

fn merge_targets(merged: &mut Vec<NamedTarget>, more: &[NamedTarget]) -> Result<(), DataError> {
    for target in more {
        let Some(known) = merged.iter_mut().find(|known| known.name == target.name) else {
            merged.push(target.clone());
            continue;
        };
        let plain =
            |info: &TargetInfo| TargetInfo { gradients: Vec::new(), description: String::new(), ..info.clone() };
        if known.info.unit != target.info.unit {
            return Err(DataError::new(format!(
                "the target `{}` has the unit `{}` in one set and `{}` in another",
                target.name, known.info.unit, target.info.unit
            ))
            .with_hint("give it the same unit everywhere, and convert the values of the sets that differ"));
        }
        if plain(&known.info) != plain(&target.info) {
            return Err(DataError::new(format!("the target `{}` is described differently in two sets", target.name))
                .with_hint("give it the same `quantity`, `type`, `sample_kind` and `num_subtargets` in every set"));
        }
        for gradient in &target.info.gradients {
            if !known.info.gradients.contains(gradient) {
                known.info.gradients.push(gradient.clone());
            }
        }
    }
    Ok(())
}

/// A request for a neighbour list.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NeighborListOptions {
    /// The cutoff in the length unit of the data; positive and finite.
    pub cutoff: f64,
    /// Whether each pair is listed in both directions.
    pub full_list: bool,
    /// Whether pairs at exactly the cutoff are left out.
    pub strict: bool,
}

/// A set of distinct tuples of integers, with a name for each of their dimensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// The names of the dimensions.
    pub names: Vec<String>,
    /// The entries, row-major.
    pub values: Vec<i32>,
}

impl Labels {
    /// Labels with these names and entries.
    pub fn new(names: &[&str], values: Vec<i32>) -> Self {
        Self { names: names.iter().map(|&name| name.to_owned()).collect(), values }
    }

    /// `0 .. count` in one dimension.
    pub fn range(name: &str, count: usize) -> Self {
        Self::new(&[name], (0..count as i32).collect())
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.values.len() / self.names.len().max(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// A gradient of a block.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientBlock {
    /// With respect to what: `positions` or `strain`.
    pub parameter: String,
    /// `[samples, .. own components, .. components of the block, properties]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f64>,
    /// `sample` and, for positions, `system`, `atom`.
    pub samples: Labels,
    /// Own axes first.
    pub components: Vec<Labels>,
}

/// Values with a name for every row, component and property.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorBlock {
    /// `[samples, .. components, properties]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f64>,
    /// `system`, or `system`, `atom`.
    pub samples: Labels,
    /// One for each axis between the first and the last.
    pub components: Vec<Labels>,
    /// One entry for each property.
    pub properties: Labels,
    /// Explicit gradients.
    pub gradients: Vec<GradientBlock>,
}

/// Blocks by key.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorMap {
    /// One entry for each block.
    pub keys: Labels,
    /// In the order of the keys.
    pub blocks: Vec<TensorBlock>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(types: &[i32], unit: &str, gradients: &[&str]) -> DatasetInfo {
        DatasetInfo {
            length_unit: "angstrom".into(),
            atomic_types: types.to_vec(),
            targets: vec![NamedTarget {
                name: "energy".into(),
                info: TargetInfo {
                    quantity: "energy".into(),
                    unit: unit.into(),
                    description: String::new(),
                    sample_kind: SampleKind::System,
                    target_type: TargetType::Scalar,
                    num_subtargets: 1,
                    gradients: gradients.iter().map(|&name| name.to_owned()).collect(),
                },
            }],
            extra_data: Vec::new(),
        }
    }

    #[test]
    fn sets_are_merged_or_told_apart() {
        let merged = DatasetInfo::merge(&[&info(&[1, 8], "eV", &[]), &info(&[1, 6], "eV", &["positions"])]).unwrap();
        assert_eq!(merged, info(&[1, 6, 8], "eV", &["positions"]));
        let error = DatasetInfo::merge(&[&info(&[1], "eV", &[]), &info(&[1], "meV", &[])]).unwrap_err();
        assert_eq!(error.to_string(), "the target `energy` has the unit `eV` in one set and `meV` in another");
    }
}
