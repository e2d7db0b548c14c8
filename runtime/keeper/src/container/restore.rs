//! A container whose processes are restored from a checkpoint. Its first child is the program that restores them. When that has
//! ended, the first of the restored processes is a child of the keeper, which is the subreaper, and takes its place.

use berth_runtime::sys::process::{self, Ended};
use berth_runtime::wire::Outcome;

use crate::container::Container;
use crate::failure::{system, vanished};
use crate::services::Services;
use crate::stamp::now;

/// SIGKILL.
const KILLED: Ended = Ended::Signal(9);

/// How far the restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RestoreProgress {
    /// Its processes are not restored yet.
    Waits,
    /// The first restored process is followed. Until the socket ends it is a child of CRIU and may be stopped.
    Restored,
    /// It runs.
    Done,
}

impl Container {
    /// Whether reports of a restore are still expected.
    pub(super) fn restores(&self) -> bool {
        matches!(self.restore, Some(RestoreProgress::Waits | RestoreProgress::Restored))
    }

    /// Follows the first restored process. Its own program, which may end at once, does not run yet.
    pub(super) fn follow_restored(&mut self, pid: i32, services: &mut Services) {
        if self.restore != Some(RestoreProgress::Waits) {
            return;
        }
        match self.child.follow(pid) {
            Ok(()) => self.restore = Some(RestoreProgress::Restored),
            Err(error) => self.fail(system(&error), services),
        }
    }

    /// Handles the end of the socket, which the program that restores and CRIU held.
    pub(super) fn restore_ended(&mut self, services: &mut Services) {
        let is_restored = self.restore == Some(RestoreProgress::Restored);
        let lives = self.child.has_exit() || process::child(self.pid()).is_ok();
        if !is_restored || !lives {
            return self.fail(vanished(), services);
        }
        self.restore = Some(RestoreProgress::Done);
        let at = now();
        if let Some(origin) = self.state.run(at) {
            self.answer_start(origin, at, services);
        }
        self.gate_closed(services);
    }

    /// Ends a container whose first restored process was reaped by CRIU.
    pub(super) fn end_unreaped(&mut self) {
        if self.restore == Some(RestoreProgress::Restored)
            && process::child(self.pid()).is_err()
            && !self.child.has_exit()
        {
            self.child.store_exit(KILLED);
        }
    }

    /// The answer to a start.
    pub(super) fn started(&self, at: i64) -> Outcome {
        Outcome::Started { at, pid: self.restore.map(|_| self.pid()) }
    }
}
