//! Project quotas. If the filesystem of the store counts by project, each writable layer has its own project. The kernel
//! then reports the usage of a container without a walk of its files.
//!
//! In the initial user namespace, the owner of a file can change the project of the file (ioctl_xfs_fsgetxattr(2)).
//! Therefore layers are still walked at long intervals. If a walk finds more than the project contains, the layer is
//! walked from then on.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Inner;
use super::disk_usage::DiskUsage;

/// The range of berth's project numbers. The kubelet uses numbers from 1,048,577, administrators low numbers.
const FIRST: u32 = 0x6265_0000;
const LAST: u32 = 0x6265_ffff;

/// Shortest time between two walks of a layer that has a project.
const AUDIT: Duration = Duration::from_mins(5);
/// The walks of a layer with a project take at most one part in this many of the time.
const AUDIT_SHARE: u32 = 100;
/// Differences between a walk and the project's usage that come from writes during the walk.
const TOLERATED: DiskUsage = DiskUsage { bytes: 16 << 20, inodes: 1024 };

/// Access to the project quotas of a filesystem.
pub trait ProjectQuotas: fmt::Debug + Send + Sync {
    /// The project of a folder.
    ///
    /// # Errors
    /// The filesystem has no projects.
    fn project(&self, folder: BorrowedFd<'_>) -> io::Result<u32>;

    /// Gives an empty folder a project, and with it everything that is created in the folder.
    ///
    /// # Errors
    /// The filesystem has no projects.
    fn assign(&self, folder: BorrowedFd<'_>, project: u32) -> io::Result<()>;

    /// Bytes and inodes of a project.
    ///
    /// # Errors
    /// The filesystem does not count by project.
    fn usage(&self, folder: BorrowedFd<'_>, project: u32) -> io::Result<(u64, u64)>;
}

/// The quotas of the store's filesystem.
#[derive(Debug)]
pub(super) struct Quotas {
    access: Arc<dyn ProjectQuotas>,
    containers: File,
    /// Held from the choice of a number until the index has it: the project of an empty folder may occupy nothing yet.
    assigning: Mutex<()>,
}

/// The project of a writable layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Project {
    number: u32,
    /// The time of the next walk. `None`: it has never been walked.
    next_audit: Option<Instant>,
}

impl Quotas {
    /// Returns none if the filesystem does not count by project.
    pub(super) fn of(access: Option<&Arc<dyn ProjectQuotas>>, containers: &Path) -> Option<Self> {
        let access = access?.clone();
        let containers = File::open(containers).ok()?;
        access.usage(containers.as_fd(), 0).ok()?;
        tracing::info!("writable layers are measured by project quota");
        Some(Self { access, containers, assigning: Mutex::default() })
    }

    fn usage(&self, project: u32) -> Option<DiskUsage> {
        match self.access.usage(self.containers.as_fd(), project) {
            Ok((bytes, inodes)) => Some(DiskUsage { bytes, inodes }),
            Err(error) => {
                tracing::warn!(project, %error, "failed to read the usage of a project");
                None
            }
        }
    }

    /// Returns the project of a layer that an earlier daemon created.
    pub(super) fn existing(&self, layer: &Path) -> Option<Project> {
        let number = self.access.project(File::open(layer).ok()?.as_fd()).ok()?;
        (FIRST..=LAST).contains(&number).then_some(Project { number, next_audit: None })
    }

    /// Gives an empty layer a free project. A project that is not in `used` is not free if it occupies something: it belongs to
    /// another store on the filesystem, or to a layer that waits for its deletion.
    fn assign(&self, layer: &Path, used: &BTreeSet<u32>) -> Option<Project> {
        let free = |number: &u32| {
            !used.contains(number) && self.usage(*number).is_some_and(|usage| usage == DiskUsage::default())
        };
        let number = (FIRST..=LAST).find(free)?;
        let assigned = File::open(layer).and_then(|folder| self.access.assign(folder.as_fd(), number));
        match assigned {
            Ok(()) => Some(Project { number, next_audit: None }),
            Err(error) => {
                tracing::warn!(layer = %layer.display(), %error, "failed to set the project of a writable layer");
                None
            }
        }
    }
}

impl Inner {
    /// Gives the new layer of a container a project. A layer without one is walked.
    pub(super) fn assign_project(&self, id: &str) {
        let Some(quotas) = &self.quotas else { return };
        let _assigning = quotas.assigning.lock().unwrap_or_else(PoisonError::into_inner);
        let used = self.project_numbers();
        let project = quotas.assign(&self.folders.container(id), &used);
        if let Some(entry) = self.index().containers.get_mut(id) {
            entry.project = project;
        }
    }

    fn project_numbers(&self) -> BTreeSet<u32> {
        let index = self.index();
        let projects = index.containers.values().filter_map(|entry| entry.project);
        projects.map(|project| project.number).collect()
    }

    /// Returns the usage of a container's project. Returns none if the layer must be walked.
    pub(super) fn usage_by_project(&self, id: &str) -> Option<DiskUsage> {
        let quotas = self.quotas.as_ref()?;
        let project = self.index().containers.get(id)?.project?;
        project.next_audit.filter(|next| *next > Instant::now())?;
        quotas.usage(project.number)
    }

    /// Compares what a walk has found with the project's usage. A layer with files outside its project loses the project.
    pub(super) fn audit_project(&self, id: &str, walked: DiskUsage, took: Duration) {
        let Some(quotas) = &self.quotas else { return };
        let project = self.index().containers.get(id).and_then(|entry| entry.project);
        let Some(mut project) = project else { return };
        let Some(counted) = quotas.usage(project.number) else { return };
        let is_whole = is_whole(counted, walked);
        if !is_whole {
            let (counted, walked) = (counted.bytes, walked.bytes);
            tracing::warn!(
                container = id,
                counted,
                walked,
                "a container has files outside its quota project"
            );
        }
        project.next_audit = Some(Instant::now() + AUDIT.max(took.saturating_mul(AUDIT_SHARE)));
        if let Some(entry) = self.index().containers.get_mut(id) {
            entry.project = is_whole.then_some(project);
        }
    }
}

/// Returns whether a project contains everything that a walk found.
fn is_whole(counted: DiskUsage, walked: DiskUsage) -> bool {
    walked.bytes <= counted.bytes.saturating_add(TOLERATED.bytes)
        && walked.inodes <= counted.inodes.saturating_add(TOLERATED.inodes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A filesystem on which some projects occupy something.
    #[derive(Debug, Default)]
    struct Fake {
        occupied: Mutex<BTreeMap<u32, u64>>,
        refuses: bool,
    }

    impl ProjectQuotas for Fake {
        fn project(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
            Ok(7)
        }

        fn assign(&self, _: BorrowedFd<'_>, _: u32) -> io::Result<()> {
            if self.refuses { Err(io::ErrorKind::PermissionDenied.into()) } else { Ok(()) }
        }

        fn usage(&self, _: BorrowedFd<'_>, project: u32) -> io::Result<(u64, u64)> {
            Ok((0, self.occupied.lock().unwrap().get(&project).copied().unwrap_or(0)))
        }
    }

    fn quotas(fake: Fake) -> Quotas {
        let access: Arc<dyn ProjectQuotas> = Arc::new(fake);
        Quotas::of(Some(&access), Path::new("/")).unwrap()
    }

    #[test]
    fn a_new_layer_gets_a_project_that_nothing_else_has() {
        let occupied = Mutex::new(BTreeMap::from([(FIRST + 1, 3)]));
        let quotas = quotas(Fake { occupied, refuses: false });
        let project = quotas.assign(Path::new("/"), &BTreeSet::from([FIRST])).unwrap();
        assert_eq!(project.number, FIRST + 2);
        assert!(quotas.existing(Path::new("/")).is_none(), "the project of an administrator");
    }

    #[test]
    fn a_layer_that_cannot_have_a_project_is_walked() {
        let quotas = quotas(Fake { refuses: true, ..Fake::default() });
        assert!(quotas.assign(Path::new("/"), &BTreeSet::new()).is_none());
        assert!(Quotas::of(None, Path::new("/")).is_none());
    }

    #[test]
    fn files_outside_the_project_are_noticed() {
        let counted = DiskUsage { bytes: 8 << 20, inodes: 10 };
        assert!(is_whole(counted, counted));
        assert!(is_whole(counted, DiskUsage { bytes: 9 << 20, inodes: 20 }), "written during the walk");
        assert!(!is_whole(counted, DiskUsage { bytes: 80 << 20, ..counted }));
        assert!(!is_whole(counted, DiskUsage { inodes: 5000, ..counted }));
    }
}
