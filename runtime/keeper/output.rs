//! From the streams of containers into their logs. One piece at a time: a container that writes fast shares the keeper
//! with the others of its pod.

use std::os::fd::AsFd;

use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::attach::Part;
use crate::keeper::Keeper;
use crate::stamp::{Stamp, now};
use crate::watch::Watched;

/// Bytes that are read at once: what a pipe holds.
const PIECE: usize = 64 << 10;

/// How many pieces are read after a container has ended: more can only come from what it left behind.
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
        match self.pump(id, place) {
            Ok(true) | Err(Errno::AGAIN | Errno::INTR) => {}
            // The end of a pipe is a read of nothing, that of a terminal is EIO.
            Ok(false) | Err(_) => self.close_output(id, place),
        }
    }

    /// Whether something was read; nothing is the end.
    fn pump(&mut self, id: &str, place: usize) -> Result<bool, Errno> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(false) };
        let Some(Some(output)) = container.outputs.get_mut(place) else { return Ok(false) };
        let Buffers { piece, records } = &mut self.buffers;
        piece.clear();
        piece.reserve(PIECE);
        if rustix::io::read(&output.fd, spare_capacity(piece))? == 0 {
            return Ok(false);
        }
        if container.log.keeps() {
            records.clear();
            output.lines.push(piece, &Stamp::of(now()), records);
            container.log.write(records);
        }
        if !container.clients.is_empty() {
            self.give_to_clients(id, place);
        }
        Ok(true)
    }

    /// Starts to read the streams of a container that has reached its gate.
    pub(crate) fn watch_outputs(&mut self, id: &str) -> berth_runtime::sys::Result<()> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        for (place, output) in container.outputs.iter().enumerate() {
            if let Some(output) = output {
                self.watch.add(output.fd.as_fd(), Watched::Output(id.to_owned(), place))?;
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
        container.log.write(records);
        self.watch.remove(output.fd.as_fd(), &Watched::Output(id.to_owned(), place));
        self.close_of_clients(id, Part::Output(place));
    }

    /// Reads what is left of a container's output. What it left behind may hold its pipes open and write on: that is
    /// not waited for.
    pub(crate) fn drain(&mut self, id: &str) {
        for place in 0..2 {
            for _piece in 0..LAST_PIECES {
                match self.pump(id, place) {
                    Ok(true) => {}
                    _ => break,
                }
            }
            self.close_output(id, place);
        }
        // An idle keeper holds next to nothing.
        self.buffers = Buffers::default();
    }
}
