//! The changes that plugins make to containers that are being created.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use berth_proto::nri::*;
use berth_proto::v1::{LinuxContainerResources, NamespaceMode};

use super::plugin::TestPlugin;
use super::{adjusting, socket};
use crate::support::{Berth, is_v2, shell, sleeper};

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_is_changed() {
    let mut berth = Berth::start().await;
    let change = ContainerAdjustment {
        env: vec![variable("ADDED", "yes"), variable("GIVEN", "changed"), variable("-DROPPED", "")],
        args: texts(&[
            "sh",
            "-c",
            "echo $ADDED $GIVEN ${DROPPED-gone} $(ulimit -n) $(cat /proc/self/oom_score_adj)",
        ]),
        annotations: [("io.example/added".to_owned(), "1".to_owned())].into(),
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".to_owned(), hard: 99, soft: 77 }],
        linux: Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: 555 }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut config = shell("c", "echo unchanged");
    for (key, value) in [("GIVEN", "1"), ("DROPPED", "2")] {
        config.envs.push(berth_proto::v1::KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() });
    }
    let id = berth.run(&pod, config).await;
    let status = berth.wait_exited(&id).await;
    let log = crate::support::text_of(&fs::read_to_string(&status.log_path).unwrap());
    assert_eq!(log.trim(), "yes changed gone 77 555");
    assert_eq!(status.resources.unwrap().linux.unwrap().oom_score_adj, 555);
    let spec = &berth.info(&id).await["runtimeSpec"];
    assert_eq!(spec["annotations"]["io.example/added"], "1");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_devices_and_namespaces_are_changed() {
    let mut berth = Berth::start().await;
    let folder = berth.path("volume");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "of the host").unwrap();
    let change = ContainerAdjustment {
        mounts: vec![
            Mount {
                destination: "/volume".to_owned(),
                r#type: "bind".to_owned(),
                source: folder.display().to_string(),
                options: texts(&["rbind", "ro", "rprivate"]),
            },
            Mount { destination: "-/dev/mqueue".to_owned(), ..Mount::default() },
        ],
        ..linux(LinuxContainerAdjustment {
            devices: vec![LinuxDevice {
                path: "/dev/my-null".to_owned(),
                r#type: "c".to_owned(),
                major: 1,
                minor: 3,
                file_mode: Some(OptionalFileMode { value: 0o666 }),
                ..LinuxDevice::default()
            }],
            namespaces: vec![LinuxNamespace { r#type: "-ipc".to_owned(), path: String::new() }],
            sysctl: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into(),
            ..LinuxContainerAdjustment::default()
        })
    };
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let seen = berth
        .sh(
            &id,
            "cat /volume/file; echo; touch /volume/new 2>&1 | grep -o Read-only; \
             echo x >/dev/my-null && echo written; grep -c mqueue /proc/mounts; \
             cat /proc/sys/net/ipv4/ip_unprivileged_port_start; readlink /proc/self/ns/ipc",
        )
        .await;
    let host = fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string();
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["of the host", "Read-only", "written", "0", "77", &host]);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_changed_and_reported() {
    let mut berth = Berth::start().await;
    let parent = berth.cgroup_parent.clone();
    let change = linux(LinuxContainerAdjustment {
        resources: Some(LinuxResources {
            memory: Some(LinuxMemory {
                limit: Some(OptionalInt64 { value: 64 << 20 }),
                reservation: Some(OptionalInt64 { value: 32 << 20 }),
                ..LinuxMemory::default()
            }),
            cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value: 333 }), ..LinuxCpu::default() }),
            pids: Some(LinuxPids { limit: 55 }),
            ..LinuxResources::default()
        }),
        cgroups_path: format!("{parent}/moved"),
        ..LinuxContainerAdjustment::default()
    });
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let file = |controller: &str, v1: &str, v2: &str| match is_v2() {
        true => format!("/sys/fs/cgroup{parent}/moved/{v2}"),
        false => format!("/sys/fs/cgroup/{controller}{parent}/moved/{v1}"),
    };
    let read = |path: String| fs::read_to_string(&path).unwrap_or_else(|error| format!("{path}: {error}"));
    let memory = read(file("memory", "memory.limit_in_bytes", "memory.max"));
    assert_eq!(memory.trim(), (64 << 20).to_string());
    let soft = read(file("memory", "memory.soft_limit_in_bytes", "memory.low"));
    assert_eq!(soft.trim(), (32 << 20).to_string());
    assert_eq!(read(file("pids", "pids.max", "pids.max")).trim(), "55");
    let limits = berth.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!((limits.memory_limit_in_bytes, limits.cpu_shares), (64 << 20, 333));
    // An update of the client leaves the other limits as the plugin set them.
    let request = berth_proto::v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 444, ..Default::default() }),
        ..Default::default()
    };
    berth.runtime.update_container_resources(request).await.unwrap();
    assert_eq!(read(file("pids", "pids.max", "pids.max")).trim(), "55");
    let spec = &berth.info(&id).await["runtimeSpec"];
    assert_eq!(spec["linux"]["resources"]["pids"]["limit"], 55);
    assert_eq!(spec["linux"]["resources"]["cpu"]["shares"], 444);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_cdi_devices_and_the_seccomp_policy_are_changed() {
    let folder = tempfile::tempdir().unwrap();
    let mut berth = Berth::start_with(&format!("cdi_spec_dirs = [{:?}]\n", folder.path())).await;
    berth.load_image().await;
    let file = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/gpu",
        "devices": [{ "name": "one", "containerEdits": { "env": ["GPU=one"] } }],
    });
    fs::write(folder.path().join("vendor.json"), file.to_string()).unwrap();
    let (program, done) = (folder.path().join("hook"), folder.path().join("done"));
    fs::write(&program, format!("#!/bin/sh\ncat >/dev/null; echo $1 >>{}\n", done.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let hook = |kind: &str| {
        vec![Hook {
            path: program.display().to_string(),
            args: texts(&["hook", kind]),
            env: texts(&["PATH=/usr/bin:/bin"]),
            timeout: Some(OptionalInt { value: 60 }),
        }]
    };
    let change = ContainerAdjustment {
        hooks: Some(Hooks {
            create_runtime: hook("createRuntime"),
            poststop: hook("poststop"),
            ..Hooks::default()
        }),
        cdi_devices: vec![CdiDevice { name: "vendor.example/gpu=one".to_owned() }],
        ..linux(LinuxContainerAdjustment {
            seccomp_policy: Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".to_owned(),
                syscalls: vec![LinuxSyscall {
                    names: texts(&["mkdir", "mkdirat"]),
                    action: "SCMP_ACT_ERRNO".to_owned(),
                    errno_ret: Some(OptionalUInt32 { value: 28 }),
                    args: Vec::new(),
                }],
                ..LinuxSeccomp::default()
            }),
            ..LinuxContainerAdjustment::default()
        })
    };
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let (_, log) = berth.run_to_end(&pod, shell("c", "echo $GPU; mkdir /x 2>&1")).await;
    assert!(log.starts_with("one\n") && log.contains("No space left on device"), "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
    assert_eq!(fs::read_to_string(&done).unwrap(), "createRuntime\npoststop\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_the_io_priority_and_the_memory_policy_are_set() {
    let mut berth = Berth::start().await;
    let change = linux(LinuxContainerAdjustment {
        io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 6 }),
        scheduler: Some(LinuxScheduler {
            policy: LinuxSchedulerPolicy::SchedBatch.into(),
            nice: 5,
            ..LinuxScheduler::default()
        }),
        memory_policy: Some(LinuxMemoryPolicy {
            mode: MpolMode::MpolInterleave.into(),
            nodes: "0".to_owned(),
            flags: Vec::new(),
        }),
        ..LinuxContainerAdjustment::default()
    });
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let pid = berth.info(&id).await["pid"].as_i64().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // proc_pid_stat(5): nice is field 19, policy 41, and SCHED_BATCH is 3.
    assert_eq!((fields[16], fields[38]), ("5", "3"));
    let ionice = std::process::Command::new("ionice").arg("-p").arg(pid.to_string()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&ionice.stdout).trim(), "best-effort: prio 6");
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps"));
    if let Ok(maps) = maps {
        assert!(maps.contains("interleave:0"), "{maps}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_changes_are_named_and_leave_nothing() {
    let mut berth = Berth::start().await;
    let cases = [
        (
            ContainerAdjustment {
                rlimits: vec![PosixRlimit { r#type: "RLIMIT_NONE".to_owned(), hard: 1, soft: 1 }],
                ..ContainerAdjustment::default()
            },
            "RLIMIT_NONE",
        ),
        (
            ContainerAdjustment {
                mounts: vec![Mount { destination: "relative".to_owned(), ..Mount::default() }],
                ..ContainerAdjustment::default()
            },
            "\"relative\" is not absolute",
        ),
        (
            linux(LinuxContainerAdjustment {
                resources: Some(LinuxResources {
                    rdt_class: Some(OptionalString { value: "gold".to_owned() }),
                    ..LinuxResources::default()
                }),
                ..LinuxContainerAdjustment::default()
            }),
            "RDT classes are not supported",
        ),
        (
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace {
                    r#type: "network".to_owned(),
                    path: "/run/netns/absent".to_owned(),
                }],
                ..LinuxContainerAdjustment::default()
            }),
            "/run/netns/absent",
        ),
    ];
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    for (change, expected) in cases {
        let plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
        let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
        assert!(error.message().contains(expected), "{error}");
        let calls = plugin.calls();
        assert!(calls.ends_with(&texts(&["StopContainer", "RemoveContainer"])), "{calls:?}");
    }
    let id = berth.run(&pod, sleeper("c")).await;
    berth.remove_container(&id).await;
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_can_give_a_container_the_network_of_another_namespace() {
    let mut berth = Berth::start().await;
    let target = format!("/proc/{}/ns/net", berth.host_process());
    let change = linux(LinuxContainerAdjustment {
        namespaces: vec![LinuxNamespace { r#type: "network".to_owned(), path: target.clone() }],
        ..LinuxContainerAdjustment::default()
    });
    let _plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", change)).await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let mut config = sleeper("c");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().network = NamespaceMode::Pod.into();
    let id = berth.run(&pod, config).await;
    let seen = berth.sh(&id, "readlink /proc/self/ns/net").await;
    assert_eq!(seen, fs::read_link(target).unwrap().display().to_string());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn network_devices_move_to_the_pod_and_return_if_the_creation_fails() {
    let mut berth = Berth::start().await;
    let on_host = |command: &str| {
        let output = berth.on_host(&["sh", "-c", command]);
        assert!(output.status.success(), "{command}: {output:?}");
    };
    on_host(
        "ip link add nri0 type veth peer name nri0-peer && ip address add 10.99.0.1/24 dev nri0 && ip link set nri0 up",
    );
    let device = |name: &str| [("nri0".to_owned(), LinuxNetDevice { name: name.to_owned() })].into();
    let hook = Hook { path: "/bin/false".to_owned(), args: texts(&["false"]), ..Hook::default() };
    let failing = ContainerAdjustment {
        hooks: Some(Hooks { create_runtime: vec![hook], ..Hooks::default() }),
        ..linux(LinuxContainerAdjustment {
            net_devices: device("inner0"),
            ..LinuxContainerAdjustment::default()
        })
    };
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let plugin = TestPlugin::reacting(&socket(&berth), "10", "p", adjusting("c", failing)).await;
    let error = berth.try_create(&pod, sleeper("c")).await.unwrap_err();
    assert!(error.message().contains("run hook /bin/false"), "{error}");
    assert!(
        berth.on_host(&["ip", "link", "show", "nri0"]).status.success(),
        "the device is on the host again"
    );
    drop(plugin);
    assert!(berth.on_host(&["ip", "address", "add", "10.99.0.1/24", "dev", "nri0"]).status.success());
    let change = linux(LinuxContainerAdjustment {
        net_devices: device("inner0"),
        ..LinuxContainerAdjustment::default()
    });
    let _plugin = TestPlugin::reacting(&socket(&berth), "20", "p", adjusting("c", change)).await;
    let id = berth.run(&pod, sleeper("c")).await;
    let shown = berth.sh(&id, "ip address show dev inner0").await;
    assert!(shown.contains("10.99.0.1/24") && shown.contains("UP"), "{shown}");
    assert!(!berth.on_host(&["ip", "link", "show", "nri0"]).status.success());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
