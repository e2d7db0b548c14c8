//! The number of processes and threads (Documentation/admin-guide/cgroup-v1/pids.rst, cgroup-v2.rst). Both versions have
//! the same files.

use oci_spec::runtime::LinuxResources;

use crate::cgroup::files::Reader;
use crate::cgroup::limits::{LimitWrite, given, max_or};

const CONTROLLER: &str = "pids";
const MAX: &str = "pids.max";

/// Reads the number of processes and threads.
pub(super) fn usage(reader: &Reader<'_>) -> Option<u64> {
    reader.number(CONTROLLER, "pids.current")
}

/// Reads their limit.
pub(super) fn max(reader: &Reader<'_>) -> Option<u64> {
    reader.number(CONTROLLER, MAX)
}

/// Returns the file that sets the limit.
pub(super) fn limits(_: &Reader<'_>, resources: &LinuxResources) -> Vec<LimitWrite> {
    let limit = given(resources.pids().as_ref().map(|pids| pids.limit()));
    let write = |limit| LimitWrite::new("pids.limit", CONTROLLER, MAX, max_or(limit));
    limit.map(write).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::files::with_files;
    use crate::cgroup::interface::Interface;

    #[test]
    fn counters_of_both_versions() {
        for interface in [Interface::V1, Interface::V2] {
            let found =
                |files: &[(&str, &str)]| with_files(interface, files, |reader| (usage(reader), max(reader)));
            assert_eq!(found(&[("pids.current", "3\n"), ("pids.max", "max\n")]), (Some(3), None));
            assert_eq!(found(&[("pids.current", "3\n"), ("pids.max", "100\n")]), (Some(3), Some(100)));
            assert_eq!(found(&[]), (None, None));
        }
    }
}
