//! `delete`: removes a container that has ended.

use berth_runtime::hooks;
use berth_runtime::plan::{HookKind, Hooks};

use crate::arguments::{Delete, Global};
use crate::error::{Error, Result};
use crate::log;
use crate::start::hooks_of;
use crate::store::{Container, Status, Store};

/// Runs the command.
pub(crate) fn run(global: &Global, store: &Store, arguments: &Delete) -> Result<()> {
    let container = match store.find(&arguments.id) {
        Err(Error::NotFound(_)) if arguments.force => return Ok(()),
        found => found?,
    };
    match container.status()? {
        // As in runc, a container whose command never ran is deleted as well.
        Status::Stopped | Status::Created => {}
        _ if arguments.force => {}
        other => return Err(Error::State { id: container.record.id, state: other.name() }),
    }
    // A creation that was interrupted has no spec.
    let plan = hooks_of(&container).unwrap_or_else(|error| {
        log::warning(global, &error.to_string());
        None
    });
    delete(global, &container, plan.as_ref())
}

/// Kills what is left of a container, runs its `poststop` hooks and removes it. A hook that fails is logged (OCI runtime
/// specification, "Lifecycle").
pub(crate) fn delete(global: &Global, container: &Container, plan: Option<&Hooks>) -> Result<()> {
    container.cgroup()?.release()?;
    if let Some(plan) = plan
        && let Err(failure) = hooks::run(plan, HookKind::Poststop, 0, None)
    {
        log::warning(global, &format!("poststop: {failure}"));
    }
    container.remove_folder()
}
