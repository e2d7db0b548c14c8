//! Unix sockets of packets, with descriptors beside the bytes (unix(7)).

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

/// The most descriptors in one packet: the kernel takes 253 (unix(7), `SCM_RIGHTS`).
pub const MAX_DESCRIPTORS: usize = 250;

/// A pair of connected packet sockets.
///
/// # Errors
/// No more descriptors.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .on("socketpair", "")
}

/// A pair of connected stream sockets, of which the second takes up to `ahead` bytes that the first has not read yet: fewer
/// where they are written in small pieces, each of which costs some. The kernel holds no memory for what is not there.
///
/// # Errors
/// No more descriptors.
pub fn stream_pair(ahead: usize) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::net::sockopt;
    let (reads, writes) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .on("socketpair", "")?;
    // The kernel doubles what it is told, for what the pieces cost (socket(7), SO_SNDBUF).
    let ahead = ahead / 2;
    // Above net.core.wmem_max only CAP_NET_ADMIN may go (socket(7), SO_SNDBUFFORCE).
    sockopt::set_socket_send_buffer_size_force(&writes, ahead)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&writes, ahead))
        .on("setsockopt(SO_SNDBUF)", ahead)?;
    Ok((reads, writes))
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).on("socket", "")
}

/// The address of a socket in a folder. It goes by the folder's descriptor: a path of more than 107 bytes is none
/// (unix(7), "Pathname sockets").
fn address(folder: &OwnedFd, name: &str) -> Result<SocketAddrUnix> {
    let path = format!("{}/{name}", descriptor_path(folder.as_fd()));
    SocketAddrUnix::new(path.as_str()).on("address", name)
}

fn open_folder(folder: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, folder, flags, Mode::empty()).on("open", folder.display())
}

/// A listening packet socket in a folder; an old one of the same name is replaced.
///
/// # Errors
/// The folder cannot be opened or written.
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
/// Nobody listens there.
pub fn connect(folder: &Path, name: &str) -> Result<OwnedFd> {
    let directory = open_folder(folder)?;
    let socket = packet_socket()?;
    rustix::net::connect(&socket, &address(&directory, name)?).on("connect", folder.join(name).display())?;
    Ok(socket)
}

/// Connects to a listening stream socket at a path, without waiting for it.
///
/// # Errors
/// Nobody listens there, or too many wait for it already (`EAGAIN`).
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

/// Takes a connection off a listening socket, if its peer is root (unix(7), `SO_PEERCRED`).
///
/// # Errors
/// `EAGAIN` where none waits, `EACCES` where the peer is somebody else.
pub fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let connection = rustix::net::accept_with(listener, flags).on("accept", "")?;
    let uid = peer_uid(connection.as_fd())?;
    if uid != 0 {
        return Err(Errno::ACCESS).on("accept", format_args!("a peer with uid {uid}"));
    }
    Ok(connection)
}

/// The user that the other end of a connected socket ran as. Not with rustix: its type has no place for the process id 0 of
/// a peer that is outside of this pid namespace (pid_namespaces(7)).
fn peer_uid(connection: BorrowedFd<'_>) -> Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).unwrap_or_default();
    // SAFETY: both pointers are to values of this function, and the length is that of the first.
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
/// `EAGAIN` where the peer is behind, `EPIPE` where it is gone, `EMSGSIZE` where the packet is too long.
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

/// Receives one packet into `buffer`: its length and its descriptors, which are closed on exec. Length 0 is the end.
///
/// # Errors
/// `EAGAIN` where nothing has come; `EMSGSIZE` where the packet or its descriptors were cut.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    match receive_from(socket, buffer)? {
        Packet { cut: true, .. } => Err(Errno::MSGSIZE).on("recvmsg", "a packet whose descriptors were cut"),
        packet => Ok((packet.length, packet.descriptors)),
    }
}

/// A packet that was received.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes; 0 is the end.
    pub length: usize,
    /// Closed on exec.
    pub descriptors: Vec<OwnedFd>,
    /// Descriptors are missing: this process may not open that many (unix(7), `MSG_CTRUNC`).
    pub cut: bool,
    /// Who has sent it, in the PID namespace of the receiver, where that wants to know ([`tell_senders`]).
    pub sender: Option<i32>,
}

/// Whether packets from now on say who has sent them (unix(7), `SO_PASSCRED`). To be switched off before the socket is
/// written to, which would give it an abstract address.
///
/// # Errors
/// Never.
pub fn tell_senders(socket: BorrowedFd<'_>, tell: bool) -> Result<()> {
    rustix::net::sockopt::set_socket_passcred(socket, tell).on("setsockopt(SO_PASSCRED)", tell)
}

/// As [`receive`], with the sender, and with what came where descriptors are missing.
///
/// # Errors
/// `EAGAIN` where nothing has come; `EMSGSIZE` where the bytes were cut.
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
