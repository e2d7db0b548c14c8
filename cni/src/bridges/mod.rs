//! The bridges that pods are attached to.
//!
//! * [`keys`]: the configuration of a bridge and its ports; [`make`]: the bridge itself
//! * [`ready`]: whether the bridges are still in the configured state

mod keys;
mod make;
mod ready;

pub(crate) use keys::Keys;
pub(crate) use make::ReadyBridge;
pub(crate) use ready::Ready;
