//! The helper processes of a restore, which only the keeper and CRIU start.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::checkpoint::{restore, restore_check};

/// The arguments of a script.
#[derive(Clone, Debug, Args)]
pub(super) struct ConfineArgs {
    /// The script that names this program as its interpreter
    script: PathBuf,
}

pub(super) fn run() -> ExitCode {
    restore::helper()
}

pub(super) fn check() -> ExitCode {
    restore_check::check_helper()
}
