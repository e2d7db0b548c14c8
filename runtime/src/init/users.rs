//! User namespaces without processes: for volumes with ids that differ from the pod's, and for a container that joins it.

use std::os::fd::{AsFd, OwnedFd};

use crate::plan::UserNamespace;
use crate::procfs::Proc;
use crate::sys;
use crate::sys::process::{kill, wait};
use crate::sys::spawn::SingleThread;

/// Creates a user namespace with these ids. It must contain a process until it is open (namespaces(7), "Namespace
/// lifetime").
///
/// # Errors
/// The caller lacks the privilege, or the ids are invalid.
pub fn namespace(ids: &UserNamespace, single: &SingleThread) -> sys::Result<OwnedFd> {
    let holder = single.spawn_userns_holder()?;
    let opened = map_and_open(holder.pid, ids);
    kill(holder.pidfd.as_fd());
    wait(holder.pidfd.as_fd())?;
    opened
}

/// Maps the ids and opens the namespace. Only a process outside of it may map arbitrary ids (user_namespaces(7),
/// "Defining user and group ID mappings").
fn map_and_open(holder: i32, ids: &UserNamespace) -> sys::Result<OwnedFd> {
    // The pid is one of this process's PID namespace, which may be new. The keeper's procfs does not show that
    // namespace.
    let proc = Proc::mount()?;
    proc.write(&format!("{holder}/uid_map"), &UserNamespace::lines(&ids.uids))?;
    proc.write(&format!("{holder}/gid_map"), &UserNamespace::lines(&ids.gids))?;
    proc.namespace(holder, "user")
}
