//! SwiftShader, a Vulkan device in software, for tests on machines without a graphics processor. It and a Vulkan loader come with Debian's Chromium; they
//! are unpacked under `target/`, and nothing is installed. (Mesa's lavapipe crashes in Debian 12's version.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{debian, target};

/// The package, and what is taken out of it.
const PACKAGE: &str = "chromium-common";
const FILES: [&str; 3] = ["libvk_swiftshader.so", "libvulkan.so.1", DESCRIPTION];
/// Tells the loader where the device is.
const DESCRIPTION: &str = "vk_swiftshader_icd.json";

/// Makes it the only Vulkan device that `command` sees.
pub fn show_to(command: &mut Command, folder: &Path) {
    let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let libraries = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&libraries));
    if let Ok(libraries) = std::env::join_paths(libraries) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    // Loaders of different age look at different names.
    for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
        command.env(variable, folder.join(DESCRIPTION));
    }
}

/// The folder that has it; fetched the first time.
pub fn find(root: &Path) -> Result<PathBuf, String> {
    let folder = target(root).join("swiftshader");
    if FILES.iter().all(|file| folder.join(file).is_file()) {
        return Ok(folder);
    }
    eprintln!("fetching SwiftShader from Debian's Chromium (26 MB) into `{}`: once", folder.display());
    let fresh = folder.with_extension("part");
    let failed = |error: std::io::Error| format!("`{}`: {error}", fresh.display());
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed)?;
    }
    fs::create_dir_all(&fresh).map_err(failed)?;
    let advice = "tests with `--device swiftshader` need Debian's or a like archive";
    debian::fetch(&[PACKAGE], &fresh).map_err(|message| format!("{message}: {advice}"))?;
    let unpacked = fresh.join("usr/lib/chromium");
    fs::create_dir_all(&folder).map_err(|error| format!("`{}`: {error}", folder.display()))?;
    for file in FILES {
        fs::copy(unpacked.join(file), folder.join(file)).map_err(|error| format!("`{file}` of {PACKAGE}: {error}"))?;
    }
    fs::remove_dir_all(&fresh).map_err(failed)?;
    Ok(folder)
}
