//! `options.yaml`: what the user wants, in metatrain's grammar.
//!
//! Reading it is strict, as in metatrain: unknown keys are errors, an integer is accepted where a number is expected but
//! not the reverse, and a boolean is no integer. Every error names file, line and column, the path of keys, and the
//! nearest valid key. What the architecture wants (`architecture.model`, `architecture.training`) is not judged here, see
//! [`crate::hypers`].

mod dataset;
mod target;

pub use dataset::{DatasetOptions, IndicesOptions, SystemsOptions};
pub use target::{GradientOptions, SampleKind, SphericalIrrep, SphericalProduct, TargetOptions, TargetType};

use crate::errors::CliError;
use crate::yaml::{Field, Node, Section, Value};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// The largest atomic number, or type, that a dataset may use.
pub const MAX_ATOMIC_TYPE: u64 = 255;

/// The options of `kilnbox train`.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// Which architecture, and its hypers.
    pub architecture: ArchitectureOptions,
    /// The device that the user wants; the processor if there is none.
    pub device: Option<String>,
    /// The precision that the user wants, in bits; none leaves the choice to the architecture.
    pub base_precision: Option<u8>,
    /// The seed; none draws one.
    pub seed: Option<u64>,
    /// Whether to evaluate the exported model on all sets after training; on by default.
    pub final_eval: bool,
    /// Whether to print statistics of the datasets; none leaves it to their size.
    pub print_stats: Option<bool>,
    /// The datasets to train on; at least one.
    pub training_set: Vec<DatasetOptions>,
    /// Where the validation set comes from.
    pub validation_set: SplitOptions,
    /// Where the test set comes from; by default there is none.
    pub test_set: SplitOptions,
    /// What was read but should be written otherwise; for the log.
    pub warnings: Vec<String>,
}

/// The `architecture` section.
#[derive(Clone, Debug)]
pub struct ArchitectureOptions {
    /// The name, or the path of a component or of its folder.
    pub name: String,
    /// The atomic types that the model shall know; none takes those of the training and validation sets.
    pub atomic_types: Option<Vec<u8>>,
    /// The whole section, for merging the hypers with the defaults and for pointing at lines.
    pub node: Node,
}

/// Where a validation or test set comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum SplitOptions {
    /// A random part of each training dataset, at least 0 and below 1.
    Fraction(f64),
    /// Structures of the one training dataset, by number.
    Indices(IndicesOptions),
    /// Datasets of their own, as many as there are to train on.
    Datasets(Vec<DatasetOptions>),
}

/// The options of `kilnbox eval`.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The datasets to evaluate; one without targets is predicted, and not compared with anything.
    pub datasets: Vec<DatasetOptions>,
    /// What was read but should be written otherwise; for the log.
    pub warnings: Vec<String>,
}

impl TrainOptions {
    /// Reads the file at `path` and applies the overrides `key.sub=value` in order.
    ///
    /// # Errors
    ///
    /// One sentence with the place, for the first mistake that is found.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, CliError> {
        Self::from_node(with_overrides(Node::read(path)?, overrides)?)
    }

    /// Reads options from text; `file` is the name that messages show.
    ///
    /// # Errors
    ///
    /// See [`TrainOptions::read`].
    pub fn parse(text: &str, file: &str, overrides: &[String]) -> Result<Self, CliError> {
        Self::from_node(with_overrides(Node::parse(text, file)?, overrides)?)
    }

    fn from_node(node: Node) -> Result<Self, CliError> {
        const KEYS: [&str; 10] = [
            "architecture",
            "device",
            "base_precision",
            "seed",
            "final_eval",
            "print_stats",
            "wandb",
            "training_set",
            "validation_set",
            "test_set",
        ];
        let section = Section::new(&node, "")?;
        section.allow_only(&KEYS)?;
        if let Some(field) = section.get("wandb") {
            return Err(field
                .error("is not supported: kilnbox sends nothing anywhere")
                .hint("read `train.csv` instead"));
        }
        let mut warnings = Vec::new();
        let training_set = dataset::read_datasets(&section.require("training_set")?, true, &mut warnings)?;
        let mut split = |key: &str| match section.get(key) {
            Some(field) => read_split(&field, training_set.len(), &mut warnings),
            None => Ok(SplitOptions::Fraction(0.0)),
        };
        section.require("validation_set")?;
        let (validation_set, test_set) = (split("validation_set")?, split("test_set")?);
        check_fractions(&section, &validation_set, &test_set)?;
        let options = Self {
            architecture: ArchitectureOptions::read(&section.require("architecture")?)?,
            device: section.get("device").map(|field| read_device(&field)).transpose()?,
            base_precision: section.get("base_precision").map(|field| read_precision(&field)).transpose()?,
            seed: section.get("seed").map(|field| field.integer(u64::from(u32::MAX))).transpose()?,
            final_eval: section.get("final_eval").map_or(Ok(true), |field| field.boolean())?,
            print_stats: section.get("print_stats").map_or(Ok(None), |field| read_print_stats(&field))?,
            training_set,
            validation_set,
            test_set,
            warnings,
        };
        check_units_agree(&section, &options)?;
        Ok(options)
    }

    /// The options in full, with `hypers` (`{"model": ..., "training": ...}`) in place of the user's: what
    /// `options_restart.yaml` holds. Reading them back gives the same options.
    pub fn to_json(&self, hypers: &Json) -> Json {
        let mut architecture = Map::new();
        architecture.insert("name".to_owned(), json!(self.architecture.name));
        if let Some(types) = &self.architecture.atomic_types {
            architecture.insert("atomic_types".to_owned(), json!(types));
        }
        for part in ["model", "training"] {
            if let Some(part_hypers) = hypers.get(part) {
                architecture.insert(part.to_owned(), part_hypers.clone());
            }
        }
        let mut options = Map::new();
        options.insert("architecture".to_owned(), Json::Object(architecture));
        let mut insert = |key: &str, value: Option<Json>| {
            if let Some(value) = value {
                options.insert(key.to_owned(), value);
            }
        };
        insert("device", self.device.as_ref().map(|device| json!(device)));
        insert("base_precision", self.base_precision.map(|precision| json!(precision)));
        insert("seed", self.seed.map(|seed| json!(seed)));
        insert("final_eval", Some(json!(self.final_eval)));
        insert("print_stats", self.print_stats.map(|print| json!(print)));
        insert("training_set", Some(dataset::datasets_to_json(&self.training_set)));
        insert("validation_set", Some(self.validation_set.to_json()));
        insert("test_set", Some(self.test_set.to_json()));
        Json::Object(options)
    }

    /// [`TrainOptions::to_json`] as YAML text.
    ///
    /// # Errors
    ///
    /// When the options cannot be written as YAML, which would be our bug.
    pub fn to_yaml(&self, hypers: &Json) -> Result<String, CliError> {
        serde_saphyr::to_string(&self.to_json(hypers)).map_err(|error| {
            CliError::new(crate::errors::Blame::Kilnbox, "the options cannot be written as YAML").caused_by(&error)
        })
    }
}

impl EvalOptions {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// One sentence with the place, for the first mistake that is found.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        Self::from_node(&Node::read(path)?)
    }

    /// Reads options from text; `file` is the name that messages show.
    ///
    /// # Errors
    ///
    /// See [`EvalOptions::read`].
    pub fn parse(text: &str, file: &str) -> Result<Self, CliError> {
        Self::from_node(&Node::parse(text, file)?)
    }

    fn from_node(node: &Node) -> Result<Self, CliError> {
        let mut warnings = Vec::new();
        let datasets = dataset::read_datasets(&Field { path: String::new(), node }, false, &mut warnings)?;
        Ok(Self { datasets, warnings })
    }
}

impl ArchitectureOptions {
    fn read(field: &Field<'_>) -> Result<Self, CliError> {
        let section = field.section()?;
        section.allow_only(&["name", "atomic_types", "model", "training"])?;
        for part in ["model", "training"] {
            section.get(part).map(|field| field.section()).transpose()?;
        }
        let name_field = section.require("name")?;
        let name = name_field.text()?;
        if name.trim().is_empty() {
            return Err(name_field.error("is empty").hint("name an architecture, for example `soap-bpnn`"));
        }
        let atomic_types = section.get("atomic_types").map(|field| read_atomic_types(&field)).transpose()?;
        Ok(Self { name, atomic_types, node: field.node.clone() })
    }
}

impl SplitOptions {
    /// Whether the set is surely empty.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Fraction(fraction) if *fraction == 0.0)
    }

    fn to_json(&self) -> Json {
        match self {
            Self::Fraction(fraction) => json!(fraction),
            Self::Indices(indices) => json!({"indices": indices.to_json()}),
            Self::Datasets(datasets) => dataset::datasets_to_json(datasets),
        }
    }
}

fn with_overrides(mut node: Node, overrides: &[String]) -> Result<Node, CliError> {
    overrides.iter().try_for_each(|text| node.apply_override(text))?;
    Ok(node)
}

/// The devices as users write them, and as the engine names them. Metatrain's names come second; of several devices, one is used.
const DEVICES: [(&str, &str); 10] = [
    ("cpu", "cpu"),
    ("gpu", "gpu"),
    ("cuda", "cuda"),
    ("metal", "metal"),
    ("vulkan", "vulkan"),
    ("webgpu", "webgpu"),
    ("mps", "metal"),
    ("wgpu", "webgpu"),
    ("multi-gpu", "gpu"),
    ("multi-cuda", "cuda"),
];

fn read_device(field: &Field<'_>) -> Result<String, CliError> {
    let name = field.one_of(&DEVICES.map(|(name, _)| name))?;
    device(&name)
}

/// The engine's name of the device that a user names.
///
/// # Errors
///
/// There is no such device.
pub fn device(name: &str) -> Result<String, CliError> {
    if let Some((_, device)) = DEVICES.iter().find(|(known, _)| *known == name) {
        return Ok((*device).to_owned());
    }
    let names = || DEVICES.iter().map(|(name, _)| *name);
    let hint = match crate::errors::nearest(name, names()) {
        Some(near) => format!("use `{near}`"),
        None => format!("there are {}", names().take(6).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    };
    Err(CliError::input(format!("there is no device `{}`", crate::log::printable(name))).hint(hint))
}

fn read_precision(field: &Field<'_>) -> Result<u8, CliError> {
    match field.integer(64)? {
        16 => Ok(16),
        32 => Ok(32),
        64 => Ok(64),
        _ => Err(field.wrong("16, 32 or 64")),
    }
}

fn read_print_stats(field: &Field<'_>) -> Result<Option<bool>, CliError> {
    match (field.as_boolean(), &field.node.value) {
        (Some(print), _) => Ok(Some(print)),
        (None, Value::Text(text)) if text == "auto" => Ok(None),
        _ => Err(field.wrong("`true`, `false` or `auto`")),
    }
}

fn read_atomic_types(field: &Field<'_>) -> Result<Vec<u8>, CliError> {
    let mut types = Vec::new();
    for item in field.list()? {
        let atomic_type = u8::try_from(item.integer(MAX_ATOMIC_TYPE)?).map_err(|_| item.wrong("an atomic type"))?;
        if types.contains(&atomic_type) {
            return Err(item.error(format!("names type {atomic_type} for the second time")));
        }
        types.push(atomic_type);
    }
    if types.is_empty() {
        return Err(field.error("is an empty list").hint("leave the key out to take the types of the datasets"));
    }
    types.sort_unstable();
    Ok(types)
}

fn read_split(field: &Field<'_>, training_sets: usize, warnings: &mut Vec<String>) -> Result<SplitOptions, CliError> {
    if matches!(field.node.value, Value::Integer(_) | Value::Float(_)) {
        let fraction = field.number()?;
        if !(0.0..1.0).contains(&fraction) {
            return Err(field.wrong("a fraction of the training set, at least 0 and below 1"));
        }
        return Ok(SplitOptions::Fraction(fraction));
    }
    if let Some([entry]) = field.node.entries()
        && entry.key == "indices"
    {
        if training_sets != 1 {
            return Err(field
                .error(format!("picks structures by number, and there are {training_sets} training datasets"))
                .hint("give a list of datasets, one for each training dataset"));
        }
        let indices = field.section()?.require("indices")?;
        return Ok(SplitOptions::Indices(IndicesOptions::read(&indices)?));
    }
    let datasets = dataset::read_datasets(field, true, warnings)?;
    if datasets.len() != training_sets {
        return Err(field.error(format!(
            "has {} datasets and `training_set` has {training_sets}; every set needs as many",
            datasets.len()
        )));
    }
    Ok(SplitOptions::Datasets(datasets))
}

fn check_fractions(section: &Section<'_>, validation: &SplitOptions, test: &SplitOptions) -> Result<(), CliError> {
    if let (SplitOptions::Fraction(validation), SplitOptions::Fraction(test)) = (validation, test)
        && validation + test >= 1.0
    {
        let field = section.require("validation_set")?;
        return Err(field.error(format!(
            "and `test_set` together take {} of the structures, which leaves none to train on",
            validation + test
        )));
    }
    Ok(())
}

/// Units are labels of numbers that end up in one model, so they must agree wherever the same thing is meant.
fn check_units_agree(section: &Section<'_>, options: &TrainOptions) -> Result<(), CliError> {
    let mut all: Vec<(&str, &DatasetOptions)> =
        options.training_set.iter().map(|dataset| ("training_set", dataset)).collect();
    for (key, split) in [("validation_set", &options.validation_set), ("test_set", &options.test_set)] {
        if let SplitOptions::Datasets(datasets) = split {
            all.extend(datasets.iter().map(|dataset| (key, dataset)));
        }
    }
    let Some(((_, first), others)) = all.split_first() else { return Ok(()) };
    for (key, dataset) in others {
        let disagree = |what: &str, found: &str, expected: &str| -> Result<(), CliError> {
            let field = section.require(key)?;
            Err(field.error(format!("has {what} in `{found}`, and the first training dataset in `{expected}`")))
        };
        if dataset.systems.length_unit != first.systems.length_unit {
            return disagree("lengths", &dataset.systems.length_unit, &first.systems.length_unit);
        }
        for target in &dataset.targets {
            if let Some(same) = first.targets.iter().find(|other| other.name == target.name)
                && same.unit != target.unit
            {
                return disagree(&format!("target `{}`", target.name), &target.unit, &same.unit);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
