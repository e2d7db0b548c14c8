//! The systemd cgroup driver, tested with a stand-in for systemd on a private bus. Runs as root.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Berth, code, sleeper};
use berth_proto::v1::*;
use tonic::Code;
use zbus::object_server::SignalEmitter;
use zbus::{OwnedObjectPath, OwnedVariant};

type Properties = HashMap<String, OwnedVariant>;

/// The requests that systemd has received.
#[derive(Debug, Default)]
struct SystemdRequests {
    started: Vec<(String, Properties)>,
    changed: Vec<(String, Properties)>,
}

/// A manager that completes each job as soon as it has begun.
struct Manager {
    requests: Arc<Mutex<SystemdRequests>>,
    result: &'static str,
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {}

    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedVariant)>,
        auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> OwnedObjectPath {
        assert!(mode == "replace" && auxiliary.is_empty());
        self.requests.lock().unwrap().started.push((name.clone(), properties.into_iter().collect()));
        let job = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap();
        Self::job_removed(&emitter, 1, job.clone(), &name, self.result).await.unwrap();
        job
    }

    fn set_unit_properties(&self, name: String, runtime: bool, properties: Vec<(String, OwnedVariant)>) {
        assert!(runtime);
        self.requests.lock().unwrap().changed.push((name, properties.into_iter().collect()));
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// The bus on which the daemon finds systemd.
struct Bus {
    process: Child,
    _manager: zbus::Connection,
    requests: Arc<Mutex<SystemdRequests>>,
}

impl Bus {
    async fn start(folder: &Path, result: &'static str) -> Self {
        let (socket, config) = (folder.join("bus"), folder.join("bus.conf"));
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><policy context=\"default\">\
             <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        // An earlier bus can have left its socket.
        drop(fs::remove_file(&socket));
        let process = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--nopidfile"])
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + crate::support::PATIENCE;
        // The socket exists before the bus listens.
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(std::time::Instant::now() < until, "dbus-daemon does not listen");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let requests = Arc::new(Mutex::new(SystemdRequests::default()));
        let address = format!("unix:path={}", socket.display());
        let manager = zbus::connection::Builder::address(address.as_str())
            .name("org.freedesktop.systemd1")
            .serve_at("/org/freedesktop/systemd1", Manager { requests: requests.clone(), result })
            .build()
            .await
            .unwrap();
        Self { process, _manager: manager, requests }
    }

    fn started(&self) -> Vec<(String, Properties)> {
        std::mem::take(&mut self.requests.lock().unwrap().started)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Returns the slice of this test, in the place of the kubelet's.
fn slice() -> String {
    format!("berthtest{}.slice", std::process::id())
}

fn in_slice(berth: &Berth, name: &str) -> PodSandboxConfig {
    let mut config = berth.pod_config(name);
    config.linux.as_mut().unwrap().cgroup_parent = slice();
    config
}

fn remove_slice() {
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        drop(fs::remove_dir(hierarchy.path().join(slice())));
    }
    drop(fs::remove_dir(Path::new("/sys/fs/cgroup").join(slice())));
}

fn text(properties: &Properties, name: &str) -> String {
    properties.get(name).map(|value| value.to_string()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_containers_are_scopes_in_the_requested_slice() {
    let mut berth = Berth::start_with("cgroup_driver = \"systemd\"").await;
    berth.load_image().await;
    let config = in_slice(&berth, "early");
    let error = berth.try_run_pod(config).await.unwrap_err();
    assert!(error.message().contains("D-Bus"), "a pod must fail without a bus: {error}");

    let bus = Bus::start(berth.folder.path(), "done").await;
    let config = in_slice(&berth, "scoped");
    let pod = berth.run_pod(config).await;
    let started = bus.started();
    let [(name, properties)] = started.as_slice() else { panic!("{started:?}") };
    assert_eq!(*name, format!("berth-{pod}.scope"));
    assert!(text(properties, "Slice").contains(&slice()), "{properties:?}");
    assert!(text(properties, "Delegate").contains("true") && properties.contains_key("PIDs"));

    // A node that shuts down stops containers in their time, before the pause and the daemon.
    assert!(text(properties, "DefaultDependencies").contains("true"));
    let mut config = sleeper("c");
    config.annotations.insert("io.kubernetes.pod.terminationGracePeriod".to_owned(), "33".to_owned());
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
    config.linux.as_mut().unwrap().resources = Some(resources);
    let id = berth.run(&pod, config).await;
    let started = bus.started();
    let [(name, properties)] = started.as_slice() else { panic!("{started:?}") };
    assert_eq!(*name, format!("berth-{id}.scope"));
    assert!(text(properties, "TimeoutStopUSec").contains("33000000"), "{properties:?}");
    assert!(text(properties, "After").contains(&format!("berth-{pod}.scope")), "{properties:?}");
    let limit =
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "MemoryMax" } else { "MemoryLimit" };
    assert!(text(properties, limit).contains("67108864"), "{properties:?}");

    // The process is in the cgroup of the scope, and the placeholder process has exited.
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = berth.runtime.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["runtimeSpec"]["linux"]["cgroupsPath"], format!("{}:berth:{id}", slice()));
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", info["pid"])).unwrap();
    let path = format!("/{}/berth-{id}.scope", slice());
    assert!(cgroup.lines().all(|line| line.ends_with(&path) || line.starts_with("0::")), "{cgroup}");
    let hierarchy = if crate::support::is_v2() { "" } else { "/freezer" };
    let processes = fs::read_to_string(format!("/sys/fs/cgroup{hierarchy}{path}/cgroup.procs")).unwrap();
    assert!(processes.contains(&info["pid"].to_string()), "{processes}");
    for process in processes.lines() {
        let command = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
        assert!(!command.contains("berth-placeholder"), "{process}: {command}");
    }

    let linux = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    berth.runtime.update_container_resources(request).await.unwrap();
    let changed = std::mem::take(&mut bus.requests.lock().unwrap().changed);
    assert!(text(&changed[0].1, limit).contains("33554432"), "{changed:?}");

    // The bus can be restarted.
    drop(bus);
    let bus = Bus::start(berth.folder.path(), "done").await;
    let config = in_slice(&berth, "second");
    let second = berth.run_pod(config).await;
    assert_eq!(bus.started()[0].0, format!("berth-{second}.scope"));

    // A restarted daemon finds its scopes.
    berth.kill();
    berth.restart().await;
    assert_eq!(berth.sh(&id, "echo there").await, "there");
    let left = berth.clean().await;
    remove_slice();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_systemd_job_is_reported_and_leaves_nothing() {
    let mut berth = Berth::start_with("cgroup_driver = \"systemd\"").await;
    let _bus = Bus::start(berth.folder.path(), "failed").await;
    let mut config = in_slice(&berth, "refused");
    let error = berth.try_run_pod(config.clone()).await.unwrap_err();
    assert!(error.message().contains("its job has ended as failed"), "{error}");
    config.linux.as_mut().unwrap().cgroup_parent = "/kubepods/pod1".to_owned();
    let error = berth.try_run_pod(config).await;
    assert_eq!(code(error), Code::InvalidArgument, "a path must be refused as a slice");
    assert!(berth.clean().await.is_empty());
}
