//! Network namespaces. A thread enters a namespace for one task and ends, so that no other work can run in the wrong
//! namespace.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{Context, Error, Result};

/// Runs `work` in a network namespace, on a new thread.
pub(crate) async fn within<T: Send + 'static>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let netns: OwnedFd =
        netns.try_clone_to_owned().doing("duplicate the descriptor of a network namespace")?;
    let (runtime, span) = (tokio::runtime::Handle::current(), tracing::Span::current());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        let _runtime = runtime.enter();
        let entered =
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network));
        let result = entered.doing("enter the pod's network namespace").and_then(|()| span.in_scope(work));
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
    let span = tracing::Span::current();
    let enter = || {
        let entered = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
        entered.doing("enter a network namespace").and_then(|()| span.in_scope(work))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter);
        let joined = thread.doing("start a thread")?.join();
        joined.unwrap_or_else(|_| {
            Err(Error::Invalid("the thread in the network namespace panicked".to_owned()))
        })
    })
}

/// Disables router advertisements and duplicate address detection. A kernel without IPv6 has no such files.
pub(crate) fn set_interface_sysctls(interface: &str) {
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
        let _without_ipv6 = fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{name}"), value);
    }
}
