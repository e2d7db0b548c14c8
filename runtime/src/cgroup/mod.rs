//! Cgroups, version 1 and 2: creating, limiting, joining, killing, removing. A container's cgroup determines which
//! processes belong to it.
//!
//! * [`hierarchy`]: the cgroup hierarchies of this host
//! * [`path`]: the path of a cgroup, which is the same in every hierarchy
//! * [`limits`]: resources of the OCI spec as files of both versions; [`change`]: writes several files or none
//! * [`oom`]: the scores by which the kernel selects processes to kill
//! * [`oom_watch`]: notifications of OOM kills
//! * [`devices`]: the permitted devices: files on v1, a BPF program on v2
//! * [`stats`]: resource usage; [`counters`]: all counters and limits; [`files`]: reads their files
//! * [`hugetlb`], [`mod@io`], [`psi`]: the counters of one controller, v1 and v2 side by side
//! * [`freeze`]: freezes and thaws; [`kill`]: kills everything in a cgroup
//! * [`mod@find`]: finds cgroups by their last path component or mark;
//!   [`mark`]: the mark of a daemon; [`tree`]: the folders of a cgroup in all hierarchies
//! * `error`: the error type

mod change;
mod counters;
mod devices;
mod error;
mod files;
mod find;
mod freeze;
mod hierarchy;
mod hugetlb;
mod io;
mod kill;
mod limits;
mod mark;
mod oom;
mod oom_watch;
mod path;
mod psi;
mod stats;
pub mod tree;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{CWD, Mode, OFlags};

pub use change::Change;
pub use counters::{Counters, Limits, MemoryCounters, Throttling};
pub use error::CgroupError;
pub use find::{find, marked};
pub use hierarchy::{Hierarchies, Version};
pub use hugetlb::HugePages;
pub use io::DeviceCounters;
pub use limits::weight_of;
pub use mark::Mark;
pub use oom::OomScores;
pub use oom_watch::OomWatcher;
pub use path::{CgroupPath, CgroupPathError};
pub use psi::{Pressure, StallTimes};
pub use stats::{Memory, Stats};

use crate::sys::Context;

/// The time limit for a cgroup to stay busy after everything in it has ended. The kernel frees it slightly later.
const BUSY: Duration = Duration::from_secs(5);

/// The separator between a cgroup's name and the suffix of a sibling's name.
const SIBLING_SEPARATOR: &str = ".";

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
}

/// A cgroup: one folder on v2, one in every hierarchy on v1.
#[derive(Debug)]
pub struct Cgroup {
    /// The folder by which its processes are found and killed: the only folder on v2, the freezer's on v1.
    process_folder: PathBuf,
    folders: Vec<Folder>,
    v2: bool,
}

/// A cgroup's folder in one hierarchy.
#[derive(Clone, Debug)]
struct Folder {
    mount: PathBuf,
    path: PathBuf,
    controllers: Vec<String>,
}

impl Cgroup {
    /// The prefix of the names of execs' cgroups.
    pub const EXEC: &str = "exec-";

    /// Returns the cgroup at a path. It need not exist.
    #[must_use]
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Self {
        let folders: Vec<Folder> = hierarchies
            .used()
            .map(|hierarchy| Folder {
                mount: hierarchy.mount.clone(),
                path: hierarchy.mount.join(path.relative()),
                controllers: hierarchy.controllers.clone(),
            })
            .collect();
        let freezer = folders.iter().find(|folder| folder.has("freezer")).or(folders.first());
        let process_folder = freezer.map(|folder| folder.path.clone()).unwrap_or_default();
        Self { process_folder, folders, v2: hierarchies.is_v2() }
    }

    /// Creates a cgroup with these limits.
    ///
    /// # Errors
    /// A folder cannot be created, or a limit is rejected. The caller then releases the cgroup.
    pub fn create(hierarchies: &Hierarchies, path: &CgroupPath, resources: &LinuxResources) -> Result<Self> {
        let cgroup = Self::open(hierarchies, path);
        for folder in &cgroup.folders {
            folder.make(cgroup.v2)?;
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
        if self.v2 {
            let change = limits::apply_v2(&self.process_folder, resources)?;
            devices::apply_v2(&self.process_folder, resources)?;
            return Ok(change);
        }
        let change = limits::apply_v1(|controller| self.folder_of(controller), resources)?;
        if let Some(folder) = self.folder_of("devices") {
            devices::apply_v1(folder, resources)?;
        }
        Ok(change)
    }

    fn folder_of(&self, controller: &str) -> Option<&Path> {
        self.folders.iter().find(|folder| folder.has(controller)).map(|folder| folder.path.as_path())
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
        if self.v2 {
            join.directory = Some(open(&self.process_folder, OFlags::PATH | OFlags::DIRECTORY)?);
            let events = self.process_folder.join("memory.events");
            join.oom = events.exists().then(|| open(&events, OFlags::RDONLY)).transpose()?;
            return Ok(join);
        }
        for folder in &self.folders {
            join.tasks.push(open(&folder.path.join("tasks"), OFlags::WRONLY)?);
        }
        if let Some(memory) = self.folder_of("memory") {
            join.oom = Some(open(&memory.join("memory.oom_control"), OFlags::RDONLY)?);
        }
        Ok(join)
    }

    /// Creates a cgroup below this one for an exec. Everything that the exec starts can be killed by it, and the
    /// limits of this cgroup apply. On v1 it exists only in the freezer; in the other hierarchies the exec is in
    /// the container's cgroup.
    ///
    /// # Errors
    /// The cgroup cannot be created.
    pub fn child(&self, name: &str) -> Result<Self> {
        let child = self.existing_child(name);
        make_folder(&child.process_folder)?;
        Ok(child)
    }

    /// Returns the cgroup below this one. It need not exist.
    #[must_use]
    pub fn existing_child(&self, name: &str) -> Self {
        let process_folder = self.process_folder.join(name);
        let folders = self.folders.iter().map(|folder| {
            let mut folder = folder.clone();
            if folder.path == self.process_folder {
                folder.path.clone_from(&process_folder);
            }
            folder
        });
        Self { process_folder: process_folder.clone(), folders: folders.collect(), v2: self.v2 }
    }

    /// Creates a sibling of this cgroup for an exec while this one is frozen, because a cgroup below it would be
    /// frozen as well. On v2 it gets the same limits. On v1 only the freezer's cgroup differs.
    ///
    /// # Errors
    /// The cgroup cannot be created, or a limit is rejected.
    pub fn sibling(&self, name: &str, resources: &LinuxResources) -> Result<Self> {
        let other = self.existing_sibling(name);
        make_folder(&other.process_folder)?;
        if self.v2 {
            drop(other.update(resources)?);
        }
        Ok(other)
    }

    /// Returns the sibling with this name. It need not exist.
    #[must_use]
    pub fn existing_sibling(&self, name: &str) -> Self {
        let mut leaf = self.process_folder.file_name().unwrap_or_default().to_owned();
        leaf.push(format!("{SIBLING_SEPARATOR}{name}"));
        let process_folder = self.process_folder.with_file_name(leaf);
        let mut folders = self.folders.clone();
        for folder in folders.iter_mut().filter(|folder| folder.path == self.process_folder) {
            folder.path.clone_from(&process_folder);
        }
        Self { process_folder, folders, v2: self.v2 }
    }

    /// Returns the existing siblings, for example those that an earlier daemon left behind, with their names.
    fn siblings(&self) -> Vec<(Self, String)> {
        let entries =
            self.process_folder.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten();
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let leaf = self.process_folder.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!("{leaf}{SIBLING_SEPARATOR}");
        let sibling = |name: String| {
            let name = name.strip_prefix(&prefix)?;
            Some((self.existing_sibling(name), name.to_owned()))
        };
        names.filter_map(sibling).collect()
    }

    /// Returns whether the cgroup is frozen (cgroup-v2.rst, `cgroup.freeze`; freezer-subsystem.rst).
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let (file, thawed) = if self.v2 { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        fs::read_to_string(self.process_folder.join(file)).is_ok_and(|state| state.trim() != thawed)
    }

    /// Kills everything in the cgroup and below, and waits until it has ended. Succeeds if the cgroup does not
    /// exist.
    ///
    /// # Errors
    /// A process is still running after the time limit.
    pub fn kill(&self) -> Result<()> {
        if self.v2 { kill::kill_v2(&self.process_folder) } else { kill::kill_v1(&self.process_folder) }
    }

    /// Returns the processes in the cgroup and below.
    ///
    /// # Errors
    /// The cgroup cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        kill::processes(&self.process_folder)
    }

    /// Returns the processes of each exec in this cgroup, by the exec's name: those below it, and those that were started
    /// while it was frozen.
    ///
    /// # Errors
    /// A cgroup cannot be read.
    pub fn exec_processes(&self) -> Result<Vec<(String, Vec<i32>)>> {
        let entries = fs::read_dir(&self.process_folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = names.map(|name| (self.existing_child(&name), name));
        let execs = below.chain(self.siblings()).filter(|(_, name)| name.starts_with(Self::EXEC));
        execs.map(|(exec, name)| Ok((name, exec.processes()?))).collect()
    }

    /// Kills everything in the cgroup, and removes it with all cgroups below and its siblings for execs. Succeeds
    /// if it does not exist.
    ///
    /// # Errors
    /// A process is still running after the time limit, or a folder cannot be removed.
    pub fn release(&self) -> Result<()> {
        for (other, _) in self.siblings() {
            other.kill()?;
            remove(&other.process_folder, Instant::now() + BUSY)?;
        }
        self.kill()?;
        for folder in &self.folders {
            remove(&folder.path, Instant::now() + BUSY)?;
        }
        Ok(())
    }

    /// Removes an exec's cgroup unless processes still run in it. Returns whether it is removed.
    ///
    /// # Errors
    /// A folder cannot be removed for another reason.
    pub fn remove_if_empty(&self) -> Result<bool> {
        if !self.processes()?.is_empty() {
            return Ok(false);
        }
        remove(&self.process_folder, Instant::now() + BUSY).map(|()| true)
    }

    /// Kills the execs with the names in `running`, and removes the cgroups of all execs that are empty. Returns
    /// the names of those that still have processes.
    ///
    /// # Errors
    /// A process is still running after the time limit, or a folder cannot be removed.
    pub fn end_execs(&self, running: &[String]) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.process_folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = names.filter(|name| is_exec(name)).map(|name| (self.existing_child(&name), name));
        let mut left = Vec::new();
        for (exec, name) in below.chain(self.siblings()) {
            if running.contains(&name) {
                exec.kill()?;
            }
            if !exec.remove_if_empty()? {
                left.push(name);
            }
        }
        Ok(left)
    }

    /// Removes the cgroup if it has no processes and no cgroups below. Else it is unchanged.
    ///
    /// # Errors
    /// A folder cannot be removed for another reason.
    pub fn remove_if_unused(&self) -> Result<()> {
        for folder in &self.folders {
            use ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
            let path = &folder.path;
            match fs::remove_dir(path).map_err(|error| (error.kind(), error)) {
                Ok(()) | Err((NotFound | ResourceBusy | DirectoryNotEmpty, _)) => {}
                Err((_, source)) => {
                    return Err(CgroupError::File { action: "remove", path: path.clone(), source });
                }
            }
        }
        Ok(())
    }

    /// Returns the number of OOM kills in the cgroup; 0 if it does not exist.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        self.counted_oom_kills().unwrap_or(0)
    }

    /// Returns the number of OOM kills in the cgroup, if it exists and has a memory controller.
    #[must_use]
    pub fn counted_oom_kills(&self) -> Option<u64> {
        let text = fs::read_to_string(self.oom_file()?).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        value.and_then(|value| value.trim().parse().ok())
    }
}

impl Folder {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|other| other == controller)
    }

    /// Creates the folder and those above it. Each is prepared for processes or for the next folder.
    fn make(&self, v2: bool) -> Result<()> {
        let mut missing = Vec::new();
        let mut folder = self.path.as_path();
        while folder != self.mount && folder.starts_with(&self.mount) {
            missing.push(folder);
            folder = folder.parent().unwrap_or(&self.mount);
        }
        let mut above = self.mount.as_path();
        for folder in missing.into_iter().rev() {
            if v2 {
                limits::enable_controllers(above);
            }
            make_folder(folder)?;
            if self.has("cpuset") && !v2 {
                limits::inherit_cpuset(above, folder)?;
            }
            above = folder;
        }
        Ok(())
    }
}

/// Returns whether a name is that of an exec's cgroup (`exec-DAEMON-NUMBER`). Processes of the container may
/// create cgroups with other names.
fn is_exec(name: &str) -> bool {
    let parts = name.strip_prefix(Cgroup::EXEC).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(daemon, number)| {
        !daemon.is_empty()
            && daemon.bytes().all(|byte| byte.is_ascii_hexdigit())
            && number.parse::<u64>().is_ok()
    })
}

fn make_folder(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => {
            result.map_err(|source| CgroupError::File { action: "create", path: path.to_owned(), source })
        }
    }
}

/// Removes a folder and those below it, the deepest first. A cgroup stays busy for a moment after its last process
/// has ended.
fn remove(path: &Path, until: Instant) -> Result<()> {
    let Ok(entries) = fs::read_dir(path) else { return Ok(()) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path(), until)?;
        }
    }
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(16) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(CgroupError::File { action: "remove", path: path.to_owned(), source: error });
            }
            _ => return Ok(()),
        }
    }
}
