//! `berth-oci` with bundles of this host's busybox. Runs as root.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

mod commands;
mod lab;
mod options;
mod safety;
