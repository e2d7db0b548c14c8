//! Tests that measure the memory for untrusted images: small documents that expand, archives of many images.
//! They run as root, as the store does.
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

#[path = "../../tests/it/support/registry.rs"]
mod registry;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use berth_image::{Algorithm, Digest, ErrorKind, Image, ImageStore, Options};
use registry::{MANIFEST, Registry};
use serde_json::{Value, json};

/// Serializes the tests: the memory is that of the whole process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The memory for the registry of the test, the runtime and buffers of fixed size.
const SLACK: u64 = 48 << 20;

fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<u64>().unwrap() << 10
}

/// Returns the peak memory of some work, in addition to that before it (proc(5), `clear_refs`).
async fn peak<T>(work: impl Future<Output = T>) -> (T, u64) {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS");
    let result = work.await;
    (result, status("VmHWM").saturating_sub(before))
}

async fn open(folder: &Path) -> ImageStore {
    ImageStore::open(Options::new(folder.join("image"))).await.unwrap()
}

async fn pull(store: &ImageStore, registry: &Registry, name: &str) -> Result<Arc<Image>, berth_image::Error> {
    store.pull(&format!("{}/{name}:1", registry.address).parse().unwrap(), None).await
}

/// Adds an image without layers to the registry, with this config and a manifest that `change` modifies.
fn image(registry: &Registry, name: &str, config: &str, change: impl FnOnce(&mut Value)) {
    let digest = registry.blob(name, config.as_bytes());
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest,
                         "size": config.len() });
    let mut manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] });
    change(&mut manifest);
    registry.manifest(name, "1", &manifest);
}

fn config(more: &str) -> String {
    format!(r#"{{ "rootfs": {{ "type": "layers", "diff_ids": [] }}{more} }}"#)
}

/// Returns a list of `count` equal values.
fn list(value: &str, count: usize) -> String {
    format!("[{}]", vec![value; count].join(","))
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_expand_take_no_more_memory_than_their_length() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let registry = Registry::start(std::process::id());
    let history = config(&format!(r#", "history": {}"#, list("{}", 2_000_000)));
    let labels: Vec<_> = (0..600_000).map(|number| format!(r#""{number:x}":"""#)).collect();
    let labels = config(&format!(r#", "config": {{ "Labels": {{ {} }} }}"#, labels.join(",")));
    let objects = config(&format!(r#", "x": {}"#, list(r#"{"":0}"#, 1_000_000)));
    image(&registry, "history", &history, |_| ());
    image(&registry, "labels", &labels, |_| ());
    image(&registry, "objects", &objects, |_| ());
    let annotated = |manifest: &mut Value| {
        let annotations: serde_json::Map<_, _> =
            (0..300_000).map(|number| (format!("{number:x}"), json!(""))).collect();
        manifest["annotations"] = annotations.into();
    };
    image(&registry, "annotations", &config(""), annotated);
    image(&registry, "empty", &config(""), |manifest| manifest["x"] = json!(vec![json!({}); 1_000_000]));
    for name in ["history", "labels", "objects", "annotations", "empty"] {
        let (pulled, peak) = peak(pull(&store, &registry, name)).await;
        pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(peak < SLACK, "{name}: {} MiB", peak >> 20);
    }
    drop(store);
    let (store, peak) = peak(open(folder.path())).await;
    assert!(peak < SLACK, "opened again: {} MiB", peak >> 20);
    assert_eq!(store.list().len(), 4, "two have the same config");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_for_containers_are_limited() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let registry = Registry::start(std::process::id());
    let env = config(&format!(r#", "config": {{ "Env": {} }}"#, list("\"\"", 1_500_000)));
    image(&registry, "env", &env, |_| ());
    let (refused, peak) = peak(pull(&store, &registry, "env")).await;
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("1500000 environment variables"), "{error}");
    assert!(peak < SLACK, "{} MiB", peak >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configs_of_an_archive_are_read_one_after_the_other() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let large = config(&format!(r#", "author": "{}""#, "x".repeat(4 << 20)));
    let entry = json!({ "Config": "config.json", "Layers": [] });
    let manifest = Value::Array(vec![entry; 200]).to_string();
    let layout = folder.path().join("docker");
    fs::create_dir(&layout).unwrap();
    fs::write(layout.join("config.json"), &large).unwrap();
    fs::write(layout.join("manifest.json"), manifest).unwrap();
    let (loaded, peak) = peak(store.load(&layout)).await;
    assert_eq!(loaded.unwrap().len(), 200);
    assert!(peak < SLACK, "{} MiB", peak >> 20);
    assert_eq!(store.list()[0].id, Digest::of(Algorithm::Sha256, large.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_links_to_other_layers_are_rejected_before_they_take_much_memory() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let registry = Registry::start(std::process::id());
    let target = format!("{}/", "a".repeat(250)).repeat(15) + "b";
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..20_000 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        tar.append_link(&mut header, format!("l/{number:07}"), &target).unwrap();
    }
    let layer = tar.into_inner().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &layer);
    registry.image("links", &zstd::encode_all(layer.as_slice(), 1).unwrap(), &digest);
    drop(layer);
    let (refused, peak) = peak(pull(&store, &registry, "links")).await;
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    assert!(error.to_string().contains("16777216 bytes of memory"), "{error}");
    assert!(peak < SLACK, "{} MiB", peak >> 20);
}
