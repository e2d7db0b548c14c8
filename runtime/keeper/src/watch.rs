//! The descriptors that the event loop watches.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_runtime::sys::{self, Context};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

/// A stream of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientStream {
    Stdin,
    Output(usize),
}

impl ClientStream {
    pub(crate) const ALL: [Self; 3] = [Self::Stdin, Self::Output(0), Self::Output(1)];
}

/// The source of an event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EventSource {
    Listener,
    Children,
    Connection(u64),
    PauseGate,
    ContainerGate(String),
    ExecGate(String),
    /// The socket of the process that runs a container's hooks.
    Hooks(String),
    /// The socket of the process that has an OCI runtime start a container.
    Starter(String),
    Output(String, usize),
    /// The socket of the writer process.
    Writer,
    /// The input of a container that has pending input.
    Input(String),
    /// A stream of a container's client.
    Client(String, String, ClientStream),
}

/// An epoll, and the sources of its tokens.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: OwnedFd,
    sources: BTreeMap<u64, EventSource>,
    next: u64,
}

impl Watch {
    pub(crate) fn new() -> sys::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).on("epoll_create1", "")?;
        Ok(Self { epoll, sources: BTreeMap::new(), next: 1 })
    }

    /// Watches whether a descriptor can be read.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, source: EventSource) -> sys::Result<()> {
        self.add_for(fd, source, EventFlags::IN)
    }

    /// Watches a descriptor for these events.
    pub(crate) fn add_for(
        &mut self,
        fd: BorrowedFd<'_>,
        source: EventSource,
        flags: EventFlags,
    ) -> sys::Result<()> {
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags).on("epoll_ctl", "")?;
        self.sources.insert(token, source);
        Ok(())
    }

    /// Unregisters a descriptor. Call this with the registered descriptor, before it is closed: a child before its
    /// exec may have a copy, which would keep it in the epoll (epoll(7), Q6).
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>, source: &EventSource) {
        if let Some(token) = self.token_of(source) {
            self.sources.remove(&token);
            let _gone = epoll::delete(&self.epoll, fd);
        }
    }

    /// Returns whether a source is watched.
    pub(crate) fn contains(&self, source: &EventSource) -> bool {
        self.token_of(source).is_some()
    }

    /// Sets whether the descriptor is also watched for being writable.
    pub(crate) fn set_write_interest(&self, fd: BorrowedFd<'_>, source: &EventSource, enabled: bool) {
        let Some(token) = self.token_of(source) else { return };
        let write = if enabled { EventFlags::OUT } else { EventFlags::empty() };
        let _gone = epoll::modify(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN | write);
    }

    fn token_of(&self, source: &EventSource) -> Option<u64> {
        self.sources.iter().find(|(_, other)| *other == source).map(|(token, _)| *token)
    }

    /// Returns the source of an event. Returns `None` if it was unregistered after the event had arrived.
    pub(crate) fn source_of(&self, event: &Event) -> Option<(EventSource, EventFlags)> {
        let data = event.data;
        let source = self.sources.get(&data.u64())?;
        let flags = event.flags;
        Some((source.clone(), flags))
    }

    /// Waits for events, at most until a time.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, until: Option<Instant>) -> sys::Result<()> {
        events.clear();
        // The kernel's timeout has whole milliseconds. One is added so that the wait does not end too early.
        let left =
            until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match epoll::wait(&self.epoll, spare_capacity(events), left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).on("epoll_wait", ""),
        }
    }
}
