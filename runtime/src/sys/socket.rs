//! Unix packet sockets, with descriptors beside the bytes (unix(7)).

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::fs::descriptor_path;
use super::{Context, Result, checked};

/// The maximum number of descriptors in one packet. The kernel's limit is 253 (unix(7), `SCM_RIGHTS`).
pub const MAX_DESCRIPTORS: usize = 250;

/// Creates a pair of connected packet sockets.
///
/// # Errors
/// No descriptor is left.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .on("socketpair", "")
}

/// Creates a pair of connected stream sockets. The second one accepts up to `ahead` bytes that the first has not
/// read yet. It accepts fewer if they are written in small pieces, because each piece has an overhead. The kernel
/// uses no memory for unused capacity.
///
/// # Errors
/// No descriptor is left.
pub fn stream_pair(ahead: usize) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::net::sockopt;
    let (reads, writes) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .on("socketpair", "")?;
    // The kernel doubles the value to allow for the overhead (socket(7), SO_SNDBUF).
    let ahead = ahead / 2;
    // Only CAP_NET_ADMIN may exceed net.core.wmem_max (socket(7), SO_SNDBUFFORCE).
    sockopt::set_socket_send_buffer_size_force(&writes, ahead)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&writes, ahead))
        .on("setsockopt(SO_SNDBUF)", ahead)?;
    Ok((reads, writes))
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).on("socket", "")
}

/// Returns the address of a socket in a folder. It uses the folder's descriptor, because a path must not exceed
/// 107 bytes (unix(7), "Pathname sockets").
fn address(folder: &OwnedFd, name: &str) -> Result<SocketAddrUnix> {
    let path = format!("{}/{name}", descriptor_path(folder.as_fd()));
    SocketAddrUnix::new(path.as_str()).on("address", name)
}

fn open_folder(folder: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, folder, flags, Mode::empty()).on("open", folder.display())
}

/// Creates a listening packet socket in a folder. It replaces an old one with the same name.
///
/// # Errors
/// The folder cannot be opened or written to.
pub fn listen(folder: &Path, name: &str) -> Result<OwnedFd> {
    let directory = open_folder(folder)?;
    match rustix::fs::unlinkat(&directory, name, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno).on("unlink", name),
    }
    let socket = packet_socket()?;
    rustix::net::bind(&socket, &address(&directory, name)?).on("bind", folder.display())?;
    rustix::fs::chmodat(&directory, name, Mode::RUSR | Mode::WUSR, rustix::fs::AtFlags::empty())
        .on("chmod", name)?;
    rustix::net::listen(&socket, 8).on("listen", name)?;
    Ok(socket)
}

/// Connects to a listening packet socket in a folder.
///
/// # Errors
/// No process listens there.
pub fn connect(folder: &Path, name: &str) -> Result<OwnedFd> {
    let directory = open_folder(folder)?;
    let socket = packet_socket()?;
    rustix::net::connect(&socket, &address(&directory, name)?).on("connect", folder.join(name).display())?;
    Ok(socket)
}

/// Connects to a listening stream socket at a path, without blocking.
///
/// # Errors
/// No process listens there, or its queue is full (`EAGAIN`).
pub fn connect_stream(path: &Path) -> Result<OwnedFd> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Errno::INVAL).on("connect", path.display());
    };
    let directory = open_folder(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.on("socket", "")?;
    rustix::net::connect(&socket, &address(&directory, name)?).on("connect", path.display())?;
    Ok(socket)
}

/// Creates a listening stream socket in a folder that only root may enter.
///
/// # Errors
/// The folder cannot be opened or written to, or the name exists.
pub fn listen_stream(folder: &Path, name: &str) -> Result<OwnedFd> {
    let directory = open_folder(folder)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let socket = socket.on("socket", "")?;
    rustix::net::bind(&socket, &address(&directory, name)?).on("bind", folder.display())?;
    rustix::net::listen(&socket, 1).on("listen", name)?;
    Ok(socket)
}

/// Accepts a connection if its peer is root (unix(7), `SO_PEERCRED`).
///
/// # Errors
/// `EAGAIN` if no connection is pending, `EACCES` if the peer is not root.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = rustix::net::accept_with(listener, flags).on("accept", "")?;
    let uid = peer_uid(connection.as_fd())?;
    if uid != 0 {
        return Err(Errno::ACCESS).on("accept", format_args!("a peer with uid {uid}"));
    }
    Ok(connection)
}

/// Returns the user that the peer of a connected socket ran as. rustix is not used, because its type cannot
/// represent the process id 0 of a peer outside of this pid namespace (pid_namespaces(7)).
fn peer_uid(connection: BorrowedFd<'_>) -> Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: both pointers refer to values of this function, and the length is that of the first.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    checked(result.into()).on("getsockopt(SO_PEERCRED)", "")?;
    Ok(peer.uid)
}

/// Sends one packet with descriptors.
///
/// # Errors
/// `EAGAIN` if the peer's buffer is full, `EPIPE` if it is gone, `EMSGSIZE` if the packet is too long.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::TOOMANYREFS).on("sendmsg", format_args!("{} descriptors", descriptors.len()));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .on("sendmsg", "")
}

/// Receives one packet into `buffer`. Returns its length and its descriptors, which are closed on exec. Length 0
/// is the end of the connection.
///
/// # Errors
/// `EAGAIN` if no packet has arrived, `EMSGSIZE` if the packet or its descriptors were cut.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    match receive_from(socket, buffer)? {
        Packet { cut: true, .. } => Err(Errno::MSGSIZE).on("recvmsg", "a packet whose descriptors were cut"),
        packet => Ok((packet.length, packet.descriptors)),
    }
}

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// Its length in bytes; 0 is the end of the connection.
    pub length: usize,
    /// Its descriptors, which are closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors are missing because this process has reached its limit of open files (unix(7),
    /// `MSG_CTRUNC`).
    pub cut: bool,
    /// The sender's pid in the receiver's PID namespace, if the receiver has enabled [`report_senders`].
    pub sender: Option<i32>,
}

/// Sets whether the following packets contain their sender (unix(7), `SO_PASSCRED`). It must be disabled before
/// the socket is written to, which would otherwise bind it to an abstract address.
///
/// # Errors
/// Never.
pub fn report_senders(socket: BorrowedFd<'_>, tell: bool) -> Result<()> {
    rustix::net::sockopt::set_socket_passcred(socket, tell).on("setsockopt(SO_PASSCRED)", tell)
}

/// Like [`receive`], but returns the sender as well, and also a packet whose descriptors were cut.
///
/// # Errors
/// `EAGAIN` if no packet has arrived, `EMSGSIZE` if the bytes were cut.
pub fn receive_from(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Packet> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received =
        rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).on("recvmsg", "")?;
    let cut = received.flags.contains(rustix::net::ReturnFlags::CTRUNC);
    let mut packet = Packet { length: received.bytes, descriptors: Vec::new(), cut, sender: None };
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(received) => packet.descriptors.extend(received),
            RecvAncillaryMessage::ScmCredentials(peer) => {
                packet.sender = Some(peer.pid.as_raw_nonzero().get());
            }
            _ => {}
        }
    }
    if received.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE).on("recvmsg", "a packet that was cut");
    }
    Ok(packet)
}
