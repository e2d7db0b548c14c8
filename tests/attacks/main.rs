//! Published attacks on container runtimes, replayed against the real daemon. Each test has the name of the advisory, or of
//! the attack where it has no number; `docs/security.md` lists which test stands for what. Runs as root.
//!
//! * [`processes`]: processes on their way into a container, their descriptors, their program, their keyring
//! * [`mounts`]: images and volumes that lead the root filesystem elsewhere; [`exchange`]: the same as races; [`root`]: what a
//!   container has at its root
//! * [`identity`]: users, groups, capabilities, devices; [`requests`]: requests that carry more than they say
//! * [`images`]: layers, manifests and registries that lie
//! * [`exhaustion`]: memory, descriptors and disks of the host; [`network`], [`sockets`]
//! * [`document`]: `docs/security.md` names all of them
//!
//! The attackers are small programs of `programs/`, compiled by `tests/stand-ins/attack-programs.sh`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test stops at the first surprise"
)]

mod document;
mod exchange;
mod exhaustion;
mod identity;
mod images;
mod lab;
mod mounts;
#[path = "../support/net.rs"]
mod net;
mod network;
mod processes;
mod requests;
mod root;
mod sockets;
#[path = "../support/mod.rs"]
mod support;
