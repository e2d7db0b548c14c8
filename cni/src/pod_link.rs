//! A pod's interface from the outside: netlink sockets in the pod's namespace, and the interface's sysctls, addresses
//! and routes.

use std::fs;
use std::os::fd::BorrowedFd;

use crate::netlink::monitor::{Group, Monitor};
use crate::netlink::socket::Socket;
use crate::netlink::{Link, Netlink};
use crate::netns::{set_interface_sysctls, within};
use crate::result::CniResult;
use crate::{Context, Result};

/// Opens a netlink connection in a pod's namespace.
pub(crate) async fn open(netns: BorrowedFd<'_>) -> Result<Netlink> {
    within(netns, Netlink::open).await
}

/// Brings a link of a namespace up.
pub(crate) async fn set_up(netns: BorrowedFd<'_>, index: u32) -> Result<()> {
    within(netns, move || Socket::open().doing("open a netlink socket")?.set_up(index)).await
}

/// Like [`open`], and sets the sysctls of an interface that exists and is not yet up: no router in the pod's network
/// can change its routes (CVE-2020-10749), its addresses are usable immediately and are announced to neighbours.
pub(crate) async fn open_with(netns: BorrowedFd<'_>, interface: &str) -> Result<Netlink> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        Netlink::open()
    })
    .await
}

/// A configured pod interface and a netlink connection in its namespace.
#[derive(Debug)]
pub(crate) struct Configured {
    /// The link's current state.
    pub(crate) link: Link,
    pub(crate) inside: Netlink,
}

impl Configured {
    /// Announces the interface's addresses with its hardware address on the link. Runs on the calling thread.
    pub(crate) fn announce(&self) -> Result<()> {
        self.inside.here(|links| links.announce(&self.link))?
    }
}

/// Configures a pod's interface by its result, on one thread: sysctls, addresses, routes, state.
pub(crate) async fn configure(
    netns: BorrowedFd<'_>,
    interface: &str,
    result: &CniResult,
) -> Result<Configured> {
    let (interface, result) = (interface.to_owned(), result.clone());
    within(netns, move || {
        set_pod_sysctls(&interface);
        let inside = Netlink::open()?;
        let link = inside.here(|links| {
            let link = links.existing(&interface)?;
            links.configure(link.index, &result).map(|()| link)
        })??;
        Ok(Configured { link, inside })
    })
    .await
}

/// Returns the current state of a pod's link, and sets its sysctls as [`open_with`] does.
pub(crate) async fn link(netns: BorrowedFd<'_>, interface: &str) -> Result<Link> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        Socket::open().doing("open a netlink socket")?.existing(&interface)
    })
    .await
}

/// Like [`open_with`], but with the kernel's detection of duplicate IPv6 addresses. The monitor reports address
/// changes.
pub(crate) async fn open_detecting(netns: BorrowedFd<'_>, interface: &str) -> Result<(Netlink, Monitor)> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        for name in ["accept_dad", "enhanced_dad"] {
            let _without_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), "1");
        }
        let changes = Monitor::open(&[Group::Addresses6]).doing("subscribe to changes of addresses")?;
        Ok((Netlink::open()?, changes))
    })
    .await
}

fn set_pod_sysctls(interface: &str) {
    set_interface_sysctls(interface);
    let sysctls = [
        ("ipv4", "arp_notify", "1"),
        ("ipv6", "ndisc_notify", "1"),
        ("ipv6", "disable_ipv6", "0"),
        // The addresses stay when the link goes down for a moment (new hardware address, VRF).
        ("ipv6", "keep_addr_on_down", "1"),
    ];
    for (family, name, value) in sysctls {
        let _without_ipv6 = fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), value);
    }
}
