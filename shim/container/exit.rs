//! The exit of a container: records the state that the keeper reports, and kills the remaining processes in its
//! cgroup.

use std::sync::Arc;
use std::time::Duration;

use berth_runtime::wire::{ExitRecord, InitFailure};

use super::{hooks, oom_kills, restore};
use crate::blocking::blocking;
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::event::Events;
use crate::pods::Pods;
use crate::store::{Container, ContainerState, Exit, ExitReason};

/// The exit code of a container with a command that could not be run, as in containerd. Programs do not normally exit
/// with it.
const START_FAILED: i32 = 128;
/// The usual delay of the keeper's exit event after all processes of the cgroup have ended.
const USUAL_DELAY: Duration = Duration::from_secs(1);
/// The longest delay of the exit event of a keeper that answers.
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Handles the exit of a container. With a separate PID namespace no process is left; in a shared namespace or the
/// host's, other processes of the container continue to run and are killed.
pub async fn handle(pods: &Pods, cgroups: &Cgroups, container: &Arc<Container>, record: &ExitRecord) {
    if record.oom_killed {
        oom_kills::report(pods, cgroups, container).await;
    }
    record_exit(pods, container, record).await;
    kill_rest(cgroups, container).await;
}

/// Records the exit of a container.
pub(crate) async fn record_exit(pods: &Pods, container: &Arc<Container>, record: &ExitRecord) {
    tracing::debug!(container = container.id.as_str(), code = record.code, "container exited");
    let exit = match &record.failure {
        Some(failure) => cannot_run(container, failure, record.finished_at).await,
        None => Exit::from_record(record),
    };
    let is_news = !matches!(container.state(), ContainerState::Exited(_));
    if is_news && exit.reason == ExitReason::OomKilled {
        pods.instruments.container_out_of_memory();
        // Without its cgroup the number is not known; the exit shows that there was at least one.
        oom_kills::report_up_to(pods, container, 1);
    }
    container.transition(|state| state.exited(exit));
    pods.events.container(container);
}

/// Kills the remaining processes in the cgroup of a container that has exited.
pub(crate) async fn kill_rest(cgroups: &Cgroups, container: &Arc<Container>) {
    if let Err(error) = kill_cgroup(cgroups, container).await {
        tracing::warn!(container = container.id.as_str(), %error, "failed to kill the remaining processes");
    }
}

/// Returns the exit of a container with a command that could not be run. The answer to the start and the exit event
/// can arrive in either order: both use this.
pub(super) async fn cannot_run(container: &Arc<Container>, failure: &InitFailure, finished_at: i64) -> Exit {
    let spec = container.clone();
    let spec = blocking(move || spec.spec.whole()).await.ok();
    let hook = spec.as_ref().and_then(|spec| hooks::explain(spec, container, failure));
    let explained = hook.or(restore::explain(container, failure).await);
    let command = spec
        .and_then(|spec| spec.process().as_ref().and_then(|p| p.args().clone()))
        .and_then(|args| args.into_iter().next())
        .unwrap_or_default();
    Exit {
        code: START_FAILED,
        reason: ExitReason::StartError,
        message: explained.unwrap_or_else(|| format!("{failure}: {command:?}")),
        started_at: 0,
        finished_at,
    }
}

/// Records an exit with unknown code and reason.
pub(crate) fn record_unknown_exit(events: &Events, container: &Container, why: &str) {
    container.transition(|state| match state {
        ContainerState::Running { started_at, .. } => state.exited(Exit::unknown(*started_at, why)),
        _ => state.exited(Exit::unknown(0, why)),
    });
    events.container(container);
}

/// Kills a container and waits for its exit. The cgroup, not the record, determines which processes run.
///
/// # Errors
/// A process of the container does not end.
pub async fn kill(pods: &Pods, cgroups: &Cgroups, container: &Arc<Container>) -> Result<(), CriError> {
    if matches!(container.state(), ContainerState::Exited(_)) {
        return Ok(());
    }
    kill_cgroup(cgroups, container).await?;
    let Some(link) = pods.keeper_of(container)? else {
        record_unknown_exit(&pods.events, container, "the pod's keeper has ended");
        return Ok(());
    };
    if tokio::time::timeout(USUAL_DELAY, container.ended()).await.is_ok() {
        return Ok(());
    }
    let answer = tokio::select! {
        _ended = container.ended() => return Ok(()),
        answer = link.hello() => answer,
    };
    let missing_event = match answer {
        Ok(snapshot) if snapshot.containers.iter().any(|seen| seen.id == container.id.as_str()) => None,
        // A concurrent removal made the keeper forget the container: the keeper sends no event for it.
        Ok(_) => Some("it is being removed".to_owned()),
        // The cgroup is empty, so the kill ended the container. Only the event is missing.
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = missing_event {
        record_kill(&pods.events, container, &why);
        return Ok(());
    }
    if tokio::time::timeout(LONGEST_DELAY, container.ended()).await.is_ok() {
        return Ok(());
    }
    let pid = container.state().pid();
    let id = &container.id;
    let why = format!("process {pid:?} does not end{}", waits_in(pid));
    Err(CriError::deadline(format!("failed to kill container {id}: {why}")))
}

/// Records that a container was killed when its keeper does not report it.
pub(crate) fn record_kill(events: &Events, container: &Container, why: &str) {
    container.transition(|state| {
        let started_at = match state {
            ContainerState::Running { started_at, .. } => *started_at,
            _ => 0,
        };
        state.exited(Exit::killed(started_at, why))
    });
    events.container(container);
}

/// Returns the kernel function in which a process waits (proc(5), `wchan`), as the end of an error text.
fn waits_in(pid: Option<i32>) -> String {
    let wchan = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/wchan")).ok());
    wchan.map(|wchan| format!(", it waits in {wchan}")).unwrap_or_default()
}

async fn kill_cgroup(cgroups: &Cgroups, container: &Container) -> Result<(), CriError> {
    cgroups.kill(container.with(|record| record.cgroup.clone())).await
}
