//! Metrics of pods and containers: every metric has a descriptor and plausible values. Runs as root.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Berth, IMAGE, pod_with, shell, sleeper};
use berth_proto::v1::*;
use tokio_stream::StreamExt as _;

const MIB: u64 = 1 << 20;

/// The metrics that depend on the host: block I/O, huge pages, pressure.
const OPTIONAL: [&str; 4] =
    ["container_blkio_", "container_hugetlb_", "container_pressure_", "container_fs_"];

async fn descriptors(berth: &mut Berth) -> BTreeMap<String, Vec<String>> {
    let request = ListMetricDescriptorsRequest {};
    let all = berth.runtime.list_metric_descriptors(request).await.unwrap().into_inner().descriptors;
    all.into_iter().map(|descriptor| (descriptor.name, descriptor.label_keys)).collect()
}

async fn list(berth: &mut Berth) -> Vec<PodSandboxMetrics> {
    let request = ListPodSandboxMetricsRequest {};
    berth.runtime.list_pod_sandbox_metrics(request).await.unwrap().into_inner().pod_metrics
}

async fn of_pod(berth: &mut Berth, pod: &str) -> PodSandboxMetrics {
    list(berth).await.into_iter().find(|found| found.pod_sandbox_id == pod).unwrap()
}

async fn streamed(berth: &mut Berth) -> Vec<PodSandboxMetrics> {
    let request = StreamPodSandboxMetricsRequest {};
    let mut stream = berth.runtime.stream_pod_sandbox_metrics(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.next().await {
        all.extend(message.unwrap().pod_sandbox_metrics);
    }
    all
}

/// Returns the value of the metric with this name and these additional labels.
fn value(metrics: &[Metric], name: &str, labels: &[&str]) -> Option<u64> {
    let found = metrics.iter().find(|metric| metric.name == name && metric.label_values[6..] == *labels)?;
    Some(found.value.unwrap().value)
}

fn values_of(metrics: &[Metric], name: &str) -> Vec<u64> {
    metrics.iter().filter(|metric| metric.name == name).map(|metric| metric.value.unwrap().value).collect()
}

/// Returns the series, names with labels, except those that a first access to a block device adds.
fn steady_series(pods: &[PodSandboxMetrics]) -> BTreeSet<(String, Vec<String>)> {
    series(pods)
        .into_iter()
        .filter(|(name, _)| !OPTIONAL.iter().any(|start| name.starts_with(start)))
        .collect()
}

/// Returns the series: names with labels.
fn series(pods: &[PodSandboxMetrics]) -> BTreeSet<(String, Vec<String>)> {
    let of_containers = pods.iter().flat_map(|pod| &pod.container_metrics).flat_map(|found| &found.metrics);
    let all = pods.iter().flat_map(|pod| &pod.metrics).chain(of_containers);
    all.map(|metric| (metric.name.clone(), metric.label_values.clone())).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Runs a container with limits that has written a file and a log, and has used the processor for a second.
async fn busy(berth: &mut Berth, pod: &str) -> String {
    let script = "head -c 2000000 /dev/urandom >/file; i=0; while [ $i -lt 3000 ]; do echo 'a line of the log'; \
                  i=$((i + 1)); done; while [ ! -e /enough ]; do :; done; exec sleep 1000";
    let mut config = shell("busy", script);
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 80_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    });
    let id = berth.run(pod, config).await;
    // A measurement of the writable layer is used for some time: the first one follows the writes.
    let log = berth.status(&id).await.log_path;
    let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    let until = std::time::Instant::now() + crate::support::PATIENCE;
    while lines() < 3000 {
        assert!(std::time::Instant::now() < until, "the container writes no log");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let used = |metrics: &PodSandboxMetrics| {
        let metrics = &metrics.container_metrics[0].metrics;
        value(metrics, "container_cpu_usage_seconds_total", &["total"])
    };
    while used(&of_pod(berth, pod).await) < Some(1) {
        assert!(std::time::Instant::now() < until, "the container uses no processor time");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    berth.sh(&id, "touch /enough").await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_match_their_descriptors_and_the_container() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("metered")).await;
    let id = busy(&mut berth, &pod).await;
    let found = of_pod(&mut berth, &pod).await;
    assert_eq!(found.container_metrics.len(), 1);
    assert_eq!(found.container_metrics[0].container_id, id);

    let descriptors = descriptors(&mut berth).await;
    let all = series(std::slice::from_ref(&found));
    for (name, labels) in &all {
        assert_eq!(descriptors[name].len(), labels.len(), "{name} {labels:?}");
    }
    let names: BTreeSet<&String> = all.iter().map(|(name, _)| name).collect();
    let missing = descriptors.keys().filter(|name| !names.contains(name));
    let missing: Vec<_> =
        missing.filter(|name| !OPTIONAL.iter().any(|start| name.starts_with(start))).collect();
    assert!(missing.is_empty(), "{missing:?}");

    let metrics = &found.container_metrics[0].metrics;
    let info = berth.info(&id).await;
    let common = ["busy", info["cgroup"].as_str().unwrap(), IMAGE, &id, "default", "metered"];
    for metric in metrics {
        assert_eq!(metric.label_values[..6], common, "{metric:?}");
    }
    let of = |name: &str| value(metrics, name, &[]).unwrap_or_else(|| panic!("{name} is missing"));
    assert!((1..64 * MIB).contains(&of("container_memory_usage_bytes")));
    assert!(of("container_memory_working_set_bytes") <= of("container_memory_usage_bytes"));
    assert_eq!(of("container_spec_memory_limit_bytes"), 64 * MIB);
    assert_eq!(of("container_spec_cpu_quota"), 80_000);
    assert!(of("container_cpu_cfs_periods_total") > 0);
    assert!(of("container_processes") >= 1 && of("container_threads") >= 1);
    assert!(of("container_file_descriptors") >= 3);
    assert_eq!(of("container_sockets"), 0);
    assert!(value(metrics, "container_ulimits_soft", &["max_open_files"]).unwrap() > 0);
    let (started, seen) = (of("container_start_time_seconds"), of("container_last_seen"));
    assert!(started <= seen && seen <= now() && now() - started < 600, "{started} {seen}");
    assert!((1..=started).contains(&of("container_creation_time_seconds")));
    let faults = value(metrics, "container_memory_failures_total", &["pgfault", "container"]);
    assert!(faults > Some(0));

    // The file has 2,000,000 bytes, the log more than 3,000 * 17.
    let usage = values_of(metrics, "container_fs_usage_bytes")[0];
    let layer = berth.runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await;
    let layer = layer.unwrap().into_inner().stats.unwrap().writable_layer.unwrap().used_bytes.unwrap().value;
    assert!(usage >= 2_000_000 + 3000 * 17 && usage >= layer + 3000 * 17, "{usage}, layer {layer}");
    assert!(values_of(metrics, "container_fs_limit_bytes")[0] > usage);

    berth.remove_container(&id).await;
    assert!(of_pod(&mut berth, &pod).await.container_metrics.is_empty());
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_metrics_of_its_cgroup_and_its_interfaces() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("one")).await;
    let on_host = |security: &mut LinuxSandboxSecurityContext| {
        let network = NamespaceMode::Node.into();
        security.namespace_options = Some(NamespaceOption { network, ..NamespaceOption::default() });
    };
    let host = berth.run_pod(pod_with(&berth, "host", on_host)).await;
    berth.run(&pod, sleeper("c")).await;

    let metrics = of_pod(&mut berth, &pod).await.metrics;
    let common = ["", &berth.cgroup_parent, "", &pod, "default", "one"];
    for metric in &metrics {
        assert_eq!(metric.label_values[..6], common, "{metric:?}");
    }
    assert!(value(&metrics, "container_memory_usage_bytes", &[]).unwrap() > 0);
    // The container and two pauses: both pods have the same parent.
    assert!(value(&metrics, "container_processes", &[]).unwrap() >= 3);
    assert!(value(&metrics, "container_network_receive_packets_total", &["eth0"]).is_some());
    assert_eq!(value(&metrics, "container_network_receive_bytes_total", &["lo"]), None);
    let metrics = of_pod(&mut berth, &host).await.metrics;
    assert!(values_of(&metrics, "container_network_receive_bytes_total").is_empty());

    let listed = list(&mut berth).await;
    assert_eq!(listed.len(), 2);
    assert_eq!(steady_series(&streamed(&mut berth).await), steady_series(&listed));
    berth.stop_pod(&host).await;
    let left: Vec<String> = list(&mut berth).await.into_iter().map(|found| found.pod_sandbox_id).collect();
    assert_eq!(left, [pod]);
    assert!(berth.clean().await.is_empty());
}

/// Returns how often the daemon has read from a file or socket (proc_pid_io(5)).
fn reads(berth: &Berth) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", berth.pid().as_raw_nonzero())).unwrap();
    let count = io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
    count.parse().unwrap()
}

/// Returns the reads of a request for metrics, and for the statistics of pods and of containers.
async fn reads_of_requests(berth: &mut Berth) -> [u64; 3] {
    let before = reads(berth);
    let metrics = list(berth).await.len();
    let with_metrics = reads(berth);
    let pods = berth.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest { filter: None }).await;
    let with_pods = reads(berth);
    let containers = berth.runtime.list_container_stats(ListContainerStatsRequest { filter: None }).await;
    let with_containers = reads(berth);
    let counts =
        [metrics, pods.unwrap().into_inner().stats.len(), containers.unwrap().into_inner().stats.len()];
    assert_eq!(counts, [metrics; 3]);
    [with_metrics - before, with_pods - with_metrics, with_containers - with_pods]
}

/// All pods of a test have the same parent cgroup.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_reads_no_more_for_a_pod_when_there_are_more_pods() {
    const STEP: usize = 6;
    let mut berth = Berth::start().await;
    let mut counts = Vec::new();
    for step in 0..3 {
        for number in step * STEP..(step + 1) * STEP {
            let pod = berth.run_pod(berth.pod_config(&format!("pod-{number}"))).await;
            // It has one process.
            berth.run(&pod, crate::support::container("c", &["sleep", "1000"])).await;
        }
        counts.push(reads_of_requests(&mut berth).await);
    }
    let [few, more, most] = counts[..] else { panic!("{counts:?}") };
    for request in 0..3 {
        let (first, second) = (more[request] - few[request], most[request] - more[request]);
        assert!(few[request] > 2 * u64::try_from(STEP).unwrap(), "{counts:?}");
        // Other threads read from sockets meanwhile.
        assert!(second < first + first / 10 + 10, "{counts:?}");
    }
    eprintln!("reads of requests for metrics, pod statistics, container statistics: {counts:?}");
    assert!(berth.clean().await.is_empty());
}
