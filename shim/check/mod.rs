//! Finds out what this host supports by trying it, in threads and namespaces that end afterwards. The host is never
//! changed. `berth check` shows the result as a table, verbose Status as JSON under "host". `berth check` also reads the
//! settings of the node.
//!
//! * [`files`]: what procfs and sysfs report (kernel, cgroups, seccomp, LSMs, capabilities)
//! * [`namespaces`]: each kind, created in a separate thread
//! * [`filesystems`]: the mount API, overlayfs, ID-mapped mounts
//! * [`network`]: nftables and devices, created in a separate network namespace
//! * [`node`]: settings of the node: sysctls, swap, disks, the clock, other runtimes
//! * [`table`]: the table of `berth check`

pub mod files;
pub mod filesystems;
pub mod namespaces;
pub mod network;
pub mod node;
pub mod table;

use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;

use crate::config::Config;

/// Whether the host has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// The host has it.
    Yes,
    /// The host does not have it.
    No,
    /// It cannot be determined.
    Unknown,
}

impl From<bool> for Availability {
    fn from(found: bool) -> Self {
        if found { Self::Yes } else { Self::No }
    }
}

/// One feature of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostFeature {
    /// The name of the feature.
    pub what: String,
    /// Whether the host has it.
    pub found: Availability,
    /// The detected value, or why the feature is missing.
    pub detail: String,
    /// Whether berth requires it.
    pub required: bool,
    /// The functions that do not work without it.
    pub without: &'static str,
    /// The command that makes the feature available, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl HostFeature {
    fn new(what: impl Into<String>, found: impl Into<Availability>, detail: impl Into<String>) -> Self {
        let (what, found, detail) = (what.into(), found.into(), detail.into());
        Self { what, found, detail, required: false, without: "", fix: None }
    }

    /// Creates a row from the result of a trial.
    fn tried(what: impl Into<String>, trial: Result<String, String>) -> Self {
        match trial {
            Ok(detail) => Self::new(what, Availability::Yes, detail),
            Err(why) => Self::new(what, Availability::No, why),
        }
    }

    fn required(self) -> Self {
        Self { required: true, without: "berth does not run", ..self }
    }

    fn without(self, without: &'static str) -> Self {
        Self { without, ..self }
    }

    /// Adds the command that makes the feature available. It is dropped if the feature is available.
    fn fix(self, command: impl Into<String>) -> Self {
        let fix = (self.found == Availability::No).then(|| command.into());
        Self { fix, ..self }
    }

    /// Returns the command that makes the feature available, if the feature is missing and there is one.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    /// Whether berth requires the feature and it is missing.
    #[must_use]
    pub fn stops_berth(&self) -> bool {
        self.required && self.found == Availability::No
    }
}

/// The features of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// Whether all required features are available.
    pub fit: bool,
    /// One row for each feature.
    pub rows: Vec<HostFeature>,
}

impl HostReport {
    /// Adds the settings of the node. They change at any time, and are not part of the host's features.
    #[must_use]
    pub fn with_node(mut self, config: &Config) -> Self {
        self.rows.extend(node::rows(config));
        self
    }

    /// Returns the rows that have a command that fixes them.
    pub fn fixable(&self) -> impl Iterator<Item = &HostFeature> {
        self.rows.iter().filter(|row| row.fix.is_some())
    }

    /// Lists the required features that are missing; none if all are available.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let missing: Vec<_> = self
            .rows
            .iter()
            .filter(|row| row.stops_berth())
            .map(|row| format!("{} ({})", row.what, row.detail))
            .collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

/// Runs all checks. Takes some tens of milliseconds and blocks.
///
/// `program` is the berth binary. It is started once to try an operation that only a single-threaded process may do.
#[must_use]
pub fn probe(program: Option<PathBuf>) -> HostReport {
    let mut rows = vec![files::kernel()];
    rows.extend(files::cgroups());
    rows.extend(namespaces::rows(program));
    rows.extend(filesystems::rows());
    rows.push(files::seccomp());
    rows.extend(files::security_modules());
    rows.extend(files::capabilities());
    rows.extend(network::rows());
    HostReport { fit: !rows.iter().any(HostFeature::stops_berth), rows }
}

/// Returns the result of the first probe. The features of a host do not change under a running daemon.
pub fn host() -> &'static HostReport {
    static HOST: OnceLock<HostReport> = OnceLock::new();
    HOST.get_or_init(|| probe(std::env::current_exe().ok()))
}

/// Runs a trial in a separate thread. The namespaces that it creates end with the thread.
fn in_thread<T: Send + 'static>(
    trial: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let thread = std::thread::Builder::new().name("berth-check".to_owned()).spawn(trial);
    let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("the trial panicked".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_required_and_missing_stops_berth() {
        let row = |found: Availability| HostFeature::new("x", found, "seen");
        assert!(row(Availability::No).required().stops_berth());
        assert!(!row(Availability::Unknown).required().stops_berth());
        assert!(!row(Availability::No).without("less").stops_berth());
        let report =
            HostReport { fit: false, rows: vec![row(Availability::Yes), row(Availability::No).required()] };
        assert_eq!(report.missing().as_deref(), Some("x (seen)"));
    }

    #[test]
    fn a_trial_that_panics_fails() {
        assert!(in_thread::<()>(|| panic!("on purpose")).is_err());
    }

    /// Checks only what a trial could leave: other tests change the host's mounts and links at the same time.
    #[test]
    fn nothing_of_a_trial_is_left() {
        let report = probe(None);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("lowerdir=/proc/lower"), "{mounts}");
        assert!(
            !mounts.lines().any(|line| line.contains(" /proc ") && line.contains(" - tmpfs ")),
            "{mounts}"
        );
        for link in std::fs::read_dir("/sys/class/net").unwrap() {
            let index = std::fs::read_to_string(link.unwrap().path().join("ifindex")).unwrap_or_default();
            assert_ne!(index.trim(), "1000");
        }
        for what in ["kernel", "cgroup", "network namespace", "overlayfs", "nftables", "veth device"] {
            assert_eq!(report.rows.iter().filter(|row| row.what == what).count(), 1, "{what}: {report:?}");
        }
        assert!(report.rows.iter().all(|row| !row.what.is_empty() && !row.without.is_empty()), "{report:?}");
    }
}
