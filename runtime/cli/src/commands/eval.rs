//! `kilnbox eval`: an exported model against the targets of a dataset, or its predictions where there are none.

use std::path::{Path, PathBuf};

use kilnbox_host::EvaluationTask;

use crate::convert::{dtype_of, read_dataset};
use crate::errors::CliError;
use crate::evaluation::{evaluate, requests};
use crate::log::Log;
use crate::options::EvalOptions;
use crate::sandbox::Sandbox;
use crate::trust::Trust;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model.
    pub model: PathBuf,
    /// Structures and targets.
    pub options: PathBuf,
    /// Where to put the predictions.
    pub output: PathBuf,
    /// How many structures are evaluated together.
    pub batch_size: usize,
    /// The device; by default the processor.
    pub device: Option<String>,
    /// What the architecture may use.
    pub sandbox: Sandbox,
    /// Whether to show messages for developers.
    pub debug: bool,
}

/// Runs the command.
///
/// # Errors
///
/// The model or the data cannot be used, or the predictions not be written.
pub fn run(request: &Request) -> Result<(), CliError> {
    let log = Log::to_terminal(request.debug);
    if request.batch_size == 0 {
        return Err(CliError::input("the batch size is 0, expected at least 1"));
    }
    if request.output.extension().is_none_or(|suffix| suffix != "xyz" && suffix != "extxyz") {
        return Err(CliError::input(format!(
            "the predictions' file is named `{}`, expected a name that ends with `.xyz`",
            request.output.display()
        )));
    }
    super::check_folder_of(&request.output)?;
    let options = EvalOptions::read(&request.options)?;
    for warning in &options.warnings {
        log.warning(warning);
    }
    let file = Trust::of_user()?.read_model(&request.model)?;
    let datasets = options.datasets.iter().map(read_dataset).collect::<Result<Vec<_>, _>>()?;
    let dtype = dtype_of(&file.capabilities);
    let startable = super::Startable::of_file(&file, request.device.as_deref(), &request.sandbox, &log)?;
    let (mut session, model) = startable.start()?;
    let capabilities = session.export_model(&model)?;
    // All is checked before the first structure is evaluated.
    let all_requests = datasets
        .iter()
        .map(|dataset| {
            check_types(dataset, &capabilities.atomic_types)?;
            requests(dataset, &capabilities.outputs, &capabilities.length_unit)
        })
        .collect::<Result<Vec<_>, CliError>>()?;
    for (number, (dataset, requests)) in datasets.iter().zip(&all_requests).enumerate() {
        let which = if datasets.len() == 1 { String::new() } else { format!(" {number}") };
        log.info(format!("Evaluating dataset{which}: {} structures", dataset.len()));
        let task = EvaluationTask { dataset, requests, dtype, batch_size: request.batch_size };
        let evaluation = evaluate(&mut session, &model, &task, &|limits| startable.another(limits), true)?;
        for line in evaluation.lines() {
            log.info(line);
        }
        let output = if datasets.len() == 1 { request.output.clone() } else { numbered(&request.output, number) };
        evaluation.write_predictions(dataset, &output)?;
        log.info(format!("The predictions are in `{}`", output.display()));
    }
    Ok(())
}

/// `output_1.xyz` of `output.xyz`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let suffix = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}_{number}.{suffix}"))
}

/// Refuses elements that the model does not know.
pub(super) fn check_types(dataset: &kilnbox_data::Dataset, known: &[i32]) -> Result<(), CliError> {
    let symbol = |&number: &i32| kilnbox_data::elements::symbol(number);
    for index in 0..dataset.len() {
        let Some(structure) = dataset.structure(index) else { continue };
        if let Some(unknown) = structure.types.iter().find(|number| !known.contains(number)) {
            let known: Vec<&str> = known.iter().map(symbol).collect();
            return Err(CliError::input(format!(
                "structure {index} has the element {}, which the model does not know",
                symbol(unknown)
            ))
            .hint(format!("it knows {}", known.join(", "))));
        }
    }
    Ok(())
}
