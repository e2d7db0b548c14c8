//! A client that is attached to a container: its streams, and which of them are watched.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::sys;

use crate::watch::{EventSource, Watch};

/// An attached client.
#[derive(Debug)]
pub(crate) struct AttachedClient {
    id: String,
    /// The connection that attached it.
    connection: u64,
    stdin: Option<OwnedFd>,
    /// By their index, as in the container.
    outputs: [Option<OwnedFd>; 2],
}

/// A stream of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientStream {
    Stdin,
    Output(usize),
}

impl ClientStream {
    pub(crate) const ALL: [Self; 3] = [Self::Stdin, Self::Output(0), Self::Output(1)];
}

impl AttachedClient {
    pub(crate) fn new(
        id: &str,
        connection: u64,
        stdin: Option<OwnedFd>,
        outputs: [Option<OwnedFd>; 2],
    ) -> Self {
        Self { id: id.to_owned(), connection, stdin, outputs }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The connection that attached it.
    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Its input, while it is open.
    pub(crate) fn stdin(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref()
    }

    /// One of its outputs, while it is open.
    pub(crate) fn output(&self, place: usize) -> Option<&OwnedFd> {
        self.outputs.get(place).and_then(Option::as_ref)
    }

    /// Whether all its streams are closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.stdin.is_none() && self.outputs.iter().all(Option::is_none)
    }

    /// Watches its outputs and, with `read`, its input.
    pub(crate) fn watch(&self, container: &str, watch: &mut Watch, read: bool) -> sys::Result<()> {
        self.set_reading(container, watch, read)?;
        for (place, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output {
                watch.add(output.as_fd(), self.source(container, ClientStream::Output(place)))?;
            }
        }
        Ok(())
    }

    /// Sets whether its input is read. If not, it is not even watched, because epoll always reports the end of a
    /// pipe.
    pub(crate) fn set_reading(&self, container: &str, watch: &mut Watch, enabled: bool) -> sys::Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let source = self.source(container, ClientStream::Stdin);
        match (enabled, watch.contains(&source)) {
            (true, false) => watch.add(stdin.as_fd(), source)?,
            (false, true) => watch.remove(stdin.as_fd(), &source),
            _ => {}
        }
        Ok(())
    }

    /// Closes all its streams.
    pub(crate) fn close_all(&mut self, container: &str, watch: &mut Watch) {
        for stream in ClientStream::ALL {
            self.close(container, stream, watch);
        }
    }

    /// Closes one of its streams.
    pub(crate) fn close(&mut self, container: &str, stream: ClientStream, watch: &mut Watch) {
        let source = self.source(container, stream);
        let fd = match stream {
            ClientStream::Stdin => self.stdin.take(),
            ClientStream::Output(place) => self.outputs.get_mut(place).and_then(Option::take),
        };
        if let Some(fd) = fd {
            watch.remove(fd.as_fd(), &source);
        }
    }

    fn source(&self, container: &str, stream: ClientStream) -> EventSource {
        EventSource::Client(container.to_owned(), self.id.clone(), stream)
    }
}
