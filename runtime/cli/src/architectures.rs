//! Finding an architecture by name, without a registration: it is there because its folder or its bundle is on the search
//! path.
//!
//! ```text
//! <search folder>/soap-bpnn/architecture.wasm      or soap-bpnn/soap-bpnn.wasm
//!                           default-hypers.yaml    optional, as are the two below
//!                           schema-hypers.json
//!                           README.md
//! <search folder>/soap-bpnn.wasm                   a bundle, which has all of these in one file
//! <search folder>/experimental/mace/...            `experimental.mace`; likewise `deprecated.x`
//! ```
//!
//! Besides a name, the path of any of these is one, and so is that of a model, which carries its architecture.
//!
//! A `-` and a `_` in a name are the same. The search path is the folders in `KILNBOX_ARCHITECTURES` (separated as in
//! `PATH`), the working directory, `../architectures` beside the program's folder, and
//! `$XDG_DATA_HOME/kilnbox/architectures`. The first folder that has the name wins.

use crate::errors::{CliError, file_error, nearest};
use crate::hypers::HypersSources;
use crate::log::printable;
use crate::registries::as_path;
use crate::run_folder::MODEL_SUFFIX;
use crate::sandbox::Package;
use crate::trust::Trust;
use crate::yaml::{Node, read_text};
use kilnbox_bundle::{
    ArchitectureBundle, BundleError, FileKind, FormatError, MAX_COMPONENT_BYTES, ModelFile, Parts, Pulled, Reference,
    pack, package_name, read_whole,
};
use std::fs;
use std::path::{Path, PathBuf};

/// The largest `schema-hypers.json`, in bytes.
const MAX_SCHEMA_BYTES: u64 = 1 << 20;
/// The largest `README.md`, in bytes.
const MAX_README_BYTES: u64 = 4 << 20;
/// The groups that an architecture's name may be in, as in metatrain.
const GROUPS: [&str; 2] = ["experimental", "deprecated"];
/// The most names that a message lists of one folder.
const MOST_LISTED: usize = 100;
/// The component's file in an architecture's folder, unless it bears the architecture's name.
pub(crate) const COMPONENT: &str = "architecture.wasm";

/// An architecture's files, read into memory; nothing of it has run.
#[derive(Clone, Debug)]
pub struct ArchitectureFiles {
    /// The name, with its group: `soap-bpnn` or `experimental.mace`.
    pub name: String,
    /// Where the component was found.
    pub path: PathBuf,
    /// The component's bytes.
    pub component: Vec<u8>,
    /// Of what kind of place it is.
    origin: Origin,
    /// `default-hypers.yaml`, when there is one.
    pub default_hypers: Option<TextFile>,
    /// `schema-hypers.json`, when there is one.
    pub schema_hypers: Option<TextFile>,
    /// `README.md`, when there is one.
    pub readme: Option<TextFile>,
}

/// Where the parts of an architecture lay.
#[derive(Clone, Debug)]
enum Origin {
    /// Beside one another.
    Folder,
    /// In the component itself.
    Bundle,
    /// In the component in a model of this content.
    Model(Vec<u8>),
    /// In a registry, in a file of this content with this signature.
    Registry(Vec<u8>, Option<String>),
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
    /// The component with all that belongs to it: as it is, if it is a bundle, and packed here, if its files lie beside it. So what is run and kept in models
    /// is always complete, and has the digest of what `kilnbox pack` makes of the same files.
    ///
    /// # Errors
    ///
    /// The files are no fit content of a bundle. What is no component is handed on as it is: whoever compiles it says best what is wrong.
    pub fn bundle(&self) -> Result<Vec<u8>, CliError> {
        if !matches!(self.origin, Origin::Folder) {
            return Ok(self.component.clone());
        }
        match pack(&self.component, &self.parts()) {
            Ok(bundle) => Ok(bundle),
            Err(FormatError::NotAComponent(_)) => Ok(self.component.clone()),
            Err(error) => Err(unusable(&self.path, error)),
        }
    }

    /// Refuses an architecture that must not run without a signature, if the user wants signatures.
    ///
    /// # Errors
    ///
    /// See [`Trust::check`] and [`Trust::check_unpacked`].
    pub fn check_signature(&self, trust: &Trust) -> Result<(), CliError> {
        match &self.origin {
            Origin::Folder => trust.check_unpacked(&self.path),
            Origin::Bundle => trust.check(&self.path, &self.component),
            Origin::Model(bytes) => trust.check(&self.path, bytes),
            Origin::Registry(bytes, signature) => trust.check_with(&self.path, bytes, signature.as_deref()),
        }
    }

    /// The architecture of what was pulled: a bundle, or that in a model.
    ///
    /// # Errors
    ///
    /// What was pulled is no good bundle.
    pub fn pulled(reference: &Reference, pulled: Pulled) -> Result<Self, CliError> {
        let path = as_path(reference);
        let component = match pulled.kind {
            FileKind::Model => model(&path, &pulled.bytes)?.component,
            _ => pulled.bytes.clone(),
        };
        let files = read_bundle(component, path, None)?;
        Ok(Self { origin: Origin::Registry(pulled.bytes, pulled.signature), ..files })
    }

    /// The architecture of a bundle that was pulled some time ago. Whose signature that had is not known any more.
    ///
    /// # Errors
    ///
    /// It is no good bundle.
    pub fn kept(component: Vec<u8>, digest: &str) -> Result<Self, CliError> {
        let files = read_bundle(component.clone(), PathBuf::from(digest), None)?;
        Ok(Self { origin: Origin::Registry(component, None), ..files })
    }

    /// What belongs to the component besides its code.
    pub fn parts(&self) -> Parts {
        let text = |file: &Option<TextFile>| file.as_ref().map(|file| file.text.clone());
        Parts {
            name: self.name.clone(),
            default_hypers: text(&self.default_hypers),
            schema_hypers: text(&self.schema_hypers),
            docs: text(&self.readme),
            metadata: kilnbox_bundle::Metadata::default(),
        }
    }

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
        folders.extend(Package::of_this_program().ok().map(|package| package.architectures()));
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
    /// Whether it was found by its name, and not named by its path.
    is_on_search_path: bool,
    /// Whether it is a file of its own, and not the component of a folder.
    is_lone: bool,
}

/// Names are compared as metatrain's users write them: `soap_bpnn` is `soap-bpnn`.
fn normal(name: &str) -> String {
    name.replace('_', "-")
}

/// Takes the name as a path, when it can only be meant as one.
fn locate_by_path(path: &Path) -> Result<Option<Location>, CliError> {
    let is_wasm = path.extension().is_some_and(|extension| extension == "wasm" || extension == MODEL_SUFFIX);
    let has_separator = path.components().count() > 1 || path.is_absolute();
    if !is_wasm && !has_separator {
        return Ok(None);
    }
    if path.is_dir() {
        let name = folder_name(&path.canonicalize().map_err(|error| file_error("open", path, &error))?);
        return match component_in(path, &name) {
            Some(component) => Ok(Some(Location {
                name,
                component,
                folder: Some(path.to_owned()),
                is_on_search_path: false,
                is_lone: false,
            })),
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
    let is_of_folder = path.file_name().is_some_and(|name| name == COMPONENT);
    let name =
        if is_of_folder { folder.canonicalize().map(|folder| folder_name(&folder)).unwrap_or(stem) } else { stem };
    Ok(Some(Location {
        name,
        component: path.to_owned(),
        folder: Some(folder),
        is_on_search_path: false,
        is_lone: !is_of_folder,
    }))
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
        return Some(Location {
            name: format!("{prefix}{file_name}"),
            component,
            folder: Some(path.to_owned()),
            is_on_search_path: true,
            is_lone: false,
        });
    }
    let stem = file_name.strip_suffix(".wasm").filter(|_| path.is_file())?;
    Some(Location {
        name: format!("{prefix}{stem}"),
        component: path.to_owned(),
        folder: None,
        is_on_search_path: true,
        is_lone: true,
    })
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
    if location.component.extension().is_some_and(|extension| extension == MODEL_SUFFIX) {
        let bytes = read_whole(&location.component, FileKind::Model)?;
        let component = model(&location.component, &bytes)?.component;
        let files = read_bundle(component, location.component, None)?;
        return Ok(ArchitectureFiles { origin: Origin::Model(bytes), ..files });
    }
    let component = read_component(&location.component)?;
    if ArchitectureBundle::is_likely(&component) {
        let found = location.is_on_search_path.then_some(location.name.as_str());
        return read_bundle(component, location.component, found);
    }
    let text = |file: &str, limit: u64| -> Result<Option<TextFile>, CliError> {
        let Some(path) = location.folder.as_ref().map(|folder| folder.join(file)).filter(|path| path.is_file()) else {
            return Ok(None);
        };
        Ok(Some(TextFile { text: read_text(&path, limit)?, path: path.display().to_string() }))
    };
    let default_hypers = text("default-hypers.yaml", crate::yaml::MAX_BYTES)?;
    let schema_hypers = text("schema-hypers.json", MAX_SCHEMA_BYTES)?;
    if location.is_lone && default_hypers.is_none() && schema_hypers.is_none() {
        // A file on its own is a bundle, or nothing that can be used: its hypers would be anybody's guess.
        ArchitectureBundle::read(&component).map_err(|error| unusable(&location.component, error))?;
    }
    let name = match &default_hypers {
        Some(file) => own_name(file, &location.name)?,
        None => location.name.clone(),
    };
    Ok(ArchitectureFiles {
        name,
        component,
        origin: Origin::Folder,
        default_hypers,
        schema_hypers,
        readme: text("README.md", MAX_README_BYTES)?,
        path: location.component,
    })
}

/// The parts of a bundle. One that was `found` by a name must have that name, as a folder must; one that was named by its path may lie under any name.
fn read_bundle(component: Vec<u8>, path: PathBuf, found: Option<&str>) -> Result<ArchitectureFiles, CliError> {
    let bundle = ArchitectureBundle::read(&component).map_err(|error| unusable(&path, error))?;
    let Parts { name, default_hypers, schema_hypers, docs, metadata: _ } = bundle.parts;
    if let Some(found) = found.filter(|found| last_part(found) != last_part(&name)) {
        return Err(misnamed(&path.display(), &name, found));
    }
    let text = |text: Option<String>, part: &str| {
        text.map(|text| TextFile { text, path: format!("{}#{part}", path.display()) })
    };
    Ok(ArchitectureFiles {
        name: found.filter(|found| found.contains('.')).map_or(name, str::to_owned),
        origin: Origin::Bundle,
        default_hypers: text(default_hypers, "default-hypers.yaml"),
        schema_hypers: text(schema_hypers, "schema-hypers.json"),
        readme: text(docs, "README.md"),
        component,
        path,
    })
}

/// Reads the folder of an architecture, or a component, to be packed.
pub(crate) fn read_to_pack(path: &Path) -> Result<ArchitectureFiles, CliError> {
    let location = locate_by_path(&Path::new(".").join(path))?
        .ok_or_else(|| CliError::input(format!("there is no architecture at `{}`", path.display())))?;
    with_package_name(read(Location { is_lone: false, ..location })?)
}

/// An architecture whose hypers do not name it has the name of its package, and only then that of its folder.
fn with_package_name(files: ArchitectureFiles) -> Result<ArchitectureFiles, CliError> {
    let is_named = matches!(files.origin, Origin::Bundle)
        || files
            .default_hypers
            .as_ref()
            .is_some_and(|file| Node::parse(&file.text, &file.path).is_ok_and(|node| node.get("name").is_some()));
    match package_name(&files.component).filter(|_| !is_named) {
        Some(name) => Ok(ArchitectureFiles { name, ..files }),
        None => Ok(files),
    }
}

/// A component that was just built, with the files in the folder of its sources.
pub(crate) fn read_built(folder: &Path, component: PathBuf) -> Result<ArchitectureFiles, CliError> {
    let location = Location {
        name: folder_name(folder),
        component,
        folder: Some(folder.to_owned()),
        is_on_search_path: false,
        is_lone: false,
    };
    with_package_name(read(location)?)
}

fn model(path: &Path, bytes: &[u8]) -> Result<ModelFile, CliError> {
    ModelFile::from_bytes(bytes)
        .map_err(|source| BundleError::Unusable { kind: FileKind::Model, path: path.to_owned(), source }.into())
}

pub(crate) fn unusable(path: &Path, source: FormatError) -> CliError {
    BundleError::Unusable { kind: FileKind::Architecture, path: path.to_owned(), source }.into()
}

/// The name that the architecture gives itself, which must be the one under which it was found: otherwise its checkpoints
/// could not be found again.
fn own_name(file: &TextFile, found: &str) -> Result<String, CliError> {
    let node = Node::parse(&file.text, &file.path)?;
    let Some(field) = node.get("name") else { return Ok(found.to_owned()) };
    let name = crate::yaml::Field { path: "name".to_owned(), node: field }.text()?;
    if last_part(&name) != last_part(found) {
        return Err(misnamed(&field.place, &name, found));
    }
    // The group is where it lies, whatever the file says.
    Ok(if found.contains('.') { found.to_owned() } else { name })
}

/// A name without its group.
fn last_part(name: &str) -> String {
    normal(name.rsplit('.').next().unwrap_or_default())
}

fn misnamed(place: &dyn std::fmt::Display, name: &str, found: &str) -> CliError {
    CliError::input(format!(
        "{place}: the architecture calls itself `{}`, and its folder or file `{}`",
        printable(name),
        printable(found)
    ))
    .hint("rename one of them")
}

pub(crate) fn read_component(path: &Path) -> Result<Vec<u8>, CliError> {
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
    let mut message = format!("there is no architecture `{}`; looked in", printable(name));
    for (folder, locations) in found {
        let names: Vec<_> = locations.iter().take(MOST_LISTED).map(|location| printable(&location.name)).collect();
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
        Some(other) => error.hint(format!("use `{}`", printable(other))),
        None => error.hint("name a component's file, or add its folder to `KILNBOX_ARCHITECTURES`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle with this name, of a component that does nothing.
    fn bundle(name: &str) -> Vec<u8> {
        let component = wat::parse_str(r#"(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#);
        let parts = Parts {
            name: name.to_owned(),
            default_hypers: Some("model: {a: 1}\n".to_owned()),
            docs: Some("# Docs".to_owned()),
            ..Parts::default()
        };
        pack(&component.expect("a component"), &parts).expect("a bundle")
    }

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
            "experimental/my_net/my_net.wasm",
            "deprecated/old/architecture.wasm",
        ]);
        let cases = [
            ("soap-bpnn", "soap-bpnn/architecture.wasm"),
            ("soap_bpnn", "soap-bpnn/architecture.wasm"),
            ("pet", "pet/pet.wasm"),
            ("experimental.my-net", "experimental/my_net/my_net.wasm"),
            ("deprecated.old", "deprecated/old/architecture.wasm"),
        ];
        for (name, expected) in cases {
            assert_eq!(component(&search, name), expected);
        }
        assert_eq!(search.find("experimental.my-net").expect("it is found").name, "experimental.my_net");
        assert_eq!(search.names(), ["deprecated.old", "experimental.my_net", "pet", "soap-bpnn"]);
    }

    #[test]
    fn paths_are_names_too() {
        let (folder, search) =
            folder(&["some where/net/architecture.wasm", "x/x.wasm", "x/default-hypers.yaml", "empty/readme"]);
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["some where/net", "some where/net/architecture.wasm"] {
            let files = search.find(&path(name)).expect("the path is found");
            assert_eq!(
                (files.name.as_str(), files.component.as_slice()),
                ("net", b"some where/net/architecture.wasm".as_slice())
            );
        }
        assert_eq!(component(&search, &path("x/x.wasm")), "x/x.wasm");
        assert!(component(&search, &path("y.wasm")).contains("there is no architecture at"));
        assert!(component(&search, &path("empty")).contains("holds no `architecture.wasm`"));
    }

    #[test]
    fn the_files_beside_the_component_come_with_it() {
        let (_folder, search) =
            folder(&["net/architecture.wasm", "net/default-hypers.yaml", "net/schema-hypers.json", "net/README.md"]);
        let files = search.find("net").expect("the architecture is found");
        assert_eq!(files.default_hypers.expect("defaults").text, "model: {}\n");
        assert_eq!(files.schema_hypers.expect("a schema").text, "net/schema-hypers.json");
        assert_eq!(files.readme.expect("a readme").text, "net/README.md");
    }

    #[test]
    fn a_bundle_has_its_own_files_whatever_lies_beside_it() {
        let (folder, search) = folder(&["README.md", "default-hypers.yaml", "schema-hypers.json"]);
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).expect("a file");
        write("net.wasm", &bundle("net"));
        write("renamed.wasm", &bundle("net"));
        for name in ["net".to_owned(), folder.path().join("renamed.wasm").display().to_string()] {
            let files = search.find(&name).expect("the bundle is found");
            assert_eq!(files.name, "net");
            assert_eq!(files.default_hypers.as_ref().expect("defaults").text, "model: {a: 1}\n");
            assert!(files.schema_hypers.is_none() && files.readme.as_ref().expect("docs").path.ends_with("#README.md"));
            assert_eq!(files.bundle().expect("a bundle"), bundle("net"));
        }
        assert!(component(&search, "renamed").contains("calls itself `net`, and its folder or file `renamed`"));
    }

    #[test]
    fn a_folder_is_run_as_the_bundle_that_would_be_packed_of_it() {
        let (folder, search) = folder(&["net/default-hypers.yaml"]);
        let component = wat::parse_str(r#"(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#);
        fs::write(folder.path().join("net/architecture.wasm"), component.expect("a component")).expect("a file");
        let bundle = search.find("net").expect("it is found").bundle().expect("a bundle");
        let read = ArchitectureBundle::read(&bundle).expect("it is read");
        assert_eq!((read.parts.name.as_str(), read.parts.default_hypers.as_deref()), ("net", Some("model: {}\n")));
        fs::write(folder.path().join("packed.wasm"), &bundle).expect("a file");
        let packed = search.find(&folder.path().join("packed.wasm").display().to_string()).expect("it is found");
        assert_eq!(packed.bundle().expect("a bundle"), bundle);
    }

    #[test]
    fn a_file_on_its_own_must_be_a_bundle() {
        let (folder, search) = folder(&["junk.wasm"]);
        let component = wat::parse_str(r#"(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#);
        fs::write(folder.path().join("bare.wasm"), component.expect("a component")).expect("a file");
        assert!(component_error(&search, "bare").contains("was the file stripped?"));
        assert!(component_error(&search, "bare").contains("kilnbox pack"));
        assert!(component_error(&search, "junk").contains("is not a component of an architecture"));
    }

    fn component_error(search: &SearchPath, name: &str) -> String {
        search.find(name).expect_err("it is refused").to_string()
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
