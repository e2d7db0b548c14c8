//! Clients that are attached to a container. Nothing here blocks. Output is written to a client's socket as far as
//! the socket accepts it; a client that does not read fast enough is detached. Input stays in the client's pipe
//! until the container has read the input before it.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use berth_runtime::plan::FdSlot;
use berth_runtime::sys::{Context, pty};
use berth_runtime::wire::{Detachment, Event, Failure, Message, Outcome};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::client::{AttachedClient, ClientStream};
use crate::failure::{Answer, Origin, state, system};
use crate::input::Input;
use crate::services::Services;
use crate::watch::{EventSource, Watch};

/// The number of input bytes that are read at a time.
const READ_SIZE: usize = 16 << 10;

/// A container's input and terminal, and the clients that are attached to it.
#[derive(Debug)]
pub(crate) struct Attachments {
    container: Rc<str>,
    input: Input,
    /// The terminal's master.
    terminal: Option<OwnedFd>,
    clients: Vec<AttachedClient>,
}

/// The streams of a client that attaches: standard input, output and error.
#[derive(Debug)]
pub(crate) struct StreamSlots {
    pub(crate) slots: [Option<FdSlot>; 3],
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl StreamSlots {
    /// Takes the descriptors that the slots name, and makes them nonblocking.
    fn take(self) -> Result<[Option<OwnedFd>; 3], Failure> {
        let mut descriptors: Vec<_> = self.descriptors.into_iter().map(Some).collect();
        let mut take = |slot: Option<FdSlot>| -> Result<Option<OwnedFd>, Failure> {
            let Some(slot) = slot else { return Ok(None) };
            let place = usize::try_from(slot.0).ok().and_then(|slot| descriptors.get_mut(slot));
            let fd = place.and_then(Option::take).ok_or(Errno::BADF).on("descriptor", slot.0);
            let fd = fd.map_err(|error| system(&error))?;
            rustix::io::ioctl_fionbio(&fd, true).on("ioctl(FIONBIO)", "").map_err(|error| system(&error))?;
            Ok(Some(fd))
        };
        let [stdin, stdout, stderr] = self.slots;
        Ok([take(stdin)?, take(stdout)?, take(stderr)?])
    }
}

impl Attachments {
    pub(crate) fn new(container: Rc<str>, input: Input) -> Self {
        Self { container, input, terminal: None, clients: Vec::new() }
    }

    /// Stores the terminal's master, and a copy of it for input if the container has any.
    pub(crate) fn set_terminal(&mut self, terminal: OwnedFd, input: Option<OwnedFd>) {
        self.terminal = Some(terminal);
        self.input.replace(input);
    }

    /// Closes the terminal of a container that has ended.
    pub(crate) fn close_terminal(&mut self) {
        self.terminal = None;
    }

    /// Attaches a client to a running container. `open` says which of the container's outputs still exist; the others
    /// are closed for the client.
    pub(crate) fn attach(
        &mut self,
        origin: Origin,
        client: &str,
        streams: StreamSlots,
        open: [bool; 2],
        watch: &mut Watch,
    ) -> Answer {
        if self.position(client).is_some() {
            return Err(state(&format!("client {client}"), "attached already"));
        }
        let [stdin, stdout, stderr] = streams.take()?;
        let stdin = stdin.filter(|_| self.input.is_open());
        let [has_stdout, has_stderr] = open;
        let outputs = [stdout.filter(|_| has_stdout), stderr.filter(|_| has_stderr)];
        let mut client = AttachedClient::new(client, origin.connection, stdin, outputs);
        if let Err(error) = client.watch(&self.container, watch, self.input.is_empty()) {
            client.close_all(&self.container, watch);
            return Err(system(&error));
        }
        if !client.is_closed() {
            self.clients.push(client);
        }
        Ok(Outcome::Done)
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Answer {
        let what = || format!("container {}", self.container);
        let terminal = self.terminal.as_ref().ok_or_else(|| state(&what(), "without a terminal"))?;
        pty::resize(terminal.as_fd(), width, height).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    /// Handles an event of a client's stream.
    pub(crate) fn on_client(&mut self, client: &str, stream: ClientStream, services: &mut Services) {
        match stream {
            ClientStream::Stdin => self.read_input(client, services),
            // The other side never writes to an output: the event means that the client has closed it.
            ClientStream::Output(_) => self.close_stream(client, stream, &mut services.watch),
        }
    }

    fn read_input(&mut self, client: &str, services: &mut Services) {
        let Some(stdin) = self.find(client).and_then(AttachedClient::stdin) else { return };
        let piece = services.buffers.piece();
        piece.clear();
        piece.reserve(READ_SIZE);
        match rustix::io::read(stdin, rustix::buffer::spare_capacity(piece)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.input_ended(client, services),
            Ok(_) => {
                self.input.push(piece);
                self.flush_input(&mut services.watch);
            }
        }
    }

    /// Writes pending input to the container, as far as it accepts it.
    pub(crate) fn flush_input(&mut self, watch: &mut Watch) {
        match self.input.write() {
            Ok(()) => self.update_reads(watch),
            Err(_) => self.close_input(watch),
        }
    }

    /// Starts or stops to read the clients' input. They are read while the container has no pending input.
    fn update_reads(&mut self, watch: &mut Watch) {
        let Some(fd) = self.input.fd() else { return };
        let source = self.input_source();
        let (watched, empty) = (watch.contains(&source), self.input.is_empty());
        match (empty, watched) {
            (true, false) => return,
            (true, true) => watch.remove(fd, &source),
            (false, true) => {}
            (false, false) => {
                if let Err(error) = watch.add_for(fd, source, EventFlags::OUT) {
                    self.report_unwatched(&error);
                    return self.close_input(watch);
                }
            }
        }
        if self.input.is_finished() {
            return self.close_input(watch);
        }
        for client in &self.clients {
            if let Err(error) = client.set_reading(&self.container, watch, empty) {
                self.report_unwatched(&error);
            }
        }
    }

    fn report_unwatched(&self, error: &berth_runtime::sys::Error) {
        crate::report(&format!("failed to watch the input of container {}: {error}", self.container));
    }

    /// Handles the end of a client's input. Ends the container's input or detaches the client, see
    /// [`Input::ends_with_client`].
    fn input_ended(&mut self, client: &str, services: &mut Services) {
        if self.input.ends_with_client() && self.terminal.is_none() {
            return self.end_input(&mut services.watch);
        }
        self.detach(client, Detachment::InputEnded, services);
    }

    /// Closes the container's input, and the input of all its clients.
    fn close_input(&mut self, watch: &mut Watch) {
        if let Some(fd) = self.input.close() {
            watch.remove(fd.as_fd(), &self.input_source());
        }
        self.close_streams(ClientStream::Stdin, watch);
    }

    /// Closes the container's input as soon as it has read the pending input.
    fn end_input(&mut self, watch: &mut Watch) {
        match self.input.end() {
            true => self.close_input(watch),
            false => self.close_streams(ClientStream::Stdin, watch),
        }
    }

    /// Writes a piece of the container's output, which is in the shared buffer, to the clients.
    pub(crate) fn send_output(&mut self, place: usize, services: &mut Services) {
        let bytes = services.buffers.piece();
        let mut behind = Vec::new();
        let mut gone = Vec::new();
        for client in &self.clients {
            let Some(output) = client.output(place) else { continue };
            match rustix::io::retry_on_intr(|| rustix::io::write(output, bytes)) {
                Ok(written) if written == bytes.len() => {}
                Ok(_) | Err(Errno::AGAIN) => behind.push(client.id().to_owned()),
                Err(_) => gone.push(client.id().to_owned()),
            }
        }
        for client in gone {
            self.close_stream(&client, ClientStream::Output(place), &mut services.watch);
        }
        for client in behind {
            self.detach(&client, Detachment::Behind, services);
        }
    }

    /// Detaches a client and reports why. If the container's input depends on this client, it ends.
    fn detach(&mut self, id: &str, why: Detachment, services: &mut Services) {
        let Some(client) = self.find(id) else { return };
        let (connection, wrote) = (client.connection(), client.stdin().is_some());
        let last = wrote && self.input.ends_with_client() && self.terminal.is_none();
        for stream in ClientStream::ALL {
            self.close_stream(id, stream, &mut services.watch);
        }
        if last {
            self.end_input(&mut services.watch);
        }
        let event = Event::Detached { client: id.to_owned(), why };
        services.connections.send(connection, Message::Event(event), Vec::new(), &mut services.watch);
    }

    /// Detaches all clients of a container that has ended. They are notified by the container's exit event.
    pub(crate) fn detach_all(&mut self, watch: &mut Watch) {
        self.close_input(watch);
        for stream in ClientStream::ALL {
            self.close_streams(stream, watch);
        }
    }

    /// Closes a stream of all clients, because the container's stream has ended.
    pub(crate) fn close_streams(&mut self, stream: ClientStream, watch: &mut Watch) {
        for client in &mut self.clients {
            client.close(&self.container, stream, watch);
        }
        self.clients.retain(|client| !client.is_closed());
    }

    fn close_stream(&mut self, client: &str, stream: ClientStream, watch: &mut Watch) {
        let Some(place) = self.position(client) else { return };
        let Some(client) = self.clients.get_mut(place) else { return };
        client.close(&self.container, stream, watch);
        if client.is_closed() {
            self.clients.remove(place);
        }
    }

    fn position(&self, client: &str) -> Option<usize> {
        self.clients.iter().position(|other| other.id() == client)
    }

    fn find(&self, client: &str) -> Option<&AttachedClient> {
        self.clients.iter().find(|other| other.id() == client)
    }

    fn input_source(&self) -> EventSource {
        EventSource::Input(self.container.to_string())
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    const ORIGIN: Origin = Origin { connection: 1, request: 1 };

    /// A container's attachments with input that ends with its first client, and the container's end of the input.
    fn attachments() -> (Attachments, OwnedFd, Watch) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (Attachments::new("c1".into(), Input::new(Some(write), true)), read, Watch::new().unwrap())
    }

    /// The slots of a client with all three streams, and the client's ends of input and output.
    fn client() -> (StreamSlots, OwnedFd, OwnedFd) {
        let (stdin, writes) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (reads, stdout) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (_, stderr) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let slots = [0, 1, 2].map(|slot| Some(FdSlot(slot)));
        (StreamSlots { slots, descriptors: vec![stdin, stdout, stderr] }, writes, reads)
    }

    #[test]
    fn a_client_attaches_once() {
        let (mut attachments, _stdin, mut watch) = attachments();
        let (streams, _writes, _reads) = client();
        assert!(attachments.attach(ORIGIN, "a", streams, [true, true], &mut watch).is_ok());
        let (streams, ..) = client();
        let again = attachments.attach(ORIGIN, "a", streams, [true, true], &mut watch);
        assert!(matches!(again, Err(Failure::State { .. })), "{again:?}");
    }

    #[test]
    fn a_slot_without_a_descriptor_is_an_error() {
        let (mut attachments, _stdin, mut watch) = attachments();
        let streams = StreamSlots { slots: [None, Some(FdSlot(4)), None], descriptors: Vec::new() };
        assert!(attachments.attach(ORIGIN, "a", streams, [true, true], &mut watch).is_err());
    }

    #[test]
    fn outputs_that_the_container_has_closed_are_closed_for_a_client() {
        let (mut attachments, _stdin, mut watch) = attachments();
        let (streams, _writes, reads) = client();
        attachments.attach(ORIGIN, "a", streams, [false, true], &mut watch).unwrap();
        assert_eq!(rustix::io::read(&reads, &mut [0; 8]), Ok(0));
        assert!(attachments.find("a").unwrap().output(1).is_some());
    }

    #[test]
    fn clients_are_not_read_while_the_container_does_not_read() {
        let (mut attachments, stdin, mut watch) = attachments();
        let (streams, ..) = client();
        attachments.attach(ORIGIN, "a", streams, [true, true], &mut watch).unwrap();
        let reading = EventSource::Client("c1".to_owned(), "a".to_owned(), ClientStream::Stdin);
        assert!(watch.contains(&reading));
        attachments.input.push(&vec![b'x'; 100_000]);
        attachments.flush_input(&mut watch);
        assert!(!watch.contains(&reading) && watch.contains(&attachments.input_source()));
        let mut left = 100_000;
        while left > 0 {
            left -= rustix::io::read(&stdin, &mut vec![0; left]).unwrap();
            attachments.flush_input(&mut watch);
        }
        assert!(watch.contains(&reading) && !watch.contains(&attachments.input_source()));
    }

    #[test]
    fn all_clients_are_detached_at_the_end() {
        let (mut attachments, stdin, mut watch) = attachments();
        let (streams, _writes, reads) = client();
        attachments.attach(ORIGIN, "a", streams, [true, true], &mut watch).unwrap();
        attachments.detach_all(&mut watch);
        assert!(attachments.clients.is_empty());
        assert_eq!(rustix::io::read(&reads, &mut [0; 8]), Ok(0));
        assert_eq!(rustix::io::read(&stdin, &mut [0; 8]), Ok(0));
    }
}
