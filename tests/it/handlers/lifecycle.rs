//! The life of a container of an OCI runtime.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use berth_proto::v1::*;
use tonic::Code;

use super::{RUNTIMES, run_pod, start, state};
use crate::support::{container, pod_with, shell, sleeper, with_security};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_to_its_end_with_its_log() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let (exit, log) = berth.run_to_end(&pod, shell("ends", "echo out; echo err >&2; exit 3")).await;
        assert_eq!((exit, log.as_str()), (3, "out\nerr\n"), "{handler}");
        let (exit, _) = berth.run_to_end(&pod, shell("at-once", "exit 0")).await;
        assert_eq!(exit, 0, "{handler}");
        let (exit, _) = berth.run_to_end(&pod, shell("killed", "kill -9 $$")).await;
        assert_eq!(exit, 0, "{handler}: process 1 ignores signals from inside its namespace");
        let (_, log) = berth.run_to_end(&pod, container("image", &[])).await;
        assert_eq!(log, "from the image\n", "{handler}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_namespaces_and_files_of_its_pod() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let host = berth.path(&format!("volume-{handler}"));
        fs::create_dir(&host).unwrap();
        fs::write(host.join("file"), "from the host\n").unwrap();
        let script = "hostname; cat /etc/hostname; cat /data/file; touch /data/x 2>&1; ls -d /data/sub; \
                      stat -f -c %T /dev/shm; ls / | grep -c bundle; cat /proc/1/comm; ls /new";
        let mut config = shell("sees", script);
        config.mounts = vec![
            Mount {
                container_path: "/data".to_owned(),
                host_path: host.display().to_string(),
                readonly: true,
                ..Mount::default()
            },
            Mount {
                container_path: "/new".to_owned(),
                host_path: berth.path(&format!("created-{handler}")).display().to_string(),
                ..Mount::default()
            },
        ];
        fs::create_dir(host.join("sub")).unwrap();
        let (_, log) = berth.run_to_end(&pod, config).await;
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(lines[..3], [handler, handler, "from the host"], "{log}");
        assert!(lines[3].contains("Read-only file system"), "{log}");
        assert_eq!(lines[4..], ["/data/sub", "tmpfs", "0", "sh"], "{log}");
        let net = berth.run(&pod, sleeper("net")).await;
        let own = berth.sh(&net, "readlink /proc/self/ns/net").await;
        let of_pause = {
            let request = PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
            let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
            let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
            fs::read_link(format!("/proc/{}/ns/net", info["pid"])).unwrap()
        };
        assert_eq!(own.trim(), of_pause.to_str().unwrap());
        // The keeper is the parent of the container.
        let pid = berth.info(&net).await["pid"].as_i64().unwrap();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
        let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap();
        assert_eq!(name.trim(), "berth-keeper");
        assert!(state(&berth, handler, &net).exists());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/bundle/"), "nothing is mounted on the host: {mounts}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_requested_credentials() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let named =
            with_security(shell("named", "id; grep -E 'CapEff|NoNewPrivs' /proc/self/status"), |context| {
                context.run_as_username = "web".to_owned();
                context.no_new_privs = true;
            });
        let (_, log) = berth.run_to_end(&pod, named).await;
        assert!(log.contains("uid=1000(web) gid=1000(web)"), "{log}");
        assert!(log.contains("CapEff:\t0000000000000000") && log.contains("NoNewPrivs:\t1"), "{log}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_the_signal_and_then_kills() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let polite =
            berth.run(&pod, shell("polite", "trap 'exit 7' TERM; while :; do sleep 0.1; done")).await;
        berth.wait_for_handler(&polite, rustix::process::Signal::TERM).await;
        berth.stop_container(&polite, 20).await;
        assert_eq!(berth.status(&polite).await.exit_code, 7, "{handler}");
        let stubborn = berth.run(&pod, shell("stubborn", "trap '' TERM; while :; do sleep 0.1; done")).await;
        berth.stop_container(&stubborn, 1).await;
        assert_eq!(berth.status(&stubborn).await.exit_code, 137, "{handler}");
        let running = berth.run(&pod, sleeper("running")).await;
        berth.remove_container(&running).await;
        assert!(!state(&berth, handler, &running).exists());
        let created = berth.try_create(&pod, sleeper("created")).await.unwrap();
        berth.remove_container(&created).await;
        assert!(!state(&berth, handler, &created).exists());
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_runtime_reaches_the_client() {
    let mut berth = start().await;
    for (handler, _) in RUNTIMES {
        let pod = run_pod(&mut berth, handler, handler).await;
        let error = berth.try_create(&pod, container("missing", &["/no/such/program"])).await.unwrap_err();
        assert!(error.message().contains(&format!("{handler} create failed: ")), "{error}");
        assert!(
            error.message().contains("no such file or directory") || error.message().contains("not found"),
            "{error}"
        );
        // Its name is free again, and nothing is left.
        let again = berth.run(&pod, sleeper("missing")).await;
        assert_eq!(fs::read_dir(berth.path("run/handlers").join(handler)).unwrap().count(), 1);
        let error = berth.exec(&again, &["/no/such/program"], 10).await.unwrap_err();
        assert!(error.message().contains("failed"), "{error}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_pod_with_a_user_namespace_is_unprivileged_on_the_host() {
    let mut berth = start().await;
    // Root of the namespace enters the bundle by its path.
    fs::set_permissions(berth.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for (handler, _) in RUNTIMES {
        let ids = || vec![IdMapping { host_id: 300_000, container_id: 0, length: 65_536 }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: ids(), gids: ids() };
        let mut config = pod_with(&berth, handler, |context| {
            context.namespace_options =
                Some(NamespaceOption { userns_options: Some(users.clone()), ..NamespaceOption::default() });
        });
        config.hostname = handler.to_owned();
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let pod = berth.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
        let mut config = with_security(sleeper("c"), |context| {
            context.namespace_options.as_mut().unwrap().userns_options = Some(users);
        });
        let volume = berth.path(&format!("volume-{handler}"));
        fs::create_dir(&volume).unwrap();
        config.mounts = vec![Mount {
            container_path: "/data".to_owned(),
            host_path: volume.display().to_string(),
            uid_mappings: ids(),
            gid_mappings: ids(),
            ..Mount::default()
        }];
        let id = berth.run(&pod, config).await;
        assert_eq!(berth.sh(&id, "id -u; touch /root/new && stat -c %u /root /root/new").await, "0\n0\n0");
        assert_eq!(berth.sh(&id, "touch /data/new; stat -c %u /data/new").await, "0");
        assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0, "{handler}: the volume is mapped");
        let pid = berth.info(&id).await["pid"].as_i64().unwrap();
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 300_000, "{handler}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_container_nor_its_pod_is_checkpointed() {
    let mut berth = start().await;
    let pod = run_pod(&mut berth, "pod", "runc").await;
    let id = berth.run(&pod, sleeper("runs")).await;
    let location = berth.path("checkpoint.tar").display().to_string();
    let request = CheckpointContainerRequest { container_id: id.clone(), location, timeout: 10 };
    let one = berth.runtime.checkpoint_container(request).await.unwrap_err();
    let folder = berth.path("checkpoint");
    fs::create_dir(&folder).unwrap();
    let request = CheckpointPodRequest {
        pod_sandbox_id: pod,
        output_path: folder.display().to_string(),
        container_ids: vec![id],
        ..Default::default()
    };
    let all = berth.runtime.checkpoint_pod(request).await.unwrap_err();
    for error in [one, all] {
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("only berth's own runtime checkpoints"), "{error}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
