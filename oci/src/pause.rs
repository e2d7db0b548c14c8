//! `pause` and `resume`: freeze and thaw a container.

use crate::error::{Error, Result};
use crate::store::{Status, Store};

/// Runs the command.
pub(crate) fn run(store: &Store, id: &str, frozen: bool) -> Result<()> {
    let container = store.find(id)?;
    match (container.status()?, frozen) {
        (Status::Running | Status::Created, true) | (Status::Paused, false) => {}
        (Status::Stopped | Status::Creating, _) => return Err(Error::NotRunning),
        (other, _) => return Err(Error::State { id: id.to_owned(), state: other.name() }),
    }
    Ok(container.cgroup()?.set_frozen(frozen)?)
}
