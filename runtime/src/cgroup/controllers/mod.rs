//! The controllers of cgroups. Each file has the file names, limits and statistics of one controller, for version 1
//! and version 2 (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).
//!
//! * [`cpu`], [`memory`], [`pids`], [`hugetlb`], [`mod@io`], [`psi`]: counters and limits; [`usage`]: all of them together
//! * [`cpuset`], [`freezer`], [`devices`]
//! * [`io`]: reads and writes of block devices

pub(super) mod cpu;
mod cpuset;
pub(super) mod devices;
pub(super) mod freezer;
pub(super) mod hugetlb;
pub(super) mod io;
pub(super) mod memory;
mod pids;
pub(super) mod psi;
pub(super) mod usage;

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::Result;
use super::files::Reader;
use super::hierarchy::Hierarchy;
use super::limits::LimitWrite;

/// Returns the files that set the limits.
pub(super) fn limits(reader: &Reader<'_>, resources: &LinuxResources) -> Vec<LimitWrite> {
    let of_controllers = [memory::limits, cpu::limits, cpuset::limits, pids::limits, hugetlb::limits];
    of_controllers.into_iter().flat_map(|limits| limits(reader, resources)).collect()
}

/// Prepares a new folder of version 1, whose parent is `above`.
pub(super) fn inherit_v1(above: &Path, folder: &Path, hierarchy: &Hierarchy) -> Result<()> {
    if hierarchy.has("cpuset") { cpuset::inherit(above, folder) } else { Ok(()) }
}

/// Enables all controllers of a v2 folder for the folders below. If a controller cannot be enabled, the limit that
/// needs it fails later.
pub(super) fn enable_v2(folder: &Path) {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|other| other == controller) {
            let _refused = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{
        LinuxCpuBuilder, LinuxHugepageLimitBuilder, LinuxMemoryBuilder, LinuxPidsBuilder,
        LinuxResourcesBuilder,
    };

    use super::*;
    use crate::cgroup::files::with_files;
    use crate::cgroup::interface::Interface;

    fn files(interface: Interface, resources: &LinuxResources) -> Vec<(String, String)> {
        with_files(interface, &[], |reader| {
            let writes = limits(reader, resources).into_iter();
            writes.map(|write| (write.file.into_owned(), write.value)).collect()
        })
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn limits_are_translated_for_both_versions() {
        let pages = LinuxHugepageLimitBuilder::default().page_size("2MB").limit(4_i64).build().unwrap();
        let cpu = LinuxCpuBuilder::default().shares(1024_u64).quota(50_000_i64).cpus("0-1").mems("0");
        let resources = LinuxResourcesBuilder::default()
            .memory(LinuxMemoryBuilder::default().limit(1000_i64).swap(1500_i64).build().unwrap())
            .cpu(cpu.build().unwrap())
            .pids(LinuxPidsBuilder::default().limit(100_i64).build().unwrap())
            .hugepage_limits(vec![pages])
            .build()
            .unwrap();
        assert_eq!(
            files(Interface::V1, &resources),
            pairs(&[
                ("memory.limit_in_bytes", "1000"),
                ("memory.memsw.limit_in_bytes", "1500"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "100"),
                ("hugetlb.2MB.limit_in_bytes", "4"),
            ])
        );
        assert_eq!(
            files(Interface::V2, &resources),
            pairs(&[
                ("memory.max", "1000"),
                ("memory.swap.max", "500"),
                ("cpu.weight", "39"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0-1"),
                ("cpuset.mems", "0"),
                ("pids.max", "100"),
                ("hugetlb.2MB.max", "4"),
            ])
        );
        for interface in [Interface::V1, Interface::V2] {
            assert!(files(interface, &LinuxResourcesBuilder::default().build().unwrap()).is_empty());
        }
    }
}
