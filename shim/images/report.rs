//! The events of image pulls.

use std::future::Future;

use berth_image::printable;
use berth_proto::admin::{NodeEvent, NodeEventKind};

use crate::error::CriError;
use crate::event::Events;

/// The longest error of a pull in an event.
const MAX_MESSAGE: usize = 2000;

/// Runs a pull, which returns the id of the image, and reports its start and its end. A pull that is dropped, because its client has disconnected, has
/// failed.
///
/// # Errors
/// The error of the pull.
pub async fn pull(
    events: &Events,
    image: &str,
    pulling: impl Future<Output = Result<String, CriError>>,
) -> Result<String, CriError> {
    let mut report = PullReport { events, image, ended: false };
    report.send(NodeEventKind::PullStarted, "");
    let pulled = pulling.await;
    report.ended = true;
    match &pulled {
        Ok(id) => report.send(NodeEventKind::PullFinished, id),
        Err(error) => report.send(NodeEventKind::PullFailed, &error.to_string()),
    }
    pulled
}

struct PullReport<'a> {
    events: &'a Events,
    image: &'a str,
    ended: bool,
}

impl PullReport<'_> {
    fn send(&self, kind: NodeEventKind, message: &str) {
        self.events.report(NodeEvent {
            kind: kind.into(),
            image: printable(self.image, MAX_MESSAGE),
            message: printable(message, MAX_MESSAGE),
            ..NodeEvent::default()
        });
    }
}

impl Drop for PullReport<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.send(NodeEventKind::PullFailed, "the client has cancelled the pull");
        }
    }
}
