//! The keepers of a daemon and of its predecessors, and the children of a process.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_runtime::client::{FoundKeeper, find_keepers};

use super::{InventoryError, Object, ObjectKind, Owner, Place, Scope};
use crate::ids::PodId;
use crate::store::Folders;

/// Distinguishes the keepers of a daemon from those of other daemons on the host.
#[derive(Debug)]
pub struct OwnKeepers<'a> {
    folders: &'a Folders,
    /// The folder of the pods' volatile folders, as the kernel reports it.
    folder: Option<PathBuf>,
}

impl<'a> OwnKeepers<'a> {
    /// Returns the keepers of the daemon with these folders.
    #[must_use]
    pub fn of(folders: &'a Folders) -> Self {
        Self { folders, folder: resolved(&folders.pods_state()) }
    }

    /// Returns the pod of a keeper that this daemon or a former one has started: its folder is or was in this
    /// daemon's folder, or it is unknown and this daemon has a record of the pod. No other daemon has the same
    /// folders ([`crate::server::Claim`]), and no two pods the same id; but the records of another daemon may have
    /// been copied.
    #[must_use]
    pub fn pod_of(&self, keeper: &FoundKeeper) -> Option<PodId> {
        let id = PodId::try_from(keeper.pod().to_owned()).ok()?;
        let elsewhere = keeper.folder().is_some_and(Path::exists);
        let recorded = !elsewhere && self.folders.pod(&id).exists();
        let here =
            self.folder.as_ref().is_some_and(|folder| keeper.folder() == Some(&folder.join(id.as_str())));
        (recorded || here).then_some(id)
    }

    /// Finds the keepers among the processes of the host.
    ///
    /// # Errors
    /// Processes cannot be inspected. Some keepers may then be missing.
    pub fn find(&self) -> io::Result<Vec<(PodId, FoundKeeper)>> {
        let found = find_keepers(|keeper| self.pod_of(keeper).is_some())?;
        Ok(found.into_iter().filter_map(|keeper| Some((self.pod_of(&keeper)?, keeper))).collect())
    }
}

/// Resolves the symbolic links of a path whose last parts may have been removed.
fn resolved(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| Some(resolved(path.parent()?)?.join(path.file_name()?)))
}

/// Returns the keepers.
///
/// # Errors
/// The processes of the host cannot be listed.
pub fn keepers(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let found = OwnKeepers::of(&scope.folders).find().map_err(InventoryError::host("list processes"))?;
    let object = |(pod, keeper): (PodId, FoundKeeper)| {
        let pid = keeper.pid();
        Object {
            kind: ObjectKind::Keeper,
            owner: Owner::Pod(pod.into()),
            name: format!("process {pid}"),
            place: Place::Process(pid),
            certain: true,
        }
    };
    Ok(found.into_iter().map(object).collect())
}

/// Returns the children of all threads of a process, with their names (proc(5), `/proc/pid/task/tid/children`). Ended
/// children that were not waited for are included.
///
/// # Errors
/// The process does not exist.
pub fn children(pid: u32) -> io::Result<BTreeSet<String>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    let mut found = BTreeSet::new();
    for thread in threads {
        // A thread may end between the two reads. Its children then belong to another thread of the process.
        let pids = match fs::read_to_string(thread?.path().join("children")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                String::new()
            }
            pids => pids?,
        };
        found.extend(pids.split_whitespace().map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{pid} ({})", name.trim())
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_child_is_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let name = format!("{} (sleep)", child.id());
        let found = (0..3000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            children(std::process::id()).unwrap().contains(&name)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }

    #[test]
    fn a_removed_folder_is_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        assert_eq!(resolved(&root.join("link/pods")), Some(root.join("real/pods")));
        assert_eq!(resolved(&root.join("link")), Some(root.join("real")));
    }
}
