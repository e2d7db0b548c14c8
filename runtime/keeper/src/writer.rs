//! The keeper's side of the writer process (see [`crate::write_process`]). The writer is started when there is something to
//! write, and ends after some idle seconds. Packets that its socket does not take are queued here. While there are any, the
//! keeper does not read the output of containers: a container whose log is on a hung disk blocks in its own write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_runtime::init::Descriptors;
use berth_runtime::plan::CgroupJoin;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::{self, socket};
use rustix::io::Errno;

use crate::log::Log;
use crate::spawn::{SpawnOptions, spawn};
use crate::watch::{EventSource, Watch};
use crate::write_process::{self, MOST, Packet, count};

/// How long the writer stays when nothing is written.
const IDLE: Duration = Duration::from_secs(5);

/// A packet for the writer, and the file of the log that it is about.
#[derive(Debug)]
struct Queued {
    bytes: Vec<u8>,
    file: Option<(u32, Rc<OwnedFd>)>,
}

/// The running writer.
#[derive(Debug)]
struct Process {
    socket: OwnedFd,
    /// The files that were sent to it, by log number.
    files: BTreeMap<u32, Rc<OwnedFd>>,
    used: Instant,
}

/// The number for exit records in [`Writer::unflushed`], in place of a log's.
const EXITS: u32 = u32::MAX;

/// Writes logs and exit records through the writer process.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    process: Option<Process>,
    queue: VecDeque<Queued>,
    /// Logs with packets that no flush has been requested for.
    unflushed: BTreeSet<u32>,
    /// The number of the last flush that was requested, and of the last that was acknowledged.
    requested: u32,
    acknowledged: u32,
}

impl Writer {
    /// Whether packets are queued because the writer's socket is full.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Writes whole records to a log. While the writer is blocked, records are dropped and counted; the log
    /// contains their number.
    pub(crate) fn write(&mut self, log: &mut Log, records: &[u8], watch: &mut Watch) {
        if !records.is_empty() {
            self.send_records(log, records, watch);
        }
    }

    fn send_records(&mut self, log: &mut Log, records: &[u8], watch: &mut Watch) {
        let Some(file) = log.file.clone() else { return };
        if self.is_blocked() || !self.start(watch) {
            log.lost = log.lost.saturating_add(count(records));
            return;
        }
        self.unflushed.insert(log.number);
        let mut rest = records;
        loop {
            let (part, after) = rest.split_at(whole_records(rest));
            let lost = std::mem::take(&mut log.lost);
            let bytes = Packet::Records { log: log.number, lost, records: part }.encode();
            self.send(Queued { bytes, file: Some((log.number, file.clone())) }, watch);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Gives the writer the new file of a log, so that it closes the old one.
    pub(crate) fn reopened(&mut self, log: &mut Log, watch: &mut Watch) {
        if self.process.is_some() {
            self.send_records(log, &[], watch);
        }
    }

    /// Closes the file of a log in the writer.
    pub(crate) fn close(&mut self, log: &Log, watch: &mut Watch) {
        self.unflushed.remove(&log.number);
        if self.process.as_mut().is_some_and(|process| process.files.remove(&log.number).is_some()) {
            self.send(Queued { bytes: Packet::Close { log: log.number }.encode(), file: None }, watch);
        }
    }

    /// Writes the exit record of a container into its folder.
    pub(crate) fn write_exit(&mut self, folder: &str, record: &[u8], watch: &mut Watch) {
        self.unflushed.insert(EXITS);
        self.send(Queued { bytes: Packet::Exit { folder, record }.encode(), file: None }, watch);
    }

    /// Requests a flush of a log. Returns the flush's number, or `None` if everything is written already.
    pub(crate) fn flush(&mut self, log: &Log, watch: &mut Watch) -> Option<u32> {
        if !self.unflushed.remove(&log.number) || self.process.is_none() {
            return None;
        }
        self.request_flush(watch);
        Some(self.requested)
    }

    fn request_flush(&mut self, watch: &mut Watch) {
        self.requested = self.requested.wrapping_add(1);
        self.send(Queued { bytes: Packet::Flush(self.requested).encode(), file: None }, watch);
    }

    /// Whether a flush is acknowledged, or its writer has ended.
    pub(crate) fn is_flushed(&self, flush: u32) -> bool {
        // Acknowledgements come in order. The numbers may wrap.
        self.process.is_none() || self.acknowledged.wrapping_sub(flush) < u32::MAX / 2
    }

    /// Handles an event of the writer's socket: it accepts more packets, has acknowledged a flush, or has ended.
    pub(crate) fn on_event(&mut self, watch: &mut Watch) {
        while let Some(process) = &self.process {
            let mut number = [0; 4];
            match socket::receive(process.socket.as_fd(), &mut number) {
                Ok((4, _)) => self.acknowledged = u32::from_le_bytes(number),
                Err(error) if error.errno == Errno::AGAIN => break,
                Err(error) if error.errno == Errno::INTR => {}
                Ok(_) | Err(_) => self.end(watch),
            }
        }
        // If the writer has ended, a new one gets the queue.
        while let Some(next) = self.queue.pop_front() {
            if !self.start(watch) {
                self.queue.clear();
                break;
            }
            if let Some(next) = self.try_send(next, watch) {
                self.queue.push_front(next);
                break;
            }
        }
        self.update_interest(watch);
    }

    /// When to call [`Self::check_idle`].
    pub(crate) fn check_at(&self) -> Option<Instant> {
        self.process.as_ref().and_then(|process| process.used.checked_add(IDLE))
    }

    /// Ends an idle writer. One that has not acknowledged a flush may be blocked by a hung disk. It stays, so that there is
    /// never a second one.
    pub(crate) fn check_idle(&mut self, watch: &mut Watch) {
        let Some(process) = self.process.as_mut().filter(|process| process.used.elapsed() >= IDLE) else {
            return;
        };
        process.used = Instant::now();
        if self.is_blocked() || self.requested != self.acknowledged {
            return;
        }
        if self.unflushed.is_empty() {
            return self.end(watch);
        }
        self.unflushed.clear();
        self.request_flush(watch);
    }

    /// Closes the socket. A writer that still runs ends after the last packet.
    fn end(&mut self, watch: &mut Watch) {
        if let Some(process) = self.process.take() {
            watch.remove(process.socket.as_fd(), &EventSource::Writer);
        }
        self.unflushed.clear();
        self.acknowledged = self.requested;
    }

    /// Starts a writer if there is none. Returns whether there is one now.
    fn start(&mut self, watch: &mut Watch) -> bool {
        if self.process.is_some() {
            return true;
        }
        match start(watch) {
            Ok(socket) => {
                self.process = Some(Process { socket, files: BTreeMap::new(), used: Instant::now() });
                true
            }
            Err(error) => {
                crate::report(&format!("failed to start the writer: {error}"));
                false
            }
        }
    }

    fn send(&mut self, next: Queued, watch: &mut Watch) {
        if self.is_blocked() {
            return self.queue.push_back(next);
        }
        let mut next = next;
        // If the writer has ended, a new one gets the packet.
        for _attempt in 0..2 {
            if !self.start(watch) {
                return;
            }
            match self.try_send(next, watch) {
                None => return,
                Some(back) => next = back,
            }
            if self.process.is_some() {
                self.queue.push_back(next);
                return self.update_interest(watch);
            }
        }
    }

    /// Returns the packet if it was not sent.
    fn try_send(&mut self, next: Queued, watch: &mut Watch) -> Option<Queued> {
        let Some(process) = &mut self.process else { return Some(next) };
        process.used = Instant::now();
        let new = next
            .file
            .as_ref()
            .filter(|(log, file)| process.files.get(log).is_none_or(|sent| !Rc::ptr_eq(sent, file)));
        let descriptors: Vec<_> = new.iter().map(|(_, file)| file.as_fd()).collect();
        match unless_interrupted(|| socket::send(process.socket.as_fd(), &next.bytes, &descriptors)) {
            Ok(()) => {
                if let Some((log, file)) = new {
                    process.files.insert(*log, file.clone());
                }
                None
            }
            Err(error) if error.errno == Errno::AGAIN => Some(next),
            // It was killed.
            Err(_) => {
                self.end(watch);
                Some(next)
            }
        }
    }

    /// Waits for room in the socket while packets are queued.
    fn update_interest(&self, watch: &Watch) {
        if let Some(process) = &self.process {
            watch.set_write_interest(process.socket.as_fd(), &EventSource::Writer, self.is_blocked());
        }
    }
}

fn unless_interrupted(send: impl Fn() -> sys::Result<()>) -> sys::Result<()> {
    loop {
        match send() {
            Err(error) if error.errno == Errno::INTR => {}
            sent => return sent,
        }
    }
}

/// Starts the writer. Returns the keeper's end of its socket.
fn start(watch: &mut Watch) -> sys::Result<OwnedFd> {
    let options = SpawnOptions {
        namespaces: Namespaces::NONE,
        cgroup: &CgroupJoin::default(),
        userns: None,
        oom_score_adj: None,
        moves: false,
        descriptors: Descriptors(&[]),
    };
    // The keeper notices the writer's end by the socket, and reaps it like any orphan.
    let child = spawn(options, |gate, single| write_process::run(gate.into_socket(), single))?;
    watch.add(child.gate.as_fd(), EventSource::Writer)?;
    Ok(child.gate)
}

/// Returns how many bytes of whole records fit in one packet.
fn whole_records(records: &[u8]) -> usize {
    match records.get(..MOST) {
        None => records.len(),
        // A record is always shorter than a packet.
        Some(first) => memchr::memrchr(b'\n', first).map_or(MOST, |end| end + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packets_end_with_records(lengths in proptest::collection::vec(1..17_000_usize, 0..40)) {
            let records: Vec<u8> = lengths.iter().flat_map(|length| [vec![b'x'; *length], vec![b'\n']].concat()).collect();
            let mut rest = records.as_slice();
            while !rest.is_empty() {
                let (part, after) = rest.split_at(whole_records(rest));
                prop_assert!(part.ends_with(b"\n") && part.len() <= MOST);
                rest = after;
            }
        }
    }
}
