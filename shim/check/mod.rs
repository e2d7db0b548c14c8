//! What this host offers, found by trying: in threads and namespaces that are gone afterwards, never changing the host.
//! `berth check` shows it as a table, verbose Status as JSON under "host".
//!
//! * [`files`]: what procfs and sysfs tell (kernel, cgroups, seccomp, LSMs, capabilities)
//! * [`namespaces`]: each kind, made in a thread of its own
//! * [`filesystems`]: the mount API, overlayfs, idmapped mounts
//! * [`netlink`], [`network`]: nftables and devices, made in a network namespace of their own
//! * [`table`]: how it is shown

pub mod files;
pub mod filesystems;
pub mod namespaces;
pub mod netlink;
pub mod network;
pub mod table;

use std::path::PathBuf;
use std::sync::OnceLock;

use serde::Serialize;

/// Whether the host has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    /// It has.
    Yes,
    /// It has not.
    No,
    /// It cannot be told.
    Unknown,
}

impl From<bool> for Found {
    fn from(found: bool) -> Self {
        if found { Self::Yes } else { Self::No }
    }
}

/// One thing that a host may have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// Whether it is there.
    pub found: Found,
    /// What was seen, or why it is not there.
    pub detail: String,
    /// berth does not run without it.
    pub required: bool,
    /// What berth does without it.
    pub without: &'static str,
}

impl Row {
    fn new(what: impl Into<String>, found: impl Into<Found>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), found: found.into(), detail: detail.into(), required: false, without: "" }
    }

    /// From a trial: what it saw, or why it failed.
    fn tried(what: impl Into<String>, trial: Result<String, String>) -> Self {
        match trial {
            Ok(detail) => Self::new(what, Found::Yes, detail),
            Err(why) => Self::new(what, Found::No, why),
        }
    }

    fn required(self) -> Self {
        Self { required: true, without: "berth does not run", ..self }
    }

    fn without(self, without: &'static str) -> Self {
        Self { without, ..self }
    }

    /// berth needs it, and it is not there.
    #[must_use]
    pub fn stops_berth(&self) -> bool {
        self.required && self.found == Found::No
    }
}

/// What a host offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// Everything that is required is there.
    pub fit: bool,
    /// Each thing.
    pub rows: Vec<Row>,
}

impl HostReport {
    /// What is missing that is required, in a sentence; none if nothing is.
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

/// Tries everything. Takes some tens of milliseconds; blocks.
///
/// `program` is the berth binary, which is started once to try what only a process with a single thread may.
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
    HostReport { fit: !rows.iter().any(Row::stops_berth), rows }
}

/// What was found when it was first asked for: a host does not change under a running daemon.
pub fn host() -> &'static HostReport {
    static HOST: OnceLock<HostReport> = OnceLock::new();
    HOST.get_or_init(|| probe(std::env::current_exe().ok()))
}

/// Runs a trial in a thread of its own, which takes the namespaces that it makes with it.
fn in_thread<T: Send + 'static>(
    trial: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let thread = std::thread::Builder::new().name("berth-check".to_owned()).spawn(trial);
    let thread = thread.map_err(|error| format!("start a thread: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("the trial itself failed".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_required_and_missing_stops_berth() {
        let row = |found: Found| Row::new("x", found, "seen");
        assert!(row(Found::No).required().stops_berth());
        assert!(!row(Found::Unknown).required().stops_berth());
        assert!(!row(Found::No).without("less").stops_berth());
        let report = HostReport { fit: false, rows: vec![row(Found::Yes), row(Found::No).required()] };
        assert_eq!(report.missing().as_deref(), Some("x (seen)"));
    }

    #[test]
    fn a_trial_that_panics_is_a_trial_that_failed() {
        assert!(in_thread::<()>(|| panic!("on purpose")).is_err());
    }

    /// Only what a trial would leave is looked at: other tests change the host's mounts and links meanwhile.
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
