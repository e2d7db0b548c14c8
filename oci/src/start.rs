//! `start`: lets the first process of a container execute its command.

use std::os::fd::{AsFd, BorrowedFd};

use berth_runtime::compile::compile_hooks;
use berth_runtime::hooks;
use berth_runtime::init::START;
use berth_runtime::plan::{HookKind, Hooks};
use berth_runtime::sys::{process, socket};
use berth_runtime::wire::InitFailure;
use berth_runtime::wire::transport::{RECORD, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::child::vanished;
use crate::error::{At, Error, Result};
use crate::namespaces;
use crate::store::{Container, GATE, Status, Store};

/// Runs the command.
pub(crate) fn run(store: &Store, id: &str) -> Result<()> {
    start(&store.find(id)?)
}

/// Starts a created container, and runs its `poststart` hooks. If one fails, the container is stopped.
pub(crate) fn start(container: &Container) -> Result<()> {
    let id = &container.record.id;
    match container.status()? {
        Status::Created => {}
        other => return Err(Error::State { id: id.clone(), state: other.name() }),
    }
    let plan = hooks_of(container)?;
    let gate = socket::connect(&container.folder, GATE)?;
    let path = container.folder.join(GATE);
    // From now on the container is running, and cannot be started again.
    std::fs::remove_file(&path).at("remove", &path)?;
    rustix::io::ioctl_fionbio(&gate, false)
        .map_err(|errno| Error::Io { action: "use the gate's socket", source: errno.into() })?;
    open_gate(container, gate.as_fd(), plan.as_ref())
}

/// Lets the process behind this gate execute its command, and runs the `poststart` hooks.
pub(crate) fn open_gate(container: &Container, gate: BorrowedFd<'_>, plan: Option<&Hooks>) -> Result<()> {
    let id = &container.record.id;
    let failed = |failure: InitFailure| {
        let hook = plan.and_then(|plan| explain(plan, &failure));
        let why = hook.unwrap_or_else(|| failure.to_string());
        Error::Container { action: "start", id: id.clone(), why }
    };
    rustix::io::write(gate, &[START])
        .map_err(|errno| Error::Io { action: "start the first process", source: errno.into() })?;
    if let Err(failure) = wait(gate) {
        end(container);
        return Err(failed(failure));
    }
    let Some(plan) = plan.filter(|plan| plan.has(HookKind::Poststart)) else { return Ok(()) };
    if let Err(failure) = hooks::run(plan, HookKind::Poststart, container.record.pid, None) {
        end(container);
        return Err(failed(failure));
    }
    Ok(())
}

/// Kills the first process and waits for its end, after which the container can be deleted.
fn end(container: &Container) {
    let Some(process) = container.process() else { return };
    process::kill(process.as_fd());
    // A process in an uninterruptible sleep ends later.
    let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
    let _interrupted = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout));
}

/// Waits until the process has executed its command, which closes the socket.
fn wait(gate: BorrowedFd<'_>) -> std::result::Result<(), InitFailure> {
    loop {
        let mut record = [0_u8; RECORD];
        match socket::receive_from(gate, &mut record) {
            Ok(packet) if packet.length == 0 => return Ok(()),
            Ok(packet) => match Report::decode(record.get(..packet.length).unwrap_or_default()) {
                Some(Report::Failed(failure)) => return Err(failure),
                _ => return Err(vanished()),
            },
            Err(error) if error.errno == Errno::INTR => {}
            // ECONNRESET: it has ended before it has read everything.
            Err(_) => return Err(vanished()),
        }
    }
}

/// Returns the hooks of a container.
pub(crate) fn hooks_of(container: &Container) -> Result<Option<Hooks>> {
    let record = &container.record;
    let spec = container.spec()?;
    Ok(compile_hooks(&spec, &record.id, &record.bundle, namespaces::has_users(&spec))?)
}

/// Describes the failure of a hook with its path.
fn explain(plan: &Hooks, failure: &InitFailure) -> Option<String> {
    let (kind, hook) = plan.all().nth(usize::try_from(failure.index?).ok()?)?;
    let is_hook = failure.step == berth_runtime::wire::Step::Hook;
    is_hook.then(|| format!("{} hook {}: {failure}", kind.name(), hook.path))
}
