//! `berth version`.

use std::process::ExitCode;

use crate::info::{API_VERSION, NAME, VERSION};

pub(super) fn run() -> ExitCode {
    super::print(&format!("{NAME} {VERSION} (CRI {API_VERSION})\n"))
}
