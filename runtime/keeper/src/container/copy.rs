//! Copies the output of a container to its log and to its clients.

use rustix::io::Errno;

use crate::client::ClientStream;
use crate::container::Container;
use crate::services::Services;

/// How many pieces are read after a container has ended. More can come only from processes that it left behind.
const LAST_PIECES: usize = 64;

impl Container {
    /// Reads one piece of a stream.
    pub(crate) fn on_output(&mut self, place: usize, services: &mut Services) {
        // A container can be started while the writer is blocked.
        if self.outputs.must_wait(services) {
            return self.outputs.pause(services);
        }
        match self.copy_piece(place, services) {
            Ok(true) => self.outputs.pause(services),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // At the end a pipe returns no bytes, and a terminal EIO.
            Ok(false) | Err(_) => self.close_output(place, services),
        }
    }

    /// Reads output again when the writer accepts more.
    pub(crate) fn resume_output(&mut self, services: &mut Services) {
        self.outputs.resume(&mut services.watch);
    }

    /// Reads the rest of the output and closes it. Returns false if the writer became blocked before the end.
    /// Processes that the container left behind may hold its pipes open and write on: they are not waited for.
    pub(super) fn drain(&mut self, services: &mut Services) -> bool {
        let was_blocked = services.writer.is_blocked();
        for place in 0..2 {
            for _piece in 0..LAST_PIECES {
                match self.copy_piece(place, services) {
                    // If it was blocked before, the caller has waited long enough: what is read is dropped and
                    // counted.
                    Ok(true) if services.writer.is_blocked() && !was_blocked => {
                        self.outputs.pause(services);
                        return false;
                    }
                    Ok(true) => {}
                    _ => break,
                }
            }
            self.close_output(place, services);
        }
        services.buffers.release();
        true
    }

    /// Returns whether something was read. Reading nothing means the end.
    fn copy_piece(&mut self, place: usize, services: &mut Services) -> Result<bool, Errno> {
        let read = self.outputs.read(place, services)?;
        if read {
            self.attachments.send_output(place, services);
        }
        Ok(read)
    }

    fn close_output(&mut self, place: usize, services: &mut Services) {
        if self.outputs.close(place, services) {
            self.attachments.close_streams(ClientStream::Output(place), &mut services.watch);
        }
    }
}
