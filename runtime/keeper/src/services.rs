//! The services of the keeper that the pause, the containers and the execs use.

use std::os::fd::OwnedFd;

use berth_runtime::procfs::Proc;
use berth_runtime::wire::Event;

use crate::buffers::Buffers;
use crate::connections::Connections;
use crate::failure::{Answer, Origin};
use crate::orphans::Orphans;
use crate::watch::Watch;
use crate::writer::Writer;

/// The event loop's descriptors, the daemons' connections, and the writer of logs.
#[derive(Debug)]
pub(crate) struct Services {
    pub(crate) watch: Watch,
    pub(crate) connections: Connections,
    pub(crate) writer: Writer,
    pub(crate) buffers: Buffers,
    pub(crate) proc: Proc,
    pub(crate) orphans: Orphans,
}

impl Services {
    /// Answers a call.
    pub(crate) fn answer(&mut self, origin: Origin, result: Answer) {
        self.answer_with(origin, result, Vec::new());
    }

    /// Answers a call and sends descriptors.
    pub(crate) fn answer_with(&mut self, origin: Origin, result: Answer, descriptors: Vec<OwnedFd>) {
        self.connections.answer(origin, result, descriptors, &mut self.watch);
    }

    /// Sends an event to all daemons.
    pub(crate) fn broadcast(&mut self, event: &Event) {
        self.broadcast_since(1, event);
    }

    /// Sends an event to the daemons that support this version of the messages.
    pub(crate) fn broadcast_since(&mut self, version: u32, event: &Event) {
        self.connections.broadcast(version, event, &mut self.watch);
    }
}
