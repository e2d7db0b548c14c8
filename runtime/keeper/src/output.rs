//! The output of a container and its log. Output is copied one piece at a time, so that a container that writes fast
//! does not block the others of its pod.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use berth_runtime::sys;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::lines::{Lines, Stream};
use crate::log::Log;
use crate::services::Services;
use crate::stamp::{Stamp, now};
use crate::watch::{EventSource, Watch};

/// The number of bytes that are read at a time: a pipe's capacity.
const READ_SIZE: usize = 64 << 10;

/// A stream that the keeper reads and logs.
#[derive(Debug)]
struct OutputStream {
    fd: OwnedFd,
    lines: Lines,
    /// Whether it is not watched because the writer is blocked.
    paused: bool,
}

/// The output streams of a container and its log.
#[derive(Debug)]
pub(crate) struct Outputs {
    container: Rc<str>,
    /// By their index: standard output and standard error.
    streams: [Option<OutputStream>; 2],
    log: Log,
}

impl Outputs {
    /// `streams` are the reading ends of standard output and standard error.
    pub(crate) fn new(container: Rc<str>, streams: [Option<OwnedFd>; 2], log: Log) -> Self {
        let [stdout, stderr] = streams;
        let stream = |fd: Option<OwnedFd>, stream| {
            fd.map(|fd| OutputStream { fd, lines: Lines::new(stream), paused: false })
        };
        let streams = [stream(stdout, Stream::Stdout), stream(stderr, Stream::Stderr)];
        Self { container, streams, log }
    }

    /// Stores the terminal's master as the only stream.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) {
        let lines = Lines::new(Stream::Stdout);
        self.streams = [Some(OutputStream { fd: master, lines, paused: false }), None];
    }

    /// Which streams are open.
    pub(crate) fn open(&self) -> [bool; 2] {
        self.streams.each_ref().map(Option::is_some)
    }

    /// The log that the streams are written to.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Switches the log to another file, see [`Log::reopen`].
    pub(crate) fn reopen_log(&mut self, opened: Option<OwnedFd>, services: &mut Services) -> sys::Result<()> {
        self.log.reopen(opened)?;
        services.writer.reopened(&mut self.log, &mut services.watch);
        Ok(())
    }

    /// Starts to read the streams.
    pub(crate) fn watch(&self, watch: &mut Watch) -> sys::Result<()> {
        for (place, stream) in self.streams.iter().enumerate() {
            if let Some(stream) = stream {
                watch.add(stream.fd.as_fd(), self.source(place))?;
            }
        }
        Ok(())
    }

    /// Whether output must not be read, because the writer could not accept it.
    pub(crate) fn must_wait(&self, services: &Services) -> bool {
        services.writer.is_blocked() && self.log.keeps()
    }

    /// Reads one piece of a stream into the shared buffer and the log. Returns whether something was read. Reading
    /// nothing means the end; a terminal reports it as EIO.
    pub(crate) fn read(&mut self, place: usize, services: &mut Services) -> Result<bool, Errno> {
        let Some(Some(stream)) = self.streams.get_mut(place) else { return Ok(false) };
        let (piece, records) = services.buffers.parts();
        piece.clear();
        piece.reserve(READ_SIZE);
        if rustix::io::read(&stream.fd, spare_capacity(piece))? == 0 {
            return Ok(false);
        }
        if self.log.keeps() {
            records.clear();
            stream.lines.push(piece, &Stamp::of(now()), records);
            services.writer.write(&mut self.log, records, &mut services.watch);
        }
        Ok(true)
    }

    /// Closes a stream, and writes its last incomplete line. Returns whether it was open.
    pub(crate) fn close(&mut self, place: usize, services: &mut Services) -> bool {
        let Some(mut stream) = self.streams.get_mut(place).and_then(Option::take) else { return false };
        let records = services.buffers.records();
        records.clear();
        stream.lines.finish(&Stamp::of(now()), records);
        services.writer.write(&mut self.log, records, &mut services.watch);
        services.watch.remove(stream.fd.as_fd(), &self.source(place));
        true
    }

    /// Stops watching the streams while the writer is blocked. Ignoring their events would not be enough: epoll(7)
    /// always reports the end of a pipe.
    pub(crate) fn pause(&mut self, services: &mut Services) {
        if !self.must_wait(services) {
            return;
        }
        let container = &self.container;
        for (place, stream) in self.streams.iter_mut().enumerate() {
            let source = EventSource::Output(container.to_string(), place);
            if let Some(stream) = stream
                && services.watch.contains(&source)
            {
                services.watch.remove(stream.fd.as_fd(), &source);
                stream.paused = true;
            }
        }
    }

    /// Watches the paused streams again.
    pub(crate) fn resume(&mut self, watch: &mut Watch) {
        let container = &self.container;
        for (place, stream) in self.streams.iter_mut().enumerate() {
            let Some(stream) = stream.as_mut().filter(|stream| stream.paused) else { continue };
            stream.paused = false;
            let source = EventSource::Output(container.to_string(), place);
            if let Err(error) = watch.add(stream.fd.as_fd(), source) {
                crate::report(&format!("failed to watch the output of container {container}: {error}"));
            }
        }
    }

    fn source(&self, place: usize) -> EventSource {
        EventSource::Output(self.container.to_string(), place)
    }
}
