//! Running further commands in a container: [`sync`] is ExecSync; the streaming ones come with their protocols.

pub mod output;
pub mod sync;
