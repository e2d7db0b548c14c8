//! Tests of the store with a private registry: pulled images are complete, work is shared, and removed or
//! incomplete data is deleted. They run as root, since layers have whiteouts, which are devices.
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

mod registries;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use berth_image::{Algorithm, Credentials, Digest, ErrorKind, ImageStore, Limits, Options, Proxies, Verdict};
use support::registry::{Answer, MANIFEST, Registry};
use support::{Layer, Overlay, TIMEOUT, Test, open, seen, simple, test, until_digested};

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_all_compressions_are_merged() {
    let test = test().await;
    let bottom = Layer::default()
        .folder("usr", 0o755)
        .folder("usr/lib", 0o755)
        .symlink("lib", "usr/lib")
        .folder("srv", 0o1777)
        .file("usr/lib/first", "one")
        .file("gone", "x")
        .file("tool", "tool");
    let middle = Layer::default().file("lib/second", "two").file("srv/file", "three").file(".wh.gone", "");
    let top = Layer::default().link("other-tool", "tool").file("top", "four");
    test.registry.layers("image", &[bottom.gzip(), middle.zstd(), top.plain()]);
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(image.layers.len(), 3);
    assert_eq!(image.repo_tags, [format!("{}/image:1", test.registry.address)]);
    assert!(image.repo_digests[0].starts_with(&format!("{}/image@sha256:", test.registry.address)));

    let layer = test.store.create_layer("c1", &image.id, &[]).await.unwrap();
    let text = |name: &str| seen(&layer.lower, name).map(|path| fs::read_to_string(path).unwrap());
    assert_eq!(text("usr/lib/first").as_deref(), Some("one"));
    // A file below a link of another layer is at the link's target.
    assert_eq!(text("usr/lib/second").as_deref(), Some("two"));
    assert!(fs::symlink_metadata(seen(&layer.lower, "lib").unwrap()).unwrap().is_symlink());
    assert_eq!(text("gone"), None);
    assert_eq!(text("top").as_deref(), Some("four"));
    let inode = |name: &str| fs::metadata(seen(&layer.lower, name).unwrap()).unwrap().ino();
    assert_eq!(inode("other-tool"), inode("tool"), "a hard link into a lower layer");
    let srv = fs::metadata(seen(&layer.lower, "srv").unwrap()).unwrap();
    assert_eq!(srv.mode() & 0o7777, 0o1777, "a folder that a layer does not list keeps its mode");
    test.store.remove_layer("c1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn zstd_windows_fit_into_the_budget_or_are_rejected() {
    let test = test().await;
    let layer = |number: u32, log| Layer::default().file(&format!("{number}"), "x").zstd_with_window(log);
    // Together they exceed the budget, so they wait for one another.
    let layers: Vec<_> =
        (0..9).map(|number| layer(number, 27)).chain([layer(10, 28), layer(11, 24)]).collect();
    test.registry.layers("image", &layers);
    assert_eq!(test.pull("image:1").await.unwrap().layers.len(), layers.len());
    test.registry.layers("huge", &[layer(12, 29)]);
    let error = test.pull("huge:1").await.unwrap_err();
    assert!(error.to_string().contains("a window of 536870912 bytes, the limit is 402653184"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_layers_share_folders_that_none_of_them_lists() {
    const LAYERS: usize = 127;
    let test = test().await;
    let bottom = Layer::default()
        .folder("srv", 0o711)
        .folder("srv/shared", 0o1777)
        .folder("usr", 0o755)
        .folder("usr/lib", 0o750)
        .symlink("lib", "usr/lib");
    let mut layers = vec![bottom.gzip()];
    for number in 1..LAYERS {
        let mut layer = Layer::default().file(&format!("lib/x/{number}"), "below a link");
        for file in 0..20 {
            layer = layer.file(&format!("srv/shared/all/{file}/{number}"), "x");
            layer = layer.file(&format!("srv/own{number}/{file}/x"), "x");
        }
        layers.push(layer.gzip());
    }
    test.registry.layers("image", &layers[..LAYERS - 1]);
    let shorter = test.pull("image:1").await.unwrap();
    test.registry.layers("longer", &layers);
    let longer = test.pull("longer:1").await.unwrap();
    for (id, count) in [(shorter.id.clone(), LAYERS - 1), (longer.id.clone(), LAYERS)] {
        let layer = test.store.create_layer("c", &id, &[]).await.unwrap();
        let mode = |name: &str| fs::metadata(seen(&layer.lower, name).unwrap()).unwrap().mode() & 0o7777;
        assert_eq!([mode("srv"), mode("srv/shared"), mode("usr/lib")], [0o711, 0o1777, 0o750]);
        assert!(fs::symlink_metadata(seen(&layer.lower, "lib").unwrap()).unwrap().is_symlink());
        for number in 1..count {
            for name in [format!("usr/lib/x/{number}"), format!("srv/shared/all/19/{number}")] {
                assert!(seen(&layer.lower, &name).is_some(), "{name}");
            }
        }
        assert!(seen(&layer.lower, &format!("usr/lib/x/{count}")).is_none());
        test.store.remove_layer("c").await.unwrap();
    }
    // The patches above the same layers are shared.
    assert!(test.store.remove(&shorter.id.to_string()).await.unwrap());
    assert!(test.store.remove(&longer.id.to_string()).await.unwrap());
    assert!(test.settled("layers", 0) && test.settled("trash", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlisted_opaque_folder_keeps_its_owner_and_mode() {
    let test = test().await;
    let bottom = Layer::default().folder("srv", 0o711).folder("srv/data", 0o1770).file("srv/data/old", "x");
    let top = Layer::default().file("srv/data/.wh..wh..opq", "").file("srv/data/new", "y");
    test.registry.layers("image", &[bottom.gzip(), top.gzip()]);
    let image = test.pull("image:1").await.unwrap();
    let layer = test.store.create_layer("c", &image.id, &[]).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let merged = Overlay::mount(root.path(), &layer.lower);
    let data = merged.path.join("srv/data");
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o7777, 0o1770);
    let names: Vec<_> = fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_layers_are_not_fetched_again_and_work_is_shared() {
    let test = test().await;
    let shared = simple("shared");
    let paths = test.registry.layers("one", &[shared.clone(), simple("one")]);
    let others = test.registry.layers("two", &[shared, simple("two")]);
    let pulls = (0..8).map(|_| test.pull("one:1"));
    let images = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(images.iter().all(|image| image.id == images[0].id));
    assert!(paths.iter().all(|path| test.registry.times(path) == 1), "eight pulls, one transfer");
    test.pull("two:1").await.unwrap();
    assert_eq!(test.registry.times(&others[0]), 0, "the layer is in the store, from the other image");
    assert_eq!(test.registry.times(&others[1]), 1);
    assert_eq!(test.stored("layers").len(), 3);
    // The registry is contacted nevertheless, so that it checks the credentials.
    test.pull("two:1").await.unwrap();
    assert_eq!(test.registry.times("/v2/two/manifests/1"), 2);
}

fn length(test: &Test, path: &str) -> usize {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(&test.registry.address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_platform() {
    let test = test().await;
    test.registry.image("image", &simple("x").0, &simple("x").1);
    let requests = |path: &str| test.registry.times(path);
    let image = test.pull("image:1").await.unwrap();
    let digest = image.repo_digests[0].rsplit('@').next().unwrap().to_owned();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let wrong = Digest::of(Algorithm::Sha256, b"not in the registry");
    let size = length(&test, &format!("/v2/image/manifests/{digest}"));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "mediaType": MANIFEST, "digest": wrong, "size": 10, "platform": { "os": "linux", "architecture": "s390x" } },
        { "mediaType": MANIFEST, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": architecture } },
    ] });
    let kind = "application/vnd.oci.image.index.v1+json";
    test.registry.answer("/v2/image/manifests/all", Answer::Whole(200, kind, index.to_string().into_bytes()));
    let from_index = test.pull("image:all").await.unwrap();
    assert_eq!(from_index.id, image.id);
    assert_eq!(from_index.repo_tags.len(), 2, "two names of one image");
    assert_eq!(requests(&format!("/v2/image/manifests/{wrong}")), 0);
    let only_other = index.to_string().replace(architecture, "riscv64");
    test.registry.answer("/v2/image/manifests/other", Answer::Whole(200, kind, only_other.into_bytes()));
    let error = test.pull("image:other").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let by_digest = test.pull(&format!("image@{digest}")).await.unwrap();
    assert_eq!(by_digest.id, image.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_enforced_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(std::process::id());
    let limits = Limits { bytes: 50_000, entries: 5, ..Limits::default() };
    let options = Options { limits, ..Options::new(folder.path().join("image")) };
    let store = ImageStore::open(options).await.unwrap();
    let many = (0..10).fold(Layer::default(), |layer, n| layer.file(&format!("f{n}"), "x")).gzip();
    let large = Layer::default().file("large", &"x".repeat(100_000)).gzip();
    for (name, (bytes, digest), figure) in [("many", many, "5 files"), ("large", large, "50000 bytes")] {
        registry.image(name, &bytes, &digest);
        let reference = format!("{}/{name}:1", registry.address).parse().unwrap();
        let error = store.pull(&reference, None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
        assert!(error.to_string().contains(figure), "{error}");
    }
    assert!(store.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_survive_a_restart_and_incomplete_folders_do_not() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), simple("b")]);
    let image = test.pull("image:1").await.unwrap();
    test.store.create_layer("kept", &image.id, &[]).await.unwrap();
    let Test { folder, registry, store } = test;
    drop(store);
    let root = folder.path().join("image");
    fs::create_dir(root.join("tmp/half")).unwrap();
    fs::create_dir(root.join("containers/torn")).unwrap();
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(test.settled("tmp", 0) && test.settled("trash", 0));
    let again = test.store.resolve(&image.repo_tags[0]).unwrap();
    assert_eq!((&again.id, &again.repo_digests, again.size), (&image.id, &image.repo_digests, image.size));
    assert_eq!(test.store.layer("kept").unwrap().lower.len(), 2);
    assert_eq!(test.store.writable_layers(), ["kept", "torn"]);
    assert!(test.store.layer("torn").is_none());
    test.store.remove_layer("torn").await.unwrap();

    // After a reboot, a layer is trusted because of an image's record or its own marker.
    let Test { folder, registry, store } = test;
    store.remove_layer("kept").await.unwrap();
    until_digested(&root);
    drop(store);
    let layers = || fs::read_dir(root.join("layers")).unwrap().map(|layer| layer.unwrap().path());
    for layer in layers() {
        drop(fs::remove_file(layer.join("synced")));
        let record = fs::read_to_string(layer.join("layer.json")).unwrap();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(layer.join("layer.json"), record.replace(boot.trim(), "another-boot")).unwrap();
    }
    let store = open(folder.path()).await;
    assert_eq!(store.list().len(), 1);
    until_digested(&root);
    drop(store);
    // The record of an earlier daemon, written before the layers were synced, is not sufficient.
    let id = fs::read_dir(root.join("images")).unwrap().next().unwrap().unwrap().path().join("image.json");
    let record = fs::read_to_string(&id).unwrap();
    let old = record.replace("\"synced\": true", "\"synced\": false");
    assert_ne!(old, record);
    fs::write(&id, old).unwrap();
    for layer in layers() {
        drop(fs::remove_file(layer.join("synced")));
    }
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(test.store.list().is_empty());
    test.pull("image:1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_removes_all_names_and_waits_for_containers() {
    let test = test().await;
    test.registry.image("image", &simple("x").0, &simple("x").1);
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(test.store.resolve(&image.id.to_string()).unwrap().id, image.id);
    assert_eq!(test.store.resolve(&image.id.hex()[..12]).unwrap().id, image.id);
    assert_eq!(test.store.resolve(&image.repo_digests[0]).unwrap().id, image.id);
    assert_eq!(test.store.resolve(&image.id.hex()[..5]).unwrap().id, image.id);
    let layer = test.store.create_layer("user", &image.id, &[]).await.unwrap();
    assert!(test.store.remove(&image.repo_tags[0]).await.unwrap());
    assert!(test.store.list().is_empty() && test.store.resolve(&image.id.to_string()).is_none());
    assert!(layer.lower[0].join("x").exists(), "the layer of a running container is removed");
    assert!(test.store.create_layer("late", &image.id, &[]).await.is_err());
    test.store.remove_layer("user").await.unwrap();
    test.store.remove_layer("user").await.unwrap();
    assert!(test.settled("layers", 0) && test.settled("images", 0) && test.settled("trash", 0));
    assert!(!test.store.remove(&image.repo_tags[0]).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_belongs_to_the_image_that_was_pulled_last() {
    let test = test().await;
    test.registry.image("image", &simple("old").0, &simple("old").1);
    let old = test.pull("image:1").await.unwrap();
    test.registry.image("image", &simple("new").0, &simple("new").1);
    let new = test.pull("image:1").await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(test.store.resolve(&new.repo_tags[0]).unwrap().id, new.id);
    let old = test.store.resolve(&old.id.to_string()).unwrap();
    assert!(old.repo_tags.is_empty() && old.repo_digests.len() == 1, "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_that_of_du() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), Layer::default().file("b", &"b".repeat(300_000)).gzip()]);
    test.pull("image:1").await.unwrap();
    let root = test.folder.path().join("image");
    let du = |option: &str| -> u64 {
        let output =
            Command::new("du").args(["-s", option]).args([root.join("layers"), root.join("images")]).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap().parse::<u64>().unwrap()).sum()
    };
    // The two folders themselves are not part of an image.
    let own = |path: &str| fs::metadata(root.join(path)).unwrap().blocks() * 512;
    let until = Instant::now() + TIMEOUT;
    loop {
        let usage = test.store.usage().image;
        let expected = (du("-B1") - own("layers") - own("images"), du("--inodes") - 2);
        if (usage.bytes, usage.inodes) == expected {
            break;
        }
        assert!(Instant::now() < until, "{usage:?} {expected:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_on_the_disk_are_detected() {
    let test = test().await;
    test.registry.layers("image", &[simple("a"), simple("b")]);
    test.registry.image("other", &simple("c").0, &simple("c").1);
    let image = test.pull("image:1").await.unwrap();
    test.pull("other:1").await.unwrap();
    let until = Instant::now() + TIMEOUT;
    let sound = loop {
        let parts = test.store.verify(None).await.unwrap();
        if parts.iter().all(|part| part.verdict == Verdict::Sound) || Instant::now() > until {
            break parts;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(sound.len(), 5, "two configs, three layers: {sound:?}");
    assert!(sound.iter().all(|part| part.verdict == Verdict::Sound), "{sound:?}");

    let root = test.folder.path().join("image");
    let layer = root.join("layers").join(format!("sha256-{}", image.layers[1].hex()));
    fs::write(layer.join("fs/b"), "changed").unwrap();
    let config = root.join("images").join(format!("sha256-{}", image.id.hex())).join("config.json");
    fs::write(&config, "{}").unwrap();
    let parts = test.store.verify(None).await.unwrap();
    let broken: Vec<_> = parts.iter().filter(|part| part.verdict != Verdict::Sound).collect();
    assert_eq!(broken.len(), 2, "{parts:?}");
    assert!(broken.iter().all(|part| part.images == image.repo_tags), "{broken:?}");
    assert_eq!(test.store.verify(Some("no-such:1")).await.unwrap_err().kind(), ErrorKind::NotFound);
    let other = test.store.verify(Some(&format!("{}/other:1", test.registry.address))).await.unwrap();
    assert!(other.len() == 2 && other.iter().all(|part| part.verdict == Verdict::Sound), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_a_failed_pull_are_not_fetched_again() {
    let test = test().await;
    let (first, second) = (simple("a"), simple("b"));
    let paths = test.registry.layers("image", &[first, second.clone()]);
    // It is retried, until the first layer is in the store.
    test.registry.answer(paths[1].as_str(), Answer::Whole(503, "text/plain", Vec::new()));
    assert_eq!(test.pull("image:1").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(test.settled("layers", 1), "{:?}", test.stored("layers"));
    test.registry.answer(paths[1].as_str(), Answer::Whole(200, "application/octet-stream", second.0));
    let image = test.pull("image:1").await.unwrap();
    assert_eq!(test.registry.times(&paths[0]), 1, "the first layer stays for the next attempt");
    test.store.remove(&image.id.to_string()).await.unwrap();
}
