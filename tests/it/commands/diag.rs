//! `berth diag`.

use super::*;

/// Installs a network plugin that is a script.
fn install(berth: &Berth, script: &str) {
    let bin = berth.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let plugin = bin.join("scripted");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, PermissionsExt::from_mode(0o755)).unwrap();
    let conflist = r#"{"cniVersion": "1.0.0", "name": "scripted", "plugins": [{"type": "scripted"}]}"#;
    fs::write(berth.path("net.d/10-scripted.conflist"), conflist).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn diag_of_a_pod_that_waits_for_a_plugin_shows_the_plugin_and_its_errors() {
    let mut berth = Berth::start_with("").await;
    let go = berth.path("go");
    let script = format!(
        "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho waiting for the datastore >&2\n\
         until [ -e {} ]; do sleep 0.1; done; echo it never came >&2; exit 1\n",
        go.display()
    );
    install(&berth, &script);
    let events = Running::start(command(&berth, "events", &["--pod", "stuck"]));
    let mut client = berth.runtime.clone();
    let request = RunPodSandboxRequest { config: Some(berth.pod_config("stuck")), ..Default::default() };
    let running = tokio::spawn(async move { client.run_pod_sandbox(request).await.map(drop) });
    until("the plugin is not shown", || {
        let output = run(&berth, "diag", &["stuck"]);
        String::from_utf8_lossy(&output.stdout).contains("waiting for the datastore")
    })
    .await;
    // The step is reported as a cause after a second.
    until("the step is not shown", || {
        output(&berth, "diag", &["default/stuck"]).contains("RunPodSandbox is at step network for")
    })
    .await;
    let page = json(&berth, "diag", &["stuck"]);
    assert_eq!((&page["kind"], &page["state"]), (&"pod being created".into(), &"creating".into()));
    assert_eq!(page["operations"][0]["step"], "network");
    assert_eq!(
        (&page["plugins"][0]["plugin"], &page["plugins"][0]["command"]),
        (&"scripted".into(), &"ADD".into())
    );
    assert_eq!(page["plugins"][0]["stderr"], "waiting for the datastore");
    let pid = &page["plugins"][0]["pid"];
    let process =
        page["processes"].as_array().unwrap().iter().find(|process| process["pid"] == *pid).unwrap();
    assert_eq!(process["of"], "plugin scripted");
    // The shell of the script waits almost always.
    until("the kernel function in which the plugin waits is not shown", || {
        let page = json(&berth, "diag", &["stuck"]);
        let processes = page["processes"].as_array().unwrap();
        processes
            .iter()
            .any(|one| one["pid"] == *pid && one["waitsIn"].as_str().is_some_and(|it| !it.is_empty()))
    })
    .await;
    let id = page["id"].as_str().unwrap().to_owned();
    assert_eq!(json(&berth, "diag", &[&id[..20]])["name"], "default/stuck");
    fs::write(&go, "").unwrap();
    assert!(running.await.unwrap().is_err());
    let events = events.up_to(|line| line.contains("pod-failed"));
    let network = events.iter().find(|line| line.contains("network-failed")).unwrap();
    assert!(network.contains("it never came"), "{network}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one daemon with its pods serves all checks")]
async fn diag_shows_processes_limits_network_mounts_logs_and_exits() {
    let conflist = serde_json::json!({
        "cniVersion": "1.0.0", "name": "pods", "plugins": [
            { "type": "bridge", "bridge": "testbr0", "isGateway": true, "ipMasq": true,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.77.0.0/24" }]] } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    let mut berth = Berth::start().await;
    fs::write(berth.path("net.d/10-pods.conflist"), conflist.to_string()).unwrap();
    let mut config = berth.pod_config("web");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 8080, ..PortMapping::default() }];
    let pod = berth.run_pod(config).await;
    let ip = berth.pod_status(&pod).await.network.unwrap().ip;
    let volume = berth.path("volume");
    fs::create_dir(&volume).unwrap();
    let mut main = shell("main", "echo hello; exec sleep 1000");
    main.mounts = vec![Mount {
        host_path: volume.display().to_string(),
        container_path: "/data".to_owned(),
        readonly: true,
        ..Mount::default()
    }];
    main.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
    let id = berth.run(&pod, main).await;
    let failed = berth.run(&pod, shell("failed", "echo broken; exit 7")).await;
    berth.wait_exited(&failed).await;
    until("the log has no line", || output(&berth, "logs", &["main"]).contains("hello")).await;

    let text = output(&berth, "diag", &["web/main"]);
    let inside: Vec<String> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "container default/web/main of localhost/busybox:test, attempt 0".to_owned(),
        format!("id {id}"),
        format!("pod {pod}"),
        format!("addresses {ip}"),
        "host port tcp *:8080 -> 80".to_owned(),
        format!("nftables ports4: tcp 8080 -> {ip}:80"),
        format!("nftables masquerade4: {ip}"),
        format!("volume {} -> /data (ro)", volume.display()),
    ] {
        assert!(inside.iter().any(|line| line == &expected), "{expected}: {text}");
    }
    for expected in
        ["sleep 1000", "of 64.0 MiB", "port of testbr0, forwards", "testbr0 bridge up", " hello", "keeper"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("not available"), "{text}");
    assert!(!text.contains("BLOCKED"), "{text}");
    let page = json(&berth, "diag", &[&id]);
    assert_eq!((&page["state"], page["since"].as_str().unwrap().len()), (&"running".into(), 24));

    let page = json(&berth, "diag", &["failed"]);
    assert_eq!((&page["exits"][0]["code"], &page["exits"][0]["reason"]), (&7.into(), &"Error".into()));
    assert!(page["logs"][0]["lines"][0].as_str().unwrap().ends_with(" broken"), "{page}");
    assert_eq!(page["limits"]["notAvailable"], "the container has exited");

    // A paused container is reported as the cause, on the page of its pod, too.
    let info = berth.info(&id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let (file, frozen, thawed) = if is_v2() {
        (format!("/sys/fs/cgroup{cgroup}/cgroup.freeze"), "1", "0")
    } else {
        (format!("/sys/fs/cgroup/freezer{cgroup}/freezer.state"), "FROZEN", "THAWED")
    };
    fs::write(&file, frozen).unwrap();
    let (of_container, of_pod) = (output(&berth, "diag", &["main"]), output(&berth, "diag", &["web"]));
    fs::write(&file, thawed).unwrap();
    for page in [of_container, of_pod] {
        assert!(page.contains("the cgroup of main is frozen"), "{page}");
    }
    assert!(error(&berth, "diag", &["nothing"]).contains("pod or container nothing not found"));

    // A log on a pipe, which nobody writes to, hangs the reader.
    let log = berth.status(&failed).await.log_path;
    fs::remove_file(&log).unwrap();
    assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
    let page = json(&berth, "diag", &["failed"]);
    let reason = page["logs"][0]["lines"]["notAvailable"].as_str().unwrap();
    assert!(reason.contains("in time"), "{page}");
    fs::remove_file(&log).unwrap();

    berth.stop_pod(&pod).await;
    let page = json(&berth, "diag", &["web"]);
    assert_eq!((&page["state"], page["containers"].as_array().unwrap().len()), (&"notready".into(), 2));
    assert!(!page["since"].as_str().unwrap().is_empty(), "{page}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
