//! One file, any machine: bundles and models through the real program, with other people's tools as judges.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use kilnbox_bundle::{ArchitectureBundle, ModelFile, sha256_digest};
use kilnbox_cli::architectures::SearchPath;
use kilnbox_tests::{Elsewhere, Workplace, ethanol_structures, peer};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// A training of a second.
fn options(architecture: &str, more: &str) -> String {
    format!(
        "\
seed: 7
architecture:
  name: {architecture}
  model:
    soap: {{max_angular: 2, max_radial: 2, cutoff: {{radius: 4.0, width: 0.5}}}}
    bpnn: {{num_hidden_layers: 2, num_neurons_per_layer: 8}}
  training: {{num_epochs: 3, batch_size: 4, learning_rate: 0.01{more}}}
training_set:
  systems: {{read_from: ethanol.xyz, length_unit: angstrom}}
  targets: {{energy: {{key: energy, unit: eV, forces: {{key: forces}}}}}}
validation_set: 0.2
test_set: 0.2
"
    )
}

/// How many structures a training here has.
const STRUCTURES: usize = 30;

/// The folder of a stock architecture, as it was built.
fn stock(name: &str) -> Fallible<String> {
    let files = SearchPath::from_environment().find(name)?;
    Ok(files.path.parent().ok_or("no folder")?.canonicalize()?.display().to_string())
}

/// The bundle of SOAP-BPNN in a new place.
fn packed() -> Fallible<Elsewhere> {
    let place = Elsewhere::new(STRUCTURES)?;
    place.succeeds(&["pack", &stock("soap-bpnn")?, "-o", "net.wasm"]);
    Ok(place)
}

#[test]
fn a_bundle_says_what_it_is_to_us_and_to_other_tools() -> Fallible {
    let place = packed()?;
    let shown = place.succeeds(&["show", "net.wasm"]);
    let bytes = place.read("net.wasm")?;
    for words in [
        "architecture  soap-bpnn",
        &format!("digest        {}", sha256_digest(&bytes)),
        "version       0.1.0",
        "authors       The Kilnbox authors",
        "licenses      MIT OR Apache-2.0",
        "contract      kilnbox:architecture@0.1.0",
        "imports       kilnbox:architecture/",
        "signature     none",
        "hypers        ",
        "max_angular",
    ] {
        assert!(shown.contains(words), "`{words}` is not in:\n{shown}");
    }
    assert!(place.succeeds(&["show", "net.wasm", "--docs"]).starts_with("# "));

    // Packing is the same every time, and packing a bundle changes nothing.
    place.succeeds(&["pack", &stock("soap-bpnn")?, "-o", "again.wasm"]);
    place.succeeds(&["pack", "net.wasm", "-o", "twice.wasm"]);
    assert!(place.read("again.wasm")? == bytes && place.read("twice.wasm")? == bytes);
    place.succeeds(&["pack", "net.wasm", "-o", "other.wasm", "-m", "revision=0a1b2c", "-m", "version=0.2.0"]);
    assert!(place.succeeds(&["show", "other.wasm"]).contains("revision      0a1b2c"));
    place.fails(&["pack", "net.wasm", "-m", "licences=MIT"], "use `licenses`");
    place.fails(&["pack", "net.wasm", "-m", "source=here"], "expected a URL");

    // The reference implementations of component and metadata.
    wasmparser::Validator::new().validate_all(&bytes)?;
    let wasm_metadata::Payload::Component { metadata, .. } = wasm_metadata::Payload::from_binary(&bytes)? else {
        return Err("it is no component".into());
    };
    let text = |value: Option<String>| value.unwrap_or_default();
    assert_eq!(text(metadata.version.map(|version| version.to_string())), "0.1.0");
    assert_eq!(text(metadata.authors.map(|authors| authors.to_string())), "The Kilnbox authors");
    assert_eq!(text(metadata.licenses.map(|licenses| licenses.to_string())), "MIT OR Apache-2.0");
    assert_eq!(text(metadata.source.map(|source| source.to_string())), "https://github.com/kilnbox/kilnbox");
    Ok(())
}

#[test]
fn stock_bundles_are_small() -> Fallible {
    /// What a stock bundle may have, in bytes, documentation included.
    const LARGEST: u64 = 1_000_000;
    for name in SearchPath::from_environment().names() {
        let place = Elsewhere::new(STRUCTURES)?;
        let Ok(folder) = stock(&name) else { continue };
        place.succeeds(&["pack", &folder, "-o", "bundle.wasm"]);
        let size = fs::metadata(place.path("bundle.wasm"))?.len();
        eprintln!("bundle of {name}: {size} bytes");
        assert!(size <= LARGEST, "{name} has {size} bytes");
    }
    Ok(())
}

/// One file trains, is fine-tuned and evaluated on a machine that has nothing else, and gives the bits that the folder gives.
#[test]
fn one_file_is_enough_on_a_machine_that_has_nothing_else() -> Fallible {
    let home = Workplace::new()?;
    home.write("ethanol.xyz", &ethanol_structures(STRUCTURES)?)?;
    home.write("options.yaml", &options("soap-bpnn", ""))?;
    let outcome = home.run(&["train", "options.yaml"])?;
    assert_eq!(outcome.code, Some(0), "{}", outcome.errors);
    let (checkpoint, model) = (fs::read(home.path("model.ckpt"))?, fs::read(home.path("model.kiln"))?);

    // The bundle alone trains to the same bits.
    let trains = packed()?;
    trains.write("options.yaml", options("net.wasm", ""))?;
    trains.succeeds(&["train", "options.yaml", "--offline"]);
    assert!(trains.read("model.ckpt")? == checkpoint, "the bundle trains to other weights than its folder");
    let (ours, theirs) = (ModelFile::from_bytes(&trains.read("model.kiln")?)?, ModelFile::from_bytes(&model)?);
    assert!(ours.component == theirs.component && ours.component == trains.read("net.wasm")?);
    assert_eq!((&ours.checkpoint, &ours.metrics), (&theirs.checkpoint, &theirs.metrics));

    // So does the model alone, which carries the bundle.
    let carries = Elsewhere::new(STRUCTURES)?;
    carries.write("base.kiln", &model)?;
    carries.write("options.yaml", options("base.kiln", ""))?;
    carries.succeeds(&["train", "options.yaml", "--offline", "-o", "again.kiln"]);
    assert!(carries.read("again.ckpt")? == checkpoint, "the model trains to other weights than its architecture");

    // And it can be fine-tuned and evaluated, each in a folder with an empty cache, twice the same.
    let mut tuned = Vec::new();
    for _ in 0..2 {
        let place = Elsewhere::new(STRUCTURES)?;
        place.write("base.kiln", &model)?;
        place.write("options.yaml", options("base.kiln", ", finetune: {read_from: base.kiln}"))?;
        let output = place.succeeds(&["train", "options.yaml", "--offline", "-o", "tuned.kiln"]);
        assert!(output.contains("Fine-tuning the model of `base.kiln`"), "{output}");
        place.succeeds(&["eval", "base.kiln", "eval.yaml", "-o", "base.xyz"]);
        place.succeeds(&["eval", "tuned.kiln", "eval.yaml", "-o", "tuned.xyz"]);
        tuned.push([
            place.read("tuned.ckpt")?,
            place.read("tuned.kiln")?,
            place.read("base.xyz")?,
            place.read("tuned.xyz")?,
        ]);
    }
    assert!(tuned[0] == tuned[1], "two machines disagree");
    assert!(tuned[0][2] != tuned[0][3], "nothing was learned");
    Ok(())
}

#[test]
fn a_model_tells_how_it_came_about_and_is_hardly_larger_than_its_weights() -> Fallible {
    /// What a model's file may have beside its weights, in bytes.
    const LARGEST: u64 = 1_000_000;
    let place = packed()?;
    place.write("options.yaml", options("net.wasm", ""))?;
    place.succeeds(&["train", "options.yaml"]);
    let bytes = place.read("model.kiln")?;
    let model = ModelFile::from_bytes(&bytes)?;
    let weights = model.checkpoint.to_bytes()?.len() as u64;
    let beside = bytes.len() as u64 - weights;
    eprintln!(
        "model: {} bytes, of which {weights} are weights and {} the component",
        bytes.len(),
        model.component.len()
    );
    assert!(beside <= LARGEST, "{beside} bytes beside the weights");

    assert_eq!(model.options["seed"], 7);
    assert_eq!(model.options["architecture"]["training"]["num_epochs"], 3);
    let error = model.metrics["test"][0][0]["rmse"].as_f64().ok_or("no error of the test set")?;
    assert!(error > 0.0 && error < 1.0, "{error}");
    for words in [
        "- architecture: soap-bpnn 0.1.0, `sha256:",
        "- predicts: energy in eV",
        "- elements: H, C, O",
        "| test | energy (per atom)",
        "num_epochs: 3",
    ] {
        assert!(model.card.contains(words), "`{words}` is not in:\n{}", model.card);
    }
    let shown = place.succeeds(&["show", "model.kiln"]);
    for words in [
        "architecture  soap-bpnn 0.1.0, sha256:",
        "licenses      MIT OR Apache-2.0",
        "signature     none",
        "metrics",
        "interaction_range",
    ] {
        assert!(shown.contains(words), "`{words}` is not in:\n{shown}");
    }
    assert!(place.succeeds(&["show", "model.ckpt"]).contains("checkpoint"));
    assert!(place.succeeds(&["show", "model.kiln", "--docs"]).contains("## Errors"));
    place.fails(&["show", "ethanol.xyz"], "is no architecture bundle, no model and no checkpoint");
    // The version of the architecture is in its checkpoints.
    assert_eq!(model.checkpoint.architecture.version.as_deref(), Some("0.1.0"));
    assert_eq!(ArchitectureBundle::read(&model.component)?.parts.name, "soap-bpnn");
    Ok(())
}

#[test]
fn signatures_are_minisigns_both_ways() -> Fallible {
    let place = packed()?;
    place.succeeds(&["keygen", "--no-password", "-o", "me.key"]);
    let mode = fs::metadata(place.path("me.key"))?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let key = place.read("me.key")?;
    place.fails(&["keygen", "--no-password", "-o", "me.key"], "keys are never overwritten");
    assert!(place.read("me.key")? == key);

    place.fails(&["verify", "net.wasm", "-k", "me.pub"], "is not signed");
    place.succeeds(&["sign", "net.wasm", "-k", "me.key"]);
    place.succeeds(&["verify", "net.wasm", "-k", "me.pub"]);
    place.fails(&["verify", "net.wasm"], "which is not in `trust.yaml`");
    place.succeeds(&["keygen", "--no-password", "-o", "other.key"]);
    place.fails(&["verify", "net.wasm", "-k", "other.pub"], "is signed with another key");

    // A password, from the environment as scripts give it.
    let with_password = |arguments: &[&str], password: &str| -> Fallible<Option<i32>> {
        Ok(place.command(arguments).env("KILNBOX_KEY_PASSWORD", password).output()?.status.code())
    };
    assert_eq!(with_password(&["keygen", "-o", "locked.key"], "secret")?, Some(0));
    assert_eq!(with_password(&["sign", "net.wasm", "-k", "locked.key"], "wrong")?, Some(1));
    assert_eq!(with_password(&["sign", "net.wasm", "-k", "locked.key"], "secret")?, Some(0));
    place.succeeds(&["verify", "net.wasm", "-k", "locked.pub"]);

    let Some(minisign) = peer("minisign") else { return Ok(()) };
    let minisign = |arguments: &[&str]| -> Fallible<(bool, String)> {
        let output = Command::new(&minisign).args(arguments).current_dir(place.path("")).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    };
    // Ours, verified by minisign.
    place.succeeds(&["sign", "net.wasm", "-k", "me.key", "-c", "the second release"]);
    let (is_good, told) = minisign(&["-V", "-p", "me.pub", "-m", "net.wasm"])?;
    assert!(is_good && told.contains("the second release"), "{told}");
    // minisign's, with its key, verified by us; and with our key, by both.
    assert!(minisign(&["-G", "-W", "-p", "theirs.pub", "-s", "theirs.key"])?.0);
    assert!(minisign(&["-S", "-s", "theirs.key", "-m", "net.wasm"])?.0);
    place.succeeds(&["verify", "net.wasm", "-k", "theirs.pub"]);
    place.succeeds(&["sign", "net.wasm", "-k", "theirs.key"]);
    assert!(minisign(&["-V", "-p", "theirs.pub", "-m", "net.wasm"])?.0);
    assert!(minisign(&["-S", "-s", "me.key", "-m", "net.wasm"])?.0);
    place.succeeds(&["verify", "net.wasm", "-k", "me.pub"]);
    // What was changed is noticed by both.
    let mut changed = place.read("net.wasm")?;
    let last = changed.len() - 1;
    changed[last] ^= 1;
    place.write("net.wasm", &changed)?;
    assert!(!minisign(&["-V", "-p", "me.pub", "-m", "net.wasm"])?.0);
    place.fails(&["verify", "net.wasm", "-k", "me.pub"], "is not what `the key` has signed");
    Ok(())
}

#[test]
fn who_wants_signatures_runs_nothing_else() -> Fallible {
    let place = packed()?;
    place.write("options.yaml", options("net.wasm", ""))?;
    place.succeeds(&["train", "options.yaml"]);
    place.succeeds(&["keygen", "--no-password", "-o", "me.key"]);
    let public = String::from_utf8(place.read("me.pub")?)?;
    let key = public.lines().nth(1).ok_or("no key")?.to_owned();
    place.write("config/kilnbox/config.yaml", "require-signature: true\n")?;

    let commands: [&[&str]; 2] = [&["eval", "model.kiln", "eval.yaml"], &["train", "options.yaml"]];
    for command in commands {
        place.fails(command, "is not signed, and `config.yaml` says `require-signature: true`");
    }
    for file in ["net.wasm", "model.kiln"] {
        place.succeeds(&["sign", file, "-k", "me.key"]);
    }
    for command in commands {
        place.fails(command, "which is not in `trust.yaml`");
    }
    place.write("config/kilnbox/trust.yaml", format!("Me Myself: {key}\n"))?;
    commands.iter().for_each(|command| drop(place.succeeds(command)));
    assert!(place.succeeds(&["show", "net.wasm"]).contains("signature     good, of Me Myself (timestamp:"));
    // It has trained to the same bits, so the signature of the model is as good as before; another training is another model.
    place.succeeds(&["train", "options.yaml", "-r", "seed=8"]);
    place.fails(commands[0], "is not what `Me Myself` has signed");
    // A folder cannot be signed, and neither can the architecture in it.
    place.write("folder.yaml", options(&stock("soap-bpnn")?, ""))?;
    place.fails(&["train", "folder.yaml"], "cannot be signed as one");
    place.write("tune.yaml", options("net.wasm", ", finetune: {read_from: model.kiln}"))?;
    place.fails(&["train", "tune.yaml"], "is not what `Me Myself` has signed");

    // A configuration that is not understood allows nothing.
    for (name, text, words) in [
        ("config.yaml", "require-signatures: true\n", "use `require-signature`"),
        ("config.yaml", "require-signature: maybe\n", "config.yaml:1:20"),
        ("trust.yaml", "Me: RWabc\n", "is no public key of minisign"),
    ] {
        let other = packed()?;
        other.write("options.yaml", options("net.wasm", ""))?;
        other.write(&format!("config/kilnbox/{name}"), text)?;
        other.fails(&["train", "options.yaml"], words);
    }
    Ok(())
}

#[test]
fn what_was_stripped_or_is_no_bundle_is_explained() -> Fallible {
    let place = packed()?;
    let component = fs::read(Path::new(&stock("soap-bpnn")?).join("architecture.wasm"))?;
    place.write("stripped.wasm", component)?;
    place.write("options.yaml", options("stripped.wasm", ""))?;
    let told = place.fails(&["train", "options.yaml"], "was the file stripped?");
    assert!(told.contains("kilnbox pack"), "{told}");
    place.fails(&["show", "stripped.wasm"], "was the file stripped?");
    place.fails(&["pack", "none"], "there is no architecture at");
    place.fails(&["pack", "net.wasm", "-o", "net.zip"], "expected a name that ends with `.wasm`");
    Ok(())
}
