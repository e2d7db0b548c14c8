//! Pods that a client runs, uses, stops and removes. Like the kubelet, it retries each call until it succeeds.

use std::sync::Arc;
use std::time::Duration;

use berth_proto::v1::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::Code;

use crate::storm::client::{Fail, StormClient};
use crate::storm::truth::{Container, Done, Kind, Ledger};
use crate::support::{shell, sleeper};

/// The maximum number of a client's pods that stay until the end.
const PODS_KEPT: usize = 3;

/// The maximum number of attempts of a call.
const TRIES: u32 = 40;

pub struct Kubelet {
    ledger: Arc<Ledger>,
    client: StormClient,
    number: u64,
    pods: u64,
    kept: usize,
}

/// A running pod.
struct RunningPod {
    name: String,
    id: String,
}

impl Kubelet {
    pub fn new(ledger: Arc<Ledger>, number: u64, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(1000) + number);
        Self { client: StormClient::new(ledger.clone(), rng), ledger, number, pods: 0, kept: 0 }
    }

    pub async fn live(mut self) {
        while !self.ledger.is_over() {
            let Some(pod) = self.run().await else { continue };
            for number in 0..self.client.rng.random_range(1..=3) {
                self.container(&pod, number).await;
            }
            if self.kept < PODS_KEPT && self.client.rng.random_ratio(1, 3) {
                self.kept += 1;
                continue;
            }
            self.end(&pod).await;
        }
    }

    async fn again(&mut self) {
        let pause = self.client.rng.random_range(10..200);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    async fn run(&mut self) -> Option<RunningPod> {
        self.pods += 1;
        let name = format!("pod-{}-{}", self.number, self.pods);
        let config = self.config(&name);
        self.ledger.pod(&name, |_| ());
        for _ in 0..TRIES {
            let request =
                RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            let run =
                self.client.call("RunPodSandbox", async |mut runtime| runtime.run_pod_sandbox(request).await);
            let id = match run.await {
                Ok(answer) => Some(answer.pod_sandbox_id),
                Err(error) if matches!(error.code(), None | Some(Code::AlreadyExists)) => {
                    self.find_pod(&name).await
                }
                Err(_) => None,
            };
            if let Some(id) = id {
                self.ledger.pod(&name, |pod| pod.id = Some(id.clone()));
                return Some(RunningPod { name, id });
            }
            if self.ledger.is_over() {
                break;
            }
            self.again().await;
        }
        // The final check finds out whether the pod was created.
        self.ledger.pod(&name, |pod| pod.removed = Done::Perhaps);
        None
    }

    fn config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "storm".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.ledger.logs.join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.ledger.cgroup_parent.clone(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    async fn find_pod(&mut self, name: &str) -> Option<String> {
        let request = ListPodSandboxRequest::default();
        let list =
            self.client.wait("ListPodSandbox", async |mut runtime| runtime.list_pod_sandbox(request).await);
        let pods = list.await.ok()?.items;
        let mut ids = pods.into_iter().filter(|pod| pod.metadata.as_ref().is_some_and(|m| m.name == name));
        let id = ids.next()?.id;
        if ids.next().is_some() {
            self.ledger.violation(format!("pod {name} is there twice"));
        }
        Some(id)
    }

    async fn find_container(&mut self, pod: &str, name: &str) -> Option<String> {
        let filter = ContainerFilter { pod_sandbox_id: pod.to_owned(), ..ContainerFilter::default() };
        let request = ListContainersRequest { filter: Some(filter) };
        let list =
            self.client.wait("ListContainers", async |mut runtime| runtime.list_containers(request).await);
        let containers = list.await.ok()?.containers;
        let mut ids = containers.into_iter().filter(|c| c.metadata.as_ref().is_some_and(|m| m.name == name));
        let id = ids.next()?.id;
        if ids.next().is_some() {
            self.ledger.violation(format!("container {name} of pod {pod} is there twice"));
        }
        Some(id)
    }

    async fn container(&mut self, pod: &RunningPod, number: u32) {
        let name = format!("c{number}");
        let kind = match self.client.rng.random_ratio(1, 2) {
            true => Kind::Sleeps,
            false => Kind::Ends(self.client.rng.random_range(1..100)),
        };
        let container = Container {
            name: name.clone(),
            id: None,
            kind,
            started: Done::No,
            stopped: Done::No,
            removed: Done::No,
        };
        self.ledger.pod(&pod.name, |pod| pod.containers.push(container));
        let Some(id) = self.create(pod, &name, kind).await else {
            return self.ledger.container(&pod.name, &name, |c| c.removed = Done::Perhaps);
        };
        self.ledger.container(&pod.name, &name, |c| c.id = Some(id.clone()));
        match self.client.rng.random_range(0..10) {
            0 => return,
            1 => return self.start_beside_remove(pod, &name, &id).await,
            _ => {}
        }
        if !self.start(pod, &name, &id).await {
            return;
        }
        for _ in 0..self.client.rng.random_range(0..3) {
            self.exec(&id).await;
        }
        match self.client.rng.random_range(0..6) {
            0 => self.stop(pod, &name, &id).await,
            1 => self.remove(pod, &name, &id).await,
            2 if kind != Kind::Sleeps => self.ends(pod, &name, &id).await,
            _ => {}
        }
    }

    async fn create(&mut self, pod: &RunningPod, name: &str, kind: Kind) -> Option<String> {
        let config = match kind {
            Kind::Sleeps => sleeper(name),
            Kind::Ends(code) => shell(name, &format!("echo out; sleep 0.2; exit {code}")),
        };
        for _ in 0..TRIES {
            let request = CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(config.clone()),
                sandbox_config: None,
            };
            let create = self
                .client
                .call("CreateContainer", async |mut runtime| runtime.create_container(request).await);
            match create.await {
                Ok(answer) => return Some(answer.container_id),
                Err(error) => match error.code() {
                    None | Some(Code::AlreadyExists) => {
                        let found = self.find_container(&pod.id, name).await;
                        if found.is_some() {
                            return found;
                        }
                    }
                    Some(Code::FailedPrecondition | Code::NotFound) => return None,
                    Some(_) => {}
                },
            }
            if self.ledger.is_over() {
                return None;
            }
            self.again().await;
        }
        None
    }

    /// Starts a container. Returns whether it was started.
    async fn start(&mut self, pod: &RunningPod, name: &str, id: &str) -> bool {
        for _ in 0..TRIES {
            self.ledger.container(&pod.name, name, |c| c.started = Done::Perhaps);
            let request = StartContainerRequest { container_id: id.to_owned() };
            let start = self
                .client
                .call("StartContainer", async |mut runtime| runtime.start_container(request).await);
            match start.await {
                Ok(_) => {
                    self.ledger.container(&pod.name, name, |c| c.started = Done::Yes);
                    return true;
                }
                // The container runs or has exited, or its pod is not ready.
                Err(Fail::Refused(status)) if status.code() == Code::FailedPrecondition => {
                    return !status.message().contains("pod sandbox");
                }
                Err(Fail::Refused(status)) if status.code() == Code::NotFound => {
                    self.gone(pod, name, &status);
                    return false;
                }
                Err(_) => {}
            }
            self.again().await;
        }
        false
    }

    /// Records a violation if the daemon does not have a container that it has reported before.
    fn gone(&self, pod: &RunningPod, name: &str, status: &tonic::Status) {
        let removed = self.ledger.pod(&pod.name, |pod| {
            pod.removed != Done::No || pod.containers.iter().any(|c| c.name == name && c.removed != Done::No)
        });
        if !removed {
            self.ledger.violation(format!("container {name} of {} ({}) is lost: {status}", pod.name, pod.id));
        }
    }

    async fn start_beside_remove(&mut self, pod: &RunningPod, name: &str, id: &str) {
        self.ledger.container(&pod.name, name, |c| (c.started, c.removed) = (Done::Perhaps, Done::Perhaps));
        let start = StartContainerRequest { container_id: id.to_owned() };
        let remove = RemoveContainerRequest { container_id: id.to_owned() };
        let (_, removed) = self
            .client
            .both(
                ("StartContainer", "RemoveContainer"),
                async |mut runtime| runtime.start_container(start).await,
                async |mut runtime| runtime.remove_container(remove).await,
            )
            .await;
        if removed.is_ok() {
            self.ledger.container(&pod.name, name, |c| c.removed = Done::Yes);
        }
    }

    async fn exec(&mut self, id: &str) {
        let token = format!("token-{}", self.client.rng.random::<u32>());
        let request = ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: vec!["echo".to_owned(), token.clone()],
            timeout: if self.client.rng.random_ratio(1, 2) { 0 } else { 10 },
        };
        let exec = self.client.call("ExecSync", async |mut runtime| runtime.exec_sync(request).await);
        if let Ok(answer) = exec.await
            && answer.exit_code == 0
            && answer.stdout != format!("{token}\n").into_bytes()
        {
            self.ledger
                .violation(format!("exec in {id} answered {:?}", String::from_utf8_lossy(&answer.stdout)));
        }
    }

    async fn stop(&mut self, pod: &RunningPod, name: &str, id: &str) {
        let mut last = None;
        for _ in 0..TRIES {
            self.ledger.container(&pod.name, name, |c| c.stopped = Done::Perhaps);
            let timeout = self.client.rng.random_range(0..3);
            let request = StopContainerRequest { container_id: id.to_owned(), timeout };
            let stop =
                self.client.call("StopContainer", async |mut runtime| runtime.stop_container(request).await);
            match stop.await {
                Ok(_) => return self.ledger.container(&pod.name, name, |c| c.stopped = Done::Yes),
                Err(error) => last = Some(error),
            }
            self.again().await;
        }
        self.ledger.violation(format!("container {name} ({id}) of {} cannot be stopped: {last:?}", pod.name));
    }

    async fn remove(&mut self, pod: &RunningPod, name: &str, id: &str) {
        let mut last = None;
        for _ in 0..TRIES {
            self.ledger.container(&pod.name, name, |c| c.removed = Done::Perhaps);
            let request = RemoveContainerRequest { container_id: id.to_owned() };
            let remove = self
                .client
                .call("RemoveContainer", async |mut runtime| runtime.remove_container(request).await);
            match remove.await {
                Ok(_) => return self.ledger.container(&pod.name, name, |c| c.removed = Done::Yes),
                Err(error) => last = Some(error),
            }
            self.again().await;
        }
        self.ledger.violation(format!("container {name} ({id}) of {} cannot be removed: {last:?}", pod.name));
    }

    /// Waits until a container that exits by itself has exited.
    async fn ends(&mut self, pod: &RunningPod, name: &str, id: &str) {
        for _ in 0..TRIES {
            let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
            let status = self
                .client
                .wait("ContainerStatus", async |mut runtime| runtime.container_status(request).await);
            match status.await {
                Ok(answer) => {
                    if answer.status.unwrap().state() == ContainerState::ContainerExited {
                        return;
                    }
                }
                Err(Fail::Refused(status)) if status.code() == Code::NotFound => {
                    return self.gone(pod, name, &status);
                }
                Err(_) => {}
            }
            self.again().await;
        }
    }

    /// Stops and removes a pod, sometimes while a container is created in it.
    async fn end(&mut self, pod: &RunningPod) {
        self.ledger.pod(&pod.name, |pod| pod.stopped = Done::Perhaps);
        if self.client.rng.random_ratio(1, 3) {
            let container = Container {
                name: "late".to_owned(),
                id: None,
                kind: Kind::Sleeps,
                started: Done::No,
                stopped: Done::No,
                removed: Done::Perhaps,
            };
            self.ledger.pod(&pod.name, |pod| pod.containers.push(container));
            let create = CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(sleeper("late")),
                sandbox_config: None,
            };
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let _either = self
                .client
                .both::<CreateContainerResponse, StopPodSandboxResponse, _, _>(
                    ("CreateContainer", "StopPodSandbox"),
                    async |mut runtime| runtime.create_container(create).await,
                    async |mut runtime| runtime.stop_pod_sandbox(stop).await,
                )
                .await;
        }
        for _ in 0..TRIES {
            let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let stop = self
                .client
                .call("StopPodSandbox", async |mut runtime| runtime.stop_pod_sandbox(request).await);
            if stop.await.is_ok() {
                self.ledger.pod(&pod.name, |pod| pod.stopped = Done::Yes);
                break;
            }
            self.again().await;
        }
        // Some pods stay for the final check.
        if self.client.rng.random_ratio(1, 8) {
            return;
        }
        let mut last = None;
        for _ in 0..TRIES {
            self.ledger.pod(&pod.name, |pod| pod.removed = Done::Perhaps);
            let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let remove = self
                .client
                .call("RemovePodSandbox", async |mut runtime| runtime.remove_pod_sandbox(request).await);
            match remove.await {
                Ok(_) => return self.ledger.pod(&pod.name, |pod| pod.removed = Done::Yes),
                Err(error) => last = Some(error),
            }
            self.again().await;
        }
        self.ledger.violation(format!("pod {} ({}) cannot be removed: {last:?}", pod.name, pod.id));
    }
}
