//! Tests of pulls from a real registry (Debian's `docker-registry`) with TLS and a password. They run as
//! root, as the store does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Credentials, Digest, ErrorKind, ImageStore, Options};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(120);
/// `user:secret` (bcrypt, the only format that the registry accepts).
const PASSWORDS: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Server {
    process: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Starts the registry on the storage in `folder`.
fn serve(folder: &Path, more: &str) -> Server {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
         storage: {{ filesystem: {{ rootdirectory: {storage:?} }} }}\n{more}\
         http:\n  addr: {address:?}\n  secret: test\n{tls}",
        storage = folder.join("storage"),
        tls = if more.is_empty() {
            String::new()
        } else {
            format!(
                "  tls: {{ certificate: {:?}, key: {:?} }}\n",
                folder.join("cert.pem"),
                folder.join("key.pem")
            )
        },
    );
    fs::write(folder.join("registry.yml"), config).unwrap();
    let process = Command::new("docker-registry")
        .arg("serve")
        .arg(folder.join("registry.yml"))
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("docker-registry: {error} (apt-get install docker-registry)"));
    let until = Instant::now() + TIMEOUT;
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < until, "the registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Server { process, address }
}

/// Sends one request to a registry without TLS. Returns the answer.
fn send(address: &str, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status: u16 = text.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((200..300).contains(&status), "{method} {path}: {text}");
    text
}

fn push_blob(address: &str, name: &str, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let started = send(address, "POST", &format!("/v2/{name}/blobs/uploads/"), "text/plain", b"");
    let location = started.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().trim();
    let path = location.strip_prefix(&format!("http://{address}")).unwrap_or(location);
    send(address, "PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
    digest
}

/// Pushes an image of one compressed layer, without TLS, before authentication is enabled.
fn push(folder: &Path) {
    let server = serve(folder, "");
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3_000_000);
    header.set_mode(0o644);
    tar.append_data(&mut header, "large", vec![7_u8; 3_000_000].as_slice()).unwrap();
    let tar = tar.into_inner().unwrap();
    let diff_id = Digest::of(Algorithm::Sha256, &tar);
    let layer = zstd::encode_all(tar.as_slice(), 3).unwrap();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({ "architecture": architecture, "os": "linux",
                         "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
                    "digest": push_blob(&server.address, "team/app", config.as_bytes()) },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "size": layer.len(),
                     "digest": push_blob(&server.address, "team/app", &layer) }],
    });
    send(&server.address, "PUT", "/v2/team/app/manifests/1", MANIFEST, manifest.to_string().as_bytes());
}

/// Creates a certificate for loopback, and the authority that signed it. Returns the authority's path.
fn certify(folder: &Path) -> PathBuf {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).unwrap();
    fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    folder.join("ca.pem")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_and_a_password_can_be_pulled_from() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    push(path);
    let authority = certify(path);
    fs::write(path.join("passwords"), PASSWORDS).unwrap();
    let guarded = format!("auth: {{ htpasswd: {{ realm: here, path: {:?} }} }}\n", path.join("passwords"));
    let server = serve(path, &guarded);
    let options = Options {
        certs_dirs: vec![path.join("certs.d")],
        auth_files: vec![path.join("auth.json")],
        ..Options::new(path.join("image"))
    };
    let store = ImageStore::open(options).await.unwrap();
    let name = format!("{}/team/app:1", server.address).parse().unwrap();
    let user = |password: &str| {
        Some(Credentials::Basic { username: "user".to_owned(), password: password.to_owned() })
    };

    // Without configuration, loopback is contacted in plain HTTP, which this registry does not support.
    assert!(store.pull(&name, user("secret")).await.is_err());
    let certs = path.join("certs.d").join(&server.address);
    fs::create_dir_all(&certs).unwrap();
    let hosts = |more: &str| {
        fs::write(certs.join("hosts.toml"), format!("server = \"https://{}\"\n{more}", server.address))
            .unwrap();
    };
    hosts("");
    let unknown = store.pull(&name, user("secret")).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Unavailable, "its authority is unknown: {unknown}");
    hosts(&format!("ca = {authority:?}\n"));
    for (auth, words) in [(None, "user and a password"), (user("wrong"), "401")] {
        let refused = store.pull(&name, auth).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let image = store.pull(&name, user("secret")).await.unwrap();
    store.remove(&image.id.to_string()).await.unwrap();
    hosts("skip_verify = true\n");
    let auth = json!({ "auths": { server.address.as_str(): { "username": "user", "password": "secret" } } });
    fs::write(path.join("auth.json"), auth.to_string()).unwrap();
    let again = store.pull(&name, None).await.unwrap();
    assert_eq!(again.id, image.id);
    let layer = store.create_layer("c", &again.id, &[]).await.unwrap();
    assert_eq!(fs::metadata(layer.lower[0].join("large")).unwrap().len(), 3_000_000);

    // The layout of Docker and CRI-O: certificates in a folder, without hosts.toml.
    store.remove(&image.id.to_string()).await.unwrap();
    fs::remove_file(certs.join("hosts.toml")).unwrap();
    fs::copy(&authority, certs.join("ca.crt")).unwrap();
    assert_eq!(store.pull(&name, None).await.unwrap().id, image.id);
}
