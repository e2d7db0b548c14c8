//! Pods and containers on the kernel: this crate knows namespaces, mounts, cgroups, credentials and processes,
//! and nothing of the CRI, of gRPC or of images.
//!
//! It is built twice. The daemon takes it with the feature `daemon`: there an OCI runtime spec is compiled into a
//! flat [`plan`], cgroups are made, root filesystems are assembled as detached mounts, and a pod's keeper is started
//! and spoken to. The keeper (`runtime/keeper`) takes it without: there the [`plan`] is walked, step by step, by
//! the first process of each container.
//!
//! * [`sys`]: every system call that needs `unsafe`, behind safe functions that own their descriptors
//! * [`path`], [`procfs`]: paths inside a container as descriptors, and the private procfs that writes go through
//! * [`logs`]: log files, in folders that containers may have mounted
//! * [`plan`]: what the init of a container or pod does, compiled
//! * [`wire`]: the messages between daemon and keeper, and the record in which an init reports its failure
//! * [`init`]: the steps of a container's, a pod's and an exec's first process
//! * [`keeper`]: the event loop of the keeper
//! * [`compile`], [`cgroup`], [`rootfs`], [`seccomp`], [`users`], [`client`]: the daemon's half

pub mod init;
pub mod logs;
pub mod path;
pub mod plan;
pub mod procfs;
pub mod sys;
pub mod wire;

#[cfg(feature = "daemon")]
pub mod cgroup;
#[cfg(feature = "daemon")]
pub mod client;
#[cfg(feature = "daemon")]
pub mod compile;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::expect_used, clippy::panic, reason = "a target says what is wrong by panicking")]
pub mod fuzzing;
#[cfg(feature = "daemon")]
pub mod rootfs;
#[cfg(feature = "daemon")]
pub mod seccomp;
#[cfg(feature = "daemon")]
pub mod users;
