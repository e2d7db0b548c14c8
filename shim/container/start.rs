//! StartContainer: sends one message to the keeper, which lets the first process exec.

use std::sync::Arc;

use berth_runtime::plan::HookKind;
use berth_runtime::wire::{Call, Failure, InitFailure, Outcome};
use tonic::Status;

use super::{exit, hooks, reconcile, restore};
use crate::cgroups::Cgroups;
use crate::error::CriError;
use crate::event::Events;
use crate::keeper::KeeperError;
use crate::nri::events::Notice;
use crate::operation::{OperationKey, Progress, StartStep};
use crate::pods::Pods;
use crate::store::{Container, ContainerState};

/// Starts a created container.
///
/// # Errors
/// `FailedPrecondition` in any other state; the reason why the command cannot be run, which the status then contains
/// too.
pub async fn start_container(pods: &Arc<Pods>, cgroups: &Cgroups, id: &str) -> Result<(), Status> {
    let container = pods.store.container(id)?;
    let span = tracing::Span::current();
    span.record("container", container.id.as_str());
    span.record("pod", container.pod.as_str());
    let (starting, cgroups) = (pods.clone(), cgroups.clone());
    pods.operations
        .join(OperationKey::Start(container.id.clone()), move |progress| async move {
            with_plugins(&starting, &cgroups, &container, &progress)
                .await
                .map(|()| String::new())
                .map_err(Status::from)
        })
        .await
        .map(drop)
}

/// Starts a container between the two events of NRI. A plugin may update the container during them, so they are outside of
/// its turn.
async fn with_plugins(
    pods: &Pods,
    cgroups: &Cgroups,
    container: &Arc<Container>,
    progress: &Progress,
) -> Result<(), CriError> {
    if container.state().may_start().is_ok() {
        progress.step(StartStep::Plugins);
        pods.nri.container(Notice::Start, container).await?;
    }
    run_steps(pods, cgroups, container, progress).await?;
    progress.step(StartStep::Started);
    pods.nri.after(Notice::PostStart, container).await;
    Ok(())
}

async fn run_steps(
    pods: &Pods,
    cgroups: &Cgroups,
    container: &Arc<Container>,
    progress: &Progress,
) -> Result<(), CriError> {
    let _turn = container.turn.write().await;
    pods.store.container(container.id.as_str())?;
    let what = || format!("container {}", container.id);
    container.state().may_start().map_err(|why| CriError::precondition(what(), why))?;
    let pod = pods.store.pod(container.pod.as_str())?;
    let link = match (pod.state().pause(), pod.link()) {
        (Some(_), Some(link)) => link,
        _ => return Err(CriError::precondition(format!("pod sandbox {}", pod.id), "it is not ready")),
    };
    progress.step(StartStep::Exec);
    let more = hooks::longest(container, &[HookKind::StartContainer, HookKind::Poststart]).await;
    let more = more.saturating_add(restore::time_of_start(container));
    let call = Call::Start { container: container.id.as_str().to_owned() };
    let call = link.call_with(call, Vec::new(), more);
    let answer = tokio::select! {
        biased;
        answer = call => answer,
        // Stop and remove do not wait for a keeper that does not answer: they end the container, and this call.
        _ended = container.ended() => return Err(CriError::precondition(what(), "it has ended")),
    };
    match answer {
        Ok((Outcome::Started { at, pid }, _)) => {
            container.transition(|state| state.started(at).with_pid(pid));
            pods.events.container(container);
            if pid.is_some() {
                restore::clean_up(container).await;
            }
            Ok(())
        }
        Ok((other, _)) => Err(KeeperError::Unexpected(format!("{other:?}")).into()),
        Err(KeeperError::Failure(Failure::Init(failure))) => {
            cannot_run(&pods.events, container, &failure).await
        }
        // The state in the keeper shows whether the command runs. An earlier daemon may have started it: a restore takes long.
        Err(error @ (KeeperError::Broken { .. } | KeeperError::Failure(Failure::State { .. }))) => {
            if let Ok(snapshot) = link.hello().await {
                reconcile::reconcile_pod(pods, cgroups, &pod, &link, &snapshot).await;
            }
            match container.state() {
                ContainerState::Running { .. } => Ok(()),
                _ => Err(error.into()),
            }
        }
        Err(error) => Err(error.into()),
    }
}

async fn cannot_run(
    events: &Events,
    container: &Arc<Container>,
    failure: &InitFailure,
) -> Result<(), CriError> {
    let exit = exit::cannot_run(container, failure, crate::clock::now()).await;
    let message = exit.message.clone();
    container.transition(|state| state.exited(exit));
    events.container(container);
    restore::clean_up(container).await;
    Err(CriError::failed(format!("start container {}", container.id), message))
}
