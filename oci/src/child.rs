//! The reports of a first process to this process, its parent, until it has executed its program.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::sys::process::{self, Ended};
use berth_runtime::sys::spawn::Child;
use berth_runtime::sys::{self, socket};
use berth_runtime::wire::transport::{RECORD, Report};
use berth_runtime::wire::{InitFailure, Step};
use rustix::io::Errno;

/// A first process.
#[derive(Debug)]
pub(crate) struct FirstProcess {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) gate: OwnedFd,
}

/// A report.
#[derive(Debug)]
pub(crate) enum Progress {
    /// It has created its terminal.
    Terminal(OwnedFd),
    /// Its environment exists, and it waits for the hooks.
    Hooks,
    /// It waits for the start.
    Ready,
    /// It has executed its program, or has ended.
    Closed,
}

impl FirstProcess {
    pub(crate) fn new(child: Child, gate: OwnedFd) -> Self {
        Self { pid: child.pid, pidfd: child.pidfd, gate }
    }

    /// Waits for the next report. Follows a process that continues in another one.
    pub(crate) fn next(&mut self) -> Result<Progress, InitFailure> {
        loop {
            let mut record = [0_u8; RECORD];
            let packet = match socket::receive_from(self.gate.as_fd(), &mut record) {
                Ok(packet) => packet,
                Err(error) if error.errno == Errno::INTR => continue,
                Err(_) => return Ok(Progress::Closed),
            };
            let report = Report::decode(record.get(..packet.length).unwrap_or_default());
            match (report, packet.descriptors.into_iter().next()) {
                (Some(Report::Ready), _) => return Ok(Progress::Ready),
                (Some(Report::Hooks), _) => return Ok(Progress::Hooks),
                (Some(Report::Terminal), Some(master)) => return Ok(Progress::Terminal(master)),
                (Some(Report::Moved), _) => self.follow(packet.sender).map_err(|error| InitFailure {
                    step: Step::Clone,
                    errno: error.raw(),
                    index: None,
                    detail: error.to_string(),
                })?,
                (Some(Report::Failed(failure)), _) => return Err(failure),
                (
                    Some(
                        Report::Terminal
                        | Report::Listener
                        | Report::Restored { .. }
                        | Report::Created { .. },
                    ),
                    _,
                )
                | (None, _) => {
                    return Ok(Progress::Closed);
                }
            }
        }
    }

    fn follow(&mut self, sender: Option<i32>) -> sys::Result<()> {
        let pid = sender.unwrap_or(0);
        self.pidfd = process::child(pid)?;
        self.pid = pid;
        socket::report_senders(self.gate.as_fd(), false)
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(&self) {
        process::kill(self.pidfd.as_fd());
        // It is a child: there is no other error.
        drop(process::wait(self.pidfd.as_fd()));
    }

    /// Waits for the end of the process.
    pub(crate) fn ended(&self) -> sys::Result<Option<Ended>> {
        process::reap(self.pidfd.as_fd())
    }
}

/// The failure of a process that ended without a report.
pub(crate) fn vanished() -> InitFailure {
    InitFailure { step: Step::Vanished, errno: 0, index: None, detail: String::new() }
}
