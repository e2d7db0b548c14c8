//! The values that are read from the daemon's state when metrics are requested.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;

use super::sources::ScrapeSources;
use crate::store::{ContainerState, PodState};

/// An operation that has been at one step for longer than this counts as stalled. Most steps take milliseconds.
const STALLED: Duration = Duration::from_secs(30);

/// Reads the state of one daemon.
#[derive(Debug)]
pub(super) struct Scrape {
    sources: ScrapeSources,
}

impl Scrape {
    pub(super) fn new(sources: ScrapeSources) -> Self {
        Self { sources }
    }
}

type LabelPairs = Vec<(&'static str, &'static str)>;

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        self.build(&mut encoder)?;
        self.objects(&mut encoder)?;
        self.operations(&mut encoder)?;
        self.transfers(&mut encoder)
    }
}

impl Scrape {
    fn build(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let driver = if self.sources.uses_systemd { "systemd" } else { "cgroupfs" };
        let cgroup = if self.sources.cgroups.is_v2() { "2" } else { "1" };
        let labels = vec![
            ("version", env!("CARGO_PKG_VERSION")),
            ("architecture", std::env::consts::ARCH),
            ("cgroup_version", cgroup),
            ("cgroup_driver", driver),
        ];
        let info = Info::new(labels);
        let help = "Version of berth, and the cgroups that it uses";
        info.encode(encoder.encode_descriptor("berth_build", help, None, info.metric_type())?)
    }

    fn objects(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut pods = BTreeMap::from(["ready", "lost", "stopping", "stopped"].map(|state| (state, 0_u32)));
        let mut keepers = 0_u32;
        for pod in self.sources.pods.store.pods() {
            let state = match pod.state() {
                // A pod that is being created is not in the store.
                PodState::Creating => continue,
                PodState::Ready { .. } => "ready",
                PodState::Lost => "lost",
                PodState::NotReady { released: false } => "stopping",
                PodState::NotReady { released: true } => "stopped",
            };
            *pods.entry(state).or_default() += 1;
            keepers += u32::from(pod.link().is_some());
        }
        let mut containers = BTreeMap::from(["created", "running", "exited"].map(|state| (state, 0_u32)));
        for container in self.sources.pods.store.containers() {
            let state = match container.state() {
                ContainerState::Creating => continue,
                ContainerState::Created { .. } => "created",
                ContainerState::Running { .. } => "running",
                ContainerState::Exited(_) => "exited",
            };
            *containers.entry(state).or_default() += 1;
        }
        let by_state = |counts: BTreeMap<&'static str, u32>| {
            counts.into_iter().map(|(state, count)| (vec![("state", state)], f64::from(count)))
        };
        gauges(encoder, "berth_pods", "Pods by state", by_state(pods))?;
        gauges(encoder, "berth_containers", "Containers by state", by_state(containers))?;
        gauges(
            encoder,
            "berth_keepers",
            "Keepers that are followed",
            [(LabelPairs::new(), f64::from(keepers))],
        )
    }

    /// Encodes the operations in flight by their current step. Operations at the same step are added up.
    fn operations(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut steps: BTreeMap<(&'static str, &'static str), (u32, u32, Duration)> = BTreeMap::new();
        for current in self.sources.pods.operations.current_steps() {
            let (running, stalled, longest) = steps.entry((current.rpc, current.step)).or_default();
            *running += 1;
            *stalled += u32::from(current.time > STALLED);
            *longest = current.time.max(*longest);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let labels = |(operation, step): &(&'static str, &'static str)| {
            vec![("operation", *operation), ("step", *step)]
        };
        let running = steps.iter().map(|(step, (running, _, _))| (labels(step), f64::from(*running)));
        gauges(encoder, "berth_operations_at_step", "Operations in flight by their current step", running)?;
        let stalled = steps.iter().filter(|(_, (_, stalled, _))| *stalled > 0);
        let stalled = stalled.map(|(step, (_, stalled, _))| (labels(step), f64::from(*stalled)));
        let help = "Operations in flight that have been at their current step for more than 30 seconds";
        gauges(encoder, "berth_operations_stalled", help, stalled)?;
        let since =
            steps.iter().map(|(step, (_, _, time))| (labels(step), now.saturating_sub(*time).as_secs_f64()));
        let help =
            "Time at which the longest of the operations at a step has begun it, since unix epoch in seconds";
        gauges(encoder, "berth_operations_step_start_time_seconds", help, since)
    }

    fn transfers(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let transferred = self.sources.images.transferred();
        let bytes = ConstCounter::new(transferred.bytes);
        let help = "Received bytes of layers, compressed as the registry sends them";
        let name = "berth_image_pull_received_bytes";
        bytes.encode(encoder.encode_descriptor(name, help, None, bytes.metric_type())?)?;
        let help = "Layers of pulled images: fetched, or reused because the node has them";
        let name = "berth_image_pull_layers";
        let mut layers = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (source, count) in [("fetched", transferred.fetched), ("reused", transferred.reused)] {
            ConstCounter::new(count).encode(layers.encode_family(&[("source", source)])?)?;
        }
        let images = u32::try_from(self.sources.images.list().len()).unwrap_or(u32::MAX);
        gauges(encoder, "berth_images", "Images in the store", [(LabelPairs::new(), f64::from(images))])
    }
}

fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (LabelPairs, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        match labels.is_empty() {
            true => ConstGauge::new(value).encode(metric.encode_family(&NO_LABELS)?)?,
            false => ConstGauge::new(value).encode(metric.encode_family(&labels)?)?,
        }
    }
    Ok(())
}

const NO_LABELS: [(&str, &str); 0] = [];
