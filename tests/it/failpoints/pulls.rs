//! The daemon dies at a step of a pull.

use std::time::{Duration, Instant};

use berth::server::connect;
use berth_image::{Algorithm, Digest, PullStep};
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::admin::{Verdict, VerifyImagesRequest};
use berth_proto::v1::*;

use super::scene::{Scene, begin};
use crate::support::registry::Registry;
use crate::support::{PATIENCE, image, sleeper};

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_dies_in_a_pull() {
    let mut scene = Scene::new("").await;
    let registry = Registry::start(scene.berth.host_process());
    for step in PullStep::ALL.iter().copied() {
        let name = step.id().to_lowercase();
        // Each image has a separate layer below the one with the programs.
        let own = file(&name);
        let layers = [own, image::layer()].map(|layer| {
            let diff_id = Digest::of(Algorithm::Sha256, &layer);
            (layer, diff_id)
        });
        registry.layers(&name, &layers);
        let spec = ImageSpec { image: format!("{}/{name}:1", registry.address), ..ImageSpec::default() };
        let request = PullImageRequest { image: Some(spec.clone()), ..PullImageRequest::default() };
        scene.arm(step);
        let mut client = scene.berth.images.clone();
        let again = request.clone();
        let call = begin(async move { client.pull_image(request).await });
        scene.daemon_dies(step, call).await;
        let status = ImageStatusRequest { image: Some(spec.clone()), ..ImageStatusRequest::default() };
        let found = scene.berth.images.image_status(status).await.unwrap().into_inner().image;
        assert_eq!(found.is_some(), step == PullStep::Recorded, "{step:?}");
        let pulled = scene.berth.images.pull_image(again).await.unwrap().into_inner().image_ref;
        let config = scene.berth.pod_config(&name);
        let pod = scene.berth.run_pod(config).await;
        let mut config = sleeper("c");
        config.image = Some(ImageSpec { image: pulled, ..ImageSpec::default() });
        let container = scene.berth.run(&pod, config).await;
        assert_eq!(scene.berth.sh(&container, "cat /own").await, name);
        assert_verified(&scene, step).await;
        scene.end_step(step).await;
    }
    scene.end().await;
}

/// A layer with one file.
fn file(content: &str) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    layer.append_data(&mut header, "own", content.as_bytes()).unwrap();
    layer.into_inner().unwrap()
}

/// Every layer has the right digest, and nothing half-made is left.
async fn assert_verified(scene: &Scene, step: PullStep) {
    let channel = connect(&scene.berth.path("run/berth.sock")).await.unwrap();
    let verified = AdminClient::new(channel).verify_images(VerifyImagesRequest::default()).await;
    let parts = verified.unwrap().into_inner().parts;
    let broken: Vec<_> = parts.iter().filter(|part| part.verdict() == Verdict::Broken).collect();
    assert!(broken.is_empty() && !parts.is_empty(), "{step:?}: {broken:?}");
    let until = Instant::now() + PATIENCE;
    for folder in ["root/image/tmp", "root/image/trash"] {
        while std::fs::read_dir(scene.berth.path(folder)).is_ok_and(|entries| entries.count() > 0) {
            assert!(Instant::now() < until, "{step:?}: {folder} is not empty");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
