//! The daemon's own metrics: counters, and durations as histograms. Parts of the daemon record here what they have done;
//! [`crate::exposition`] serves it. Recording costs less than a microsecond, so it does not depend on the configuration.

use std::time::Duration;

use berth_cni::{PluginCommand, PluginObserver};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;

/// The upper bounds of durations in seconds, from the fastest steps to the kubelet's time limit of a call.
const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// The upper bounds of the durations of pulls in seconds.
const PULL_BOUNDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 180.0, 600.0];

/// A call by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: String,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    operation: String,
    code: String,
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabels {
    operation: &'static str,
    step: &'static str,
}

/// A command of a CNI plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PluginLabels {
    plugin: String,
    command: &'static str,
}

/// The result of a pull.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    result: &'static str,
}

/// The action of recovery on an object of an earlier daemon.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RecoveryLabels {
    object: &'static str,
    outcome: &'static str,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullResult {
    /// The image is in the store.
    Success,
    /// The pull failed.
    Failure,
    /// The client has cancelled the pull.
    Cancelled,
}

impl PullResult {
    const ALL: [Self; 3] = [Self::Success, Self::Failure, Self::Cancelled];

    fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelled => "cancelled",
        }
    }
}

/// The action of recovery on a pod or container of an earlier daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It runs, and its keeper is followed.
    Followed,
    /// It had ended before, or it has ended without a daemon.
    Ended,
    /// Its creation was interrupted, or it has no valid record: it is removed.
    Removed,
}

impl Recovered {
    const ALL: [Self; 3] = [Self::Followed, Self::Ended, Self::Removed];

    fn name(self) -> &'static str {
        match self {
            Self::Followed => "followed",
            Self::Ended => "ended",
            Self::Removed => "removed",
        }
    }
}

/// The kinds of objects that recovery handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecoveredObject {
    /// A pod.
    Pod,
    /// A container.
    Container,
}

impl RecoveredObject {
    const ALL: [Self; 2] = [Self::Pod, Self::Container];

    fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Container => "container",
        }
    }
}

type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

fn durations() -> Histogram {
    Histogram::new(BOUNDS)
}

fn pull_durations() -> Histogram {
    Histogram::new(PULL_BOUNDS)
}

/// The counters and durations of one daemon. Clones share them.
#[derive(Clone, Debug)]
pub struct Instruments {
    calls: Family<OperationLabels, Counter>,
    call_errors: Family<FailureLabels, Counter>,
    cancelled_calls: Family<OperationLabels, Counter>,
    calls_in_flight: Family<OperationLabels, Gauge>,
    call_durations: Durations<OperationLabels>,
    step_durations: Durations<StepLabels>,
    plugin_durations: Durations<PluginLabels>,
    plugin_errors: Family<PluginLabels, Counter>,
    pulls: Family<PullLabels, Counter>,
    pull_durations: Durations<PullLabels>,
    out_of_memory: Counter,
    oom_kills: Counter,
    lost_keepers: Counter,
    recovered: Family<RecoveryLabels, Gauge>,
    recovery_time: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Default for Instruments {
    /// Creates instruments at zero. Series with a known set of labels exist from the start, so that a rate can be computed
    /// from their first increase.
    fn default() -> Self {
        let new = Self {
            calls: Family::default(),
            call_errors: Family::default(),
            cancelled_calls: Family::default(),
            calls_in_flight: Family::default(),
            call_durations: Family::new_with_constructor(durations),
            step_durations: Family::new_with_constructor(durations),
            plugin_durations: Family::new_with_constructor(durations),
            plugin_errors: Family::default(),
            pulls: Family::default(),
            pull_durations: Family::new_with_constructor(pull_durations),
            out_of_memory: Counter::default(),
            oom_kills: Counter::default(),
            lost_keepers: Counter::default(),
            recovered: Family::default(),
            recovery_time: Gauge::default(),
        };
        for result in PullResult::ALL {
            drop(new.pulls.get_or_create(&PullLabels { result: result.name() }));
        }
        for object in RecoveredObject::ALL {
            for outcome in Recovered::ALL {
                drop(
                    new.recovered
                        .get_or_create(&RecoveryLabels { object: object.name(), outcome: outcome.name() }),
                );
            }
        }
        new
    }
}

impl Instruments {
    /// A call has begun.
    pub fn call_began(&self, rpc: &str) {
        self.calls_in_flight.get_or_create(&OperationLabels { operation: rpc.to_owned() }).inc();
    }

    /// A call was answered with a code after a time.
    pub fn call_answered(&self, rpc: &str, code: Code, time: Duration) {
        let operation = OperationLabels { operation: rpc.to_owned() };
        self.calls_in_flight.get_or_create(&operation).dec();
        self.calls.get_or_create(&operation).inc();
        self.call_durations.get_or_create(&operation).observe(time.as_secs_f64());
        drop(self.cancelled_calls.get_or_create(&operation));
        if code != Code::Ok {
            let failure = FailureLabels { operation: rpc.to_owned(), code: format!("{code:?}") };
            self.call_errors.get_or_create(&failure).inc();
        }
    }

    /// The client has cancelled a call.
    pub fn call_cancelled(&self, rpc: &str) {
        let operation = OperationLabels { operation: rpc.to_owned() };
        self.calls_in_flight.get_or_create(&operation).dec();
        self.calls.get_or_create(&operation).inc();
        self.cancelled_calls.get_or_create(&operation).inc();
    }

    /// An operation has left a step.
    pub fn step_ended(&self, operation: &'static str, step: &'static str, time: Duration) {
        self.step_durations.get_or_create(&StepLabels { operation, step }).observe(time.as_secs_f64());
    }

    /// A pull has ended.
    pub fn pull_ended(&self, result: PullResult, time: Duration) {
        let pull = PullLabels { result: result.name() };
        self.pulls.get_or_create(&pull).inc();
        self.pull_durations.get_or_create(&pull).observe(time.as_secs_f64());
    }

    /// The kernel has killed a container for lack of memory.
    pub fn container_out_of_memory(&self) {
        self.out_of_memory.inc();
    }

    /// The kernel has killed processes of a container for lack of memory.
    pub fn oom_kills(&self, kills: u64) {
        self.oom_kills.inc_by(kills);
    }

    /// The keeper of a pod that was not being released has ended.
    pub fn keeper_lost(&self) {
        self.lost_keepers.inc();
    }

    /// Recovery has decided about an object of an earlier daemon.
    pub fn recovered(&self, object: RecoveredObject, outcome: Recovered) {
        let labels = RecoveryLabels { object: object.name(), outcome: outcome.name() };
        self.recovered.get_or_create(&labels).inc();
    }

    /// The daemon can answer after this time of recovery.
    pub fn recovery_took(&self, time: Duration) {
        self.recovery_time.set(time.as_secs_f64());
    }

    /// Registers everything under its name.
    pub fn register(&self, registry: &mut Registry) {
        let to = registry;
        to.register("berth_operations", "Ended calls by RPC", self.calls.clone());
        to.register("berth_operations_errors", "Failed calls by RPC and gRPC code", self.call_errors.clone());
        let cancelled = self.cancelled_calls.clone();
        to.register("berth_operations_cancelled", "Calls that their client cancelled, by RPC", cancelled);
        let in_flight = self.calls_in_flight.clone();
        to.register("berth_operations_in_flight", "Calls in flight by RPC", in_flight);
        let calls = self.call_durations.clone();
        to.register("berth_operations_duration_seconds", "Duration of answered calls by RPC", calls);
        let steps = self.step_durations.clone();
        to.register("berth_step_duration_seconds", "Duration of each step of an operation", steps);
        let plugins = self.plugin_durations.clone();
        to.register("berth_cni_plugin_duration_seconds", "Duration of calls of CNI plugins", plugins);
        let errors = self.plugin_errors.clone();
        to.register("berth_cni_plugin_errors", "Failed calls of CNI plugins", errors);
        to.register("berth_image_pulls", "Ended image pulls by result", self.pulls.clone());
        let pulls = self.pull_durations.clone();
        to.register("berth_image_pull_duration_seconds", "Duration of image pulls by result", pulls);
        let killed = self.out_of_memory.clone();
        to.register("berth_containers_oom", "Containers that ended by a lack of memory", killed);
        let kills = self.oom_kills.clone();
        to.register(
            "berth_container_oom_kills",
            "Processes of containers that the kernel killed for lack of memory",
            kills,
        );
        let lost = self.lost_keepers.clone();
        to.register("berth_keepers_lost", "Keepers that ended while their pod was in use", lost);
        let recovered = self.recovered.clone();
        let help = "Objects of an earlier daemon that this one found at its start, by outcome";
        to.register("berth_recovered_objects", help, recovered);
        let help = "Time from the start of recovery until the daemon could answer";
        to.register("berth_recovery_duration_seconds", help, self.recovery_time.clone());
    }
}

impl PluginObserver for Instruments {
    fn called(&self, plugin: &str, command: PluginCommand, time: Duration, succeeded: bool) {
        let labels = PluginLabels { plugin: plugin.to_owned(), command: command.name() };
        self.plugin_durations.get_or_create(&labels).observe(time.as_secs_f64());
        let errors = self.plugin_errors.get_or_create(&labels);
        if !succeeded {
            errors.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(instruments: &Instruments) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        instruments.register(&mut registry);
        prometheus_client::encoding::prometheus_text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn calls_are_counted_by_their_end() {
        let instruments = Instruments::default();
        for _ in 0..3 {
            instruments.call_began("Version");
        }
        instruments.call_answered("Version", Code::Ok, Duration::from_millis(3));
        instruments.call_answered("Version", Code::NotFound, Duration::from_secs(3));
        instruments.call_cancelled("Version");
        let text = text(&instruments);
        for line in [
            "berth_operations_total{operation=\"Version\"} 3\n",
            "berth_operations_errors_total{operation=\"Version\",code=\"NotFound\"} 1\n",
            "berth_operations_cancelled_total{operation=\"Version\"} 1\n",
            "berth_operations_in_flight{operation=\"Version\"} 0\n",
            "berth_operations_duration_seconds_count{operation=\"Version\"} 2\n",
            "berth_operations_duration_seconds_bucket{operation=\"Version\",le=\"0.005\"} 1\n",
            "berth_image_pulls_total{result=\"failure\"} 0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }
}
