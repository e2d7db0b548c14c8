//! The end of a container: the rest of its output is read and written, then its exit is reported. A client that is
//! notified of the exit finds the whole log. A hung disk delays the report for a limited time only.

use std::time::{Duration, Instant};

use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::wire::{Event, ExitRecord};

use crate::container::Container;
use crate::container::state::State;
use crate::services::Services;
use crate::stamp::now;

/// How long the report of an exit waits after the log has last made progress.
const PATIENCE: Duration = Duration::from_secs(2);

/// The maximum time: processes that the container left behind may write forever.
const MOST: Duration = Duration::from_secs(20);

/// The end of a container whose exit is not reported yet.
#[derive(Debug)]
pub(super) struct Ending {
    /// The flush that is acknowledged when its output is written. `None` until the output has been read to its
    /// end.
    flush: Option<u32>,
    /// Until when to wait for the log. Postponed when the log makes progress.
    until: Instant,
    /// Until when to wait in any case.
    last: Instant,
}

impl Ending {
    fn new() -> Self {
        Self { flush: None, until: after(PATIENCE), last: after(MOST) }
    }

    fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    fn postpone(&mut self) {
        self.until = self.last.min(after(PATIENCE));
    }
}

impl Container {
    /// Handles the end of a child with its pid.
    pub(crate) fn on_child_end(&mut self, pid: i32, services: &mut Services) {
        // It may have reported before that another process continues.
        let gate = self.gate_source();
        while services.watch.contains(&gate) && self.on_gate(services) {}
        if !self.is_child(pid) {
            return;
        }
        let Ok(Some(ended)) = process::reap(self.pidfd()) else { return };
        if services.watch.contains(&gate) {
            return self.child.store_exit(ended);
        }
        self.begin_ending(ended, services);
    }

    /// Starts the end after the first process has ended.
    pub(super) fn begin_ending(&mut self, ended: Ended, services: &mut Services) {
        self.close_gate(services);
        if self.hooks.delay_end() || self.awaits_start() {
            return self.child.store_exit(ended);
        }
        KeeperStep::Ended.reach();
        self.set_exited(ended);
        self.ending = Some(Ending::new());
        self.continue_ending(services);
    }

    /// Continues the end, if it has ended and its exit is not reported yet.
    pub(crate) fn continue_ending(&mut self, services: &mut Services) {
        let Some(mut ending) = self.ending.take() else { return };
        match self.is_written(&mut ending, services) {
            true => self.report_exit(services),
            false => self.ending = Some(ending),
        }
    }

    /// When to call [`Self::continue_ending`] at the latest.
    pub(crate) fn ending_at(&self) -> Option<Instant> {
        self.ending.as_ref().map(|ending| ending.until)
    }

    /// Reads the rest of the output. Returns whether it is written, or has been waited for long enough.
    fn is_written(&mut self, ending: &mut Ending, services: &mut Services) -> bool {
        let late = ending.is_late();
        let flush = match ending.flush {
            Some(flush) => flush,
            None if services.writer.is_blocked() && !late => return false,
            None => {
                let drained = self.drain(services);
                ending.postpone();
                if !drained && !late {
                    return false;
                }
                self.attachments.detach_all(&mut services.watch);
                self.attachments.close_terminal();
                match services.writer.flush(self.outputs.log(), &mut services.watch) {
                    Some(flush) => *ending.flush.insert(flush),
                    None => return true,
                }
            }
        };
        late || services.writer.is_flushed(flush)
    }

    fn report_exit(&mut self, services: &mut Services) {
        let State::Exited(record) = &self.state else { return };
        // This is done before the report. A client may have seen the exit when the daemon and this keeper are
        // killed, and the next daemon must find the record. This does not wait for the disk.
        match serde_json::to_vec(record) {
            Ok(text) => services.writer.write_exit(&self.folder, &text, &mut services.watch),
            Err(error) => {
                crate::report(&format!("failed to encode the exit record of {}: {error}", self.name()));
            }
        }
        KeeperStep::Recorded.reach();
        services.broadcast(&Event::Exited { container: self.id.to_string(), record: record.clone() });
        KeeperStep::Reported.reach();
        self.run_poststop_hooks(services);
    }

    fn set_exited(&mut self, ended: Ended) {
        let code = ended.code();
        let signal = match ended {
            Ended::Signal(signal) => Some(signal),
            Ended::Code(_) => None,
        };
        // If only another process of the container was killed for lack of memory, and its first process ended by
        // itself, this is false.
        let oom_killed = code == 137 && self.oom_kills.any();
        self.state.exit(|started_at, failure| ExitRecord {
            code,
            signal,
            oom_killed,
            started_at,
            finished_at: now(),
            failure,
        });
    }

    /// Excludes OOM kills until now, if the container has not ended: they belong to another container, which has.
    pub(crate) fn exclude_oom_kills(&mut self) {
        if !matches!(self.state, State::Exited(_)) {
            self.oom_kills.exclude();
        }
    }
}

fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now)
}
