//! Follows a log file until its container has exited, also when the kubelet rotates the file. The kernel notifies of
//! changes (inotify(7)); nothing polls.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use berth_proto::v1::{ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest};
use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tonic::Streaming;

use super::record::{Joiner, LogReader};
use crate::cli::node::NodeClient;

/// The notifications about a log file, and about the end of its container.
#[derive(Debug)]
pub(super) struct Follower {
    id: String,
    path: PathBuf,
    /// The file before the last rotation. The keeper may write to it until it has switched to the new one.
    rotated: Option<LogReader>,
    changes: EventStream<[u8; 4096]>,
    events: Streaming<ContainerEventResponse>,
}

impl Follower {
    /// Subscribes to changes of the file and of the container.
    pub(super) async fn start(node: &mut NodeClient, id: &str, path: &Path) -> Result<Self, String> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let failed = |error: io::Error| format!("failed to watch {}: {error}", folder.display());
        let inotify = Inotify::init().map_err(failed)?;
        // The folder, since the file is replaced when it is rotated.
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO;
        inotify.watches().add(folder, mask).map_err(failed)?;
        let changes = inotify.into_event_stream([0; 4096]).map_err(failed)?;
        let events = node.runtime.get_container_events(GetEventsRequest {}).await;
        let events = events.map_err(|status| format!("failed to receive events: {}", status.message()))?;
        Ok(Self {
            id: id.to_owned(),
            path: path.to_owned(),
            rotated: None,
            changes,
            events: events.into_inner(),
        })
    }

    /// Passes on new records until the container has exited or is removed.
    pub(super) async fn run(
        mut self,
        node: &mut NodeClient,
        mut reader: LogReader,
        joiner: &mut Joiner<impl Write>,
    ) -> io::Result<()> {
        let status = node.container_status(&self.id).await.map_err(io::Error::other)?.status;
        let mut is_over = status.unwrap_or_default().state() == ContainerState::ContainerExited;
        loop {
            self.read(&mut reader, joiner)?;
            // All output is in the file before the exit is reported.
            if is_over {
                return Ok(());
            }
            tokio::select! {
                change = self.changes.next() => drop(change.ok_or(io::ErrorKind::UnexpectedEof)??),
                event = self.events.message() => match event {
                    Ok(Some(event)) => is_over = self.ends(&event),
                    Ok(None) => return Err(io::Error::other("the daemon has closed the stream of events")),
                    Err(status) => return Err(io::Error::other(status.message().to_owned())),
                },
            }
        }
    }

    fn ends(&self, event: &ContainerEventResponse) -> bool {
        let kinds = [ContainerEventType::ContainerStoppedEvent, ContainerEventType::ContainerDeletedEvent];
        event.container_id == self.id && kinds.contains(&event.container_event_type())
    }

    /// Reads to the end. If the file was replaced, continues with the new one.
    fn read(&mut self, reader: &mut LogReader, joiner: &mut Joiner<impl Write>) -> io::Result<()> {
        let opened = reader.file().metadata()?;
        let current = fs::metadata(&self.path).ok();
        if let Some(rotated) = &mut self.rotated {
            rotated.read(joiner)?;
        }
        reader.read(joiner)?;
        let is_replaced =
            current.is_some_and(|current| (current.dev(), current.ino()) != (opened.dev(), opened.ino()));
        if is_replaced {
            self.rotated = Some(std::mem::replace(reader, LogReader::open(&self.path)?));
            reader.read(joiner)?;
        }
        Ok(())
    }
}
