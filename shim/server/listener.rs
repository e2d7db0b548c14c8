//! The socket: systemd's where it activated the daemon, else our own, which takes the place of a stale one at once, so
//! that a client sees either the old or the new and never none or one with the wrong mode.

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

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process answers on it.
    #[error("socket {} is in use by process {pid}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        pid: String,
    },
    /// Something else is in its place.
    #[error("{} is not a socket; it will not be replaced", path.display())]
    NotASocket {
        /// What is in the way.
        path: PathBuf,
    },
    /// What systemd handed over is not one listening unix socket.
    #[error("socket activation: {0}")]
    Activation(String),
    /// It cannot be made.
    #[error("{what} {}: {error}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Where clients find it.
    pub socket: Socket,
    listener: UnixListener,
}

/// The socket's place in the filesystem.
#[derive(Clone, Debug)]
pub struct Socket {
    path: PathBuf,
    ours: Option<(u64, u64)>,
}

impl Socket {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, if this daemon made it and no other has taken its place.
    pub fn remove(&self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if self.ours.is_some()
            && now == self.ours
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, socket = %self.path.display(), "cannot remove the socket");
        }
    }
}

impl Listener {
    /// The connections, for ever. An error of accept(2) is the failure of one connection or a lack of descriptors that
    /// passes; it never ends the server.
    pub fn connections(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        stream::unfold(self.listener, |listener| async move {
            loop {
                match listener.accept().await {
                    Ok((connection, _)) => {
                        let peer = peer(&connection);
                        return Some((Ok(Connection::new(connection, peer)), listener));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        })
    }
}

/// The process that has connected, which is logged.
fn peer(connection: &UnixStream) -> Option<i32> {
    match connection.peer_cred() {
        // The daemon itself tests whether it is ready.
        Ok(peer) if peer.pid() == i32::try_from(std::process::id()).ok() => peer.pid(),
        Ok(peer) => {
            tracing::info!(pid = peer.pid(), uid = peer.uid(), gid = peer.gid(), "client connected");
            peer.pid()
        }
        Err(error) => {
            tracing::warn!(%error, "client connected whose credentials cannot be read");
            None
        }
    }
}

/// Listens at `path`, or on the socket that systemd has made.
///
/// # Errors
/// Another process uses the path, or it cannot be used.
pub async fn listen(path: &Path) -> Result<Listener, ListenError> {
    let (listener, socket) = match activated()? {
        Some(activated) => activated,
        None => bind(path)?,
    };
    let io_error = |error| ListenError::Io { what: "listen on", path: socket.path.clone(), error };
    listener.set_nonblocking(true).map_err(io_error)?;
    let listener = UnixListener::from_std(listener).map_err(io_error)?;
    Ok(Listener { socket, listener })
}

/// The socket that systemd passes (sd_listen_fds(3)), if any.
fn activated() -> Result<Option<(StdListener, Socket)>, ListenError> {
    let wrong = |why: String| ListenError::Activation(why);
    let mut descriptors = sd_notify::listen_fds().map_err(|error| wrong(error.to_string()))?;
    let Some(number) = descriptors.next() else { return Ok(None) };
    if descriptors.next().is_some() {
        return Err(wrong("more than one socket is passed".to_owned()));
    }
    let socket = own(number).map_err(|error| wrong(format!("descriptor {number}: {error}")))?;
    let unix = rustix::net::sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
    let stream = rustix::net::sockopt::socket_type(&socket) == Ok(SocketType::STREAM);
    if !unix || !stream || rustix::net::sockopt::socket_acceptconn(&socket) != Ok(true) {
        return Err(wrong(format!("descriptor {number} is not a listening unix stream socket")));
    }
    let listener = StdListener::from(socket);
    let address = listener.local_addr().map_err(|error| wrong(error.to_string()))?;
    let path = address.as_pathname().ok_or_else(|| wrong("the socket has no path".to_owned()))?.to_owned();
    Ok(Some((listener, Socket { path, ours: None })))
}

/// A descriptor that is known by its number only, as one that is owned: pidfd_getfd(2) on oneself.
fn own(number: i32) -> rustix::io::Result<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(std::process::id()).unwrap_or_default());
    let myself = rustix::process::pidfd_open(pid.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())?;
    rustix::process::pidfd_getfd(&myself, number, PidfdGetfdFlags::empty())
}

fn bind(path: &Path) -> Result<(StdListener, Socket), ListenError> {
    let io_error = |what| move |error| ListenError::Io { what, path: path.to_owned(), error };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io_error("listen on")(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(io_error("make the folder of socket"))?;
    refuse_living(path)?;
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())
        .map_err(|error| io_error("open the folder of socket")(error.into()))?;
    // By the folder's descriptor, since the name beside the socket could be longer than an address may be (unix(7)).
    let beside = format!(".berth-{}", std::process::id());
    let place = PathBuf::from(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd())).join(&beside);
    match std::fs::remove_file(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace")(error)),
        _ => {}
    }
    let listener = StdListener::bind(&place).map_err(io_error("bind"))?;
    std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o660))
        .map_err(io_error("set the mode of"))?;
    let metadata = std::fs::symlink_metadata(&place).map_err(io_error("look at"))?;
    rustix::fs::renameat(&folder, beside.as_str(), &folder, name)
        .map_err(|error| io_error("put in place")(error.into()))?;
    Ok((listener, Socket { path: path.to_owned(), ours: Some((metadata.dev(), metadata.ino())) }))
}

/// A socket that answers belongs to someone; one that refuses was left by a daemon that died.
fn refuse_living(path: &Path) -> Result<(), ListenError> {
    let io_error = |what| move |error| ListenError::Io { what, path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at")(error)),
    }
    match StdStream::connect(path) {
        Ok(connection) => {
            let peer = nix::sys::socket::getsockopt(&connection, nix::sys::socket::sockopt::PeerCredentials);
            // 0 is one outside of this pid namespace (pid_namespaces(7)).
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
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
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
            "nothing is left beside it"
        );
        first.socket.remove();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_in_its_place_is_left_alone() {
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
        let Listener { socket, listener } = listen(&path).await.unwrap();
        drop(listener);
        let successor = listen(&path).await.unwrap();
        socket.remove();
        assert!(path.exists());
        successor.socket.remove();
    }
}
