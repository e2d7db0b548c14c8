//! The integration tests: one file or folder per area, in one program, so that the daemon's code is linked once. They run
//! the real daemon as root. `tests/README.md` describes each area.
//!
//! One area: `cargo test --test it pods::`. One test: `cargo test --test it pods::lists_are_filtered`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::too_many_lines,
    missing_docs,
    unreachable_pub,
    reason = "a failing test panics and is read from top to bottom; nothing here is an interface"
)]

mod alerts;
mod as_peers;
mod attacks;
mod bad_input;
mod check;
mod checkpoint;
mod clients;
mod cni_reference;
mod commands;
mod config;
mod containers;
mod cri_fields;
mod daemon_log;
mod daemon_parts;
mod demo;
mod diag;
mod doc_paths;
mod events;
mod failpoints;
mod fsck;
mod handlers;
mod hooks;
mod hostile_images;
mod idle;
mod image_volumes;
mod load;
mod logs;
mod metrics;
mod module_graph;
mod mount_rights;
mod mounts;
mod network;
mod network_paths;
mod network_upkeep;
mod node_events;
mod nri;
mod oci;
mod plugins;
mod pod_checkpoint;
mod pod_files;
mod pods;
mod power_cuts;
mod prometheus;
mod registry;
mod resources;
mod restart;
mod restore;
mod seccomp;
mod security_document;
mod server;
mod sessions;
mod storm;
mod streaming;
mod streaming_limits;
mod support;
mod survival;
mod systemd;
mod traces;
mod type_names;
mod updates;
mod userns;
