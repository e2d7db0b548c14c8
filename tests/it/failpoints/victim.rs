//! The pod and the container of an operation, and its call.

use berth::operation::Step;
use berth_proto::v1::*;

use super::scene::{Call, Scene, begin};
use crate::support::sleeper;

/// The grace period in seconds of a container that ends at once.
const GRACE: i64 = 100;

/// A pod and a container.
pub(super) struct Victim {
    pub(super) name: String,
    pub(super) pod: Option<String>,
    pub(super) container: Option<String>,
}

impl Victim {
    pub(super) fn pod(&self) -> &str {
        self.pod.as_deref().unwrap()
    }

    pub(super) fn container(&self) -> &str {
        self.container.as_deref().unwrap()
    }

    /// Creates what an operation needs.
    pub(super) async fn of(scene: &mut Scene, operation: &str) -> Self {
        let mut victim = Self { name: scene.name(), pod: None, container: None };
        if operation == "RunPodSandbox" {
            return victim;
        }
        let config = scene.berth.pod_config(&victim.name);
        let pod = &*victim.pod.insert(scene.berth.run_pod(config).await);
        match operation {
            "CreateContainer" => {}
            "StartContainer" => {
                victim.container = Some(scene.berth.try_create(pod, sleeper("c")).await.unwrap());
            }
            _ => {
                let id = scene.berth.run(pod, sleeper("c")).await;
                scene.berth.wait_for_handler(&id, rustix::process::Signal::TERM).await;
                victim.container = Some(id);
            }
        }
        victim
    }

    /// Begins the call that reaches the step.
    pub(super) fn call(&self, scene: &Scene, step: Step) -> Call {
        match step.operation {
            "RunPodSandbox" => self.run_pod(scene, step.id == "Undo"),
            "CreateContainer" => self.create(scene, step.id == "Undo"),
            "StopContainer" => self.stop(scene, if step.id == "Kill" { 0 } else { GRACE }),
            "StartContainer" => self.start(scene),
            "RemoveContainer" => self.remove(scene),
            "StopPodSandbox" => self.stop_pod(scene),
            "RemovePodSandbox" => self.remove_pod(scene),
            other => panic!("no call of {other}"),
        }
    }

    /// With `fails`, the call fails after the pause has started.
    pub(super) fn run_pod(&self, scene: &Scene, fails: bool) -> Call {
        let (mut client, mut config) = (scene.berth.runtime.clone(), scene.berth.pod_config(&self.name));
        if fails {
            let sysctls = &mut config.linux.get_or_insert_default().sysctls;
            sysctls.insert("net.ipv4.no_such_value".to_owned(), "1".to_owned());
        }
        let request = RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        begin(async move { client.run_pod_sandbox(request).await })
    }

    /// With `fails`, the call fails in the first process.
    pub(super) fn create(&self, scene: &Scene, fails: bool) -> Call {
        let (mut client, mut config) = (scene.berth.runtime.clone(), sleeper("c"));
        if fails {
            let host_path = scene.berth.path("config.toml").display().to_string();
            let container_path = "/etc/passwd/inside".to_owned();
            config.mounts = vec![Mount { container_path, host_path, ..Mount::default() }];
        }
        let request = CreateContainerRequest {
            pod_sandbox_id: self.pod().to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        begin(async move { client.create_container(request).await })
    }

    pub(super) fn start(&self, scene: &Scene) -> Call {
        let mut client = scene.berth.runtime.clone();
        let request = StartContainerRequest { container_id: self.container().to_owned() };
        begin(async move { client.start_container(request).await })
    }

    pub(super) fn stop(&self, scene: &Scene, timeout: i64) -> Call {
        let mut client = scene.berth.runtime.clone();
        let request = StopContainerRequest { container_id: self.container().to_owned(), timeout };
        begin(async move { client.stop_container(request).await })
    }

    pub(super) fn remove(&self, scene: &Scene) -> Call {
        let mut client = scene.berth.runtime.clone();
        let request = RemoveContainerRequest { container_id: self.container().to_owned() };
        begin(async move { client.remove_container(request).await })
    }

    pub(super) fn stop_pod(&self, scene: &Scene) -> Call {
        let mut client = scene.berth.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: self.pod().to_owned() };
        begin(async move { client.stop_pod_sandbox(request).await })
    }

    fn remove_pod(&self, scene: &Scene) -> Call {
        let mut client = scene.berth.runtime.clone();
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.pod().to_owned() };
        begin(async move { client.remove_pod_sandbox(request).await })
    }
}
