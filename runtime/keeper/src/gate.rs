//! The socket between the keeper and a child: what the child reports before its command runs.

use std::os::fd::{BorrowedFd, OwnedFd};

use berth_runtime::sys;
use berth_runtime::wire::transport::{RECORD, Report};
use berth_runtime::wire::{Failure, InitFailure};
use rustix::io::Errno;

use crate::failure::vanished;

/// The maximum length of a detail in a file.
const LONGEST_DETAIL: usize = 16 << 10;

/// An event of a child's socket.
#[derive(Debug)]
pub(crate) enum GateEvent {
    Report(Report, Option<OwnedFd>),
    /// Another child, the sender, continues.
    Moved(Option<i32>),
    /// The child's end is closed: the child has executed its command, or has ended.
    End,
}

/// Reads a child's socket. Returns `None` if there is no event.
pub(crate) fn read_gate(gate: BorrowedFd<'_>) -> Option<GateEvent> {
    let mut record = [0_u8; RECORD];
    match sys::socket::receive_from(gate, &mut record) {
        Ok(packet) => match Report::decode(record.get(..packet.length).unwrap_or_default()) {
            Some(Report::Moved) => Some(GateEvent::Moved(packet.sender)),
            Some(Report::Failed(failure)) => {
                Some(GateEvent::Report(Report::Failed(with_text(failure, &packet.descriptors)), None))
            }
            Some(report) => Some(GateEvent::Report(report, packet.descriptors.into_iter().next())),
            None => Some(GateEvent::End),
        },
        Err(error) if error.errno == Errno::AGAIN || error.errno == Errno::INTR => None,
        // ECONNRESET: the child has ended before it read everything that was sent to it.
        Err(_) => Some(GateEvent::End),
    }
}

/// Completes the detail of a failure from the file that came with it.
fn with_text(failure: InitFailure, descriptors: &[OwnedFd]) -> InitFailure {
    let text = descriptors.first().and_then(|file| sys::fs::read_all(file, LONGEST_DETAIL).ok());
    let detail = text.map(|text| String::from_utf8_lossy(&text).into_owned());
    InitFailure { detail: detail.unwrap_or(failure.detail), ..failure }
}

/// The failure that a report means in a state that does not expect it.
pub(crate) fn failure_of(report: Report) -> Failure {
    match report {
        Report::Failed(failure) => Failure::Init(failure),
        Report::Ready
        | Report::Terminal
        | Report::Listener
        | Report::Moved
        | Report::Hooks
        | Report::Created { .. }
        | Report::Restored { .. } => vanished(),
    }
}
