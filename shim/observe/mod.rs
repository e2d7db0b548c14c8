//! The data of `berth diag` that the CRI does not have.
//!
//! * [`operations`]: the operations, network plugins and pulls in flight
//! * [`pod`]: where the state of a pod is, and how packets reach it

pub mod operations;
pub mod pod;
