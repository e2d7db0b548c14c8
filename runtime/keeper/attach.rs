//! Clients that are attached to containers. Nothing here waits for one: output goes to a client as far as its socket takes
//! it, and one that is further behind is let go; input waits in its pipe until the container takes what came before.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::plan::FdSlot;
use berth_runtime::sys::{self, Context, pty};
use berth_runtime::wire::{Detachment, Event, Failure, Message, Outcome};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::calls::{Answer, not_found, state};
use crate::keeper::{Keeper, Origin, system};
use crate::output::Buffers;
use crate::watch::{Watch, Watched};

/// Bytes of input that are read at once.
const PIECE: usize = 16 << 10;

/// An attached client.
#[derive(Debug)]
pub(crate) struct Client {
    id: String,
    /// The connection that has attached it.
    connection: u64,
    stdin: Option<OwnedFd>,
    /// By their place, as the container's.
    outputs: [Option<OwnedFd>; 2],
}

/// One of a client's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Stdin,
    Output(usize),
}

impl Input {
    pub(crate) fn new(fd: Option<OwnedFd>, once: bool) -> Self {
        Self { fd, once, unsent: Vec::new(), ending: false }
    }
}

impl Part {
    pub(crate) const ALL: [Self; 3] = [Self::Stdin, Self::Output(0), Self::Output(1)];
}

/// A container's standard input, as its clients share it.
#[derive(Debug)]
pub(crate) struct Input {
    /// The pipe's writing end, or the terminal's master; none where there is none, and after its end.
    pub(crate) fd: Option<OwnedFd>,
    /// It ends with the input of its first client.
    pub(crate) once: bool,
    /// What the container has not taken yet. While there is any, no client is read.
    unsent: Vec<u8>,
    /// It ends when that is taken.
    ending: bool,
}

/// Which client of which container.
type Who<'a> = (&'a str, &'a str);

impl Keeper {
    /// Attaches a client to a container that runs.
    pub(crate) fn attach(
        &mut self,
        origin: Origin,
        who: Who<'_>,
        slots: [Option<FdSlot>; 3],
        descriptors: Vec<OwnedFd>,
    ) -> Answer {
        let (id, client) = who;
        self.running(id)?;
        let Some(container) = self.containers.get_mut(id) else { return Err(not_found(id)) };
        if container.clients.iter().any(|known| known.id == client) {
            return Err(state(&format!("client {client}"), "attached already"));
        }
        let mut descriptors: Vec<_> = descriptors.into_iter().map(Some).collect();
        let mut taken = |slot: Option<FdSlot>| -> Result<Option<OwnedFd>, Failure> {
            let Some(slot) = slot else { return Ok(None) };
            let place = usize::try_from(slot.0).ok().and_then(|slot| descriptors.get_mut(slot));
            let fd = place.and_then(Option::take).ok_or(Errno::BADF).on("descriptor", slot.0);
            let fd = fd.map_err(|error| system(&error))?;
            rustix::io::ioctl_fionbio(&fd, true).on("ioctl(FIONBIO)", "").map_err(|error| system(&error))?;
            Ok(Some(fd))
        };
        let [stdin, stdout, stderr] = slots;
        let stdin = taken(stdin)?.filter(|_| container.input.fd.is_some() && !container.input.ending);
        let mut outputs = [taken(stdout)?, taken(stderr)?];
        for (output, of_container) in outputs.iter_mut().zip(&container.outputs) {
            // A stream that has ended, or that a terminal does not have, has ended for the client.
            output.take_if(|_| of_container.is_none());
        }
        let mut client = Client { id: client.to_owned(), connection: origin.connection, stdin, outputs };
        if let Err(error) = client.watch(id, &mut self.watch, container.input.unsent.is_empty()) {
            client.close_all(id, &mut self.watch);
            return Err(system(&error));
        }
        if !client.has_nothing() {
            container.clients.push(client);
        }
        Ok(Outcome::Done)
    }

    /// A container's terminal has another size.
    pub(crate) fn resize(&mut self, id: &str, width: u16, height: u16) -> Answer {
        let container = self.containers.get(id).ok_or_else(|| not_found(&format!("container {id}")))?;
        let terminal = container.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| state(&format!("container {id}"), "without a terminal"))?;
        pty::resize(terminal.as_fd(), width, height).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    /// Something has happened to a client's stream.
    pub(crate) fn client(&mut self, id: &str, client: &str, part: Part) {
        match part {
            Part::Stdin => self.client_writes((id, client)),
            // Nothing is ever written to an output from the other side: the client has closed it.
            Part::Output(_) => self.close_part((id, client), part),
        }
    }

    fn client_writes(&mut self, who: Who<'_>) {
        let (id, client) = who;
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(stdin) = container.clients.iter().find(|c| c.id == client).and_then(|c| c.stdin.as_ref())
        else {
            return;
        };
        let Buffers { piece, .. } = &mut self.buffers;
        piece.clear();
        piece.reserve(PIECE);
        match rustix::io::read(stdin, rustix::buffer::spare_capacity(piece)) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => self.input_ended(who),
            Ok(_) => {
                container.input.unsent.extend_from_slice(piece);
                self.feed(id);
            }
        }
    }

    /// Writes what a container has not taken yet, as far as it takes it.
    pub(crate) fn feed(&mut self, id: &str) {
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
        self.hold_clients(id);
    }

    /// Clients are read while the container takes what they write.
    fn hold_clients(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(fd) = &container.input.fd else { return };
        let full = Watched::Input(id.to_owned());
        let held = self.watch.has(&full);
        if container.input.unsent.is_empty() {
            container.input.unsent = Vec::new();
            if !held {
                return;
            }
            self.watch.remove(fd.as_fd(), &full);
        } else if !held && let Err(error) = self.watch.add_for(fd.as_fd(), full, EventFlags::OUT) {
            crate::report(&format!("the input of container {id}: {error}"));
            return self.close_input(id);
        }
        if container.input.ending && container.input.unsent.is_empty() {
            return self.close_input(id);
        }
        let read = container.input.unsent.is_empty();
        for client in &container.clients {
            if let Err(error) = client.read(id, &mut self.watch, read) {
                crate::report(&format!("the input of container {id}: {error}"));
            }
        }
    }

    /// A client writes no more: the end of the container's input or of the client, see [`Input::once`].
    fn input_ended(&mut self, who: Who<'_>) {
        let (id, _) = who;
        let Some(container) = self.containers.get(id) else { return };
        if container.input.once && container.terminal.is_none() {
            return self.end_input(id);
        }
        self.let_go(who, Detachment::InputEnded);
    }

    /// The end of a container's input, and of that of all its clients.
    pub(crate) fn close_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some(fd) = container.input.fd.take() {
            self.watch.remove(fd.as_fd(), &Watched::Input(id.to_owned()));
        }
        container.input.unsent = Vec::new();
        self.close_of_clients(id, Part::Stdin);
    }

    /// The container's input ends as soon as it has taken what was written.
    fn end_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.input.unsent.is_empty() {
            return self.close_input(id);
        }
        container.input.ending = true;
        self.close_of_clients(id, Part::Stdin);
    }

    fn close_part(&mut self, who: Who<'_>, part: Part) {
        let (id, client) = who;
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(place) = container.clients.iter().position(|known| known.id == client) else { return };
        let Some(client) = container.clients.get_mut(place) else { return };
        client.close(id, part, &mut self.watch);
        if client.has_nothing() {
            container.clients.remove(place);
        }
    }

    /// Output of a container has come: its clients get it.
    pub(crate) fn give_to_clients(&mut self, id: &str, place: usize) {
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
            self.close_part((id, &client), Part::Output(place));
        }
        for client in behind {
            self.let_go((id, &client), Detachment::Behind);
        }
    }

    /// Lets a client go and tells it why; where the container's input lives by it, that ends.
    fn let_go(&mut self, who: Who<'_>, why: Detachment) {
        let (id, client) = who;
        let Some(container) = self.containers.get_mut(id) else { return };
        let found = container.clients.iter().find(|known| known.id == client);
        let Some(connection) = found.map(|client| client.connection) else { return };
        let wrote = found.is_some_and(|client| client.stdin.is_some());
        let last = wrote && container.input.once && container.terminal.is_none();
        for part in Part::ALL {
            self.close_part(who, part);
        }
        if last {
            self.end_input(id);
        }
        let event = Event::Detached { client: client.to_owned(), why };
        self.send(connection, Message::Event(event), Vec::new());
    }

    /// A container has ended: its clients hear of that by its own event.
    pub(crate) fn let_all_go(&mut self, id: &str) {
        self.close_input(id);
        for part in Part::ALL {
            self.close_of_clients(id, part);
        }
    }

    /// A container's stream has ended: so it has for its clients.
    pub(crate) fn close_of_clients(&mut self, id: &str, part: Part) {
        let Some(container) = self.containers.get(id) else { return };
        let clients: Vec<_> = container.clients.iter().map(|client| client.id.clone()).collect();
        for client in clients {
            self.close_part((id, &client), part);
        }
    }
}

impl Client {
    fn has_nothing(&self) -> bool {
        self.stdin.is_none() && self.outputs.iter().all(Option::is_none)
    }

    fn watched(&self, container: &str, part: Part) -> Watched {
        Watched::Client(container.to_owned(), self.id.clone(), part)
    }

    fn watch(&self, container: &str, watch: &mut Watch, read: bool) -> sys::Result<()> {
        self.read(container, watch, read)?;
        for (place, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output {
                watch.add(output.as_fd(), self.watched(container, Part::Output(place)))?;
            }
        }
        Ok(())
    }

    /// Whether its input is looked at. Where not, it is not even watched: the end of a pipe is told unasked.
    fn read(&self, container: &str, watch: &mut Watch, wanted: bool) -> sys::Result<()> {
        let Some(stdin) = &self.stdin else { return Ok(()) };
        let watched = self.watched(container, Part::Stdin);
        match (wanted, watch.has(&watched)) {
            (true, false) => watch.add(stdin.as_fd(), watched)?,
            (false, true) => watch.remove(stdin.as_fd(), &watched),
            _ => {}
        }
        Ok(())
    }

    fn close_all(&mut self, container: &str, watch: &mut Watch) {
        for part in Part::ALL {
            self.close(container, part, watch);
        }
    }

    fn close(&mut self, container: &str, part: Part, watch: &mut Watch) {
        let watched = self.watched(container, part);
        let fd = match part {
            Part::Stdin => self.stdin.take(),
            Part::Output(place) => self.outputs.get_mut(place).and_then(Option::take),
        };
        if let Some(fd) = fd {
            watch.remove(fd.as_fd(), &watched);
        }
    }
}
