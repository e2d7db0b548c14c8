//! Tests of slow registries, and that others do not wait for them. They run as root, as the store does.
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

use std::sync::Arc;
use std::time::Duration;

use berth_image::{Algorithm, Digest, Error, ErrorKind, Image, ImageStore, Options, Timeouts};
use registry::{Answer, Registry};

/// The time limit on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The time between bytes, such that a transfer does not end during a test.
const FOREVER: Duration = Duration::from_millis(50);

struct Test {
    _folder: tempfile::TempDir,
    registry: Registry,
    store: ImageStore,
}

async fn test(timeouts: Timeouts) -> Test {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { parallel_downloads: 2, timeouts, ..Options::new(folder.path().join("image")) };
    let store = ImageStore::open(options).await.unwrap();
    Test { registry: Registry::start(std::process::id()), store, _folder: folder }
}

impl Test {
    async fn pull(&self, name: &str) -> Result<Arc<Image>, Error> {
        self.store.pull(&format!("{}/{name}:1", self.registry.address).parse().unwrap(), None).await
    }

    /// Pulls within the time limit.
    async fn soon(&self, name: &str) -> Result<Arc<Image>, Error> {
        let pulled = tokio::time::timeout(TIMEOUT, self.pull(name)).await;
        pulled.unwrap_or_else(|_| panic!("the pull of {name} did not finish"))
    }

    /// Adds an image to the registry whose layers, except for the first `fast` ones, are sent byte by byte.
    fn slow_image(&self, name: &str, layers: &[(Vec<u8>, Digest)], fast: usize) {
        for (path, (bytes, _)) in self.registry.layers(name, layers).into_iter().zip(layers).skip(fast) {
            self.registry.answer(path, Answer::Dripping(bytes.clone(), 1, FOREVER));
        }
    }

    /// Waits until a path was requested.
    async fn requested(&self, path: &str) {
        while self.registry.times(path) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn layer(text: &str) -> (Vec<u8>, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", text.as_bytes()).unwrap();
    let bytes = tar.into_inner().unwrap();
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    (bytes, digest)
}

fn layers(name: &str, count: usize) -> Vec<(Vec<u8>, Digest)> {
    (0..count).map(|number| layer(&format!("{name} {number}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_waits_for_a_slow_one() {
    let test = test(Timeouts::default()).await;
    for name in ["slow1", "slow2", "slow3"] {
        test.slow_image(name, &layers(name, 6), 0);
    }
    test.registry.layers("fast", &layers("fast", 6));
    let slow = async { tokio::join!(test.pull("slow1"), test.pull("slow2"), test.pull("slow3")) };
    let fast = async {
        for name in ["slow1", "slow2", "slow3"] {
            test.requested(&format!("/v2/{name}/manifests/1")).await;
        }
        // The slow pulls have time to take all slots.
        tokio::time::sleep(Duration::from_millis(500)).await;
        test.soon("fast").await
    };
    tokio::select! {
        slow = slow => panic!("{slow:?}"),
        fast = fast => assert_eq!(fast.unwrap().layers.len(), 6),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_waits_for_a_slow_one_with_the_same_layers() {
    let test = test(Timeouts { slow: Duration::from_millis(200), ..Timeouts::default() }).await;
    let shared = layers("shared", 3);
    test.slow_image("slow", &shared, 0);
    test.registry.layers("fast", &shared);
    let fast = async {
        test.requested("/v2/slow/manifests/1").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        test.soon("fast").await
    };
    tokio::select! {
        slow = test.pull("slow") => panic!("{slow:?}"),
        fast = fast => assert_eq!(fast.unwrap().layers.len(), 3),
    }
    assert_eq!(test.store.list().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_download_is_finished() {
    let test = test(Timeouts { slow: Duration::from_millis(100), ..Timeouts::default() }).await;
    let layers = layers("slow", 3);
    for (path, (bytes, _)) in test.registry.layers("slow", &layers).into_iter().zip(&layers) {
        // Some 2000 bytes in about two seconds.
        test.registry.answer(path, Answer::Dripping(bytes.clone(), 20, Duration::from_millis(20)));
    }
    assert_eq!(test.soon("slow").await.unwrap().layers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_transfers_are_reported_with_figures() {
    let timeouts = Timeouts {
        stall: Duration::from_millis(100),
        backoff: Duration::from_millis(1),
        document: Duration::from_millis(300),
        ..Timeouts::default()
    };
    let test = test(timeouts).await;
    let (bytes, digest) = layer("text");
    let path = test.registry.image("layer", &bytes, &digest);
    test.registry.answer(path, Answer::Stalled(bytes.clone(), 1000));
    let error = test.soon("layer").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let text = error.to_string();
    assert!(
        text.contains("stalled for 100ms: received 1000 of 2048 bytes") && text.contains("bytes/s"),
        "{text}"
    );

    test.registry.answer("/v2/manifest/manifests/1", Answer::Stalled(vec![b'{'; 500], 7));
    let text = test.soon("manifest").await.unwrap_err().to_string();
    assert!(text.contains("stalled for 100ms, after 7 bytes in"), "{text}");
    let dripping = Answer::Dripping(vec![b' '; 5000], 1, Duration::from_millis(20));
    test.registry.answer("/v2/dripping/manifests/1", dripping);
    let text = test.soon("dripping").await.unwrap_err().to_string();
    assert!(text.contains("not complete within 300ms, cancelled after"), "{text}");
}
