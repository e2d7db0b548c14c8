//! The output of an ExecSync command: read to its end, stored up to a limit.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// The limit for one stream (CRI `ExecSync`: "the output is limited to 16 MB"). Unlimited output brought down
/// daemons (CVE-2022-1708, CVE-2022-31030).
pub const LIMIT: usize = 16 << 20;

/// Size of one read: the capacity of a pipe.
const CHUNK: usize = 64 << 10;

/// One output stream of a command.
#[derive(Debug)]
pub struct CapturedOutput {
    pipe: pipe::Receiver,
    stored: Vec<u8>,
}

impl CapturedOutput {
    /// Creates a pipe. Returns its reading end, and the end that the command writes to.
    ///
    /// # Errors
    /// The pipe cannot be created.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let flags = rustix::fs::fcntl_getfl(&read)?;
        rustix::fs::fcntl_setfl(&read, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok((Self { pipe: pipe::Receiver::from_owned_fd(read)?, stored: Vec::new() }, write))
    }

    /// Reads until all writers have closed the other end. Output beyond the limit is read and dropped, so
    /// that the command does not block.
    ///
    /// # Errors
    /// The read failed.
    pub async fn read_to_end(&mut self) -> io::Result<()> {
        let mut chunk = Vec::new();
        loop {
            chunk.clear();
            chunk.reserve(CHUNK);
            if self.pipe.read_buf(&mut chunk).await? == 0 {
                return Ok(());
            }
            let room = LIMIT - self.stored.len();
            self.stored.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
        }
    }

    /// Returns the stored output.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.stored
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn output_beyond_the_limit_is_read_and_dropped() {
        let (mut output, write) = CapturedOutput::new().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            file.write_all(&vec![b'x'; LIMIT + 12345]).unwrap();
        });
        output.read_to_end().await.unwrap();
        writer.join().unwrap();
        assert_eq!(output.into_bytes().len(), LIMIT);
    }
}
