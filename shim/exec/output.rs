//! The output of a command that is run for its output: read to its end, kept up to a limit.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The most that is kept of one stream (CRI `ExecSync`: "the output is limited to 16 MB"; more of it brought down
/// daemons: CVE-2022-1708, CVE-2022-31030).
pub const LIMIT: usize = 16 << 20;

/// How much is read at once: the size of a pipe.
const PIECE: usize = 64 << 10;

/// One stream of a command.
#[derive(Debug)]
pub struct Output {
    pipe: pipe::Receiver,
    kept: Vec<u8>,
}

impl Output {
    /// A pipe: its reading end, and the end that the command writes to.
    ///
    /// # Errors
    /// No pipe can be made.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let flags = rustix::fs::fcntl_getfl(&read)?;
        rustix::fs::fcntl_setfl(&read, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok((Self { pipe: pipe::Receiver::from_owned_fd(read)?, kept: Vec::new() }, write))
    }

    /// Reads until everyone who could write has closed the other end. What is over the limit is read and dropped, so
    /// that the command does not wait for a reader.
    ///
    /// # Errors
    /// Reading failed.
    pub async fn read_to_end(&mut self) -> io::Result<()> {
        let mut piece = Vec::new();
        loop {
            piece.clear();
            piece.reserve(PIECE);
            if self.pipe.read_buf(&mut piece).await? == 0 {
                return Ok(());
            }
            let room = LIMIT - self.kept.len();
            self.kept.extend_from_slice(piece.get(..room).unwrap_or(&piece));
        }
    }

    /// What was kept.
    #[must_use]
    pub fn into_kept(self) -> Vec<u8> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn what_is_over_the_limit_is_read_and_dropped() {
        let (mut output, write) = Output::new().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            file.write_all(&vec![b'x'; LIMIT + 12345]).unwrap();
        });
        output.read_to_end().await.unwrap();
        writer.join().unwrap();
        assert_eq!(output.into_kept().len(), LIMIT);
    }
}
