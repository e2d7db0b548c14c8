//! Tests of durability and isolation: tags that move, parts that are lost, files that cannot be deleted,
//! sparse files. They run as root, as the store does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::as_conversions, reason = "a failing test panics")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use berth_image::{Digest, ErrorKind, ImageStore, Verdict, Verified};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use support::registry::Answer;
use support::{Layer, TIMEOUT, Test, open, simple, test, until_digested};

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn file_name(digest: &Digest) -> String {
    digest.to_string().replace(':', "-")
}

/// Changes an image's record on the disk.
fn edit(record: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    change(&mut value);
    fs::write(record, value.to_string()).unwrap();
}

/// Returns a layer of sparse files without data, in GNU tar's pax format 0.1.
fn holes(files: usize, size: u64) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..files {
        let size = size.to_string();
        let records = [
            ("GNU.sparse.major", "0"),
            ("GNU.sparse.minor", "1"),
            ("GNU.sparse.size", size.as_str()),
            ("GNU.sparse.map", "0,0"),
        ];
        tar.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("hole{number}"), std::io::empty()).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(berth_image::Algorithm::Sha256, &bytes);
    (zstd::encode_all(bytes.as_slice(), 3).unwrap(), digest)
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_files_count_with_their_length_and_are_not_read() {
    let test = test().await;
    let (bytes, digest) = holes(40, 60 << 30);
    assert!(bytes.len() < 1500, "{} bytes", bytes.len());
    test.registry.image("many", &bytes, &digest);
    let error = test.pull("many:1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    // One of them is within the limit, and is verified like any other layer.
    let (bytes, digest) = holes(1, 60 << 30);
    test.registry.image("one", &bytes, &digest);
    let image = test.pull("one:1").await.unwrap();
    until_digested(&test.folder.path().join("image"));
    let parts = test.store.verify(None).await.unwrap();
    assert!(parts.iter().all(|part| part.verdict == Verdict::Sound), "{parts:?}");
    test.store.remove(&image.id.to_string()).await.unwrap();
    assert!(test.settled("layers", 0) && test.settled("trash", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_download_does_not_block_deletions() {
    let test = test().await;
    test.registry.image("other", &simple("a").0, &simple("a").1);
    let other = test.pull("other:1").await.unwrap();
    let (bytes, digest) = simple("b");
    let path = test.registry.image("stalled", &bytes, &digest);
    test.registry.answer(path.as_str(), Answer::Stalled(bytes, 10));
    let (store, reference) = (test.store.clone(), test.reference("stalled:1"));
    let stalled = tokio::spawn(async move { store.pull(&reference, None).await });
    until("the layer is not requested", || test.registry.times(&path) > 0);
    test.store.create_layer("c", &other.id, &[]).await.unwrap();
    test.store.remove_layer("c").await.unwrap();
    test.store.remove(&other.id.to_string()).await.unwrap();
    assert!(test.settled("layers", 0) && test.settled("trash", 0) && test.settled("containers", 0));
    assert!(!stalled.is_finished(), "the stalled pull ended");
    stalled.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn immutable_files_of_a_container_are_deleted() {
    let test = test().await;
    test.registry.image("image", &simple("a").0, &simple("a").1);
    let image = test.pull("image:1").await.unwrap();
    let layer = test.store.create_layer("c", &image.id, &[]).await.unwrap();
    let locked = layer.upper.join("locked");
    fs::write(&locked, vec![1; 3 << 20]).unwrap();
    let file = fs::File::open(&locked).unwrap();
    if ioctl_setflags(&file, ioctl_getflags(&file).unwrap_or(IFlags::empty()) | IFlags::IMMUTABLE).is_err() {
        return; // This filesystem does not support it.
    }
    test.store.remove_layer("c").await.unwrap();
    assert!(test.settled("trash", 0), "an immutable file is not deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_of_an_earlier_daemon_counts_until_it_is_deleted() {
    let Test { folder, registry, store } = test().await;
    drop(store);
    let left = folder.path().join("image/trash/left");
    fs::create_dir_all(left.join("deeper")).unwrap();
    fs::write(left.join("deeper/file"), vec![1; 1 << 20]).unwrap();
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(test.settled("trash", 0));
    until("deleted files still count", || test.store.usage().image.inodes == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_with_two_images_after_a_power_failure_belongs_to_the_later_one() {
    let test = test().await;
    test.registry.image("image", &simple("old").0, &simple("old").1);
    let old = test.pull("image:1").await.unwrap();
    test.registry.image("image", &simple("new").0, &simple("new").1);
    let new = test.pull("image:1").await.unwrap();
    let tag = new.repo_tags[0].clone();
    let Test { folder, registry, store } = test;
    drop(store);
    // Simulates a power failure between the two writes. The old record has the later mtime.
    let record = folder.path().join("image/images").join(file_name(&old.id)).join("image.json");
    edit(&record, |record| {
        record["tags"] = serde_json::json!([tag]);
        record["change"] = 0.into();
    });
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert_eq!(test.store.resolve(&tag).unwrap().id, new.id);
    let owners =
        |store: &ImageStore| store.list().iter().filter(|image| image.repo_tags.contains(&tag)).count();
    assert_eq!(owners(&test.store), 1);
    // The old image does not get the tag back when the new one is removed.
    test.store.remove(&new.id.to_string()).await.unwrap();
    let Test { folder, registry, store } = test;
    drop(store);
    let test = Test { store: open(folder.path()).await, folder, registry };
    assert!(owners(&test.store) == 0 && test.store.resolve(&tag).is_none());
    assert_eq!(test.store.list().len(), 1);
}

fn broken(parts: &[Verified]) -> Vec<&Verified> {
    parts.iter().filter(|part| matches!(part.verdict, Verdict::Broken(_))).collect()
}

/// Pulls two images that share a layer, and waits until all digests are recorded.
async fn two_images() -> (Test, Vec<PathBuf>) {
    let test = test().await;
    let shared = Layer::default().folder("srv", 0o711).file("srv/shared", "shared").gzip();
    let top = Layer::default().file("srv/one", "one").gzip();
    test.registry.layers("one", &[shared.clone(), top]);
    test.registry.layers("two", &[shared, simple("two")]);
    let one = test.pull("one:1").await.unwrap();
    test.pull("two:1").await.unwrap();
    until_digested(&test.folder.path().join("image"));
    let layers = test.folder.path().join("image/layers");
    let folders = one.layers.iter().map(|diff_id| layers.join(file_name(diff_id))).collect();
    (test, folders)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_reported_and_repaired() {
    let ways: [fn(&Path, &[PathBuf]); 6] = [
        |_, layers| fs::remove_dir_all(&layers[0]).unwrap(),
        |_, layers| fs::remove_dir_all(layers[0].join("fs")).unwrap(),
        |_, layers| fs::remove_file(layers[0].join("layer.json")).unwrap(),
        |root, _| fs::remove_dir_all(root.join("layers")).unwrap(),
        |root, _| {
            for image in fs::read_dir(root.join("images")).unwrap() {
                fs::remove_file(image.unwrap().path().join("config.json")).unwrap();
            }
        },
        |root, _| {
            for folder in ["layers", "tmp", "trash", "containers", "empty", "below"] {
                fs::remove_dir_all(root.join(folder)).unwrap();
            }
        },
    ];
    for (number, destroy) in ways.into_iter().enumerate() {
        let (test, layers) = two_images().await;
        let Test { folder, registry, store } = test;
        let names: Vec<String> = store.list().iter().flat_map(|image| image.repo_tags.clone()).collect();
        drop(store);
        destroy(&folder.path().join("image"), &layers);
        let test = Test { store: open(folder.path()).await, folder, registry };
        // Damaged images are not listed.
        assert!(test.store.list().is_empty(), "{number}: {:?}", test.store.list());
        let parts = test.store.verify(None).await.unwrap();
        let reported: Vec<_> = broken(&parts).into_iter().flat_map(|part| part.images.clone()).collect();
        assert!(names.iter().all(|name| reported.contains(name)), "{number}: {parts:?}");
        let parts = test.store.repair(None).await.unwrap();
        assert_eq!(broken(&parts), Vec::<&Verified>::new(), "{number}");
        let repaired = parts.iter().filter(|part| matches!(part.verdict, Verdict::Repaired(_))).count();
        assert!(repaired >= 2, "{number}: {parts:?}");
        let again: Vec<String> = test.store.list().iter().flat_map(|image| image.repo_tags.clone()).collect();
        assert_eq!(again, names, "{number}");
        until_digested(&test.folder.path().join("image"));
        let parts = test.store.verify(None).await.unwrap();
        assert!(parts.iter().all(|part| part.verdict == Verdict::Sound), "{number}: {parts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_pulled_again_unless_a_container_uses_them() {
    let (test, layers) = two_images().await;
    fs::write(layers[0].join("fs/srv/shared"), "changed").unwrap();
    let image = test.store.list()[0].clone();
    test.store.create_layer("user", &image.id, &[]).await.unwrap();
    let parts = test.store.repair(None).await.unwrap();
    let left = broken(&parts);
    assert!(
        left.len() == 1 && matches!(&left[0].verdict, Verdict::Broken(why) if why.contains("container user")),
        "{parts:?}"
    );
    test.store.remove_layer("user").await.unwrap();
    let parts = test.store.repair(None).await.unwrap();
    assert!(broken(&parts).is_empty(), "{parts:?}");
    assert_eq!(fs::read_to_string(layers[0].join("fs/srv/shared")).unwrap(), "shared");
    // Both images use the repaired layer: after the removal of one, it stays for the other.
    let ids: Vec<_> = test.store.list().iter().map(|image| image.id.clone()).collect();
    test.store.remove(&ids[0].to_string()).await.unwrap();
    assert!(layers[0].join("fs/srv/shared").exists());
    test.store.remove(&ids[1].to_string()).await.unwrap();
    assert!(test.settled("layers", 0) && test.settled("trash", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_no_registry_has_stays_broken_and_can_be_removed() {
    let (test, layers) = two_images().await;
    let Test { folder, registry, store } = test;
    let names: Vec<String> = store.list().iter().flat_map(|image| image.repo_tags.clone()).collect();
    drop(store);
    fs::remove_dir_all(&layers[0]).unwrap();
    let requested: Vec<String> = registry.asked().iter().map(|request| request.path.clone()).collect();
    for path in requested {
        registry.answer(path, Answer::Whole(404, "text/plain", Vec::new()));
    }
    for name in ["one", "two"] {
        let answer = registry.answer_of(&format!("/v2/{name}/manifests/1"));
        assert_eq!(answer.as_deref(), Some(&b""[..]), "{name}");
    }
    let test = Test { store: open(folder.path()).await, folder, registry };
    let parts = test.store.repair(None).await.unwrap();
    assert!(!broken(&parts).is_empty(), "{parts:?}");
    for name in &names {
        assert!(test.store.remove(name).await.unwrap(), "{name}");
    }
    assert!(test.store.verify(None).await.unwrap().is_empty());
    assert!(test.settled("layers", 0) && test.settled("images", 0) && test.settled("trash", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_can_be_copied_to_another_machine() {
    let (test, _) = two_images().await;
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-a").arg(test.folder.path().join("image")).arg(copy.path()).status();
    assert!(copied.unwrap().success());
    for layer in fs::read_dir(copy.path().join("image/layers")).unwrap() {
        edit(&layer.unwrap().path().join("layer.json"), |record| record["boot_id"] = "another".into());
    }
    let store = open(copy.path()).await;
    assert_eq!(store.list().len(), 2);
    let parts = store.verify(None).await.unwrap();
    assert!(parts.iter().all(|part| part.verdict == Verdict::Sound), "{parts:?}");
    drop(store);
    // A copy without owners, times and attributes is damaged, and this is detected.
    let bare = tempfile::tempdir().unwrap();
    let copied = Command::new("cp").arg("-r").arg(test.folder.path().join("image")).arg(bare.path()).status();
    assert!(copied.unwrap().success());
    let store = open(bare.path()).await;
    let parts = store.repair(None).await.unwrap();
    assert!(broken(&parts).is_empty(), "{parts:?}");
    assert!(parts.iter().any(|part| matches!(part.verdict, Verdict::Repaired(_))), "{parts:?}");
}
