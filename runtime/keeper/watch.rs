//! What the event loop looks at.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use berth_runtime::sys::{self, Context};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, Event, EventData, EventFlags};
use rustix::io::Errno;

use crate::attach::Part;

/// What a descriptor belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Watched {
    Listener,
    Children,
    Connection(u64),
    PauseGate,
    ContainerGate(String),
    ExecGate(String),
    Output(String, usize),
    /// The socket of the writer process.
    Writer,
    /// The input of a container, until it takes more.
    Input(String),
    /// A stream of a client of a container.
    Client(String, String, Part),
}

/// An epoll, and what its tokens stand for.
#[derive(Debug)]
pub(crate) struct Watch {
    epoll: OwnedFd,
    watched: BTreeMap<u64, Watched>,
    next: u64,
}

impl Watch {
    pub(crate) fn new() -> sys::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).on("epoll_create1", "")?;
        Ok(Self { epoll, watched: BTreeMap::new(), next: 1 })
    }

    /// Looks from now on whether a descriptor can be read.
    pub(crate) fn add(&mut self, fd: BorrowedFd<'_>, watched: Watched) -> sys::Result<()> {
        self.add_for(fd, watched, EventFlags::IN)
    }

    /// Looks at a descriptor from now on.
    pub(crate) fn add_for(
        &mut self,
        fd: BorrowedFd<'_>,
        watched: Watched,
        wanted: EventFlags,
    ) -> sys::Result<()> {
        let token = self.next;
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(token), wanted).on("epoll_ctl", "")?;
        self.watched.insert(token, watched);
        Ok(())
    }

    /// Looks at it no more. To be called with the descriptor that was added, before it is closed: a child on its way
    /// may have a copy, which would keep it in the epoll (epoll(7), Q6).
    pub(crate) fn remove(&mut self, fd: BorrowedFd<'_>, watched: &Watched) {
        if let Some(token) = self.token_of(watched) {
            self.watched.remove(&token);
            let _gone = epoll::delete(&self.epoll, fd);
        }
    }

    /// Whether it is looked at.
    pub(crate) fn has(&self, watched: &Watched) -> bool {
        self.token_of(watched).is_some()
    }

    /// Asks to be woken when the descriptor can be written to as well, or no more.
    pub(crate) fn want_to_write(&self, fd: BorrowedFd<'_>, watched: &Watched, wanted: bool) {
        let Some(token) = self.token_of(watched) else { return };
        let write = if wanted { EventFlags::OUT } else { EventFlags::empty() };
        let _gone = epoll::modify(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN | write);
    }

    fn token_of(&self, watched: &Watched) -> Option<u64> {
        self.watched.iter().find(|(_, w)| *w == watched).map(|(token, _)| *token)
    }

    /// What an event is about; nothing, where it was looked at no more after the event had come.
    pub(crate) fn meaning(&self, event: &Event) -> Option<(Watched, EventFlags)> {
        let data = event.data;
        let watched = self.watched.get(&data.u64())?;
        let flags = event.flags;
        Some((watched.clone(), flags))
    }

    /// Waits until something happens, or until a time.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, until: Option<Instant>) -> sys::Result<()> {
        events.clear();
        // The kernel takes whole milliseconds: not to be woken too early, one is added.
        let left =
            until.map(|until| until.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match epoll::wait(&self.epoll, spare_capacity(events), left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno).on("epoll_wait", ""),
        }
    }
}
