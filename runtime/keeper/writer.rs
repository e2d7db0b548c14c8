//! The keeper's side of the process that writes to disks (see [`crate::write_process`]): that is started when there is
//! something to write and ends when there was nothing for a while. What it does not take at once waits here, and the outputs
//! of containers are not read meanwhile: a container whose log is on a disk that hangs waits in its own write.

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
use crate::spawn::{Place, spawn};
use crate::watch::{Watch, Watched};
use crate::write_process::{self, MOST, Packet, count};

/// How long the process stays when nothing is written.
const IDLE: Duration = Duration::from_secs(5);

/// What is to be sent, with the file that a log is written to from then on.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    file: Option<(u32, Rc<OwnedFd>)>,
}

/// The process, as long as there is one.
#[derive(Debug)]
struct Process {
    socket: OwnedFd,
    /// The files that it has, by the numbers of their logs.
    files: BTreeMap<u32, Rc<OwnedFd>>,
    used: Instant,
}

/// In the place of a log's number, for records of how containers ended.
const EXITS: u32 = u32::MAX;

/// Who has things written.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    process: Option<Process>,
    waiting: VecDeque<Waiting>,
    /// Logs of which something was sent that no ticket has come back for.
    unsure: BTreeSet<u32>,
    /// The last ticket that was sent, and the last that has come back.
    sent: u32,
    back: u32,
}

impl Writer {
    /// Whether something waits for the process: nothing more is to be written until it has gone out.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Has whole records written. Where the process is behind they are dropped and counted, which the log will tell.
    pub(crate) fn write(&mut self, log: &mut Log, records: &[u8], watch: &mut Watch) {
        let Some(file) = log.file.clone() else { return };
        if self.is_behind() || !self.start(watch) {
            log.lost = log.lost.saturating_add(count(records));
            return;
        }
        self.unsure.insert(log.number);
        let mut rest = records;
        loop {
            let (part, after) = rest.split_at(whole_records(rest));
            let lost = std::mem::take(&mut log.lost);
            let bytes = Packet::Records { log: log.number, lost, records: part }.encode();
            self.send(Waiting { bytes, file: Some((log.number, file.clone())) }, watch);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// A log goes on in another file: the old one is held no longer than what belongs there.
    pub(crate) fn reopened(&mut self, log: &mut Log, watch: &mut Watch) {
        if self.process.is_some() {
            self.write(log, &[], watch);
        }
    }

    /// A log is written no more.
    pub(crate) fn close(&mut self, log: &Log, watch: &mut Watch) {
        self.unsure.remove(&log.number);
        if self.process.as_mut().is_some_and(|process| process.files.remove(&log.number).is_some()) {
            self.send(Waiting { bytes: Packet::Close { log: log.number }.encode(), file: None }, watch);
        }
    }

    /// Has the record of how a container ended written into its folder.
    pub(crate) fn write_exit(&mut self, folder: &str, record: &[u8], watch: &mut Watch) {
        self.unsure.insert(EXITS);
        self.send(Waiting { bytes: Packet::Exit { folder, record }.encode(), file: None }, watch);
    }

    /// Asks for a ticket that comes back when everything of a log is written; none where it is already.
    pub(crate) fn ticket(&mut self, log: &Log, watch: &mut Watch) -> Option<u32> {
        if !self.unsure.remove(&log.number) || self.process.is_none() {
            return None;
        }
        self.ask(watch);
        Some(self.sent)
    }

    fn ask(&mut self, watch: &mut Watch) {
        self.sent = self.sent.wrapping_add(1);
        self.send(Waiting { bytes: Packet::Ticket(self.sent).encode(), file: None }, watch);
    }

    /// Whether a ticket has come back, or never will.
    pub(crate) fn is_back(&self, ticket: u32) -> bool {
        // Tickets come back in their order; the numbers may have gone round.
        self.process.is_none() || self.back.wrapping_sub(ticket) < u32::MAX / 2
    }

    /// The process takes more, or has answered.
    pub(crate) fn heard(&mut self, watch: &mut Watch) {
        while let Some(process) = &self.process {
            let mut ticket = [0; 4];
            match socket::receive(process.socket.as_fd(), &mut ticket) {
                Ok((4, _)) => self.back = u32::from_le_bytes(ticket),
                Err(error) if error.errno == Errno::AGAIN => break,
                Err(error) if error.errno == Errno::INTR => {}
                Ok(_) | Err(_) => self.end(watch),
            }
        }
        // Where the process has ended, another one takes what waits.
        while let Some(next) = self.waiting.pop_front() {
            if !self.start(watch) {
                self.waiting.clear();
                break;
            }
            if let Some(next) = self.try_send(next, watch) {
                self.waiting.push_front(next);
                break;
            }
        }
        self.want(watch);
    }

    /// When it is to be looked whether the process is still needed.
    pub(crate) fn looks_at(&self) -> Option<Instant> {
        self.process.as_ref().and_then(|process| process.used.checked_add(IDLE))
    }

    /// Lets the process end when nothing was written for a while. One that has not answered is on a disk that hangs: it
    /// stays, so that there is never a second one.
    pub(crate) fn look(&mut self, watch: &mut Watch) {
        let Some(process) = self.process.as_mut().filter(|process| process.used.elapsed() >= IDLE) else {
            return;
        };
        process.used = Instant::now();
        if self.is_behind() || self.sent != self.back {
            return;
        }
        if self.unsure.is_empty() {
            return self.end(watch);
        }
        self.unsure.clear();
        self.ask(watch);
    }

    /// The process ends when it has written everything, or has ended.
    fn end(&mut self, watch: &mut Watch) {
        if let Some(process) = self.process.take() {
            watch.remove(process.socket.as_fd(), &Watched::Logs);
        }
        self.unsure.clear();
        self.back = self.sent;
    }

    /// Whether there is a process.
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
                crate::report(&format!("failed to start the process that writes: {error}"));
                false
            }
        }
    }

    fn send(&mut self, next: Waiting, watch: &mut Watch) {
        if self.is_behind() {
            return self.waiting.push_back(next);
        }
        let mut next = next;
        // Where the process has ended, another one takes it.
        for _attempt in 0..2 {
            if !self.start(watch) {
                return;
            }
            match self.try_send(next, watch) {
                None => return,
                Some(back) => next = back,
            }
            if self.process.is_some() {
                self.waiting.push_back(next);
                return self.want(watch);
            }
        }
    }

    /// What was not taken comes back.
    fn try_send(&mut self, next: Waiting, watch: &mut Watch) -> Option<Waiting> {
        let Some(process) = &mut self.process else { return Some(next) };
        process.used = Instant::now();
        let new = next
            .file
            .as_ref()
            .filter(|(log, file)| process.files.get(log).is_none_or(|known| !Rc::ptr_eq(known, file)));
        let descriptors: Vec<_> = new.iter().map(|(_, file)| file.as_fd()).collect();
        match unless_interrupted(|| socket::send(process.socket.as_fd(), &next.bytes, &descriptors)) {
            Ok(()) => {
                if let Some((log, file)) = new {
                    process.files.insert(*log, file.clone());
                }
                None
            }
            Err(error) if error.errno == Errno::AGAIN => Some(next),
            // It was killed: another one goes on.
            Err(_) => {
                self.end(watch);
                Some(next)
            }
        }
    }

    /// Asks to be woken when the process takes more. One that has ended wakes by that.
    fn want(&self, watch: &Watch) {
        if let Some(process) = &self.process {
            watch.want_to_write(process.socket.as_fd(), &Watched::Logs, self.is_behind());
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

/// Clones the process; the keeper's end of its socket.
fn start(watch: &mut Watch) -> sys::Result<OwnedFd> {
    let place = Place {
        namespaces: Namespaces::NONE,
        cgroup: &CgroupJoin::default(),
        userns: None,
        oom_score_adj: None,
        moves: false,
        descriptors: Descriptors(&[]),
    };
    // Its end is noticed by that of the socket; as a child it is reaped like what falls to the keeper.
    let child = spawn(place, |gate, single| write_process::run(gate.into_socket(), single))?;
    watch.add(child.gate.as_fd(), Watched::Logs)?;
    Ok(child.gate)
}

/// How many bytes of whole records go into one packet.
fn whole_records(records: &[u8]) -> usize {
    match records.get(..MOST) {
        None => records.len(),
        // No record is as long as a packet.
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
