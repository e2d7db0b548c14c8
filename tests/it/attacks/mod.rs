//! Published attacks on container runtimes, replayed against the real daemon. The name of each test begins with the
//! advisory, or describes the attack if it has no number. `docs/security.md` lists the advisories with their tests.
//! Runs as root.
//!
//! * [`processes`]: processes that enter a container, with their descriptors, program and keyring
//! * [`mounts`]: images and volumes that redirect the root filesystem; [`exchange`]: the same as races; [`root`]: the
//!   view of a container at its root
//! * [`identity`]: users, groups, capabilities, devices; [`requests`]: requests with hidden content
//! * [`images`]: hostile layers, manifests and registries
//! * [`exhaustion`]: memory, descriptors and disks of the host; [`network`], [`sockets`]
//!
//! The attackers are small programs in `programs/`, compiled by `tests/stand-ins/attack-programs.sh`.

mod exchange;
mod exhaustion;
mod identity;
mod images;
mod lab;
mod mounts;
mod network;
mod processes;
mod requests;
mod root;
mod sockets;
