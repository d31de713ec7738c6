//! Finding an architecture by name, without a registry: it is there because its folder or `.wasm` file is on the search
//! path.
//!
//! ```text
//! <search folder>/soap-bpnn/architecture.wasm      or soap-bpnn/soap-bpnn.wasm
//!                           default-hypers.yaml    optional, as are the two below
//!                           schema-hypers.json
//!                           README.md
//! <search folder>/soap-bpnn.wasm                   a component on its own
//! <search folder>/experimental/mace/...            `experimental.mace`; likewise `deprecated.x`
//! ```
//!
//! A `-` and a `_` in a name are the same. The search path is the folders in `KILNBOX_ARCHITECTURES` (separated as in
//! `PATH`), the working directory, `../architectures` beside the program's folder, and
//! `$XDG_DATA_HOME/kilnbox/architectures`. The first folder that has the name wins.

use crate::errors::{CliError, file_error, nearest};
use crate::hypers::HypersSources;
use crate::yaml::{Node, read_text};
use std::fs;
use std::path::{Path, PathBuf};

/// The largest component, in bytes; an exported model accepts no larger one.
const MAX_COMPONENT_BYTES: u64 = 64 << 20;
/// The largest `schema-hypers.json`, in bytes.
const MAX_SCHEMA_BYTES: u64 = 1 << 20;
/// The largest `README.md`, in bytes.
const MAX_README_BYTES: u64 = 4 << 20;
/// The groups that an architecture's name may be in, as in metatrain.
const GROUPS: [&str; 2] = ["experimental", "deprecated"];
/// The most names that a message lists of one folder.
const MOST_LISTED: usize = 100;
/// The component's file in an architecture's folder, unless it bears the architecture's name.
const COMPONENT: &str = "architecture.wasm";

/// An architecture's files, read into memory; nothing of it has run.
#[derive(Clone, Debug)]
pub struct ArchitectureFiles {
    /// The name, with its group: `soap-bpnn` or `experimental.mace`.
    pub name: String,
    /// Where the component was found.
    pub path: PathBuf,
    /// The component's bytes.
    pub component: Vec<u8>,
    /// `default-hypers.yaml`, when there is one.
    pub default_hypers: Option<TextFile>,
    /// `schema-hypers.json`, when there is one.
    pub schema_hypers: Option<TextFile>,
    /// `README.md`, when there is one.
    pub readme: Option<TextFile>,
}

/// A text file of an architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFile {
    /// Its path, as messages show it.
    pub path: String,
    /// Its content.
    pub text: String,
}

impl ArchitectureFiles {
    /// The files that hypers are made of, for [`crate::hypers::merge_hypers`].
    pub fn hypers_sources(&self) -> HypersSources<'_> {
        HypersSources {
            defaults: self.default_hypers.as_ref().map(|file| (file.text.as_str(), file.path.as_str())),
            schema: self.schema_hypers.as_ref().map(|file| (file.text.as_str(), file.path.as_str())),
        }
    }
}

/// Where architectures are looked for.
#[derive(Clone, Debug)]
pub struct SearchPath {
    folders: Vec<PathBuf>,
}

impl SearchPath {
    /// The search path of this process, from its environment.
    pub fn from_environment() -> Self {
        let mut folders: Vec<PathBuf> = std::env::var_os("KILNBOX_ARCHITECTURES")
            .map(|folders| std::env::split_paths(&folders).filter(|folder| !folder.as_os_str().is_empty()).collect())
            .unwrap_or_default();
        folders.push(PathBuf::from("."));
        if let Some(folder) = std::env::current_exe().ok().as_deref().and_then(Path::parent).and_then(Path::parent) {
            folders.push(folder.join("architectures"));
        }
        let data = std::env::var_os("XDG_DATA_HOME")
            .map(PathBuf::from)
            .filter(|folder| folder.is_absolute())
            .or_else(|| std::env::home_dir().map(|home| home.join(".local/share")));
        folders.extend(data.map(|data| data.join("kilnbox/architectures")));
        Self::new(folders)
    }

    /// A search path of these folders; those that do not exist are skipped when searching.
    pub fn new(folders: Vec<PathBuf>) -> Self {
        Self { folders }
    }

    /// The names of all architectures that can be found, sorted, each once.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for location in self.folders.iter().flat_map(|folder| list_folder(folder)) {
            if !names.iter().any(|name| normal(name) == normal(&location.name)) {
                names.push(location.name);
            }
        }
        names.sort();
        names
    }

    /// Finds the architecture that the user named and reads its files.
    ///
    /// The name may also be the path of a component or of the folder that holds it.
    ///
    /// # Errors
    ///
    /// When there is none, says what was found where and which name comes nearest. Also when a file cannot be read.
    pub fn find(&self, name: &str) -> Result<ArchitectureFiles, CliError> {
        if let Some(location) = locate_by_path(Path::new(name))? {
            return read(location);
        }
        let found: Vec<(&PathBuf, Vec<Location>)> =
            self.folders.iter().map(|folder| (folder, list_folder(folder))).collect();
        let wanted = normal(name);
        let location =
            found.iter().flat_map(|(_, locations)| locations).find(|location| normal(&location.name) == wanted);
        match location {
            Some(location) => read(location.clone()),
            None => Err(unknown_architecture(name, &found)),
        }
    }
}

/// A component that was found, and the name it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Location {
    name: String,
    component: PathBuf,
    /// The folder of the files beside the component; none for a lone component in a folder of many.
    folder: Option<PathBuf>,
}

/// Names are compared as metatrain's users write them: `soap_bpnn` is `soap-bpnn`.
fn normal(name: &str) -> String {
    name.replace('_', "-")
}

/// Takes the name as a path, when it can only be meant as one.
fn locate_by_path(path: &Path) -> Result<Option<Location>, CliError> {
    let is_wasm = path.extension().is_some_and(|extension| extension == "wasm");
    let has_separator = path.components().count() > 1 || path.is_absolute();
    if !is_wasm && !has_separator {
        return Ok(None);
    }
    if path.is_dir() {
        let name = folder_name(&path.canonicalize().map_err(|error| file_error("open", path, &error))?);
        return match component_in(path, &name) {
            Some(component) => Ok(Some(Location { name, component, folder: Some(path.to_owned()) })),
            None => Err(CliError::input(format!("`{}` holds no `{COMPONENT}`", path.display()))),
        };
    }
    if !path.is_file() {
        return Err(CliError::input(format!("there is no architecture at `{}`", path.display())));
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = if path.file_name().is_some_and(|name| name == COMPONENT) {
        folder.canonicalize().map(|folder| folder_name(&folder)).unwrap_or(stem)
    } else {
        stem
    };
    Ok(Some(Location { name, component: path.to_owned(), folder: Some(folder) }))
}

fn folder_name(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Everything in one folder of the search path, sorted by name; a folder that cannot be read is an empty one.
fn list_folder(folder: &Path) -> Vec<Location> {
    let mut locations = list_group(folder, "");
    for group in GROUPS {
        locations.extend(list_group(&folder.join(group), &format!("{group}.")));
    }
    locations
}

fn list_group(folder: &Path, prefix: &str) -> Vec<Location> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut locations: Vec<Location> =
        entries.flatten().filter_map(|entry| locate_entry(&entry.path(), prefix)).collect();
    // A folder before a lone component of the same name, because it says more.
    locations.sort_by(|left, right| (&left.name, left.folder.is_none()).cmp(&(&right.name, right.folder.is_none())));
    locations
}

fn locate_entry(path: &Path, prefix: &str) -> Option<Location> {
    let file_name = path.file_name()?.to_str()?;
    if path.is_dir() {
        let component = component_in(path, file_name)?;
        return Some(Location { name: format!("{prefix}{file_name}"), component, folder: Some(path.to_owned()) });
    }
    let stem = file_name.strip_suffix(".wasm").filter(|_| path.is_file())?;
    Some(Location { name: format!("{prefix}{stem}"), component: path.to_owned(), folder: None })
}

/// The component in an architecture's folder.
fn component_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let named = [name.to_owned(), name.replace('-', "_"), normal(name)];
    std::iter::once(COMPONENT.to_owned())
        .chain(named.into_iter().map(|name| format!("{name}.wasm")))
        .map(|file| folder.join(file))
        .find(|path| path.is_file())
}

fn read(location: Location) -> Result<ArchitectureFiles, CliError> {
    let text = |file: &str, limit: u64| -> Result<Option<TextFile>, CliError> {
        let Some(path) = location.folder.as_ref().map(|folder| folder.join(file)).filter(|path| path.is_file()) else {
            return Ok(None);
        };
        Ok(Some(TextFile { text: read_text(&path, limit)?, path: path.display().to_string() }))
    };
    let default_hypers = text("default-hypers.yaml", crate::yaml::MAX_BYTES)?;
    let name = match &default_hypers {
        Some(file) => own_name(file, &location.name)?,
        None => location.name.clone(),
    };
    Ok(ArchitectureFiles {
        name,
        component: read_component(&location.component)?,
        default_hypers,
        schema_hypers: text("schema-hypers.json", MAX_SCHEMA_BYTES)?,
        readme: text("README.md", MAX_README_BYTES)?,
        path: location.component,
    })
}

/// The name that the architecture gives itself, which must be the one under which it was found: otherwise its checkpoints
/// could not be found again.
fn own_name(file: &TextFile, found: &str) -> Result<String, CliError> {
    let node = Node::parse(&file.text, &file.path)?;
    let Some(field) = node.get("name") else { return Ok(found.to_owned()) };
    let name = crate::yaml::Field { path: "name".to_owned(), node: field }.text()?;
    let last = |name: &str| normal(name.rsplit('.').next().unwrap_or_default());
    if last(&name) != last(found) {
        return Err(CliError::input(format!(
            "{}: the architecture calls itself `{}`, and its folder or file `{}`",
            field.place,
            crate::log::printable(&name),
            crate::log::printable(found)
        ))
        .hint("rename one of them"));
    }
    // The group is where it lies, whatever the file says.
    Ok(if found.contains('.') { found.to_owned() } else { name })
}

fn read_component(path: &Path) -> Result<Vec<u8>, CliError> {
    use std::io::Read;
    let unreadable = |error: &std::io::Error| file_error("read", path, error);
    let file = fs::File::open(path).map_err(|error| unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(MAX_COMPONENT_BYTES + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_COMPONENT_BYTES {
        return Err(CliError::input(format!(
            "the component `{}` has more than {MAX_COMPONENT_BYTES} bytes, which are the most that is accepted",
            path.display()
        )));
    }
    // wasmtime keeps compiled components as ELF files on every system.
    if bytes.starts_with(b"\x7fELF") {
        return Err(CliError::input(format!(
            "`{}`: the component is refused: it is native code (a compiled component, `.cwasm`?), which is never loaded from a file of others",
            path.display()
        ))
        .hint("give the component that it was compiled from, which runs in the sandbox"));
    }
    Ok(bytes)
}

fn unknown_architecture(name: &str, found: &[(&PathBuf, Vec<Location>)]) -> CliError {
    let mut message = format!("there is no architecture `{}`; looked in", crate::log::printable(name));
    for (folder, locations) in found {
        let names: Vec<_> =
            locations.iter().take(MOST_LISTED).map(|location| crate::log::printable(&location.name)).collect();
        let names = match (folder.is_dir(), names.is_empty()) {
            (false, _) => "no such folder".to_owned(),
            (true, true) => "none".to_owned(),
            (true, false) => names.join(", "),
        };
        message.push_str(&format!("\n`{}`: {names}", folder.display()));
    }
    let error = CliError::input(message);
    let names = || found.iter().flat_map(|(_, locations)| locations).map(|location| location.name.as_str());
    let without_group = |name: &str| normal(name.rsplit('.').next().unwrap_or_default());
    // The right name in another group is surely what was meant.
    let same = names().find(|other| without_group(other) == without_group(name));
    match same.or_else(|| nearest(name, names())) {
        Some(other) => error.hint(format!("use `{}`", crate::log::printable(other))),
        None => error.hint("name a component's file, or add its folder to `KILNBOX_ARCHITECTURES`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files; a file's content is its path.
    fn folder(files: &[&str]) -> (tempfile::TempDir, SearchPath) {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("the folder is made");
            let content = if file.ends_with(".yaml") { String::new() } else { (*file).to_owned() };
            fs::write(path, if content.is_empty() { "model: {}\n".to_owned() } else { content })
                .expect("the file is written");
        }
        let path = SearchPath::new(vec![folder.path().to_owned(), folder.path().join("absent")]);
        (folder, path)
    }

    fn component(search: &SearchPath, name: &str) -> String {
        match search.find(name) {
            Ok(files) => String::from_utf8(files.component).expect("the component is text here"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn names_find_folders_and_files_in_every_group() {
        let (_folder, search) = folder(&[
            "soap-bpnn/architecture.wasm",
            "pet/pet.wasm",
            "lone.wasm",
            "experimental/my_net/my_net.wasm",
            "deprecated/old/architecture.wasm",
        ]);
        let cases = [
            ("soap-bpnn", "soap-bpnn/architecture.wasm"),
            ("soap_bpnn", "soap-bpnn/architecture.wasm"),
            ("pet", "pet/pet.wasm"),
            ("lone", "lone.wasm"),
            ("experimental.my-net", "experimental/my_net/my_net.wasm"),
            ("deprecated.old", "deprecated/old/architecture.wasm"),
        ];
        for (name, expected) in cases {
            assert_eq!(component(&search, name), expected);
        }
        assert_eq!(search.find("experimental.my-net").expect("it is found").name, "experimental.my_net");
        assert_eq!(search.names(), ["deprecated.old", "experimental.my_net", "lone", "pet", "soap-bpnn"]);
    }

    #[test]
    fn paths_are_names_too() {
        let (folder, search) = folder(&["some where/net/architecture.wasm", "x.wasm", "empty/readme"]);
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["some where/net", "some where/net/architecture.wasm"] {
            let files = search.find(&path(name)).expect("the path is found");
            assert_eq!(
                (files.name.as_str(), files.component.as_slice()),
                ("net", b"some where/net/architecture.wasm".as_slice())
            );
        }
        assert_eq!(component(&search, &path("x.wasm")), "x.wasm");
        assert!(component(&search, &path("y.wasm")).contains("there is no architecture at"));
        assert!(component(&search, &path("empty")).contains("holds no `architecture.wasm`"));
    }

    #[test]
    fn the_files_beside_the_component_come_with_it() {
        let (_folder, search) = folder(&[
            "net/architecture.wasm",
            "net/default-hypers.yaml",
            "net/schema-hypers.json",
            "net/README.md",
            "lone.wasm",
            "README.md",
        ]);
        let files = search.find("net").expect("the architecture is found");
        assert_eq!(files.default_hypers.expect("defaults").text, "model: {}\n");
        assert_eq!(files.schema_hypers.expect("a schema").text, "net/schema-hypers.json");
        assert_eq!(files.readme.expect("a readme").text, "net/README.md");
        assert!(search.find("lone").expect("it is found").readme.is_none(), "that readme is another's");
    }

    #[test]
    fn an_unknown_name_says_what_there_is() {
        let (_folder, search) = folder(&["soap-bpnn/architecture.wasm", "experimental/mace/mace.wasm", "docs/readme"]);
        let message = component(&search, "soapbpn");
        assert!(message.contains("there is no architecture `soapbpn`"), "{message}");
        assert!(message.contains("soap-bpnn, experimental.mace"), "{message}");
        assert!(message.contains("absent`: no such folder"), "{message}");
        assert!(message.ends_with("hint: use `soap-bpnn`"), "{message}");
        assert!(component(&search, "mace").ends_with("hint: use `experimental.mace`"));
        assert!(component(&search, "zzz").contains("KILNBOX_ARCHITECTURES"));
    }

    #[test]
    fn an_architecture_that_calls_itself_otherwise_is_refused() {
        let (folder, search) = folder(&["net/architecture.wasm"]);
        let defaults = folder.path().join("net/default-hypers.yaml");
        fs::write(&defaults, "name: experimental.net\n").expect("the file is written");
        assert_eq!(search.find("net").expect("the group may differ").name, "experimental.net");
        fs::write(&defaults, "name: other\n").expect("the file is written");
        assert!(component(&search, "net").contains("calls itself `other`"));
    }
}
