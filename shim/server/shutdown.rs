//! Shutdown of the server. SIGTERM and SIGINT stop it. SIGHUP is ignored: its default action would kill the
//! daemon when a terminal closes. Calls in flight have a bounded time to be answered. Pods keep running.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};

use super::counters::Counters;

/// How long calls in flight may take. The next daemon completes or undoes an operation that takes longer.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the last answers may take to be sent. Open streams (events, watches) never end by themselves;
/// they end with the process.
const FLUSH: Duration = Duration::from_millis(250);

/// The signals that the daemon handles.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that stops the daemon, and returns its name.
    pub async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                Some(()) = self.hangup.recv() => {}
            }
        }
    }
}

/// Waits, within bounds, until a stopping server has answered its calls in flight.
pub async fn drain(server: &mut JoinHandle<Result<(), tonic::transport::Error>>, counters: &Counters) {
    let answered = async {
        if tokio::time::timeout(DRAIN, counters.idle()).await.is_err() {
            tracing::warn!(
                calls = counters.describe_in_flight(),
                "calls were not answered before the shutdown"
            );
        }
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        ended = &mut *server => tracing::debug!(how = describe(ended), "server ended"),
        () = answered => server.abort(),
    }
}

/// Describes how a server ended.
pub fn describe(ended: Result<Result<(), tonic::transport::Error>, JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "all connections were closed".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    }
}
