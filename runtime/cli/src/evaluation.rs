//! A model against the targets of a dataset: errors, times, and the predictions themselves.

use std::io;
use std::path::Path;
use std::time::Instant;

use kilnbox_bundle::write_atomically;
use kilnbox_data::extended_xyz::{self, Column, Frame, Value};
use kilnbox_data::{Dataset, SampleKind, TensorMap, volume};
use kilnbox_host::{
    Another, EvaluatedBatch, EvaluatedOutput, EvaluationRequest, EvaluationTask, Model, ModelOutput, Session,
};
use serde_json::{Value as Json, json};

use crate::convert::output_of;
use crate::errors::{CliError, file_error};

/// The results of a model for one dataset.
#[derive(Debug, Default)]
pub struct Evaluation {
    errors: Vec<(Measured, Errors)>,
    /// Milliseconds per atom of each batch.
    milliseconds_per_atom: Vec<f64>,
    seconds: f64,
    predictions: Vec<EvaluatedBatch>,
}

/// What errors are of.
#[derive(Clone, Debug, PartialEq)]
struct Measured {
    name: String,
    unit: String,
    per_atom: bool,
}

/// Sums over values that are not missing.
#[derive(Clone, Copy, Debug, Default)]
struct Errors {
    squared: f64,
    absolute: f64,
    count: usize,
}

impl Errors {
    fn add(&mut self, error: f64) {
        if !error.is_nan() {
            self.squared += error * error;
            self.absolute += error.abs();
            self.count += 1;
        }
    }
}

/// The outputs that `dataset` has targets for, and their gradients; all outputs with forces, where it has no targets.
///
/// # Errors
///
/// The model does not compute a target, or in another unit.
pub fn requests(
    dataset: &Dataset,
    outputs: &[ModelOutput],
    length_unit: &str,
) -> Result<Vec<EvaluationRequest>, CliError> {
    let info = dataset.info();
    check_unit("the structures have lengths", &info.length_unit, length_unit)?;
    if info.targets.is_empty() {
        let periodic = (0..dataset.len())
            .any(|index| dataset.structure(index).is_some_and(|structure| structure.periodic == [true; 3]));
        let request = |output: &ModelOutput| EvaluationRequest {
            output: output.clone(),
            position_gradients: output.quantity == "energy",
            strain_gradients: output.quantity == "energy" && periodic,
        };
        return Ok(outputs.iter().filter(|output| !is_auxiliary(&output.name)).map(request).collect());
    }
    let request = |target: &kilnbox_data::NamedTarget| {
        let Some(output) = outputs.iter().find(|output| output.name == target.name) else {
            let names: Vec<String> = outputs.iter().map(|output| format!("`{}`", output.name)).collect();
            return Err(CliError::input(format!("the model does not compute the target `{}`", target.name))
                .hint(format!("it computes {}", names.join(", "))));
        };
        check_unit(&format!("the target `{}` is", target.name), &target.info.unit, &output.unit)?;
        let has = |gradient: &str| target.info.gradients.iter().any(|name| name == gradient);
        Ok(EvaluationRequest {
            output: output_of(&target.name, &target.info),
            position_gradients: has("positions"),
            strain_gradients: has("strain"),
        })
    };
    info.targets.iter().map(request).collect()
}

/// Whether an output shows the inside of a model, as metatomic's convention for names has it. Nobody wants it who did not ask.
fn is_auxiliary(name: &str) -> bool {
    name == "feature" || name == "features" || name.starts_with("mtt::aux::")
}

/// Numbers of different units cannot be compared; a unit that is not said is taken to be the right one.
fn check_unit(what: &str, found: &str, expected: &str) -> Result<(), CliError> {
    if found.is_empty() || expected.is_empty() || found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    let found = crate::log::printable(found);
    Err(CliError::input(format!("{what} in `{found}`, and the model works in `{expected}`"))
        .hint(format!("convert the data to `{expected}`")))
}

/// Evaluates a dataset, with the help of [`Another`] of the session's kind where that is faster, and keeps the predictions if they are wanted.
///
/// # Errors
///
/// What the model refuses, or data that cannot be had.
pub fn evaluate(
    session: &mut Session,
    model: &Model,
    task: &EvaluationTask<'_>,
    another: &Another<'_>,
    keep_predictions: bool,
) -> Result<Evaluation, CliError> {
    let mut evaluation = Evaluation::default();
    let atom_counts = task.dataset.atom_counts();
    let mut problem = None;
    let start = Instant::now();
    session.evaluate(model, task, another, &mut |batch| {
        let atoms: u32 = batch.indices.iter().map(|&index| atom_counts[index as usize]).sum();
        evaluation.milliseconds_per_atom.push(batch.seconds * 1e3 / f64::from(atoms.max(1)));
        if let Err(error) = evaluation.compare(task.dataset, &batch, &atom_counts) {
            problem.get_or_insert(error);
        }
        if keep_predictions {
            evaluation.predictions.push(batch);
        }
    })?;
    evaluation.seconds = start.elapsed().as_secs_f64();
    match problem {
        Some(error) => Err(error),
        None => Ok(evaluation),
    }
}

impl Evaluation {
    /// Adds the errors of a batch, for the outputs that are targets of the dataset.
    fn compare(&mut self, dataset: &Dataset, batch: &EvaluatedBatch, atom_counts: &[u32]) -> Result<(), CliError> {
        let systems: Vec<usize> = batch.indices.iter().map(|&index| index as usize).collect();
        let atoms: Vec<f64> = systems.iter().map(|&index| f64::from(atom_counts[index])).collect();
        let info = dataset.info();
        for output in &batch.outputs {
            let Some(target) = info.targets.iter().find(|target| target.name == output.name) else { continue };
            let reference = dataset.target(&output.name, &systems)?;
            if shapes(&reference) != shapes(&output.values) {
                return Err(CliError::input(format!(
                    "the model gave `{}` the shapes {:?}, and the target has {:?}",
                    output.name,
                    shapes(&output.values),
                    shapes(&reference)
                )));
            }
            let per_system = target.info.sample_kind == SampleKind::System;
            let unit = &target.info.unit;
            let at = self.measured(&output.name, unit.clone(), per_system);
            for (expected, found) in reference.blocks.iter().zip(&output.values.blocks) {
                let width = expected.values.len() / expected.shape.first().copied().unwrap_or(1).max(1);
                for (index, (expected, found)) in expected.values.iter().zip(&found.values).enumerate() {
                    let divisor = if per_system { atoms[index / width.max(1)] } else { 1.0 };
                    self.errors[at].1.add((found - expected) / divisor);
                }
            }
            let of_energy = target.info.quantity == "energy";
            let length_unit = if info.length_unit.eq_ignore_ascii_case("angstrom") { "A" } else { &info.length_unit };
            if let Some(found) = &output.position_gradients {
                let unit = if unit.is_empty() || length_unit.is_empty() {
                    String::new()
                } else {
                    format!("{unit}/{length_unit}")
                };
                let name = gradient_name("forces", &output.name, "positions", of_energy);
                let at = self.measured(&name, unit, false);
                for (expected, found) in gradients(&reference, "positions").zip(found) {
                    self.errors[at].1.add(found - expected);
                }
            }
            if let Some(found) = &output.strain_gradients {
                let at = self.measured(&gradient_name("virial", &output.name, "strain", of_energy), unit.clone(), true);
                for (index, (expected, found)) in gradients(&reference, "strain").zip(found).enumerate() {
                    self.errors[at].1.add((found - expected) / atoms[index / 9]);
                }
            }
        }
        Ok(())
    }

    fn measured(&mut self, name: &str, unit: String, per_atom: bool) -> usize {
        let measured = Measured { name: name.to_owned(), unit, per_atom };
        self.errors.iter().position(|(known, _)| *known == measured).unwrap_or_else(|| {
            self.errors.push((measured, Errors::default()));
            self.errors.len() - 1
        })
    }

    /// All errors, for the file of the model; unlike the times, they are the same whenever they are computed.
    pub fn errors(&self) -> Json {
        let errors = self.errors.iter().filter(|(_, errors)| errors.count > 0).map(|(measured, errors)| {
            let count = errors.count as f64;
            json!({
                "name": measured.name,
                "unit": measured.unit,
                "per_atom": measured.per_atom,
                "rmse": (errors.squared / count).sqrt(),
                "mae": errors.absolute / count,
            })
        });
        errors.collect()
    }

    /// A line with all errors, and one with the time that it took.
    pub fn lines(&self) -> Vec<String> {
        let mut numbers = Vec::new();
        for (measured, errors) in self.errors.iter().filter(|(_, errors)| errors.count > 0) {
            let count = errors.count as f64;
            let suffix = if measured.per_atom { " (per atom)" } else { "" };
            let unit = if measured.unit.is_empty() { String::new() } else { format!(" {}", measured.unit) };
            for (word, value) in [("RMSE", (errors.squared / count).sqrt()), ("MAE", errors.absolute / count)] {
                numbers.push(format!("{} {word}{suffix}: {}{unit}", measured.name, crate::log::significant(value)));
            }
        }
        let mut lines = Vec::new();
        if !numbers.is_empty() {
            lines.push(numbers.join(" | "));
        }
        let times = match self.milliseconds_per_atom.as_slice() {
            // The first batch warms up: a device compiles its kernels then.
            [_, times @ ..] if !times.is_empty() => times,
            times => times,
        };
        let count = times.len().max(1) as f64;
        let mean = times.iter().sum::<f64>() / count;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / count;
        let (seconds, deviation) = (self.seconds, variance.sqrt());
        lines.push(format!("evaluation time: {seconds:.2} s [{mean:.4} ± {deviation:.4} ms per atom]"));
        lines
    }

    /// Writes the structures with the predictions as extended XYZ: energies and other values of systems beside the cell, forces and other
    /// values of atoms as columns, and the stress of periodic systems.
    ///
    /// # Errors
    ///
    /// The file cannot be written; then there is none.
    pub fn write_predictions(&self, dataset: &Dataset, path: &Path) -> Result<(), CliError> {
        let write = |mut file: &mut dyn io::Write| {
            for batch in &self.predictions {
                let mut first_atom = 0;
                for (row, &index) in batch.indices.iter().enumerate() {
                    let Some(mut frame) = frame(dataset, index as usize) else { continue };
                    let atoms = first_atom..first_atom + frame.types.len();
                    for output in &batch.outputs {
                        add_output(&mut frame, output, row, atoms.clone());
                    }
                    first_atom = atoms.end;
                    extended_xyz::write(&mut file, &frame)?;
                }
            }
            Ok(())
        };
        write_atomically(path, write).map_err(|error| file_error("write", path, &error))
    }
}

fn gradient_name(word: &str, target: &str, parameter: &str, of_energy: bool) -> String {
    match (of_energy, target) {
        (true, "energy") => word.to_owned(),
        (true, target) => format!("{word}[{target}]"),
        (false, target) => format!("{target}_{parameter}_gradients"),
    }
}

fn shapes(map: &TensorMap) -> Vec<&[usize]> {
    map.blocks.iter().map(|block| block.shape.as_slice()).collect()
}

fn gradients<'a>(map: &'a TensorMap, parameter: &'a str) -> impl Iterator<Item = &'a f64> {
    let blocks = map.blocks.iter().flat_map(|block| &block.gradients);
    blocks.filter(move |gradient| gradient.parameter == parameter).flat_map(|gradient| &gradient.values)
}

fn frame(dataset: &Dataset, index: usize) -> Option<Frame> {
    let structure = dataset.structure(index)?;
    Some(Frame {
        types: structure.types.to_vec(),
        positions: structure.positions.to_vec(),
        cell: *structure.cell,
        periodic: structure.periodic,
        info: Vec::new(),
        arrays: Vec::new(),
    })
}

/// Adds the values of one output that belong to the system of this row and these atoms.
fn add_output(frame: &mut Frame, output: &EvaluatedOutput, row: usize, atoms: std::ops::Range<usize>) {
    let name = xyz_name(&output.name);
    let blocks = &output.values.blocks;
    for (number, block) in blocks.iter().enumerate() {
        let name = if blocks.len() == 1 { name.clone() } else { format!("{name}_{number}") };
        let width: usize = block.shape.iter().skip(1).product();
        let per_atom = block.samples.names.iter().any(|dimension| dimension == "atom");
        if per_atom {
            let values = block.values[atoms.start * width..atoms.end * width].to_vec();
            frame.arrays.push((name, Column::Numbers { width, values }));
        } else {
            frame.info.push((name, Value::Numbers(block.values[row * width..(row + 1) * width].to_vec())));
        }
    }
    // An energy of another name than `energy` keeps its derivatives apart from those of the others.
    let prefix = if name == "energy" { String::new() } else { format!("{name}_") };
    if let Some(gradients) = &output.position_gradients {
        let values = gradients[3 * atoms.start..3 * atoms.end].iter().map(|gradient| -gradient).collect();
        frame.arrays.push((format!("{prefix}forces"), Column::Numbers { width: 3, values }));
    }
    if let Some(gradients) = &output.strain_gradients
        && frame.periodic == [true; 3]
    {
        let volume = volume(&frame.cell);
        let values = gradients[9 * row..9 * (row + 1)].iter().map(|gradient| gradient / volume).collect();
        frame.info.push((format!("{prefix}stress"), Value::Numbers(values)));
    }
}

/// What an output is called in a file: a model may name it as it likes, and no name may break the file's lines and columns.
fn xyz_name(output: &str) -> String {
    let name = output.strip_prefix("mtt::").unwrap_or(output);
    let fits = |character: char| character.is_alphanumeric() || "_-/.+".contains(character);
    name.chars().map(|character| if fits(character) { character } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_an_output_breaks_the_file() {
        for (output, expected) in [
            ("energy", "energy"),
            ("mtt::charges", "charges"),
            ("energy/pbe", "energy/pbe"),
            ("mtt::aux::energy", "aux__energy"),
            ("a b:R:1\n2", "a_b_R_1_2"),
        ] {
            assert_eq!(xyz_name(output), expected);
        }
    }
}
