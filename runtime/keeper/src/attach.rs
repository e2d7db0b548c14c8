//! Clients that are attached to containers. Nothing here blocks. Output is written to a client's socket as far as
//! the socket accepts it; a client that does not read fast enough is detached. Input stays in the client's pipe
//! until the container has read the input before it.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::plan::FdSlot;
use berth_runtime::sys::{self, Context, pty};
use berth_runtime::wire::{Detachment, Event, Failure, Message, Outcome};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::calls::{Answer, not_found, state};
use crate::keeper::{Keeper, Origin, system};
use crate::output::Buffers;
use crate::watch::{EventSource, Watch};

/// The number of input bytes that are read at a time.
const READ_SIZE: usize = 16 << 10;

/// An attached client.
#[derive(Debug)]
pub(crate) struct AttachedClient {
    id: String,
    /// The connection that attached it.
    connection: u64,
    stdin: Option<OwnedFd>,
    /// By their index, as in the container.
    outputs: [Option<OwnedFd>; 2],
}

/// A stream of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientStream {
    Stdin,
    Output(usize),
}

impl Input {
    pub(crate) fn new(fd: Option<OwnedFd>, once: bool) -> Self {
        Self { fd, once, unsent: Vec::new(), ending: false }
    }
}

impl ClientStream {
    pub(crate) const ALL: [Self; 3] = [Self::Stdin, Self::Output(0), Self::Output(1)];
}

/// A container's standard input, which its clients share.
#[derive(Debug)]
pub(crate) struct Input {
    /// The pipe's writing end, or the terminal's master. `None` if the container has no input or the input has
    /// ended.
    pub(crate) fd: Option<OwnedFd>,
    /// Whether it ends when its first client's input ends.
    pub(crate) once: bool,
    /// Input that the container has not read yet. While there is any, the clients are not read.
    unsent: Vec<u8>,
    /// Whether it ends when the container has read that.
    ending: bool,
}

/// The id of a container, and the id of one of its clients.
type ClientId<'a> = (&'a str, &'a str);

impl Keeper {
    /// Attaches a client to a running container.
    pub(crate) fn attach(
        &mut self,
        origin: Origin,
        ids: ClientId<'_>,
        slots: [Option<FdSlot>; 3],
        descriptors: Vec<OwnedFd>,
    ) -> Answer {
        let (id, client) = ids;
        self.running(id)?;
        let Some(container) = self.containers.get_mut(id) else { return Err(not_found(id)) };
        if container.clients.iter().any(|other| other.id == client) {
            return Err(state(&format!("client {client}"), "attached already"));
        }
        let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
        let mut take_fd = |slot: Option<FdSlot>| -> Result<Option<OwnedFd>, Failure> {
            let Some(slot) = slot else { return Ok(None) };
            let place = usize::try_from(slot.0).ok().and_then(|slot| descriptors.get_mut(slot));
            let fd = place.and_then(Option::take).ok_or(Errno::BADF).on("descriptor", slot.0);
            let fd = fd.map_err(|error| system(&error))?;
            rustix::io::ioctl_fionbio(&fd, true).on("ioctl(FIONBIO)", "").map_err(|error| system(&error))?;
            Ok(Some(fd))
        };
        let [stdin, stdout, stderr] = slots;
        let stdin = take_fd(stdin)?.filter(|_| container.input.fd.is_some() && !container.input.ending);
        let mut outputs = [take_fd(stdout)?, take_fd(stderr)?];
        for (output, of_container) in outputs.iter_mut().zip(&container.outputs) {
            // A stream that the container has closed, or that does not exist because it has a terminal, is closed
            // for the client.
            output.take_if(|_| of_container.is_none());
        }
        let mut client =
            AttachedClient { id: client.to_owned(), connection: origin.connection, stdin, outputs };
        if let Err(error) = client.watch(id, &mut self.watch, container.input.unsent.is_empty()) {
            client.close_all(id, &mut self.watch);
            return Err(system(&error));
        }
        if !client.is_closed() {
            container.clients.push(client);
        }
        Ok(Outcome::Done)
    }

    /// Sets the size of a container's terminal.
    pub(crate) fn resize(&mut self, id: &str, width: u16, height: u16) -> Answer {
        let container = self.containers.get(id).ok_or_else(|| not_found(&format!("container {id}")))?;
        let terminal = container.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| state(&format!("container {id}"), "without a terminal"))?;
        pty::resize(terminal.as_fd(), width, height).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    /// Handles an event of a client's stream.
    pub(crate) fn client_event(&mut self, id: &str, client: &str, stream: ClientStream) {
        match stream {
            ClientStream::Stdin => self.read_client_input((id, client)),
            // The other side never writes to an output: the event means that the client has closed it.
            ClientStream::Output(_) => self.close_stream((id, client), stream),
        }
    }

    fn read_client_input(&mut self, ids: ClientId<'_>) {
        let (id, client) = ids;
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(stdin) = container.clients.iter().find(|c| c.id == client).and_then(|c| c.stdin.as_ref())
        else {
            return;
        };
        let Buffers { piece, .. } = &mut self.buffers;
        piece.clear();
        piece.reserve(READ_SIZE);
        match rustix::io::read(stdin, rustix::buffer::spare_capacity(piece)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.input_ended(ids),
            Ok(_) => {
                container.input.unsent.extend_from_slice(piece);
                self.flush_input(id);
            }
        }
    }

    /// Writes pending input to a container, as far as it accepts it.
    pub(crate) fn flush_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Input { fd, unsent, .. } = &mut container.input;
        let Some(fd) = fd else { return };
        let mut written = 0;
        let broken = loop {
            let rest = unsent.get(written..).unwrap_or_default();
            if rest.is_empty() {
                break false;
            }
            match rustix::io::write(&*fd, rest) {
                Ok(0) | Err(Errno::AGAIN) => break false,
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                // The container has closed its input.
                Err(_) => break true,
            }
        };
        unsent.drain(..written);
        if broken {
            return self.close_input(id);
        }
        self.update_client_reads(id);
    }

    /// Starts or stops to read the clients' input. They are read while the container has no pending input.
    fn update_client_reads(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(fd) = &container.input.fd else { return };
        let source = EventSource::Input(id.to_owned());
        let watched = self.watch.contains(&source);
        if container.input.unsent.is_empty() {
            container.input.unsent = Vec::new();
            if !watched {
                return;
            }
            self.watch.remove(fd.as_fd(), &source);
        } else if !watched && let Err(error) = self.watch.add_for(fd.as_fd(), source, EventFlags::OUT) {
            crate::report(&format!("failed to watch the input of container {id}: {error}"));
            return self.close_input(id);
        }
        if container.input.ending && container.input.unsent.is_empty() {
            return self.close_input(id);
        }
        let read = container.input.unsent.is_empty();
        for client in &container.clients {
            if let Err(error) = client.set_reading(id, &mut self.watch, read) {
                crate::report(&format!("failed to watch the input of container {id}: {error}"));
            }
        }
    }

    /// Handles the end of a client's input. Ends the container's input or detaches the client, see
    /// [`Input::once`].
    fn input_ended(&mut self, ids: ClientId<'_>) {
        let (id, _) = ids;
        let Some(container) = self.containers.get(id) else { return };
        if container.input.once && container.terminal.is_none() {
            return self.end_input(id);
        }
        self.detach(ids, Detachment::InputEnded);
    }

    /// Closes a container's input, and the input of all its clients.
    pub(crate) fn close_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(fd) = container.input.fd.take() {
            self.watch.remove(fd.as_fd(), &EventSource::Input(id.to_owned()));
        }
        container.input.unsent = Vec::new();
        self.close_client_streams(id, ClientStream::Stdin);
    }

    /// Closes a container's input as soon as it has read the pending input.
    fn end_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.input.unsent.is_empty() {
            return self.close_input(id);
        }
        container.input.ending = true;
        self.close_client_streams(id, ClientStream::Stdin);
    }

    fn close_stream(&mut self, ids: ClientId<'_>, stream: ClientStream) {
        let (id, client) = ids;
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(place) = container.clients.iter().position(|other| other.id == client) else { return };
        let Some(client) = container.clients.get_mut(place) else { return };
        client.close(id, stream, &mut self.watch);
        if client.is_closed() {
            container.clients.remove(place);
        }
    }

    /// Writes a container's output to its clients.
    pub(crate) fn send_to_clients(&mut self, id: &str, place: usize) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let bytes = &self.buffers.piece;
        let mut behind = Vec::new();
        let mut gone = Vec::new();
        for client in &container.clients {
            let Some(Some(output)) = client.outputs.get(place) else { continue };
            match rustix::io::retry_on_intr(|| rustix::io::write(output, bytes)) {
                Ok(written) if written == bytes.len() => {}
                Ok(_) | Err(Errno::AGAIN) => behind.push(client.id.clone()),
                Err(_) => gone.push(client.id.clone()),
            }
        }
        for client in gone {
            self.close_stream((id, &client), ClientStream::Output(place));
        }
        for client in behind {
            self.detach((id, &client), Detachment::Behind);
        }
    }

    /// Detaches a client and reports why. If the container's input depends on this client, it ends.
    fn detach(&mut self, ids: ClientId<'_>, why: Detachment) {
        let (id, client) = ids;
        let Some(container) = self.containers.get_mut(id) else { return };
        let attached = container.clients.iter().find(|other| other.id == client);
        let Some(connection) = attached.map(|client| client.connection) else { return };
        let wrote = attached.is_some_and(|client| client.stdin.is_some());
        let last = wrote && container.input.once && container.terminal.is_none();
        for stream in ClientStream::ALL {
            self.close_stream(ids, stream);
        }
        if last {
            self.end_input(id);
        }
        let event = Event::Detached { client: client.to_owned(), why };
        self.send(connection, Message::Event(event), Vec::new());
    }

    /// Detaches all clients of a container that has ended. They are notified by the container's exit event.
    pub(crate) fn detach_all(&mut self, id: &str) {
        self.close_input(id);
        for stream in ClientStream::ALL {
            self.close_client_streams(id, stream);
        }
    }

    /// Closes a stream of all clients, because the container's stream has ended.
    pub(crate) fn close_client_streams(&mut self, id: &str, stream: ClientStream) {
        let Some(container) = self.containers.get(id) else { return };
        let clients: Vec<_> = container.clients.iter().map(|client| client.id.clone()).collect();
        for client in clients {
            self.close_stream((id, &client), stream);
        }
    }
}

impl AttachedClient {
    fn is_closed(&self) -> bool {
        self.stdin.is_none() && self.outputs.iter().all(Option::is_none)
    }

    fn source(&self, container: &str, stream: ClientStream) -> EventSource {
        EventSource::Client(container.to_owned(), self.id.clone(), stream)
    }

    fn watch(&self, container: &str, watch: &mut Watch, read: bool) -> sys::Result<()> {
        self.set_reading(container, watch, read)?;
        for (place, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output {
                watch.add(output.as_fd(), self.source(container, ClientStream::Output(place)))?;
            }
        }
        Ok(())
    }

    /// Sets whether the client's input is read. If not, it is not even watched, because epoll always reports the
    /// end of a pipe.
    fn set_reading(&self, container: &str, watch: &mut Watch, enabled: bool) -> sys::Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let source = self.source(container, ClientStream::Stdin);
        match (enabled, watch.contains(&source)) {
            (true, false) => watch.add(stdin.as_fd(), source)?,
            (false, true) => watch.remove(stdin.as_fd(), &source),
            _ => {}
        }
        Ok(())
    }

    fn close_all(&mut self, container: &str, watch: &mut Watch) {
        for stream in ClientStream::ALL {
            self.close(container, stream, watch);
        }
    }

    fn close(&mut self, container: &str, stream: ClientStream, watch: &mut Watch) {
        let source = self.source(container, stream);
        let fd = match stream {
            ClientStream::Stdin => self.stdin.take(),
            ClientStream::Output(place) => self.outputs.get_mut(place).and_then(Option::take),
        };
        if let Some(fd) = fd {
            watch.remove(fd.as_fd(), &source);
        }
    }
}
