//! The messages between the daemon and a pod's keeper.
//!
//! ```text
//! daemon                                keeper                               first process of a container
//!   | Request{id, Hello} ----------------->|
//!   |<------ Answer{id, Hello(snapshot)} --|
//!   | Request{id, Sandbox(plan)} --------->|-- clone3 --> pause
//!   |<-- Answer{id, Sandbox{pid}} + fds ---|
//!   | Request{id, Create(plan)} + fds ---->|-- clone3 ----------------------------->| steps
//!   |                                      |<-- Report: Terminal -------------------|
//!   |                                      |<-- Report: Moved (a clone continues) ---|
//!   |                                      |<-- Report: Hooks --- hooks of the host --> |
//!   |                                      |<-- Report: Ready | Failed -------------| waits
//!   |<------------- Answer{id, Created} ---|
//!   | Request{id, Start} ----------------->|-- one byte --------------------------->| execve
//!   |                                      |<-- Report: Restored (a checkpoint) ------|
//!   |<------------- Answer{id, Started} ---|<-- end of file: exec succeeded | Failed
//!   |<--- Event(Exited{record}) -----------|  waitid(P_PIDFD), the log is written
//! * [`answer`]: the results of successful calls
//! * [`call`]: the calls of the daemon
//! * [`event`]: the events of the keeper
//! * [`failure`]: the reasons why a call, or the first process of a container, failed
//! * [`snapshot`]: the state of a keeper and of its containers
//! * [`step`]: the steps of a first process, which its failures name
//! ```
//!
//! One message is one packet of a `SOCK_SEQPACKET` unix socket: JSON, with descriptors in ancillary data
//! (`SCM_RIGHTS`). A body that is too long for a packet is sent in a memfd (see [`transport`]). The daemon may
//! disconnect and reconnect at any time. Every connection starts with `Hello`. Its snapshot contains what happened
//! in between.
//!
//! A daemon talks to the keepers of its predecessor. [`PROTOCOL`] therefore only grows. A call is sent only to a
//! keeper that supports it ([`Call::since`]). A keeper answers a call that it does not support with
//! [`Failure::Unknown`]. Events that a later version added are sent only to daemons that support them: those that
//! made the call that the event follows.
//!

pub mod answer;
pub mod call;
pub mod event;
pub mod failure;
pub mod snapshot;
pub mod step;
pub mod transport;

use serde::{Deserialize, Serialize};

pub use answer::Outcome;
pub use call::{AnyRequest, Call, Request};
pub use event::{Detachment, Event};
pub use failure::{Failure, InitFailure};
pub use snapshot::{ContainerSnapshot, ExitRecord, Phase, Snapshot};
pub use step::Step;

/// The version of these messages. Version 2 added [`Call::Attach`] and [`Call::Resize`], version 3 hooks other than
/// `createContainer` and [`Event::PoststopFailed`], version 4 the scheduling of processes, version 5 the restore of checkpoints,
/// version 6 OCI runtimes.
pub const PROTOCOL: u32 = 6;

/// The version of the messages that added [`Event::PoststopFailed`].
pub const POSTSTOP_EVENT: u32 = 3;

/// A message of the keeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Answer {
        /// The request's id.
        id: u64,
        /// The result of the call.
        result: Result<Outcome, Failure>,
    },
    /// An event. Events of one container arrive in order.
    Event(Event),
}
