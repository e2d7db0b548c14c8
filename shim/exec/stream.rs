//! The host's ends of a session's standard streams: pipes, sockets and terminals with tokio's read and write
//! traits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::termios::{LocalModes, SpecialCodeIndex};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

/// Reads the output of a process. The end is reached when all writers have closed it; for a terminal, when no
/// process has it open.
#[derive(Debug)]
pub struct OutputReader {
    /// May be a socket or a terminal: they are read by read(2) as a pipe is.
    fd: pipe::Receiver,
}

impl OutputReader {
    /// Reads from a pipe, a socket or the master of a terminal.
    ///
    /// # Errors
    /// The descriptor cannot be registered with tokio.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: pipe::Receiver::from_owned_fd_unchecked(fd)? })
    }
}

impl AsyncRead for OutputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.fd).poll_read(context, buffer));
        Poll::Ready(read.or_else(|error| match Errno::from_io_error(&error) {
            // No process has the terminal open, or the other side of a socket was closed with unread data.
            Some(Errno::IO | Errno::CONNRESET) => Ok(()),
            _ => Err(error),
        }))
    }
}

/// Writes the input of a process. Shutdown and drop end the input. A terminal in line mode receives its
/// end-of-file character instead (termios(3), `VEOF`). After the process has closed its input, writes fail
/// with [`io::ErrorKind::BrokenPipe`].
#[derive(Debug)]
pub struct Writer {
    fd: Option<pipe::Sender>,
    terminal: bool,
    /// The last line is incomplete: the first end-of-file character only flushes it, so the terminal needs
    /// two.
    mid_line: bool,
}

impl Writer {
    /// Writes to a pipe or, if `terminal` is set, to the master of a terminal.
    ///
    /// # Errors
    /// The descriptor cannot be registered with tokio.
    pub fn new(fd: OwnedFd, terminal: bool) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd: Some(pipe::Sender::from_owned_fd_unchecked(fd)?), terminal, mid_line: false })
    }

    fn close(&mut self) {
        let Some(fd) = self.fd.take().filter(|_| self.terminal) else { return };
        let Ok(settings) = rustix::termios::tcgetattr(fd.as_fd()) else { return };
        if !settings.local_modes.contains(LocalModes::ICANON) {
            return;
        }
        let end = settings.special_codes[SpecialCodeIndex::VEOF];
        let ends = if self.mid_line { 2 } else { 1 };
        // A full terminal does not accept the character; the owner of the session ends its processes.
        let _full = rustix::io::write(&fd, [end; 2].get(..ends).unwrap_or_default());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(fd) = &mut self.fd else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        let written = ready!(Pin::new(fd).poll_write(context, bytes));
        let written = written.map_err(|error| match Errno::from_io_error(&error) {
            // No process has the terminal open.
            Some(Errno::IO) => io::ErrorKind::BrokenPipe.into(),
            _ => error,
        })?;
        if let Some(last) = written.checked_sub(1).and_then(|last| bytes.get(last)) {
            self.mid_line = !matches!(*last, b'\n' | b'\r');
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_pipe_is_read_to_its_end_and_closed_by_shutdown() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut reader, mut writer) = (OutputReader::new(read).unwrap(), Writer::new(write, false).unwrap());
        let text = vec![b'x'; 1 << 20];
        let sent = text.clone();
        let sending = tokio::spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
            writer
        });
        let mut got = Vec::new();
        reader.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, text);
        let error = sending.await.unwrap().write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_terminals_input_ends_with_its_eof_character() {
        use std::io::Read;
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let mut slave = std::fs::File::options().read(true).write(true).open(name).unwrap();
        let mut writer = Writer::new(master.try_clone().unwrap(), true).unwrap();
        writer.write_all(b"no end of line").await.unwrap();
        drop(writer);
        let mut got = String::new();
        slave.read_to_string(&mut got).unwrap();
        assert_eq!(got, "no end of line");
        drop(slave);
        let mut echoed = Vec::new();
        OutputReader::new(master).unwrap().read_to_end(&mut echoed).await.unwrap();
        assert!(echoed.starts_with(b"no end of line"), "{echoed:?}");
    }
}
