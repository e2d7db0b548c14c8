//! The place of a scope in the shutdown of the node: systemd stops containers first, with the time that they need, then the
//! pause of their pod, then the daemon.

use std::time::Duration;

use super::properties::Property;

/// The annotation with which the kubelet passes `terminationGracePeriodSeconds` of a pod to its containers
/// (pkg/kubelet/kuberuntime/labels.go).
const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";

/// The time for containers of other clients, as in docker.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// The time for a pause, which has nothing to do.
const GRACE_OF_PAUSE: Duration = Duration::from_secs(2);

/// The unit of the daemon if it does not run in one.
const DEFAULT_UNIT: &str = "berth.service";

/// The order and the time limit of a scope in a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutdownOrder {
    /// Units that stop after the scope.
    before: Vec<String>,
    grace: Duration,
}

impl ShutdownOrder {
    /// The order of a pod's pause.
    #[must_use]
    pub fn of_pod() -> Self {
        Self { before: vec![daemon_unit()], grace: GRACE_OF_PAUSE }
    }

    /// The order of a container with these annotations, in a pod with this id.
    #[must_use]
    pub fn of_container<'a>(pod: &str, annotation: impl Fn(&str) -> Option<&'a str>) -> Self {
        let seconds = annotation(GRACE_PERIOD).and_then(|seconds| seconds.parse().ok());
        let grace = seconds.map_or(DEFAULT_GRACE, Duration::from_secs);
        Self { before: vec![daemon_unit(), super::scope_name(pod)], grace }
    }

    /// systemd stops units in the reverse order of `After` (systemd.unit(5)). Without default dependencies it would not
    /// stop the scope at all, but kill its processes at the very end of the shutdown.
    pub(super) fn properties(&self) -> [Property; 3] {
        let microseconds = u64::try_from(self.grace.as_micros()).unwrap_or(u64::MAX);
        [
            ("DefaultDependencies", true.into()),
            ("After", self.before.clone().into()),
            ("TimeoutStopUSec", microseconds.into()),
        ]
    }
}

/// The unit in which the daemon runs.
fn daemon_unit() -> String {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    unit_in(&cgroups).unwrap_or(DEFAULT_UNIT).to_owned()
}

/// Finds the service in the text of /proc/self/cgroup (cgroups(7)).
fn unit_in(cgroups: &str) -> Option<&str> {
    let paths = cgroups.lines().filter_map(|line| {
        line.strip_prefix("0::").or_else(|| line.split_once(":name=systemd:").map(|(_, path)| path))
    });
    paths.flat_map(|path| path.split('/')).find(|part| part.ends_with(".service"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_of_the_daemon_is_found() {
        assert_eq!(unit_in("0::/system.slice/berth.service\n"), Some("berth.service"));
        let v1 = "3:cpu:/a.service\n1:name=systemd:/system.slice/node-runtime.service/sub\n0::/\n";
        assert_eq!(unit_in(v1), Some("node-runtime.service"));
        assert_eq!(unit_in("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn a_container_has_the_grace_period_of_its_pod() {
        let with = |value: Option<&'static str>| {
            ShutdownOrder::of_container("p1", |key| value.filter(|_| key == GRACE_PERIOD))
        };
        assert_eq!(with(Some("45")).grace, Duration::from_secs(45));
        assert_eq!(with(Some("soon")).grace, DEFAULT_GRACE);
        assert_eq!(with(None).grace, DEFAULT_GRACE);
        assert_eq!(with(None).before.last().map(String::as_str), Some("berth-p1.scope"));
    }
}
