//! `berth load`: it loads an archive into the image store of the running daemon. Runs as root.

use std::process::{Command, Output};

use crate::support::{Berth, IMAGE, image};
use berth_proto::v1::ListImagesRequest;

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
async fn load_accepts_a_relative_path_and_refuses_other_files() {
    let mut berth = Berth::start_with("").await;
    image::write_archive(&berth.path("image.tar"), IMAGE);
    // The path is relative to the user's working folder, not to the daemon's.
    let output = load(&berth, "image.tar");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(IMAGE), "{output:?}");
    let listed = berth.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner().images;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, [IMAGE]);

    std::fs::write(berth.path("noise"), "no archive").unwrap();
    for (file, words) in [("noise", "noise"), ("none.tar", "No such file"), ("/", "index.json")] {
        let output = load(&berth, file);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(words), "{output:?}");
    }
    berth.kill();
    let output = load(&berth, "image.tar");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && stderr.contains("berth.sock"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "the error must be one line: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_saved_on_one_node_is_imported_on_another() {
    let first = Berth::start().await;
    let command = |berth: &Berth, arguments: &[&str]| {
        let config = berth.path("config.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.arg("image").args(arguments).arg("--config").arg(config).output().unwrap()
    };
    let file = first.path("saved.tar");
    let saved = command(&first, &["save", IMAGE, "-o", file.to_str().unwrap()]);
    assert!(saved.status.success(), "{saved:?}");
    let piped = command(&first, &["save", IMAGE]);
    assert!(
        piped.stdout == std::fs::read(&file).unwrap(),
        "saving the same image twice must give the same archive"
    );
    let none = command(&first, &["save", "none", "-o", first.path("none.tar").to_str().unwrap()]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("none"), "{none:?}");
    assert!(!first.path("none.tar").exists() && !first.path("none.tar.part").exists());

    let mut second = Berth::start_with("").await;
    std::fs::copy(&file, second.path("root/import/.coming")).unwrap();
    std::fs::rename(second.path("root/import/.coming"), second.path("root/import/app.tar")).unwrap();
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let image = loop {
        let listed = second.images.list_images(ListImagesRequest::default()).await.unwrap().into_inner();
        if let Some(image) = listed.images.into_iter().find(|image| image.pinned) {
            break image;
        }
        assert!(std::time::Instant::now() < until, "the image in root/import is not imported");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(image.repo_tags, [IMAGE]);
    let pod = second.run_pod(second.pod_config("pod")).await;
    assert_eq!(second.script(&pod, "it-runs", "echo ran").await, (0, "ran\n".to_owned()));
    assert_eq!(second.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn image_subcommands_list_pull_verify_prune_and_remove() {
    let mut berth = Berth::start().await;
    let config = berth.path("config.toml");
    let image = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_berth"))
            .arg("image")
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    };
    let registry = crate::support::registry::Registry::start(berth.host_process());
    let (tar, reference) = (tar::Builder::new(Vec::new()).into_inner().unwrap(), &registry.address);
    let digest = berth_image::Digest::of(berth_image::Algorithm::Sha256, &tar);
    registry.image("empty", &tar, &digest);
    let name = format!("{reference}/empty:1");
    let (pulled, text) = image(&["pull", &name]);
    assert!(pulled && text.starts_with("sha256:"), "{text}");
    let (explained, text) = image(&["explain", &name]);
    let asked = format!("HEAD http://{reference}/v2/empty/manifests/1: 200 OK");
    assert!(explained && text.contains(&asked) && text.contains("policy: none"), "{text}");
    let (explained, text) = image(&["explain", "NO NAME"]);
    assert!(!explained && text.contains("NO NAME"), "{text}");
    let (_, text) = image(&["ls"]);
    assert!(text.lines().count() == 3 && text.contains(IMAGE) && text.contains(&name), "{text}");
    let (sound, text) = image(&["verify", &name]);
    assert!(sound && !text.contains("broken"), "{text}");
    let (sound, text) = image(&["verify", "no-such-image"]);
    assert!(!sound && text.contains("no-such-image"), "{text}");
    let (found, text) = image(&["rm", "no-such-image"]);
    assert!(!found && text.contains("image no-such-image not found"), "{text}");
    let (failed, text) = image(&["pull", &format!("{reference}/none:1")]);
    assert!(!failed && text.contains("not found"), "{text}");

    let pod = berth.run_pod(berth.pod_config("pod")).await;
    berth.run(&pod, crate::support::sleeper("uses-it")).await;
    let (_, pruned) = image(&["prune"]);
    assert!(pruned.contains(&name) && !pruned.contains(IMAGE) && pruned.contains("freed"), "{pruned}");
    assert!(image(&["ls"]).1.contains(IMAGE));
    assert_eq!(image(&["rm", IMAGE]).1, format!("{IMAGE}\n"));
    assert_eq!(image(&["ls"]).1.lines().count(), 1);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
