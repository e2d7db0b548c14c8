//! Compiles the protos with protox (no protoc on the machine) and generates clients and servers from the descriptors.

mod enums;

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 2] = ["runtime/v1/api.proto", "berth/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // Reflection has no use for comments and line numbers, and the daemon would hold them in memory.
    let mut bare = descriptors.clone();
    bare.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::write(out.join("descriptors.bin"), bare.encode_to_vec())?;
    fs::write(out.join("enums.rs"), enums::generate(&descriptors)?)?;
    tonic_prost_build::configure()
        .codec_path("crate::codec::CheckedCodec")
        .build_client(true)
        .build_server(true)
        // What the daemon keeps on disk of a pod or container is the client's own config, as JSON; a field that a newer
        // version adds is absent in what an older one wrote.
        .message_attribute(
            ".runtime.v1",
            "#[derive(serde::Serialize, serde::Deserialize)]\n#[serde(default)]",
        )
        // Credentials have a Debug of their own (credentials.rs), so that no log line can show them.
        .skip_debug([".runtime.v1.AuthConfig"])
        .compile_fds(descriptors)?;
    Ok(())
}
