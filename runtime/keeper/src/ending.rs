//! The end of a container: the rest of its output is read and written, then its exit is reported. A client that is
//! notified of the exit finds the whole log. A hung disk delays the report for a limited time only.

use std::time::{Duration, Instant};

use berth_runtime::sys::process::Ended;
use berth_runtime::wire::Event;

use crate::keeper::Keeper;

/// How long the report of an exit waits after the log has last made progress.
const PATIENCE: Duration = Duration::from_secs(2);

/// The maximum time: processes that the container left behind may write forever.
const MOST: Duration = Duration::from_secs(20);

/// A container that has ended, but has not been reported as exited yet.
#[derive(Debug)]
pub(crate) struct Ending {
    container: String,
    /// The flush that is acknowledged when its output is written. `None` until the output has been read to its
    /// end.
    flush: Option<u32>,
    /// Until when to wait for the log. Postponed when the log makes progress.
    until: Instant,
    /// Until when to wait in any case.
    last: Instant,
}

impl Keeper {
    /// Starts the end of a container after its first process has ended.
    pub(crate) fn begin_ending(&mut self, id: &str, ended: Ended) {
        self.close_gate(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.hooks.delay_end() {
            return container.child.store_exit(ended);
        }
        let _record = container.exited(ended);
        let (container, until, last) = (id.to_owned(), after(PATIENCE), after(MOST));
        self.endings.push(Ending { container, flush: None, until, last });
        self.continue_endings();
    }

    /// Continues to end the containers that have exited.
    pub(crate) fn continue_endings(&mut self) {
        for mut ending in std::mem::take(&mut self.endings) {
            if !self.finish(&mut ending) {
                self.endings.push(ending);
            }
        }
    }

    /// Returns when the next of them has waited long enough.
    pub(crate) fn endings_at(&self) -> Option<Instant> {
        self.endings.iter().map(|ending| ending.until).min()
    }

    /// Drops the report of a container that is forgotten.
    pub(crate) fn drop_ending(&mut self, id: &str) {
        self.endings.retain(|ending| ending.container != id);
    }

    /// Returns whether the exit is reported.
    fn finish(&mut self, ending: &mut Ending) -> bool {
        let id = ending.container.as_str();
        let late = Instant::now() >= ending.until;
        let flush = match ending.flush {
            Some(flush) => flush,
            None if self.writer.is_blocked() && !late => return false,
            None => {
                if !self.drain(id) && !late {
                    ending.until = ending.last.min(after(PATIENCE));
                    return false;
                }
                ending.until = ending.last.min(after(PATIENCE));
                self.detach_all(id);
                let Some(container) = self.containers.get_mut(id) else { return true };
                container.terminal = None;
                match self.writer.flush(&container.log, &mut self.watch) {
                    Some(flush) => *ending.flush.insert(flush),
                    None => {
                        self.report_exit(id);
                        return true;
                    }
                }
            }
        };
        if !late && !self.writer.is_flushed(flush) {
            return false;
        }
        self.report_exit(&ending.container);
        true
    }

    fn report_exit(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let Some(record) = container.record() else { return };
        // This is done before the report. A client may have seen the exit when the daemon and this keeper are
        // killed, and the next daemon must find the record. This does not wait for the disk.
        match serde_json::to_vec(&record) {
            Ok(text) => self.writer.write_exit(&container.folder, &text, &mut self.watch),
            Err(error) => {
                crate::report(&format!("failed to encode the exit record of container {id}: {error}"))
            }
        }
        self.broadcast(&Event::Exited { container: id.to_owned(), record });
        self.run_poststop_hooks(id);
    }
}

fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now)
}
