//! Cgroups, version 1 and 2: creating, limiting, joining, killing, removing. A container's cgroup determines which
//! processes belong to it.
//!
//! * [`hierarchy`]: the cgroup hierarchies of this host; [`interface`]: the version of the files
//! * [`path`]: the path of a cgroup, which is the same in every hierarchy; [`folder`]: its folder in one hierarchy
//! * [`controllers`]: the limits and counters of each controller
//! * [`limits`]: sets all limits or none; [`change`]: writes several files and can undo that
//! * [`files`]: reads files of counters and limits
//! * [`oom`]: the scores by which the kernel selects processes to kill
//! * [`oom_watch`]: notifications of OOM kills
//! * [`members`]: the processes in a cgroup; [`kill`]: kills them; [`execs`]: the cgroups of execs
//! * [`mod@find`]: finds cgroups by their last path component or mark;
//!   [`mark`]: the mark of a daemon; [`tree`]: the folders of a cgroup in all hierarchies
//! * `error`: the error type
//! * [`mod@find`]: finds cgroups by their last path component, or by the mark of a daemon

mod change;
mod controllers;
mod error;
mod execs;
mod files;
mod find;
mod folder;
mod hierarchy;
mod interface;
mod kill;
mod limits;
mod mark;
mod members;
mod oom;
mod oom_watch;
mod path;
pub mod tree;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

pub use change::Change;
pub use controllers::cpu::{Throttling, weight_of};
pub use controllers::hugetlb::HugePages;
pub use controllers::io::DeviceCounters;
pub use controllers::memory::{Memory, MemoryCounters};
pub use controllers::psi::{Pressure, StallTimes};
pub use controllers::usage::{Counters, Limits, Stats};
pub use error::CgroupError;
pub use find::{find, marked};
pub use hierarchy::{Hierarchies, Version};
pub use mark::Mark;
pub use members::Members;
pub use oom::OomScores;
pub use oom_watch::OomWatcher;
pub use path::{CgroupPath, CgroupPathError};

use crate::oom_kills;
use crate::plan::CgroupHierarchy;
use crate::sys::Context;
use crate::sys::fs::read_record;
use controllers::{devices, memory};
use files::Reader;
use folder::Folder;
use interface::Interface;

type Result<T> = std::result::Result<T, CgroupError>;

/// The descriptors that a process needs to join a cgroup.
#[derive(Debug, Default)]
pub struct JoinFds {
    /// v2: the folder, for `CLONE_INTO_CGROUP`.
    pub directory: Option<OwnedFd>,
    /// v1: `tasks` of every hierarchy. A process with one thread moves itself by writing to them.
    pub tasks: Vec<OwnedFd>,
    /// The file that counts OOM kills.
    pub oom: Option<OwnedFd>,
    /// v2: the same file of the cgroup above, if this one is a scope, which systemd removes when it is empty.
    pub oom_above: Option<OwnedFd>,
}

/// A cgroup: one folder on v2, one in every hierarchy on v1.
#[derive(Debug)]
pub struct Cgroup {
    /// The folder by which its processes are found and killed: the only folder on v2, the freezer's on v1.
    process_folder: PathBuf,
    folders: Vec<Folder>,
    interface: Interface,
}

impl Cgroup {
    /// Returns the cgroup at a path. It need not exist.
    #[must_use]
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Self {
        let folders: Vec<Folder> = hierarchies
            .used()
            .map(|hierarchy| Folder {
                hierarchy: hierarchy.clone(),
                path: hierarchy.mount.join(path.relative()),
            })
            .collect();
        let freezer = folders.iter().find(|folder| folder.hierarchy.has("freezer")).or(folders.first());
        let process_folder = freezer.map(|folder| folder.path.clone()).unwrap_or_default();
        let interface = if hierarchies.is_v2() { Interface::V2 } else { Interface::V1 };
        Self { process_folder, folders, interface }
    }

    /// Returns the folder by which its processes are found and frozen: the only folder on v2, the freezer's on v1.
    #[must_use]
    pub fn process_folder(&self) -> &Path {
        &self.process_folder
    }

    /// Returns its folder in each hierarchy of v1, as a container sees the hierarchy. Empty on v2.
    #[must_use]
    pub fn folders_in_container(&self) -> Vec<(CgroupHierarchy, &Path)> {
        match self.interface {
            Interface::V2 => Vec::new(),
            Interface::V1 => {
                let folders = self.folders.iter();
                folders.map(|folder| (folder.hierarchy.in_container(), &*folder.path)).collect()
            }
        }
    }

    /// Creates a cgroup with these limits.
    ///
    /// # Errors
    /// A folder cannot be created, or a limit is rejected. The caller then releases the cgroup.
    pub fn create(hierarchies: &Hierarchies, path: &CgroupPath, resources: &LinuxResources) -> Result<Self> {
        let cgroup = Self::open(hierarchies, path);
        for folder in &cgroup.folders {
            cgroup.make(folder)?;
            hierarchies.mark(&folder.path);
        }
        // If the limits cannot be set, the caller removes the whole cgroup.
        drop(cgroup.update(resources)?);
        Ok(cgroup)
    }

    /// Sets limits. Limits that `resources` does not contain are unchanged. Returns a value that can undo the
    /// change.
    ///
    /// # Errors
    /// A limit is rejected, or its controller does not exist. Then no limit is changed.
    pub fn update(&self, resources: &LinuxResources) -> Result<Change> {
        let mut located = limits::locate(
            |controller| self.folder_of(controller),
            controllers::limits(&self.reader(), resources),
        )?;
        match self.interface {
            Interface::V1 => {
                let change = limits::apply(located)?;
                if let Some(folder) = self.folder_of("devices") {
                    devices::apply_v1(folder, resources)?;
                }
                Ok(change)
            }
            Interface::V2 => {
                located.extend(limits::locate_unified(&self.process_folder, resources)?);
                let change = limits::apply(located)?;
                devices::apply_v2(&self.process_folder, resources)?;
                Ok(change)
            }
        }
    }

    /// Creates the folder and those above it. Each is prepared for processes or for the next folder.
    fn make(&self, folder: &Folder) -> Result<()> {
        let mut above = folder.hierarchy.mount.as_path();
        for path in folder.with_parents() {
            if self.interface == Interface::V2 {
                controllers::enable_v2(above);
            }
            folder::make(path)?;
            if self.interface == Interface::V1 {
                controllers::inherit_v1(above, path, &folder.hierarchy)?;
            }
            above = path;
        }
        Ok(())
    }

    /// Returns the folder of a controller.
    fn folder_of(&self, controller: &str) -> Option<&Path> {
        match self.interface {
            Interface::V1 => self
                .folders
                .iter()
                .find(|folder| folder.hierarchy.has(controller))
                .map(|folder| &*folder.path),
            Interface::V2 => Some(&self.process_folder),
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader::new(self.interface, &self.folders)
    }

    /// Returns the descriptors with which a child can join this cgroup.
    ///
    /// # Errors
    /// The cgroup does not exist.
    pub fn join(&self) -> Result<JoinFds> {
        let open = |path: &Path, flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).on("open", path.display())
        };
        let mut join = JoinFds::default();
        match self.interface {
            Interface::V2 => {
                join.directory = Some(open(&self.process_folder, OFlags::PATH | OFlags::DIRECTORY)?);
            }
            Interface::V1 => {
                for folder in &self.folders {
                    join.tasks.push(open(&folder.path.join("tasks"), OFlags::WRONLY)?);
                }
            }
        }
        // On v2 the file exists only if the memory controller is enabled.
        let oom = self.oom_file().filter(|file| self.interface == Interface::V1 || file.exists());
        join.oom = oom.map(|file| open(&file, OFlags::RDONLY)).transpose()?;
        join.oom_above = self.oom_file_above().map(|file| open(&file, OFlags::RDONLY)).transpose()?;
        Ok(join)
    }

    /// Moves the calling process, which has one thread, to this cgroup.
    ///
    /// # Errors
    /// The cgroup does not exist, or does not accept it.
    pub fn enter(&self) -> Result<()> {
        let folders: &[Folder] = match self.interface {
            Interface::V2 => self.folders.get(..1).unwrap_or_default(),
            Interface::V1 => &self.folders,
        };
        for folder in folders {
            let path = folder.path.join("cgroup.procs");
            // The number 0 is the writing process (cgroups(7)).
            std::fs::write(&path, "0")
                .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
                .on("write", path.display())?;
        }
        Ok(())
    }

    /// Kills everything in the cgroup and below, and waits until it has ended. Succeeds if the cgroup does not
    /// exist.
    ///
    /// # Errors
    /// A process is still running after the time limit.
    pub fn kill(&self) -> Result<()> {
        match self.interface {
            Interface::V1 => kill::kill_v1(&self.process_folder),
            Interface::V2 => kill::kill_v2(&self.process_folder),
        }
    }

    /// Returns the processes in the cgroup and below.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        members::processes(&self.process_folder)
    }

    /// Kills everything in the cgroup, and removes it with all cgroups below and its siblings for execs. Succeeds
    /// if it does not exist.
    ///
    /// # Errors
    /// A process is still running after the time limit, or a folder cannot be removed.
    pub fn release(&self) -> Result<()> {
        for (other, _) in self.siblings() {
            other.kill()?;
            folder::remove(&other.process_folder)?;
        }
        self.kill()?;
        for folder in &self.folders {
            folder::remove(&folder.path)?;
        }
        Ok(())
    }

    /// Removes the cgroup if it has no processes and no cgroups below. Else it is unchanged.
    ///
    /// # Errors
    /// A folder cannot be removed for another reason.
    pub fn remove_if_unused(&self) -> Result<()> {
        self.folders.iter().try_for_each(|folder| folder::remove_if_unused(&folder.path))
    }

    /// Returns the number of OOM kills in the cgroup; 0 if it does not exist.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.counted_oom_kills().unwrap_or(0)
    }

    /// Returns the number of OOM kills in the cgroup, if it exists and has a memory controller.
    #[must_use]
    pub fn counted_oom_kills(&self) -> Option<u64> {
        oom_kills::parse(&read_record(CWD, self.oom_file()?).ok()?)
    }

    /// Returns the file that counts OOM kills, if there is a memory controller.
    fn oom_file_above(&self) -> Option<PathBuf> {
        let folder = &self.process_folder;
        let is_scope = folder.extension().is_some_and(|kind| kind == "scope");
        let above = folder.parent()?.join(memory::oom_file(self.interface));
        (self.interface == Interface::V2 && is_scope && above.exists()).then_some(above)
    }

    fn oom_file(&self) -> Option<PathBuf> {
        self.folder_of("memory").map(|folder| folder.join(memory::oom_file(self.interface)))
    }
}
