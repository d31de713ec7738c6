//! Code that comes with the program: nobody's first start compiles it, and nobody runs what others may have put there.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kilnbox_tests::{Elsewhere, Outcome};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const OPTIONS: &str = "\
seed: 1
architecture: {name: composition}
training_set:
  systems: {read_from: ethanol.xyz, length_unit: angstrom}
  targets:
    energy: {key: energy, unit: eV}
validation_set: 0.25
test_set: 0
";
/// Too little to compile anything: who starts with this has found code.
const NO_TIME: &str = "compile_seconds=0.001";

/// A package as users get it, with one architecture and no code yet.
struct Package {
    place: Elsewhere,
}

impl Package {
    fn new() -> Fallible<Self> {
        let place = Elsewhere::new(8)?;
        fs::write(place.path("options.yaml"), OPTIONS)?;
        let architecture = place.path("package/architectures/composition");
        fs::create_dir_all(&architecture)?;
        fs::create_dir_all(place.path("package/bin"))?;
        let built = std::env::var_os("KILNBOX_ARCHITECTURES").ok_or("run the tests with `cargo xtask test`")?;
        let built = std::env::split_paths(&built).next().ok_or("no folder of architectures")?.join("composition");
        for entry in fs::read_dir(built)? {
            let entry = entry?;
            fs::copy(entry.path(), architecture.join(entry.file_name()))?;
        }
        let program = std::env::var_os("KILNBOX_PROGRAM").ok_or("run the tests with `cargo xtask test`")?;
        fs::copy(program, place.path("package/bin/kilnbox"))?;
        let package = Self { place };
        package.allow("package/bin/kilnbox", 0o755)?;
        Ok(package)
    }

    /// Runs the program of the package.
    fn run(&self, arguments: &[&str]) -> Fallible<Outcome> {
        Ok(self.place.run_copy("package/bin/kilnbox", arguments)?)
    }

    /// Whether a training starts that has nothing in its cache and no time to compile; any other end than for want of time is an error.
    fn starts_at_once(&self) -> Fallible<bool> {
        let cache = self.place.path("cache");
        if cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        let outcome = self.run(&["train", "options.yaml", "--limit", NO_TIME])?;
        let kept = cache.join("kilnbox");
        let nothing_kept = !kept.exists() || fs::read_dir(kept)?.next().is_none();
        match outcome.code {
            Some(0) if nothing_kept => Ok(true),
            Some(4) if outcome.errors.contains("`compile_seconds`") => Ok(false),
            _ => Err(format!("{outcome:?}").into()),
        }
    }

    fn allow(&self, path: &str, mode: u32) -> Fallible {
        Ok(fs::set_permissions(self.place.path(path), fs::Permissions::from_mode(mode))?)
    }

    /// The one file of compiled code, below the place.
    fn code(&self) -> Fallible<PathBuf> {
        let files: Vec<_> = fs::read_dir(self.place.path("package/compiled"))?.flatten().collect();
        assert!(files.len() == 1, "{files:?}");
        Ok(Path::new("package/compiled").join(files[0].file_name()))
    }
}

#[test]
fn a_package_starts_at_once_with_code_that_only_its_owner_could_have_put_there() -> Fallible {
    let package = Package::new()?;
    assert!(!package.starts_at_once()?, "there is no code yet");
    let outcome = package.run(&["precompile"])?;
    assert!(outcome.code == Some(0) && outcome.output.contains("Compiled `composition` into"), "{outcome:?}");
    assert!(package.starts_at_once()?);

    let code = package.code()?.display().to_string();
    for (path, mode, usual) in
        [("package/compiled", 0o775, 0o755), (&code, 0o646, 0o644), ("package/bin/kilnbox", 0o775, 0o755)]
    {
        package.allow(path, mode)?;
        assert!(!package.starts_at_once()?, "`{path}` can be written by others");
        package.allow(path, usual)?;
        assert!(package.starts_at_once()?, "`{path}` cannot any more");
    }

    // What is damaged is compiled, as if it were not there.
    let bytes = fs::read(package.place.path(&code))?;
    for damaged in [&bytes[..bytes.len() / 2], b"", b"\0asm\x0d\0\x01\0"] {
        fs::write(package.place.path(&code), damaged)?;
        assert!(!package.starts_at_once()?, "{} bytes of {}", damaged.len(), bytes.len());
    }
    assert_eq!(package.run(&["precompile"])?.code, Some(0));
    assert!(fs::read(package.place.path(&code))? == bytes, "the same code again");

    // Another architecture is none that came with the program.
    fs::write(package.place.path("package/architectures/composition/README.md"), "changed")?;
    assert!(!package.starts_at_once()?);
    Ok(())
}

#[test]
fn who_compiles_ahead_is_told_what_keeps_others_from_it() -> Fallible {
    let package = Package::new()?;
    package.allow("package/bin/kilnbox", 0o775)?;
    let outcome = package.run(&["precompile"])?;
    let words = "compiled`: it and the program must belong to one user, and nobody else may write them";
    assert!(outcome.code == Some(1) && outcome.errors.contains(words), "{outcome:?}");
    assert!(outcome.errors.contains("chmod go-w"), "{outcome:?}");
    let outcome = package.run(&["precompile", "kompositon"])?;
    assert!(outcome.code == Some(1) && outcome.errors.contains("composition"), "{outcome:?}");
    fs::remove_dir_all(package.place.path("package/architectures"))?;
    let outcome = package.run(&["precompile"])?;
    assert!(outcome.code == Some(1) && outcome.errors.contains("there are no architectures in"), "{outcome:?}");
    Ok(())
}
