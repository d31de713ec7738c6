//! Registries: a real one (Debian's), what another client reads in it, and ones that lie.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kilnbox_bundle::{Parts, pack, sha256_digest};
use kilnbox_cli::architectures::SearchPath;
use kilnbox_tests::{Elsewhere, peer};
use serde_json::{Value, json};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const OPTIONS: &str = "\
seed: 7
architecture: {name: NAME}
training_set:
  systems: {read_from: ethanol.xyz, length_unit: angstrom}
  targets: {energy: {key: energy, unit: eV, forces: false}}
validation_set: 0.25
test_set: 0
";

/// A folder with data, and nothing of kilnbox.
fn empty_place() -> Fallible<Elsewhere> {
    Ok(Elsewhere::new(8)?)
}

/// One with `net.wasm`, the bundle of the smallest architecture.
fn with_bundle() -> Fallible<Elsewhere> {
    let place = empty_place()?;
    let folder = SearchPath::from_environment().find("composition")?.path;
    let folder = folder.parent().ok_or("no folder")?.canonicalize()?.display().to_string();
    place.succeeds(&["pack", &folder, "-o", "net.wasm"]);
    Ok(place)
}

/// Writes options that train this architecture.
fn train_from(place: &Elsewhere, name: &str) -> Fallible {
    Ok(place.write("options.yaml", OPTIONS.replace("NAME", &format!("\"{name}\"")))?)
}

/// Debian's registry on a port of this machine, as long as it is needed.
struct RealRegistry {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// How a registry is reached, and whom it lets in.
struct Access {
    address: IpAddr,
    /// The files with its certificate and with the key.
    tls: Option<[PathBuf; 2]>,
    authorization: Value,
}

impl Default for Access {
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST.into(), tls: None, authorization: json!({}) }
    }
}

impl RealRegistry {
    /// Starts one; with a password, if one is wanted. None where the program is not present.
    fn start(with_password: bool) -> Fallible<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let mut access = Access::default();
        if with_password {
            // `kiln` and `open sesame`, by bcrypt with few rounds.
            fs::write(
                folder.path().join("htpasswd"),
                "kiln:$2b$04$OFY7YoeKUYZXHbQbwtD12eP2aoeOtEwiWuk.U/JRCiY33M6jsUE2u\n",
            )?;
            access.authorization = json!({"htpasswd": {"realm": "a kiln", "path": folder.path().join("htpasswd")}});
        }
        Self::start_with(folder, access)
    }

    /// Starts one with this access.
    fn start_with(folder: tempfile::TempDir, access: Access) -> Fallible<Option<Self>> {
        let Some(program) = peer("docker-registry") else { return Ok(None) };
        // Somebody else may take the port meanwhile; then the registry says so and ends.
        let address = TcpListener::bind((access.address, 0))?.local_addr()?;
        let mut http = json!({"addr": address.to_string()});
        if let Some([certificate, key]) = access.tls {
            http["tls"] = json!({"certificate": certificate, "key": key});
        }
        let configuration = json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": folder.path().join("data")}, "delete": {"enabled": true}},
            "http": http,
            "auth": access.authorization,
        });
        // JSON is YAML.
        fs::write(folder.path().join("config.yml"), configuration.to_string())?;
        let process = Command::new(program)
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { process, address, _folder: folder };
        let give_up = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            if Instant::now() > give_up {
                return Err("the registry does not start".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Some(registry))
    }

    fn reference(&self, rest: &str) -> String {
        format!("oci://{}/{rest}", self.address)
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_is_pushed_is_pulled_bit_for_bit_with_its_signature() -> Fallible {
    let Some(registry) = RealRegistry::start(false)? else { return Ok(()) };
    let place = with_bundle()?;
    train_from(&place, "net.wasm")?;
    place.succeeds(&["train", "options.yaml"]);
    place.succeeds(&["keygen", "--no-password", "-o", "me.key"]);
    for (file, name) in [("net.wasm", "lab/net:1.0"), ("model.kiln", "lab/model:1.0")] {
        place.succeeds(&["sign", file, "-k", "me.key"]);
        let told = place.succeeds(&["push", file, &registry.reference(name)]);
        assert!(told.contains("and its signature") && told.contains("@sha256:"), "{told}");
        // Twice is no harm.
        place.succeeds(&["push", file, &registry.reference(name)]);
        let pinned = told.lines().last().ok_or("no reference")?;

        for reference in [&registry.reference(name), pinned] {
            let other = empty_place()?;
            other.write("me.pub", place.read("me.pub")?)?;
            other.succeeds(&["pull", reference, "-o", file]);
            assert!(other.read(file)? == place.read(file)?, "{file} has changed on the way");
            other.succeeds(&["verify", file, "-k", "me.pub"]);
        }
    }
    let other = empty_place()?;
    let told = other.succeeds(&["pull", &registry.reference("lab/model:1.0")]);
    assert!(told.contains("Pulled `model.kiln`") && told.contains("not verified"), "{told}");
    other.succeeds(&["eval", "model.kiln", "eval.yaml"]);
    // The component of a model can be pulled alone, as other tools do.
    other.succeeds(&["pull", &registry.reference("lab/model:1.0-architecture"), "-o", "part.wasm"]);
    assert!(other.read("part.wasm")? == place.read("net.wasm")?);

    other.fails(&["pull", &registry.reference("lab/net:2.0")], "has no `oci://127.0.0.1");
    other.fails(&["pull", &registry.reference("lab/net")], "names no version");
    other.write("net.wasm", "mine")?;
    other.fails(&["pull", &registry.reference("lab/net:1.0")], "there is another `net.wasm` already");
    place.fails(&["push", "model.ckpt", &registry.reference("lab/net:1.0")], "cannot be pushed");
    place.fails(&["push", "ethanol.xyz", &registry.reference("lab/net:1.0")], "is no architecture bundle");
    Ok(())
}

#[test]
fn a_lock_file_pins_what_a_tag_named() -> Fallible {
    let Some(registry) = RealRegistry::start(false)? else { return Ok(()) };
    let author = with_bundle()?;
    let name = registry.reference("lab/net:1.0");
    author.succeeds(&["push", "net.wasm", &name]);

    let user = empty_place()?;
    train_from(&user, &name)?;
    user.fails(&["train", "options.yaml", "--locked"], "is not in `kilnbox.lock`");
    user.fails(&["train", "options.yaml", "--offline"], "`--offline` allows no network");
    user.succeeds(&["train", "options.yaml"]);
    let lock = user.read("kilnbox.lock")?;
    let text = String::from_utf8(lock.clone())?;
    assert!(text.contains("name = \"lab/net\"") && text.contains("requirement = \"1.0\""), "{text}");
    let first = user.read("model.ckpt")?;

    // The tag moves; the lock file does not.
    author.succeeds(&["pack", "net.wasm", "-o", "net.wasm", "-m", "version=9.9.9"]);
    author.succeeds(&["push", "net.wasm", &name]);
    user.succeeds(&["train", "options.yaml", "--locked"]);
    assert!(user.read("model.ckpt")? == first && user.read("kilnbox.lock")? == lock);

    // With another's lock file, another machine gets the same: from the registry, then without any.
    let other = empty_place()?;
    train_from(&other, &name)?;
    other.write("kilnbox.lock", &lock)?;
    other.succeeds(&["train", "options.yaml", "--locked"]);
    assert!(other.read("model.ckpt")? == first);

    // Pulling it by hand takes what is newest, and the lock file follows.
    user.succeeds(&["pull", &name]);
    assert!(user.read("net.wasm")? == author.read("net.wasm")?);
    assert!(user.read("kilnbox.lock")? != lock);

    let digest = sha256_digest(b"something else");
    user.fails(
        &["train", "options.yaml", "--locked", "-r", &format!("architecture.name={name}@{digest}")],
        "has another digest than `kilnbox.lock`",
    );
    drop(registry);
    other.succeeds(&["train", "options.yaml", "--locked", "--offline"]);
    other.succeeds(&["train", "options.yaml"]);
    assert!(other.read("model.ckpt")? == first);
    // A checkpoint finds the very component that made it.
    other.succeeds(&["export", "model.ckpt", "-o", "exported.kiln"]);
    // What was damaged in the cache is as good as none.
    for entry in fs::read_dir(other.path("cache/kilnbox/blobs"))? {
        fs::write(entry?.path(), "damaged")?;
    }
    other.fails(&["train", "options.yaml", "--offline"], "is not on this machine");
    other.fails(&["train", "options.yaml"], "cannot be reached");

    other.write("kilnbox.lock", "version = 7\n")?;
    other.fails(&["train", "options.yaml"], "version 7 of the format");
    Ok(())
}

#[test]
fn credentials_are_those_of_docker() -> Fallible {
    let Some(registry) = RealRegistry::start(true)? else { return Ok(()) };
    let place = with_bundle()?;
    let name = registry.reference("lab/net:1.0");
    let told = place.fails(&["push", "net.wasm", &name], "does not allow that");
    assert!(told.contains("docker login"), "{told}");
    let host = registry.address.to_string();
    // `kiln:wrong` and `kiln:open sesame`.
    for (auth, is_right) in [("a2lsbjp3cm9uZw==", false), ("a2lsbjpvcGVuIHNlc2FtZQ==", true)] {
        place.write("docker/config.json", json!({"auths": {&host: {"auth": auth}}}).to_string())?;
        if is_right {
            place.succeeds(&["push", "net.wasm", &name]);
            place.succeeds(&["pull", &name, "-o", "pulled.wasm"]);
        } else {
            place.fails(&["push", "net.wasm", &name], "does not allow that");
        }
    }
    place.write("docker/config.json", "nonsense")?;
    place.fails(&["pull", &name, "-o", "pulled.wasm"], "credentials");
    Ok(())
}

/// A registry that sends its users to a server for tokens, and a helper that keeps the password.
#[test]
fn a_token_is_fetched_with_the_password_of_a_helper() -> Fallible {
    // It gives the token to whoever has the password: `kiln:open sesame`.
    let tokens = Server::start(|request| {
        if request.to_ascii_lowercase().contains("authorization: basic a2lsbjpvcgvuihnlc2ftzq==") {
            Answer::Body("200 OK", json!({"token": include_str!("tokens/token")}).to_string().into_bytes())
        } else {
            Answer::Body("401 Unauthorized", b"{}".to_vec())
        }
    })?;
    let folder = tempfile::tempdir()?;
    let certificate = folder.path().join("authority.pem");
    fs::write(&certificate, include_str!("tokens/authority.pem"))?;
    let realm = format!("http://127.0.0.1:{}/token", tokens.port);
    let authorization =
        json!({"token": {"realm": realm, "service": "registry", "issuer": "a kiln", "rootcertbundle": certificate}});
    let access = Access { authorization, ..Access::default() };
    let Some(registry) = RealRegistry::start_with(folder, access)? else { return Ok(()) };
    let place = with_bundle()?;
    let name = registry.reference("lab/net:1.0");
    place.fails(&["push", "net.wasm", &name], "does not allow that");

    let helper = place.path("bin/docker-credential-kiln");
    let answer = r#"{"ServerURL":"","Username":"kiln","Secret":"open sesame"}"#;
    place.write("bin/docker-credential-kiln", format!("#!/bin/sh\ncat > /dev/null\necho '{answer}'\n"))?;
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let host = registry.address.to_string();
    place.write("docker/config.json", json!({"credHelpers": {host: "kiln"}}).to_string())?;
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH")?);
    let with_helper = |arguments: &[&str]| place.command(arguments).env("PATH", &path).output();
    for arguments in [&["push", "net.wasm", &name][..], &["pull", &name, "-o", "pulled.wasm"]] {
        let output = with_helper(arguments)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(place.read("pulled.wasm")? == place.read("net.wasm")?);
    // The token is for this repository alone, and the server was told what for.
    let other = with_helper(&["pull", &registry.reference("lab/other:1.0"), "-o", "other.wasm"])?;
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("does not allow that"), "{other:?}");
    let asked = tokens.asked();
    assert!(asked.iter().any(|request| request.contains("scope=repository%3Alab%2Fnet%3Apull%2Cpush")), "{asked:?}");
    Ok(())
}

/// The address by which other machines reach this one; none where it is on no network.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: this asks only from where it would be. The address is one for documentation.
    socket.connect("198.51.100.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

/// To every other address than loopback TLS is spoken, with the authorities that the system knows.
#[test]
fn a_registry_beyond_loopback_has_a_certificate_that_is_checked() -> Fallible {
    let Some(address) = own_address() else {
        eprintln!("this machine is on no network: TLS was not tried");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: String| -> Fallible<PathBuf> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let mut authority = rcgen::CertificateParams::new([])?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate()?)?;
    let authorities = file("authorities.pem", issuer.pem())?;
    let signed = |name: &str| -> Fallible<[PathBuf; 2]> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new([name.to_owned()])?.signed_by(&key, &issuer)?;
        Ok([file(&format!("{name}.pem"), certificate.pem())?, file(&format!("{name}.key"), key.serialize_pem())?])
    };
    let (own, of_another) = (signed(&address.to_string())?, signed("another.example")?);
    let place = with_bundle()?;
    let with_authorities = |arguments: &[&str]| -> Fallible<(bool, String)> {
        let output = place.command(arguments).env("SSL_CERT_FILE", &authorities).output()?;
        Ok((output.status.success(), String::from_utf8(output.stderr)?))
    };

    let access = Access { address, tls: Some(own), ..Access::default() };
    let Some(registry) = RealRegistry::start_with(tempfile::tempdir()?, access)? else { return Ok(()) };
    let name = registry.reference("lab/net:1.0");
    for arguments in [&["push", "net.wasm", &name][..], &["pull", &name, "-o", "pulled.wasm"]] {
        let (succeeded, said) = with_authorities(arguments)?;
        assert!(succeeded, "{said}");
    }
    assert!(place.read("pulled.wasm")? == place.read("net.wasm")?);
    // Nobody whom this system trusts has signed it.
    let told = place.fails(&["pull", &name, "-o", "other.wasm"], "cannot be reached");
    assert!(told.contains("certificate"), "{told}");
    // Nor is it a registry without TLS.
    place.fails(&["pull", &name, "-o", "other.wasm", "--plain-http"], "answers wrongly");

    let access = Access { address, tls: Some(of_another), ..Access::default() };
    let Some(registry) = RealRegistry::start_with(tempfile::tempdir()?, access)? else { return Ok(()) };
    let (succeeded, said) = with_authorities(&["pull", &registry.reference("lab/net:1.0"), "-o", "other.wasm"])?;
    assert!(!succeeded && said.contains("certificate"), "{said}");
    Ok(())
}

#[test]
fn skopeo_reads_what_was_pushed_and_pushes_what_we_read() -> Fallible {
    let (Some(registry), Some(skopeo)) = (RealRegistry::start(false)?, peer("skopeo")) else { return Ok(()) };
    let place = with_bundle()?;
    train_from(&place, "net.wasm")?;
    place.succeeds(&["train", "options.yaml"]);
    place.succeeds(&["push", "net.wasm", &registry.reference("lab/net:1.0")]);
    let skopeo = |arguments: &[&str]| -> Fallible<String> {
        let output = Command::new(&skopeo)
            .arg("--insecure-policy")
            .args(arguments)
            .current_dir(place.path(""))
            .env("HOME", place.path("home"))
            .output()?;
        if !output.status.success() {
            return Err(format!("skopeo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    let there = |rest: &str| format!("docker://{}/{rest}", registry.address);

    let manifest: Value =
        serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", "--raw", &there("lab/net:1.0")])?)?;
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    let layers = manifest["layers"].as_array().ok_or("no layers")?;
    assert_eq!(layers.len(), 1, "the CNCF layout has one layer");
    assert_eq!(layers[0]["mediaType"], "application/wasm");
    assert_eq!(layers[0]["digest"], sha256_digest(&place.read("net.wasm")?));
    assert_eq!(manifest["annotations"]["org.opencontainers.image.version"], "0.1.0");
    assert_eq!(manifest["annotations"]["org.opencontainers.image.licenses"], "MIT OR Apache-2.0");
    skopeo(&["copy", "--src-tls-verify=false", &there("lab/net:1.0"), "dir:copied"])?;
    let digest = sha256_digest(&place.read("net.wasm")?);
    assert!(place.read(&format!("copied/{}", digest.trim_start_matches("sha256:")))? == place.read("net.wasm")?);

    // A model's file is an archive of OCI: skopeo carries it to a registry, and we read it there.
    fs::copy(place.path("model.kiln"), place.path("model.tar"))?;
    for (part, tag) in [("architecture", "1.0-architecture"), ("model", "1.0")] {
        let to = there(&format!("lab/carried:{tag}"));
        skopeo(&[
            "copy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            &format!("oci-archive:model.tar:{part}"),
            &to,
        ])?;
    }
    place.succeeds(&["pull", &registry.reference("lab/carried:1.0"), "-o", "carried.kiln"]);
    assert!(place.read("carried.kiln")? == place.read("model.kiln")?);
    Ok(())
}

/// An answer: the status line and headers, and a body, which may have no end.
enum Answer {
    Body(&'static str, Vec<u8>),
    Endless,
    /// With this status, the client is sent to this place.
    To(&'static str, String),
    Nothing,
}

/// A server that says whatever it is told to, and remembers what it was asked.
struct Server {
    port: u16,
    done: Arc<AtomicBool>,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Fallible<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (is_done, remember): (_, Arc<std::sync::Mutex<Vec<String>>>) = (Arc::clone(&done), Arc::clone(&asked));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_done.load(Ordering::Relaxed) {
                    return;
                }
                let (answer, remember) = (Arc::clone(&answer), Arc::clone(&remember));
                std::thread::spawn(move || drop(serve(stream, &*answer, &remember)));
            }
        });
        Ok(Self { port, done, asked })
    }

    fn reference(&self, rest: &str) -> String {
        format!("oci://127.0.0.1:{}/{rest}", self.port)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().map(|asked| asked.clone()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(
    stream: TcpStream,
    answer: &dyn Fn(&str) -> Answer,
    asked: &std::sync::Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let (mut request, mut length) = (String::new(), 0);
    reader.read_line(&mut request)?;
    let mut whole = request.clone();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        whole.push_str(&line);
        if line.trim().is_empty() {
            break;
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    if let Ok(mut asked) = asked.lock() {
        asked.push(whole.clone());
    }
    match answer(&whole) {
        Answer::Body(status, body) => {
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
            stream.write_all(&body)
        }
        Answer::To(status, to) => {
            write!(stream, "HTTP/1.1 {status}\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 1 << 16])?;
            }
        }
        Answer::Nothing => Ok(()),
    }
}

fn not_found() -> Answer {
    Answer::Body("404 Not Found", Vec::new())
}

/// A small bundle, its manifest, and the layer's digest.
fn bundle() -> Fallible<(Vec<u8>, Value)> {
    let component = wat::parse_str(r#"(component (import "kilnbox:architecture/tensor@0.1.0" (instance)))"#)?;
    let bytes = pack(&component, &Parts { name: "net".to_owned(), ..Parts::default() })?;
    let config = br#"{"architecture":"wasm","os":"wasip2"}"#;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": sha256_digest(config), "size": config.len()},
        "layers": [{"mediaType": "application/wasm", "digest": sha256_digest(&bytes), "size": bytes.len()}],
    });
    Ok((bytes, manifest))
}

/// A registry that sends this manifest for everything, and this for blobs.
fn sending(manifest: &Value, blob: impl Fn() -> Answer + Send + Sync + 'static) -> Fallible<Server> {
    let manifest = manifest.to_string().into_bytes();
    Server::start(move |request| match request {
        _ if request.contains(".minisig") => not_found(),
        _ if request.contains("/manifests/") => Answer::Body("200 OK", manifest.clone()),
        _ => blob(),
    })
}

#[test]
fn a_registry_that_lies_is_found_out() -> Fallible {
    let (bytes, manifest) = bundle()?;
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        manifest
    };
    let honest = bytes.clone();
    let send = move |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move || Answer::Body("200 OK", bytes.clone())
    };
    // The very same server is believed when it tells the truth.
    let place = empty_place()?;
    place.succeeds(&["pull", &sending(&manifest, send(&honest))?.reference("net:1"), "-o", "net.wasm"]);
    assert!(place.read("net.wasm")? == bytes);

    let mut other = bytes.clone();
    other[8] ^= 1;
    let longer = [bytes.clone(), vec![0; 100]].concat();
    let cases: Vec<(Server, &str)> = vec![
        (sending(&manifest, send(&other))?, "damaged or was tampered with"),
        (sending(&manifest, send(&longer))?, "it sends more than the"),
        (sending(&manifest, send(&bytes[..bytes.len() - 1]))?, "damaged or was tampered with"),
        (sending(&manifest, || Answer::Endless)?, "it sends more than the"),
        (sending(&manifest, || Answer::Nothing)?, "cannot be reached"),
        (sending(&manifest, || Answer::Body("500 Oh", b"\x1b[2J".to_vec()))?, "answers wrongly: 500"),
        (
            sending(&manifest, || Answer::Body("403 No", br#"{"errors":[{"message":"\u001b[2J no"}]}"#.to_vec()))?,
            "does not allow that",
        ),
        (Server::start(|_| Answer::Endless)?, "it sends more than the 65536 bytes"),
        (Server::start(|_| Answer::Nothing)?, "cannot be reached"),
        (Server::start(|_| not_found())?, "has no `oci://"),
        (Server::start(|_| Answer::To("307 Elsewhere", "/v2/".to_owned()))?, "answers wrongly: 307"),
        (sending(&json!({"schemaVersion": 2}), not_found)?, "a manifest: missing field"),
        (sending(&json!([]), not_found)?, "a manifest: "),
        (
            sending(&changed(&|manifest| manifest["layers"][0]["size"] = json!(1_u64 << 40)), send(&bytes))?,
            "at most 67108864 is accepted",
        ),
        (
            sending(&changed(&|manifest| manifest["layers"][0]["size"] = json!(bytes.len() + 1)), send(&bytes))?,
            "and its descriptor says",
        ),
        (
            sending(
                &changed(&|manifest| manifest["layers"][0]["digest"] = json!("sha256:../../etc/passwd")),
                send(&bytes),
            )?,
            "is no digest",
        ),
        (
            sending(
                &changed(&|manifest| manifest["layers"] = json!([manifest["layers"][0], manifest["layers"][0]])),
                send(&bytes),
            )?,
            "2 layers where exactly one",
        ),
        (
            sending(
                &changed(&|manifest| {
                    manifest["config"]["mediaType"] = json!("application/vnd.oci.image.config.v1+json")
                }),
                send(&bytes),
            )?,
            "neither a component nor a model",
        ),
    ];
    for (registry, words) in &cases {
        let place = empty_place()?;
        place.fails(&["pull", &registry.reference("net:1"), "-o", "net.wasm"], words);
        train_from(&place, &registry.reference("net:1"))?;
        place.fails(&["train", "options.yaml"], words);
        let left = place.entries()?;
        assert!(
            !left.iter().any(|entry| entry.ends_with(".wasm") || entry.ends_with(".lock") || entry.ends_with(".tmp")),
            "{left:?}"
        );
    }

    // Another manifest than the one whose digest was asked for.
    let registry = sending(&manifest, send(&bytes))?;
    let digest = sha256_digest(b"another manifest");
    place.fails(
        &["pull", &registry.reference(&format!("net@{digest}")), "-o", "x.wasm"],
        "damaged or was tampered with",
    );
    Ok(())
}

#[test]
fn a_registry_sends_nobody_to_where_it_should_not() -> Fallible {
    let (bytes, manifest) = bundle()?;
    let elsewhere = Server::start(move |_| Answer::Body("200 OK", bytes.clone()))?;
    let port = elsewhere.port;
    for to in [
        format!("http://127.0.0.1:{port}/secret"),
        format!("//127.0.0.1:{port}/x"),
        "file:///etc/passwd".to_owned(),
        "nonsense".to_owned(),
    ] {
        let registry = sending(&manifest, move || Answer::To("307 Elsewhere", to.clone()))?;
        let place = empty_place()?;
        // Credentials for it, of which nobody else may hear.
        let host = format!("127.0.0.1:{}", registry.port);
        place
            .write("docker/config.json", json!({"auths": {host: {"auth": "a2lsbjpvcGVuIHNlc2FtZQ=="}}}).to_string())?;
        place.fails(&["pull", &registry.reference("net:1"), "-o", "net.wasm"], "answers wrongly");
    }
    assert!(elsewhere.asked().is_empty(), "{:?}", elsewhere.asked());

    // For ever in a circle.
    let registry = sending(&manifest, || Answer::To("307 Elsewhere", "/v2/net/blobs/again".to_owned()))?;
    let place = empty_place()?;
    place.fails(&["pull", &registry.reference("net:1"), "-o", "net.wasm"], "answers wrongly: 307");
    assert!(registry.asked().len() < 20, "{}", registry.asked().len());

    // A password is sent to nobody without TLS, whoever asks for it.
    let place = with_bundle()?;
    place.write(
        "docker/config.json",
        json!({"auths": {"registry.example.org": {"auth": "a2lsbjpvcGVuIHNlc2FtZQ=="}}}).to_string(),
    )?;
    place.fails(&["push", "net.wasm", "oci://registry.example.org/net:1", "--plain-http"], "not sent over plain HTTP");
    Ok(())
}

/// Where the upload goes is the registry's word; content and password follow it nowhere else.
#[test]
fn what_is_pushed_goes_to_the_registry_alone() -> Fallible {
    let elsewhere = Server::start(|_| Answer::Body("201 Created", Vec::new()))?;
    let port = elsewhere.port;
    let registry = Server::start(move |request| match request {
        _ if request.starts_with("HEAD") => not_found(),
        _ => Answer::To("202 Accepted", format!("http://127.0.0.1:{port}/upload")),
    })?;
    let place = with_bundle()?;
    place.fails(&["push", "net.wasm", &registry.reference("net:1")], "it wants the content sent elsewhere");
    let registry = Server::start(move |request| match request {
        _ if request.starts_with("HEAD") => not_found(),
        _ => Answer::To("307 Elsewhere", format!("http://127.0.0.1:{port}/")),
    })?;
    place.fails(&["push", "net.wasm", &registry.reference("net:1")], "answers wrongly");
    assert!(elsewhere.asked().is_empty());
    Ok(())
}
