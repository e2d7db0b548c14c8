//! The programs that `build.rs` builds and this binary embeds, so that berth is one file to copy to a node.

/// The keeper: the parent of all processes of one pod (`runtime/keeper`).
pub static KEEPER: &[u8] = include_bytes!(env!("BERTH_KEEPER_PATH"));

/// The pause: the process that holds a pod's namespaces (`runtime/pause`).
pub static PAUSE: &[u8] = include_bytes!(env!("BERTH_PAUSE_PATH"));

/// The program in the image of `berth demo` (`demo/`).
pub static DEMO_APP: &[u8] = include_bytes!(env!("BERTH_DEMO_APP_PATH"));
