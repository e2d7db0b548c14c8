//! Lists allocated addresses without the lock: a listing creates and changes nothing.

use std::fs;
use std::io;
use std::path::Path;

use super::index::address_of;
use super::owner::Owner;
use crate::{Context, Result};

/// Returns the names of the address files of a folder, with their owners.
///
/// # Errors
/// The folder exists and cannot be read.
pub(crate) fn listed(folder: &Path) -> Result<Vec<(String, Owner)>> {
    let failed = || format!("read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(failed())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.doing(failed())?.file_name().to_string_lossy().into_owned();
        if address_of(&name).is_none() {
            continue;
        }
        match fs::read(folder.join(&name)) {
            Ok(text) => found.push((name, Owner::parse(&String::from_utf8_lossy(&text)))),
            // It was released meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(format!("read {}", folder.join(name).display())),
        }
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(found)
}
