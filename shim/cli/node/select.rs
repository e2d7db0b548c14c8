//! Finds a pod or a container by its id, a unique prefix of the id, or its name: `POD`, `NAMESPACE/POD`,
//! `NAMESPACE/POD/CONTAINER`, `POD/CONTAINER` or `CONTAINER`.
//!
//! A name selects the object that exists now: a pod that is being created, a ready pod or a running container, otherwise
//! the newest. A name that fits pods of several namespaces is an error.

use std::collections::BTreeSet;

use berth_proto::admin::OperationInFlight;
use berth_proto::v1::{Container, ContainerState, PodSandbox, PodSandboxState};

use crate::cli::format::short;

/// The objects that a name can select.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Objects<'a> {
    pub(in crate::cli) pods: &'a [PodSandbox],
    pub(in crate::cli) containers: &'a [Container],
    pub(in crate::cli) operations: &'a [OperationInFlight],
}

/// A selected object.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) enum Selected<'a> {
    Pod(&'a PodSandbox),
    Container(&'a Container),
    /// A pod that is being created.
    Creating(&'a OperationInFlight),
}

/// Returns namespace and name of a pod.
pub(in crate::cli) fn pod_name(pod: &PodSandbox) -> (&str, &str) {
    pod.metadata.as_ref().map_or(("", ""), |metadata| (&metadata.namespace, &metadata.name))
}

/// Returns the name of a container.
pub(in crate::cli) fn container_name(container: &Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

impl<'a> Objects<'a> {
    /// Returns the pod of a container.
    pub(in crate::cli) fn pod_of(&self, container: &Container) -> Option<&'a PodSandbox> {
        self.pods.iter().find(|pod| pod.id == container.pod_sandbox_id)
    }

    /// Returns the attempts of a container, the newest first.
    pub(in crate::cli) fn attempts(&self, container: &Container) -> Vec<&'a Container> {
        let mut attempts: Vec<_> = self
            .containers
            .iter()
            .filter(|other| other.pod_sandbox_id == container.pod_sandbox_id)
            .filter(|other| container_name(other) == container_name(container))
            .collect();
        attempts.sort_by_key(|other| std::cmp::Reverse((attempt(other), other.created_at)));
        attempts
    }

    /// Finds an object.
    ///
    /// # Errors
    /// Nothing or more than one object has this name or prefix.
    pub(in crate::cli) fn find(&self, text: &str) -> Result<Selected<'a>, String> {
        if let Some(found) = self.with_id(|id| id == text)?.or(self.named(text)?) {
            return Ok(found);
        }
        let is_prefix = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        let found = if is_prefix { self.with_id(|id| id.starts_with(text))? } else { None };
        found.ok_or_else(|| format!("pod or container {text} not found"))
    }

    fn with_id(&self, fits: impl Fn(&str) -> bool) -> Result<Option<Selected<'a>>, String> {
        let pods = self.pods.iter().filter(|pod| fits(&pod.id)).map(Selected::Pod);
        let containers = self.containers.iter().filter(|c| fits(&c.id)).map(Selected::Container);
        let creating = self.creating().filter(|operation| fits(&operation.pod_id)).map(Selected::Creating);
        let mut found = pods.chain(containers).chain(creating);
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            (Some(_), Some(_)) => Err("invalid id: it is a prefix of several ids".to_owned()),
            (None, Some(_)) => Ok(None),
        }
    }

    fn creating(&self) -> impl Iterator<Item = &'a OperationInFlight> {
        self.operations.iter().filter(|operation| operation.rpc == "RunPodSandbox")
    }

    fn named(&self, text: &str) -> Result<Option<Selected<'a>>, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [name] => Ok(self.pod(None, name)?.or(self.container(None, None, name)?)),
            [one, two] => Ok(self.pod(Some(one), two)?.or(self.container(None, Some(one), two)?)),
            [namespace, pod, name] => self.container(Some(namespace), Some(pod), name),
            _ => Ok(None),
        }
    }

    fn pod(&self, namespace: Option<&str>, name: &str) -> Result<Option<Selected<'a>>, String> {
        let fits = |pod: (&str, &str)| pod.1 == name && namespace.is_none_or(|wanted| pod.0 == wanted);
        let found: Vec<&PodSandbox> = self.pods.iter().filter(|pod| fits(pod_name(pod))).collect();
        let creating: Vec<_> = self.creating().filter(|seen| fits((&seen.namespace, &seen.name))).collect();
        let namespaces = found.iter().map(|pod| pod_name(pod).0);
        let namespaces = namespaces.chain(creating.iter().map(|seen| seen.namespace.as_str()));
        one_of("pod", name, namespaces.collect())?;
        let best = found.into_iter().max_by_key(|pod| (is_ready(pod), pod.created_at));
        Ok(match (best, creating.first()) {
            (Some(pod), None) => Some(Selected::Pod(pod)),
            (Some(pod), Some(_)) if is_ready(pod) => Some(Selected::Pod(pod)),
            (_, Some(seen)) => Some(Selected::Creating(seen)),
            (None, None) => None,
        })
    }

    fn container(
        &self,
        namespace: Option<&str>,
        pod: Option<&str>,
        name: &str,
    ) -> Result<Option<Selected<'a>>, String> {
        let in_pod = |container: &Container| {
            let of = self.pod_of(container).map(pod_name).unwrap_or_default();
            namespace.is_none_or(|wanted| of.0 == wanted) && pod.is_none_or(|wanted| of.1 == wanted)
        };
        let found: Vec<&Container> =
            self.containers.iter().filter(|c| container_name(c) == name && in_pod(c)).collect();
        let pods = found.iter().map(|container| match self.pod_of(container).map(pod_name) {
            Some((namespace, pod)) => format!("{namespace}/{pod}"),
            None => short(&container.pod_sandbox_id),
        });
        let pods: Vec<String> = pods.collect();
        one_of("container", name, pods.iter().map(String::as_str).collect())?;
        let best = found.into_iter().max_by_key(|c| (is_running(c), attempt(c), c.created_at));
        Ok(best.map(Selected::Container))
    }
}

fn is_ready(pod: &PodSandbox) -> bool {
    pod.state() == PodSandboxState::SandboxReady
}

fn is_running(container: &Container) -> bool {
    container.state() == ContainerState::ContainerRunning
}

fn attempt(container: &Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

fn one_of(kind: &str, name: &str, places: BTreeSet<&str>) -> Result<(), String> {
    if places.len() <= 1 {
        return Ok(());
    }
    let all: Vec<String> = places.iter().map(|place| format!("{place}/{name}")).collect();
    Err(format!("invalid {kind} name {name}: it is one of {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use berth_proto::v1::{ContainerMetadata, PodSandboxMetadata};

    use super::*;

    fn pod(id: &str, namespace: &str, name: &str, ready: bool, created_at: i64) -> PodSandbox {
        let metadata = PodSandboxMetadata {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            ..PodSandboxMetadata::default()
        };
        let state = i32::from(!ready);
        PodSandbox { id: id.to_owned(), metadata: Some(metadata), state, created_at, ..PodSandbox::default() }
    }

    fn container(id: &str, pod: &str, name: &str, attempt: u32, state: ContainerState) -> Container {
        Container {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            state: state.into(),
            ..Container::default()
        }
    }

    fn found(objects: &Objects<'_>, text: &str) -> Result<String, String> {
        objects.find(text).map(|found| match found {
            Selected::Pod(pod) => format!("pod {}", pod.id),
            Selected::Container(container) => format!("container {}", container.id),
            Selected::Creating(operation) => format!("creating {}", operation.pod_id),
        })
    }

    #[test]
    fn objects_are_found_by_id_prefix_and_name() {
        let pods = [
            pod("aa01", "default", "web", false, 9),
            pod("aa02", "default", "web", true, 5),
            pod("bb03", "other", "db", true, 1),
            pod("bb04", "default", "db", true, 1),
        ];
        let exited = ContainerState::ContainerExited;
        let containers = [
            container("cc05", "aa02", "main", 0, exited),
            container("cc06", "aa02", "main", 1, ContainerState::ContainerRunning),
            container("cc07", "bb03", "log", 0, exited),
            container("cc08", "bb03", "log", 3, exited),
        ];
        let operations = [OperationInFlight {
            rpc: "RunPodSandbox".to_owned(),
            pod_id: "dd09".to_owned(),
            namespace: "default".to_owned(),
            name: "new".to_owned(),
            ..OperationInFlight::default()
        }];
        let objects = Objects { pods: &pods, containers: &containers, operations: &operations };
        for (text, expected) in [
            ("aa01", "pod aa01"),
            ("cc05", "container cc05"),
            ("bb03", "pod bb03"),
            ("web", "pod aa02"),
            ("default/web", "pod aa02"),
            ("other/db", "pod bb03"),
            ("main", "container cc06"),
            ("web/main", "container cc06"),
            ("other/db/log", "container cc08"),
            ("new", "creating dd09"),
            ("dd", "creating dd09"),
        ] {
            assert_eq!(found(&objects, text).as_deref(), Ok(expected), "{text}");
        }
        assert!(found(&objects, "db").unwrap_err().contains("default/db, other/db"));
        assert!(found(&objects, "aa").unwrap_err().contains("several ids"));
        for absent in ["", "nope", "default/nope", "a/b/c/d", "ff"] {
            assert!(found(&objects, absent).unwrap_err().contains("not found"), "{absent}");
        }
        let attempts: Vec<_> = objects.attempts(&containers[0]).iter().map(|c| c.id.as_str()).collect();
        assert_eq!(attempts, ["cc06", "cc05"]);
    }
}
