//! Metrics of pods and containers for Prometheus: ListMetricDescriptors, ListPodSandboxMetrics and
//! StreamPodSandboxMetrics. The kubelet serves them at `/metrics/cadvisor` with the names and labels of cAdvisor
//! (feature gate `PodAndContainerStatsFromCRI`). They are read on request, never in the background.
//!
//! * [`descriptors`]: the table of all metrics
//! * [`collector`]: collects the metrics of one container or pod with their labels
//! * [`pod`], [`container`]: the metrics of a pod and of a container
//! * [`cgroup`], [`process`], [`filesystem`], [`log`], [`network`]: the sources of values

mod cgroup;
mod collector;
mod container;
mod descriptors;
mod filesystem;
mod log;
mod network;
mod pod;
mod process;

pub use descriptors::list_metric_descriptors;
pub use pod::list_pod_sandbox_metrics;
