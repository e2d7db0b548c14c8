//! The processors and memory nodes that processes may use (cpuset(7), cgroup-v2.rst). Both versions have the same files.

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use crate::cgroup::files::Reader;
use crate::cgroup::limits::{LimitWrite, given};
use crate::cgroup::{CgroupError, Result};

const CPUS: &str = "cpuset.cpus";
const MEMS: &str = "cpuset.mems";

/// Returns the files that set the processors and memory nodes.
pub(super) fn limits(_: &Reader<'_>, resources: &LinuxResources) -> Vec<LimitWrite> {
    let Some(cpu) = resources.cpu() else { return Vec::new() };
    let write = |limit, file, value: Option<&String>| {
        given(value.cloned()).map(|value| LimitWrite::new(limit, "cpuset", file, value))
    };
    let writes = [write("cpu.cpus", CPUS, cpu.cpus().as_ref()), write("cpu.mems", MEMS, cpu.mems().as_ref())];
    writes.into_iter().flatten().collect()
}

/// Copies the processors and memory nodes of the cpuset above. A new cpuset of v1 has none, and no process can run
/// in it (cpuset(7)).
pub(super) fn inherit(above: &Path, folder: &Path) -> Result<()> {
    for file in [CPUS, MEMS] {
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
    use super::*;
    use crate::cgroup::files::folder_with;

    #[test]
    fn only_an_empty_set_is_inherited() {
        let above = folder_with(&[(CPUS, "0-3\n"), (MEMS, "0\n")]);
        let folder = folder_with(&[(CPUS, "\n"), (MEMS, "1\n")]);
        inherit(above.path(), folder.path()).unwrap();
        let read = |file| fs::read_to_string(folder.path().join(file)).unwrap();
        assert_eq!((read(CPUS).as_str(), read(MEMS).as_str()), ("0-3", "1\n"));
        let error = inherit(above.path(), Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.starts_with("failed to inherit /nonexistent/cpuset.cpus"), "{error}");
    }
}
