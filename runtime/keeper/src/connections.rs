//! The connections of daemons: requests arrive here, and answers and events leave here.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::sys;
use berth_runtime::wire::{Call, Event, Failure, Message};
use rustix::event::epoll::EventFlags;

use crate::connection::{Connection, Incoming};
use crate::failure::{Answer, Origin, state};
use crate::report;
use crate::watch::{EventSource, Watch};

/// The open connections, by number.
#[derive(Debug)]
pub(crate) struct Connections {
    listener: OwnedFd,
    next: u64,
    open: BTreeMap<u64, Connection>,
    incoming: Vec<u8>,
}

/// A call of a daemon.
#[derive(Debug)]
pub(crate) struct IncomingCall {
    pub(crate) origin: Origin,
    pub(crate) call: Call,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Connections {
    /// Accepts daemons at a listening socket.
    pub(crate) fn new(listener: OwnedFd, watch: &mut Watch) -> sys::Result<Self> {
        watch.add(listener.as_fd(), EventSource::Listener)?;
        Ok(Self { listener, next: 1, open: BTreeMap::new(), incoming: Vec::new() })
    }

    /// Handles an event of the listener.
    pub(crate) fn on_listener(&mut self, watch: &mut Watch) {
        let accepted = sys::socket::accept(self.listener.as_fd());
        if let Err(error) = accepted.and_then(|socket| self.add(socket, watch)) {
            report(&error.to_string());
        }
    }

    fn add(&mut self, socket: OwnedFd, watch: &mut Watch) -> sys::Result<()> {
        let id = self.next;
        self.next += 1;
        watch.add(socket.as_fd(), EventSource::Connection(id))?;
        self.open.insert(id, Connection::new(socket));
        Ok(())
    }

    /// Handles an event of a connection. Returns the call that has arrived. Calls that this keeper does not support are
    /// answered here.
    pub(crate) fn on_event(&mut self, id: u64, flags: EventFlags, watch: &mut Watch) -> Option<IncomingCall> {
        let connection = self.open.get_mut(&id)?;
        if flags.contains(EventFlags::OUT) && connection.flush().is_err() {
            self.disconnect(id, watch);
            return None;
        }
        let received = connection.receive(&mut self.incoming);
        // The memory of a large message is released while the keeper is idle.
        self.incoming = Vec::new();
        self.update_interest(id, watch);
        let received = match received {
            Ok(Some(received)) => received,
            Err(error) if error.would_block() => return None,
            Ok(None) => {
                self.disconnect(id, watch);
                return None;
            }
            Err(error) => {
                report(&format!("failed to serve a daemon's connection: {error}"));
                self.disconnect(id, watch);
                return None;
            }
        };
        let request = match received.message {
            Incoming::Request(request) => request,
            Incoming::Unknown { id: request } => {
                self.answer(Origin { connection: id, request }, Err(Failure::Unknown), Vec::new(), watch);
                return None;
            }
        };
        let origin = Origin { connection: id, request: request.id };
        if received.cut {
            self.answer(origin, Err(state("the keeper", "out of descriptors")), Vec::new(), watch);
            return None;
        }
        Some(IncomingCall { origin, call: request.call, descriptors: received.descriptors })
    }

    fn disconnect(&mut self, id: u64, watch: &mut Watch) {
        if let Some(connection) = self.open.remove(&id) {
            watch.remove(connection.socket().as_fd(), &EventSource::Connection(id));
        }
    }

    fn update_interest(&mut self, id: u64, watch: &Watch) {
        if let Some(connection) = self.open.get(&id) {
            let (socket, behind) = (connection.socket().as_fd(), connection.is_behind());
            watch.set_write_interest(socket, &EventSource::Connection(id), behind);
        }
    }

    /// Sets the version of the messages that a daemon supports.
    pub(crate) fn set_protocol(&mut self, id: u64, protocol: u32) {
        if let Some(connection) = self.open.get_mut(&id) {
            connection.protocol = protocol;
        }
    }

    /// Sends a message to one connection. If it cannot accept the message, it is closed.
    pub(crate) fn send(&mut self, id: u64, message: Message, descriptors: Vec<OwnedFd>, watch: &mut Watch) {
        let Some(connection) = self.open.get_mut(&id) else { return };
        match connection.send(message, descriptors) {
            Ok(()) if connection.is_behind() => self.update_interest(id, watch),
            Ok(()) => {}
            Err(error) => {
                report(&format!("failed to serve a daemon's connection: {error}"));
                self.disconnect(id, watch);
            }
        }
    }

    /// Answers a call.
    pub(crate) fn answer(
        &mut self,
        origin: Origin,
        result: Answer,
        descriptors: Vec<OwnedFd>,
        watch: &mut Watch,
    ) {
        let message = Message::Answer { id: origin.request, result };
        self.send(origin.connection, message, descriptors, watch);
    }

    /// Sends an event to the daemons that support this version of the messages.
    pub(crate) fn broadcast(&mut self, version: u32, event: &Event, watch: &mut Watch) {
        let supporting = self.open.iter().filter(|(_, connection)| connection.protocol >= version);
        for id in supporting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send(id, Message::Event(event.clone()), Vec::new(), watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use berth_runtime::wire::Outcome;

    use super::*;

    /// Connections without a listener that anyone knows, and the daemon's end of one connection.
    fn connected() -> (Connections, Watch, OwnedFd) {
        let mut watch = Watch::new().unwrap();
        let (listener, _) = UnixStream::pair().unwrap();
        let mut connections = Connections::new(listener.into(), &mut watch).unwrap();
        let (ours, daemons) = sys::socket::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        connections.add(ours, &mut watch).unwrap();
        (connections, watch, daemons)
    }

    fn send(daemon: &OwnedFd, text: &str) {
        sys::socket::send(daemon.as_fd(), text.as_bytes(), &[]).unwrap();
    }

    fn answers(daemon: &OwnedFd) -> String {
        let mut buffer = [0; 4096];
        let (length, _) = sys::socket::receive(daemon.as_fd(), &mut buffer).unwrap();
        String::from_utf8_lossy(buffer.get(..length).unwrap()).into_owned()
    }

    #[test]
    fn a_request_becomes_a_call_and_its_answer_returns_on_the_same_connection() {
        let (mut connections, mut watch, daemon) = connected();
        send(&daemon, r#"{"id":8,"call":"Shutdown"}"#);
        let incoming = connections.on_event(1, EventFlags::IN, &mut watch).unwrap();
        assert!(matches!(incoming.call, Call::Shutdown), "{incoming:?}");
        connections.answer(incoming.origin, Ok(Outcome::Done), Vec::new(), &mut watch);
        assert!(answers(&daemon).contains("\"id\":8"));
    }

    #[test]
    fn a_call_of_a_newer_daemon_is_answered_as_unknown() {
        let (mut connections, mut watch, daemon) = connected();
        send(&daemon, r#"{"id":9,"call":{"Levitate":{"height":3}}}"#);
        assert!(connections.on_event(1, EventFlags::IN, &mut watch).is_none());
        let answer = answers(&daemon);
        assert!(answer.contains("\"id\":9") && answer.contains("Unknown"), "{answer}");
    }

    #[test]
    fn events_of_a_newer_protocol_are_not_sent_to_an_older_daemon() {
        let (mut connections, mut watch, daemon) = connected();
        let event = Event::PauseExited { code: 3 };
        connections.broadcast(2, &event, &mut watch);
        connections.set_protocol(1, 2);
        connections.broadcast(2, &event, &mut watch);
        assert!(answers(&daemon).contains("PauseExited"));
        rustix::io::ioctl_fionbio(&daemon, true).unwrap();
        assert!(sys::socket::receive(daemon.as_fd(), &mut [0; 64]).is_err(), "sent twice");
    }

    #[test]
    fn a_connection_ends_when_the_daemon_closes_it() {
        let (mut connections, mut watch, daemon) = connected();
        drop(daemon);
        assert!(connections.on_event(1, EventFlags::IN, &mut watch).is_none());
        assert!(connections.open.is_empty() && !watch.contains(&EventSource::Connection(1)));
    }
}
