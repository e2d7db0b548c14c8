//! gRPC clients in several languages on the real socket. Most of them send another `:authority` than Go's and Rust's
//! clients. Runs as root.

use std::path::{Path, PathBuf};
use std::process::Command;

use berth_proto::v1::{ImageFsInfoResponse, VersionRequest, VersionResponse};
use prost::Message;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::support::Berth;

/// Returns the folder with the programs of `tests/stand-ins/grpcclients.sh`.
fn clients() -> PathBuf {
    if let Some(folder) = std::env::var_os("BERTH_GRPC_CLIENTS") {
        return folder.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/grpcclients.sh");
    let output = Command::new(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().into()
}

/// Sends a message and returns the first response.
fn call<A: Message + Default>(
    program: &Path,
    target: &str,
    method: &str,
    message: &impl Message,
    more: &[&str],
) -> A {
    let message = hex::encode(message.encode_to_vec());
    let output = Command::new(program).args([target, method, &message]).args(more).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {target} {method}: {error}", program.display());
    let answer = String::from_utf8(output.stdout).unwrap();
    A::decode(&hex::decode(answer.trim()).unwrap()[..]).unwrap()
}

/// Calls berth's services, health and reflection.
fn calls(program: &Path, target: &str, more: &[&str]) {
    let version: VersionResponse =
        call(program, target, "/runtime.v1.RuntimeService/Version", &VersionRequest::default(), more);
    assert_eq!(version.runtime_name, "berth");
    let images: ImageFsInfoResponse =
        call(program, target, "/runtime.v1.ImageService/ImageFsInfo", &(), more);
    assert_eq!(images.image_filesystems.len(), 1);
    let health = HealthCheckRequest { service: "runtime.v1.RuntimeService".to_owned() };
    let health: HealthCheckResponse = call(program, target, "/grpc.health.v1.Health/Check", &health, more);
    assert_eq!(health.status(), ServingStatus::Serving);
    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let list: ServerReflectionResponse = call(program, target, method, &list, more);
    let Some(MessageResponse::ListServicesResponse(list)) = list.message_response else { panic!("{list:?}") };
    assert!(list.service.iter().any(|service| service.name == "runtime.v1.ImageService"));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_clients_in_python_node_go_and_cpp_are_served() {
    let berth = Berth::start().await;
    let socket = berth.path("run/berth.sock").display().to_string();
    let clients = clients();
    for language in ["python", "node", "go", "cpp"] {
        calls(&clients.join(language), &format!("unix://{socket}"), &[]);
    }
    calls(&clients.join("python"), &format!("unix:{socket}"), &[]);
    // The authorities that Java and Swift clients send, and others that a client's option can set.
    for authority in [&socket, "unix:/run/berth.sock", "%2Frun%2Fberth.sock", "[", "localhost", "a b"] {
        calls(&clients.join("python"), &format!("unix:{socket}"), &[authority]);
    }
    drop(berth);
}
