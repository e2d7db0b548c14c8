//! Further commands in a container, and attaching to a container's own streams.
//!
//! * [`session`]: an interactive session of Exec or [`attach`], with its [`stream`]s
//! * [`exec_url`], [`attach_url`]: the Exec and Attach calls, which return the URL of a session
//! * [`sync`]: ExecSync, with its [`output`]
//! * [`process`]: the process that ExecSync and Exec start
//! * [`access`]: the parts of the daemon that these use

mod access;
pub mod attach;
pub mod attach_url;
pub mod exec_url;
pub mod output;
mod process;
pub mod session;
pub mod stream;
pub mod sync;

pub use access::ContainerAccess;
