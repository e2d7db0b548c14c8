//! The parameters of a plugin call, the same for built-in plugins and programs: those of the CNI specification
//! ("Section 2: Execution Protocol"), with file descriptors instead of paths.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::host::Host;
use crate::netlink::{Link, Netlink};
use crate::nftables::{Comment, Rules};
use crate::runtime_config::RuntimeConfig;
use crate::version::Version;
use crate::{Result, names, pod_link};

/// One call of one plugin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// The network's name.
    pub(crate) network: &'a str,
    /// The version of the specification that its configuration is written in.
    pub(crate) version: Version,
    /// The pod's id.
    pub(crate) container: &'a str,
    /// The interface in the pod.
    pub(crate) interface: &'a str,
    /// The pod's network namespace, if it still exists.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// The path of the network namespace, for results and programs.
    pub(crate) sandbox: &'a str,
    /// The namespace is destroyed after this call, and its links with it. They need not be removed one by one, which
    /// costs 20 ms each (RCU).
    pub(crate) namespace_ends: bool,
    /// The result lists everything that the plugins created. Only built-in plugins ran: a program could have changed
    /// the result.
    pub(crate) knows_all: bool,
    /// The runtime's configuration (`runtimeConfig`).
    pub(crate) runtime: &'a RuntimeConfig,
    /// `CNI_ARGS`, parsed.
    pub(crate) args: &'a BTreeMap<String, String>,
    /// `CNI_ARGS`, for programs.
    pub(crate) args_text: &'a str,
    /// `CNI_PATH`, for programs.
    pub(crate) bin_path: &'a str,
    /// The folder of allocated addresses, unless the configuration names another.
    pub(crate) data_dir: &'a Path,
    /// The host's netlink sockets and files.
    pub(crate) host: &'a Host,
}

impl Call<'_> {
    /// Opens a netlink connection in the pod's namespace.
    pub(crate) async fn inside(&self) -> Result<Netlink> {
        pod_link::open(self.pod_netns()?).await
    }

    /// Returns the pod's network namespace, or an error if it does not exist.
    pub(crate) fn pod_netns(&self) -> Result<BorrowedFd<'_>> {
        let gone = || crate::Error::Invalid("network namespace not found".to_owned());
        self.netns.as_ref().map(AsFd::as_fd).ok_or_else(gone)
    }

    /// Describes the pod's interface as part of a result.
    pub(crate) fn interface_of(&self, link: &Link) -> crate::result::Interface {
        crate::result::Interface {
            name: link.name.clone(),
            mac: link.mac_text(),
            mtu: link.mtu,
            sandbox: self.sandbox.to_owned(),
            ..Default::default()
        }
    }

    /// The hardware address that the runtime requests in `CNI_ARGS`.
    pub(crate) fn argument_mac(&self) -> Option<&str> {
        self.args.get("MAC").map(String::as_str)
    }

    /// The rules of this attachment. The comment marks them as belonging to it.
    pub(crate) fn rules(&self) -> Rules<'_> {
        let owner = Comment::new(self.network, self.container, self.interface);
        Rules { owner, installed: &self.host.made, knows_all: self.knows_all }
    }

    /// The alias of links on the host (`ip link` shows it as `alias`). It identifies the attachment that owns the link.
    pub(crate) fn alias(&self) -> String {
        names::alias(self.network, self.container)
    }

    /// The folder for state that outlives a call.
    pub(crate) fn state(&self) -> &Path {
        self.host.state_dir()
    }
}

/// Parses `KEY=value;...` (CNI specification, `CNI_ARGS`).
pub(crate) fn parse_args(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
