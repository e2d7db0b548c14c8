//! Running further commands in a container, and being attached to it.
//!
//! * [`session`]: a person's session: Exec and [`attach`], with their [`stream`]s
//! * [`exec_url`], [`attach_url`]: Exec and Attach, which answer where such a session is found
//! * [`sync`]: ExecSync, with its [`output`]
//! * [`process`]: what ExecSync and Exec have in common

pub mod attach;
pub mod attach_url;
pub mod exec_url;
pub mod output;
mod process;
pub mod session;
pub mod stream;
pub mod sync;
