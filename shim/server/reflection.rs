//! The services that describe this server: health, and reflection in both versions. Depending on its age,
//! grpcurl tries v1alpha or v1 first.

use berth_proto::FILE_DESCRIPTOR_SET;
use tonic_health::ServingStatus;
use tonic_health::pb::FILE_DESCRIPTOR_SET as HEALTH_DESCRIPTOR_SET;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;
use tonic_reflection::server::{Builder, Error};

/// The services with a reported health; the empty name is the whole server.
const SERVICES: [&str; 4] = ["", "runtime.v1.RuntimeService", "runtime.v1.ImageService", "berth.v1.Admin"];

fn builder() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(HEALTH_DESCRIPTOR_SET)
}

/// Returns the reflection service, version 1.
///
/// # Errors
/// The compiled protos are inconsistent.
pub fn v1() -> Result<ServerReflectionServer<impl ServerReflection>, Error> {
    builder().build_v1()
}

/// Returns the reflection service, version 1alpha.
///
/// # Errors
/// As [`v1`].
pub fn v1alpha() -> Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, Error> {
    builder().build_v1alpha()
}

/// Returns the health service, which reports everything as serving.
pub async fn health() -> (HealthReporter, HealthServer<impl Health>) {
    let (reporter, server) = tonic_health::server::health_reporter();
    report(&reporter, ServingStatus::Serving).await;
    (reporter, server)
}

/// Reports to watchers that the server is about to stop.
pub async fn stop_serving(reporter: &HealthReporter) {
    report(reporter, ServingStatus::NotServing).await;
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}
