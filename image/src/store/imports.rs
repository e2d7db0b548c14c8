//! The record of the import folder: its files, and the images that they have given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Inner;
use super::durable::durable_replace;
use super::folders::read_json;
use crate::digest::Digest;
use crate::error::Error;

/// The file that records the imports.
const RECORD: &str = "imported.json";

/// The imported files, by their names in the folder.
pub(crate) type Imports = BTreeMap<String, Import>;

/// The images of one imported file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Import {
    pub(crate) stamp: Stamp,
    pub(crate) images: BTreeSet<Digest>,
}

/// Identifies a version of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    /// The mtime and the ctime, in nanoseconds since the epoch.
    changed: [i128; 2],
}

impl Stamp {
    pub(crate) fn of(stat: &fs::Metadata) -> Self {
        let time =
            |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        let changed = [time(stat.mtime(), stat.mtime_nsec()), time(stat.ctime(), stat.ctime_nsec())];
        Self { inode: stat.ino(), size: stat.len(), changed }
    }
}

/// Reads the record of imports that former daemons wrote.
pub(crate) fn read_imports(root: &Path) -> Imports {
    read_json(&root.join(RECORD)).unwrap_or_default()
}

/// Returns the images of all imported files.
pub(crate) fn images_of(imports: &Imports) -> BTreeSet<Digest> {
    imports.values().flat_map(|import| import.images.iter().cloned()).collect()
}

impl Inner {
    /// Records the imports, and updates the images whose pinning changes.
    pub(crate) fn set_imports(self: &Arc<Self>, imports: Imports) -> Result<(), Error> {
        let before = self.imports();
        if before == imports {
            return Ok(());
        }
        durable_replace(&self.options.root.join(RECORD), &imports)?;
        let (old, new) = (images_of(&before), images_of(&imports));
        self.replace_imports(imports);
        old.symmetric_difference(&new).try_for_each(|id| self.refresh(id))
    }
}
