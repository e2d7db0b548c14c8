//! The network of pods: what the CNI reference plugins do in several processes, done here over netlink in one; what is
//! not known here is run as an external plugin by the CNI specification.
//!
//! * [`network`]: the whole: add, del, gc, status
//! * [`conflist`]: configuration files, checked before anything is done
//! * [`bridge`]: veth pairs on a bridge; [`ipam`]: addresses; [`masquerade`]: nftables; [`external`]: other plugins
//! * [`netlink`], [`netns`]: links, addresses and routes, in the host's namespace and in a pod's
//! * [`port_forward`]: connections to a pod's loopback
//! * [`record`]: what is on disk of an attachment

#![forbid(unsafe_code)]

mod bridge;
mod conflist;
mod external;
mod ipam;
mod masquerade;
mod netlink;
mod netns;
mod network;
pub mod port_forward;
mod record;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use ipnet::IpNet;

pub use conflist::ConfigError;
pub use network::Network;

/// Where things are, and the network that a node has without a configuration file.
#[derive(Clone, Debug)]
pub struct Options {
    /// Configuration files (`/etc/cni/net.d`): the first by name counts.
    pub conf_dir: PathBuf,
    /// External plugins (`/opt/cni/bin`).
    pub bin_dirs: Vec<PathBuf>,
    /// What this crate keeps: attachments, addresses.
    pub state_dir: PathBuf,
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
    /// Its name.
    pub name: &'a str,
    /// Its Kubernetes namespace.
    pub namespace: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// Ports of the host that lead to it.
    pub port_mappings: Vec<PortMapping>,
    /// Its annotations: data for external plugins.
    pub annotations: Vec<(String, String)>,
}

/// A port of the host that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// In the pod.
    pub container_port: u16,
    /// On the host.
    pub host_port: u16,
    /// One address of the host; all where it is not said.
    pub host_ip: Option<IpAddr>,
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
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A pod that is attached.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// Its addresses, in the order of the configuration.
    pub ips: Vec<IpAddr>,
    /// Its interface.
    pub interface: String,
    /// The CNI result.
    pub result: serde_json::Value,
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
