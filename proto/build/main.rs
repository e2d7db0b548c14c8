//! Compiles the protos with protox (protoc is not needed) and generates clients and servers from the descriptors.

mod enums;

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 3] = ["runtime/v1/api.proto", "berth/v1/admin.proto", "berth/v1/observer.proto"];

/// The messages of NRI. They do not travel by gRPC.
const NRI: &str = "nri/v1alpha1/api.proto";

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS.into_iter().chain([NRI]) {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // Reflection does not use comments and line numbers. Without them, the daemon needs less memory.
    let mut bare = descriptors.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join("descriptors.bin"), bare.encode_to_vec())?;
    fs::write(out.join("enums.rs"), enums::generate(&descriptors)?)?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::CheckedCodec")
        .build_client(true)
        .build_server(true)
        // The daemon stores the client's config of a pod or container on disk, as JSON. A field that a newer version adds
        // is absent in the file of an older version.
        .message_attribute(
            ".runtime.v1",
            "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]",
        )
        // credentials.rs implements Debug for credentials, so that log lines cannot contain them.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    tonic_prost_build::configure().compile_fds(protox::compile([NRI], ["."])?)?;
    Ok(())
}
