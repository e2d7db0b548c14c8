//! Health checks for the service manager's watchdog (systemd.service(5), `WatchdogSec=`). The daemon reports that it is
//! healthy only after it has answered calls on its own socket. The service manager restarts a daemon that does not
//! report in time; pods keep running. Without a watchdog there is no timer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::{
    ContainerFilter, ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter, VersionRequest,
};
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::{connect, notify};

/// An id that no pod and no container has: ids consist of hexadecimal digits.
const NO_ID: &str = "health-check";

/// Starts the checks if the service manager has a watchdog. They end when the returned handle is dropped.
#[must_use]
pub fn start(socket: &Path) -> Option<AbortOnDropHandle<()>> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero())?;
    tracing::info!(?limit, "the service manager has a watchdog");
    Some(AbortOnDropHandle::new(tokio::spawn(run(socket.to_owned(), limit))))
}

/// Checks and reports three times in each period of the watchdog, so that one late check is not fatal.
async fn run(socket: PathBuf, limit: Duration) {
    let mut ticks = tokio::time::interval(limit / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(limit / 2, check(&socket)).await {
            Ok(Ok(())) => notify::healthy(),
            Ok(Err(error)) => tracing::error!(%error, "failed the health check"),
            Err(_) => tracing::error!(limit = ?limit / 2, "failed the health check: no answer in time"),
        }
    }
}

/// Connects to the daemon as a client does and makes calls that need every part of the answering path: the listener, the
/// server, and the locks of all pods and containers. The calls do not touch the disk, because a restart does not repair a
/// disk that hangs.
async fn check(socket: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut client = RuntimeServiceClient::new(connect(socket).await?);
    client.version(VersionRequest::default()).await?;
    let filter = Some(PodSandboxFilter { id: NO_ID.to_owned(), ..PodSandboxFilter::default() });
    client.list_pod_sandbox(ListPodSandboxRequest { filter }).await?;
    let filter = Some(ContainerFilter { id: NO_ID.to_owned(), ..ContainerFilter::default() });
    client.list_containers(ListContainersRequest { filter }).await?;
    Ok(())
}
