//! The connection of a plugin: one unix socket on which both sides call each other.
//!
//! * [`frame`]: divides the socket into two connections, one for each direction of calls
//! * [`message`]: the messages of ttrpc
//! * [`connection`]: calls with time limits
//! * [`incoming`]: reads the socket: the answers, and the calls of the plugin

pub mod connection;
pub mod frame;
pub mod incoming;
pub mod message;

pub use connection::{PluginConnection, PluginError};
pub use incoming::IncomingCall;

/// The code of a function that the other side does not have (grpc.io, "Status codes").
pub const UNIMPLEMENTED: i32 = 12;

/// The code of an error without a more exact code.
pub const UNKNOWN: i32 = 2;

/// The number of calls of a plugin that wait to be handled. A plugin with more is disconnected.
const MAX_WAITING: usize = 64;
