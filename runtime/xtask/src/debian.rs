//! Packages of Debian's archive, unpacked below `target/` and installed nowhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{command, target};

/// Programs that tests compare ours with: a registry, a client of registries, and minisign.
const PROGRAMS: [(&str, &str); 3] =
    [("docker-registry", "docker-registry"), ("skopeo", "skopeo"), ("minisign", "minisign")];
/// What they need, where the machine does not have it.
const LIBRARIES: [&str; 5] = ["libgpgme11", "libassuan0", "libgpg-error0", "libdevmapper1.02.1", "libsodium23"];

/// The folder with the programs that tests compare ours with; none, and a sentence, where there is no archive.
pub fn programs(root: &Path) -> Option<PathBuf> {
    let folder = target(root).join("debian-programs");
    let programs = folder.join("bin");
    if PROGRAMS.iter().all(|(_, program)| programs.join(program).is_file()) {
        return Some(programs);
    }
    eprintln!("fetching a registry, skopeo and minisign of Debian (10 MB) into `{}`: once", folder.display());
    match make_programs(&folder) {
        Ok(()) => Some(programs),
        Err(problem) => {
            eprintln!("{problem}\nthe tests that compare with them are left out");
            None
        }
    }
}

fn make_programs(folder: &Path) -> Result<(), String> {
    let fresh = folder.with_extension("part");
    let failed = |error: io::Error| format!("`{}`: {error}", fresh.display());
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    fs::create_dir_all(fresh.join("bin")).map_err(failed)?;
    let packages: Vec<&str> = PROGRAMS.iter().map(|(package, _)| *package).chain(LIBRARIES).collect();
    fetch(&packages, &fresh)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::rename(&fresh, folder).map_err(failed)?;
    PROGRAMS
        .iter()
        .try_for_each(|(_, program)| wrap(folder, &format!("bin/{program}"), program).map(drop).map_err(failed))
}

/// Fetches packages and unpacks them into a folder.
pub fn fetch(packages: &[&str], folder: &Path) -> Result<(), String> {
    let first = packages.first().copied().unwrap_or_default();
    if command::output(Command::new("apt-cache").args(["show", first])).is_none() {
        // Where lists of packages are out of date and this is allowed; where not, the download says what is wrong.
        let _ = command::check(Command::new("apt-get").args(["update", "-qq"]));
    }
    let downloads = folder.join("packages");
    let failed = |error: io::Error| format!("`{}`: {error}", downloads.display());
    fs::create_dir_all(&downloads).map_err(failed)?;
    command::check(Command::new("apt-get").args(["download", "-qq"]).args(packages).current_dir(&downloads))?;
    for entry in fs::read_dir(&downloads).map_err(failed)?.flatten() {
        command::check(Command::new("dpkg").arg("-x").arg(entry.path()).arg(folder))?;
    }
    fs::remove_dir_all(&downloads).map_err(failed)
}

/// A script at `place` that starts `usr/bin/<program>` with the libraries that were unpacked beside it, for itself only.
pub fn wrap(folder: &Path, place: &str, program: &str) -> io::Result<PathBuf> {
    let folder = fs::canonicalize(folder)?;
    let usr = folder.join("usr");
    let (usr, machine) = (usr.display(), std::env::consts::ARCH);
    let script = format!(
        "#!/bin/sh\nexec env LD_LIBRARY_PATH=\"{usr}/lib/{machine}-linux-gnu${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\" \"{usr}/bin/{program}\" \"$@\"\n"
    );
    let wrapper = folder.join(place);
    fs::write(&wrapper, script)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    Ok(wrapper)
}
