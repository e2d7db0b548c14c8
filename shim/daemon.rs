//! The state that every RPC works with: the store, the crates below (runtime, cni, image) and the operations in
//! flight.

use std::path::Path;
use std::sync::Arc;

use berth_cni::{Builtin, Network};
use berth_image::{ImageStore, Limits, Platform};
use berth_runtime::cgroup::Hierarchies;
use berth_runtime::client::Programs;
use berth_runtime::seccomp::Cache;

use oci_spec::runtime::PosixRlimitType;
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use crate::blocking::blocking;
use crate::config::Config;
use crate::error::CriError;
use crate::event::Events;
use crate::instruments::Instruments;
use crate::lsm::apparmor::AppArmor;
use crate::lsm::selinux::SeLinux;
use crate::operation::Operations;
use crate::session_url::SessionUrls;
use crate::store::{Folders, RecordWriter, Store};
use crate::systemd::Systemd;

/// One running daemon. All requests share it. It holds nothing that is not also on disk or in a keeper.
#[derive(Debug)]
pub struct Daemon {
    /// The configuration, as read at the start.
    pub config: Config,
    /// Pods and containers.
    pub store: Arc<Store>,
    /// The folders of pods and containers on disk.
    pub folders: Folders,
    /// Writes records in the background.
    pub records: RecordWriter,
    /// The images and the containers' writable layers.
    pub images: ImageStore,
    /// The pods' network.
    pub network: Network,
    /// Shared while a pod is attached to the network; exclusive while attachments without a pod are removed.
    pub attaching: tokio::sync::RwLock<()>,
    /// The writable layers that existed when the daemon started.
    pub layers_at_start: Vec<String>,
    /// The cgroups of this host.
    pub hierarchies: Arc<Hierarchies>,
    /// The programs of the keeper and the pause, in sealed memory files.
    pub programs: Programs,
    /// The connection to systemd, for the cgroup driver `systemd`.
    pub systemd: Systemd,
    /// The state of AppArmor on this host.
    pub apparmor: AppArmor,
    /// The state of SELinux on this host.
    pub selinux: SeLinux,
    /// Compiled seccomp profiles.
    pub filters: Cache,
    /// The streaming sessions: those that wait for their client, and the address that serves them.
    pub streams: SessionUrls,
    /// The daemon's own metrics.
    pub instruments: Arc<Instruments>,
    /// The operations in flight.
    pub operations: Operations,
    /// The subscribers of container events.
    pub events: Events,
    /// The id of this boot: a pod or container of another boot does not run.
    pub boot_id: String,
    /// The highest capability number of the kernel.
    pub last_capability: u8,
    /// The capabilities of the daemon as a mask: it can give only these to containers.
    pub capabilities: u64,
    /// The highest rlimits of containers: without CAP_SYS_RESOURCE they cannot exceed the daemon's hard limits.
    pub rlimit_ceilings: Vec<(PosixRlimitType, u64)>,
    /// The default of RLIMIT_SIGPENDING, computed as the kernel does: half of `threads-max`.
    pub pending_signals: u64,
    /// The daemon's oom_score_adj: without CAP_SYS_RESOURCE no process gets a lower one.
    pub oom_score_adj: i32,
}

impl Daemon {
    /// Whether systemd creates the cgroups, as scopes.
    #[must_use]
    pub fn uses_systemd(&self) -> bool {
        self.config.cgroup_driver() == berth_proto::v1::CgroupDriver::Systemd
    }

    /// Checks the runtime handler in `field` of a request; an empty name is the default.
    ///
    /// # Errors
    /// `InvalidArgument`: no runtime handler has that name.
    pub fn check_runtime_handler(&self, field: &str, handler: &str) -> Result<(), CriError> {
        if handler.is_empty() || self.config.runtime_handlers.iter().any(|known| known == handler) {
            return Ok(());
        }
        Err(CriError::invalid(field, format!("no runtime handler {handler:?} is configured")))
    }
}

/// A daemon, shared between requests.
pub type Shared = Arc<Daemon>;

/// Opens the crates below the daemon and looks at the host. [`crate::recover::run`] then takes over the pods of an earlier daemon.
///
/// # Errors
/// A folder cannot be created, or the host lacks a required feature.
pub async fn open(config: Config) -> Result<Shared, CriError> {
    let root = config.root.clone();
    blocking(move || crate::store::file::make_private_folder(&root)).await?;
    let images = ImageStore::open(image_options(&config)).await?;
    let instruments = Arc::new(Instruments::default());
    let observer: Arc<dyn berth_cni::PluginObserver> = instruments.clone();
    let network = Network::open(berth_cni::Options { observer: Some(observer), ..network_options(&config) })?;
    let fail = |what: &'static str| move |error: std::io::Error| CriError::internal(what, error);
    let own =
        rustix::thread::capabilities(None).map_err(|error| CriError::internal("read capabilities", error))?;
    let store = Arc::new(Store::default());
    let daemon = Arc::new(Daemon {
        events: Events::new(store.clone(), network.clone()),
        store,
        folders: Folders::new(&config.root, &config.state),
        records: RecordWriter::start().map_err(fail("start the record writer"))?,
        layers_at_start: images.writable_layers(),
        images,
        network,
        attaching: tokio::sync::RwLock::default(),
        hierarchies: Arc::new(Hierarchies::detect().map_err(fail("detect cgroup hierarchies"))?),
        programs: Programs::seal(crate::programs::KEEPER, crate::programs::PAUSE)?,
        systemd: Systemd::default(),
        apparmor: AppArmor::detect(Path::new("/")),
        selinux: SeLinux::detect(Path::new("/")),
        filters: Cache::default(),
        streams: SessionUrls::default(),
        operations: Operations::new(instruments.clone()),
        instruments,
        boot_id: boot_id().map_err(fail("read the boot id"))?,
        last_capability: read_number(Path::new("/proc/sys/kernel/cap_last_cap"))
            .map_err(fail("read the kernel's capabilities"))?,
        capabilities: own.permitted.bits(),
        rlimit_ceilings: rlimit_ceilings(own.permitted),
        pending_signals: read_number::<u64>(Path::new("/proc/sys/kernel/threads-max"))
            .map_err(fail("read the maximum number of threads"))?
            / 2,
        oom_score_adj: read_number(Path::new("/proc/self/oom_score_adj"))
            .map_err(fail("read the daemon's oom_score_adj"))?,
        config,
    });
    Ok(daemon)
}

const RLIMITS: [(PosixRlimitType, Resource); 16] = [
    (PosixRlimitType::RlimitAs, Resource::As),
    (PosixRlimitType::RlimitCore, Resource::Core),
    (PosixRlimitType::RlimitCpu, Resource::Cpu),
    (PosixRlimitType::RlimitData, Resource::Data),
    (PosixRlimitType::RlimitFsize, Resource::Fsize),
    (PosixRlimitType::RlimitLocks, Resource::Locks),
    (PosixRlimitType::RlimitMemlock, Resource::Memlock),
    (PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    (PosixRlimitType::RlimitNice, Resource::Nice),
    (PosixRlimitType::RlimitNofile, Resource::Nofile),
    (PosixRlimitType::RlimitNproc, Resource::Nproc),
    (PosixRlimitType::RlimitRss, Resource::Rss),
    (PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    (PosixRlimitType::RlimitRttime, Resource::Rttime),
    (PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    (PosixRlimitType::RlimitStack, Resource::Stack),
];

fn rlimit_ceilings(own: CapabilitySet) -> Vec<(PosixRlimitType, u64)> {
    if own.contains(CapabilitySet::SYS_RESOURCE) {
        return Vec::new();
    }
    let hard = |(kind, resource)| Some((kind, rustix::process::getrlimit(resource).maximum?));
    RLIMITS.into_iter().filter_map(hard).collect()
}

pub(crate) fn image_options(config: &Config) -> berth_image::Options {
    berth_image::Options {
        root: config.root.join("image"),
        certs_dirs: config.certs_dirs.clone(),
        platform: Platform::default(),
        parallel_downloads: config.parallel_pulls,
        limits: Limits {
            bytes: config.max_image_size.bytes(),
            entries: config.max_image_files,
            depth: config.max_image_depth,
            ratio: config.max_compression_ratio,
            ..Limits::default()
        },
        registries_conf: Some(config.registries_conf.clone()),
        auth_files: config.auth_files.clone(),
        policy: Some(config.signature_policy.clone()),
        // The names were checked when the configuration was read.
        pinned: config.pinned_images.iter().filter_map(|name| name.parse().ok()).collect(),
        release_memory: berth_runtime::sys::memory::trim,
        project_quotas: Some(std::sync::Arc::new(crate::project_quota::KernelQuotas)),
        ..berth_image::Options::default()
    }
}

/// Returns the network options of a config.
#[must_use]
pub fn network_options(config: &Config) -> berth_cni::Options {
    berth_cni::Options {
        conf_dir: config.cni_conf_dir.clone(),
        template: config.cni_conf_template.clone(),
        bin_dirs: config.cni_bin_dirs.clone(),
        external: config.cni_external_plugins.clone(),
        data_dir: config.cni_data_dir.clone(),
        patience: std::time::Duration::from_secs(config.cni_plugin_timeout),
        state_dir: config.root.join("network"),
        builtin: Builtin {
            bridge: config.network.bridge.clone(),
            subnets: config.network.subnets.clone(),
            mtu: config.network.mtu,
        },
        observer: None,
    }
}

/// Returns the id of this boot (proc(5), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// The file cannot be read.
pub fn boot_id() -> std::io::Result<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// Reads a number from a file of procfs, such as `/proc/sys/kernel/cap_last_cap`.
///
/// # Errors
/// The file cannot be read, or does not contain a number of this type.
pub fn read_number<T: std::str::FromStr>(file: &Path) -> std::io::Result<T> {
    std::fs::read_to_string(file)?
        .trim()
        .parse()
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::InvalidData, file.display().to_string()))
}
