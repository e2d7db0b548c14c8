//! Copies the output of containers to their logs, one piece at a time, so that a container that writes fast does
//! not block the others of its pod.

use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::attach::ClientStream;
use crate::keeper::Keeper;
use crate::stamp::{Stamp, now};
use crate::watch::EventSource;

/// The number of bytes that are read at a time: a pipe's capacity.
const READ_SIZE: usize = 64 << 10;

/// How many pieces are read after a container has ended. More can come only from processes that it left behind.
const LAST_PIECES: usize = 64;

/// Buffers that all streams share.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    pub(crate) piece: Vec<u8>,
    records: Vec<u8>,
}

impl Keeper {
    /// Reads one piece of a stream into the log.
    pub(crate) fn output(&mut self, id: &str, place: usize) {
        // A container can be started while the writer is blocked.
        if self.writer.is_blocked() && self.containers.get(id).is_some_and(|container| container.log.keeps())
        {
            return self.pause_outputs();
        }
        match self.pump(id, place) {
            Ok(true) => self.pause_outputs(),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // At the end a pipe returns no bytes, and a terminal EIO.
            Ok(false) | Err(_) => self.close_output(id, place),
        }
    }

    /// Returns whether something was read. Reading nothing means the end.
    fn pump(&mut self, id: &str, place: usize) -> Result<bool, Errno> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(false) };
        let Some(Some(output)) = container.outputs.get_mut(place) else { return Ok(false) };
        let Buffers { piece, records } = &mut self.buffers;
        piece.clear();
        piece.reserve(READ_SIZE);
        if rustix::io::read(&output.fd, spare_capacity(piece))? == 0 {
            return Ok(false);
        }
        if container.log.keeps() {
            records.clear();
            output.lines.push(piece, &Stamp::of(now()), records);
            self.writer.write(&mut container.log, records, &mut self.watch);
        }
        if !container.clients.is_empty() {
            self.send_to_clients(id, place);
        }
        Ok(true)
    }

    /// Starts to read the streams of a container that has reached its gate.
    pub(crate) fn watch_outputs(&mut self, id: &str) -> berth_runtime::sys::Result<()> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        for (place, output) in container.outputs.iter().enumerate() {
            if let Some(output) = output {
                self.watch.add(output.fd.as_fd(), EventSource::Output(id.to_owned(), place))?;
            }
        }
        Ok(())
    }

    fn close_output(&mut self, id: &str, place: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(mut output) = container.outputs.get_mut(place).and_then(Option::take) else { return };
        let records = &mut self.buffers.records;
        records.clear();
        output.lines.finish(&Stamp::of(now()), records);
        self.writer.write(&mut container.log, records, &mut self.watch);
        self.watch.remove(output.fd.as_fd(), &EventSource::Output(id.to_owned(), place));
        self.close_client_streams(id, ClientStream::Output(place));
    }

    /// Reads the rest of a container's output and closes it. Returns false if the writer became blocked before the end. Processes
    /// that the container left behind may hold its pipes open and write on: they are not waited for.
    pub(crate) fn drain(&mut self, id: &str) -> bool {
        let was_blocked = self.writer.is_blocked();
        for place in 0..2 {
            for _piece in 0..LAST_PIECES {
                match self.pump(id, place) {
                    // If it was blocked before, the caller has waited long enough: what is read is dropped and counted.
                    Ok(true) if self.writer.is_blocked() && !was_blocked => {
                        self.pause_outputs();
                        return false;
                    }
                    Ok(true) => {}
                    _ => break,
                }
            }
            self.close_output(id, place);
        }
        // The buffers' memory is released while the keeper is idle.
        self.buffers = Buffers::default();
        true
    }

    /// Stops watching outputs while the writer is blocked. Ignoring their events would not be enough: epoll(7)
    /// always reports the end of a pipe.
    fn pause_outputs(&mut self) {
        if !self.writer.is_blocked() {
            return;
        }
        for (id, container) in self.containers.iter().filter(|(_, container)| container.log.keeps()) {
            for (place, output) in container.outputs.iter().enumerate() {
                let source = EventSource::Output(id.clone(), place);
                if let Some(output) = output
                    && self.watch.contains(&source)
                {
                    self.watch.remove(output.fd.as_fd(), &source);
                    self.paused.push((id.clone(), place));
                }
            }
        }
    }

    /// Handles an event of the writer's socket.
    pub(crate) fn writer_event(&mut self) {
        self.writer.on_event(&mut self.watch);
        self.continue_endings();
        if self.writer.is_blocked() {
            return;
        }
        for (id, place) in std::mem::take(&mut self.paused) {
            let output =
                self.containers.get(&id).and_then(|container| container.outputs.get(place)?.as_ref());
            let Some(output) = output else { continue };
            if let Err(error) = self.watch.add(output.fd.as_fd(), EventSource::Output(id.clone(), place)) {
                crate::report(&format!("failed to watch the output of container {id}: {error}"));
            }
        }
    }
}
