//! Updates of a container's limits: an update is applied completely or not at all, and the status shows the limits in
//! force. Runs as root.

use std::fs;

use crate::support::{Berth, code, is_v2, sleeper};
use berth_proto::v1::*;
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

/// Returns the contents of the limit files in a container's cgroup.
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

async fn reported_limits(berth: &mut Berth, id: &str) -> LinuxContainerResources {
    berth.status(id).await.resources.unwrap().linux.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_update_of_limits_changes_nothing() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    // This container has no limits. A refused update must not add any.
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
        let (before, limits_before) = (limits(&mut berth, id).await, reported_limits(&mut berth, id).await);
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
        assert_eq!(reported_limits(&mut berth, id).await, limits_before);
        assert_eq!(berth.sh(id, "cat /proc/1/oom_score_adj").await, score);
        assert_eq!(of_spec(&berth.info(id).await), spec);
        // The same update without the invalid limit is applied.
        let fine = LinuxContainerResources { cpuset_cpus: "0".to_owned(), ..refused.clone() };
        update(&mut berth, of(id, fine)).await.unwrap();
        assert_ne!(limits(&mut berth, id).await, before);
        assert_eq!(reported_limits(&mut berth, id).await.memory_limit_in_bytes, 48 * MIB);
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
async fn the_status_shows_the_limits_in_force() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pod")).await;
    let requested =
        LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, cpu_quota: 50_000, ..Default::default() };
    let config = limited(sleeper("c"), requested.clone());
    let id = berth.run(&pod, config.clone()).await;
    let found = reported_limits(&mut berth, &id).await;
    assert_eq!((found.memory_limit_in_bytes, found.memory_swap_limit_in_bytes), (64 * MIB, 64 * MIB));
    assert_eq!(
        (found.cpu_quota, found.cpu_period),
        (50_000, 100_000),
        "the status must show the kernel's default period"
    );
    // A container that requests no limits still has an OOM score.
    let without_limits = berth.run(&pod, sleeper("without_limits")).await;
    let score: i64 = berth.sh(&without_limits, "cat /proc/1/oom_score_adj").await.parse().unwrap();
    assert_eq!(reported_limits(&mut berth, &without_limits).await.oom_score_adj, score);

    let mut request =
        of(&id, LinuxContainerResources { oom_score_adj: 777, cpu_shares: 200, ..Default::default() });
    request.annotations = [("example.com/why".to_owned(), "resize".to_owned())].into();
    berth.sh(&id, "sleep 1000 >/dev/null 2>&1 & true").await;
    update(&mut berth, request).await.unwrap();
    let scores = "for p in /proc/[0-9]*; do cat $p/oom_score_adj; done 2>/dev/null | sort -u";
    assert_eq!(berth.sh(&id, scores).await, "777", "every process of the container must have the new score");
    for _next_daemon in 0..2 {
        let found = reported_limits(&mut berth, &id).await;
        assert_eq!((found.oom_score_adj, found.cpu_shares, found.cpu_quota), (777, 200, 50_000));
        let info = berth.info(&id).await;
        assert_eq!(info["updateAnnotations"]["example.com/why"], "resize", "{info}");
        assert_eq!(info["runtimeSpec"]["process"]["oomScoreAdj"], 777);
        assert_eq!(
            info["config"]["linux"]["resources"]["cpu_shares"], 0,
            "an update must not change the config"
        );
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
