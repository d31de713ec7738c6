//! Dataset blocks: systems, targets, extra data and indices.

use super::target::{TargetOptions, read_targets};
use crate::errors::CliError;
use crate::yaml::{Field, MAX_BYTES, Value};
use serde_json::{Map, Value as Json, json};
use std::path::{Path, PathBuf};

/// The largest file of indices, in bytes: ten million of them.
const MAX_INDICES_BYTES: u64 = 1 << 27;

/// One dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetOptions {
    /// Where the structures are.
    pub systems: SystemsOptions,
    /// What the model shall learn, or be compared with.
    pub targets: Vec<TargetOptions>,
    /// Further quantities, for losses and conditioning.
    pub extra_data: Vec<TargetOptions>,
    /// Which structures of the file to use; none takes all.
    pub indices: Option<IndicesOptions>,
}

/// Where the structures of a dataset are.
#[derive(Clone, Debug, PartialEq)]
pub struct SystemsOptions {
    /// The file, relative to the working directory.
    pub read_from: PathBuf,
    /// The reader; none goes by the file's suffix.
    pub reader: Option<String>,
    /// The unit of positions and cells; empty when the user names none.
    pub length_unit: String,
}

/// Numbers of structures, counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub enum IndicesOptions {
    /// Given in the options.
    List(Vec<usize>),
    /// In a text file, separated by white space; `#` starts a comment.
    File(PathBuf),
}

impl IndicesOptions {
    pub(super) fn read(field: &Field<'_>) -> Result<Self, CliError> {
        match &field.node.value {
            Value::Text(_) => Ok(Self::File(read_path(field)?)),
            Value::List(_) => {
                let items = field.list()?;
                let numbers = items.iter().map(|item| {
                    item.integer(MAX_BYTES * MAX_BYTES)
                        .and_then(|number| usize::try_from(number).map_err(|_| item.wrong("an index")))
                });
                Ok(Self::List(numbers.collect::<Result<_, _>>()?))
            }
            _ => Err(field.wrong("a list of integers or the path of a text file")),
        }
    }

    /// The numbers, read from the file where they are in one. Order and repetitions are kept.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or holds anything but numbers; the error names the line.
    pub fn load(&self) -> Result<Vec<usize>, CliError> {
        match self {
            Self::List(numbers) => Ok(numbers.clone()),
            Self::File(path) => parse_indices(&crate::yaml::read_text(path, MAX_INDICES_BYTES)?, path),
        }
    }

    pub(super) fn to_json(&self) -> Json {
        match self {
            Self::List(numbers) => json!(numbers),
            Self::File(path) => json!(path.display().to_string()),
        }
    }
}

fn parse_indices(text: &str, path: &Path) -> Result<Vec<usize>, CliError> {
    let mut numbers = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.split('#').next().unwrap_or_default();
        for word in content.split_whitespace() {
            numbers.push(word.parse().map_err(|_| {
                CliError::input(format!(
                    "{}:{line}: `{}` is not the number of a structure",
                    path.display(),
                    crate::log::printable(word)
                ))
            })?);
        }
    }
    Ok(numbers)
}

/// Reads a dataset, or a list of them, in all of their short forms.
pub(super) fn read_datasets(
    field: &Field<'_>,
    need_targets: bool,
    warnings: &mut Vec<String>,
) -> Result<Vec<DatasetOptions>, CliError> {
    match &field.node.value {
        Value::List(items) if items.is_empty() => Err(field.error("is an empty list of datasets")),
        Value::List(_) => field.list()?.iter().map(|item| read_dataset(item, need_targets, warnings)).collect(),
        _ => Ok(vec![read_dataset(field, need_targets, warnings)?]),
    }
}

fn read_dataset(field: &Field<'_>, need_targets: bool, warnings: &mut Vec<String>) -> Result<DatasetOptions, CliError> {
    if let Value::Text(_) = &field.node.value {
        let systems = SystemsOptions { read_from: read_path(field)?, reader: None, length_unit: String::new() };
        // A bare file name stands for a file with energies, and with forces and stresses if it has them.
        let targets = if need_targets { vec![TargetOptions::default_energy(&systems)] } else { Vec::new() };
        return Ok(DatasetOptions { systems, targets, extra_data: Vec::new(), indices: None });
    }
    if !matches!(field.node.value, Value::Map(_)) {
        return Err(field.wrong("a file name, a dataset or a list of datasets"));
    }
    let section = field.section()?;
    section.allow_only(&["systems", "targets", "extra_data", "indices"])?;
    let systems = SystemsOptions::read(&section.require("systems")?)?;
    let targets = match section.get("targets") {
        Some(targets) => read_targets(&targets, &systems, warnings)?,
        None if need_targets => {
            return Err(section.require("targets").err().unwrap_or_else(|| field.error("is incomplete")));
        }
        None => Vec::new(),
    };
    if need_targets && targets.is_empty() {
        return Err(field.error("has no targets, so there is nothing to learn"));
    }
    let extra_data = match section.get("extra_data") {
        Some(extra) => read_targets(&extra, &systems, warnings)?,
        None => Vec::new(),
    };
    if let Some(twice) = extra_data.iter().find(|extra| targets.iter().any(|target| target.name == extra.name)) {
        return Err(field.error(format!("has `{}` both as target and as extra data", twice.name)));
    }
    let indices = section.get("indices").map(|field| IndicesOptions::read(&field)).transpose()?;
    Ok(DatasetOptions { systems, targets, extra_data, indices })
}

impl SystemsOptions {
    fn read(field: &Field<'_>) -> Result<Self, CliError> {
        if let Value::Text(_) = &field.node.value {
            return Ok(Self { read_from: read_path(field)?, reader: None, length_unit: String::new() });
        }
        let section = field.section()?;
        section.allow_only(&["read_from", "reader", "length_unit"])?;
        Ok(Self {
            read_from: read_path(&section.require("read_from")?)?,
            reader: section.get("reader").map(|field| read_reader(&field)).transpose()?,
            length_unit: section.get("length_unit").map_or(Ok(String::new()), |field| read_length_unit(&field))?,
        })
    }
}

pub(super) fn read_path(field: &Field<'_>) -> Result<PathBuf, CliError> {
    let text = field.text()?;
    if text.is_empty() {
        return Err(field.error("is an empty file name"));
    }
    Ok(PathBuf::from(text))
}

pub(super) fn read_reader(field: &Field<'_>) -> Result<String, CliError> {
    field.one_of(&["ase", "metatensor"])
}

pub(super) fn datasets_to_json(datasets: &[DatasetOptions]) -> Json {
    datasets.iter().map(DatasetOptions::to_json).collect()
}

impl DatasetOptions {
    fn to_json(&self) -> Json {
        let mut dataset = Map::new();
        let mut systems = Map::new();
        systems.insert("read_from".to_owned(), json!(self.systems.read_from.display().to_string()));
        if let Some(reader) = &self.systems.reader {
            systems.insert("reader".to_owned(), json!(reader));
        }
        systems.insert("length_unit".to_owned(), json!(self.systems.length_unit));
        dataset.insert("systems".to_owned(), Json::Object(systems));
        for (key, targets) in [("targets", &self.targets), ("extra_data", &self.extra_data)] {
            if !targets.is_empty() {
                let targets = targets.iter().map(|target| (target.name.clone(), target.to_json())).collect();
                dataset.insert(key.to_owned(), Json::Object(targets));
            }
        }
        if let Some(indices) = &self.indices {
            dataset.insert("indices".to_owned(), indices.to_json());
        }
        Json::Object(dataset)
    }
}

fn read_length_unit(field: &Field<'_>) -> Result<String, CliError> {
    let unit = field.text()?;
    if unit.is_empty() || kilnbox_data::units::length_in_angstrom(&unit).is_some() {
        return Ok(unit);
    }
    Err(field.wrong("a unit of length: `angstrom`, `bohr`, `nm`, `pm`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_read_from_text_with_comments() {
        let read = |text: &str| parse_indices(text, Path::new("i.txt"));
        assert_eq!(read("3 1\n# a comment\n\n3\n").expect("the text is indices"), [3, 1, 3]);
        let message = read("1\n2.5\n").expect_err("2.5 is no index").to_string();
        assert_eq!(message, "error: i.txt:2: `2.5` is not the number of a structure");
    }
}
