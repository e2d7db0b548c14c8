//! Tries each kind of namespace in a separate thread.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;

use super::{Availability, HostFeature, in_thread};

/// The flag with which berth starts itself to try a user namespace: only a single-threaded process may create one
/// (unshare(2)).
pub const USER_NAMESPACE_TRIAL: &str = "--try-user-namespace";

pub(super) fn rows(program: Option<PathBuf>) -> Vec<HostFeature> {
    let mut rows: Vec<_> = [
        ("mount namespace", CloneFlags::CLONE_NEWNS),
        ("process namespace", CloneFlags::CLONE_NEWPID),
        ("network namespace", CloneFlags::CLONE_NEWNET),
        ("IPC namespace", CloneFlags::CLONE_NEWIPC),
        ("UTS namespace", CloneFlags::CLONE_NEWUTS),
        ("cgroup namespace", CloneFlags::CLONE_NEWCGROUP),
    ]
    .into_iter()
    .map(|(what, kind)| HostFeature::tried(what, in_thread(move || make(kind))).required())
    .collect();
    rows.push(user(program).without("pods with a user namespace are refused"));
    rows
}

/// Moves this thread into new namespaces of these kinds.
pub(super) fn make(kinds: CloneFlags) -> Result<String, String> {
    match nix::sched::unshare(kinds) {
        Ok(()) => Ok("available".to_owned()),
        Err(errno) => Err(format!("unshare: {}", errno.desc())),
    }
}

fn user(program: Option<PathBuf>) -> HostFeature {
    const WHAT: &str = "user namespace";
    let Some(program) = program else {
        return HostFeature::new(WHAT, Availability::Unknown, "the path of the berth binary is not known");
    };
    let child =
        Command::new(program).args(["check", USER_NAMESPACE_TRIAL]).env_clear().stdin(Stdio::null()).output();
    match child {
        Ok(output) if output.status.success() => HostFeature::new(WHAT, Availability::Yes, "available"),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            HostFeature::new(
                WHAT,
                Availability::No,
                if why.is_empty() { output.status.to_string() } else { why },
            )
        }
        Err(error) => {
            HostFeature::new(WHAT, Availability::Unknown, format!("failed to start the trial: {error}"))
        }
    }
}

/// Tries to create a user namespace in this process, which must have one thread.
///
/// # Errors
/// The namespace cannot be created.
pub fn try_user_namespace() -> Result<(), String> {
    make(CloneFlags::CLONE_NEWUSER).map(drop)
}
