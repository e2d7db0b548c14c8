//! The messages and services on berth's socket. They are generated from the protos in this folder: the complete CRI
//! (`runtime/v1/api.proto`), and the services for berth's command line (`berth/v1/admin.proto`, `berth/v1/observer.proto`).
//! [`nri`] has the messages for NRI plugins.

pub mod codec;
mod credentials;
pub mod enums;

/// The Kubernetes Container Runtime Interface, version 1.
pub mod v1 {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        deprecated,
        clippy::all,
        clippy::pedantic,
        clippy::as_conversions,
        clippy::too_many_lines,
        reason = "generated; the proto has the comments"
    )]
    tonic::include_proto!("runtime.v1");
}

/// The admin and observer services, which berth's command line calls on a running daemon.
pub mod admin {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::as_conversions,
        clippy::too_many_lines,
        reason = "generated; the proto has the comments"
    )]
    tonic::include_proto!("berth.v1");
}

/// The messages of the Node Resource Interface (`nri/v1alpha1/api.proto`).
pub mod nri {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::pedantic,
        clippy::as_conversions,
        clippy::too_many_lines,
        reason = "generated; the proto has the comments"
    )]
    tonic::include_proto!("nri.pkg.api.v1alpha1");
}

/// The compiled protos as an encoded `google.protobuf.FileDescriptorSet`. gRPC reflection uses it.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
