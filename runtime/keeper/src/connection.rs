//! A daemon's connection. Messages that the socket does not accept are queued in order. A daemon that does not
//! read them is disconnected. When it reconnects, the snapshot contains what it missed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::wire::transport::{self, Received, TransportError};
use berth_runtime::wire::{AnyRequest, Message, Request};

/// The maximum number of queued messages.
const MAX_QUEUED: usize = 4096;

/// A message of a daemon.
#[derive(Debug)]
pub(crate) enum Incoming {
    Request(Request),
    /// A call that only newer daemons make.
    Unknown {
        /// The request's id.
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
    queue: VecDeque<(Message, Vec<OwnedFd>)>,
    /// The version of the messages that the daemon supports; the oldest one until it has reported it.
    pub(crate) protocol: u32,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new(), protocol: 1 }
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Returns whether messages are queued until the socket accepts them.
    pub(crate) fn is_behind(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Receives the next request. Returns `None` at the end of the connection.
    pub(crate) fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Received<Incoming>>, TransportError> {
        transport::receive_with(self.socket.as_fd(), buffer, Incoming::decode)
    }

    /// Sends a message, or queues it until the socket accepts it.
    ///
    /// # Errors
    /// The daemon has disconnected, or too many messages are queued for it.
    pub(crate) fn send(&mut self, message: Message, descriptors: Vec<OwnedFd>) -> Result<(), TransportError> {
        if self.queue.len() >= MAX_QUEUED {
            return Err(TransportError::QueueFull(self.queue.len()));
        }
        self.queue.push_back((message, descriptors));
        self.flush()
    }

    /// Sends queued messages, as far as the socket accepts them.
    ///
    /// # Errors
    /// The daemon has disconnected.
    pub(crate) fn flush(&mut self) -> Result<(), TransportError> {
        while let Some((message, descriptors)) = self.queue.front() {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match transport::send(self.socket.as_fd(), message, &borrowed) {
                Ok(()) => drop(self.queue.pop_front()),
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
    fn a_call_of_a_newer_daemon_is_unknown_but_valid() {
        let decoded = Incoming::decode(br#"{"id":7,"call":{"Levitate":{"container":"c1","height":3}}}"#);
        assert!(matches!(decoded, Ok(Incoming::Unknown { id: 7 })), "{decoded:?}");
        let decoded = Incoming::decode(br#"{"id":8,"call":"Shutdown"}"#);
        assert!(matches!(decoded, Ok(Incoming::Request(Request { id: 8, .. }))), "{decoded:?}");
        assert!(Incoming::decode(b"{").is_err());
    }
}
