//! The descriptions of a container in the archive of a checkpoint, in the formats of containerd, CRI-O and podman
//! (github.com/checkpoint-restore/checkpointctl, `lib/metadata.go`).

use std::fs;

use berth_proto::v1::ContainerStatus;
use jiff::Timestamp;
use oci_spec::runtime::Spec;
use serde::Serialize;

use super::work::CheckpointWork;
use crate::error::CriError;

/// The container and its image.
pub const CONFIG_DUMP: &str = "config.dump";
/// The OCI spec.
pub const SPEC_DUMP: &str = "spec.dump";
/// The CRI's status.
pub const STATUS_DUMP: &str = "status.dump";
/// The status in containerd's own format.
pub const STATUS: &str = "status";

/// The runtime that tools show.
const RUNTIME: &str = "berth";

/// A container at the time of its checkpoint.
#[derive(Debug)]
pub struct CheckpointedContainer {
    /// The CRI's status.
    pub status: ContainerStatus,
    /// The pid of its first process.
    pub pid: i32,
    /// Its OCI spec.
    pub spec: Spec,
    /// Nanoseconds since the epoch.
    pub checkpointed_at: i64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigDump<'a> {
    id: &'a str,
    name: &'a str,
    rootfs_image: &'a str,
    rootfs_image_ref: &'a str,
    rootfs_image_name: &'a str,
    runtime: &'a str,
    created_time: String,
    checkpointed_time: String,
    restored_time: String,
    restored: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerdStatus<'a> {
    created_at: i64,
    started_at: i64,
    finished_at: i64,
    exit_code: i32,
    pid: i32,
    reason: &'a str,
    message: &'a str,
}

impl CheckpointedContainer {
    /// Writes the descriptions to the work folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, work: &CheckpointWork) -> Result<(), CriError> {
        let status = &self.status;
        let image = status.image.as_ref();
        let as_requested = image.map(|image| image.image.as_str()).unwrap_or_default();
        let in_pod = image.map(|image| image.user_specified_image.as_str()).filter(|name| !name.is_empty());
        let image = in_pod.unwrap_or(as_requested);
        let config = ConfigDump {
            id: &status.id,
            name: status.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default(),
            rootfs_image: image,
            rootfs_image_ref: &status.image_ref,
            rootfs_image_name: image,
            runtime: RUNTIME,
            created_time: rfc3339(status.created_at),
            checkpointed_time: rfc3339(self.checkpointed_at),
            // Go's zero time: not restored.
            restored_time: "0001-01-01T00:00:00Z".to_owned(),
            restored: false,
        };
        let containerd = ContainerdStatus {
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            pid: self.pid,
            reason: &status.reason,
            message: &status.message,
        };
        write(work, CONFIG_DUMP, &config)?;
        write(work, SPEC_DUMP, &self.spec)?;
        write(work, STATUS_DUMP, status)?;
        write(work, STATUS, &containerd)
    }
}

fn write(work: &CheckpointWork, name: &str, value: &impl Serialize) -> Result<(), CriError> {
    let operation = || format!("write {name} of a checkpoint");
    let text = serde_json::to_vec(value).map_err(|error| CriError::internal(operation(), error))?;
    fs::write(work.file(name), text).map_err(|error| CriError::internal(operation(), error))
}

fn rfc3339(nanoseconds: i64) -> String {
    Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::v1::{ContainerMetadata, ImageSpec};

    #[test]
    fn the_descriptions_have_the_keys_that_other_tools_read() {
        let parent = tempfile::tempdir().unwrap();
        let work = CheckpointWork::of_container(parent.path());
        work.create().unwrap();
        let status = ContainerStatus {
            id: "abc".to_owned(),
            metadata: Some(ContainerMetadata { name: "web".to_owned(), attempt: 2 }),
            created_at: 1_700_000_000_000_000_000,
            image: Some(ImageSpec {
                image: "sha256:1".to_owned(),
                user_specified_image: "nginx:1".to_owned(),
                ..ImageSpec::default()
            }),
            image_ref: "nginx@sha256:2".to_owned(),
            ..ContainerStatus::default()
        };
        let described = CheckpointedContainer {
            status,
            pid: 7,
            spec: Spec::default(),
            checkpointed_at: 1_700_000_001_000_000_000,
        };
        described.write(&work).unwrap();
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(work.file(name)).unwrap()).unwrap()
        };
        let config = read(CONFIG_DUMP);
        assert_eq!(config["rootfsImageName"], "nginx:1");
        assert_eq!(config["rootfsImageRef"], "nginx@sha256:2");
        assert_eq!(config["createdTime"], "2023-11-14T22:13:20Z");
        assert_eq!(
            (&config["id"], &config["name"], &config["restored"]),
            (&"abc".into(), &"web".into(), &false.into())
        );
        assert_eq!(read(STATUS)["Pid"], 7);
        assert_eq!(read(STATUS_DUMP)["metadata"]["attempt"], 2);
        assert!(read(SPEC_DUMP)["ociVersion"].is_string());
    }
}
