//! The folders of containers: `ROOT/ID` has `state.json`, the container's spec as `config.json`, and, until the command
//! runs, the socket `gate.sock`. Only root may read them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use berth_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies};
use oci_spec::runtime::Spec;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::error::{At, Error, Result};

/// The name of the socket at which a first process waits for `start`.
pub(crate) const GATE: &str = "gate.sock";

/// All containers.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// The state of a container (OCI runtime specification, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The content of `state.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cgroup: String,
    /// The first process; 0 before it exists.
    pub(crate) pid: i32,
    /// When it started, in ticks since the boot. With the pid it identifies the process.
    pub(crate) start_time: u64,
    /// The secret name of the session keyring.
    pub(crate) keyring: String,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) folder: PathBuf,
    pub(crate) record: Record,
}

impl Store {
    /// Opens the store and creates its folder.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        make_folder(root, true).at("create", root)?;
        Ok(Self { root: root.to_owned() })
    }

    /// Creates the folder of a container.
    pub(crate) fn create(&self, record: Record) -> Result<Container> {
        check_id(&record.id)?;
        let folder = self.root.join(&record.id);
        match make_folder(&folder, false) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists(record.id));
            }
            made => made.at("create", &folder)?,
        }
        let container = Container { folder, record };
        container.write()?;
        Ok(container)
    }

    /// Finds a container.
    pub(crate) fn find(&self, id: &str) -> Result<Container> {
        check_id(id)?;
        Container::read(self.root.join(id))?.ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    /// Accepts the id of a container that does not exist yet.
    pub(crate) fn check_new(&self, id: &str) -> Result<()> {
        match self.find(id) {
            Ok(_) => Err(Error::Exists(id.to_owned())),
            Err(Error::NotFound(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Returns all containers.
    pub(crate) fn all(&self) -> Result<Vec<Container>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).at("read", &self.root)? {
            all.extend(Container::read(entry.at("read", &self.root)?.path())?);
        }
        all.sort_by(|a, b| a.record.id.cmp(&b.record.id));
        Ok(all)
    }
}

impl Container {
    fn read(folder: PathBuf) -> Result<Option<Self>> {
        let path = folder.join("state.json");
        let text = match fs::read(&path) {
            Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
                return Ok(None);
            }
            read => read.at("read", &path)?,
        };
        let record = serde_json::from_slice(&text).at("read", &path)?;
        Ok(Some(Self { folder, record }))
    }

    /// Writes the record; a reader never sees a part of it.
    pub(crate) fn write(&self) -> Result<()> {
        let (path, new) = (self.folder.join("state.json"), self.folder.join("state.json.new"));
        let text = serde_json::to_vec(&self.record).at("write", &path)?;
        fs::write(&new, text).at("write", &new)?;
        fs::rename(&new, &path).at("write", &path)
    }

    /// Keeps the spec, so that later changes of the bundle have no effect.
    pub(crate) fn keep_spec(&self, text: &[u8]) -> Result<()> {
        let path = self.folder.join("config.json");
        fs::write(&path, text).at("write", &path)
    }

    pub(crate) fn spec(&self) -> Result<Spec> {
        let path = self.folder.join("config.json");
        serde_json::from_slice(&fs::read(&path).at("read", &path)?).at("read", &path)
    }

    pub(crate) fn remove_folder(&self) -> Result<()> {
        fs::remove_dir_all(&self.folder).at("remove", &self.folder)
    }

    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        let hierarchies = hierarchies()?;
        Ok(Cgroup::open(&hierarchies, &CgroupPath::from_recorded(&self.record.cgroup)?))
    }

    pub(crate) fn status(&self) -> Result<Status> {
        if self.record.pid == 0 {
            return Ok(Status::Creating);
        }
        if start_time(self.record.pid) != Some(self.record.start_time) {
            return Ok(Status::Stopped);
        }
        if self.folder.join(GATE).exists() {
            return Ok(Status::Created);
        }
        Ok(if self.cgroup()?.is_frozen() { Status::Paused } else { Status::Running })
    }

    /// Returns a pidfd of the first process, or `None` if it has ended.
    pub(crate) fn process(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.record.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have been reused before the descriptor was opened, but not afterwards.
        (start_time(self.record.pid) == Some(self.record.start_time)).then_some(pidfd)
    }
}

/// Returns the cgroup hierarchies of this host, which are detected once.
pub(crate) fn hierarchies() -> Result<Hierarchies> {
    static DETECTED: OnceLock<Hierarchies> = OnceLock::new();
    if let Some(detected) = DETECTED.get() {
        return Ok(detected.clone());
    }
    let detected = Hierarchies::detect()
        .map_err(|source| Error::Io { action: "find the cgroup hierarchies", source })?;
    Ok(DETECTED.get_or_init(|| detected).clone())
}

/// Returns when a process started, or `None` if it has ended (proc_pid_stat(5), fields 3 and 22).
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (!matches!(state, "Z" | "X")).then(|| started.parse().ok()).flatten()
}

fn make_folder(path: &Path, recursive: bool) -> io::Result<()> {
    fs::DirBuilder::new().recursive(recursive).mode(0o700).create(path)
}

/// Accepts the ids that runc accepts.
fn check_id(id: &str) -> Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.chars().all(valid) {
        let why = format!("{id:?} must have letters, digits, and \"_+-.\"");
        return Err(Error::Invalid { field: "container id", why });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_of_folders() {
        for id in ["a", "A-b_c.1+", "..."] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", "a/b", "a b", "\u{e4}"] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_process_is_identified_by_its_start() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|time| time > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
