//! The namespaces of a spec that need more than a flag of the clone: those by their path, user and time namespaces.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_runtime::init::users;
use berth_runtime::plan::UserNamespace;
use berth_runtime::sys::namespaces::{self, Namespaces};
use berth_runtime::sys::spawn::SingleThread;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{At, Error, Result};

/// No process has this pid, so no path of a spec is one of a pod, except for that of [`take_users`].
pub(crate) const NOBODY: i32 = 0;

/// The kinds of namespaces that a container joins by a descriptor.
const BY_DESCRIPTOR: [LinuxNamespaceType; 3] =
    [LinuxNamespaceType::Network, LinuxNamespaceType::Ipc, LinuxNamespaceType::Uts];

fn all(spec: &Spec) -> impl Iterator<Item = &LinuxNamespace> {
    spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten())
}

fn find(spec: &Spec, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    all(spec).find(|namespace| namespace.typ() == kind)
}

fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty())
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    Ok(fs::File::open(path).at("open namespace", path)?.into())
}

fn invalid(field: &'static str, why: &str) -> Error {
    Error::Invalid { field, why: why.to_owned() }
}

/// Opens the namespaces that the spec names by path and the plan refers to by descriptor.
pub(crate) fn open(spec: &Spec) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let joined = all(spec).filter(|namespace| BY_DESCRIPTOR.contains(&namespace.typ()));
    joined.filter_map(path_of).map(|path| Ok((path.to_owned(), open_path(path)?))).collect()
}

/// Removes the PID namespace from the spec if it has a path. Returns a process in it, unless it is this process's.
pub(crate) fn take_pid_target(spec: &mut Spec) -> Result<Option<OwnedFd>> {
    let kind = LinuxNamespaceType::Pid;
    let Some(path) = find(spec, kind).and_then(path_of).map(Path::to_owned) else { return Ok(None) };
    if let Some(linux) = spec.linux_mut() {
        let others = linux.namespaces().iter().flatten().filter(|other| other.typ() != kind).cloned();
        let others: Vec<_> = others.collect();
        linux.set_namespaces(Some(others));
    }
    let inode = fs::metadata(&path).at("open namespace", &path)?.ino();
    let of = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|stat| stat.ino());
    if of("self") == Some(inode) {
        return Ok(None);
    }
    // A process that may end first is not a good choice: the lowest pid is the namespace's first process.
    let entries = fs::read_dir("/proc").at("read", Path::new("/proc"))?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.filter(|pid| of(&pid.to_string()) == Some(inode)).min();
    let pidfd = found.and_then(Pid::from_raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    pidfd.map(Some).ok_or_else(|| invalid("linux.namespaces", "no process is in the PID namespace"))
}

/// Whether the spec has a user namespace, new or by its path.
pub(crate) fn has_users(spec: &Spec) -> bool {
    find(spec, LinuxNamespaceType::User).is_some()
}

/// Opens or creates the user namespace of the spec. The plan then joins it as it joins that of a pod.
pub(crate) fn take_users(spec: &mut Spec, ids: Option<&UserNamespace>) -> Result<Option<OwnedFd>> {
    let Some(namespace) = find(spec, LinuxNamespaceType::User) else { return Ok(None) };
    let ids = ids.filter(|ids| !ids.gids.is_empty());
    let ids = ids.ok_or_else(|| {
        invalid("linux.uidMappings", "a user namespace requires mappings of users and groups")
    })?;
    let opened = match path_of(namespace) {
        Some(path) => open_path(path)?,
        None => users::namespace(ids, &SingleThread::prove()?)?,
    };
    let kind = LinuxNamespaceType::User;
    let namespaces = spec.linux_mut().as_mut().and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten().filter(|namespace| namespace.typ() == kind) {
        namespace.set_path(Some(format!("/proc/{NOBODY}/ns/user").into()));
    }
    Ok(Some(opened))
}

/// The clocks of a container (time_namespaces(7)).
#[derive(Debug)]
pub(crate) enum Clocks {
    /// Those of an existing namespace.
    Existing(OwnedFd),
    /// New ones, with the lines of `/proc/PID/timens_offsets`.
    New(String),
}

/// The clocks of this process, to which it returns when this is dropped.
#[derive(Debug)]
pub(crate) struct OwnClocks(OwnedFd);

impl Clocks {
    /// Returns the clocks of a spec, if they are not the host's.
    pub(crate) fn of(spec: &Spec) -> Result<Option<Self>> {
        let linux = spec.linux().as_ref();
        let offsets = linux.and_then(|linux| linux.time_offsets().as_ref()).filter(|all| !all.is_empty());
        let Some(namespace) = find(spec, LinuxNamespaceType::Time) else {
            return match offsets {
                Some(_) => Err(invalid("linux.timeOffsets", "it requires a new time namespace")),
                None => Ok(None),
            };
        };
        if let Some(path) = path_of(namespace) {
            return match offsets {
                Some(_) => Err(invalid("linux.timeOffsets", "it requires a new time namespace")),
                None => Ok(Some(Self::Existing(open_path(path)?))),
            };
        }
        let mut lines = String::new();
        for (clock, offset) in offsets.into_iter().flatten() {
            if !["monotonic", "boottime"].contains(&clock.as_str()) {
                return Err(invalid("linux.timeOffsets", "only monotonic and boottime have offsets"));
            }
            let (seconds, rest) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            lines.push_str(&format!("{clock} {seconds} {rest}\n"));
        }
        Ok(Some(Self::New(lines)))
    }

    /// Returns the clocks of a process, if they are not those of this process.
    pub(crate) fn of_process(pid: i32) -> Result<Option<Self>> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/time"));
        let inode = |path: &Path| fs::metadata(path).ok().map(|stat| stat.ino());
        match inode(&path) {
            Some(other) if inode(Path::new("/proc/self/ns/time")) != Some(other) => {
                Ok(Some(Self::Existing(open_path(&path)?)))
            }
            _ => Ok(None),
        }
    }

    /// Makes the following children of this process have the clocks.
    pub(crate) fn enter(&self) -> Result<OwnClocks> {
        let own = OwnClocks(open_path(Path::new("/proc/self/ns/time"))?);
        match self {
            Self::Existing(namespace) => namespaces::join_of(namespace.as_fd(), Namespaces::TIME)?,
            Self::New(lines) => {
                namespaces::unshare(Namespaces::TIME)?;
                let path = Path::new("/proc/self/timens_offsets");
                if !lines.is_empty() {
                    fs::write(path, lines).at("write", path)?;
                }
            }
        }
        Ok(own)
    }
}

impl Drop for OwnClocks {
    fn drop(&mut self) {
        // The process has left this namespace a moment ago with the same privileges.
        drop(namespaces::join_of(self.0.as_fd(), Namespaces::TIME));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(linux: &str) -> Spec {
        let text = format!(r#"{{"ociVersion": "1.2.0", "root": {{"path": "r"}}, "linux": {linux}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn offsets_require_a_new_namespace_and_a_known_clock() {
        let lines = |linux: &str| match Clocks::of(&spec(linux)) {
            Ok(Some(Clocks::New(lines))) => Ok(lines),
            other => Err(format!("{other:?}")),
        };
        let new = r#""namespaces": [{"type": "time"}]"#;
        let offsets = r#""timeOffsets": {"boottime": {"secs": 86400, "nanosecs": 5}}"#;
        assert_eq!(lines(&format!("{{{new}, {offsets}}}")).unwrap(), "boottime 86400 5\n");
        assert_eq!(lines(&format!("{{{new}}}")).unwrap(), "");
        assert!(lines(&format!("{{{offsets}}}")).unwrap_err().contains("requires a new time namespace"));
        let unknown = offsets.replace("boottime", "realtime");
        assert!(lines(&format!("{{{new}, {unknown}}}")).unwrap_err().contains("only monotonic"));
    }

    #[test]
    fn a_user_namespace_requires_mappings() {
        let mut spec = spec(r#"{"namespaces": [{"type": "user"}]}"#);
        assert!(has_users(&spec));
        assert!(take_users(&mut spec, None).unwrap_err().to_string().contains("requires mappings"));
    }
}
