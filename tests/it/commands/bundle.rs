//! `berth bundle`.

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one daemon with its pods serves all checks")]
async fn a_bundle_has_no_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let auth = folder.path().join("auth.json");
    // `user:registry-password-1` in base64.
    fs::write(&auth, r#"{"auths": {"registry.test": {"auth": "dXNlcjpyZWdpc3RyeS1wYXNzd29yZC0x"}}}"#)
        .unwrap();
    let mut berth = Berth::start_with(&format!("auth_file = [\"{}\"]\n", auth.display())).await;
    berth.load_image().await;
    let mut config = berth.pod_config("web");
    config.annotations.insert("example.com/config".to_owned(), "annotation-secret-2".to_owned());
    let pod = berth.run_pod(config).await;
    let volume = berth.path("secret-volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("token"), "volume-secret-3").unwrap();
    let mut main = container("main", &["sh", "-c", "cat /data/token; exec sleep 1000", "argument-secret-4"]);
    let variable = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.into() };
    main.envs = vec![variable("DB_PASSWORD", "variable-secret-5"), variable("MODE", "variable-value-6")];
    main.annotations.insert("example.com/more".to_owned(), "annotation-secret-7".to_owned());
    main.mounts = vec![Mount {
        host_path: volume.display().to_string(),
        container_path: "/data".to_owned(),
        ..Mount::default()
    }];
    let id = berth.run(&pod, main).await;
    let failing = berth.run(&pod, sleeper("other")).await;
    // The error of this pull contains the name of the image.
    let credentials = AuthConfig {
        username: "robot".to_owned(),
        password: "pull-secret-8".to_owned(),
        ..AuthConfig::default()
    };
    let image = ImageSpec { image: "127.0.0.1:1/none:1".to_owned(), ..ImageSpec::default() };
    let request = PullImageRequest { image: Some(image), auth: Some(credentials), ..Default::default() };
    berth.images.pull_image(request).await.unwrap_err();

    let file = folder.path().join("bundle.tar.gz");
    let said = output(&berth, "bundle", &[file.to_str().unwrap()]);
    assert!(said.starts_with(&file.display().to_string()), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&file).unwrap()));
    let mut files = std::collections::BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        files.insert(path.split_once('/').unwrap().1.to_owned(), text);
    }
    let secrets = [
        "dXNlcjpyZWdpc3RyeS1wYXNzd29yZC0x",
        "registry-password-1",
        "annotation-secret-2",
        "volume-secret-3",
        "argument-secret-4",
        "variable-secret-5",
        "variable-value-6",
        "annotation-secret-7",
        "pull-secret-8",
    ];
    for (name, text) in &files {
        for secret in secrets {
            assert!(!text.contains(secret), "{secret} in {name}: {text}");
        }
    }
    let of = |name: String| files.get(&name).unwrap_or_else(|| panic!("no {name} in {:?}", files.keys()));
    for name in [
        "version.txt",
        "check.json",
        "config.json",
        "status.json",
        "operations.txt",
        "events.txt",
        "host.txt",
        "journal.txt",
    ] {
        assert!(!of(name.to_owned()).is_empty(), "{name}");
    }
    let events = of("events.txt".to_owned());
    for kind in ["pod-started", "container-started", "pull-failed"] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
    assert!(of(format!("containers/{id}.json")).contains("DB_PASSWORD"), "names of variables stay");
    assert!(of(format!("pods/{pod}.json")).contains("example.com/config"));
    assert!(of(format!("diag/{id}.txt")).contains("container default/web/main"));
    assert!(of(format!("diag/{failing}.txt")).contains("logs of containers are left out"));
    assert!(
        of("config.json".to_owned()).contains("auth.json"),
        "the path of the credentials is not a secret"
    );
    assert!(files.keys().any(|name| name.starts_with("images/sha256-")), "{:?}", files.keys());
    assert!(error(&berth, "bundle", &[file.to_str().unwrap()]).contains("File exists"));

    // Without a daemon, the archive has the facts of the host.
    berth.kill();
    let file = folder.path().join("alone.tar.gz");
    output(&berth, "bundle", &[file.to_str().unwrap()]);
    berth.restart().await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
