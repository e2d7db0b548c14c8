//! A user namespace in which nothing lives: the ids of a volume that are not those of the pod.

use std::os::fd::{AsFd, OwnedFd};

use crate::plan::UserNamespace;
use crate::procfs::Proc;
use crate::sys;
use crate::sys::process::{kill, wait};
use crate::sys::spawn::SingleThread;

/// Makes one with these ids. A process must be in it until it is open (namespaces(7), "Namespace lifetime").
pub(super) fn namespace(ids: &UserNamespace, single: &SingleThread) -> sys::Result<OwnedFd> {
    let holder = single.holder_of_users()?;
    let made = map_and_open(holder.pid, ids);
    kill(holder.pidfd.as_fd());
    wait(holder.pidfd.as_fd())?;
    made
}

/// Only a process outside may map any ids (user_namespaces(7), "Defining user and group ID mappings").
fn map_and_open(holder: i32, ids: &UserNamespace) -> sys::Result<OwnedFd> {
    // The number is one of the PID namespace of this process, which the keeper's procfs does not show.
    let proc = Proc::mount()?;
    proc.write(&format!("{holder}/uid_map"), &UserNamespace::lines(&ids.uids))?;
    proc.write(&format!("{holder}/gid_map"), &UserNamespace::lines(&ids.gids))?;
    proc.namespace(holder, "user")
}
