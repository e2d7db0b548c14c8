//! The calls of the demo, in the same order as a kubelet's.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, ListPodSandboxRequest, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemoveContainerRequest,
    RemoveImageRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest,
};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::DemoError;
use super::daemon::PrivateDaemon;
use super::image::{PROGRAM, REFERENCE, archive};
use super::print::Printer;

/// The time limit of a call.
const PATIENCE: Duration = Duration::from_secs(60);

/// The time limit of the second container's fetch.
const FETCH: Duration = Duration::from_secs(20);

/// The interval of checks whether the fetch is done.
const INTERVAL: Duration = Duration::from_millis(2);

/// The number of attempts to remove pods after a failure.
const ROUNDS: u32 = 10;

/// The interval of these attempts.
const ROUND_INTERVAL: Duration = Duration::from_millis(200);

/// The port that the first container listens on.
const PORT: &str = "8080";

/// The answer of the first container.
const TEXT: &str = "hello from the other container";

/// The CRI client of the demo.
struct DemoClient<'a> {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    admin: AdminClient<Channel>,
    printer: &'a Printer,
}

/// A pod and its config.
struct DemoPod {
    id: String,
    config: PodSandboxConfig,
}

/// Runs the demo: an image, a pod, two containers, and the removal of all of them.
///
/// # Errors
/// A call failed, or an answer is not the expected one.
pub async fn play(daemon: &PrivateDaemon, printer: &Printer) -> Result<(), DemoError> {
    let client = DemoClient::new(daemon.connect().await?, printer);
    client.version().await?;
    client.load_image(&daemon.logs().with_file_name("image.tar")).await?;
    let pod = client.run_pod(daemon).await?;
    let server = client.run_container(&pod, "server", &["serve", PORT, TEXT]).await?;
    let url = format!("http://127.0.0.1:{PORT}/");
    let fetch = client.run_container(&pod, "client", &["fetch", &url]).await?;
    client.wait_for_fetch(&pod, &fetch).await?;
    client.show_logs(&pod)?;
    client.exec(&server).await?;
    client.remove_container(&server, "server").await?;
    client.remove_container(&fetch, "client").await?;
    client.remove_pod(&pod.id).await?;
    let request = RemoveImageRequest { image: image() };
    let mut images = client.images.clone();
    client.call("RemoveImage", REFERENCE, images.remove_image(request)).await?;
    Ok(())
}

/// Removes all pods after a failure. A pod that was being created at the failure may appear after the first list.
///
/// # Errors
/// A pod cannot be removed.
pub async fn remove_everything(daemon: &PrivateDaemon) -> Result<(), DemoError> {
    let mut runtime = RuntimeServiceClient::new(daemon.connect().await?);
    let mut empty = false;
    for _ in 0..ROUNDS {
        let list =
            timed("ListPodSandbox", runtime.list_pod_sandbox(ListPodSandboxRequest::default())).await?.0;
        if empty && list.items.is_empty() {
            break;
        }
        empty = list.items.is_empty();
        for pod in list.items {
            let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            timed("StopPodSandbox", runtime.stop_pod_sandbox(request)).await?;
            let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            timed("RemovePodSandbox", runtime.remove_pod_sandbox(request)).await?;
        }
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
    let mut images = ImageServiceClient::new(daemon.connect().await?);
    timed("RemoveImage", images.remove_image(RemoveImageRequest { image: image() })).await?;
    Ok(())
}

fn image() -> Option<ImageSpec> {
    Some(ImageSpec { image: REFERENCE.to_owned(), ..Default::default() })
}

/// Waits for an answer and measures the time.
async fn timed<T>(
    rpc: &'static str,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<(T, Duration), DemoError> {
    let start = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, call).await;
    let why = match answer {
        Ok(Ok(response)) => return Ok((response.into_inner(), start.elapsed())),
        Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
        Err(_) => format!("no answer in {} s", PATIENCE.as_secs()),
    };
    Err(DemoError::Call { rpc, why })
}

impl<'a> DemoClient<'a> {
    fn new(channel: Channel, printer: &'a Printer) -> Self {
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel.clone()),
            admin: AdminClient::new(channel),
            printer,
        }
    }

    /// Waits for an answer and prints the call.
    async fn call<T>(
        &self,
        rpc: &'static str,
        detail: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, DemoError> {
        let (answer, took) = timed(rpc, call).await?;
        self.printer.step(rpc, detail, took)?;
        Ok(answer)
    }

    async fn version(&self) -> Result<(), DemoError> {
        let mut runtime = self.runtime.clone();
        let (version, took) = timed("Version", runtime.version(VersionRequest::default())).await?;
        let detail = format!("{} {}", version.runtime_name, version.runtime_version);
        Ok(self.printer.step("Version", &detail, took)?)
    }

    async fn load_image(&self, file: &Path) -> Result<(), DemoError> {
        let bytes = archive().map_err(DemoError::file("pack", file))?;
        fs::write(file, &bytes).map_err(DemoError::file("write", file))?;
        let request = LoadImageRequest { path: file.display().to_string() };
        let mut admin = self.admin.clone();
        let loaded = self.call("LoadImage", REFERENCE, admin.load_image(request)).await?;
        if loaded.images.len() != 1 {
            return Err(DemoError::Unexpected(format!(
                "LoadImage loaded {} images, not one",
                loaded.images.len()
            )));
        }
        Ok(())
    }

    async fn run_pod(&self, daemon: &PrivateDaemon) -> Result<DemoPod, DemoError> {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "hello".to_owned(),
                uid: "berth-demo".to_owned(),
                namespace: "demo".to_owned(),
                attempt: 0,
            }),
            hostname: "hello".to_owned(),
            log_directory: daemon.logs().display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: daemon.cgroup_parent().to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut runtime = self.runtime.clone();
        let request = RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
        let id =
            self.call("RunPodSandbox", "pod hello", runtime.run_pod_sandbox(request)).await?.pod_sandbox_id;
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let (answer, took) = timed("PodSandboxStatus", runtime.pod_sandbox_status(request)).await?;
        let address =
            answer.status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
        if address.is_empty() {
            return Err(DemoError::Unexpected("the pod has no address".to_owned()));
        }
        self.printer.step("PodSandboxStatus", &format!("address {address}"), took)?;
        Ok(DemoPod { id, config })
    }

    async fn run_container(&self, pod: &DemoPod, name: &str, args: &[&str]) -> Result<String, DemoError> {
        let namespace_options =
            Some(NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() });
        let security_context =
            Some(LinuxContainerSecurityContext { namespace_options, ..Default::default() });
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: image(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            envs: vec![KeyValue { key: "CONTAINER".to_owned(), value: name.into() }],
            log_path: log_file(name),
            linux: Some(LinuxContainerConfig { security_context, ..Default::default() }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut runtime = self.runtime.clone();
        let detail = format!("{name}: {}", args.iter().take(2).copied().collect::<Vec<_>>().join(" "));
        let created = self.call("CreateContainer", &detail, runtime.create_container(request)).await?;
        let request = StartContainerRequest { container_id: created.container_id.clone() };
        self.call("StartContainer", name, runtime.start_container(request)).await?;
        Ok(created.container_id)
    }

    async fn status(&self, container: &str) -> Result<ContainerStatus, DemoError> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = timed("ContainerStatus", self.runtime.clone().container_status(request)).await?.0;
        answer
            .status
            .ok_or_else(|| DemoError::Unexpected("ContainerStatus answered without status".to_owned()))
    }

    /// Waits until the second container has fetched from the first and exited, and checks its output.
    async fn wait_for_fetch(&self, pod: &DemoPod, container: &str) -> Result<(), DemoError> {
        let start = Instant::now();
        let status = loop {
            let status = self.status(container).await?;
            if status.state() == ContainerState::ContainerExited {
                break status;
            }
            if start.elapsed() > FETCH {
                return Err(DemoError::Unexpected(format!(
                    "the client did not exit within {} s",
                    FETCH.as_secs()
                )));
            }
            tokio::time::sleep(INTERVAL).await;
        };
        let log = read_log(pod, "client")?;
        if status.exit_code != 0 || !log.contains(TEXT) {
            let code = status.exit_code;
            return Err(DemoError::Unexpected(format!("the client exited with code {code}; its log: {log}")));
        }
        let detail = format!("client: exit code 0 ({})", status.reason);
        Ok(self.printer.step("ContainerStatus", &detail, start.elapsed())?)
    }

    fn show_logs(&self, pod: &DemoPod) -> Result<(), DemoError> {
        for name in ["server", "client"] {
            self.printer.text(&format!("log of the {name}"), &read_log(pod, name)?)?;
        }
        Ok(())
    }

    async fn exec(&self, container: &str) -> Result<(), DemoError> {
        let cmd = vec![PROGRAM.to_owned(), "env".to_owned()];
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 10 };
        let answer = self.call("ExecSync", "server: env", self.runtime.clone().exec_sync(request)).await?;
        let output = String::from_utf8_lossy(&answer.stdout).into_owned();
        if answer.exit_code != 0 || !output.lines().any(|line| line == "CONTAINER=server") {
            let errors = String::from_utf8_lossy(&answer.stderr).into_owned();
            let code = answer.exit_code;
            return Err(DemoError::Unexpected(format!("env exited with code {code}: {output}{errors}")));
        }
        Ok(self.printer.text("environment of the server", &output)?)
    }

    async fn remove_container(&self, id: &str, name: &str) -> Result<(), DemoError> {
        let mut runtime = self.runtime.clone();
        let request = StopContainerRequest { container_id: id.to_owned(), timeout: 5 };
        self.call("StopContainer", name, runtime.stop_container(request)).await?;
        let status = self.status(id).await?;
        if status.exit_code != 0 {
            let code = status.exit_code;
            return Err(DemoError::Unexpected(format!(
                "{name} exited with code {code} after SIGTERM, not 0"
            )));
        }
        let request = RemoveContainerRequest { container_id: id.to_owned() };
        self.call("RemoveContainer", name, runtime.remove_container(request)).await?;
        Ok(())
    }

    async fn remove_pod(&self, id: &str) -> Result<(), DemoError> {
        let mut runtime = self.runtime.clone();
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("StopPodSandbox", "pod hello", runtime.stop_pod_sandbox(request)).await?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.call("RemovePodSandbox", "pod hello", runtime.remove_pod_sandbox(request)).await?;
        Ok(())
    }
}

fn log_file(container: &str) -> String {
    format!("{container}.log")
}

/// Returns the output of a container: its log without the timestamps.
fn read_log(pod: &DemoPod, container: &str) -> Result<String, DemoError> {
    let path = Path::new(&pod.config.log_directory).join(log_file(container));
    let text = fs::read_to_string(&path).map_err(DemoError::file("read", &path))?;
    Ok(without_times(&text))
}

/// Removes the timestamps of a CRI log: `TIME STREAM TAG TEXT`.
fn without_times(log: &str) -> String {
    log.lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_its_times_is_what_the_container_wrote() {
        let log = "2026-01-01T00:00:00.1Z stdout F a b c\n2026-01-01T00:00:00.2Z stderr F \nbroken\n";
        assert_eq!(without_times(log), "a b c\n\n");
    }
}
