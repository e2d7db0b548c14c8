//! Pod networking. The CNI reference plugins' functions are built in, over netlink in one process. Other plugins run as
//! external programs (CNI specification).
//!
//! From top to bottom; no module uses one of a line above its own:
//!
//! * [`program`]: the built-in plugins as programs for other runtimes; [`port_forward`]: connections to a pod's
//!   loopback
//! * [`gc`]: garbage collection; [`inventory`]: the objects of pods on the host; [`restore`]: reinstalls lost rules;
//!   [`status`]: whether pods can be attached
//! * [`describe`]: how packets reach a pod
//! * [`network`]: attach, detach and check pods; [`health`]: the last health check
//! * [`config`]: the active configuration; [`template`]; [`record`], [`pin`]: the persistent state of an attachment
//! * [`conflist`]: configuration files, checked as a whole
//! * [`plugins`]: the built-in plugins, a file each
//! * [`ipam`]: address management; [`external`]: plugin programs
//! * [`call`]: the parameters of a plugin call; [`host`]: the host's state that calls share
//! * [`bridges`]: the bridges of pods; [`addresses`]: allocated addresses; [`dhcp`]: leases of DHCP servers;
//!   [`nftables`]: rules; [`pod_link`]: a pod's interface
//! * [`netlink`]: links, addresses and routes; [`netns`]: network namespaces; [`sysctls`], [`forwarding`]
//! * [`result`]: the result of a plugin; [`runtime_config`]: what a runtime passes to plugins
//! * [`ongoing`]: the running plugin programs; [`probe`]: what the kernel supports, for `berth check`
//! * [`version`], [`names`], [`mac`], [`keys`], [`files`], [`watch`]: values, formats and files
//! * [`devices`]: devices of the host that a container requests in addition to the pod network
//! * [`trace`]: spans for traces

#![forbid(unsafe_code)]

mod addresses;
mod bridges;
mod call;
mod config;
mod conflist;
mod describe;
mod devices;
mod dhcp;
mod external;
mod files;
mod forwarding;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gc;
mod health;
mod host;
pub mod inventory;
mod ipam;
mod keys;
mod mac;
mod names;
mod netlink;
mod netns;
mod network;
mod nftables;
mod ongoing;
mod pin;
mod plugins;
mod pod_link;
pub mod port_forward;
pub mod probe;
pub mod program;
mod record;
mod restore;
mod result;
mod runtime_config;
mod status;
pub mod sysctls;
mod template;
mod trace;
mod version;
mod watch;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use conflist::{ConfigError, mistakes};
pub use describe::HostLink;
pub use ipam::BUILT_IN_IPAM;
pub use network::Network;
pub use ongoing::PluginCall;
pub use plugins::BUILT_IN;
pub use result::CniResult;
pub use runtime_config::{Bandwidth, DnsConfig, PortMappingEntry, RuntimeConfig};

/// Folders, limits, and the network of a node without a configuration file.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of configuration files (`/etc/cni/net.d`). The first by name is active.
    pub conf_dir: PathBuf,
    /// A template of a configuration file, rendered when the kubelet sets the pod subnets.
    pub template: Option<PathBuf>,
    /// Folders of plugin programs (`/opt/cni/bin`).
    pub bin_dirs: Vec<PathBuf>,
    /// Types of built-in plugins that run as programs nevertheless.
    pub external: Vec<String>,
    /// The folder of this crate's state: attachments.
    pub state_dir: PathBuf,
    /// The folder of allocated addresses (`/var/lib/cni/networks`, shared with the reference plugin host-local).
    pub data_dir: PathBuf,
    /// The time limit of a plugin program.
    pub patience: Duration,
    /// The network of a node without a configuration file.
    pub builtin: Builtin,
    /// Receives the duration of every call of a plugin.
    pub observer: Option<std::sync::Arc<dyn PluginObserver>>,
}

/// A command of the CNI specification that attaches or detaches a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginCommand {
    /// Attaches the pod to the plugin's network (`ADD`).
    Add,
    /// Detaches the pod and frees its resources (`DEL`).
    Del,
}

impl PluginCommand {
    /// Returns the name in the specification.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
        }
    }
}

/// Receives the calls of plugins, for metrics.
pub trait PluginObserver: std::fmt::Debug + Send + Sync {
    /// A call of a plugin of type `plugin` has ended.
    fn called(&self, plugin: &str, command: PluginCommand, time: Duration, succeeded: bool);
}

/// The network that a node has without a configuration file: a bridge that masquerades.
#[derive(Clone, Debug)]
pub struct Builtin {
    /// The bridge's name.
    pub bridge: String,
    /// The subnets of the pods. Pods get an address of each.
    pub subnets: Vec<IpNet>,
    /// The MTU of the pods' interfaces. Default: that of the bridge.
    pub mtu: Option<u32>,
}

/// The network's status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether pods can be attached.
    pub ready: bool,
    /// The reason in one word if the network is not ready: `NetworkPluginNotReady`.
    pub reason: String,
    /// The reason in words: file, line, key.
    pub message: String,
    /// The network's name.
    pub network: String,
}

/// Returns which foreign firewall rule on this host drops packets of the built-in network to other hosts, if any.
/// Blocks the calling thread.
///
/// # Errors
/// The host's rules cannot be read.
pub fn obstacle(builtin: &Builtin) -> std::io::Result<Option<String>> {
    let packets =
        builtin.subnets.iter().map(|from| nftables::Packet { by: builtin.bridge.clone(), from: *from });
    nftables::first_obstacle(&packets.collect::<Vec<_>>())
}

/// A pod to attach.
#[derive(Debug)]
pub struct PodAttach<'a> {
    /// The pod's id, 64 hex digits.
    pub id: &'a str,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// The path of the network namespace, for results.
    pub netns_path: &'a str,
    /// The pod's name.
    pub name: &'a str,
    /// The pod's Kubernetes namespace.
    pub namespace: &'a str,
    /// The pod's uid.
    pub uid: &'a str,
    /// The configuration for plugins with the capability: host ports, traffic limits.
    pub runtime: RuntimeConfig,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections, as in RFC 9293.
    Tcp,
    /// Datagrams, as in RFC 768.
    Udp,
    /// Associations, as in RFC 9260.
    Sctp,
}

impl Protocol {
    /// The name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// Parses a [`Protocol::name`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.name() == name)
    }

    /// Returns the number in IP headers (`IPPROTO_*`).
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// An attached pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The pod's addresses, in the order of the configuration.
    pub ips: Vec<IpAddr>,
    /// The pod's interface.
    pub interface: String,
    /// The CNI result.
    pub result: CniResult,
}

/// An error of the network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network is not ready.
    #[error("the network is not ready: {0}")]
    NotReady(String),
    /// A netlink request failed.
    #[error("failed to {action}: {source}")]
    Netlink {
        /// The operation and its object, in the infinitive: "remove link x".
        action: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file or system call failed.
    #[error("failed to {action}: {source}")]
    Io {
        /// The operation and its object, in the infinitive: "read x".
        action: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// All addresses are allocated.
    #[error("no free address in {0}")]
    NoAddress(String),
    /// An external plugin failed. Its message is complete.
    #[error("plugin {plugin}: {message}")]
    Plugin {
        /// The plugin's type.
        plugin: String,
        /// The plugin's message.
        message: String,
    },
    /// The configuration does not support the request.
    #[error("{0}")]
    Unsupported(String),
    /// An invalid value.
    #[error("{0}")]
    Invalid(String),
    /// Several errors.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

impl Error {
    /// Returns the I/O error of a file operation that is the cause. For several errors, returns the first cause if all
    /// have one.
    #[must_use]
    pub fn cause_in_files(&self) -> Option<&std::io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Several(errors) => {
                let mut causes = errors.iter().map(Self::cause_in_files);
                let first = causes.next()??;
                causes.all(|cause| cause.is_some()).then_some(first)
            }
            _ => None,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Adds the failed operation to an error.
pub(crate) trait Context<T> {
    fn doing(self, action: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io { action: action.into(), source })
    }
}

impl<T> Context<T> for rustix::io::Result<T> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|errno| Error::Io { action: action.into(), source: errno.into() })
    }
}
