//! Tests of archives in all formats, valid and corrupt. They run as root, as the store does.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Digest, Error, ErrorKind, Image, ImageStore, Options};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

struct Test {
    folder: tempfile::TempDir,
    store: ImageStore,
}

async fn test() -> Test {
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(Options::new(folder.path().join("image"))).await.unwrap();
    Test { folder, store }
}

impl Test {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn load(&self, name: &str) -> Result<Vec<Arc<Image>>, Error> {
        self.store.load(&self.path(name)).await
    }

    /// Waits for the background thread. Returns whether the store has this many images and no temporary
    /// files.
    fn is_clean(&self, images: usize) -> bool {
        let count = |folder: &str| fs::read_dir(self.path("image").join(folder)).unwrap().count();
        let clean = || {
            self.store.list().len() == images
                && count("images") == images
                && count("tmp") == 0
                && count("trash") == 0
                && (images > 0 || count("layers") == 0)
        };
        let until = Instant::now() + Duration::from_secs(120);
        while !clean() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        clean()
    }
}

/// The members of an archive.
type Members = BTreeMap<String, Vec<u8>>;

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn layer(text: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len().try_into().unwrap());
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
    tar.into_inner().unwrap()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } })
        .to_string()
        .into_bytes()
}

/// Adds a blob to a layout. Returns its descriptor.
fn blob(members: &mut Members, kind: &str, bytes: Vec<u8>) -> Value {
    let digest = digest(&bytes);
    let described = json!({ "mediaType": kind, "digest": digest, "size": bytes.len() });
    members.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
    described
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns an OCI layout with one image. `change` is applied to its entry in the index.
fn layout(text: &str, change: impl FnOnce(&mut Value)) -> Members {
    let mut members = Members::new();
    let layers = [layer(text)];
    let config = blob(&mut members, "application/vnd.oci.image.config.v1+json", config(&layers));
    let layer = blob(&mut members, "application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layers[0]));
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }).to_string();
    let mut entry = blob(&mut members, MANIFEST, manifest.into_bytes());
    change(&mut entry);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    members.insert("index.json".to_owned(), index.into_bytes());
    members.insert("oci-layout".to_owned(), br#"{ "imageLayoutVersion": "1.0.0" }"#.to_vec());
    members
}

fn named(entry: &mut Value) {
    entry["annotations"] = json!({ "io.containerd.image.name": "docker.io/library/loaded:1",
                                   "org.opencontainers.image.ref.name": "1" });
}

/// Returns the same image as a docker-archive. Its layer may be a link to another member.
fn docker(text: &str, tags: &Value) -> Members {
    let layers = [layer(text)];
    let manifest = json!([{ "Config": "config.json", "RepoTags": tags, "Layers": ["one/layer.tar"] }]);
    Members::from([
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
        ("config.json".to_owned(), config(&layers)),
        ("one/layer.tar".to_owned(), layers[0].clone()),
    ])
}

fn archive(members: &Members) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len().try_into().unwrap());
        if let Some(target) = bytes.strip_prefix(b"->") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let target = String::from_utf8(target.to_vec()).unwrap();
            tar.append_link(&mut header, name, target).unwrap();
        } else {
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

fn write_folder(path: &Path, members: &Members) {
    for (name, bytes) in members {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_contains_the_same_image() {
    let members = layout("text", named);
    let mut ids = Vec::new();
    for form in ["folder", "tar", "gzip", "zstd", "docker"] {
        let test = test().await;
        let path = test.path("archive");
        match form {
            "folder" => write_folder(&path, &members),
            "tar" => fs::write(&path, archive(&members)).unwrap(),
            "gzip" => fs::write(&path, gzip(&archive(&members))).unwrap(),
            "zstd" => fs::write(&path, zstd::encode_all(archive(&members).as_slice(), 3).unwrap()).unwrap(),
            _ => fs::write(&path, archive(&docker("text", &json!(["loaded:1"])))).unwrap(),
        }
        let images = test.load("archive").await.unwrap();
        assert_eq!(images.len(), 1, "{form}");
        assert_eq!(images[0].repo_tags, ["docker.io/library/loaded:1"], "{form}");
        assert_eq!(images[0].repo_digests.len(), usize::from(form != "docker"), "{form}");
        ids.push(images[0].id.clone());
        let layer = test.store.create_layer("c", &images[0].id, &[]).await.unwrap();
        assert_eq!(fs::read_to_string(layer.lower[0].join("file")).unwrap(), "text");
        test.store.remove_layer("c").await.unwrap();
        assert_eq!(test.load("archive").await.unwrap()[0].id, images[0].id, "a second time");
        assert!(test.is_clean(1), "{form}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "the config's digest is the id in every form");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_those_of_the_archive() {
    let test = test().await;
    let mut members = docker("a", &json!(["one:1", "example.org/two:2"]));
    members.insert("shared/layer.tar".to_owned(), members["one/layer.tar"].clone());
    members.insert("one/layer.tar".to_owned(), b"->../shared/layer.tar".to_vec());
    fs::write(test.path("docker"), archive(&members)).unwrap();
    let images = test.load("docker").await.unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/one:1", "example.org/two:2"]);
    fs::write(test.path("nameless"), archive(&docker("b", &Value::Null))).unwrap();
    assert!(test.load("nameless").await.unwrap()[0].repo_tags.is_empty());
    let bare =
        layout("c", |entry| entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" }));
    write_folder(&test.path("bare"), &bare);
    assert!(
        test.load("bare").await.unwrap()[0].repo_tags.is_empty(),
        "a tag alone does not contain a repository"
    );
    let podman = layout("d", |entry| {
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "quay.io/some/thing:3" });
    });
    write_folder(&test.path("podman"), &podman);
    assert_eq!(test.load("podman").await.unwrap()[0].repo_tags, ["quay.io/some/thing:3"]);
    // A name moves to the image that comes later.
    fs::write(test.path("again"), archive(&docker("e", &json!(["one:1"])))).unwrap();
    let moved = test.load("again").await.unwrap();
    assert_eq!(test.store.resolve("one:1").unwrap().id, moved[0].id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_image_for_this_platform_is_loaded() {
    let test = test().await;
    let mut members = layout("here", |_| {});
    let index: Value = serde_json::from_slice(&members["index.json"]).unwrap();
    let mut here = index["manifests"][0].clone();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    here["platform"] = json!({ "os": "linux", "architecture": architecture });
    let mut other = here.clone();
    other["digest"] = json!(digest(b"not in the archive"));
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let nested = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, here] }).to_string();
    let mut entry = blob(&mut members, INDEX, nested.into_bytes());
    named(&mut entry);
    let outer = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    members.insert("index.json".to_owned(), outer.into_bytes());
    write_folder(&test.path("nested"), &members);
    let images = test.load("nested").await.unwrap();
    assert_eq!(images[0].repo_tags, ["docker.io/library/loaded:1"]);

    let only_other = json!({ "schemaVersion": 2, "manifests": [other] }).to_string();
    let entry = blob(&mut members, INDEX, only_other.into_bytes());
    let outer = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
    members.insert("index.json".to_owned(), outer.into_bytes());
    write_folder(&test.path("other"), &members);
    let error = test.load("other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("no image for"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_archives_are_rejected_and_leave_nothing() {
    let test = test().await;
    let valid = layout("text", named);
    let damaged = |kind: &str, change: &dyn Fn(&mut Members, &str)| {
        // Finds the blob of this kind and changes it.
        let mut members = valid.clone();
        let name = members
            .iter()
            .find(|(name, bytes)| {
                name.starts_with("blobs/")
                    && match kind {
                        "layer" => bytes.starts_with(&[0x1f, 0x8b]),
                        "config" => bytes.starts_with(b"{\"architecture"),
                        _ => bytes.windows(8).any(|window| window == b"\"layers\""),
                    }
            })
            .map(|(name, _)| name.clone())
            .unwrap_or_else(|| panic!("no {kind}"));
        change(&mut members, &name);
        archive(&members)
    };
    let flip = |members: &mut Members, name: &str| {
        let bytes = members.get_mut(name).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let remove = |members: &mut Members, name: &str| drop(members.remove(name));
    let cut = |members: &mut Members, name: &str| members.get_mut(name).unwrap().truncate(30);
    let whole = archive(&valid);
    let mut foreign = docker("text", &json!(["x:1"]));
    foreign.insert("one/layer.tar".to_owned(), layer("another text"));
    let mut incomplete = docker("text", &json!(["x:1"]));
    incomplete.remove("one/layer.tar");
    let mut outside = docker("text", &json!(["x:1"]));
    outside.insert("one/layer.tar".to_owned(), b"->../../../../etc/passwd".to_vec());
    for (name, bytes, kind) in [
        ("layer flipped", damaged("layer", &flip), ErrorKind::Corrupt),
        ("layer cut", damaged("layer", &cut), ErrorKind::Corrupt),
        ("config flipped", damaged("config", &flip), ErrorKind::Corrupt),
        ("config gone", damaged("config", &remove), ErrorKind::Corrupt),
        ("manifest cut", damaged("manifest", &cut), ErrorKind::Corrupt),
        ("layer gone", damaged("layer", &remove), ErrorKind::NotFound),
        ("cut off", whole[..600].to_vec(), ErrorKind::Corrupt),
        ("noise", vec![b'x'; 4000], ErrorKind::Corrupt),
        ("empty", Vec::new(), ErrorKind::InvalidInput),
        ("foreign layer", archive(&foreign), ErrorKind::Corrupt),
        ("missing layer", archive(&incomplete), ErrorKind::NotFound),
        ("link out", archive(&outside), ErrorKind::NotFound),
        ("bad name", archive(&docker("text", &json!(["NOT A NAME"]))), ErrorKind::Corrupt),
        ("neither", archive(&Members::from([("file".to_owned(), Vec::new())])), ErrorKind::InvalidInput),
    ] {
        fs::write(test.path(name), bytes).unwrap();
        let error = test.load(name).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(name) || name == "bad name", "{name}: {error}");
        assert!(test.is_clean(0), "{name}");
    }
    let error = test.load("nowhere").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    // A link in the folder of a layout cannot lead out of it either.
    let members = layout("text", named);
    write_folder(&test.path("links"), &members);
    let blobs = test.path("links/blobs");
    fs::rename(&blobs, test.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(test.path("elsewhere"), &blobs).unwrap();
    let error = test.load("links").await.unwrap_err();
    assert!(error.to_string().contains("blobs/"), "{error}");
    assert!(test.is_clean(0));
}
