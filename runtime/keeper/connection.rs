//! A daemon's connection. What it does not take at once waits in order; a daemon that is too far behind is cut off, and
//! learns what it has missed from the snapshot when it comes back.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::wire::transport::{self, Received, TransportError};
use berth_runtime::wire::{AnyRequest, Message, Request};

/// The most messages that wait for a daemon.
const MOST_WAITING: usize = 4096;

/// What comes from a daemon.
#[derive(Debug)]
pub(crate) enum Incoming {
    Request(Request),
    /// A call of a newer daemon.
    Unknown {
        /// The request's.
        id: u64,
    },
}

impl Incoming {
    fn decode(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text).map(Self::Request).or_else(|error| {
            let request = serde_json::from_slice::<AnyRequest>(text);
            request.map(|request| Self::Unknown { id: request.id }).map_err(|_| error)
        })
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    waiting: VecDeque<(Message, Vec<OwnedFd>)>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, waiting: VecDeque::new() }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Whether something waits until the socket can be written to.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next request; `None` at the end.
    pub(crate) fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Received<Incoming>>, TransportError> {
        transport::receive_with(self.socket.as_fd(), buffer, Incoming::decode)
    }

    /// Sends a message, now or when the socket can be written to.
    ///
    /// # Errors
    /// The daemon is gone or too far behind.
    pub(crate) fn send(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> Result<(), TransportError> {
        if self.waiting.len() >= MOST_WAITING {
            return Err(TransportError::TooLong(self.waiting.len()));
        }
        self.waiting.push_back((message, descriptors));
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    /// The daemon is gone.
    pub(crate) fn flush(&mut self) -> Result<(), TransportError> {
        while let Some((message, descriptors)) = self.waiting.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match transport::send(self.socket.as_fd(), message, &borrowed) {
                Ok(()) => drop(self.waiting.pop_front()),
                Err(error) if error.would_block() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_a_newer_daemon_is_unknown_and_no_garbage() {
        let decoded = Incoming::decode(br#"{"id":7,"call":{"Levitate":{"container":"c1","height":3}}}"#);
        assert!(matches!(decoded, Ok(Incoming::Unknown { id: 7 })), "{decoded:?}");
        let decoded = Incoming::decode(br#"{"id":8,"call":"Shutdown"}"#);
        assert!(matches!(decoded, Ok(Incoming::Request(Request { id: 8, .. }))), "{decoded:?}");
        assert!(Incoming::decode(b"{").is_err());
    }
}
