//! The network as a whole: the plugins of its configuration, in order on the way in and in the reverse order out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ipnet::IpNet;
use serde_json::Value;

use crate::bridge::{Port, Ready};
use crate::conflist::{self, Bridge, ConfigError, Conflist, Plugin};
use crate::external::Invocation;
use crate::ipam::Store;
use crate::netlink::Netlink;
use crate::record::{Record, Records};
use crate::{Attachment, Context, Error, Options, PodAttach, Result, Status, netns};

/// The interface in a pod.
const INTERFACE: &str = "eth0";

/// Where a pod's network namespace is pinned for external plugins, as agents expect it.
const PINS: &str = "/run/netns";

/// The network of one node. Clones share it.
#[derive(Clone, Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    host: Netlink,
    records: Records,
    ready: Ready,
    config: Mutex<Loaded>,
    attachments: Mutex<HashMap<String, Attachment>>,
}

/// The configuration, and by what it is told whether the file has changed.
#[derive(Debug)]
struct Loaded {
    seen: Option<(PathBuf, SystemTime, u64)>,
    config: std::result::Result<Arc<Conflist>, ConfigError>,
    /// From UpdateRuntimeConfig: in the place of the built-in network's subnets.
    pod_cidr: Vec<IpNet>,
}

impl Network {
    /// Opens the network. A configuration that is not valid shows in [`Network::status`]. Needs a tokio runtime.
    ///
    /// # Errors
    /// The state folder cannot be made, or there is no netlink.
    pub fn open(options: Options) -> Result<Self> {
        let records = Records::open(&options.state_dir)?;
        let pod_cidr = fs::read_to_string(options.state_dir.join("pod-cidr")).unwrap_or_default();
        let pod_cidr = parse_cidrs(&pod_cidr).unwrap_or_default();
        let attachments = records.pods().into_iter().filter_map(|pod| {
            let attachment = records.read(&pod)?.attachment()?;
            Some((pod, attachment))
        });
        let attachments = Mutex::new(attachments.collect());
        let config =
            Loaded { seen: None, config: Ok(Arc::new(Conflist::builtin(&options.builtin))), pod_cidr };
        let shared = Shared {
            host: Netlink::open()?,
            records,
            ready: Ready::default(),
            config: Mutex::new(config),
            attachments,
            options,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The configuration as it is on disk now.
    fn config(&self) -> std::result::Result<Arc<Conflist>, ConfigError> {
        let options = &self.shared.options;
        let mut loaded = lock(&self.shared.config);
        let file = conflist::first_file(&options.conf_dir)
            .map_err(|error| ConfigError { file: options.conf_dir.clone(), why: error.to_string() })?;
        let Some(file) = file else {
            let mut builtin = options.builtin.clone();
            if !loaded.pod_cidr.is_empty() {
                builtin.subnets.clone_from(&loaded.pod_cidr);
            }
            loaded.seen = None;
            loaded.config = Ok(Arc::new(Conflist::builtin(&builtin)));
            return loaded.config.clone();
        };
        let metadata = fs::metadata(&file).ok();
        let seen = metadata.and_then(|m| Some((file.clone(), m.modified().ok()?, m.len())));
        if seen.is_none() || seen != loaded.seen || loaded.config.is_err() {
            loaded.config = conflist::load(&file, &options.bin_dirs).map(Arc::new);
            loaded.seen = seen;
        }
        loaded.config.clone()
    }

    /// Whether pods can be attached, and why not.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.config() {
            Ok(config) => Status { ready: true, network: config.name.clone(), ..Status::default() },
            Err(error) => Status {
                ready: false,
                reason: "NetworkPluginNotReady".to_owned(),
                message: error.to_string(),
                network: String::new(),
            },
        }
    }

    /// The attachment of a pod, from memory.
    #[must_use]
    pub fn attachment(&self, pod: &str) -> Option<Attachment> {
        lock(&self.shared.attachments).get(pod).cloned()
    }

    /// Attaches a pod.
    ///
    /// # Errors
    /// The network is not ready, or a plugin failed; all that was made is taken back.
    pub async fn add(&self, pod: PodAttach<'_>) -> Result<Attachment> {
        let config = self.config().map_err(|error| Error::NotReady(error.to_string()))?;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.id, pod.uid
        );
        let external = config.plugins.iter().any(|plugin| matches!(plugin, Plugin::External(_)));
        let pinned = external.then(|| PathBuf::from(PINS).join(format!("berth-{}", pod.id)));
        let mut record = Record {
            interface: INTERFACE.to_owned(),
            args,
            result: None,
            config: config.text.clone(),
            pinned,
        };
        self.shared.records.write(pod.id, &record)?;
        match self.add_all(&config, &pod, &record).await {
            Ok(result) => {
                record.result = Some(result);
                self.shared.records.write(pod.id, &record)?;
                let attachment = record
                    .attachment()
                    .ok_or_else(|| Error::Invalid("the network gave no result".to_owned()))?;
                lock(&self.shared.attachments).insert(pod.id.to_owned(), attachment.clone());
                Ok(attachment)
            }
            Err(error) => match self.del(pod.id, Some(pod.netns)).await {
                Ok(()) => Err(error),
                Err(undo) => Err(Error::Several(vec![error, undo])),
            },
        }
    }

    async fn add_all(&self, config: &Conflist, pod: &PodAttach<'_>, record: &Record) -> Result<Value> {
        if let Some(path) = &record.pinned {
            pin(pod.netns, path)?;
        }
        Self::loopback_up(pod.netns).await?;
        let invocation = self.invocation(config, pod.id, record, pod.port_mappings.clone());
        let mut result = Value::Null;
        for plugin in &config.plugins {
            match plugin {
                Plugin::Loopback => {}
                Plugin::Bridge(bridge) => {
                    let addresses = self.addresses(config, bridge);
                    result = self.port(config, bridge, &addresses, pod.id).add(pod.netns).await?;
                }
                Plugin::PortmapLater if pod.port_mappings.is_empty() => {}
                Plugin::PortmapLater => {
                    let ports: Vec<_> =
                        pod.port_mappings.iter().map(|port| port.host_port.to_string()).collect();
                    let why = "ports of the host need the portmap plugin, which is not built in yet";
                    return Err(Error::Unsupported(format!("host port {}: {why}", ports.join(", "))));
                }
                Plugin::External(external) => {
                    let previous = result.clone();
                    let answer = invocation.run("ADD", external, Some(&previous)).await?;
                    if !answer.is_null() {
                        result = answer;
                    }
                }
            }
        }
        Ok(result)
    }

    /// Brings the loopback of a namespace up.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub async fn loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
        let inside = netns::open(netns, "lo").await?;
        let link = inside.existing("lo").await?;
        inside.set_up(link.index, false).await
    }

    fn addresses(&self, config: &Conflist, bridge: &Bridge) -> Store {
        Store::new(&self.shared.options.state_dir.join("addresses"), &config.name, &bridge.ipam)
    }

    fn port<'a>(
        &'a self,
        config: &'a Conflist,
        bridge: &'a Bridge,
        addresses: &'a Store,
        pod: &'a str,
    ) -> Port<'a> {
        Port {
            network: &config.name,
            config: bridge,
            host: &self.shared.host,
            addresses,
            ready: &self.shared.ready,
            pod,
            interface: INTERFACE,
        }
    }

    fn invocation(
        &self,
        config: &Conflist,
        pod: &str,
        record: &Record,
        port_mappings: Vec<crate::PortMapping>,
    ) -> Invocation {
        let folders: Vec<_> =
            self.shared.options.bin_dirs.iter().map(|folder| folder.display().to_string()).collect();
        Invocation {
            network: config.name.clone(),
            version: config.version.clone(),
            pod: pod.to_owned(),
            netns: record.pinned.clone(),
            interface: record.interface.clone(),
            args: record.args.clone(),
            bin_path: folders.join(":"),
            port_mappings,
        }
    }

    /// Detaches a pod; one that is not attached is detached already. Goes on after an error and reports all.
    ///
    /// # Errors
    /// What could not be released; a retry goes on there.
    pub async fn del(&self, pod: &str, netns: Option<BorrowedFd<'_>>) -> Result<()> {
        let Some(record) = self.shared.records.read(pod) else {
            lock(&self.shared.attachments).remove(pod);
            return self.shared.records.remove(pod);
        };
        let mut errors = Vec::new();
        match self.config_of(&record) {
            Ok(config) => self.del_all(&config, pod, &record, netns.is_some(), &mut errors).await,
            Err(error) => errors.push(error),
        }
        if let Some(path) = &record.pinned {
            errors.extend(unpin(path).err());
        }
        if errors.is_empty() {
            lock(&self.shared.attachments).remove(pod);
            return self.shared.records.remove(pod);
        }
        Err(Error::Several(errors))
    }

    /// The configuration that a pod was attached by, whatever the file says by now.
    fn config_of(&self, record: &Record) -> Result<Conflist> {
        let options = &self.shared.options;
        match &record.config {
            Some(text) => conflist::parse(text, &options.bin_dirs)
                .map_err(|why| Error::Invalid(format!("configuration: {why}"))),
            None => Ok(Conflist::builtin(&options.builtin)),
        }
    }

    async fn del_all(
        &self,
        config: &Conflist,
        pod: &str,
        record: &Record,
        netns_lives: bool,
        errors: &mut Vec<Error>,
    ) {
        let invocation = self.invocation(config, pod, record, Vec::new());
        for plugin in config.plugins.iter().rev() {
            let deleted = match plugin {
                Plugin::Loopback | Plugin::PortmapLater => Ok(()),
                Plugin::Bridge(bridge) => {
                    let addresses = self.addresses(config, bridge);
                    self.port(config, bridge, &addresses, pod).del(netns_lives).await
                }
                Plugin::External(external) => {
                    invocation.run("DEL", external, record.result.as_ref()).await.map(drop)
                }
            };
            errors.extend(deleted.err());
        }
    }

    /// Frees what pods hold that are not among `live`; what was freed.
    ///
    /// # Errors
    /// What could not be freed.
    pub async fn gc(&self, live: &HashSet<String>) -> Result<Vec<String>> {
        let (mut freed, mut errors) = (Vec::new(), Vec::new());
        for pod in self.shared.records.pods().into_iter().filter(|pod| !live.contains(pod)) {
            match self.del(&pod, None).await {
                Ok(()) => freed.push(format!("pod {pod}")),
                Err(error) => errors.push(error),
            }
        }
        let config = self.config();
        for plugin in config.iter().flat_map(|config| &config.plugins) {
            if let (Plugin::Bridge(bridge), Ok(config)) = (plugin, &config) {
                let is_ours = |owner: &str| owner.len() == 64 && !live.contains(owner);
                match self.addresses(config, bridge).release_where(is_ours) {
                    Ok(addresses) => freed.extend(addresses.into_iter().map(|ip| format!("address {ip}"))),
                    Err(error) => errors.push(error),
                }
            }
        }
        if errors.is_empty() { Ok(freed) } else { Err(Error::Several(errors)) }
    }

    /// The addresses of pods as the kubelet says (UpdateRuntimeConfig): IPv4, IPv6 or both with a comma between. Used
    /// where no configuration file says otherwise.
    ///
    /// # Errors
    /// The text holds no subnets, or cannot be kept.
    pub fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let subnets = parse_cidrs(cidr)?;
        let file = self.shared.options.state_dir.join("pod-cidr");
        fs::write(&file, cidr).doing(format!("write {}", file.display()))?;
        lock(&self.shared.config).pod_cidr = subnets;
        Ok(())
    }

    /// Takes away what the network has for all pods, when it has none: bridge and rules. For a daemon that ends for
    /// good.
    ///
    /// # Errors
    /// Something stays.
    pub async fn teardown(&self) -> Result<()> {
        if !self.shared.records.pods().is_empty() {
            return Ok(());
        }
        let config = self.config()?;
        let mut errors = Vec::new();
        for plugin in &config.plugins {
            if let Plugin::Bridge(bridge) = plugin {
                let addresses = self.addresses(&config, bridge);
                errors.extend(self.port(&config, bridge, &addresses, "").teardown().await.err());
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Several(errors)) }
    }
}

fn parse_cidrs(text: &str) -> Result<Vec<IpNet>> {
    let parse = |part: &str| {
        let subnet = part.trim().parse::<IpNet>();
        subnet.map_err(|_| Error::Invalid(format!("{part:?} is no subnet"))).and_then(|subnet| {
            match subnet.prefix_len() + 2 <= subnet.max_prefix_len() {
                true => Ok(subnet.trunc()),
                false => Err(Error::Invalid(format!("{subnet} has no room for pods"))),
            }
        })
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(parse).collect()
}

/// Gives a network namespace a path: the one mount that is made in the host's mount namespace, since external plugins
/// know namespaces by paths alone (DESIGN rule 2).
fn pin(netns: BorrowedFd<'_>, path: &std::path::Path) -> Result<()> {
    fs::create_dir_all(PINS).doing(format!("make {PINS}"))?;
    fs::write(path, "").doing(format!("make {}", path.display()))?;
    let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
    rustix::mount::mount_bind(source.as_str(), path).doing(format!("pin {}", path.display()))
}

fn unpin(path: &std::path::Path) -> Result<()> {
    match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
        // Not a mount, or gone with the last boot.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        unmounted => unmounted.doing(format!("unpin {}", path.display()))?,
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        removed => removed.doing(format!("remove {}", path.display())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
