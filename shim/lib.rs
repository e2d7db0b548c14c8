//! The shim: the only crate that uses the CRI and gRPC. It translates the kubelet's requests into calls of the crates
//! below it (`runtime`, `cni`, `image`), records pods and containers, and answers.
//!
//! The path of a request: [`server`] (socket, deadline, span) -> [`runtime_service`], [`image_service`] (decode) ->
//! [`pod`], [`container`], [`exec`], [`images`] (validate, one [`operation`] per object) -> the crates below ->
//! [`store`] -> answer. No module calls back up.
//!
//! * [`cli`], [`config`], [`check`], [`demo`]: the user interface
//! * [`server`], [`info`], [`error`]: the outer layer
//! * [`runtime_service`], [`image_service`], [`admin_service`], [`observer_service`]: one function per RPC, by its name
//! * [`pod`], [`container`], [`exec`], [`event`], [`images`], [`stats`], [`metrics`], [`oci`]: one module per kind of
//!   object
//! * [`stream`]: streaming sessions and their protocols; [`session_url`]: their URLs
//! * [`daemon`]: the running daemon and its parts: [`pods`] with the [`store`] and the [`operation`]s, [`network`],
//!   [`cgroups`], [`host`]; [`recover`]: recovery after a restart; [`undo`]: undoes a failed operation
//! * [`checkpoint`]: checkpoints of containers, with CRIU
//! * [`handlers`]: RuntimeClass handlers that are OCI runtimes
//! * [`observe`]: operations in flight and the surroundings of a pod, for `berth diag`
//! * [`inventory`], [`fsck`]: objects on the host, and their comparison with the records
//! * [`logging`]: the log, its formats and its level
//! * [`traces`]: spans for OpenTelemetry
//! * [`instruments`]: counters and durations of the daemon's own work; [`exposition`]: serves them to Prometheus
//! * [`nri`]: plugins of the Node Resource Interface; [`nri_events`]: calls them at the events of pods and containers
//! * [`views`]: states and statuses in the CRI's terms; [`responses`]: streamed responses
//! * [`blocking`], [`host_files`]: work that blocks
//! * [`keeper`], [`root_mount`], [`programs`], [`ids`], [`clock`], [`descriptors`], [`devices`], [`cdi`], [`hook_folders`], [`seccomp`], [`lsm`],
//!   [`systemd`], [`leftovers`]: small parts
//! * [`log_folders`]: log folders of pods that berth has created
//! * [`project_quota`]: project quotas for the image store, by the system calls of the runtime

pub mod admin_service;
pub mod blocking;
pub mod cdi;
pub mod cgroups;
pub mod check;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
#[cfg(test)]
mod creation_tests;
pub mod daemon;
pub mod demo;
pub mod descriptors;
pub mod devices;
pub mod error;
pub mod event;
pub mod exec;
pub mod exposition;
#[cfg(test)]
mod fakes;
pub mod fsck;
pub mod handlers;
pub mod hook_folders;
pub mod host;
pub mod host_files;
pub mod ids;
pub mod image_service;
pub mod images;
pub mod info;
pub mod instruments;
pub mod inventory;
pub mod keeper;
pub mod leftovers;
#[cfg(test)]
mod lifecycle_tests;
pub mod log_folders;
pub mod logging;
pub mod lsm;
pub mod metrics;
pub mod network;
pub mod nri;
pub mod nri_events;
pub mod observe;
pub mod observer_service;
pub mod oci;
pub mod operation;
pub mod pod;
pub mod pods;
pub mod programs;
pub(crate) mod project_quota;
pub mod recover;
pub mod responses;
pub mod root_mount;
pub mod runtime_service;
pub mod seccomp;
pub mod server;
pub mod session_url;
pub mod stats;
pub mod store;
pub mod stream;
pub mod systemd;
pub mod traces;
pub mod undo;
pub mod views;
