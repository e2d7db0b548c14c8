//! Connections to servers on a pod's loopback. A thread enters the pod's network namespace only to create the sockets:
//! a socket stays in the namespace in which it was created (network_namespaces(7)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpSocket, TcpStream};

use crate::{Context, Error, Result};

/// The time limit of a connection over loopback. A server with a full accept queue answers late or never.
const PATIENCE: Duration = Duration::from_secs(10);

/// The loopback addresses in the order of attempts.
const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Connects to a port on the loopback of a network namespace, or of the host if `netns` is `None`: IPv4 first, then
/// IPv6.
///
/// # Errors
/// Nothing listens on either address, or the namespace cannot be entered.
pub async fn connect(netns: Option<BorrowedFd<'_>>, port: u16) -> Result<TcpStream> {
    let sockets = match netns {
        Some(netns) => {
            sockets_in(netns.try_clone_to_owned().doing("duplicate the descriptor of a network namespace")?)
                .await?
        }
        None => sockets(),
    };
    let mut failed = Vec::new();
    for (address, socket) in LOOPBACKS.into_iter().zip(sockets) {
        let address = SocketAddr::new(address, port);
        let connected = match socket {
            Ok(socket) => try_connect(socket, address).await,
            Err(error) => Err(error),
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(source) => failed.push(Error::Io { action: format!("connect to {address}"), source }),
        }
    }
    Err(Error::Several(failed))
}

async fn try_connect(socket: OwnedFd, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket.into());
    socket.set_nodelay(true)?;
    match tokio::time::timeout(PATIENCE, socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

type Sockets = [std::io::Result<OwnedFd>; 2];

fn sockets() -> Sockets {
    [AddressFamily::INET, AddressFamily::INET6].map(|family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(socket_with(family, SocketType::STREAM, flags, None)?)
    })
}

async fn sockets_in(netns: OwnedFd) -> Result<Sockets> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        let entered = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
        let sockets = entered.doing("enter the pod's network namespace").map(|()| sockets());
        // If the caller is gone, nobody receives the result.
        drop(sender.send(sockets));
    };
    std::thread::Builder::new().name("port-forward".to_owned()).spawn(run).doing("start a thread")?;
    receiver.await.unwrap_or_else(|_| {
        Err(Error::Invalid("the thread in the pod's network namespace panicked".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn greets(listener: TcpListener) -> u16 {
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn the_second_family_is_tried_when_nothing_listens_on_the_first() {
        for address in LOOPBACKS {
            // A host without IPv6 has only one address.
            let Ok(listener) = TcpListener::bind((address, 0)).await else { continue };
            let port = greets(listener).await;
            let mut stream = connect(None, port).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "hello");
        }
    }

    #[tokio::test]
    async fn both_failures_are_reported() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = connect(None, port).await.unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
        assert!(error.contains(&format!("[::1]:{port}")), "{error}");
    }
}
