//! A pod's network namespace from the outside: netlink sockets that are opened in it, and its sysctls. A thread enters
//! the namespace for one task and ends, so that no other work can run in the wrong namespace.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::monitor::{Group, Monitor};
use crate::netlink::socket::Socket;
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Context, Error, Result};

/// Runs `work` in a network namespace, on a new thread.
pub(crate) async fn within<T: Send + 'static>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns: OwnedFd =
        netns.try_clone_to_owned().doing("duplicate the descriptor of a network namespace")?;
    let runtime = tokio::runtime::Handle::current();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        let _runtime = runtime.enter();
        let entered =
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network));
        let result = entered.doing("enter the pod's network namespace").and_then(|()| work());
        // If the caller is gone, nobody receives the result.
        drop(sender.send(result));
    };
    std::thread::Builder::new().name("netns".to_owned()).spawn(run).doing("start a thread")?;
    receiver.await.unwrap_or_else(|_| {
        Err(Error::Invalid("the thread in the pod's network namespace panicked".to_owned()))
    })
}

/// Like [`within`], but blocks the calling thread.
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
        joined.unwrap_or_else(|_| {
            Err(Error::Invalid("the thread in the network namespace panicked".to_owned()))
        })
    })
}

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

/// Disables router advertisements and duplicate address detection. A kernel without IPv6 has no such files.
pub(crate) fn set_interface_sysctls(interface: &str) {
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
        let _without_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value);
    }
}
