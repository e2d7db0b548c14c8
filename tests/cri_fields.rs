//! What requests say is checked, done and told as it is: limits, security contexts, names, namespaces, images' own words.
//! Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says so by panicking")]

mod support;

use std::fs;

use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::*;
use serde_json::json;
use support::{Berth, IMAGE, code, container, is_v2, secured, shell, sleeper};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

fn limited(mut config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    config.linux.as_mut().unwrap().resources = Some(resources);
    config
}

async fn update(berth: &mut Berth, request: UpdateContainerResourcesRequest) -> Result<(), Status> {
    berth.runtime.update_container_resources(request).await.map(drop)
}

fn of(id: &str, linux: LinuxContainerResources) -> UpdateContainerResourcesRequest {
    UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    }
}

/// The files of a container's cgroup that limits are in.
async fn limits(berth: &mut Berth, id: &str) -> Vec<String> {
    let info = berth.info(id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let files = match is_v2() {
        true => vec!["memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "cpuset.cpus", "pids.max"],
        false => vec![
            "memory/memory.limit_in_bytes",
            "memory/memory.memsw.limit_in_bytes",
            "cpu/cpu.cfs_quota_us",
            "cpu/cpu.cfs_period_us",
            "cpu/cpu.shares",
            "cpuset/cpuset.cpus",
        ],
    };
    let path = |file: &str| match file.split_once('/') {
        Some((controller, file)) => format!("/sys/fs/cgroup/{controller}{cgroup}/{file}"),
        None => format!("/sys/fs/cgroup{cgroup}/{file}"),
    };
    files.iter().map(|file| fs::read_to_string(path(file)).unwrap_or_default()).collect()
}

async fn told(berth: &mut Berth, id: &str) -> LinuxContainerResources {
    berth.status(id).await.resources.unwrap().linux.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_changes_nothing() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    // One without any limits: what it did not have it must not have afterwards.
    let bare = berth.run(&pod, sleeper("bare")).await;
    let some = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let with = berth.run(&pod, limited(sleeper("with"), some)).await;
    let refused = LinuxContainerResources {
        memory_limit_in_bytes: 48 * MIB,
        cpu_quota: 20_000,
        cpu_shares: 300,
        cpuset_cpus: "4000".to_owned(),
        oom_score_adj: 900,
        ..Default::default()
    };
    for id in [&bare, &with] {
        let (before, was_told) = (limits(&mut berth, id).await, told(&mut berth, id).await);
        let score = berth.sh(id, "cat /proc/1/oom_score_adj").await;
        let of_spec = |info: &serde_json::Value| {
            let spec = &info["runtimeSpec"];
            (spec["linux"]["resources"].clone(), spec["process"]["oomScoreAdj"].clone())
        };
        let spec = of_spec(&berth.info(id).await);
        let error = update(&mut berth, of(id, refused.clone())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("cpuset.cpus"), "{error}");
        assert_eq!(limits(&mut berth, id).await, before);
        assert_eq!(told(&mut berth, id).await, was_told);
        assert_eq!(berth.sh(id, "cat /proc/1/oom_score_adj").await, score);
        assert_eq!(of_spec(&berth.info(id).await), spec);
        // Whole or not at all: without what is wrong it holds.
        let fine = LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..refused.clone() };
        update(&mut berth, of(id, fine)).await.unwrap();
        assert_ne!(limits(&mut berth, id).await, before);
        assert_eq!(told(&mut berth, id).await.memory_limit_in_bytes, 48 * MIB);
    }
    let limit = |memory_limit_in_bytes, memory_swap_limit_in_bytes| LinuxContainerResources {
        memory_limit_in_bytes,
        memory_swap_limit_in_bytes,
        ..Default::default()
    };
    for wrong in [
        limit(64 * MIB, 32 * MIB),
        limit(-2, 0),
        LinuxContainerResources { cpu_period: 5, ..Default::default() },
        LinuxContainerResources { cpu_quota: 1, ..Default::default() },
        LinuxContainerResources { cpu_shares: -1, ..Default::default() },
        LinuxContainerResources { oom_score_adj: 1001, ..Default::default() },
        LinuxContainerResources { cpuset_mems: "x".to_owned(), ..Default::default() },
        LinuxContainerResources {
            unified: [("../x".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        },
    ] {
        let before = limits(&mut berth, &bare).await;
        assert_eq!(
            code(update(&mut berth, of(&bare, wrong.clone())).await),
            Code::InvalidArgument,
            "{wrong:?}"
        );
        assert_eq!(limits(&mut berth, &bare).await, before);
        let refused = berth.try_create(&pod, limited(sleeper("wrong"), wrong.clone())).await;
        assert_eq!(code(refused), Code::InvalidArgument, "{wrong:?}");
    }
    berth.remove_container(&bare).await;
    assert_eq!(code(update(&mut berth, of(&bare, limit(64 * MIB, 0))).await), Code::NotFound);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_the_limits_that_hold() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let asked =
        LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, cpu_quota: 50_000, ..Default::default() };
    let config = limited(sleeper("c"), asked.clone());
    let id = berth.run(&pod, config.clone()).await;
    let found = told(&mut berth, &id).await;
    assert_eq!((found.memory_limit_in_bytes, found.memory_swap_limit_in_bytes), (64 * MIB, 64 * MIB));
    assert_eq!((found.cpu_quota, found.cpu_period), (50_000, 100_000), "the kernel's own period");
    // One that asks for nothing has a score of its own nevertheless.
    let silent = berth.run(&pod, sleeper("silent")).await;
    let score: i64 = berth.sh(&silent, "cat /proc/1/oom_score_adj").await.parse().unwrap();
    assert_eq!(told(&mut berth, &silent).await.oom_score_adj, score);

    let mut request =
        of(&id, LinuxContainerResources { oom_score_adj: 777, cpu_shares: 200, ..Default::default() });
    request.annotations = [("example.com/why".to_owned(), "resize".to_owned())].into();
    berth.sh(&id, "sleep 1000 >/dev/null 2>&1 & true").await;
    update(&mut berth, request).await.unwrap();
    let scores = "for p in /proc/[0-9]*; do cat $p/oom_score_adj; done 2>/dev/null | sort -u";
    assert_eq!(berth.sh(&id, scores).await, "777", "every process, and those that come later");
    for _next_daemon in 0..2 {
        let found = told(&mut berth, &id).await;
        assert_eq!((found.oom_score_adj, found.cpu_shares, found.cpu_quota), (777, 200, 50_000));
        let info = berth.info(&id).await;
        assert_eq!(info["updateAnnotations"]["example.com/why"], "resize", "{info}");
        assert_eq!(info["runtimeSpec"]["process"]["oomScoreAdj"], 777);
        assert_eq!(info["config"]["linux"]["resources"]["cpu_shares"], 0, "the config stays the client's");
        assert_eq!(berth.status(&id).await.annotations, config.annotations);
        berth.restart().await;
    }
    let mut windows = of(&id, LinuxContainerResources::default());
    windows.windows = Some(WindowsContainerResources::default());
    assert_eq!(code(update(&mut berth, windows).await), Code::InvalidArgument);
    let mut long = of(&id, LinuxContainerResources::default());
    long.annotations = [("k".repeat(5000), String::new())].into();
    assert_eq!(code(update(&mut berth, long).await), Code::InvalidArgument);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

fn pod_with(
    berth: &Berth,
    name: &str,
    change: impl FnOnce(&mut LinuxSandboxSecurityContext),
) -> PodSandboxConfig {
    let mut config = berth.pod_config(name);
    change(config.linux.get_or_insert_default().security_context.get_or_insert_default());
    config
}

async fn pod_info(berth: &mut Berth, pod: &str) -> serde_json::Value {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    serde_json::from_str(&info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_has_the_security_context_of_its_pod() {
    let mut berth = Berth::start().await;
    let asked = |security: &mut LinuxSandboxSecurityContext| {
        security.run_as_user = Some(Int64Value { value: 1000 });
        security.run_as_group = Some(Int64Value { value: 2000 });
        security.supplemental_groups = vec![3000, 4000];
        security.readonly_rootfs = true;
        security.seccomp = Some(SecurityProfile::default());
    };
    let config = pod_with(&berth, "user", asked);
    let pod = berth.run_pod(config).await;
    let info = pod_info(&mut berth, &pod).await;
    let pid = info["pid"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid"), "1000 1000 1000 1000");
    assert_eq!(field("Gid"), "2000 2000 2000 2000");
    assert_eq!(field("Groups"), "3000 4000");
    assert_eq!(
        (field("CapEff"), field("NoNewPrivs"), field("Seccomp")),
        ("0".repeat(16), "1".into(), "2".into())
    );
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert_eq!(info["runtimeSpec"]["process"]["user"]["uid"], 1000);
    // The containers of the pod are none the worse for it.
    assert_eq!(
        berth.script(&pod, "c", "id -u; cat /etc/hostname; ip -o addr show dev eth0 | wc -l").await.0,
        0
    );

    let mut refused = async |name: &str, expected: Code, change: fn(&mut LinuxSandboxSecurityContext)| {
        let config = pod_with(&berth, name, change);
        let error = berth.try_run_pod(config).await.unwrap_err();
        assert_eq!(error.code(), expected, "{name}: {error}");
        error.message().to_owned()
    };
    let message = refused("group", Code::InvalidArgument, |security| {
        security.run_as_group = Some(Int64Value { value: 5 });
    })
    .await;
    assert!(message.contains("run_as_group"), "{message}");
    refused("id", Code::InvalidArgument, |security| {
        security.run_as_user = Some(Int64Value { value: i64::from(u32::MAX) });
    })
    .await;
    let message = refused("seccomp", Code::InvalidArgument, |security| {
        let localhost = security_profile::ProfileType::Localhost.into();
        security.seccomp =
            Some(SecurityProfile { profile_type: localhost, localhost_ref: "/no/such.json".to_owned() });
    })
    .await;
    assert!(message.contains("/no/such.json"), "{message}");
    if fs::metadata("/sys/kernel/security/apparmor/profiles").is_err() {
        refused("apparmor", Code::FailedPrecondition, |security| {
            security.apparmor = Some(SecurityProfile::default());
        })
        .await;
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_enum_has_and_what_is_for_other_systems_is_refused() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let refused = |result: Result<String, Status>, field: &str| {
        let error = result.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{field}: {error}");
        assert!(error.message().contains(field), "{field}: {error}");
    };
    let options = |change: fn(&mut NamespaceOption)| {
        let mut options = NamespaceOption::default();
        change(&mut options);
        options
    };
    let modes: [(&str, fn(&mut NamespaceOption)); 6] = [
        ("namespace_options.network", |options| options.network = 77),
        ("namespace_options.pid", |options| options.pid = -1),
        ("namespace_options.network", |options| options.network = NamespaceMode::Container.into()),
        ("namespace_options.network", |options| options.network = NamespaceMode::Target.into()),
        ("namespace_options.ipc", |options| options.ipc = NamespaceMode::Target.into()),
        ("userns_options", |options| {
            options.userns_options = Some(UserNamespace { mode: 9, ..Default::default() })
        }),
    ];
    for (field, change) in modes {
        let config = pod_with(&berth, "modes", |security| security.namespace_options = Some(options(change)));
        refused(berth.try_run_pod(config).await, field);
        let config = secured(sleeper("modes"), |security| security.namespace_options = Some(options(change)));
        refused(berth.try_create(&pod, config).await, field);
    }
    let target = pod_with(&berth, "target", |security| {
        security.namespace_options = Some(options(|options| options.pid = NamespaceMode::Target.into()));
    });
    refused(berth.try_run_pod(target).await, "namespace_options.pid");
    let mapping = PortMapping { protocol: 7, container_port: 80, ..PortMapping::default() };
    let ports = PodSandboxConfig { port_mappings: vec![mapping], ..berth.pod_config("ports") };
    refused(berth.try_run_pod(ports).await, "port_mappings[0].protocol");
    refused(
        berth.try_create(&pod, ContainerConfig { stop_signal: 99, ..sleeper("signal") }).await,
        "stop_signal",
    );
    let mount = Mount {
        container_path: "/x".to_owned(),
        host_path: "/tmp".to_owned(),
        propagation: 3,
        ..Mount::default()
    };
    refused(
        berth.try_create(&pod, ContainerConfig { mounts: vec![mount], ..sleeper("mount") }).await,
        "propagation",
    );
    let groups = secured(sleeper("groups"), |security| security.supplemental_groups_policy = 2);
    refused(berth.try_create(&pod, groups).await, "supplemental_groups_policy");
    let state = Some(ContainerStateValue { state: 12 });
    let filter = Some(ContainerFilter { state, ..ContainerFilter::default() });
    let listed = berth.runtime.list_containers(ListContainersRequest { filter }).await;
    assert_eq!(code(listed), Code::InvalidArgument);

    let windows = PodSandboxConfig { windows: Some(Default::default()), ..berth.pod_config("windows") };
    refused(berth.try_run_pod(windows).await, "windows");
    let windows = ContainerConfig { windows: Some(Default::default()), ..sleeper("windows") };
    refused(berth.try_create(&pod, windows).await, "windows");
    let group = secured(sleeper("group"), |security| security.run_as_group = Some(Int64Value { value: 5 }));
    refused(berth.try_create(&pod, group).await, "run_as_group");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_handler_that_is_not_configured_is_refused_for_images_too() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let spec = |handler: &str| ImageSpec {
        image: IMAGE.to_owned(),
        runtime_handler: handler.to_owned(),
        ..ImageSpec::default()
    };
    let image = Some(spec("none-such"));
    let pull = PullImageRequest { image: image.clone(), ..PullImageRequest::default() };
    let error = berth.images.pull_image(pull).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("none-such"), "{error}");
    let status = ImageStatusRequest { image: image.clone(), verbose: false };
    assert_eq!(code(berth.images.image_status(status).await), Code::InvalidArgument);
    let remove = RemoveImageRequest { image: image.clone() };
    assert_eq!(code(berth.images.remove_image(remove).await), Code::InvalidArgument);
    let list = ListImagesRequest { filter: Some(ImageFilter { image }) };
    assert_eq!(code(berth.images.list_images(list).await), Code::InvalidArgument);
    let config = ContainerConfig { image: Some(spec("none-such")), ..sleeper("c") };
    assert_eq!(code(berth.try_create(&pod, config).await), Code::InvalidArgument);
    let known = ImageStatusRequest { image: Some(spec("")), verbose: false };
    assert!(berth.images.image_status(known).await.unwrap().into_inner().image.is_some());
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_shown_with_the_image_that_people_named() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("pod");
    let pod = berth.run_pod(config.clone()).await;
    let request = ImageStatusRequest {
        image: Some(ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }),
        verbose: false,
    };
    let image = berth.images.image_status(request).await.unwrap().into_inner().image.unwrap();
    // As the kubelet sends it: the id that PullImage has answered, and what the author of the pod wrote.
    let by_id = |user: &str| ImageSpec {
        image: image.id.clone(),
        user_specified_image: user.to_owned(),
        ..ImageSpec::default()
    };
    let prefix = ImageSpec { image: image.id["sha256:".len()..][..7].to_owned(), ..ImageSpec::default() };
    for (name, spec, shown) in [
        ("by-id", by_id(""), IMAGE),
        ("by-author", by_id("busybox"), "busybox"),
        ("by-tag", ImageSpec { image: IMAGE.to_owned(), ..ImageSpec::default() }, IMAGE),
        ("by-prefix", prefix, IMAGE),
    ] {
        let id =
            berth.try_create(&pod, ContainerConfig { image: Some(spec), ..sleeper(name) }).await.unwrap();
        let status = berth.status(&id).await;
        assert_eq!(status.image.unwrap().image, shown, "{name}");
        assert_eq!(status.image_id, image.id);
        let filter = Some(ContainerFilter { id: id.clone(), ..ContainerFilter::default() });
        let listed = berth.runtime.list_containers(ListContainersRequest { filter }).await.unwrap();
        assert_eq!(listed.into_inner().containers[0].image.as_ref().unwrap().image, shown, "{name}");
    }
    // What the client repeats of its pod when it makes a container changes nothing of that.
    let before = pod_info(&mut berth, &pod).await["config"].clone();
    config.hostname = "other".to_owned();
    config.log_directory = berth.path("other-logs").display().to_string();
    config.annotations = [("a".to_owned(), "b".to_owned())].into();
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(shell("late", "hostname")),
        sandbox_config: Some(config),
    };
    let id = berth.runtime.create_container(request).await.unwrap().into_inner().container_id;
    assert!(berth.status(&id).await.log_path.contains("/logs/pod/"));
    assert_eq!(pod_info(&mut berth, &pod).await["config"], before);
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_line_without_a_line_break_is_told_as_it_was_written() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, shell("c", "printf 'one\\ntwo'; printf 'three' >&2")).await;
    let log = berth.ended(&id).await.log_path;
    let log = fs::read_to_string(log).unwrap();
    let mut lines: Vec<String> =
        log.lines().map(|line| line.splitn(2, ' ').nth(1).unwrap().to_owned()).collect();
    lines.sort();
    assert_eq!(lines, ["stderr P three", "stdout F one", "stdout P two"], "{log}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_written_is_told_with_the_time_at_which_it_was_measured() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let id = berth.run(&pod, sleeper("c")).await;
    berth.sh(&id, "dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null").await;
    let before =
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos())
            .unwrap();
    // The first answer has what is there; a daemon that is very busy measures for the next.
    let until = std::time::Instant::now() + support::PATIENCE;
    let layer = loop {
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = berth.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        match stats.writable_layer {
            Some(layer) => break layer,
            None => assert!(std::time::Instant::now() < until, "it is never measured"),
        }
    };
    assert!(layer.used_bytes.unwrap().value >= 8 << 20, "{layer:?}");
    assert!(layer.timestamp >= before, "{layer:?}");
    let info = berth.images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert!(info.container_filesystems[0].used_bytes.unwrap().value >= 8 << 20, "{info:?}");
    assert!(info.container_filesystems[0].timestamp >= before, "{info:?}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_come_by_annotation_or_the_container_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let spec = json!({ "cdiVersion": "0.5.0", "kind": "vendor.test/dev", "containerEdits": null, "devices": [
        { "name": "a", "containerEdits": { "env": ["DEV=a"], "mounts": null, "hooks": null } } ] });
    fs::write(folder.path().join("vendor.json"), spec.to_string()).unwrap();
    let mut berth = Berth::start_with(&format!("cdi_spec_dirs = [\"{}\"]\n", folder.path().display())).await;
    berth.load_image().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let asks = |name: &str, device: &str| ContainerConfig {
        annotations: [("cdi.k8s.io/plugin_x".to_owned(), device.to_owned())].into(),
        ..shell(name, "echo $DEV")
    };
    assert_eq!(berth.run_to_end(&pod, asks("known", "vendor.test/dev=a")).await, (0, "a\n".to_owned()));
    for device in ["vendor.test/dev=b", "vendor.test/dev", ""] {
        let error = berth.try_create(&pod, asks("unknown", device)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{device}: {error}");
    }
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_the_hosts_network_is_the_nodes_or_the_one_that_is_asked_for() {
    let mut berth = Berth::start().await;
    let node = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let host = NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Node.into(),
        ipc: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    };
    let script = "hostname; echo $HOSTNAME; cat /etc/hostname; readlink /proc/self/ns/pid";
    let pids = fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let of_file = fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned();
    for (asked, name, file) in
        [("", &node, &of_file), ("own-name", &"own-name".to_owned(), &"own-name".to_owned())]
    {
        let mut config = pod_with(&berth, &format!("pod{asked}"), |security| {
            security.namespace_options = Some(host.clone())
        });
        config.hostname = asked.to_owned();
        let pod = berth.run_pod(config).await;
        // It names no mode: it is where its pod is.
        let silent = secured(shell("c", script), |security| security.namespace_options = None);
        let (code, log) = berth.run_to_end(&pod, silent).await;
        assert_eq!((code, log), (0, format!("{name}\n{name}\n{file}\n{pids}\n")), "{asked:?}");
    }
    assert_eq!(rustix::system::uname().nodename().to_str().unwrap(), node, "the node keeps its name");
    let mut config = berth.pod_config("nameless");
    config.hostname = String::new();
    let pod = berth.run_pod(config).await;
    let (_, log) = berth.script(&pod, "c", "hostname; echo $HOSTNAME; cat /etc/hostname").await;
    assert_eq!(log, format!("{node}\n{node}\n{node}\n"));
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

/// Loads an image of busybox with this config.
async fn load(berth: &Berth, tag: &str, config: &serde_json::Value) {
    let archive = berth.path("own.tar");
    support::image::write_archive_of(&archive, tag, &[support::image::layer()], config);
    let channel = berth::server::connect(&berth.path("run/berth.sock")).await.unwrap();
    let path = archive.display().to_string();
    AdminClient::new(channel).load_image(LoadImageRequest { path }).await.unwrap();
}

fn of_image(tag: &str, name: &str) -> ContainerConfig {
    let image = Some(ImageSpec { image: tag.to_owned(), ..ImageSpec::default() });
    ContainerConfig { image, ..container(name, &[]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_run_as_the_peers_run_them() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let path = json!(["PATH=/bin"]);
    load(
        &berth,
        "localhost/empty:1",
        &json!({ "Env": path, "Entrypoint": [""], "Cmd": ["echo", "x"], "Volumes": null, "Labels": null }),
    )
    .await;
    assert_eq!(berth.run_to_end(&pod, of_image("localhost/empty:1", "empty")).await, (0, "x\n".to_owned()));

    load(
        &berth,
        "localhost/signal:1",
        &json!({ "Env": path, "Cmd": ["echo", "y"], "StopSignal": "SIGNONSENSE" }),
    )
    .await;
    let id = berth.run(&pod, of_image("localhost/signal:1", "signal")).await;
    let status = berth.ended(&id).await;
    assert_eq!((status.exit_code, status.stop_signal()), (0, Signal::Sigterm));

    let script = "cat /srv/owned; echo new >/srv/new; cat /srv/new; touch /x; grep -c ' /srv ' /proc/mounts";
    let config =
        json!({ "Env": path, "Cmd": ["sh", "-c", script], "Volumes": { "/srv/../srv/": {}, "/made": {} } });
    load(&berth, "localhost/volume:1", &config).await;
    let read_only =
        secured(of_image("localhost/volume:1", "volume"), |security| security.readonly_rootfs = true);
    let (_, log) = berth.run_to_end(&pod, read_only).await;
    assert!(
        log.starts_with("web's\nnew\n") && log.contains("Read-only file system") && log.ends_with("1\n"),
        "{log}"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_folder_that_the_user_may_not_enter_is_entered_before() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let folder = berth.path("private");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(0), Some(0)).unwrap();
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mount = Mount {
        host_path: folder.display().to_string(),
        container_path: "/x/../private/.".to_owned(),
        ..Mount::default()
    };
    let mut config = secured(shell("c", "id -u; pwd; sleep 1000"), |security| {
        security.run_as_user = Some(Int64Value { value: 1000 });
    });
    config.mounts = vec![mount];
    config.working_dir = "/../srv/.././private".to_owned();
    let id = berth.run(&pod, config.clone()).await;
    assert_eq!(berth.sh(&id, "id -u; pwd").await, "1000\n/private", "a further command as well");
    let log = berth.status(&id).await.log_path;
    let until = std::time::Instant::now() + support::PATIENCE;
    while support::text_of(&fs::read_to_string(&log).unwrap()) != "1000\n/private\n" {
        assert!(std::time::Instant::now() < until, "{}", fs::read_to_string(&log).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let mut root = config.clone();
    root.metadata.as_mut().unwrap().name = "root".to_owned();
    root.mounts[0].container_path = "/a/..".to_owned();
    assert_eq!(code(berth.try_create(&pod, root).await), Code::InvalidArgument, "that is the root");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn sysctls_of_the_pods_interface_are_set_when_it_is_there() {
    let mut berth = Berth::start().await;
    let mut config = berth.pod_config("pod");
    config.linux.as_mut().unwrap().sysctls = [
        ("net.ipv4.conf.eth0.rp_filter", "2"),
        ("net/ipv4/neigh/eth0/gc_stale_time", "77"),
        ("net.ipv4.conf.all.log_martians", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let pod = berth.run_pod(config).await;
    let read =
        "cd /proc/sys/net/ipv4 && cat conf/eth0/rp_filter neigh/eth0/gc_stale_time conf/all/log_martians";
    assert_eq!(berth.script(&pod, "c", read).await, (0, "2\n77\n1\n".to_owned()));
    let mut wrong = berth.pod_config("wrong");
    wrong.linux.as_mut().unwrap().sysctls =
        [("net.ipv4.conf.eth7.rp_filter".to_owned(), "1".to_owned())].into();
    let error = berth.try_run_pod(wrong).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("net.ipv4.conf.eth7.rp_filter"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_name_the_cause() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let tiny = LinuxContainerResources { memory_limit_in_bytes: 1, ..Default::default() };
    let error = match berth.try_create(&pod, limited(sleeper("tiny"), tiny)).await {
        Err(error) => error,
        Ok(id) => berth.try_start_container(&id).await.unwrap_err(),
    };
    assert!(error.message().contains("memory_limit_in_bytes) is 1 bytes"), "{error}");

    let (file, folder) = (berth.path("file"), berth.path("folder"));
    fs::write(&file, "x").unwrap();
    fs::create_dir(&folder).unwrap();
    for (host, inside, words) in [
        (&file, "/srv", "a file cannot be mounted over a folder"),
        (&folder, "/bin/busybox", "a folder cannot be mounted over a file"),
    ] {
        let mount = Mount {
            host_path: host.display().to_string(),
            container_path: inside.to_owned(),
            ..Mount::default()
        };
        let config = ContainerConfig { mounts: vec![mount], ..sleeper("mount") };
        let error = berth.try_create(&pod, config).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains(words) && error.message().contains(inside), "{error}");
    }

    let registry = support::registry::Registry::start(berth.host_process());
    let refused = support::registry::Answer::Whole(401, "text/plain", b"no".to_vec());
    registry.answer("/v2/silent/manifests/1", refused);
    let image = Some(ImageSpec { image: format!("{}/silent:1", registry.address), ..ImageSpec::default() });
    let request = PullImageRequest { image, ..PullImageRequest::default() };
    let error = berth.images.pull_image(request).await.unwrap_err();
    assert!(error.message().contains("sends no challenge"), "{error}");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_policy_holds_for_containers_of_images_that_came_before() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    fs::write(berth.path("policy.json"), r#"{ "default": [{ "type": "reject" }] }"#).unwrap();
    let refused = berth.try_create(&pod, shell("c", "true")).await.unwrap_err();
    // k8s.io/cri-api/pkg/errors; the kubelet sees the text as it is only where the code is Unknown.
    assert_eq!(refused.code(), Code::Unknown);
    assert!(refused.message().starts_with("SignatureValidationFailed: "), "{refused}");
    // It came from an archive, which the policy may let in.
    let archives = r#"{ "default": [{ "type": "reject" }],
        "transports": { "docker-archive": { "": [{ "type": "insecureAcceptAnything" }] } } }"#;
    fs::write(berth.path("policy.json"), archives).unwrap();
    berth.restart().await;
    assert_eq!(berth.script(&pod, "loaded", "echo runs").await, (0, "runs\n".to_owned()));
    fs::write(berth.path("policy.json"), "{").unwrap();
    assert!(
        berth.try_create(&pod, shell("broken", "true")).await.is_err(),
        "a broken policy lets nothing through"
    );
    assert_eq!(berth.clean().await, Vec::<String>::new());
}
