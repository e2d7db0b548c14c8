//! The events of image pulls.

use std::future::Future;
use std::sync::Arc;

use berth_image::{Image, printable};
use berth_proto::admin::{NodeEvent, NodeEventKind};

use crate::daemon::Daemon;
use crate::error::CriError;

/// The longest error of a pull in an event.
const MAX_MESSAGE: usize = 2000;

/// Runs a pull, and reports its start and its end. A pull that is dropped, because its client has disconnected, has
/// failed.
pub(super) async fn pull(
    daemon: &Daemon,
    image: &str,
    pulling: impl Future<Output = Result<Arc<Image>, CriError>>,
) -> Result<Arc<Image>, CriError> {
    let mut report = Report { daemon, image, ended: false };
    report.send(NodeEventKind::PullStarted, String::new);
    let pulled = pulling.await;
    report.ended = true;
    match &pulled {
        Ok(pulled) => report.send(NodeEventKind::PullFinished, || pulled.id.to_string()),
        Err(error) => report.send(NodeEventKind::PullFailed, || error.to_string()),
    }
    pulled
}

struct Report<'a> {
    daemon: &'a Daemon,
    image: &'a str,
    ended: bool,
}

impl Report<'_> {
    fn send(&self, kind: NodeEventKind, message: impl FnOnce() -> String) {
        self.daemon.events.report(|| NodeEvent {
            kind: kind.into(),
            image: printable(self.image, MAX_MESSAGE),
            message: printable(&message(), MAX_MESSAGE),
            ..NodeEvent::default()
        });
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.send(NodeEventKind::PullFailed, || "the client has cancelled the pull".to_owned());
        }
    }
}
