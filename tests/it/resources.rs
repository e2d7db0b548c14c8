//! Limits of a container on both cgroup versions: set, updated, and enforced. Runs as root.

use std::fs;

use crate::support::{Berth, code, is_v2, shell, sleeper};
use berth_proto::v1::*;
use tonic::Code;

fn limited(mut config: ContainerConfig, resources: LinuxContainerResources) -> ContainerConfig {
    config.linux.as_mut().unwrap().resources = Some(resources);
    config
}

/// Returns the content of a file in a container's cgroup, as root on the host reads it. `v1` is the controller and
/// the file on cgroup v1, `v2` the file on cgroup v2.
async fn limit(berth: &mut Berth, id: &str, v1: (&str, &str), v2: &str) -> String {
    let info = berth.info(id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let path = if is_v2() {
        format!("/sys/fs/cgroup{cgroup}/{v2}")
    } else {
        format!("/sys/fs/cgroup/{}{cgroup}/{}", v1.0, v1.1)
    };
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

async fn memory(berth: &mut Berth, id: &str) -> String {
    limit(berth, id, ("memory", "memory.limit_in_bytes"), "memory.max").await
}

async fn quota(berth: &mut Berth, id: &str) -> String {
    let text = limit(berth, id, ("cpu", "cpu.cfs_quota_us"), "cpu.max").await;
    text.split(' ').next().unwrap().to_owned()
}

async fn update(
    berth: &mut Berth,
    id: &str,
    resources: LinuxContainerResources,
) -> Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(resources),
        ..UpdateContainerResourcesRequest::default()
    };
    berth.runtime.update_container_resources(request).await.map(drop)
}

const MIB: i64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn limits_can_be_updated_before_during_and_after_a_run() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("update")).await;
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 64 * MIB,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        ..Default::default()
    };
    let id = berth.try_create(&pod, limited(sleeper("c"), resources.clone())).await.unwrap();
    assert_eq!(memory(&mut berth, &id).await, (64 * MIB).to_string());

    let more = LinuxContainerResources { memory_limit_in_bytes: 128 * MIB, ..Default::default() };
    update(&mut berth, &id, more).await.unwrap();
    assert_eq!(memory(&mut berth, &id).await, (128 * MIB).to_string());
    assert_eq!(quota(&mut berth, &id).await, "50000", "a limit that the update does not name must stay");

    berth.try_start_container(&id).await.unwrap();
    let cpu = LinuxContainerResources {
        cpu_quota: 20_000,
        cpuset_cpus: "0".to_owned(),
        memory_limit_in_bytes: 32 * MIB,
        ..Default::default()
    };
    update(&mut berth, &id, cpu).await.unwrap();
    assert_eq!(memory(&mut berth, &id).await, (32 * MIB).to_string());
    assert_eq!(quota(&mut berth, &id).await, "20000");
    assert_eq!(limit(&mut berth, &id, ("cpuset", "cpuset.cpus"), "cpuset.cpus").await, "0");

    // If the kernel refuses one limit, none of the update is applied.
    let bad = LinuxContainerResources {
        memory_limit_in_bytes: 48 * MIB,
        cpuset_cpus: "4000".to_owned(),
        ..Default::default()
    };
    let error = update(&mut berth, &id, bad).await.unwrap_err();
    assert!(error.message().contains("cpuset.cpus"), "{error}");
    assert_eq!(memory(&mut berth, &id).await, (32 * MIB).to_string());

    // The status shows the limits in force, also after a restart of the daemon.
    berth.kill();
    berth.restart().await;
    let reported = berth.status(&id).await.resources.unwrap().linux.unwrap();
    assert_eq!(
        (reported.memory_limit_in_bytes, reported.cpu_quota, reported.cpu_shares),
        (32 * MIB, 20_000, 512)
    );
    assert_eq!(reported.cpuset_cpus, "0");

    berth.stop_container(&id, 5).await;
    let over = LinuxContainerResources { cpu_quota: 10_000, ..Default::default() };
    update(&mut berth, &id, over).await.unwrap();
    assert_eq!(berth.status(&id).await.resources.unwrap().linux.unwrap().cpu_quota, 10_000);
    let unknown = update(&mut berth, "0123", LinuxContainerResources::default()).await;
    assert_eq!(code(unknown), Code::NotFound);
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn updated_pod_resources_survive_a_restart() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("given")).await;
    let resources = LinuxContainerResources { cpu_shares: 300, ..Default::default() };
    let overhead = LinuxContainerResources { memory_limit_in_bytes: MIB, ..Default::default() };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.clone(),
        overhead: Some(overhead),
        resources: Some(resources),
    };
    berth.runtime.update_pod_sandbox_resources(request).await.unwrap();
    berth.kill();
    berth.restart().await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["resources"]["cpu_shares"], 300, "{info}");
    assert_eq!(info["overhead"]["memory_limit_in_bytes"], MIB);
    // The config in the status is unchanged.
    assert!(info["config"]["linux"]["resources"].is_null(), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_over_its_memory_limit_is_reported_as_oomkilled() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("oom")).await;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 16 * MIB, ..Default::default() };
    let greedy = limited(shell("greedy", "exec tail /dev/zero"), resources.clone());
    let id = berth.run(&pod, greedy).await;
    let status = berth.wait_exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    // A container that another signal killed does not have that reason.
    let killed = limited(shell("killed", "kill -9 $$"), resources);
    let id = berth.run(&pod, killed).await;
    let status = berth.wait_exited(&id).await;
    assert_ne!(status.reason, "OOMKilled", "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_page_sizes_of_other_hosts_can_only_be_limited_to_zero() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pages")).await;
    let pages = |limit| LinuxContainerResources {
        hugepage_limits: vec![HugepageLimit { page_size: "3MB".to_owned(), limit }],
        ..Default::default()
    };
    let (code, _) = berth.run_to_end(&pod, limited(shell("none", "true"), pages(0))).await;
    assert_eq!(code, 0);
    let error = berth.try_create(&pod, limited(shell("some", "true"), pages(3 << 20))).await.unwrap_err();
    assert!(error.message().contains("hugetlb"), "{error}");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_page_and_swap_limits_are_applied() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("limits")).await;
    let is_available = |v1: &str, v2: &str| match is_v2() {
        true => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap().contains(v2),
        false => fs::metadata(format!("/sys/fs/cgroup/{v1}")).is_ok(),
    };
    if is_available("hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb") {
        let page = HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
        let pages = LinuxContainerResources { hugepage_limits: vec![page], ..Default::default() };
        let id = berth.try_create(&pod, limited(sleeper("pages"), pages)).await.unwrap();
        let files = (("hugetlb", "hugetlb.2MB.limit_in_bytes"), "hugetlb.2MB.max");
        assert_eq!(limit(&mut berth, &id, files.0, files.1).await, (4_u32 << 20).to_string());
    }
    if is_available("memory/memory.memsw.limit_in_bytes", "memory") {
        // Memory and swap together, as in v1. v2 counts swap separately.
        let swap = |limit, both| LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: both,
            ..Default::default()
        };
        let files = (("memory", "memory.memsw.limit_in_bytes"), "memory.swap.max");
        for (name, both, expected) in [("some", 96 * MIB, 32 * MIB), ("none", 0, 0)] {
            let id = berth.try_create(&pod, limited(sleeper(name), swap(64 * MIB, both))).await.unwrap();
            let expected = if is_v2() { expected } else { 64 * MIB + expected };
            assert_eq!(limit(&mut berth, &id, files.0, files.1).await, expected.to_string(), "{name}");
            let more = swap(0, 100 * MIB);
            update(&mut berth, &id, more).await.unwrap();
            let expected = if is_v2() { 36 * MIB } else { 100 * MIB };
            assert_eq!(limit(&mut berth, &id, files.0, files.1).await, expected.to_string(), "{name}");
        }
    }
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unified_cgroup_v2_files_are_set_as_requested() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("unified")).await;
    let unified = |key: &str, value: &str| LinuxContainerResources {
        unified: [(key.to_owned(), value.to_owned())].into(),
        ..Default::default()
    };
    if !is_v2() {
        let refused = berth.try_create(&pod, limited(sleeper("c"), unified("memory.high", "max"))).await;
        assert!(refused.as_ref().unwrap_err().message().contains("memory.high"), "{refused:?}");
        assert_eq!(code(refused), Code::InvalidArgument, "cgroup v1 must refuse v2 files");
        assert!(berth.clean().await.is_empty());
        return;
    }
    let id = berth.run(&pod, limited(sleeper("c"), unified("memory.high", "33554432"))).await;
    assert_eq!(limit(&mut berth, &id, ("", ""), "memory.high").await, "33554432");
    update(&mut berth, &id, unified("memory.oom.group", "1")).await.unwrap();
    assert_eq!(limit(&mut berth, &id, ("", ""), "memory.oom.group").await, "1");
    let error =
        berth.try_create(&pod, limited(shell("bad", "true"), unified("../x", "1"))).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_works_in_a_paused_container() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("paused")).await;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 32 * MIB, ..Default::default() };
    let id = berth.run(&pod, limited(sleeper("c"), resources)).await;
    let info = berth.info(&id).await;
    let cgroup = info["cgroup"].as_str().unwrap();
    let (file, frozen, thawed) = if is_v2() {
        (format!("/sys/fs/cgroup{cgroup}/cgroup.freeze"), "1", "0")
    } else {
        (format!("/sys/fs/cgroup/freezer{cgroup}/freezer.state"), "FROZEN", "THAWED")
    };
    fs::write(&file, frozen).unwrap();
    assert_eq!(berth.sh(&id, "echo there").await, "there");
    let slow = berth.exec(&id, &["sleep", "60"], 1).await.unwrap_err();
    assert_eq!(slow.code(), Code::DeadlineExceeded);
    // The limits also hold while the container is paused.
    let greedy = berth.exec(&id, &["tail", "/dev/zero"], 0).await.unwrap();
    assert_eq!(greedy.exit_code, 137);
    fs::write(&file, thawed).unwrap();
    assert_eq!(berth.sh(&id, "echo again").await, "again");
    fs::write(&file, frozen).unwrap();
    berth.stop_container(&id, 1).await;
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_report_cpu_memory_network_and_disk_usage() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("stats")).await;
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() };
    let mut config =
        limited(shell("c", "dd if=/dev/zero of=/written bs=1M count=3; while :; do :; done"), resources);
    config.labels = [("app".to_owned(), "busy".to_owned())].into();
    let id = berth.run(&pod, config).await;
    let filter = |app: &str| {
        let label_selector = [("app".to_owned(), app.to_owned())].into();
        Some(ContainerStatsFilter { label_selector, ..ContainerStatsFilter::default() })
    };
    let list = |filter| ListContainerStatsRequest { filter };
    let found = berth.runtime.list_container_stats(list(filter("busy"))).await.unwrap().into_inner().stats;
    assert_eq!(found.len(), 1);
    assert!(
        berth.runtime.list_container_stats(list(filter("idle"))).await.unwrap().into_inner().stats.is_empty()
    );
    // A rate is the difference between two measurements.
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    let linux = loop {
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
        let stats = berth.runtime.pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        let linux = stats.linux.unwrap();
        let rate = linux.containers[0].cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores);
        if rate.is_some_and(|rate| rate.value > 0) {
            break linux;
        }
        assert!(std::time::Instant::now() < until, "a busy loop must have a CPU rate: {linux:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(linux.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert!(
        linux.process.unwrap().process_count.unwrap().value >= 2,
        "the pause and the container must be counted"
    );
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    let container = &linux.containers[0];
    assert_eq!(container.attributes.as_ref().unwrap().id, id);
    let memory = container.memory.as_ref().unwrap();
    let available = memory.available_bytes.unwrap().value;
    assert!(available > 0 && available <= u64::try_from(64 * MIB).unwrap());

    let layer = loop {
        let request = ContainerStatsRequest { container_id: id.clone() };
        let stats = berth.runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
        let layer = stats.writable_layer.unwrap();
        if layer.used_bytes.unwrap().value >= 3 << 20 {
            break layer;
        }
        assert!(std::time::Instant::now() < until, "written data is not counted: {layer:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    assert!(layer.inodes_used.unwrap().value > 0);
    let request = ContainerStatsRequest { container_id: "0123".to_owned() };
    assert_eq!(code(berth.runtime.container_stats(request).await), Code::NotFound);
    assert!(berth.clean().await.is_empty());
}
