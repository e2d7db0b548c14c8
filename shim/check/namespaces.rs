//! Namespaces: each kind is made in a thread of its own and gone with it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sched::CloneFlags;

use super::{Found, Row, in_thread};

/// What berth starts itself with to try a user namespace: only a process with a single thread may make one (unshare(2)).
pub const USER_NAMESPACE_TRIAL: &str = "--try-user-namespace";

pub(super) fn rows(program: Option<PathBuf>) -> Vec<Row> {
    let mut rows: Vec<_> = [
        ("mount namespace", CloneFlags::CLONE_NEWNS),
        ("process namespace", CloneFlags::CLONE_NEWPID),
        ("network namespace", CloneFlags::CLONE_NEWNET),
        ("IPC namespace", CloneFlags::CLONE_NEWIPC),
        ("UTS namespace", CloneFlags::CLONE_NEWUTS),
        ("cgroup namespace", CloneFlags::CLONE_NEWCGROUP),
    ]
    .into_iter()
    .map(|(what, kind)| Row::tried(what, in_thread(move || make(kind))).required())
    .collect();
    rows.push(user(program).without("pods with a user namespace are refused"));
    rows
}

/// Leaves for new namespaces of these kinds.
pub(super) fn make(kinds: CloneFlags) -> Result<String, String> {
    match nix::sched::unshare(kinds) {
        Ok(()) => Ok("can be made".to_owned()),
        Err(errno) => Err(format!("unshare: {}", errno.desc())),
    }
}

fn user(program: Option<PathBuf>) -> Row {
    const WHAT: &str = "user namespace";
    let Some(program) = program else {
        return Row::new(WHAT, Found::Unknown, "the program's own file is not known");
    };
    let child =
        Command::new(program).args(["check", USER_NAMESPACE_TRIAL]).env_clear().stdin(Stdio::null()).output();
    match child {
        Ok(output) if output.status.success() => Row::new(WHAT, Found::Yes, "can be made"),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Row::new(WHAT, Found::No, if why.is_empty() { output.status.to_string() } else { why })
        }
        Err(error) => Row::new(WHAT, Found::Unknown, format!("start the trial: {error}")),
    }
}

/// The trial itself, in a process of its own.
///
/// # Errors
/// The namespace cannot be made.
pub fn try_user_namespace() -> Result<(), String> {
    make(CloneFlags::CLONE_NEWUSER).map(drop)
}
