//! The reasons why a call, or the first process of a container, failed.

use serde::{Deserialize, Serialize};

use super::step::Step;

/// The reason why a call failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// The first process failed in one of its steps.
    #[error("{0}")]
    Init(InitFailure),
    /// The keeper itself failed in a system call.
    #[error("{action}: {}", std::io::Error::from_raw_os_error(*.errno))]
    System {
        /// The system call and its object.
        action: String,
        /// The number of the error (errno(3)).
        errno: i32,
    },
    /// The container, exec or pause does not exist.
    #[error("{what} not found")]
    NotFound {
        /// The object's kind and id.
        what: String,
    },
    /// The state of the object does not permit the call.
    #[error("{what} is {state}")]
    State {
        /// The object's kind and id.
        what: String,
        /// The state: `running`, `ended`, `not started`.
        state: String,
    },
    /// The keeper does not support the call: an older daemon started it.
    #[error("the pod's keeper does not support this call")]
    Unknown,
}

/// The failure of a first process. The init sends it as a fixed record, see [`Report`](super::transport::Report).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InitFailure {
    /// The step that failed.
    pub step: Step,
    /// `errno`, or 0 if the failure is not one of a system call.
    pub errno: i32,
    /// The index of the mount, device, path, sysctl or limit in the plan, if the step handles several.
    pub index: Option<u32>,
    /// Further details. Often empty; at most 160 bytes, or more in the failure of an OCI runtime.
    pub detail: String,
}

impl std::fmt::Display for InitFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.step.description())?;
        if let Some(index) = self.index {
            write!(f, " {index}")?;
        }
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}
