//! The model card: one page of Markdown about a model, for people who find its file.

use kilnbox_bundle::ModelFile;
use serde_json::Value as Json;

/// The card of a model, made of what else its file says; the same model has the same card.
pub(super) fn card(model: &ModelFile) -> String {
    let metadata = &model.metadata;
    let name = metadata["name"].as_str().filter(|name| !name.is_empty()).unwrap_or("A model of atoms");
    let mut card = format!("# {}\n", one_line(name));
    let mut paragraph = |text: &str| {
        if !text.is_empty() {
            card.push_str(&format!("\n{}\n", text.trim_end()));
        }
    };
    paragraph(metadata["description"].as_str().unwrap_or_default());
    let authors: Vec<String> = texts(&metadata["authors"]).collect();
    if !authors.is_empty() {
        paragraph(&format!("By {}.", authors.join(", ")));
    }
    let identity = &model.checkpoint.architecture;
    let version = identity.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
    let mut facts = format!("- architecture: {}{version}, `{}`\n", one_line(&identity.name), identity.digest);
    facts.push_str(&format!("- contract: `kilnbox:architecture@{}`\n", one_line(&model.checkpoint.contract_version)));
    let capabilities = &model.capabilities;
    for output in outputs(capabilities) {
        facts.push_str(&format!("- predicts: {output}\n"));
    }
    let elements: Vec<&str> = capabilities["atomic_types"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|number| i32::try_from(number.as_i64()?).ok())
        .map(kilnbox_data::elements::symbol)
        .collect();
    if !elements.is_empty() {
        facts.push_str(&format!("- elements: {}\n", elements.join(", ")));
    }
    if let Some(range) = capabilities["interaction_range"].as_f64() {
        let unit = capabilities["length_unit"].as_str().unwrap_or_default();
        facts.push_str(&format!("- interaction range: {range} {}\n", one_line(unit)));
    }
    paragraph(&facts);
    let errors = errors(&model.metrics);
    if !errors.is_empty() {
        paragraph("## Errors");
        paragraph(&format!("| set | | RMSE | MAE | unit |\n|---|---|---|---|---|\n{errors}"));
    }
    paragraph("## Use");
    paragraph(
        "The file carries the code that runs the model: `kilnbox eval FILE eval.yaml` evaluates it, `training: {finetune: {read_from: FILE}}` starts from it, and\n\
         `kilnbox show FILE` tells its hypers and what it was made for.",
    );
    let references = ["model", "architecture", "implementation"].map(|kind| texts(&metadata["references"][kind]));
    let references: String = references.into_iter().flatten().map(|work| format!("- {work}\n")).collect();
    if !references.is_empty() {
        paragraph("## To cite");
        paragraph(&references);
    }
    if let Ok(options) = serde_saphyr::to_string(&model.options)
        && !model.options.is_null()
    {
        paragraph("## Options of the training");
        paragraph(&format!("```yaml\n{}\n```", options.trim_end()));
    }
    card
}

/// A row for each error of each set.
fn errors(metrics: &Json) -> String {
    let mut rows = String::new();
    for (set, datasets) in metrics.as_object().into_iter().flatten() {
        for errors in
            datasets.as_array().into_iter().flatten().flat_map(|errors| errors.as_array().into_iter().flatten())
        {
            let number = |key: &str| errors[key].as_f64().map(crate::log::significant).unwrap_or_default();
            let per_atom = if errors["per_atom"] == Json::Bool(true) { " (per atom)" } else { "" };
            let text = |key: &str| one_line(errors[key].as_str().unwrap_or_default());
            rows.push_str(&format!(
                "| {set} | {}{per_atom} | {} | {} | {} |\n",
                text("name"),
                number("rmse"),
                number("mae"),
                text("unit")
            ));
        }
    }
    rows
}

/// The outputs with their units.
fn outputs(capabilities: &Json) -> Vec<String> {
    let outputs = capabilities["outputs"].as_array().into_iter().flatten();
    let text = |output: &Json, key: &str| one_line(output[key].as_str().unwrap_or_default());
    let name = |output: &Json| match text(output, "unit") {
        unit if unit.is_empty() => text(output, "name"),
        unit => format!("{} in {unit}", text(output, "name")),
    };
    outputs.map(name).collect()
}

fn texts(list: &Json) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(Json::as_str).map(one_line)
}

/// A text that cannot become another part of the page.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect::<String>()
        .replace('|', "\\|")
}
