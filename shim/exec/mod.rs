//! Running further commands in a container, and being attached to it.
//!
//! * [`session`]: a person's session: Exec and [`attach`], with their [`stream`]s
//! * [`sync`]: ExecSync, with its [`output`]
//! * [`process`]: what ExecSync and Exec have in common

pub mod attach;
pub mod output;
mod process;
pub mod session;
pub mod stream;
pub mod sync;
