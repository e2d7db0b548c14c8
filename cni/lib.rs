//! The network of pods: what the CNI reference plugins do in several processes, done here over netlink in one; what is
//! not known here is run as an external plugin by the CNI specification.
//!
//! * [`network`]: the whole: add, del, check, status; [`gc`]: what nobody holds any more; [`restore`]: rules that are gone
//! * [`config`]: the configuration in force; [`conflist`]: its files, checked before anything is done; [`watch`], [`template`],
//!   [`health`]
//! * [`plugins`]: what is built in, a file each; [`ipam`]: addresses; [`dhcp`]: those that servers lend;
//!   [`external`]: other plugins
//! * [`call`], [`result`]: what a plugin is called with, and what it answers
//! * [`netlink`], [`netns`], [`nftables`]: links, addresses, routes and rules, in the host's namespace and in a pod's
//! * [`record`], [`pin`]: what is on disk of an attachment
//! * [`port_forward`]: connections to a pod's loopback
//! * [`program`]: the plugins that are built in, for other runtimes

#![forbid(unsafe_code)]

mod call;
mod config;
mod conflist;
mod dhcp;
mod external;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gc;
mod health;
mod host;
mod ipam;
mod netlink;
mod netns;
mod network;
mod nftables;
mod pin;
mod plugins;
pub mod port_forward;
pub mod program;
mod record;
mod restore;
mod result;
pub mod sysctls;
mod template;
mod watch;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use call::{Bandwidth, DnsConfig, PortMappingEntry, RuntimeConfig};
pub use conflist::{ConfigError, mistakes};
pub use ipam::BUILT_IN_IPAM;
pub use network::Network;
pub use plugins::BUILT_IN;
pub use result::CniResult;

/// Where things are, and the network that a node has without a configuration file.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration files (`/etc/cni/net.d`): the first by name counts.
    pub conf_dir: PathBuf,
    /// What is written there when the kubelet names the pods' subnets, with gaps for these.
    pub template: Option<PathBuf>,
    /// External plugins (`/opt/cni/bin`).
    pub bin_dirs: Vec<PathBuf>,
    /// Types that are built in and yet run as external plugins.
    pub external: Vec<String>,
    /// What this crate keeps: attachments.
    pub state_dir: PathBuf,
    /// Addresses that are taken (`/var/lib/cni/networks`, the reference plugin host-local's own).
    pub data_dir: PathBuf,
    /// How long an external plugin may take.
    pub patience: Duration,
    /// The network without a configuration file.
    pub builtin: Builtin,
}

/// The network that a node has without a configuration file: a bridge that masquerades.
#[derive(Clone, Debug)]
pub struct Builtin {
    /// The bridge's name.
    pub bridge: String,
    /// Pods get an address of each.
    pub subnets: Vec<IpNet>,
    /// Of the pods' interfaces; the bridge's own where it is not said.
    pub mtu: Option<u32>,
}

/// Whether pods can be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// They can.
    pub ready: bool,
    /// Why not, in one word: `NetworkPluginNotReady`.
    pub reason: String,
    /// Why not, in words: file, line, key.
    pub message: String,
    /// The network's name.
    pub network: String,
}

/// A pod to attach.
#[derive(Debug)]
pub struct PodAttach<'a> {
    /// Its id, 64 hex digits.
    pub id: &'a str,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// A path of that, for results.
    pub netns_path: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its Kubernetes namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// What plugins are told that have the capability: ports of the host, limits of the traffic.
    pub runtime: RuntimeConfig,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As it is written in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// See [`Protocol::name`].
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Udp, Self::Sctp].into_iter().find(|protocol| protocol.name() == name)
    }

    /// `IPPROTO_*`.
    fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A pod that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its addresses, in the order of the configuration.
    pub ips: Vec<IpAddr>,
    /// Its interface.
    pub interface: String,
    /// The CNI result.
    pub result: CniResult,
}

/// Why the network could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The network is not ready.
    #[error("the network is not ready: {0}")]
    NotReady(String),
    /// A netlink request failed.
    #[error("{action}: {source}")]
    Netlink {
        /// What was being done, to what.
        action: String,
        /// Why it failed.
        source: rtnetlink::Error,
    },
    /// A file or system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done, to what.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Every address is taken.
    #[error("no address is free in {0}")]
    NoAddress(String),
    /// An external plugin failed; its own words are whole.
    #[error("plugin {plugin}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// What it said.
        message: String,
    },
    /// The request cannot be met by this configuration.
    #[error("{0}")]
    Unsupported(String),
    /// A value that is none.
    #[error("{0}")]
    Invalid(String),
    /// Several things went wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Says what a call was to do.
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

impl<T> Context<T> for std::result::Result<T, rtnetlink::Error> {
    fn doing(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Netlink { action: action.into(), source })
    }
}
