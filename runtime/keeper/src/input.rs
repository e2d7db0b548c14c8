//! The standard input of a container, which its attached clients share.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Input that goes to a container as fast as the container reads it.
#[derive(Debug)]
pub(crate) struct Input {
    /// The pipe's writing end, or the terminal's master. `None` if the container has no input or the input has
    /// ended.
    fd: Option<OwnedFd>,
    /// Whether it ends when its first client's input ends.
    once: bool,
    /// Input that the container has not read yet. While there is any, the clients are not read.
    pending: Vec<u8>,
    /// Whether it ends when the container has read that.
    ending: bool,
}

/// The container has closed its input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InputClosed;

impl Input {
    /// `once`: it ends when its first client's input ends (CRI: `ContainerConfig.stdin_once`).
    pub(crate) fn new(fd: Option<OwnedFd>, once: bool) -> Self {
        Self { fd, once, pending: Vec::new(), ending: false }
    }

    /// Continues with another descriptor: the terminal's master.
    pub(crate) fn replace(&mut self, fd: Option<OwnedFd>) {
        self.fd = fd;
    }

    /// The descriptor, until the input has ended.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// Whether clients can still write.
    pub(crate) fn is_open(&self) -> bool {
        self.fd.is_some() && !self.ending
    }

    /// Whether it ends when its first client's input ends.
    pub(crate) fn ends_with_client(&self) -> bool {
        self.once
    }

    /// Whether the container has read everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Adds input of a client.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Writes pending input, as far as the container accepts it.
    ///
    /// # Errors
    /// The container has closed its input.
    pub(crate) fn write(&mut self) -> Result<(), InputClosed> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let mut written = 0;
        let result = loop {
            let rest = self.pending.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(());
            }
            match rustix::io::write(fd, rest) {
                Ok(0) | Err(Errno::AGAIN) => break Ok(()),
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(_) => break Err(InputClosed),
            }
        };
        self.pending.drain(..written);
        if self.pending.is_empty() {
            // The memory is released while nobody writes.
            self.pending = Vec::new();
        }
        result
    }

    /// Ends the input as soon as the container has read the pending input. Returns whether it has already.
    pub(crate) fn end(&mut self) -> bool {
        self.ending = true;
        self.is_finished()
    }

    /// Whether it is to end and the container has read everything.
    pub(crate) fn is_finished(&self) -> bool {
        self.ending && self.pending.is_empty()
    }

    /// Ends the input at once. Returns the descriptor, which is still watched.
    pub(crate) fn close(&mut self) -> Option<OwnedFd> {
        self.pending = Vec::new();
        self.fd.take()
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn piped() -> (OwnedFd, Input) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (read, Input::new(Some(write), true))
    }

    #[test]
    fn input_waits_until_the_container_reads() {
        let (read, mut input) = piped();
        let bytes = vec![b'x'; 100_000];
        input.push(&bytes);
        assert_eq!(input.write(), Ok(()));
        assert!(!input.is_empty(), "a pipe has room for 64 KiB");
        assert!(!input.end(), "it ends after the pending input");
        let mut received = 0;
        while received < bytes.len() {
            received += rustix::io::read(&read, &mut vec![0; bytes.len()]).unwrap();
            assert_eq!(input.write(), Ok(()));
        }
        assert!(input.is_finished() && !input.is_open());
    }

    #[test]
    fn a_container_that_closes_its_input_is_noticed() {
        let (read, mut input) = piped();
        drop(read);
        input.push(b"x");
        assert_eq!(input.write(), Err(InputClosed));
    }

    #[test]
    fn closing_drops_pending_input() {
        let (_read, mut input) = piped();
        input.push(&vec![b'x'; 100_000]);
        assert_eq!(input.write(), Ok(()));
        assert!(input.close().is_some());
        assert!(input.is_empty() && input.fd().is_none());
    }
}
