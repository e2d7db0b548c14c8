//! Cgroups, version 1 and 2: making, limiting, joining, killing, removing. The cgroup is the truth of what runs in a
//! container.
//!
//! * [`hierarchy`]: which cgroups this host has, and where
//! * [`path`]: the path of a cgroup, the same in every hierarchy
//! * [`limits`]: resources of the OCI spec as the files of both versions; [`change`]: several files or none
//! * [`oom`]: the scores by which the kernel chooses whom it kills
//! * [`devices`]: which devices may be opened: files on v1, a program on v2
//! * [`stats`]: what a cgroup has used
//! * [`kill`]: the end of everything in a cgroup; [`find`]: cgroups by their last name
//! * [`error`]: what can go wrong

mod change;
mod devices;
mod error;
mod find;
mod hierarchy;
mod kill;
mod limits;
mod oom;
mod path;
mod stats;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::LinuxResources;
use rustix::fs::{CWD, Mode, OFlags};

pub use change::Change;
pub use error::CgroupError;
pub use find::find;
pub use hierarchy::{Hierarchies, Version};
pub use limits::weight_of;
pub use oom::Scores;
pub use path::{CgroupPath, CgroupPathError};
pub use stats::{Memory, Pressure, Stats, Waited};

use crate::sys::Context;

/// How long a cgroup may stay busy after everything in it has ended: the kernel frees it a moment later.
const BUSY: Duration = Duration::from_secs(5);

/// What stands between the names of a cgroup and of one next to it.
const BESIDE: &str = ".";

type Result<T> = std::result::Result<T, CgroupError>;

/// How a process gets into a cgroup.
#[derive(Debug, Default)]
pub struct JoinFds {
    /// v2: the folder, for `CLONE_INTO_CGROUP`.
    pub directory: Option<OwnedFd>,
    /// v1: `tasks` of every hierarchy, for a process with one thread that moves itself.
    pub tasks: Vec<OwnedFd>,
    /// The file that counts kills for lack of memory.
    pub oom: Option<OwnedFd>,
}

/// A cgroup: one folder on v2, one in every hierarchy on v1.
#[derive(Debug)]
pub struct Cgroup {
    /// Everything in it is found and killed here: the one folder of v2, that of the freezer on v1.
    whole: PathBuf,
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
    /// How the names of execs' cgroups begin.
    pub const EXEC: &str = "exec-";

    /// The cgroup at a path, whether it is there or not.
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
        let whole = freezer.map(|folder| folder.path.clone()).unwrap_or_default();
        Self { whole, folders, v2: hierarchies.is_v2() }
    }

    /// Makes a cgroup with these limits.
    ///
    /// # Errors
    /// A folder cannot be made, or a limit is refused; the caller then releases what there is.
    pub fn create(hierarchies: &Hierarchies, path: &CgroupPath, resources: &LinuxResources) -> Result<Self> {
        let cgroup = Self::open(hierarchies, path);
        for folder in &cgroup.folders {
            folder.make(cgroup.v2)?;
        }
        // What is made for them is removed as a whole where they cannot be set.
        drop(cgroup.update(resources)?);
        Ok(cgroup)
    }

    /// Sets limits; what is not said stays. The answer can take them back.
    ///
    /// # Errors
    /// A limit is refused, or its controller is not there: all limits are then as before.
    pub fn update(&self, resources: &LinuxResources) -> Result<Change> {
        if self.v2 {
            let change = limits::apply_v2(&self.whole, resources)?;
            devices::apply_v2(&self.whole, resources)?;
            return Ok(change);
        }
        let change = limits::apply_v1(|controller| self.of(controller), resources)?;
        if let Some(folder) = self.of("devices") {
            devices::apply_v1(folder, resources)?;
        }
        Ok(change)
    }

    fn of(&self, controller: &str) -> Option<&Path> {
        self.folders.iter().find(|folder| folder.has(controller)).map(|folder| folder.path.as_path())
    }

    /// What a parent needs to put a child into this cgroup.
    ///
    /// # Errors
    /// It is not there.
    pub fn join(&self) -> Result<JoinFds> {
        let open = |path: &Path, flags: OFlags| {
            let flags = flags | OFlags::CLOEXEC;
            rustix::fs::openat(CWD, path, flags, Mode::empty()).on("open", path.display())
        };
        let mut join = JoinFds::default();
        if self.v2 {
            join.directory = Some(open(&self.whole, OFlags::PATH | OFlags::DIRECTORY)?);
            let events = self.whole.join("memory.events");
            join.oom = events.exists().then(|| open(&events, OFlags::RDONLY)).transpose()?;
            return Ok(join);
        }
        for folder in &self.folders {
            join.tasks.push(open(&folder.path.join("tasks"), OFlags::WRONLY)?);
        }
        if let Some(memory) = self.of("memory") {
            join.oom = Some(open(&memory.join("memory.oom_control"), OFlags::RDONLY)?);
        }
        Ok(join)
    }

    /// Makes a cgroup below this one, for an exec: all it starts can be killed by it, and the limits above hold. On v1
    /// only the freezer has it; in the other hierarchies the exec is in the container's own.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn child(&self, name: &str) -> Result<Self> {
        let child = self.existing_child(name);
        make_folder(&child.whole)?;
        Ok(child)
    }

    /// The cgroup below this one, whether it is there or not.
    #[must_use]
    pub fn existing_child(&self, name: &str) -> Self {
        let whole = self.whole.join(name);
        let folders = self.folders.iter().map(|folder| {
            let mut folder = folder.clone();
            if folder.path == self.whole {
                folder.path.clone_from(&whole);
            }
            folder
        });
        Self { whole: whole.clone(), folders: folders.collect(), v2: self.v2 }
    }

    /// Makes a cgroup next to this one, for an exec while this one is frozen: what is below it would be as well. The same
    /// limits hold; on v1 the exec leaves the freezer's alone.
    ///
    /// # Errors
    /// It cannot be made, or a limit is refused.
    pub fn beside(&self, name: &str, resources: &LinuxResources) -> Result<Self> {
        let other = self.existing_beside(name);
        make_folder(&other.whole)?;
        if self.v2 {
            drop(other.update(resources)?);
        }
        Ok(other)
    }

    /// The cgroup next to this one, whether it is there or not.
    #[must_use]
    pub fn existing_beside(&self, name: &str) -> Self {
        let mut leaf = self.whole.file_name().unwrap_or_default().to_owned();
        leaf.push(format!("{BESIDE}{name}"));
        let whole = self.whole.with_file_name(leaf);
        let mut folders = self.folders.clone();
        for folder in folders.iter_mut().filter(|folder| folder.path == self.whole) {
            folder.path.clone_from(&whole);
        }
        Self { whole, folders, v2: self.v2 }
    }

    /// Those next to it that a daemon has left behind.
    fn all_beside(&self) -> Vec<(Self, String)> {
        let entries = self.whole.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten();
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let leaf = self.whole.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!("{leaf}{BESIDE}");
        let beside = |name: String| {
            let name = name.strip_prefix(&prefix)?;
            Some((self.existing_beside(name), name.to_owned()))
        };
        names.filter_map(beside).collect()
    }

    /// Somebody has stopped everything in it (cgroup-v2.rst, `cgroup.freeze`; freezer-subsystem.rst).
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let (file, thawed) = if self.v2 { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        fs::read_to_string(self.whole.join(file)).is_ok_and(|state| state.trim() != thawed)
    }

    /// Kills everything in it and below, and waits until it has ended. One that is not there is empty.
    ///
    /// # Errors
    /// Something does not end.
    pub fn kill(&self) -> Result<()> {
        if self.v2 { kill::kill_v2(&self.whole) } else { kill::kill_v1(&self.whole) }
    }

    /// The processes in it and below.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>> {
        kill::processes(&self.whole)
    }

    /// Kills everything in it, and removes it with what is below. One that is not there is removed already.
    ///
    /// # Errors
    /// Something does not end, or a folder stays.
    pub fn release(&self) -> Result<()> {
        for (other, _) in self.all_beside() {
            other.kill()?;
            remove(&other.whole, Instant::now() + BUSY)?;
        }
        self.kill()?;
        for folder in &self.folders {
            remove(&folder.path, Instant::now() + BUSY)?;
        }
        Ok(())
    }

    /// Removes an exec's cgroup unless something in it still runs; whether it is gone.
    ///
    /// # Errors
    /// A folder stays for another reason.
    pub fn remove_if_empty(&self) -> Result<bool> {
        if !self.processes()?.is_empty() {
            return Ok(false);
        }
        remove(&self.whole, Instant::now() + BUSY).map(|()| true)
    }

    /// Kills the execs of these names, and removes the cgroups of all execs in which nothing runs; the names of those where
    /// something still does.
    ///
    /// # Errors
    /// Something does not end, or a folder stays.
    pub fn end_execs(&self, running: &[String]) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.whole).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let below = names.filter(|name| is_exec(name)).map(|name| (self.existing_child(&name), name));
        let mut left = Vec::new();
        for (exec, name) in below.chain(self.all_beside()) {
            if running.contains(&name) {
                exec.kill()?;
            }
            if !exec.remove_if_empty()? {
                left.push(name);
            }
        }
        Ok(left)
    }

    /// Removes it where nothing is in it or below it; else it stays as it is.
    ///
    /// # Errors
    /// A folder stays for another reason.
    pub fn remove_if_unused(&self) -> Result<()> {
        for folder in &self.folders {
            use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
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

    /// How often the kernel has killed in it for lack of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let file = match (self.v2, self.of("memory")) {
            (true, _) => self.whole.join("memory.events"),
            (false, Some(memory)) => memory.join("memory.oom_control"),
            (false, None) => return 0,
        };
        let text = fs::read_to_string(file).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    }
}

impl Folder {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|known| known == controller)
    }

    /// Makes the folder and those above it, each ready for processes or for the next.
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

/// Whether a name is that of an exec's cgroup (`exec-DAEMON-NUMBER`), and not one that the container has given to a cgroup of
/// its own.
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
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| CgroupError::File { action: "make", path: path.to_owned(), source }),
    }
}

/// Removes a folder with those below it, the deepest first. The kernel calls a cgroup busy for a moment after its last
/// process has ended.
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
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CgroupError::File { action: "remove", path: path.to_owned(), source: error });
            }
            _ => return Ok(()),
        }
    }
}
