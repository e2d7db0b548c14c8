//! The helper process of a checkpoint, which only the daemon starts.

use std::process::ExitCode;

use crate::checkpoint::dump;

pub(super) fn run() -> ExitCode {
    dump::helper()
}
