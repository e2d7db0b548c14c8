//! The events of the keeper.

use serde::{Deserialize, Serialize};

use super::failure::InitFailure;
use super::snapshot::ExitRecord;

/// An event, which the keeper sends to every connection unless noted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A container's first process has ended. Its output is in the log, unless a disk hangs. The writer process
    /// has received its exit record.
    Exited {
        /// The container's id.
        container: String,
        /// How the container ended.
        record: ExitRecord,
    },
    /// An exec's process has ended.
    ExecExited {
        /// The exec's id.
        exec: String,
        /// The exit code, or 128 plus the signal's number.
        code: i32,
    },
    /// A `poststop` hook has failed. Sent after [`Event::Exited`], to daemons that support it.
    PoststopFailed {
        /// The container's id.
        container: String,
        /// The first failure.
        failure: InitFailure,
    },
    /// The pause has ended. New containers can no longer join the pod's namespaces.
    PauseExited {
        /// The exit code, or 128 plus the signal's number.
        code: i32,
    },
    /// The keeper has detached a client. The event is sent only to the connection that attached the client. It is
    /// not sent if the client closed its ends itself or its container has ended.
    Detached {
        /// The client's id.
        client: String,
        /// Why the client was detached.
        why: Detachment,
    },
}

/// The reason why the keeper detached a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Detachment {
    /// The client's input has ended. The container's input stays open for other clients.
    InputEnded,
    /// The client does not read fast enough: the buffer of its socket is full.
    Behind,
}
