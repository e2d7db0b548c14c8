//! Calls of a container's OCI runtime by the daemon. They start no process of the container.

use std::path::PathBuf;
use std::time::Duration;

use berth_runtime::runtime_call::{RuntimeCall, RuntimeCallError};
use oci_spec::runtime::LinuxResources;

use crate::blocking::blocking;
use crate::error::CriError;
use crate::ids::ContainerId;
use crate::store::container::ContainerRuntime;
use crate::store::file;

/// The time limit of a call.
const LIMIT: Duration = Duration::from_secs(20);

fn call(runtime: &ContainerRuntime, name: &str, limit: Duration) -> RuntimeCall {
    RuntimeCall::about_container(&runtime.program, &runtime.root, name, None, limit)
}

async fn run(call: RuntimeCall) -> Result<Result<(), RuntimeCallError>, CriError> {
    blocking(move || Ok::<_, CriError>(call.run(None))).await
}

/// Sends a signal to the first process of a container.
///
/// # Errors
/// The runtime fails, or the container does not run any more.
pub async fn kill(runtime: &ContainerRuntime, id: &ContainerId, signal: i32) -> Result<(), CriError> {
    let call = call(runtime, "kill", LIMIT).args([id.as_str(), &signal.to_string()]);
    run(call).await?.map_err(|error| CriError::failed(format!("signal container {id}"), error))
}

/// Has the runtime forget a container, and kill it if it runs. Succeeds if the runtime does not know the container. The
/// `poststop` hooks run meanwhile; `more` is their time.
///
/// # Errors
/// The runtime fails.
pub async fn delete(runtime: &ContainerRuntime, id: &ContainerId, more: Duration) -> Result<(), CriError> {
    let state = runtime.root.join(id.as_str());
    let call = call(runtime, "delete", LIMIT.saturating_add(more));
    let deleted = run(call.args(["--force", id.as_str()])).await?;
    let Err(error) = deleted else { return Ok(()) };
    if error.missing {
        tracing::warn!(container = id.as_str(), %error, "removing the state of a container without its runtime");
        return remove_state(state).await;
    }
    match tokio::fs::try_exists(&state).await {
        Ok(false) => Ok(()),
        _ => Err(CriError::failed(format!("delete container {id}"), error)),
    }
}

async fn remove_state(folder: PathBuf) -> Result<(), CriError> {
    blocking(move || file::remove_folder(&folder)).await
}

/// Changes the limits of a container, which has not ended.
///
/// # Errors
/// The runtime fails.
pub async fn update(
    runtime: &ContainerRuntime,
    id: &ContainerId,
    limits: &LinuxResources,
) -> Result<(), CriError> {
    let failed = |why: String| CriError::failed(format!("update container {id}"), why);
    let mut limits = limits.clone();
    // The devices never change.
    limits.set_devices(None);
    let text = serde_json::to_string(&limits).map_err(|error| failed(error.to_string()))?;
    let call = call(runtime, "update", LIMIT).args(["--resources", "-", id.as_str()]);
    let call = call.input(&text).map_err(|error| failed(error.to_string()))?;
    run(call).await?.map_err(|error| failed(error.to_string()))
}
