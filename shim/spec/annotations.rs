//! The annotations by which tools tell what a container is (those of containerd, which agents and hooks look for). The
//! client's own annotations are data and steer nothing: they are not among them.

use std::collections::HashMap;

use berth_proto::v1::ContainerConfig;

use super::{ImageContext, PodContext};

fn of_pod(pod: &PodContext<'_>, kind: &str) -> HashMap<String, String> {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let pairs = [
        ("container-type", kind.to_owned()),
        ("sandbox-id", pod.id.to_owned()),
        ("sandbox-name", metadata.name),
        ("sandbox-namespace", metadata.namespace),
        ("sandbox-uid", metadata.uid),
    ];
    pairs.into_iter().map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value)).collect()
}

/// Those of a container.
pub(super) fn of_container(
    config: &ContainerConfig,
    pod: &PodContext<'_>,
    image: &ImageContext<'_>,
) -> HashMap<String, String> {
    let mut annotations = of_pod(pod, "container");
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    annotations.insert("io.kubernetes.cri.container-name".to_owned(), name);
    annotations.insert("io.kubernetes.cri.image-name".to_owned(), image.name.to_owned());
    annotations
}

/// Those of a pod.
pub(super) fn of_sandbox(pod: &PodContext<'_>) -> HashMap<String, String> {
    let mut annotations = of_pod(pod, "sandbox");
    let folder = pod.config.log_directory.clone();
    annotations.insert("io.kubernetes.cri.sandbox-log-directory".to_owned(), folder);
    annotations
}
