//! The shim: the only room that knows the CRI and gRPC. It translates what the kubelet asks for into what the rooms below
//! understand (`runtime`, `cni`, `image`), keeps the record of pods and containers, and answers.
//!
//! A request's way: [`server`] (socket, deadline, span) -> [`runtime_service`], [`image_service`] (decode) -> [`pod`],
//! [`container`], [`exec`], [`images`] (validate, one [`operation`] per object) -> the rooms below -> [`store`] -> answer.
//! No module calls back up.
//!
//! * [`cli`], [`config`], [`check`], [`demo`]: what a person meets
//! * [`server`], [`info`], [`error`]: the outer layer
//! * [`runtime_service`], [`image_service`], [`admin_service`]: each RPC by its name
//! * [`pod`], [`container`], [`exec`], [`event`], [`images`], [`stats`], [`spec`]: the life of each noun
//! * [`stream`]: sessions of people with pods, and their protocols
//! * [`daemon`], [`store`], [`operation`], [`undo`], [`recover`]: what they share, and how a new daemon takes over
//! * [`keeper`], [`programs`], [`ids`], [`clock`], [`descriptors`], [`devices`], [`cdi`], [`seccomp`], [`lsm`], [`systemd`]: small parts

pub mod admin_service;
pub mod cdi;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod daemon;
pub mod demo;
pub mod descriptors;
pub mod devices;
pub mod error;
pub mod event;
pub mod exec;
pub mod ids;
pub mod image_service;
pub mod images;
pub mod info;
pub mod keeper;
pub mod leftovers;
pub mod lsm;
pub mod operation;
pub mod pod;
pub mod programs;
pub mod recover;
pub mod runtime_service;
pub mod seccomp;
pub mod server;
pub mod spec;
pub mod stats;
pub mod store;
pub mod stream;
pub mod systemd;
pub mod undo;
