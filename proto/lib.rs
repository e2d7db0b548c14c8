//! The messages and services on berth's socket, generated from the protos beside this file: the whole CRI
//! (`runtime/v1/api.proto`) and what berth's own command line asks of a running daemon (`berth/v1/admin.proto`).

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

/// What berth's own command line asks of a running daemon.
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

/// The compiled protos as an encoded `google.protobuf.FileDescriptorSet`: what gRPC reflection answers from.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
