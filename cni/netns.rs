//! A pod's network namespace, from the outside: netlink sockets that are opened in it, and its sysctls. A thread enters
//! it for this one purpose and ends, so that no other work can ever run in the wrong namespace.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::monitor::{Group, Monitor};
use crate::netlink::socket::Socket;
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Context, Error, Result};

/// Runs `work` in a network namespace, on a thread of its own.
pub(crate) async fn within<T: Send + 'static>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns: OwnedFd = netns.try_clone_to_owned().doing("dup a network namespace")?;
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        let _runtime = runtime.enter();
        let entered =
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network));
        let result = entered.doing("enter the pod's network namespace").and_then(|()| work());
        // The caller may have gone: then nobody receives the result.
        drop(sender.send(result));
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(run).doing("start a thread")?;
    receiver
        .await
        .unwrap_or_else(|_| Err(Error::Invalid("the thread in the pod's namespace died".to_owned())))
}

/// The same for a thread that may wait for it.
pub(crate) fn on_a_thread_in<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let enter = || {
        let entered = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
        entered.doing("enter a network namespace").and_then(|()| work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter);
        let joined = thread.doing("start a thread")?.join();
        joined.unwrap_or_else(|_| Err(Error::Invalid("the thread in the namespace died".to_owned())))
    })
}

/// A netlink connection in a pod's namespace.
pub(crate) async fn open(netns: BorrowedFd<'_>) -> Result<Netlink> {
    within(netns, Netlink::open).await
}

/// Brings a link of a namespace up.
pub(crate) async fn set_up(netns: BorrowedFd<'_>, index: u32) -> Result<()> {
    within(netns, move || Socket::open().doing("open a netlink socket")?.set_up(index)).await
}

/// As [`open`], with the sysctls of an interface set that is there already and not yet up: no router in the pod's
/// network can change its routes (CVE-2020-10749), its addresses are usable at once, and are told to neighbours.
pub(crate) async fn open_with(netns: BorrowedFd<'_>, interface: &str) -> Result<Netlink> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        Netlink::open()
    })
    .await
}

/// A pod's interface, and its namespace.
#[derive(Debug)]
pub(crate) struct Configured {
    /// As it is.
    pub(crate) link: Link,
    pub(crate) inside: Netlink,
}

impl Configured {
    /// Tells all on the link which hardware address has the interface's addresses, on the calling thread.
    pub(crate) fn announce(&self) -> Result<()> {
        self.inside.here(|links| links.announce(&self.link))?
    }
}

/// Makes a pod's interface what its network says, on one thread: sysctls, addresses, routes, state.
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

/// A link of a pod, as it is; its sysctls are set as by [`open_with`].
pub(crate) async fn link(netns: BorrowedFd<'_>, interface: &str) -> Result<Link> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        Socket::open().doing("open a netlink socket")?.existing(&interface)
    })
    .await
}

/// As [`open_with`], but the kernel looks whether others in the network have the interface's addresses.
pub(crate) async fn open_detecting(netns: BorrowedFd<'_>, interface: &str) -> Result<(Netlink, Monitor)> {
    let interface = interface.to_owned();
    within(netns, move || {
        set_pod_sysctls(&interface);
        for name in ["accept_dad", "enhanced_dad"] {
            let _without_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), "1");
        }
        let changes = Monitor::open(&[Group::Addresses6]).doing("hear of addresses")?;
        Ok((Netlink::open()?, changes))
    })
    .await
}

fn set_pod_sysctls(interface: &str) {
    set_interface_sysctls(interface);
    let told = [
        ("ipv4", "arp_notify", "1"),
        ("ipv6", "ndisc_notify", "1"),
        ("ipv6", "disable_ipv6", "0"),
        // What brings it down for a moment (another hardware address, a VRF) leaves its addresses.
        ("ipv6", "keep_addr_on_down", "1"),
    ];
    for (family, name, value) in told {
        let _without_ipv6 = fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), value);
    }
}

/// No advertisements of routers, no wait for duplicates of an address; a kernel without IPv6 has no such files.
pub(crate) fn set_interface_sysctls(interface: &str) {
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
        let _without_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value);
    }
}
