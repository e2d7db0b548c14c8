//! How the server ends: SIGTERM and SIGINT stop it, SIGHUP does nothing (its default would kill the daemon when a
//! terminal closes), and what is in flight has a bounded time to be answered. Pods do not notice.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, JoinHandle};

use super::counters::Counters;

/// How long calls in flight may take. An operation that outlasts it is taken up or undone by the next daemon.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the last answers may take to leave. Open streams (events, watches) never end by themselves; they end with
/// the process.
const FLUSH: Duration = Duration::from_millis(250);

/// The signals that the daemon handles.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes over the signals.
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

    /// Waits for one that asks the daemon to stop, and names it.
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

/// Lets a server that has been told to stop answer what is in flight, within bounds.
pub async fn drain(server: &mut JoinHandle<Result<(), tonic::transport::Error>>, counters: &Counters) {
    let answered = async {
        if tokio::time::timeout(DRAIN, counters.idle()).await.is_err() {
            tracing::warn!(calls = counters.describe_in_flight(), "not answered in time");
        }
        tokio::time::sleep(FLUSH).await;
    };
    tokio::select! {
        ended = &mut *server => tracing::debug!(how = describe(ended), "server ended"),
        () = answered => server.abort(),
    }
}

/// How a server ended, in words.
pub fn describe(ended: Result<Result<(), tonic::transport::Error>, JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "there are no more connections".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    }
}
