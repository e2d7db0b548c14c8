//! Containers on the real daemon: their commands, credentials, filesystem views and ends. Runs as root.

mod ends;
mod execs;

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
