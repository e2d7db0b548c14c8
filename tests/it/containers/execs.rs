//! Commands that run in containers.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_returns_exit_code_and_output() {
    let (mut berth, pod) = berth_and_pod().await;
    let id = berth.run(&pod, sleeper("c")).await;
    let answer = berth.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"], 120).await.unwrap();
    assert_eq!((answer.exit_code, &answer.stdout[..], &answer.stderr[..]), (5, &b"out\n"[..], &b"err\n"[..]));
    let inside = berth.sh(&id, "id -u; pwd; echo $FROM_IMAGE; cat /proc/1/comm; hostname").await;
    assert_eq!(inside, "0\n/srv\nyes\nsh\npod");
    assert!(berth.exec(&id, &["/nope"], 0).await.unwrap_err().message().contains("/nope"));

    let error = berth.exec(&id, &["sh", "-c", "sleep 4711 & sleep 4712"], 1).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let left = berth.sh(&id, "ps -o args | grep -c '[s]leep 471'").await;
    assert_eq!(left, "0", "a timeout kills everything that the command had started");

    let answer = berth.exec(&id, &["sh", "-c", "sleep 4713 & echo started"], 60).await.unwrap();
    assert_eq!(
        &answer.stdout[..],
        b"started\n",
        "exec does not wait for a background process that holds the pipe"
    );
    let answer = berth.exec(&id, &["sh", "-c", "sleep 4714 & exit 3"], 1).await.unwrap();
    assert_eq!(answer.exit_code, 3, "the command has exited in time, although it left a process behind");
    let answer = berth.exec(&id, &["sh", "-c", "head -c 20000000 /dev/zero"], 30).await.unwrap();
    assert_eq!(answer.stdout.len(), 16 << 20, "output is limited to 16 MiB");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_has_the_credentials_limits_and_namespaces_of_its_container() {
    let (mut berth, pod) = berth_and_pod().await;
    let inspect = "grep -E '^(Uid|Gid|Groups|Umask|Cap|NoNewPrivs|Seccomp)' /proc/self/status; cat /proc/self/limits \
                /proc/self/oom_score_adj; for ns in /proc/self/ns/*; do readlink $ns; done; pwd; env | sort; echo end";
    let profile = SecurityProfile::default();
    let mut config = with_security(shell("own", &format!("{inspect}; exec sleep 1000")), |context| {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.supplemental_groups = vec![1234];
        context.no_new_privs = true;
        context.seccomp = Some(profile);
        context.capabilities = Some(Capability {
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["MKNOD".to_owned()],
            add_ambient_capabilities: vec!["NET_ADMIN".to_owned()],
        });
    });
    config.envs = vec![KeyValue { key: "OWN".to_owned(), value: b"yes".to_vec() }];
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { oom_score_adj: 321, ..Default::default() });
    let id = berth.run(&pod, config).await;
    let log = berth.path("logs/pod/own.log");
    let until = Instant::now() + crate::support::PATIENCE;
    let own = loop {
        let text = crate::support::text_of(&fs::read_to_string(&log).unwrap_or_default());
        if text.ends_with("end\n") {
            break text;
        }
        assert!(Instant::now() < until, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // A user other than root has the ambient capabilities.
    for expected in
        ["CapAmb:\t0000000000001000", "CapEff:\t0000000000001000", "NoNewPrivs:\t1", "Seccomp:\t2", "\n321\n"]
    {
        assert!(own.contains(expected), "{expected:?} is not in {own}");
    }
    assert_eq!(berth.sh(&id, inspect).await, own.trim());

    // The exec has a separate cgroup below the container's.
    let cgroup = berth.info(&id).await["cgroup"].as_str().unwrap().to_owned();
    assert!(berth.sh(&id, "cat /proc/self/cgroup").await.contains(":/exec-"));
    let whole = if crate::support::is_v2() {
        "/sys/fs/cgroup".to_owned()
    } else {
        "/sys/fs/cgroup/freezer".to_owned()
    };
    let running = tokio::spawn({
        let mut runtime = berth.runtime.clone();
        let cmd = ["sh", "-c", "touch /tmp/there; sleep 4545"].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
        async move { runtime.exec_sync(request).await }
    });
    berth.sh(&id, "until [ -e /tmp/there ]; do sleep 0.05; done").await;
    let below = fs::read_dir(format!("{whole}{cgroup}")).unwrap().flatten();
    let below: Vec<_> =
        below.filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-")).collect();
    assert_eq!(below.len(), 1, "{below:?}");
    let pids = fs::read_to_string(below[0].path().join("cgroup.procs")).unwrap();
    assert!(pids.lines().count() > 0, "no process is in {below:?}");
    berth.stop_container(&id, 0).await;
    drop(running.await.unwrap());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
