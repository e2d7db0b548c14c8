//! Collects the metrics of one container or pod.

use berth_proto::v1::{Metric, UInt64Value};

use super::descriptors::{COMMON_LABELS, Descriptor};

/// The values of the labels that every metric has.
#[derive(Clone, Debug, Default)]
pub(super) struct SeriesLabels {
    /// The container's name; empty for a pod.
    pub(super) container: String,
    /// The path of the cgroup.
    pub(super) id: String,
    /// The name of the image; empty for a pod.
    pub(super) image: String,
    /// The id of the container or pod sandbox.
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) pod: String,
}

/// The metrics of one container or pod.
#[derive(Debug)]
pub(super) struct Collector {
    labels: [String; COMMON_LABELS.len()],
    /// Nanoseconds since the epoch.
    at: i64,
    metrics: Vec<Metric>,
}

impl Collector {
    /// Creates a collector for metrics that are measured at `at`.
    pub(super) fn new(labels: SeriesLabels, at: i64) -> Self {
        // In the order of `COMMON_LABELS`.
        let SeriesLabels { container, id, image, name, namespace, pod } = labels;
        Self { labels: [container, id, image, name, namespace, pod], at, metrics: Vec::new() }
    }

    /// Adds a metric, if it has a value.
    pub(super) fn add(&mut self, descriptor: &Descriptor<0>, value: impl Into<Option<u64>>) {
        self.add_with(descriptor, [], value);
    }

    /// Adds a metric with the values of its additional labels, if it has a value.
    pub(super) fn add_with<const N: usize>(
        &mut self,
        descriptor: &Descriptor<N>,
        labels: [&str; N],
        value: impl Into<Option<u64>>,
    ) {
        let Some(value) = value.into() else { return };
        let additional = labels.into_iter().map(str::to_owned);
        self.metrics.push(Metric {
            name: descriptor.name.to_owned(),
            timestamp: self.at,
            metric_type: descriptor.kind.into(),
            label_values: self.labels.iter().cloned().chain(additional).collect(),
            value: Some(UInt64Value { value }),
        });
    }

    /// Returns the collected metrics.
    pub(super) fn finish(self) -> Vec<Metric> {
        self.metrics
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::MetricType;

    use super::super::descriptors::{DEVICE_BYTES, OOM_KILLS, SPEC_CPU_QUOTA};
    use super::*;

    #[test]
    fn labels_are_in_the_order_of_the_descriptor() {
        let text = |text: &str| text.to_owned();
        let labels = SeriesLabels {
            container: text("c"),
            id: text("/pod/c"),
            image: text("busybox"),
            name: text("0123"),
            namespace: text("default"),
            pod: text("p"),
        };
        let mut collector = Collector::new(labels, 7);
        collector.add(&OOM_KILLS, 3);
        collector.add(&SPEC_CPU_QUOTA, None);
        collector.add_with(&DEVICE_BYTES, ["/dev/sda", "8", "0", "Read"], 4096);
        let metrics = collector.finish();
        let common = ["c", "/pod/c", "busybox", "0123", "default", "p"];
        assert_eq!(metrics.len(), 2);
        assert_eq!(metrics[0].label_values, common);
        assert_eq!((metrics[0].timestamp, metrics[0].value), (7, Some(UInt64Value { value: 3 })));
        assert_eq!(metrics[0].metric_type(), MetricType::Counter);
        assert_eq!(metrics[1].label_values[..6], common);
        assert_eq!(metrics[1].label_values[6..], ["/dev/sda", "8", "0", "Read"]);
    }
}
