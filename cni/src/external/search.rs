//! Where the programs of plugins are found.

use std::path::PathBuf;

use super::Program;
use crate::names::is_name;

/// Where plugins are searched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Search {
    /// Folders of plugin programs.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Types of built-in plugins that run as programs nevertheless.
    pub(crate) external: Vec<String>,
    /// A daemon runs that renews DHCP leases.
    pub(crate) daemon: bool,
}

/// Returns the program of a type.
pub(crate) fn find(kind: &str, search: &Search) -> Result<Program, String> {
    // A link to this program is skipped: it would call itself forever.
    let own = std::env::current_exe().and_then(|own| own.canonicalize()).ok();
    let is_other = |program: &PathBuf| own.is_none() || program.canonicalize().ok() != own;
    let programs = search.bin_dirs.iter().map(|folder| folder.join(kind));
    let program = programs.filter(is_other).find(|program| program.is_file());
    match program {
        Some(path) if is_name(kind) => Ok(Program { kind: kind.to_owned(), path }),
        _ => {
            let folders: Vec<_> = search.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
            Err(format!("type: {kind:?} is not built in and not found in {}", folders.join(", ")))
        }
    }
}
