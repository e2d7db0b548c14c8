//! The last of a container: its output is read to the end and written, then its end is told. Who reads the log after that
//! finds all of it there, unless the disk does not take it in time: the news of an end waits for no disk that hangs.

use std::time::{Duration, Instant};

use berth_runtime::sys::process::Ended;
use berth_runtime::wire::Event;

use crate::keeper::Keeper;

/// How long the end of a container waits for its log since that last took something.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long it waits at most: what the container has left behind may write on for ever.
const MOST: Duration = Duration::from_secs(20);

/// What is left to do of a container that has ended.
#[derive(Debug)]
pub(crate) struct Leaving {
    container: String,
    /// The rest of its output has been read; this ticket says when it is written.
    read: Option<u32>,
    /// Until when the log is waited for, unless it takes more.
    until: Instant,
    /// Until when it is waited for in any case.
    last: Instant,
}

impl Keeper {
    /// A container's first process has ended.
    pub(crate) fn container_over(&mut self, id: &str, ended: Ended) {
        self.close_gate(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let _record = container.exited(ended);
        let (container, until, last) = (id.to_owned(), after(PATIENCE), after(MOST));
        self.leaving.push(Leaving { container, read: None, until, last });
        self.go_on_leaving();
    }

    /// Does what can be done now for all containers that have ended.
    pub(crate) fn go_on_leaving(&mut self) {
        for mut leaving in std::mem::take(&mut self.leaving) {
            if !self.has_left(&mut leaving) {
                self.leaving.push(leaving);
            }
        }
    }

    /// When the next one has waited long enough.
    pub(crate) fn leaves_at(&self) -> Option<Instant> {
        self.leaving.iter().map(|leaving| leaving.until).min()
    }

    /// A container is forgotten: nobody is to hear of its end any more.
    pub(crate) fn leaves_unheard(&mut self, id: &str) {
        self.leaving.retain(|leaving| leaving.container != id);
    }

    fn has_left(&mut self, leaving: &mut Leaving) -> bool {
        let id = leaving.container.as_str();
        let late = Instant::now() >= leaving.until;
        let ticket = match leaving.read {
            Some(ticket) => ticket,
            None if self.writer.is_behind() && !late => return false,
            None => {
                if !self.drain(id) && !late {
                    leaving.until = leaving.last.min(after(PATIENCE));
                    return false;
                }
                leaving.until = leaving.last.min(after(PATIENCE));
                self.let_all_go(id);
                let Some(container) = self.containers.get_mut(id) else { return true };
                container.terminal = None;
                match self.writer.ticket(&container.log, &mut self.watch) {
                    Some(ticket) => *leaving.read.insert(ticket),
                    None => {
                        self.tell_end(id);
                        return true;
                    }
                }
            }
        };
        if !late && !self.writer.is_back(ticket) {
            return false;
        }
        self.tell_end(&leaving.container);
        true
    }

    fn tell_end(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let Some(record) = container.record() else { return };
        // Handed on before it is told: what a client has heard is known to the next daemon, even if this one and the keeper
        // end now. The disk is not waited for.
        match serde_json::to_vec(&record) {
            Ok(text) => self.writer.write_exit(&container.folder, &text, &mut self.watch),
            Err(error) => crate::report(&format!("failed to encode the end of container {id}: {error}")),
        }
        self.tell(&Event::Exited { container: id.to_owned(), record });
    }
}

fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now)
}
