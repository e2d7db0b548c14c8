//! The common parts of the attacks: a daemon, a canary folder of the host that nothing may touch, hostile images, and
//! attackers that run until the test stops them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use berth_proto::admin::LoadImageRequest;
use berth_proto::admin::admin_client::AdminClient;
use berth_proto::v1::*;
use serde_json::Value;
use tonic::Status;

use crate::support::{Berth, PATIENCE, container, image, text_of, with_security};

/// The content of a file of the host that no container may read.
pub const SECRET: &str = "secret-of-the-host";

/// The folder of the attack programs in an attacker's container.
pub const PROGRAMS: &str = "/attacks";

/// The file that stops an attacker when it exists.
pub const STOP: &str = "/tmp/stop";

/// Returns the folder with the attack programs.
pub fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("BERTH_ATTACK_PROGRAMS") {
            return folder.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/attack-programs.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "the attackers' programs are not built");
        String::from_utf8(output.stdout).unwrap().trim().into()
    })
}

/// Returns the number of repetitions of an attack: `full` with `BERTH_ATTACKS_FULL`, else `usual`.
pub fn times(full: usize, usual: usize) -> usize {
    if std::env::var_os("BERTH_ATTACKS_FULL").is_some() { full } else { usual }
}

/// A daemon under attack.
pub struct Lab {
    berth: Berth,
    before: Tree,
}

impl Deref for Lab {
    type Target = Berth;

    fn deref(&self) -> &Berth {
        &self.berth
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Berth {
        &mut self.berth
    }
}

impl Lab {
    /// Starts a daemon with the test image.
    pub async fn start() -> Self {
        let mut lab = Self::start_with("").await;
        lab.load_image().await;
        lab
    }

    /// Starts a daemon with additional configuration, without an image.
    pub async fn start_with(more: &str) -> Self {
        let berth = Berth::start_with(more).await;
        let canary = berth.path("canary");
        fs::create_dir_all(canary.join("folder")).unwrap();
        fs::write(canary.join("secret"), SECRET).unwrap();
        fs::write(canary.join("folder/file"), SECRET).unwrap();
        let before = tree(&canary);
        Self { berth, before }
    }

    /// Starts a daemon with the test image and a pod.
    pub async fn with_pod() -> (Self, String) {
        let mut lab = Self::start().await;
        let pod = lab.pod("pod").await;
        (lab, pod)
    }

    pub async fn pod(&mut self, name: &str) -> String {
        let config = self.pod_config(name);
        self.run_pod(config).await
    }

    /// Returns the path of the canary, a folder that represents the whole host.
    pub fn canary(&self) -> PathBuf {
        self.path("canary")
    }

    /// Returns the path of the canary as text.
    pub fn canary_text(&self) -> String {
        self.canary().display().to_string()
    }

    /// Checks that nothing in the canary was created, changed or removed.
    pub fn assert_untouched(&self) {
        let now = tree(&self.canary());
        let differ = |path: &&PathBuf| now.get(*path) != self.before.get(*path);
        let paths: BTreeSet<&PathBuf> = now.keys().chain(self.before.keys()).filter(differ).collect();
        assert!(paths.is_empty(), "the host was changed: {paths:?}");
    }

    /// Checks that the canary is untouched and that nothing is left.
    pub async fn finish(mut self) {
        self.assert_untouched();
        assert_eq!(self.berth.clean().await, Vec::<String>::new());
    }

    /// Creates a folder of the host for a volume.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Loads an image with busybox and an additional layer. `config` is the `config` field of the image
    /// configuration.
    pub async fn load(&mut self, tag: &str, layer: Layer, config: Value) -> String {
        self.try_load(tag, &[layer], config).await.unwrap()
    }

    /// Loads an image with busybox and additional layers, and returns the daemon's error if there is one.
    pub async fn try_load(&mut self, tag: &str, layers: &[Layer], config: Value) -> Result<String, Status> {
        let reference = format!("localhost/{tag}:1");
        let archive = self.path(&format!("{tag}.tar"));
        let all: Vec<Vec<u8>> =
            [image::layer()].into_iter().chain(layers.iter().map(|layer| layer.0.clone())).collect();
        image::write_archive_of(&archive, &reference, &all, &config);
        self.load_archive(&archive).await?;
        Ok(reference)
    }

    /// Loads an archive as `berth load` does.
    pub async fn load_archive(&self, archive: &Path) -> Result<(), Status> {
        let channel = berth::server::connect(&self.path("run/berth.sock")).await.unwrap();
        let path = archive.display().to_string();
        AdminClient::new(channel).load_image(LoadImageRequest { path }).await.map(drop)
    }

    /// Waits until a container has wait_for_log a text.
    pub async fn wait_for_log(&mut self, id: &str, text: &str) {
        let path = self.status(id).await.log_path;
        let until = Instant::now() + PATIENCE;
        loop {
            let log = text_of(&fs::read_to_string(&path).unwrap_or_default());
            if log.contains(text) {
                return;
            }
            assert!(Instant::now() < until, "{text:?} is not in {log:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Returns the log of a container.
    pub async fn log(&mut self, id: &str) -> String {
        text_of(&fs::read_to_string(self.status(id).await.log_path).unwrap_or_default())
    }

    /// Starts an attacker and waits until it is ready.
    pub async fn attacker(&mut self, pod: &str, config: ContainerConfig) -> String {
        let id = self.run(pod, armed(config)).await;
        self.wait_for_log(&id, "ready").await;
        id
    }

    /// Stops an attacker and returns its log.
    pub async fn stop_attacker(&mut self, id: &str) -> String {
        // The file is written through the root of the first process, because the attacker can attack an exec.
        let pid = self.info(id).await["pid"].as_i64().unwrap();
        fs::write(format!("/proc/{pid}/root{STOP}"), "").unwrap();
        self.wait_exited(id).await;
        self.log(id).await
    }

    /// Returns the keeper of a pod, in the host's PID namespace.
    pub fn keeper(&self, pod: &str) -> i32 {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|process| process.file_name().to_string_lossy().parse().ok());
        let is_keeper = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.starts_with("berth-keeper\0") && command.contains(pod)
        };
        pids.find(is_keeper).unwrap()
    }

    /// Returns the number of descriptors that the daemon or a keeper has open.
    pub fn descriptors(pid: i32) -> usize {
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }
}

/// The files below a folder: everything that stat(2) returns except the access times, and the contents.
pub type Tree = BTreeMap<PathBuf, (u32, u32, u32, u64, i64, Vec<u8>)>;

pub fn tree(folder: &Path) -> Tree {
    let mut found = Tree::new();
    collect(folder, &mut found);
    found
}

fn collect(path: &Path, found: &mut Tree) {
    let stat = fs::symlink_metadata(path).unwrap();
    let changed = stat.ctime() * 1_000_000_000 + stat.ctime_nsec();
    let text = if stat.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    found.insert(path.to_owned(), (stat.mode(), stat.uid(), stat.gid(), stat.nlink(), changed, text));
    if stat.is_dir() {
        for entry in fs::read_dir(path).unwrap().flatten() {
            collect(&entry.path(), found);
        }
    }
}

/// Waits until a condition is true.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A layer of an image. It can contain entries that tar would not write.
#[derive(Clone, Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    pub fn folder(self, name: &str) -> Self {
        self.entry(tar::EntryType::Directory, name, "", 0o755, b"")
    }

    pub fn file(self, name: &str, text: &str) -> Self {
        self.entry(tar::EntryType::Regular, name, "", 0o644, text.as_bytes())
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Symlink, name, target, 0o777, b"")
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(tar::EntryType::Link, name, target, 0o644, b"")
    }

    /// Adds an entry of any type with unchanged names.
    pub fn entry(mut self, kind: tar::EntryType, name: &str, target: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(data.len().try_into().unwrap());
        header.set_uid(0);
        header.set_gid(0);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Returns the archive.
    pub fn bytes(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Returns a container that runs one of the programs until it is stopped.
pub fn attack(name: &str, program: &str, more: &[&str]) -> ContainerConfig {
    let path = format!("{PROGRAMS}/{program}");
    container(name, &[&[path.as_str(), STOP], more].concat())
}

/// Mounts the attack programs into a container.
pub fn armed(config: ContainerConfig) -> ContainerConfig {
    with(config, Mount { readonly: true, ..volume(programs(), PROGRAMS) })
}

pub fn volume(host: &Path, inside: &str) -> Mount {
    Mount { host_path: host.display().to_string(), container_path: inside.to_owned(), ..Mount::default() }
}

pub fn with(mut config: ContainerConfig, mount: Mount) -> ContainerConfig {
    config.mounts.push(mount);
    config
}

/// Makes a container use another image.
pub fn of_image(mut config: ContainerConfig, reference: &str) -> ContainerConfig {
    config.image = Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() });
    config
}

pub fn capable(config: ContainerConfig, capabilities: &[&str]) -> ContainerConfig {
    let add_capabilities = capabilities.iter().map(|&capability| capability.to_owned()).collect();
    with_security(config, |security| {
        security.capabilities = Some(Capability { add_capabilities, ..Capability::default() });
    })
}

/// Masks and makes read-only the same paths as the kubelet does (k8s.io/kubernetes, `pkg/securitycontext`).
pub fn masked(config: ContainerConfig) -> ContainerConfig {
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    with_security(config, |security| {
        security.masked_paths = paths(&[
            "/proc/asound",
            "/proc/acpi",
            "/proc/interrupts",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
            "/sys/devices/virtual/powercap",
        ]);
        security.readonly_paths =
            paths(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    })
}

/// Makes a container share the PID namespace of the pod.
pub fn sharing_pids(config: ContainerConfig) -> ContainerConfig {
    with_security(config, |security| {
        security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    })
}

/// Makes a container join the PID namespace of another container.
pub fn among(config: ContainerConfig, target: &str) -> ContainerConfig {
    with_security(config, |security| {
        let options = security.namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        target.clone_into(&mut options.target_id);
    })
}
