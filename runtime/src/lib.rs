//! Pods and containers on the kernel: namespaces, mounts, cgroups, credentials and processes. This crate does not
//! depend on the CRI, on gRPC or on images.
//!
//! The crate is built twice. The daemon enables the feature `daemon`. It compiles an OCI runtime spec into a flat
//! [`plan`], creates cgroups, assembles root filesystems as detached mounts, and starts a pod's keeper and talks
//! to it. The keeper (`runtime/keeper`) is built without the feature. The first process of each container executes
//! the [`plan`] there, step by step.
//!
//! * [`sys`]: every system call that needs `unsafe`, behind safe functions that own their descriptors
//! * [`path`], [`procfs`]: paths inside a container as descriptors, and the private procfs for writes
//! * [`logs`]: log files, in folders that containers may have mounted
//! * [`plan`]: compiled descriptions of what the init of a container or pod does
//! * [`restore`]: the place in which a helper program restores the processes of a checkpoint
//! * [`wire`]: the messages between daemon and keeper, and the record with which an init reports its failure
//! * [`hooks`]: runs the hooks of a container; [`runtime_call`]: calls the command line of another OCI runtime
//! * [`oom_kills`]: parses the OOM kills that the kernel counts in a cgroup
//! * [`init`]: the steps of a container's, a pod's and an exec's first process
//! * `keeper`: the event loop of the keeper
//! * [`compile`], [`cgroup`], [`rootfs`], [`seccomp`], [`users`], [`client`]: only for the daemon
//! * [`time_limit`]: waits for a program with a time limit, and reads its output
//! * [`keeper_step`]: the steps of a keeper at which a test stops it

pub mod hooks;
pub mod init;
pub mod keeper_step;
pub mod logs;
pub mod oom_kills;
pub mod path;
pub mod plan;
pub mod procfs;
pub mod restore;
pub mod runtime_call;
pub mod sys;
mod time_limit;
pub mod wire;

#[cfg(feature = "daemon")]
pub mod cgroup;
#[cfg(feature = "daemon")]
pub mod client;
#[cfg(feature = "daemon")]
pub mod compile;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, clippy::panic, reason = "a fuzz target reports an error by a panic")]
pub mod fuzzing;
#[cfg(feature = "daemon")]
pub mod rootfs;
#[cfg(feature = "daemon")]
pub mod seccomp;
#[cfg(feature = "daemon")]
pub mod users;
