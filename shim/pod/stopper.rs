//! The end of a pod: kills the containers, detaches the network, then ends keeper and pause, and with them the
//! namespaces.

use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_runtime::wire::Call;
use tonic::Status;
use tracing::Instrument;

use super::keeper;
use crate::cgroups::Cgroups;
use crate::container::exit;
use crate::daemon::Daemon;
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::leftovers::{self, Leftover};
use crate::network::PodNetwork;
use crate::nri::events::Notice;
use crate::operation::{OperationKey, Progress, StopPodStep};
use crate::pods::Pods;
use crate::store::{Level, Pod, PodState};

/// Stops pods: the parts of the daemon that it takes. Clones share them.
#[derive(Clone, Debug)]
pub struct PodStopper {
    /// The pods and containers.
    pub pods: Arc<Pods>,
    /// Their cgroups.
    pub cgroups: Cgroups,
    /// Their network.
    pub network: Arc<PodNetwork>,
}

impl PodStopper {
    /// Returns the parts of a daemon.
    #[must_use]
    pub fn of(daemon: &Daemon) -> Self {
        Self { pods: daemon.pods.clone(), cgroups: daemon.cgroups.clone(), network: daemon.network.clone() }
    }

    /// Stops a known pod, or joins the call that is stopping it.
    ///
    /// # Errors
    /// A resource of the pod cannot be released; a retry continues there.
    pub async fn stop(&self, pod: &Arc<Pod>) -> Result<(), Status> {
        if pod.state() == (PodState::NotReady { released: true }) {
            return Ok(());
        }
        let (stopper, pod) = (self.clone(), pod.clone());
        let operations = &self.pods.operations;
        operations
            .join(OperationKey::StopPod(pod.id.clone()), move |progress| async move {
                stopper.run_steps(&pod, &progress).await.map(|()| String::new()).map_err(Status::from)
            })
            .await
            .map(drop)
    }

    async fn run_steps(&self, pod: &Arc<Pod>, progress: &Progress) -> Result<(), CriError> {
        pod.transition(PodState::stopping);
        progress.step(StopPodStep::Creations);
        cancel_creations(pod).await?;
        progress.step(StopPodStep::Containers);
        self.kill_containers(pod).await?;
        self.pods.events.pod(pod, Level::Stopped);
        progress.step(StopPodStep::Plugins);
        for container in self.pods.store.containers_of(&pod.id) {
            self.pods.nri.stopped(&container).await;
        }
        if pod.first_stop() {
            self.pods.nri.pod(Notice::StopPod, pod).await;
        }
        progress.step(StopPodStep::Release);
        self.release(pod).await
    }

    /// Kills all containers of a pod in parallel.
    async fn kill_containers(&self, pod: &Arc<Pod>) -> Result<(), CriError> {
        let mut tasks = tokio::task::JoinSet::new();
        for container in self.pods.store.containers_of(&pod.id) {
            let (pods, cgroups) = (self.pods.clone(), self.cgroups.clone());
            let kill = async move {
                exit::kill(&pods, &cgroups, &container).await?;
                // The event of the pod follows those of its containers.
                pods.events.container(&container);
                Ok::<_, CriError>(())
            };
            tasks.spawn(kill.in_current_span());
        }
        let mut errors = Vec::new();
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => errors.push(error),
                Err(panic) => errors.push(CriError::internal("kill a container", panic)),
            }
        }
        // Only the first error is returned; it names its container.
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Releases the resources of a pod without running containers: its addresses, its keeper and pause with the
    /// namespaces, its cgroup. Continues after an error and reports all errors.
    ///
    /// # Errors
    /// The resources that could not be released.
    async fn release(&self, pod: &Arc<Pod>) -> Result<(), CriError> {
        let mut errors = Vec::new();
        if !pod.host_network()
            && let Err(error) = leftovers::remove(self.attachment_of(pod)).await
        {
            let error = format!("failed to detach the network: {error}");
            self.pods.events.network_failed(pod, &error);
            errors.push(error);
        }
        if let Some(link) = pod.link() {
            self.pods.write_exits().await;
            match keeper::shut_down(&link).await {
                Ok(()) => pod.set_link(None),
                Err(error) => errors.push(error),
            }
        }
        pod.set_netns(None);
        pod.set_userns(None);
        if let Err(error) = self.cgroups.release(pod.with(|record| record.cgroup.clone())).await {
            errors.push(format!("failed to remove the cgroup: {error}"));
        }
        if errors.is_empty() {
            pod.transition(PodState::released);
            return Ok(());
        }
        Err(CriError::internal(format!("stop pod sandbox {}", pod.id), errors.join("; ")))
    }

    fn attachment_of(&self, pod: &Pod) -> Leftover {
        let (network, store) = (self.network.clone(), self.pods.store.clone());
        Leftover::Attachment { network, store, pod: pod.id.clone() }
    }
}

/// The interval at which creations of containers are cancelled again: a creation may reach the keeper after the first
/// cancellation.
const CANCEL_INTERVAL: Duration = Duration::from_secs(1);

/// The time limit for a cancelled creation to end.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// Cancels the creation of containers: none of them may run after this.
async fn cancel_creations(pod: &Pod) -> Result<(), CriError> {
    let until = Instant::now() + CANCEL_TIMEOUT;
    let mut making = pod.wait_for_creations(Duration::ZERO).await;
    while !making.is_empty() {
        if Instant::now() > until {
            let ids: Vec<_> = making.iter().map(ContainerId::as_str).collect();
            let what = format!(
                "failed to stop pod sandbox {}: containers are still being created: {}",
                pod.id,
                ids.join(", ")
            );
            return Err(CriError::deadline(what));
        }
        for container in making.iter().map(|id| id.as_str().to_owned()) {
            // A creation that has not reached the keeper finds that the pod is not ready.
            if let Some(link) = pod.link() {
                drop(link.execute(Call::Forget { container }).await);
            }
        }
        making = pod.wait_for_creations(CANCEL_INTERVAL).await;
    }
    Ok(())
}
