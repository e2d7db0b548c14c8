//! Translates resources of the OCI spec to the files of cgroup v1 and v2 (Documentation/admin-guide/cgroup-v1,
//! cgroup-v2.rst).

use std::fs;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::change::Change;
use super::{CgroupError, Result};

/// A file to write.
struct LimitWrite {
    limit: &'static str,
    controller: &'static str,
    file: String,
    value: String,
}

impl LimitWrite {
    /// Returns whether this is a limit of 0 huge pages. The kubelet sends it for every page size, also on hosts
    /// that have no such pages.
    fn is_zero_hugepages(&self) -> bool {
        self.limit == "hugepageLimits" && self.value == "0"
    }

    fn no_controller(&self) -> CgroupError {
        CgroupError::NoController { limit: self.limit, controller: self.controller }
    }
}

fn write(
    limit: &'static str,
    controller: &'static str,
    file: impl Into<String>,
    value: impl ToString,
) -> LimitWrite {
    LimitWrite { limit, controller, file: file.into(), value: value.to_string() }
}

/// Sets the limits of v1, all or none. `folder` returns the cgroup's folder of a controller.
pub(super) fn apply_v1<'f>(
    folder: impl Fn(&str) -> Option<&'f Path>,
    resources: &LinuxResources,
) -> Result<Change> {
    let mut writes = v1(resources);
    if let Some(memory) = folder("memory") {
        order_memory(&mut writes, memory);
    }
    let mut located = Vec::new();
    for write in writes {
        match folder(write.controller) {
            Some(folder) => located.extend(locate(folder, write)?),
            None if write.is_zero_hugepages() => {}
            None => return Err(write.no_controller()),
        }
    }
    apply(located)
}

/// Writes all files, or undoes the writes.
fn apply(located: Vec<LocatedWrite>) -> Result<Change> {
    let mut change = Change::default();
    match write_all(&mut change, located) {
        Ok(()) => Ok(change),
        Err(error) => {
            let undo_errors = change.undo();
            Err(if undo_errors.is_empty() {
                error
            } else {
                CgroupError::UndoFailed { error: Box::new(error), undo_errors }
            })
        }
    }
}

fn write_all(change: &mut Change, located: Vec<LocatedWrite>) -> Result<()> {
    let mut again = None;
    for write in located {
        match write.put(change) {
            // With the former quota the new period can exceed the limit of the cgroup above. It is set again after
            // the quota.
            Err(_) if write.limit == "cpu.period" => again = Some(write),
            done => done?,
        }
    }
    again.map_or(Ok(()), |write| write.put(change))
}

/// Orders the writes of the memory limits. The limit of memory must never exceed that of memory and swap, so the
/// one that makes room for the other comes first (Documentation/admin-guide/cgroup-v1/memory.rst, 2.4).
fn order_memory(writes: &mut [LimitWrite], folder: &Path) {
    let position = |limit: &str| writes.iter().position(|write| write.limit == limit);
    let (Some(memory), Some(swap)) = (position("memory.limit"), position("memory.swap")) else { return };
    let number = |text: &str| text.trim().parse::<i64>().ok().filter(|limit| *limit >= 0).unwrap_or(i64::MAX);
    let new = writes.get(memory).map_or(i64::MAX, |write| number(&write.value));
    let both = fs::read_to_string(folder.join("memory.memsw.limit_in_bytes"));
    if both.is_ok_and(|both| new > number(&both)) {
        writes.swap(memory, swap);
    }
}

fn v1(resources: &LinuxResources) -> Vec<LimitWrite> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            writes.push(write("memory.limit", "memory", "memory.limit_in_bytes", limit));
        }
        // The limit of memory and swap exists only if the kernel accounts swap: see `locate`.
        if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
            writes.push(write("memory.swap", "memory", "memory.memsw.limit_in_bytes", swap));
        }
        if let Some(soft) = memory.reservation().filter(|soft| *soft != 0) {
            writes.push(write("memory.reservation", "memory", "memory.soft_limit_in_bytes", soft));
        }
        // Both exist only on v1.
        if let Some(swappiness) = memory.swappiness() {
            writes.push(write("memory.swappiness", "memory", "memory.swappiness", swappiness));
        }
        if let Some(disabled) = memory.disable_oom_killer() {
            writes.push(write("memory.disableOOMKiller", "memory", "memory.oom_control", u8::from(disabled)));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            writes.push(write("cpu.shares", "cpu", "cpu.shares", shares));
        }
        if let Some(period) = cpu.period().filter(|period| *period != 0) {
            writes.push(write("cpu.period", "cpu", "cpu.cfs_period_us", period));
        }
        if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
            writes.push(write("cpu.quota", "cpu", "cpu.cfs_quota_us", quota));
        }
        if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
            writes.push(write("cpu.realtimePeriod", "cpu", "cpu.rt_period_us", period));
        }
        if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
            writes.push(write("cpu.realtimeRuntime", "cpu", "cpu.rt_runtime_us", runtime));
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
            writes.push(write("cpu.cpus", "cpuset", "cpuset.cpus", cpus));
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
            writes.push(write("cpu.mems", "cpuset", "cpuset.mems", mems));
        }
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        writes.push(write("pids.limit", "pids", "pids.max", max_or(limit)));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.limit_in_bytes", page.page_size());
        writes.push(write("hugepageLimits", "hugetlb", file, page.limit()));
    }
    writes
}

/// Sets the limits of v2, all or none.
pub(super) fn apply_v2(folder: &Path, resources: &LinuxResources) -> Result<Change> {
    let mut located = Vec::new();
    for write in v2(resources) {
        located.extend(locate(folder, write)?);
    }
    for (key, value) in resources.unified().iter().flatten() {
        located.push(locate_unified(folder, key, value)?);
    }
    apply(located)
}

/// Locates a file that the client names itself (OCI runtime spec, "Unified").
fn locate_unified(folder: &Path, key: &str, value: &str) -> Result<LocatedWrite> {
    let invalid = |why| CgroupError::Value { key: key.to_owned(), value: value.to_owned(), why };
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !key.contains('.') || !key.chars().all(valid) {
        return Err(invalid("it is not the name of a file of a cgroup"));
    }
    if value.contains('\0') {
        return Err(invalid("the value contains a NUL byte"));
    }
    match locate(folder, write("unified", "unified", key, value)) {
        Err(CgroupError::NoController { .. }) => Err(invalid("the cgroup has no such file")),
        Ok(None) => Err(invalid("the cgroup has no such file")),
        Ok(Some(located)) => Ok(located),
        Err(error) => Err(error),
    }
}

fn v2(resources: &LinuxResources) -> Vec<LimitWrite> {
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        let limit = memory.limit().filter(|limit| *limit != 0);
        if let Some(limit) = limit {
            writes.push(write("memory.limit", "memory", "memory.max", max_or(limit)));
        }
        if let Some(swap) = memory.swap().filter(|swap| *swap != 0) {
            // v1 and the OCI spec limit the sum of memory and swap, v2 limits swap alone.
            let alone = if swap < 0 { swap } else { swap.saturating_sub(limit.unwrap_or(0)).max(0) };
            writes.push(write("memory.swap", "memory", "memory.swap.max", max_or(alone)));
        }
        if let Some(low) = memory.reservation().filter(|low| *low != 0) {
            writes.push(write("memory.reservation", "memory", "memory.low", max_or(low)));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            writes.push(write("cpu.shares", "cpu", "cpu.weight", weight_of(shares)));
        }
        let quota = cpu.quota().filter(|quota| *quota != 0);
        let period = cpu.period().filter(|period| *period != 0);
        if quota.is_some() || period.is_some() {
            let quota = max_or(quota.unwrap_or(-1));
            let value = format!("{quota} {}", period.unwrap_or(100_000));
            writes.push(write("cpu.quota", "cpu", "cpu.max", value));
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
            writes.push(write("cpu.cpus", "cpuset", "cpuset.cpus", cpus));
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
            writes.push(write("cpu.mems", "cpuset", "cpuset.mems", mems));
        }
    }
    if let Some(limit) = resources.pids().as_ref().map(|pids| pids.limit()).filter(|limit| *limit != 0) {
        writes.push(write("pids.limit", "pids", "pids.max", max_or(limit)));
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let file = format!("hugetlb.{}.max", page.page_size());
        writes.push(write("hugepageLimits", "hugetlb", file, page.limit()));
    }
    writes
}

/// Formats a limit. A negative one is "max".
fn max_or(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.to_string() }
}

/// Converts shares (2 to 262144) linearly to a weight (1 to 10000), with the formula that all runtimes use
/// (KEP-2254).
#[must_use]
pub fn weight_of(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// An existing file of a cgroup, and the value to write.
struct LocatedWrite {
    limit: &'static str,
    path: PathBuf,
    value: String,
}

impl LocatedWrite {
    fn put(&self, change: &mut Change) -> Result<()> {
        change.write(&self.path, &self.value).map_err(|source| match self.path.exists() {
            true => CgroupError::Refused { path: self.path.clone(), value: self.value.clone(), source },
            // The file existed before, so the cgroup has been removed in the meantime.
            false => CgroupError::Gone { path: self.path.clone() },
        })
    }
}

/// Finds the file. Returns `None` if it does not exist and can be omitted.
fn locate(folder: &Path, write: LimitWrite) -> Result<Option<LocatedWrite>> {
    let path = folder.join(&write.file);
    if path.exists() {
        return Ok(Some(LocatedWrite { limit: write.limit, path, value: write.value }));
    }
    if !folder.exists() {
        return Err(CgroupError::Gone { path: folder.to_owned() });
    }
    // A kernel that does not account swap has no such file, and no limit of swap.
    if write.limit == "memory.swap" || write.is_zero_hugepages() {
        return Ok(None);
    }
    Err(write.no_controller())
}

/// Enables all controllers of a v2 folder for the folders below. If a controller cannot be enabled, the limit that
/// needs it fails later.
pub(super) fn enable_controllers(folder: &Path) {
    let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let enabled = fs::read_to_string(folder.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|other| other == controller) {
            let _refused = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        }
    }
}

/// Copies the processors and memory nodes of the cpuset above. A new cpuset of v1 has none, and no process can run
/// in it (cpuset(7)).
pub(super) fn inherit_cpuset(above: &Path, folder: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let path = folder.join(file);
        let fail = |source| CgroupError::File { action: "inherit", path: path.clone(), source };
        if fs::read_to_string(&path).map_err(fail)?.trim().is_empty() {
            let inherited = fs::read_to_string(above.join(file)).map_err(fail)?;
            fs::write(&path, inherited.trim()).map_err(fail)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

    use super::*;

    fn resources() -> LinuxResources {
        LinuxResourcesBuilder::default()
            .memory(LinuxMemoryBuilder::default().limit(1000_i64).swap(1500_i64).build().unwrap())
            .cpu(LinuxCpuBuilder::default().shares(1024_u64).quota(50_000_i64).cpus("0-1").build().unwrap())
            .pids(LinuxPidsBuilder::default().limit(100_i64).build().unwrap())
            .build()
            .unwrap()
    }

    fn files(writes: Vec<LimitWrite>) -> Vec<(String, String)> {
        writes.into_iter().map(|write| (write.file, write.value)).collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn limits_are_translated_for_both_versions() {
        assert_eq!(
            files(v1(&resources())),
            pairs(&[
                ("memory.limit_in_bytes", "1000"),
                ("memory.memsw.limit_in_bytes", "1500"),
                ("cpu.shares", "1024"),
                ("cpu.cfs_quota_us", "50000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "100"),
            ])
        );
        assert_eq!(
            files(v2(&resources())),
            pairs(&[
                ("memory.max", "1000"),
                ("memory.swap.max", "500"),
                ("cpu.weight", "39"),
                ("cpu.max", "50000 100000"),
                ("cpuset.cpus", "0-1"),
                ("pids.max", "100"),
            ])
        );
        assert!(
            files(v1(&LinuxResources::default())).iter().all(|(file, _)| file != "memory.limit_in_bytes")
        );
    }

    /// Creates a cgroup whose files accept any value.
    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_limit_that_cannot_be_set_changes_no_limit() {
        let v2 = folder(&[("memory.max", "max"), ("memory.swap.max", "max"), ("cpu.weight", "100")]);
        let read = |name: &str| fs::read_to_string(v2.path().join(name)).unwrap();
        let error = apply_v2(v2.path(), &resources()).unwrap_err();
        assert!(matches!(error, CgroupError::NoController { limit: "cpu.quota", .. }), "{error}");
        assert_eq!((read("memory.max"), read("cpu.weight")), ("max".to_owned(), "100".to_owned()));
        // The first error was found before the first write. This one comes after some writes: a folder rejects the
        // write.
        fs::create_dir(v2.path().join("cpu.max")).unwrap();
        fs::write(v2.path().join("cpuset.cpus"), "").unwrap();
        fs::write(v2.path().join("pids.max"), "max").unwrap();
        let error = apply_v2(v2.path(), &resources()).unwrap_err();
        assert!(matches!(&error, CgroupError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("cpu.max"), "{error}");
        assert_eq!((read("memory.max"), read("cpu.weight")), ("max".to_owned(), "100".to_owned()));
        fs::remove_dir(v2.path().join("cpu.max")).unwrap();
        fs::write(v2.path().join("cpu.max"), "max 100000").unwrap();
        let change = apply_v2(v2.path(), &resources()).unwrap();
        assert_eq!((read("memory.max"), read("cpu.max")), ("1000".to_owned(), "50000 100000".to_owned()));
        assert_eq!(change.undo(), Vec::<String>::new());
        assert_eq!((read("memory.max"), read("cpu.max")), ("max".to_owned(), "max 100000".to_owned()));
    }

    #[test]
    fn a_missing_cgroup_is_not_reported_as_a_missing_controller() {
        let missing = std::path::Path::new("/nonexistent/cgroup");
        assert!(matches!(apply_v2(missing, &resources()), Err(CgroupError::Gone { .. })));
        let only_memory = |controller: &str| (controller == "memory").then_some(missing);
        assert!(matches!(apply_v1(only_memory, &resources()), Err(CgroupError::Gone { .. })));
    }

    #[test]
    fn unified_keys_must_name_existing_files() {
        let v2 = folder(&[("memory.high", "max")]);
        let unified = |key: &str, value: &str| {
            let unified: std::collections::HashMap<String, String> =
                [(key.to_owned(), value.to_owned())].into();
            LinuxResourcesBuilder::default().unified(unified).build().unwrap()
        };
        assert!(apply_v2(v2.path(), &unified("memory.high", "900")).is_ok());
        for (key, value) in
            [("memory.low", "1"), ("../memory.high", "1"), ("memory", "1"), ("memory.high", "\0")]
        {
            let error = apply_v2(v2.path(), &unified(key, value)).unwrap_err();
            assert!(matches!(error, CgroupError::Value { .. }), "{key}: {error}");
        }
    }

    #[test]
    fn weights_are_linear() {
        assert_eq!((weight_of(2), weight_of(1024), weight_of(262_144)), (1, 39, 10_000));
        assert_eq!((weight_of(0), weight_of(u64::MAX)), (1, 10_000));
    }
}
