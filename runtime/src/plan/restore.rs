//! The checkpoint that a container is restored from.

use serde::{Deserialize, Serialize};

use super::FdSlot;

/// The restore of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// The helper program.
    pub program: FdSlot,
    /// The folder with the checkpoint and the helper's order.
    pub folder: String,
}
