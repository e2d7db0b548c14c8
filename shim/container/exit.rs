//! The end of a container: what the keeper saw becomes its state, and what is left in its cgroup is killed.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::cgroup::{Cgroup, CgroupPath};
use berth_runtime::wire::{ExitRecord, InitFailure};

use crate::daemon::{Shared, blocking};
use crate::error::CriError;
use crate::store::{Container, ContainerState, Exit, ExitReason};

/// The exit code of a container whose command could not be run, as containerd has it: no program ends with it by itself.
const START_FAILED: i32 = 128;
/// How long the news of an end usually takes after everything in the cgroup has ended.
const AT_ONCE: Duration = Duration::from_secs(1);
/// How long it may take from a keeper that answers.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// A container has ended. With a PID namespace of its own nothing is left of it; in a shared one or the host's, others of its
/// processes live on.
pub async fn take(daemon: &Shared, container: &Arc<Container>, record: &ExitRecord) {
    note(daemon, container, record).await;
    kill_rest(daemon, container).await;
}

/// That a container has ended, and how, is known.
pub(crate) async fn note(daemon: &Shared, container: &Arc<Container>, record: &ExitRecord) {
    tracing::debug!(container = container.id.as_str(), code = record.code, "ended");
    let exit = match &record.failure {
        Some(failure) => cannot_run(container, failure, record.finished_at).await,
        None => Exit::from_record(record),
    };
    container.transition(|state| state.exited(exit));
    daemon.events.container(daemon, container);
}

/// Kills what is left in the cgroup of a container that has ended.
pub(crate) async fn kill_rest(daemon: &Shared, container: &Arc<Container>) {
    if let Err(error) = kill_cgroup(daemon, container).await {
        tracing::warn!(container = container.id.as_str(), %error, "failed to kill what the container left behind");
    }
}

/// The end of a container whose command could not be run. The answer to the start and the news of the end can cross:
/// both come to this.
pub(super) async fn cannot_run(container: &Arc<Container>, failure: &InitFailure, finished_at: i64) -> Exit {
    let spec = container.clone();
    let command = blocking(move || spec.spec.whole())
        .await
        .ok()
        .and_then(|spec| spec.process().as_ref().and_then(|p| p.args().clone()))
        .and_then(|args| args.into_iter().next())
        .unwrap_or_default();
    Exit {
        code: START_FAILED,
        reason: ExitReason::StartError,
        message: format!("{failure}: {command:?}"),
        started_at: 0,
        finished_at,
    }
}

/// How a container ended will never be known.
pub(crate) fn lost(daemon: &Shared, container: &Container, why: &str) {
    container.transition(|state| match state {
        ContainerState::Running { started_at, .. } => state.exited(Exit::unknown(*started_at, why)),
        _ => state.exited(Exit::unknown(0, why)),
    });
    daemon.events.container(daemon, container);
}

/// Kills a container and waits until it has ended. The cgroup is the truth of what runs.
///
/// # Errors
/// Something in it does not end.
pub async fn kill(daemon: &Shared, container: &Arc<Container>) -> Result<(), CriError> {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return Ok(());
    }
    kill_cgroup(daemon, container).await?;
    let Some(link) = daemon.store.pod(container.pod.as_str())?.link() else {
        lost(daemon, container, "the pod's keeper has ended");
        return Ok(());
    };
    if tokio::time::timeout(AT_ONCE, container.ended()).await.is_ok() {
        return Ok(());
    }
    let answer = tokio::select! {
        _ended = container.ended() => return Ok(()),
        answer = link.hello() => answer,
    };
    let unheard = match answer {
        Ok(snapshot) if snapshot.containers.iter().any(|seen| seen.id == container.id.as_str()) => None,
        // The keeper has forgotten it for somebody who removes it: it tells nothing of it any more.
        Ok(_) => Some("it is being removed".to_owned()),
        // Its cgroup is empty: it has ended by the kill, and only the news of that is missing.
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = unheard {
        killed(daemon, container, &why);
        return Ok(());
    }
    if tokio::time::timeout(AFTER_KILL, container.ended()).await.is_ok() {
        return Ok(());
    }
    let pid = container.state().pid();
    let id = &container.id;
    Err(CriError::deadline(format!("kill container {id}: process {pid:?} does not end{}", waits_in(pid))))
}

/// A container was killed, and its keeper does not say so.
pub(crate) fn killed(daemon: &Shared, container: &Container, why: &str) {
    container.transition(|state| {
        let started_at = match state {
            ContainerState::Running { started_at, .. } => *started_at,
            _ => 0,
        };
        state.exited(Exit::killed(started_at, why))
    });
    daemon.events.container(daemon, container);
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
