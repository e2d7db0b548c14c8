//! The helper processes of a checkpoint and of the restore of a pod, which only the daemon starts.

use std::process::ExitCode;

use clap::Args;

use crate::checkpoint::{dump, shared_restore};

/// The arguments of the process that sets the last pid.
#[derive(Clone, Debug, Args)]
pub(super) struct LastPidArgs {
    /// The pid
    pid: u32,
}

pub(super) fn run() -> ExitCode {
    dump::serve()
}

pub(super) fn share() -> ExitCode {
    shared_restore::serve()
}

pub(super) fn set_last_pid(args: &LastPidArgs) -> ExitCode {
    shared_restore::set_last_pid(args.pid)
}
