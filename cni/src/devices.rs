//! Devices of the host that a container requests in addition to the pod's network (OCI runtime specification, "Network
//! Devices"): a device is moved to the pod's namespace with its addresses, and is up there.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;

use crate::names::is_link_name;
use crate::result::{CniResult, Ip};
use crate::{Context, Error, Network, Result, pod_link};

impl Network {
    /// Moves a device of the host to a namespace under a new name.
    ///
    /// # Errors
    /// The device does not exist, or the name is invalid or used in the namespace.
    pub async fn move_device(&self, device: &str, netns: BorrowedFd<'_>, name: &str) -> Result<()> {
        if !is_link_name(name) {
            return Err(Error::Invalid(format!("invalid link name {name:?}")));
        }
        let host = &self.shared.host.links;
        let link = host.existing(device).await?;
        let addresses = host.addresses(link.index).await?;
        host.move_to(link.index, netns, name).await?;
        let ips = addresses.into_iter().filter(is_global);
        let ips = ips.map(|address| Ip { address, gateway: None, interface: None }).collect();
        let result = CniResult { ips, ..CniResult::default() };
        pod_link::configure(netns, name, &result).await.map(drop)
    }

    /// Moves a device back to the host, under its name there. Its addresses are lost.
    ///
    /// # Errors
    /// The device is not in the namespace.
    pub async fn return_device(&self, device: &str, netns: BorrowedFd<'_>, name: &str) -> Result<()> {
        let inside = pod_link::open(netns).await?;
        let link = inside.existing(name).await?;
        let host = File::open("/proc/self/ns/net").doing("open the host's network namespace")?;
        inside.move_to(link.index, host.as_fd(), device).await
    }
}

/// The kernel creates link-local addresses itself.
fn is_global(address: &IpNet) -> bool {
    match address {
        IpNet::V4(v4) => !v4.addr().is_link_local(),
        IpNet::V6(v6) => !v6.addr().is_unicast_link_local(),
    }
}
