//! Answers to calls, and the failures that they report.

use berth_runtime::sys;
use berth_runtime::wire::{Failure, InitFailure, Outcome, Step};

/// A call that waits for an answer, and its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) connection: u64,
    pub(crate) request: u64,
}

/// The answer to a call that is answered at once.
pub(crate) type Answer = Result<Outcome, Failure>;

/// The failure of a call that names something which does not exist.
pub(crate) fn not_found(what: &str) -> Failure {
    Failure::NotFound { what: what.to_owned() }
}

/// The failure of a call that the state of `what` does not permit.
pub(crate) fn state(what: &str, state: &str) -> Failure {
    Failure::State { what: what.to_owned(), state: state.to_owned() }
}

/// The failure of a child that ended, or closed its socket, without a report.
pub(crate) fn vanished() -> Failure {
    Failure::Init(InitFailure { step: Step::Vanished, errno: 0, index: None, detail: String::new() })
}

/// Converts the failure of a system call of the keeper.
pub(crate) fn system(error: &sys::Error) -> Failure {
    let action = format!("{} {}", error.call, error.object).trim_end().to_owned();
    Failure::System { action, errno: error.raw() }
}
