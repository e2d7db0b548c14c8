//! The socket. If systemd activated the daemon, it passes the socket. Otherwise the daemon creates one and
//! renames it over a stale one, so that a client always finds a socket with the right mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use tokio::net::{UnixListener, UnixStream};

use super::http2::Connection;
use crate::descriptors;

/// Why the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on it.
    #[error("failed to listen on {}: in use by process {pid}", path.display())]
    InUse {
        /// Path of the socket.
        path: PathBuf,
        /// The process that listens.
        pid: String,
    },
    /// The path exists and is not a socket.
    #[error("failed to listen on {}: it exists and is not a socket", path.display())]
    NotASocket {
        /// The path of the socket.
        path: PathBuf,
    },
    /// systemd passed something else than one listening unix socket.
    #[error("invalid socket of systemd: {0}")]
    Activation(String),
    /// It cannot be created.
    #[error("failed to {action} {}: {error}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The path it was done to.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct CriListener {
    /// The socket's place in the filesystem.
    pub socket: Socket,
    listener: UnixListener,
}

/// The socket's place in the filesystem.
#[derive(Clone, Debug)]
pub struct Socket {
    path: PathBuf,
    created: Option<(u64, u64)>,
}

impl Socket {
    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket if this daemon created it and no other daemon has replaced it.
    pub fn remove(&self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if self.created.is_some()
            && now == self.created
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, socket = %self.path.display(), "failed to remove the socket");
        }
    }
}

impl CriListener {
    /// Returns the stream of connections, which never ends. An error of accept(2) concerns one connection or
    /// a temporary lack of descriptors; it never ends the server.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        stream::unfold(self.listener, |listener| async move {
            loop {
                wait_for_room().await;
                match listener.accept().await {
                    Ok((connection, _)) => {
                        let peer = peer(&connection);
                        return Some((Ok(Connection::new(connection, peer)), listener));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        })
    }
}

/// Waits while too few descriptors are free. Clients wait in the queue of the socket (listen(2)).
async fn wait_for_room() {
    if !descriptors::have_room_for_client() {
        tracing::warn!("too few file descriptors are free: new clients must wait (RLIMIT_NOFILE)");
    }
    while !descriptors::have_room_for_client() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Logs the process that has connected and returns its pid.
fn peer(connection: &UnixStream) -> Option<i32> {
    match connection.peer_cred() {
        // The daemon's own health check is not logged.
        Ok(peer) if peer.pid() == i32::try_from(std::process::id()).ok() => peer.pid(),
        Ok(peer) => {
            tracing::debug!(pid = peer.pid(), uid = peer.uid(), gid = peer.gid(), "client connected");
            peer.pid()
        }
        Err(error) => {
            tracing::warn!(%error, "failed to read the credentials of a client");
            None
        }
    }
}

/// Listens at `path`, or on the socket that systemd passes.
///
/// # Errors
/// Another process uses the path, or it cannot be used.
pub async fn listen(path: &Path) -> Result<CriListener, ListenError> {
    let (listener, socket) = match activated()? {
        Some(activated) => activated,
        None => bind(path)?,
    };
    let io_error = |error| ListenError::Io { action: "listen on", path: socket.path.clone(), error };
    listener.set_nonblocking(true).map_err(io_error)?;
    let listener = UnixListener::from_std(listener).map_err(io_error)?;
    Ok(CriListener { socket, listener })
}

/// Returns the socket that systemd passes (sd_listen_fds(3)), if any.
fn activated() -> Result<Option<(StdListener, Socket)>, ListenError> {
    let invalid = |reason: String| ListenError::Activation(reason);
    let mut descriptors = sd_notify::listen_fds().map_err(|error| invalid(error.to_string()))?;
    let Some(number) = descriptors.next() else { return Ok(None) };
    if descriptors.next().is_some() {
        return Err(invalid("more than one socket is passed".to_owned()));
    }
    let socket =
        adopt_descriptor(number).map_err(|error| invalid(format!("descriptor {number}: {error}")))?;
    let unix = rustix::net::sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
    let stream = rustix::net::sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !unix || !stream || rustix::net::sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(invalid(format!("descriptor {number} is not a listening unix stream socket")));
    }
    let listener = StdListener::from(socket);
    let address = listener.local_addr().map_err(|error| invalid(error.to_string()))?;
    let path = address.as_pathname().ok_or_else(|| invalid("it has no path".to_owned()))?.to_owned();
    Ok(Some((listener, Socket { path, created: None })))
}

/// Turns a descriptor number into an owned descriptor with pidfd_getfd(2) on the own process.
fn adopt_descriptor(number: i32) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(std::process::id()).unwrap_or_default());
    let own_process = rustix::process::pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())?;
    rustix::process::pidfd_getfd(&own_process, number, PidfdGetfdFlags::empty())
}

/// Creates a socket that only root and its group can use. A stale socket is replaced.
///
/// # Errors
/// A process listens on the path, or it cannot be used.
pub fn bind(path: &Path) -> Result<(StdListener, Socket), ListenError> {
    let io_error = |action| move |error| ListenError::Io { action, path: path.to_owned(), error };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io_error("listen on")(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(io_error("create the folder of socket"))?;
    refuse_active(path)?;
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())
        .map_err(|error| io_error("open the folder of socket")(error.into()))?;
    // Bind through the folder's descriptor: the temporary name could make the path longer than an address may
    // be (unix(7)).
    let temporary = format!(".berth-{}", std::process::id());
    let place = PathBuf::from(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd())).join(&temporary);
    match std::fs::remove_file(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace")(error)),
        _ => {}
    }
    let listener = StdListener::bind(&place).map_err(io_error("bind"))?;
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o660))
        .map_err(io_error("set the mode of"))?;
    let metadata = std::fs::symlink_metadata(&place).map_err(io_error("stat"))?;
    rustix::fs::renameat(&folder, temporary.as_str(), &folder, name)
        .map_err(|error| io_error("rename the socket to")(error.into()))?;
    Ok((listener, Socket { path: path.to_owned(), created: Some((metadata.dev(), metadata.ino())) }))
}

/// Fails if a process listens on the socket. A socket that refuses connections was left by a dead daemon.
fn refuse_active(path: &Path) -> Result<(), ListenError> {
    let io_error = |action| move |error| ListenError::Io { action, path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("stat")(error)),
    }
    match StdStream::connect(path) {
        Ok(connection) => {
            let peer = nix::sys::socket::getsockopt(&connection, nix::sys::socket::sockopt::PeerCredentials);
            // 0 is a process outside of this pid namespace (pid_namespaces(7)).
            let pid = peer.map(|peer| peer.pid()).ok().filter(|pid| *pid > 0);
            let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
            Err(ListenError::InUse { path: path.to_owned(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %path.display(), "replacing a stale socket");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("connect to")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_an_active_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/berth.sock");
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        drop(StdListener::bind(&path).unwrap());
        let first = listen(&path).await.unwrap();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o660);
        let second = listen(&path).await.unwrap_err().to_string();
        assert!(second.contains(&format!("in use by process {}", std::process::id())), "{second}");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "no temporary file is left"
        );
        first.socket.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_existing_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(listen(&path).await, Err(ListenError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("berth.sock");
        let CriListener { socket, listener } = listen(&path).await.unwrap();
        drop(listener);
        let successor = listen(&path).await.unwrap();
        socket.remove();
        assert!(path.exists());
        successor.socket.remove();
    }
}
