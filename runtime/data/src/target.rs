//! Targets: from the keys of a file to blocks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::extended_xyz::{Column, Frame, Value};
use crate::types::{GradientBlock, Labels, NamedTarget, SampleKind, TargetInfo, TargetType, TensorBlock, TensorMap};
use crate::{DataError, extended_xyz};

/// Where gradients of a target are read from.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientSource {
    /// The file.
    pub read_from: PathBuf,
    /// The key in its frames.
    pub key: String,
    /// Whether it is an error if no frame has it; otherwise the target then has no such gradient.
    pub required: bool,
}

/// Where a target is read from.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetSource {
    /// Its name.
    pub name: String,
    /// What it is; `gradients` is filled in by reading.
    pub info: TargetInfo,
    /// The file.
    pub read_from: PathBuf,
    /// Which reader: only `ase`, for extended XYZ, is known so far.
    pub reader: Option<String>,
    /// The key in its frames.
    pub key: String,
    /// Forces, three numbers for each atom.
    pub forces: Option<GradientSource>,
    /// Stress, nine numbers (or six, in Voigt order) for each system.
    pub stress: Option<GradientSource>,
    /// Virial, nine numbers (or six, in Voigt order) for each system.
    pub virial: Option<GradientSource>,
}

/// A target of all systems of a file, in flat arrays.
#[derive(Clone, Debug)]
pub(crate) struct TargetData {
    pub(crate) target: NamedTarget,
    /// Numbers for each sample (system or atom), all blocks together.
    width: usize,
    /// Row-major, `width` numbers for each sample.
    values: Vec<f64>,
    /// Three numbers for each atom: the gradient, so minus the forces.
    position_gradients: Option<Vec<f64>>,
    /// Nine numbers for each system.
    strain_gradients: Option<Vec<f64>>,
}

/// The frames of the files that a dataset names, each file read once.
#[derive(Default)]
pub(crate) struct Files {
    read: Vec<(PathBuf, Arc<Vec<Frame>>)>,
}

impl Files {
    pub(crate) fn frames(&mut self, path: &Path, reader: Option<&str>) -> Result<Arc<Vec<Frame>>, DataError> {
        if let Some((_, frames)) = self.read.iter().find(|(known, _)| known == path) {
            return Ok(frames.clone());
        }
        check_reader(path, reader)?;
        let frames = Arc::new(extended_xyz::read(path)?);
        self.read.push((path.to_owned(), frames.clone()));
        Ok(frames)
    }
}

fn check_reader(path: &Path, reader: Option<&str>) -> Result<(), DataError> {
    let suffix = path.extension().and_then(|suffix| suffix.to_str()).unwrap_or_default().to_ascii_lowercase();
    match reader {
        Some("ase") => Ok(()),
        Some(other) => Err(DataError::new(format!("the reader `{other}` of `{}` is not known", path.display()))
            .with_hint("convert the file to extended XYZ and use the reader `ase`")),
        None if matches!(suffix.as_str(), "xyz" | "extxyz") => Ok(()),
        None => {
            Err(DataError::new(format!("`{}` has the suffix `{suffix}`, expected `.xyz` or `.extxyz`", path.display()))
                .with_hint("convert the file to extended XYZ, or say `reader: ase` if it is one under another suffix"))
        }
    }
}

impl TargetData {
    /// Reads a target for the systems `systems`, which come from `systems_path`.
    pub(crate) fn read(
        source: &TargetSource,
        files: &mut Files,
        systems: &[Frame],
        systems_path: &Path,
    ) -> Result<Self, DataError> {
        let mut target = NamedTarget { name: source.name.clone(), info: source.info.clone() };
        target.info.gradients.clear();
        let width = block_widths(&target.info)?.iter().sum();
        let frames = files.frames(&source.read_from, source.reader.as_deref())?;
        check_length(&source.read_from, &frames, systems, systems_path)?;
        let mut values = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            read_values(&source.key, &target, width, frame, &mut values)
                .map_err(|error| located(error, &source.read_from, index))?;
        }
        let mut data = Self { target, width, values, position_gradients: None, strain_gradients: None };
        if let Some(forces) = &source.forces {
            let rows =
                read_gradient(forces, files, systems, systems_path, "forces", |frame| per_atom(frame, &forces.key, 3))?;
            data.set_gradient("positions", rows.map(|forces| forces.into_iter().map(|force| -force).collect()));
        }
        if let Some(stress) = &source.stress {
            let rows = read_gradient(stress, files, systems, systems_path, "stress", |frame| {
                per_system_matrix(frame, &stress.key)
            })?;
            let rows = rows.map(|rows| times_volume(rows, systems, &stress.read_from)).transpose()?;
            data.set_gradient("strain", rows);
        }
        if let Some(virial) = &source.virial {
            let rows = read_gradient(virial, files, systems, systems_path, "virial", |frame| {
                per_system_matrix(frame, &virial.key)
            })?;
            data.set_gradient("strain", rows.map(|rows| rows.into_iter().map(|value| -value).collect()));
        }
        Ok(data)
    }

    /// At least what [`TargetData::blocks`] takes for one system of this many atoms.
    pub(crate) fn bytes_of(&self, atoms: u64) -> u64 {
        /// The labels of a row: of each a system and an atom, and of gradients also the sample.
        const OF_LABELS: u64 = 12;
        let rows = match self.target.info.sample_kind {
            SampleKind::System => 1,
            SampleKind::Atom => atoms,
        };
        let gradients = u64::from(self.position_gradients.is_some()) * atoms * (24 + OF_LABELS)
            + u64::from(self.strain_gradients.is_some()) * (72 + OF_LABELS);
        // Each block of a spherical target has labels of its own.
        let blocks = match &self.target.info.target_type {
            TargetType::Spherical(irreps) => irreps.len() as u64,
            _ => 1,
        };
        rows * (8 * self.width as u64 + OF_LABELS * blocks) + gradients
    }

    fn set_gradient(&mut self, parameter: &str, rows: Option<Vec<f64>>) {
        let Some(rows) = rows else { return };
        self.target.info.gradients.push(parameter.to_owned());
        match parameter {
            "positions" => self.position_gradients = Some(rows),
            _ => self.strain_gradients = Some(rows),
        }
    }

    /// The blocks of these systems; `offsets` are the first atoms of all systems of the file.
    pub(crate) fn blocks(&self, systems: &[u32], offsets: &[usize]) -> TensorMap {
        let info = &self.target.info;
        let range = |system: u32| offsets[system as usize]..offsets[system as usize + 1];
        let atoms: usize = systems.iter().map(|&system| range(system).len()).sum();
        let rows: Vec<usize> = match info.sample_kind {
            SampleKind::System => systems.iter().map(|&system| system as usize).collect(),
            SampleKind::Atom => systems.iter().flat_map(|&system| range(system)).collect(),
        };
        let per_atom_labels = || {
            let mut values = Vec::with_capacity(2 * atoms);
            for (position, &system) in systems.iter().enumerate() {
                values.extend((0..range(system).len()).flat_map(|atom| [position as i32, atom as i32]));
            }
            values
        };
        let samples = match info.sample_kind {
            SampleKind::System => Labels::range("system", systems.len()),
            SampleKind::Atom => Labels::new(&["system", "atom"], per_atom_labels()),
        };
        let properties = Labels::range(property_name(&self.target.name), info.num_subtargets as usize);
        let mut blocks = Vec::new();
        let mut start = 0;
        for components in components(&info.target_type) {
            let mut shape = vec![rows.len()];
            shape.extend(components.iter().map(Labels::len));
            shape.push(info.num_subtargets as usize);
            let block_width: usize = shape[1..].iter().product();
            let values =
                rows.iter().flat_map(|row| &self.values[row * self.width + start..][..block_width]).copied().collect();
            start += block_width;
            blocks.push(TensorBlock {
                shape,
                values,
                samples: samples.clone(),
                components,
                properties: properties.clone(),
                gradients: Vec::new(),
            });
        }
        if let Some(block) = blocks.first_mut() {
            if let Some(gradients) = &self.position_gradients {
                let values =
                    systems.iter().flat_map(|&system| &gradients[3 * range(system).start..3 * range(system).end]);
                let labels = per_atom_labels().chunks_exact(2).flat_map(|pair| [pair[0], pair[0], pair[1]]).collect();
                block.gradients.push(GradientBlock {
                    parameter: "positions".to_owned(),
                    shape: vec![atoms, 3, 1],
                    values: values.copied().collect(),
                    samples: Labels::new(&["sample", "system", "atom"], labels),
                    components: vec![Labels::range("xyz", 3)],
                });
            }
            if let Some(gradients) = &self.strain_gradients {
                block.gradients.push(GradientBlock {
                    parameter: "strain".to_owned(),
                    shape: vec![systems.len(), 3, 3, 1],
                    values: systems
                        .iter()
                        .flat_map(|&system| &gradients[9 * system as usize..][..9])
                        .copied()
                        .collect(),
                    samples: Labels::range("sample", systems.len()),
                    components: vec![Labels::range("xyz_1", 3), Labels::range("xyz_2", 3)],
                });
            }
        }
        TensorMap { keys: keys(&info.target_type), blocks }
    }
}

/// The last part of a target's name: `mtt::dipole` has the property `dipole`, `energy/pbe` the property `energy`.
fn property_name(target: &str) -> &str {
    let name = target.rsplit("::").next().unwrap_or(target);
    name.split('/').next().unwrap_or(name)
}

fn keys(target_type: &TargetType) -> Labels {
    match target_type {
        TargetType::Spherical(irreps) => Labels::new(
            &["o3_lambda", "o3_sigma"],
            irreps.iter().flat_map(|irrep| [irrep.lambda as i32, irrep.sigma]).collect(),
        ),
        _ => Labels::new(&["_"], vec![0]),
    }
}

/// The components of each block.
fn components(target_type: &TargetType) -> Vec<Vec<Labels>> {
    match target_type {
        TargetType::Scalar => vec![Vec::new()],
        TargetType::Cartesian(1) => vec![vec![Labels::range("xyz", 3)]],
        TargetType::Cartesian(rank) => vec![(1..=*rank).map(|axis| Labels::range(&format!("xyz_{axis}"), 3)).collect()],
        TargetType::Spherical(irreps) => irreps
            .iter()
            .map(|irrep| {
                let lambda = irrep.lambda as i32;
                vec![Labels::new(&["o3_mu"], (-lambda..=lambda).collect())]
            })
            .collect(),
    }
}

/// Numbers for each sample of each block.
fn block_widths(info: &TargetInfo) -> Result<Vec<usize>, DataError> {
    /// Wider rows than this are a mistake.
    const WIDEST: usize = 1 << 20;
    let blocks = match &info.target_type {
        TargetType::Cartesian(rank) if *rank > 6 => {
            return Err(DataError::new(format!("a Cartesian target has the rank {rank}, at most 6 is read")));
        }
        target_type => components(target_type),
    };
    let widths: Vec<usize> = blocks
        .iter()
        .map(|components| {
            components.iter().map(Labels::len).product::<usize>().saturating_mul(info.num_subtargets as usize)
        })
        .collect();
    if widths.iter().any(|width| !(1..=WIDEST).contains(width)) {
        return Err(DataError::new(format!("a target has {} subtargets, expected 1 to {WIDEST}", info.num_subtargets)));
    }
    Ok(widths)
}

fn located(error: Lacking, path: &Path, frame: usize) -> DataError {
    let located = DataError::in_frame(path, frame, error.message);
    match error.hint {
        Some(hint) => located.with_hint(hint),
        None => located,
    }
}

/// What a frame lacks; where it is, the caller knows.
struct Lacking {
    message: String,
    hint: Option<String>,
    /// Whether the key is not there at all.
    absent: bool,
}

impl Lacking {
    fn wrong(message: String) -> Self {
        Self { message, hint: None, absent: false }
    }

    fn absent(key: &str, what: &str, present: Vec<&str>) -> Self {
        let hint = if present.is_empty() { None } else { Some(format!("it has {}", list(&present))) };
        Self { message: format!("there is no {what} `{key}`"), hint, absent: true }
    }
}

fn list(names: &[&str]) -> String {
    names.iter().take(20).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn read_values(
    key: &str,
    target: &NamedTarget,
    width: usize,
    frame: &Frame,
    values: &mut Vec<f64>,
) -> Result<(), Lacking> {
    let row = match target.info.sample_kind {
        SampleKind::System => per_system(frame, key)?,
        SampleKind::Atom => per_atom(frame, key, width)?,
    };
    let expected = match target.info.sample_kind {
        SampleKind::System => width,
        SampleKind::Atom => width * frame.types.len(),
    };
    if row.len() != expected {
        return Err(Lacking::wrong(format!("`{key}` has {} numbers, expected {expected}", row.len())));
    }
    values.extend(row);
    Ok(())
}

fn per_system(frame: &Frame, key: &str) -> Result<Vec<f64>, Lacking> {
    match frame.info(key) {
        Some(Value::Numbers(numbers)) => known(key, numbers),
        Some(_) => Err(Lacking::wrong(format!("`{key}` is not a number"))),
        None => {
            let present = frame.info.iter().filter(|(_, value)| matches!(value, Value::Numbers(_)));
            Err(Lacking::absent(key, "value", present.map(|(known, _)| known.as_str()).collect()))
        }
    }
}

fn per_atom(frame: &Frame, key: &str, expected: usize) -> Result<Vec<f64>, Lacking> {
    match frame.array(key) {
        Some(Column::Numbers { width, values }) if *width == expected => known(key, values),
        Some(Column::Numbers { width, .. }) => {
            Err(Lacking::wrong(format!("`{key}` has {width} columns, expected {expected}")))
        }
        Some(Column::Words { .. }) => Err(Lacking::wrong(format!("the column `{key}` has words, expected numbers"))),
        None => {
            let present = frame.arrays.iter().map(|(known, _)| known.as_str()).collect();
            Err(Lacking::absent(key, "column", present))
        }
    }
}

/// The numbers of a target. NaN stands for what is not known; infinity is no value that could be learned.
fn known(key: &str, numbers: &[f64]) -> Result<Vec<f64>, Lacking> {
    match numbers.iter().find(|number| number.is_infinite()) {
        None => Ok(numbers.to_vec()),
        Some(number) => {
            Err(Lacking::wrong(format!("`{key}` is {number}, expected a finite number, or `nan` if it is not known")))
        }
    }
}

/// Nine numbers, or six in Voigt order (xx, yy, zz, yz, xz, xy).
fn per_system_matrix(frame: &Frame, key: &str) -> Result<Vec<f64>, Lacking> {
    let numbers = per_system(frame, key)?;
    match numbers.len() {
        9 => Ok(numbers),
        6 => Ok([0, 5, 4, 5, 1, 3, 4, 3, 2].map(|entry: usize| numbers[entry]).to_vec()),
        count => Err(Lacking::wrong(format!("`{key}` has {count} numbers, expected 9, or 6 in Voigt order"))),
    }
}

/// All rows of a gradient; none if no frame has it and it is not required.
fn read_gradient(
    source: &GradientSource,
    files: &mut Files,
    systems: &[Frame],
    systems_path: &Path,
    what: &str,
    read: impl Fn(&Frame) -> Result<Vec<f64>, Lacking>,
) -> Result<Option<Vec<f64>>, DataError> {
    let frames = files.frames(&source.read_from, None)?;
    check_length(&source.read_from, &frames, systems, systems_path)?;
    let mut rows = Vec::new();
    let mut first_absent = None;
    for (index, frame) in frames.iter().enumerate() {
        match read(frame) {
            Ok(row) => rows.extend(row),
            Err(lacking) if lacking.absent => {
                first_absent.get_or_insert((index, lacking));
            }
            Err(lacking) => return Err(located(lacking, &source.read_from, index)),
        }
    }
    match first_absent {
        None => Ok(Some(rows)),
        Some(_) if rows.is_empty() && !source.required => Ok(None),
        Some((index, lacking)) => Err(located(lacking, &source.read_from, index).with_hint(format!(
            "give every frame its {what}, or say `{what}: false` in the target's section to train without"
        ))),
    }
}

/// Stress times volume: the derivative of the energy with respect to strain.
fn times_volume(mut rows: Vec<f64>, systems: &[Frame], path: &Path) -> Result<Vec<f64>, DataError> {
    for (index, (row, frame)) in rows.chunks_exact_mut(9).zip(systems).enumerate() {
        let volume = determinant(&frame.cell).abs();
        if volume == 0.0 || frame.periodic != [true; 3] {
            return Err(DataError::in_frame(
                path,
                index,
                "it has a stress, but no cell that is periodic in three directions",
            )
            .with_hint("say `stress: false` in the target's section to train without"));
        }
        row.iter_mut().for_each(|value| *value *= volume);
    }
    Ok(rows)
}

pub(crate) fn determinant(cell: &[f64; 9]) -> f64 {
    cell[0] * (cell[4] * cell[8] - cell[5] * cell[7]) - cell[1] * (cell[3] * cell[8] - cell[5] * cell[6])
        + cell[2] * (cell[3] * cell[7] - cell[4] * cell[6])
}

fn check_length(path: &Path, frames: &[Frame], systems: &[Frame], systems_path: &Path) -> Result<(), DataError> {
    if frames.len() != systems.len() {
        return Err(DataError::new(format!(
            "`{}` has {} frames, but `{}`, where the systems are from, has {}",
            path.display(),
            frames.len(),
            systems_path.display(),
            systems.len()
        )));
    }
    match frames.iter().zip(systems).position(|(frame, system)| frame.types.len() != system.types.len()) {
        None => Ok(()),
        Some(index) => Err(DataError::in_frame(
            path,
            index,
            format!("it has {} atoms, but the system has {}", frames[index].types.len(), systems[index].types.len()),
        )),
    }
}
