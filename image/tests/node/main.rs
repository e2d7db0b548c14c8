//! Tests of the node's configuration: policies, artifacts as volumes, saved and imported archives, and
//! explanations. They run as root, as the store does.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "a failing test panics"
)]

mod archives;
#[path = "../../../tests/it/support/registry.rs"]
mod registry;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use berth_image::{Algorithm, Digest, ErrorKind, Image, ImageStore, Options};
use rcgen::SigningKey as _;
use registry::{Answer, MANIFEST, Registry};
use serde_json::{Value, json};

/// The time limit for background work on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

struct Node {
    folder: tempfile::TempDir,
    registry: Registry,
    store: ImageStore,
}

async fn open(folder: &Path) -> ImageStore {
    let options = Options {
        certs_dirs: vec![folder.join("certs.d")],
        registries_conf: Some(folder.join("registries.conf")),
        auth_files: vec![folder.join("auth.json")],
        policy: Some(folder.join("policy.json")),
        ..Options::new(folder.join("image"))
    };
    ImageStore::open(options).await.unwrap()
}

async fn node() -> Node {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    Node { registry: Registry::start(std::process::id()), store, folder }
}

impl Node {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl ToString) {
        fs::write(self.path(name), content.to_string()).unwrap();
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.address)
    }

    async fn pull(&self, rest: &str) -> Result<Arc<Image>, berth_image::Error> {
        self.store.pull(&self.name(rest).parse().unwrap(), None).await
    }

    /// Adds an image of one file to the registry. Returns its manifest's digest.
    fn image(&self, name: &str) -> Digest {
        let (layer, diff_id) = layer(&[("a", "content")]);
        self.registry.image(name, &layer, &diff_id);
        let answer = self.registry.answer_of(&format!("/v2/{name}/manifests/1")).unwrap();
        Digest::of(Algorithm::Sha256, &answer)
    }

    /// Adds an artifact of these files to the registry.
    fn artifact(&self, name: &str, files: &[(&str, &str)]) -> Digest {
        let layers: Vec<Value> = files
            .iter()
            .map(|(title, content)| {
                let digest = self.registry.blob(name, content.as_bytes());
                json!({ "mediaType": "text/plain", "digest": digest, "size": content.len(),
                        "annotations": { "org.opencontainers.image.title": title } })
            })
            .collect();
        let config = json!({ "mediaType": EMPTY, "digest": self.registry.blob(name, b"{}"), "size": 2 });
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "text/x-test",
                               "config": config, "layers": layers });
        self.registry.manifest(name, "1", &manifest)
    }

    /// Signs a manifest for a name, as cosign does.
    fn sign(&self, repository: &str, digest: &Digest, name: &str, key: &rcgen::KeyPair) {
        let payload = json!({
            "critical": { "identity": { "docker-reference": name },
                          "image": { "docker-manifest-digest": digest },
                          "type": "cosign container image signature" },
            "optional": { "by": "test" },
        })
        .to_string();
        let signature =
            base64::engine::general_purpose::STANDARD.encode(key.sign(payload.as_bytes()).unwrap());
        let blob = self.registry.blob(repository, payload.as_bytes());
        let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json",
                             "digest": self.registry.blob(repository, b"{}"), "size": 2 });
        let layer = json!({ "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": blob,
                            "size": payload.len(),
                            "annotations": { "dev.cosignproject.cosign/signature": signature } });
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] });
        self.registry.manifest(repository, &format!("sha256-{}.sig", digest.hex()), &manifest);
    }
}

fn layer(files: &[(&str, &str)]) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

/// Waits until `holds`.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_admits_signed_images_and_nothing_else() {
    let node = node().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let unknown_key = rcgen::KeyPair::generate().unwrap();
    node.write("key.pem", key.public_key_pem());
    let signed = json!([{ "type": "sigstoreSigned", "keyPath": node.path("key.pem"),
                          "signedIdentity": { "type": "matchRepository" } }]);
    let policy = json!({ "default": [{ "type": "reject" }],
                         "transports": { "docker": { node.name("signed"): signed,
                                                     node.name("open"): [{ "type": "insecureAcceptAnything" }] } } });
    let digest = node.image("signed");
    node.image("open");
    node.image("other");
    node.pull("signed:1").await.expect("without a policy any image is admitted");

    node.write("policy.json", &policy);
    node.pull("open:1").await.unwrap();
    let refused = |error: berth_image::Error, words: &str| {
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(node.pull("other:1").await.unwrap_err(), "the image is rejected");
    refused(node.pull("signed:1").await.unwrap_err(), "the image has no signature");
    node.sign("signed", &digest, &node.name("signed"), &unknown_key);
    refused(node.pull("signed:1").await.unwrap_err(), "not made by any of the keys");
    node.sign("signed", &digest, "docker.io/other/image", &key);
    refused(node.pull("signed:1").await.unwrap_err(), "for the name \"docker.io/other/image\"");
    let another = Digest::of(Algorithm::Sha256, b"another");
    node.sign("signed", &digest, &node.name("signed"), &key);
    node.pull("signed:1").await.expect("a signature by the key, for the repository");
    node.pull(&format!("signed@{digest}")).await.unwrap();
    // A signature for another image, stored beside this image.
    let other_payload = node.registry.answer_of(&format!("/v2/signed/manifests/sha256-{}.sig", digest.hex()));
    assert!(other_payload.is_some());
    node.sign("signed", &another, &node.name("signed"), &key);
    let moved =
        node.registry.answer_of(&format!("/v2/signed/manifests/sha256-{}.sig", another.hex())).unwrap();
    let place = format!("/v2/signed/manifests/sha256-{}.sig", digest.hex());
    node.registry.answer(place, Answer::Whole(200, MANIFEST, moved));
    refused(node.pull("signed:1").await.unwrap_err(), &format!("the signature is for {another}"));

    node.write("policy.json", "{ \"default\": [ { \"type\": \"insecureAcceptAnythin\" } ] }");
    refused(node.pull("open:1").await.unwrap_err(), "policy.json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_applies_to_the_use_of_images_in_the_store() {
    let node = node().await;
    let key = rcgen::KeyPair::generate().unwrap();
    node.write("key.pem", key.public_key_pem());
    let digest = node.image("signed");
    node.image("open");
    let signed = node.pull("signed:1").await.unwrap();
    let open = node.pull("open:1").await.unwrap();
    let check = async |image: &berth_image::Image, name: &str| node.store.check_policy(image, name).await;
    check(&signed, "").await.expect("without a policy anything may be used");

    let required = json!([{ "type": "sigstoreSigned", "keyPath": node.path("key.pem"),
                          "signedIdentity": { "type": "matchRepository" } }]);
    let policy = json!({ "default": [{ "type": "reject" }], "transports": { "docker": { node.name("signed"): required } } });
    node.write("policy.json", &policy);
    let refused = |result: Result<(), berth_image::Error>, words: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(check(&open, &node.name("open:1")).await, "the image is rejected");
    refused(check(&signed, &node.name("signed:1")).await, "the image has no signature");
    node.sign("signed", &digest, &node.name("signed"), &key);
    check(&signed, &node.name("signed:1")).await.expect("the image is signed");
    // After one verification the registry is not contacted again, whatever name the client uses.
    let place = format!("/v2/signed/manifests/sha256-{}.sig", digest.hex());
    let before = node.registry.times(&place);
    node.registry.answer(&place, Answer::Whole(500, "text/plain", Vec::new()));
    for name in [node.name("signed:1"), signed.id.to_string(), String::new()] {
        check(&signed, &name).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    assert_eq!(node.registry.times(&place), before);
    // Another key requires another verification.
    node.write("key.pem", rcgen::KeyPair::generate().unwrap().public_key_pem());
    assert!(check(&signed, &node.name("signed:1")).await.is_err());
    assert!(node.registry.times(&place) > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_in_an_index_decides_and_old_media_types_are_images() {
    const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
    let node = node().await;
    let (layer, diff_id) = layer(&[("a", "content")]);
    let blob = node.registry.blob("old", &layer);
    // The form that old builders write: the platform differs from that in the index, and optional members are
    // null or missing.
    let config = json!({ "architecture": "mips", "os": "linux", "config": { "Labels": null, "Env": null },
                         "rootfs": { "diff_ids": [diff_id] }, "history": null })
    .to_string();
    let config_digest = node.registry.blob("old", config.as_bytes());
    let manifest = json!({ "schemaVersion": 2, "mediaType": DOCKER,
        "config": { "mediaType": "application/octet-stream", "digest": config_digest, "size": config.len(), "urls": null },
        "layers": [{ "mediaType": "application/octet-stream", "digest": blob, "size": layer.len(), "annotations": null }] });
    let text = manifest.to_string();
    let digest = node.registry.manifest("old", "alone", &manifest);
    for place in ["alone".to_owned(), digest.to_string()] {
        node.registry.answer(
            format!("/v2/old/manifests/{place}"),
            Answer::Whole(200, DOCKER, text.clone().into_bytes()),
        );
    }
    let architecture = if cfg!(target_arch = "aarch64") { "AARCH64" } else { "x86_64" };
    let entry = json!({ "mediaType": DOCKER, "digest": digest, "size": text.len(), "annotations": null,
                        "platform": { "os": "Linux", "architecture": architecture, "variant": null } });
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
                        "manifests": [entry] })
        .to_string();
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    node.registry.answer("/v2/old/manifests/1", Answer::Whole(200, list, index.into_bytes()));
    let image = node.pull("old:1").await.unwrap();
    assert_eq!(image.id, config_digest);
    // A unique prefix of its id is sufficient.
    for name in [&image.id.to_string()[..12], &image.id.hex()[..3], image.id.hex()] {
        assert_eq!(node.store.resolve(name).map(|image| image.id.clone()), Some(image.id.clone()), "{name}");
    }
    let other = node.pull("old:alone").await;
    assert!(other.is_ok(), "the image is already in the store: {other:?}");
    let fresh = self::node().await;
    fresh.registry.blob("old", &layer);
    fresh.registry.blob("old", config.as_bytes());
    fresh.registry.answer("/v2/old/manifests/1", Answer::Whole(200, DOCKER, text.into_bytes()));
    let error = fresh.pull("old:1").await.unwrap_err();
    assert!(error.to_string().contains("linux/mips"), "the config decides without an index: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_can_be_mounted_but_not_run() {
    let node = node().await;
    let digest = node.artifact("models", &[("model.bin", "weights"), ("docs/readme", "text")]);
    let artifact = node.pull("models:1").await.unwrap();
    assert_eq!((artifact.id.clone(), artifact.artifact), (digest.clone(), true));
    assert_eq!(artifact.repo_tags, [node.name("models:1")]);
    node.image("app");
    let app = node.pull("app:1").await.unwrap();
    let layer = node.store.create_layer("c", &app.id, std::slice::from_ref(&artifact.id)).await.unwrap();
    let files = &layer.volumes[0].lower[0];
    assert_eq!(fs::read_to_string(files.join("model.bin")).unwrap(), "weights");
    assert_eq!(fs::read_to_string(files.join("docs/readme")).unwrap(), "text");
    let error = node.store.create_layer("d", &artifact.id, &[]).await.unwrap_err();
    assert!(error.to_string().contains("artifact"), "{error}");

    // It survives a restart, and is removed with its last user.
    let Node { folder, registry, store } = node;
    drop(store);
    let node = Node { store: open(folder.path()).await, folder, registry };
    let again = node.store.resolve(&node.name("models:1")).unwrap();
    assert!(again.artifact && again.id == digest);
    until("the digest is not recorded", || {
        let layers = fs::read_dir(node.path("image/layers")).unwrap().flatten();
        layers.into_iter().all(|layer| {
            fs::read_to_string(layer.path().join("synced")).is_ok_and(|text| text.contains("content"))
        })
    })
    .await;
    let verified = node.store.verify(None).await.unwrap();
    assert!(verified.iter().all(|part| part.verdict == berth_image::Verdict::Sound), "{verified:?}");
    node.store.remove(&node.name("models:1")).await.unwrap();
    assert!(files.join("model.bin").exists(), "the files of a mounted artifact are removed");
    node.store.remove_layer("c").await.unwrap();
    until("the artifact is not removed with its last user", || !files.join("model.bin").exists()).await;

    for (name, title) in [("up", "../x"), ("root", "/etc/x"), ("twice", "model.bin")] {
        node.artifact(name, &[("model.bin", "a"), (title, "b")]);
        let error = node.pull(&format!("{name}:1")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    node.artifact("wrong", &[("a", "sound")]);
    let corrupt = Digest::of(Algorithm::Sha256, b"sound");
    node.registry.answer(
        format!("/v2/wrong/blobs/{corrupt}"),
        Answer::Whole(200, "application/octet-stream", b"SOUND".to_vec()),
    );
    assert_eq!(node.pull("wrong:1").await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_shows_the_servers_of_a_pull_and_pulls_nothing() {
    let node = node().await;
    let digest = node.image("mirrored/app");
    let address = node.registry.address.clone();
    node.write(
        "registries.conf",
        format!(
            "unqualified-search-registries = [\"r.invalid\"]\n[[registry]]\nlocation = \"r.invalid\"\n\
             [[registry.mirror]]\nlocation = \"{address}/mirrored\"\ninsecure = true\n"
        ),
    );
    node.write("auth.json", json!({ "auths": { address.as_str(): { "auth": "dTpw" } } }));
    node.write("policy.json", json!({ "default": [{ "type": "insecureAcceptAnything" }] }));
    let explained = node.store.explain("app:1", None).await.unwrap();
    assert_eq!(explained[0].reference, "r.invalid/app:1");
    assert_eq!(explained[0].policy, ["default", "any image is accepted"]);
    let [tls, plain, own] = explained[0].servers.as_slice() else { panic!("{explained:?}") };
    assert!(tls.outcome.is_err() && tls.url.starts_with("https://"), "{tls:?}");
    assert_eq!(plain.url, format!("http://{address}/v2/mirrored/app"));
    assert_eq!(plain.outcome, Ok(digest.to_string()), "{plain:?}");
    assert!(plain.credentials.ends_with(&format!("auth.json: {address}")), "{plain:?}");
    assert_eq!(plain.answers.len(), 1);
    assert!(plain.answers[0].ends_with("/mirrored/app/manifests/1: 200 OK"), "{plain:?}");
    assert!(own.outcome.is_err() && own.credentials.is_empty(), "{own:?}");
    assert!(node.store.list().is_empty());

    let image = node.store.pull_name("app:1", None).await.unwrap();
    assert_eq!(image.repo_tags, ["r.invalid/app:1"]);
    assert_eq!(node.store.resolve("app:1").unwrap().id, image.id);
}
