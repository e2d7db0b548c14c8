use berth_proto::nri::{
    LinuxContainerAdjustment, LinuxDevice, LinuxMemory, LinuxMemoryPolicy, LinuxNamespace, LinuxNetDevice,
    LinuxPids, LinuxResources, LinuxSeccomp, LinuxSyscall, MpolMode, OptionalFileMode, OptionalInt,
    OptionalInt64, OptionalString, OptionalUInt32,
};
use oci_spec::runtime::{LinuxNamespaceType, PosixRlimitType};

use super::*;

fn spec() -> Spec {
    let mut spec = Spec::default();
    if let Some(process) = spec.process_mut() {
        process.set_env(Some(vec!["PATH=/bin".to_owned(), "A=1".to_owned(), "B=2".to_owned()]));
    }
    spec
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() }
}

fn applied(adjustment: &ContainerAdjustment) -> Spec {
    let mut spec = spec();
    apply(&mut spec, adjustment, true).unwrap();
    spec
}

#[test]
fn the_process_is_changed() {
    let variable = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.to_owned() };
    let adjustment = ContainerAdjustment {
        env: vec![variable("A", "9"), variable("-B", ""), variable("C", "3")],
        args: vec!["true".to_owned()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".to_owned(), hard: 20, soft: 10 }],
        annotations: [("a".to_owned(), "1".to_owned()), ("-gone".to_owned(), String::new())].into(),
        linux: Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: 5 }),
            io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 3 }),
            scheduler: Some(LinuxScheduler {
                policy: LinuxSchedulerPolicy::SchedBatch.into(),
                nice: 4,
                flags: vec![LinuxSchedulerFlag::SchedFlagResetOnFork.into()],
                ..LinuxScheduler::default()
            }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    };
    let mut before = spec();
    before.set_annotations(Some([("gone".to_owned(), "x".to_owned())].into()));
    apply(&mut before, &adjustment, true).unwrap();
    let process = before.process().as_ref().unwrap();
    assert_eq!(process.env().clone().unwrap(), ["PATH=/bin", "A=9", "C=3"]);
    assert_eq!(process.args().clone().unwrap(), ["true"]);
    let limits = process.rlimits().clone().unwrap();
    let files: Vec<_> = limits.iter().filter(|limit| limit.typ() == PosixRlimitType::RlimitNofile).collect();
    assert_eq!(files.iter().map(|limit| (limit.soft(), limit.hard())).collect::<Vec<_>>(), [(10, 20)]);
    assert_eq!(process.oom_score_adj(), Some(5));
    assert!(process.io_priority().is_some() && process.scheduler().is_some());
    assert_eq!(before.annotations().clone().unwrap(), [("a".to_owned(), "1".to_owned())].into());
}

#[test]
fn mounts_are_replaced_removed_and_sorted() {
    let mount = |destination: &str| Mount {
        destination: destination.to_owned(),
        r#type: "bind".to_owned(),
        source: "/srv".to_owned(),
        options: vec!["rbind".to_owned(), "rslave".to_owned()],
    };
    let adjustment = ContainerAdjustment {
        mounts: vec![mount("/data/inner"), mount("/data"), mount("-/dev/mqueue")],
        ..ContainerAdjustment::default()
    };
    let spec = applied(&adjustment);
    let paths: Vec<_> =
        spec.mounts().iter().flatten().map(|mount| mount.destination().display().to_string()).collect();
    let place = |path: &str| paths.iter().position(|other| other == path);
    assert!(place("/data") < place("/data/inner") && place("/dev/mqueue").is_none(), "{paths:?}");
    assert_eq!(spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(), Some("rslave"));
    let relative = ContainerAdjustment { mounts: vec![mount("data")], ..ContainerAdjustment::default() };
    assert!(apply(&mut super::tests::spec(), &relative, true).unwrap_err().contains("not absolute"));
}

#[test]
fn the_linux_section_is_changed() {
    let device = LinuxDevice {
        path: "/dev/one".to_owned(),
        r#type: "c".to_owned(),
        major: 1,
        minor: 5,
        file_mode: Some(OptionalFileMode { value: 0o600 }),
        uid: Some(OptionalUInt32 { value: 7 }),
        gid: None,
    };
    let removed = LinuxNamespace { r#type: "-ipc".to_owned(), path: String::new() };
    let joined = LinuxNamespace { r#type: "network".to_owned(), path: "/run/netns/x".to_owned() };
    let policy = LinuxSeccomp {
        default_action: "SCMP_ACT_ALLOW".to_owned(),
        syscalls: vec![LinuxSyscall {
            names: vec!["mkdir".to_owned()],
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(OptionalUInt32 { value: 13 }),
            args: Vec::new(),
        }],
        ..LinuxSeccomp::default()
    };
    let spec = applied(&linux(LinuxContainerAdjustment {
        devices: vec![device],
        namespaces: vec![removed, joined],
        sysctl: [("net.core.somaxconn".to_owned(), "99".to_owned())].into(),
        seccomp_policy: Some(policy),
        memory_policy: Some(LinuxMemoryPolicy {
            mode: MpolMode::MpolInterleave.into(),
            nodes: "0".to_owned(),
            flags: Vec::new(),
        }),
        net_devices: [("eth9".to_owned(), LinuxNetDevice { name: "inner".to_owned() })].into(),
        ..LinuxContainerAdjustment::default()
    }));
    let linux = spec.linux().as_ref().unwrap();
    let device = &linux.devices().as_ref().unwrap()[0];
    assert_eq!((device.major(), device.minor(), device.file_mode()), (1, 5, Some(0o600)));
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert!(rules.iter().any(|rule| rule.allow() && rule.minor() == Some(5)));
    let namespaces = linux.namespaces().as_ref().unwrap();
    assert!(!namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Ipc));
    assert!(namespaces.iter().any(|namespace| namespace.path().is_some()));
    assert_eq!(linux.sysctl().as_ref().unwrap()["net.core.somaxconn"], "99");
    let rule = &linux.seccomp().as_ref().unwrap().syscalls().as_ref().unwrap()[0];
    assert_eq!(rule.errno_ret(), Some(13));
    assert_eq!(linux.memory_policy().as_ref().unwrap().nodes().as_deref(), Some("0"));
    assert_eq!(linux.net_devices().as_ref().unwrap()["eth9"].name().as_deref(), Some("inner"));
}

#[test]
fn limits_are_set_and_shown_again() {
    let limits = LinuxResources {
        memory: Some(LinuxMemory {
            limit: Some(OptionalInt64 { value: 1 << 24 }),
            reservation: Some(OptionalInt64 { value: 1 << 23 }),
            ..LinuxMemory::default()
        }),
        pids: Some(LinuxPids { limit: 7 }),
        unified: [("memory.high".to_owned(), "9".to_owned())].into(),
        ..LinuxResources::default()
    };
    let adjustment = linux(LinuxContainerAdjustment {
        resources: Some(limits.clone()),
        ..LinuxContainerAdjustment::default()
    });
    let spec = applied(&adjustment);
    let seen = view::container_of(&spec).linux.unwrap().resources.unwrap();
    let memory = seen.memory.unwrap();
    assert_eq!(memory.limit, Some(OptionalInt64 { value: 1 << 24 }));
    assert_eq!(memory.swap, memory.limit, "no swap");
    assert_eq!(memory.reservation, limits.memory.unwrap().reservation);
    assert_eq!((seen.pids, seen.unified), (limits.pids, limits.unified));
    assert!(apply(&mut super::tests::spec(), &adjustment, false).unwrap_err().contains("cgroup v2"));
}

#[test]
fn invalid_and_unsupported_changes_are_named() {
    let error = |adjustment: &ContainerAdjustment| apply(&mut spec(), adjustment, true).unwrap_err();
    let rlimit = PosixRlimit { r#type: "RLIMIT_X".to_owned(), hard: 1, soft: 1 };
    let unknown = ContainerAdjustment { rlimits: vec![rlimit], ..ContainerAdjustment::default() };
    assert!(error(&unknown).contains("RLIMIT_X"));
    let score = linux(LinuxContainerAdjustment {
        oom_score_adj: Some(OptionalInt { value: 4000 }),
        ..LinuxContainerAdjustment::default()
    });
    assert!(error(&score).contains("oom_score_adj"));
    let class = Some(OptionalString { value: "gold".to_owned() });
    let resources = LinuxResources { rdt_class: class, ..LinuxResources::default() };
    let rdt =
        linux(LinuxContainerAdjustment { resources: Some(resources), ..LinuxContainerAdjustment::default() });
    assert!(error(&rdt).contains("RDT"));
}
