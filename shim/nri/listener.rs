//! Accepts plugins that connect, and starts those of the plugin folder.

use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use super::adaptation::Adaptation;
use super::launch::{self, FoundPlugin};
use crate::config::NriConfig;
use crate::server::listener::{Socket, bind};

/// The most connections that have not registered. Further ones wait.
const MAX_UNREGISTERED: usize = 16;

/// The pause after an error of accept(2), which concerns one connection or a temporary lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Starts the plugins of the plugin folder and then listens. Returns the socket. A socket that cannot be used is logged, and
/// the daemon runs without it.
pub async fn start(adaptation: &Arc<Adaptation>, config: &NriConfig) -> Option<Socket> {
    if !config.enable {
        return None;
    }
    for found in launch::find(&config.plugin_path, &config.plugin_config_path) {
        let program = found.program.display().to_string();
        if let Err(error) = launch(adaptation, found).await {
            tracing::error!(program, error, "failed to start an NRI plugin");
        }
    }
    if config.disable_connections {
        return None;
    }
    match listen(config) {
        Ok((listener, socket)) => {
            tokio::spawn(accept(adaptation.clone(), listener));
            Some(socket)
        }
        Err(error) => {
            tracing::error!(error, "NRI plugins cannot connect");
            None
        }
    }
}

fn listen(config: &NriConfig) -> Result<(UnixListener, Socket), String> {
    let path = &config.socket_path;
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| format!("failed to create {}: {error}", folder.display()))?;
    }
    let (listener, socket) = bind(path).map_err(|error| error.to_string())?;
    let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
    Ok((listener.map_err(|error| format!("failed to listen on {}: {error}", path.display()))?, socket))
}

async fn accept(adaptation: Arc<Adaptation>, listener: UnixListener) {
    let unregistered = Arc::new(tokio::sync::Semaphore::new(MAX_UNREGISTERED));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = unregistered.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "failed to accept an NRI plugin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let adaptation = adaptation.clone();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = adaptation.connect(socket, None).await {
                tracing::error!(error, "an NRI plugin failed to connect");
            }
        });
    }
}

async fn launch(adaptation: &Arc<Adaptation>, found: FoundPlugin) -> Result<(), String> {
    let (mut process, socket) = launch::start(&found).map_err(|error| error.to_string())?;
    let socket = tokio::net::UnixStream::from_std(socket).map_err(|error| error.to_string())?;
    let connected = adaptation.connect(socket, Some(found.plugin)).await;
    match connected {
        Ok(plugin) => {
            tokio::spawn(async move {
                plugin.ended().await;
                end(&mut process).await;
            });
            Ok(())
        }
        Err(error) => {
            end(&mut process).await;
            Err(error)
        }
    }
}

/// The time in which a plugin whose connection has ended must exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

async fn end(process: &mut tokio::process::Child) {
    if tokio::time::timeout(EXIT_TIMEOUT, process.wait()).await.is_err() {
        // It has exited in the meantime, or is killed.
        drop(process.start_kill());
        drop(process.wait().await);
    }
}
