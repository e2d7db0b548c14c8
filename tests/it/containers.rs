//! Containers on the real daemon: their commands, credentials, filesystem views and ends. Runs as root.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Berth, code, container, shell, sleeper, with_security};
use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::*;
use rustix::process::Resource;
use tonic::Code;

async fn berth_and_pod() -> (Berth, String) {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    (berth, pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn command_env_and_working_folder_come_from_the_request_or_the_image() {
    let (mut berth, pod) = berth_and_pod().await;
    let (_, log) = berth.run_to_end(&pod, container("image", &[])).await;
    assert_eq!(log, "from the image\n");
    let mut config = shell("own", "pwd; echo $FROM_IMAGE $OWN $HOME; cat /srv/owned; ls -d /data");
    config.envs = vec![KeyValue { key: "OWN".to_owned(), value: b"yes".to_vec() }];
    let (exit, log) = berth.run_to_end(&pod, config).await;
    assert_eq!((exit, log.as_str()), (0, "/srv\nyes yes /root\nweb's\n/data\n"));
    let mut config = shell("elsewhere", "pwd");
    config.working_dir = "/made/for/it".to_owned();
    assert_eq!(berth.run_to_end(&pod, config).await.1, "/made/for/it\n");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_exactly_the_requested_credentials() {
    let (mut berth, pod) = berth_and_pod().await;
    let inspect = "id; grep -E 'Cap|NoNewPrivs|Groups' /proc/self/status; ls /proc/self/fd | wc -l";
    let named = with_security(shell("named", inspect), |context| {
        context.run_as_username = "web".to_owned();
        context.supplemental_groups = vec![1234];
        context.no_new_privs = true;
    });
    let (_, log) = berth.run_to_end(&pod, named).await;
    assert!(log.contains("uid=1000(web) gid=1000(web) groups=50(logs),1000(web),1234"), "{log}");
    for expected in [
        "CapInh:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "NoNewPrivs:\t1",
    ] {
        assert!(log.contains(expected), "{expected} is not in {log}");
    }
    // 0, 1, 2 and the folder that ls reads: no descriptor of the host is open (CVE-2024-21626).
    assert!(log.ends_with("\n4\n"), "{log}");
    let dropped = with_security(shell("dropped", inspect), |context| {
        context.capabilities = Some(Capability {
            drop_capabilities: vec!["ALL".to_owned()],
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            ..Capability::default()
        });
    });
    let (_, log) = berth.run_to_end(&pod, dropped).await;
    assert!(log.contains("CapEff:\t0000000000001000") && log.contains("NoNewPrivs:\t0"), "{log}");
    let strict = with_security(shell("strict", "id"), |context| {
        context.run_as_user = Some(Int64Value { value: 1000 });
        context.run_as_group = Some(Int64Value { value: 7 });
        context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    });
    let id = berth.run(&pod, strict).await;
    let status = berth.wait_exited(&id).await;
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 7, vec![7]));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_masks_and_mounts_are_as_in_runc() {
    let (mut berth, pod) = berth_and_pod().await;
    let plain = with_security(
        shell(
            "plain",
            "ls /dev; cat /proc/self/cgroup; readlink /proc/self/ns/cgroup; stat -c %F /dev/null /dev/ptmx; readlink /dev/fd; cat /proc/self/mountinfo; \
             cat /proc/kcore 2>&1 | head -c 10 | wc -c; ls /proc/scsi 2>/dev/null | wc -l; \
             echo 1 >/proc/sys/kernel/panic; echo status $?; mkdir /sys/fs/cgroup/x; echo cgroup $?; echo ok >/written",
        ),
        |context| {
            context.masked_paths = vec!["/proc/kcore".to_owned(), "/proc/scsi".to_owned()];
            context.readonly_paths = vec!["/proc/sys".to_owned()];
        },
    );
    let (exit, log) = berth.run_to_end(&pod, plain).await;
    assert_eq!(exit, 0, "{log}");
    for device in
        ["full", "null", "ptmx", "pts", "random", "shm", "mqueue", "stderr", "tty", "urandom", "zero"]
    {
        assert!(log.lines().any(|line| line == device), "{device} is not in {log}");
    }
    for expected in ["/proc/self/fd", " / / rw", " /dev/mqueue ", " /sys ro", "status 1", "cgroup 1", "\n0\n"]
    {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    let hosts = fs::read_link("/proc/self/ns/cgroup").unwrap();
    assert!(
        !log.contains(hosts.to_str().unwrap()),
        "the container must have a separate cgroup namespace: {log}"
    );
    assert!(
        !crate::support::is_v2() || log.lines().any(|line| line == "0::/"),
        "the container must see its cgroup as the root: {log}"
    );
    assert!(
        !log.contains(berth.folder.path().to_str().unwrap()) || !log.contains("pivot"),
        "the old root must not be left in the mount table"
    );

    let readonly =
        with_security(shell("readonly", "touch /x; echo $?; touch /dev/shm/x && echo shm"), |context| {
            context.readonly_rootfs = true;
        });
    let (_, log) = berth.run_to_end(&pod, readonly).await;
    assert!(log.contains("Read-only file system") && log.contains("\n1\n") && log.contains("shm"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_folders_and_files_can_be_mounted() {
    let (mut berth, pod) = berth_and_pod().await;
    let folder = berth.path("volume");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content").unwrap();
    let volume = |host: &str, inside: &str, readonly| Mount {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        readonly,
        ..Mount::default()
    };
    let host = folder.to_str().unwrap();
    let mut config = shell(
        "volumes",
        "cat /v/file /single; echo new >/v/made; touch /ro/x; echo $?; ls -d /late && touch /late/x",
    );
    let missing = berth.path("missing/deep");
    config.mounts = vec![
        volume(host, "/v", false),
        volume(host, "/ro", true),
        volume(&format!("{host}/file"), "/single", true),
        volume(missing.to_str().unwrap(), "/late", false),
    ];
    let (exit, log) = berth.run_to_end(&pod, config).await;
    assert_eq!(exit, 0, "{log}");
    assert!(log.contains("contentcontent") && log.contains("Read-only file system"), "{log}");
    assert_eq!(fs::read_to_string(folder.join("made")).unwrap(), "new\n");
    assert!(missing.join("x").exists(), "a missing folder is created, as the kubelet expects");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_limit_holds_and_an_oom_kill_is_reported() {
    let (mut berth, pod) = berth_and_pod().await;
    let mut config = shell("eater", "x=; while true; do x=$x$x.; done");
    config.linux.as_mut().unwrap().resources =
        Some(LinuxContainerResources { memory_limit_in_bytes: 20 << 20, ..Default::default() });
    let id = berth.run(&pod, config).await;
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exited_container_has_exit_code_reason_and_times() {
    let (mut berth, pod) = berth_and_pod().await;
    for (name, script, exit, reason) in [
        ("good", "exit 0", 0, "Completed"),
        ("bad", "exit 42", 42, "Error"),
        ("killed", "kill -9 $$; sleep 9", 137, "Error"),
    ] {
        // Process 1 of a PID namespace ignores a signal that it has no handler for, so the script runs as a child of
        // the shell.
        let id = berth.run(&pod, shell(name, &format!("sh -c '{script}'; exit $?"))).await;
        let status = berth.wait_exited(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (exit, reason), "{name}");
        assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    }
    let id = berth.try_create(&pod, container("none", &["/no/such/command"])).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    let status = berth.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(status.message.contains("No such file"), "{}", status.message);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_sends_the_stop_signal_then_kills_after_the_timeout() {
    let (mut berth, pod) = berth_and_pod().await;
    let gentle = berth.run(&pod, sleeper("gentle")).await;
    berth.wait_for_handler(&gentle, rustix::process::Signal::TERM).await;
    berth.stop_container(&gentle, 60).await;
    assert_eq!(berth.status(&gentle).await.exit_code, 0, "the stop signal ends the container");
    let ignores_term = berth
        .run(&pod, shell("ignores_term", "trap '' TERM; sleep 1000 & while true; do sleep 0.1; done"))
        .await;
    berth.stop_container(&ignores_term, 1).await;
    let status = berth.status(&ignores_term).await;
    assert_eq!((status.exit_code, status.state()), (137, ContainerState::ContainerExited));
    berth.stop_container(&ignores_term, 1).await;
    let mut by_signal = shell("signal", "trap 'exit 7' USR1; while true; do sleep 0.1; done");
    by_signal.stop_signal = Signal::Sigusr1.into();
    let by_signal = berth.run(&pod, by_signal).await;
    berth.wait_for_handler(&by_signal, rustix::process::Signal::USR1).await;
    berth.stop_container(&by_signal, 60).await;
    assert_eq!(berth.status(&by_signal).await.exit_code, 7);
    berth.remove_container(&by_signal).await;
    berth.remove_container(&by_signal).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

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

#[tokio::test(flavor = "multi_thread")]
async fn rlimits_and_oom_score_do_not_come_from_the_daemon() {
    let mut berth = Berth::start().await;
    let low = |soft| rustix::process::Rlimit { current: Some(soft), maximum: None };
    for (resource, soft) in [(Resource::Stack, 1 << 20), (Resource::Core, 4096), (Resource::Data, 1 << 40)] {
        rustix::process::prlimit(Some(berth.pid()), resource, low(soft)).unwrap();
    }
    let pod = berth.run_pod(berth.pod_config("limits")).await;
    let (_, log) = berth.run_to_end(&pod, shell("c", "cat /proc/self/limits /proc/self/oom_score_adj")).await;
    let rows: Vec<String> =
        log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for expected in [
        "Max stack size 8388608 unlimited bytes",
        "Max core file size 0 unlimited bytes",
        "Max data size unlimited unlimited bytes",
        "Max locked memory 8388608 8388608 bytes",
        "Max msgqueue size 819200 819200 bytes",
        "0",
    ] {
        assert!(rows.iter().any(|row| row == expected), "{expected:?} is not in {log}");
    }
    assert!(berth.clean().await.is_empty());
}

fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    enabled.is_ok_and(|text| text.starts_with('Y')) && Path::new("/sys/kernel/security/apparmor").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apparmor_profile_needs_apparmor() {
    let (mut berth, pod) = berth_and_pod().await;
    let inspect = "cat /proc/self/attr/current; true 2>/dev/null >/proc/sysrq-trigger || echo denied";
    let with = |name: &str, kind: ProfileType, localhost_ref: &str| {
        let profile = SecurityProfile { profile_type: kind.into(), localhost_ref: localhost_ref.to_owned() };
        with_security(shell(name, inspect), |context| context.apparmor = Some(profile))
    };
    let (default, loaded, none) = (
        with("default", ProfileType::RuntimeDefault, ""),
        with("loaded", ProfileType::Localhost, "k8s-nginx"),
        with("none", ProfileType::Unconfined, ""),
    );
    if has_apparmor() {
        for config in [default, shell("unset", inspect), with("own", ProfileType::Localhost, "berth-default")]
        {
            let (_, log) = berth.run_to_end(&pod, config).await;
            assert_eq!(log, "berth-default (enforce)\ndenied\n");
        }
        let error = berth.try_create(&pod, loaded).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().contains("k8s-nginx"), "{error}");
        let (_, log) = berth.run_to_end(&pod, none).await;
        assert!(log.starts_with("unconfined\n"), "{log}");
        let id = berth.run(&pod, sleeper("exec")).await;
        assert_eq!(berth.sh(&id, "cat /proc/self/attr/current").await, "berth-default (enforce)");
    } else {
        for config in [default, loaded] {
            let error = berth.try_create(&pod, config).await.unwrap_err();
            assert!(
                error.code() == Code::FailedPrecondition && error.message().contains("AppArmor"),
                "{error}"
            );
        }
        let id = berth.try_create(&pod, none).await.unwrap();
        berth.remove_container(&id).await;
    }
    // SELinux options have no effect on a host without SELinux, but they are validated.
    let labelled = |name: &str, level: &str| {
        with_security(shell(name, "true"), |context| {
            context.selinux_options = Some(SeLinuxOption { level: level.to_owned(), ..Default::default() });
        })
    };
    let garbage = berth.try_create(&pod, labelled("garbage", "s0:c1,c2;x")).await;
    assert_eq!(code(garbage), Code::InvalidArgument);
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        assert_eq!(berth.run_to_end(&pod, labelled("label", "s0:c1,c2")).await.0, 0);
    }
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_in_the_cri_format_and_survive_rotation() {
    let (mut berth, pod) = berth_and_pod().await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; \
                  while ! [ -e /tmp/go ]; do sleep 0.05; done; echo last; printf unended";
    let id = berth.run(&pod, shell("logger", script)).await;
    let log = berth.path("logs/pod/logger.log");
    let until = Instant::now() + crate::support::PATIENCE;
    while !fs::read_to_string(&log).unwrap_or_default().contains("line 1999") {
        assert!(Instant::now() < until, "the log does not grow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rotated = berth.path("logs/pod/logger.log.1");
    fs::rename(&log, &rotated).unwrap();
    let request = ReopenContainerLogRequest { container_id: id.clone() };
    berth.runtime.reopen_container_log(request.clone()).await.unwrap();
    berth.exec(&id, &["touch", "/tmp/go"], 0).await.unwrap();
    berth.wait_exited(&id).await;
    let old = fs::read_to_string(&rotated).unwrap();
    let tags: Vec<_> = old.lines().take(3).map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(tags, ["P", "P", "F"], "a long line is logged in parts");
    let text = crate::support::text_of(&old);
    assert_eq!(text.lines().next().unwrap().len(), 40000);
    assert_eq!(text.lines().count(), 2001);
    assert_eq!(crate::support::text_of(&fs::read_to_string(&log).unwrap()), "last\nunended");
    assert_eq!(code(berth.runtime.reopen_container_log(request).await), Code::FailedPrecondition);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_terminal_has_its_own_console() {
    let (mut berth, pod) = berth_and_pod().await;
    let mut config =
        shell("tty", "tty; test -t 0 && test -t 1 && echo terminal; ls -l /dev/console; echo $TERM");
    config.tty = true;
    config.stdin = true;
    let (exit, log) = berth.run_to_end(&pod, config).await;
    assert_eq!(exit, 0, "{log}");
    assert!(log.contains("terminal") && log.contains("xterm") && log.contains("/dev/console"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
