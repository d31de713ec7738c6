//! `kilnbox show`: what a file says of itself, without running anything of it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kilnbox_bundle::{
    ArchitectureBundle, ArchitectureIdentity, BundleError, CheckpointFile, FileKind, ModelFile, sha256_digest,
};
use serde_json::Value as Json;

use crate::architectures::{read_component, unusable};
use crate::errors::{CliError, file_error};
use crate::log::{bytes, print, printable};
use crate::trust::Trust;

/// What the user asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// A bundle, a model or a checkpoint.
    pub file: PathBuf,
    /// Whether to show the documentation and nothing else.
    pub docs: bool,
}

/// Runs the command.
///
/// # Errors
///
/// The file cannot be read, or is none of the three kinds, or a damaged one.
pub fn run(request: &Request) -> Result<(), CliError> {
    let path = &request.file;
    let mut page = Page::default();
    let docs = match kind(path)? {
        FileKind::Architecture => {
            let component = read_component(path)?;
            let bundle = ArchitectureBundle::read(&component).map_err(|error| unusable(path, error))?;
            page.add("architecture", &bundle.parts.name);
            page.file(path, component.len() as u64, &sha256_digest(&component));
            page.add("signature", &Trust::of_user()?.describe(path, &component)?);
            page.bundle(&bundle);
            bundle.parts.docs.unwrap_or_default()
        }
        FileKind::Model => {
            let content = std::fs::read(path).map_err(|error| file_error("read", path, &error))?;
            let model = ModelFile::from_bytes(&content).map_err(|source| BundleError::Unusable {
                kind: FileKind::Model,
                path: path.clone(),
                source,
            })?;
            let name = model.metadata["name"].as_str().filter(|name| !name.is_empty());
            page.add("model", name.unwrap_or("without a name"));
            page.file(path, content.len() as u64, &sha256_digest(&content));
            page.add("signature", &Trust::of_user()?.describe(path, &content)?);
            page.model(&model);
            model.card
        }
        FileKind::Checkpoint => {
            let checkpoint = CheckpointFile::read(path)?;
            page.add("checkpoint", &path.display().to_string());
            page.checkpoint(&checkpoint);
            String::new()
        }
    };
    if request.docs {
        print(&printable_lines(&docs));
    } else {
        print(page.text.trim_end());
    }
    Ok(())
}

/// What a file is, by its content.
pub(super) fn kind(path: &Path) -> Result<FileKind, CliError> {
    let unreadable = |error: &std::io::Error| file_error("read", path, error);
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    if !file.metadata().map_err(|error| unreadable(&error))?.is_file() {
        return Err(CliError::input(format!("`{}` is not a plain file", path.display())));
    }
    let mut beginning = Vec::new();
    file.take(512).read_to_end(&mut beginning).map_err(|error| unreadable(&error))?;
    FileKind::of(&beginning).ok_or_else(|| {
        CliError::input(format!("`{}` is no architecture bundle, no model and no checkpoint", path.display()))
            .hint("give a file that `kilnbox pack`, `kilnbox train` or `kilnbox export` wrote")
    })
}

/// Names in one column, what there is to say in another.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// How wide the first column is.
    const WIDTH: usize = 14;

    /// A line, or several; nothing where there is nothing to say.
    fn add(&mut self, name: &str, value: &str) {
        self.add_all(name, value.lines());
    }

    fn add_all<'a>(&mut self, name: &str, lines: impl IntoIterator<Item = &'a str>) {
        for (number, line) in lines.into_iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            self.text.push_str(&format!("{name:<width$}{}\n", printable(line), width = Self::WIDTH));
        }
    }

    fn json(&mut self, name: &str, value: &Json) {
        if !value.is_null() {
            let text = serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string());
            self.add(name, &text);
        }
    }

    fn file(&mut self, path: &Path, size: u64, digest: &str) {
        self.add("file", &format!("{}, {}", path.display(), bytes(size)));
        self.add("digest", digest);
    }

    fn bundle(&mut self, bundle: &ArchitectureBundle) {
        for (name, value) in bundle.parts.metadata.entries() {
            self.add(name, value.as_deref().unwrap_or_default());
        }
        self.add("contract", &format!("kilnbox:architecture@{}", bundle.contract));
        self.add_all("imports", bundle.imports.iter().map(String::as_str));
        self.add("hypers", bundle.parts.default_hypers.as_deref().unwrap_or_default());
    }

    fn identity(&mut self, identity: &ArchitectureIdentity) {
        let version = identity.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
        self.add("architecture", &format!("{}{version}, {}", identity.name, identity.digest));
    }

    fn model(&mut self, model: &ModelFile) {
        self.add("description", model.metadata["description"].as_str().unwrap_or_default());
        let authors = model.metadata["authors"].as_array();
        self.add_all("authors", authors.into_iter().flatten().filter_map(Json::as_str));
        self.checkpoint(&model.checkpoint);
        self.add("component", &bytes(model.component.len() as u64));
        if let Ok(bundle) = ArchitectureBundle::read(&model.component) {
            self.add("licenses", bundle.parts.metadata.licenses.as_deref().unwrap_or_default());
            self.add_all("imports", bundle.imports.iter().map(String::as_str));
        }
        self.json("capabilities", &model.capabilities);
        self.json("metrics", &model.metrics);
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointFile) {
        self.identity(&checkpoint.architecture);
        self.add("contract", &format!("kilnbox:architecture@{}", checkpoint.contract_version));
        self.add("epoch", &checkpoint.epoch.map(|epoch| epoch.to_string()).unwrap_or_default());
        self.add("seed", &checkpoint.seed.to_string());
        let size = checkpoint.tensors.iter().map(|tensor| tensor.bytes.len() as u64).sum();
        self.add("tensors", &format!("{}, {}", checkpoint.tensors.len(), bytes(size)));
        self.json("dataset", &checkpoint.dataset_info);
        self.json("hypers", &checkpoint.hypers);
    }
}

fn printable_lines(text: &str) -> String {
    /// A line of documentation is a paragraph.
    fn plain(line: &str) -> String {
        line.chars()
            .filter(|character| {
                !character.is_control() && character.escape_debug().len() == 1 || "\"'\\".contains(*character)
            })
            .collect()
    }
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}
