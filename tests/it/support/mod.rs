//! A private daemon for one test: it has its own folders, socket, bridge and network namespace, and an image with
//! this host's busybox. After the test, nothing of the daemon is left on the host.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::as_conversions,
    reason = "each test uses a part"
)]

mod calls;
mod configs;
pub mod disk;
pub mod image;
pub mod leftovers;
pub mod net;
pub mod node;
pub mod registry;
pub mod streams;
pub mod syntax;

pub use configs::*;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use berth::server::connect;
use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::image_service_client::ImageServiceClient;
use berth_proto::v1::runtime_service_client::RuntimeServiceClient;
use berth_proto::v1::*;
use rustix::process::{Pid, Signal, kill_process};
use tonic::transport::Channel;
use tonic::{Code, Status};

use disk::Disk;

/// The longest time that an action can take in a debug build, on a busy or an emulated machine. Only a failing test
/// waits this long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The image that every test has.
pub const IMAGE: &str = "localhost/busybox:test";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A daemon with its clients. Drop stops the daemon and kills what is left of its pods.
pub struct Berth {
    pub folder: tempfile::TempDir,
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    /// `unshare`, which has become the daemon.
    process: Child,
    /// A process that keeps the network namespace open over a restart of the daemon.
    holder: Child,
    /// The parent of all cgroups of this test.
    pub cgroup_parent: String,
    /// The disk with the daemon's root folder, if the test has requested one.
    pub disk: Option<Disk>,
    under: Vec<String>,
}

/// The options with which the daemon of a test is started.
#[derive(Default)]
pub struct Setup<'a> {
    /// Additional lines of configuration.
    pub more: &'a str,
    /// The command that starts the daemon, such as `prlimit`.
    pub under: &'a [&'a str],
    /// The size in MiB of a separate filesystem for the root folder and the addresses.
    pub disk: Option<u64>,
}

impl Berth {
    /// Starts a daemon and loads the test image.
    pub async fn start() -> Self {
        let mut berth = Self::start_with("").await;
        berth.load_image().await;
        berth
    }

    /// Starts a daemon with additional configuration, without an image.
    pub async fn start_with(more: &str) -> Self {
        Self::set_up(Setup { more, ..Setup::default() }).await
    }

    /// Starts a daemon with these options and loads the test image.
    pub async fn start_as(setup: Setup<'_>) -> Self {
        let mut berth = Self::set_up(setup).await;
        berth.load_image().await;
        berth
    }

    async fn set_up(setup: Setup<'_>) -> Self {
        let Setup { more, under, disk } = setup;
        let folder = tempfile::Builder::new().prefix(leftovers::FOLDER).tempdir().unwrap();
        let disk = disk.map(|mebibytes| Disk::make(folder.path(), mebibytes));
        let path = folder.path().display();
        let data = disk.as_ref().map_or(folder.path(), |disk| disk.folder()).display();
        // The credentials of this machine must not have an effect.
        let auth = if more.contains("auth_file") { "" } else { "auth_file = []\n" };
        // Each daemon has its own NRI socket, and does not start the plugins of this machine.
        let nri = match more.contains("[nri]") {
            true => String::new(),
            false => format!("[nri]\nsocket_path = \"{path}/run/nri.sock\"\nplugin_path = \"{path}/nri\"\n"),
        };
        let config = format!(
            "socket = \"{path}/run/berth.sock\"\nroot = \"{data}/root\"\nstate = \"{path}/run\"\n\
             cni_conf_dir = \"{path}/net.d\"\ncni_bin_dirs = [\"{path}/bin\"]\ncni_data_dir = \"{data}/addresses\"\ncerts_dir = \"{path}/certs.d\"\n\
             registries_conf = \"{path}/registries.conf\"\nsignature_policy = \"{path}/policy.json\"\n\
             log_level = \"debug\"\n{auth}{more}\n\
             {nri}[network]\nbridge = \"testbr0\"\nsubnets = [\"10.77.0.0/24\", \"fd77::/64\"]\n"
        );
        fs::write(folder.path().join("config.toml"), config).unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0_u8; 3];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut up).unwrap();
        let under: Vec<String> = under.iter().map(|&part| part.to_owned()).collect();
        let process = serve(folder.path(), holder.id(), &under);
        let channel = connected(folder.path()).await;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            images: ImageServiceClient::new(channel),
            process,
            holder,
            cgroup_parent: format!("/berth-test-{}-{number}", std::process::id()),
            disk,
            under,
            folder,
        }
    }

    /// Returns the pid of the daemon: the process that was started, or its descendant if a wrapper stays in between.
    pub fn pid(&self) -> Pid {
        let started = Pid::from_child(&self.process);
        let number = started.as_raw_nonzero().get();
        let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let berth = Path::new(env!("CARGO_BIN_EXE_berth")).canonicalize().ok();
        if self.under.is_empty() || program(number) == berth {
            return started;
        }
        // Keepers run another program.
        let mut descendants = vec![number];
        while let Some(pid) = descendants.pop() {
            if program(pid) == berth {
                return Pid::from_raw(pid).unwrap();
            }
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            descendants.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
        started
    }

    /// Starts the daemon through another command from the next start on.
    pub fn start_under(&mut self, command: &[&str]) {
        self.under = command.iter().map(|&part| part.to_owned()).collect();
    }

    /// Returns the verbose status of a container, with fields such as `pid` and `cgroup`.
    pub async fn info(&mut self, container: &str) -> serde_json::Value {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let info = self.runtime.container_status(request).await.unwrap().into_inner().info;
        serde_json::from_str(&info["info"]).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a path on the filesystem of the daemon's root folder.
    pub fn disk_path(&self, name: &str) -> PathBuf {
        self.disk.as_ref().map_or(self.folder.path(), |disk| disk.folder()).join(name)
    }

    /// Loads the test image as `berth load` does.
    pub async fn load_image(&mut self) {
        let archive = self.path("image.tar");
        image::write_archive(&archive, IMAGE);
        self.load_archive(&archive).await;
    }

    /// Loads an archive as `berth load` does.
    pub async fn load_archive(&mut self, archive: &Path) {
        let channel = connect(&self.path("run/berth.sock")).await.unwrap();
        let path = archive.display().to_string();
        AdminClient::new(channel).load_image(LoadImageRequest { path }).await.unwrap();
    }

    /// Kills the daemon with SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts the daemon again. A running daemon is killed first.
    pub async fn restart(&mut self) {
        self.start_again();
        self.connect_again().await;
    }

    /// Starts the daemon again and does not wait until it answers.
    pub fn start_again(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        self.process = serve(self.folder.path(), self.holder.id(), &self.under);
    }

    /// Waits until the daemon answers.
    pub async fn connect_again(&mut self) {
        let channel = connected(self.folder.path()).await;
        self.runtime = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
        self.images = ImageServiceClient::new(channel);
    }

    /// Returns whether the daemon has exited by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Returns the config of a pod with a log folder and the test's cgroup parent.
    pub fn pod_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.path(&format!("logs/{name}")).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// Returns a process in the network namespace of the daemon's host.
    pub fn host_process(&self) -> u32 {
        self.holder.id()
    }

    /// Runs a command in the network namespace of the daemon's host, as a process on the node would.
    pub fn on_host(&self, command: &[&str]) -> std::process::Output {
        let target = format!("--net=/proc/{}/ns/net", self.holder.id());
        Command::new("nsenter").arg(target).arg("--").args(command).output().unwrap()
    }

    /// Returns the files of pods and containers that are left on disk. A daemon that has just started removes partially
    /// created objects while it already answers.
    async fn files_left(&self) -> Vec<String> {
        let (folder, host) = (self.folder.path().to_owned(), self.host_process());
        tokio::task::spawn_blocking(move || leftovers::left_on_disk(&folder, host)).await.unwrap()
    }

    /// Removes every pod. Returns what is left on the host that did not exist before.
    pub async fn clean(&mut self) -> Vec<String> {
        let request = ListPodSandboxRequest { filter: None };
        let pods = self.runtime.list_pod_sandbox(request).await.unwrap().into_inner().items;
        for pod in pods {
            self.remove_pod(&pod.id).await;
        }
        let mut left = self.left_running().await;
        left.extend(self.files_left().await);
        left
    }

    /// Returns the processes, mounts, links, rules, cgroups and files of pods that are left on the host.
    pub async fn left_running(&self) -> Vec<String> {
        let daemon = u32::try_from(self.pid().as_raw_nonzero().get()).unwrap();
        let (folder, parent) = (self.folder.path().to_owned(), self.cgroup_parent.clone());
        let host = self.host_process();
        let left = move || leftovers::left_running(&folder, &parent, daemon, host);
        tokio::task::spawn_blocking(left).await.unwrap()
    }
}

impl Drop for Berth {
    fn drop(&mut self) {
        let _gone = kill_process(self.pid(), Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while self.process.try_wait().unwrap().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(self.process.kill());
        drop(self.process.wait());
        drop(self.holder.kill());
        drop(self.holder.wait());
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(60).collect();
            eprintln!("the end of the daemon's log:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
        // A test that failed, or that exits without removing its pods, leaves them here.
        leftovers::kill_all(self.folder.path(), &self.cgroup_parent);
        drop(self.disk.take());
    }
}

fn serve(folder: &Path, holder: u32, under: &[String]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("daemon.log")).unwrap();
    Command::new("nsenter")
        .arg(format!("--net=/proc/{holder}/ns/net"))
        .arg("--")
        .args(under)
        .arg(env!("CARGO_BIN_EXE_berth"))
        .args(["serve", "--config"])
        .arg(folder.join("config.toml"))
        // Only the tests of failpoints create the folder.
        .env("BERTH_FAILPOINTS", folder.join("failpoints"))
        // Tests do not use the systemd of this machine.
        .env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", folder.join("bus").display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn connected(folder: &Path) -> Channel {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(channel) = connect(&folder.join("run/berth.sock")).await {
            let mut client = RuntimeServiceClient::new(channel.clone());
            if client.version(VersionRequest::default()).await.is_ok() {
                return channel;
            }
        }
        if Instant::now() > until {
            panic!(
                "the daemon does not answer: {}",
                fs::read_to_string(folder.join("daemon.log")).unwrap_or_default()
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Returns whether this host has only cgroup v2.
pub fn is_v2() -> bool {
    fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok()
}

/// Returns the code of an error, or `Ok`.
pub fn code<T>(result: Result<T, Status>) -> Code {
    match result {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}
