//! `berth load`: an archive into the store of the daemon that runs. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::process::{Command, Output};

use berth_proto::v1::ListImagesRequest;
use support::{Berth, IMAGE, image};

fn load(berth: &Berth, file: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["load", "--config"])
        .arg(berth.path("config.toml"))
        .arg(file)
        .current_dir(berth.folder.path())
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_is_loaded_by_name_and_what_is_none_is_refused() {
    let mut berth = Berth::start_with("").await;
    image::write_archive(&berth.path("image.tar"), IMAGE);
    // Relative to where the user is, not to where the daemon is.
    let output = load(&berth, "image.tar");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(IMAGE), "{output:?}");
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, [IMAGE]);

    std::fs::write(berth.path("noise"), "no archive").unwrap();
    for (file, words) in [("noise", "noise"), ("none.tar", "No such file"), ("/", "index.json")] {
        let output = load(&berth, file);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{output:?}");
    }
    berth.kill();
    let output = load(&berth, "image.tar");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("berth.sock"), "{said}");
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
}
