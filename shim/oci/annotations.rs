//! The annotations of containerd by which agents and hooks recognize containers. The client's annotations are data
//! without effect and are not included.

use std::collections::HashMap;

use berth_proto::v1::{ContainerConfig, PodSandboxConfig};

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

/// Returns the annotations of a container.
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

/// Returns the annotations of a pod.
pub(super) fn of_sandbox(pod: &PodContext<'_>) -> HashMap<String, String> {
    let mut annotations = of_pod(pod, "sandbox");
    let folder = pod.config.log_directory.clone();
    annotations.insert("io.kubernetes.cri.sandbox-log-directory".to_owned(), folder);
    annotations
}

/// Returns the classes of block I/O and of cache and memory bandwidth (resctrl) in annotations of the container or
/// its pod, as annotation and class. berth has no such classes: they are logged and have no effect, as in containerd
/// and CRI-O without configured classes. The names of the annotations are from the documentation of containerd and
/// CRI-O.
pub fn classes<'a>(
    config: &'a ContainerConfig,
    pod: &'a PodSandboxConfig,
) -> impl Iterator<Item = (String, &'a str)> {
    let name = config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    ["blockio", "rdt"].into_iter().filter_map(move |kind| {
        let own = format!("io.kubernetes.cri.{kind}-class");
        let of_pod = [format!("container.{name}"), "pod".to_owned()]
            .map(|target| format!("{kind}.resources.beta.kubernetes.io/{target}"));
        let of_pod = of_pod.into_iter().map(|key| (&pod.annotations, key));
        let mut places = std::iter::once((&config.annotations, own)).chain(of_pod);
        places.find_map(|(annotations, key)| annotations.get(&key).map(|class| (key, class.as_str())))
    })
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::ContainerMetadata;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_nearest_annotation_names_the_class() {
        let metadata = Some(ContainerMetadata { name: "app".to_owned(), attempt: 0 });
        let mut config = ContainerConfig { metadata, ..Default::default() };
        let mut pod = PodSandboxConfig::default();
        assert_eq!(classes(&config, &pod).count(), 0);

        pod.annotations = map(&[
            ("rdt.resources.beta.kubernetes.io/pod", "silver"),
            ("blockio.resources.beta.kubernetes.io/pod", "slow"),
            ("blockio.resources.beta.kubernetes.io/container.app", "fast"),
            ("blockio.resources.beta.kubernetes.io/container.other", "none"),
        ]);
        let named = |config: &ContainerConfig| -> Vec<String> {
            classes(config, &pod).map(|(_, class)| class.to_owned()).collect()
        };
        assert_eq!(named(&config), ["fast", "silver"]);
        config.annotations = map(&[("io.kubernetes.cri.rdt-class", "gold")]);
        assert_eq!(named(&config), ["fast", "gold"]);
    }
}
