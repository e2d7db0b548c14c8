//! The end of a container: what the keeper saw becomes its state, and what is left in its cgroup is killed.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::{ExitRecord, InitFailure};

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::store::{Container, ContainerState, Exit, ExitReason};

/// `ENOENT`: the exit code of a command that is not there is 127, of one that cannot be run 126, as a shell has it.
const ENOENT: i32 = 2;
/// How long the news of an end may take after the kill. A process in an uninterruptible sleep takes longer.
const AFTER_KILL: Duration = Duration::from_secs(30);
/// How long a keeper may take to answer that it is there.
const ANSWER: Duration = Duration::from_secs(10);

/// A container has ended.
pub async fn take(daemon: &Shared, container: &Arc<Container>, record: &ExitRecord) {
    tracing::debug!(container = container.id.as_str(), code = record.code, "ended");
    let exit = match &record.failure {
        Some(failure) => cannot_run(container, failure, record.finished_at),
        None => Exit::from_record(record),
    };
    if let Err(error) = container.change(|state| state.exited(exit.clone())) {
        tracing::error!(container = container.id.as_str(), %error, "record the end");
    }
    daemon.events.container(daemon, container);
    // With a process namespace of its own nothing is left; in a shared one or the host's the others live on.
    if let Err(error) = kill_cgroup(daemon, container).await {
        tracing::warn!(container = container.id.as_str(), %error, "kill what the container left behind");
    }
}

/// The end of a container whose command could not be run. The answer to the start and the news of the end can cross:
/// both come to this.
pub(super) fn cannot_run(container: &Container, failure: &InitFailure, finished_at: i64) -> Exit {
    let command = container
        .spec
        .whole()
        .ok()
        .and_then(|spec| spec.process().as_ref().and_then(|p| p.args().clone()))
        .and_then(|args| args.into_iter().next())
        .unwrap_or_default();
    Exit {
        code: if failure.errno == ENOENT { 127 } else { 126 },
        reason: ExitReason::ContainerCannotRun,
        message: format!("{failure}: {command:?}"),
        started_at: 0,
        finished_at,
    }
}

/// How a container ended will never be known.
pub async fn lost(daemon: &Shared, container: &Arc<Container>, why: &str) {
    if let Err(error) = kill_cgroup(daemon, container).await {
        tracing::warn!(container = container.id.as_str(), %error, "kill what the container left behind");
    }
    let changed = container.change(|state| match state {
        ContainerState::Running { started_at, .. } => state.exited(Exit::unknown(*started_at, why)),
        _ => state.exited(Exit::unknown(0, why)),
    });
    if let Err(error) = changed {
        tracing::error!(container = container.id.as_str(), %error, "record the end");
    }
    daemon.events.container(daemon, container);
}

/// Kills a container and waits until it has ended. The cgroup is the truth of what runs (DESIGN rule 4).
///
/// # Errors
/// It cannot be killed, or its end is not heard of.
pub async fn kill(daemon: &Shared, container: &Arc<Container>) -> Result<(), CriError> {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return Ok(());
    }
    kill_cgroup(daemon, container).await?;
    let Some(link) = daemon.store.pod(container.pod.as_str())?.link() else {
        lost(daemon, container, "the pod's keeper has ended").await;
        return Ok(());
    };
    if tokio::time::timeout(AFTER_KILL, container.ended()).await.is_ok() {
        return Ok(());
    }
    if !matches!(tokio::time::timeout(ANSWER, link.hello()).await, Ok(Ok(_))) {
        // Its cgroup is empty: it has ended, and the one that would tell is not well.
        lost(daemon, container, "the pod's keeper does not answer").await;
        return Ok(());
    }
    let pid = container.state().pid();
    let id = &container.id;
    Err(CriError::deadline(format!("kill container {id}: process {pid:?} does not end{}", waits_in(pid))))
}

/// Where in the kernel a process is stuck (proc(5), `wchan`), as the end of an error.
fn waits_in(pid: Option<i32>) -> String {
    let wchan = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok());
    wchan.map(|wchan| format!(", it waits in {wchan}")).unwrap_or_default()
}

async fn kill_cgroup(daemon: &Shared, container: &Container) -> Result<(), CriError> {
    let recorded = container.with(|record| record.cgroup.clone());
    let daemon = daemon.clone();
    blocking(move || {
        let path = CgroupPath::from_recorded(&recorded)?;
        Cgroup::open(&daemon.hierarchies, &path).kill()
    })
    .await
}
