//! The keeper's event loop.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use berth_runtime::procfs::Proc;
use berth_runtime::sys;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::wire::transport::{RECORD, Received, Report};
use berth_runtime::wire::{Event, Failure, InitFailure, Message, Outcome, Step};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use crate::calls::state;
use crate::connection::{Connection, Incoming};
use crate::container::{Container, State};
use crate::ending::Ending;
use crate::exec::Exec;
use crate::output::Buffers;
use crate::pause::Pause;
use crate::report;
use crate::stamp::now;
use crate::watch::{EventSource, Watch};
use crate::writer::Writer;

/// A call that waits for an answer, and its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) connection: u64,
    pub(crate) request: u64,
}

/// The keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) watch: Watch,
    listener: OwnedFd,
    children: OwnedFd,
    pub(crate) pause_program: OwnedFd,
    pub(crate) null: OwnedFd,
    pub(crate) proc: Proc,
    next_connection: u64,
    connections: BTreeMap<u64, Connection>,
    pub(crate) pause: Option<Pause>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) execs: BTreeMap<String, Exec>,
    pub(crate) buffers: Buffers,
    pub(crate) writer: Writer,
    /// Outputs that are not watched while the writer is blocked.
    pub(crate) paused: Vec<(String, usize)>,
    pub(crate) endings: Vec<Ending>,
    pub(crate) next_log: u32,
    incoming: Vec<u8>,
    pub(crate) shutting_down: bool,
}

impl Keeper {
    pub(crate) fn new(
        listener: OwnedFd,
        pause_program: OwnedFd,
        null: OwnedFd,
        proc: Proc,
    ) -> sys::Result<Self> {
        let mut keeper = Self {
            watch: Watch::new()?,
            children: process::child_signals()?,
            listener,
            pause_program,
            null,
            proc,
            next_connection: 1,
            connections: BTreeMap::new(),
            pause: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            buffers: Buffers::default(),
            writer: Writer::default(),
            paused: Vec::new(),
            endings: Vec::new(),
            next_log: 0,
            incoming: Vec::new(),
            shutting_down: false,
        };
        keeper.watch.add(keeper.listener.as_fd(), EventSource::Listener)?;
        keeper.watch.add(keeper.children.as_fd(), EventSource::Children)?;
        Ok(keeper)
    }

    /// Runs until the daemon ends it.
    pub(crate) fn run(mut self) -> sys::Result<()> {
        let mut events = Vec::with_capacity(16);
        while !self.shutting_down {
            let until = self.endings_at().into_iter().chain(self.writer.check_at()).min();
            self.watch.wait(&mut events, until)?;
            for event in &events {
                if let Some((source, flags)) = self.watch.source_of(event) {
                    self.handle_event(source, flags);
                }
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                self.continue_endings();
                self.writer.check_idle(&mut self.watch);
            }
        }
        Ok(())
    }

    fn handle_event(&mut self, source: EventSource, flags: EventFlags) {
        match source {
            EventSource::Listener => self.accept(),
            EventSource::Children => self.reap(),
            EventSource::Connection(id) => self.serve(id, flags),
            EventSource::PauseGate => self.pause_gate(),
            EventSource::ContainerGate(id) => drop(self.container_gate(&id)),
            EventSource::ExecGate(id) => drop(self.exec_gate(&id)),
            EventSource::Hooks(id) => self.hooks_event(&id),
            EventSource::Output(id, place) => self.output(&id, place),
            EventSource::Writer => self.writer_event(),
            EventSource::Input(id) => self.flush_input(&id),
            EventSource::Client(id, client, stream) => self.client_event(&id, &client, stream),
        }
    }

    fn accept(&mut self) {
        let socket = match sys::socket::accept(self.listener.as_fd()) {
            Ok(socket) => socket,
            Err(error) => return report(&error.to_string()),
        };
        let id = self.next_connection;
        self.next_connection += 1;
        match self.watch.add(socket.as_fd(), EventSource::Connection(id)) {
            Ok(()) => drop(self.connections.insert(id, Connection::new(socket))),
            Err(error) => report(&error.to_string()),
        }
    }

    fn serve(&mut self, id: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if flags.contains(EventFlags::OUT) && connection.flush().is_err() {
            return self.disconnect(id);
        }
        match connection.receive(&mut self.incoming) {
            Ok(Some(received)) => self.handle_message(id, received),
            Err(error) if error.would_block() => {}
            Ok(None) => return self.disconnect(id),
            Err(error) => {
                report(&format!("failed to serve a daemon's connection: {error}"));
                return self.disconnect(id);
            }
        }
        self.incoming = Vec::new();
        self.update_interest(id);
    }

    fn handle_message(&mut self, connection: u64, received: Received<Incoming>) {
        match received.message {
            Incoming::Request(request) => {
                let origin = Origin { connection, request: request.id };
                match received.cut {
                    true => self.answer(origin, Err(state("the keeper", "out of descriptors")), Vec::new()),
                    false => self.call(origin, request.call, received.descriptors),
                }
            }
            Incoming::Unknown { id: request } => {
                self.answer(Origin { connection, request }, Err(Failure::Unknown), Vec::new());
            }
        }
    }

    fn disconnect(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.watch.remove(connection.socket().as_fd(), &EventSource::Connection(id));
        }
    }

    fn update_interest(&mut self, id: u64) {
        if let Some(connection) = self.connections.get(&id) {
            let (socket, behind) = (connection.socket().as_fd(), connection.is_behind());
            self.watch.set_write_interest(socket, &EventSource::Connection(id), behind);
        }
    }

    /// Sends a message to one connection. If it cannot accept the message, it is closed.
    pub(crate) fn send(&mut self, id: u64, message: Message, descriptors: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        match connection.send(message, descriptors) {
            Ok(()) if connection.is_behind() => self.update_interest(id),
            Ok(()) => {}
            Err(error) => {
                report(&format!("failed to serve a daemon's connection: {error}"));
                self.disconnect(id);
            }
        }
    }

    /// Answers a call.
    pub(crate) fn answer(
        &mut self,
        origin: Origin,
        result: Result<Outcome, Failure>,
        descriptors: Vec<OwnedFd>,
    ) {
        let message = Message::Answer { id: origin.request, result };
        self.send(origin.connection, message, descriptors);
    }

    pub(crate) fn broadcast(&mut self, event: &Event) {
        self.broadcast_since(1, event);
    }

    /// Sends an event to the daemons that support this version of the messages.
    pub(crate) fn broadcast_since(&mut self, version: u32, event: &Event) {
        let supporting = self.connections.iter().filter(|(_, connection)| connection.protocol >= version);
        for id in supporting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.send(id, Message::Event(event.clone()), Vec::new());
        }
    }

    fn pause_gate(&mut self) {
        let Some(pause) = &mut self.pause else { return };
        let Some(event) = read_gate(pause.child.gate.as_fd()) else { return };
        self.watch.remove(pause.child.gate.as_fd(), &EventSource::PauseGate);
        let Some(origin) = pause.starting.take() else { return };
        match event {
            GateEvent::End => self.answer_namespaces(origin),
            GateEvent::Report(report, _) => self.answer(origin, Err(failure_of(report)), Vec::new()),
            GateEvent::Moved(_) => self.answer(origin, Err(vanished()), Vec::new()),
        }
    }

    /// Handles one report of a container's first process. Returns whether there was one.
    fn container_gate(&mut self, id: &str) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let Some(event) = read_gate(container.child.gate.as_fd()) else { return false };
        match (&container.state, event) {
            (State::Creating(origin), GateEvent::Report(Report::Ready, _)) => {
                let origin = *origin;
                container.state = State::Created;
                let result = self.reached_gate(id);
                let descriptors = self.pidfd_of(id);
                self.answer(origin, result, descriptors);
            }
            (State::Creating(_), GateEvent::Report(Report::Terminal, Some(master))) => {
                if let Err(error) = container.set_terminal(master) {
                    self.fail_container(id, system(&error));
                }
            }
            (State::Creating(_), GateEvent::Report(Report::Hooks, _)) => self.run_create_hooks(id),
            (State::Creating(_), GateEvent::Moved(sender)) => {
                if let Err(error) = container.child.moved(sender) {
                    self.fail_container(id, system(&error));
                }
            }
            (State::Starting(_), GateEvent::Report(Report::Listener, Some(descriptor))) => {
                self.supervise_container(id, &descriptor);
            }
            (State::Starting(origin), GateEvent::End) => {
                let (origin, at) = (*origin, now());
                container.state = State::Running { started_at: at };
                self.command_runs(id, origin, at);
                self.container_gate_closed(id);
            }
            (State::Creating(_) | State::Starting(_), GateEvent::Report(report, _)) => {
                self.fail_container(id, failure_of(report));
            }
            (State::Creating(_), GateEvent::End) => self.fail_container(id, vanished()),
            _ => self.container_gate_closed(id),
        }
        true
    }

    /// Handles the end of the socket: no process holds its other end.
    fn container_gate_closed(&mut self, id: &str) {
        self.close_gate(id);
        if let Some(ended) = self.containers.get_mut(id).and_then(|container| container.child.take_exit()) {
            self.begin_ending(id, ended);
        }
    }

    /// Handles the failure of a first process: answers the pending call, and kills the process if it still runs.
    pub(crate) fn fail_container(&mut self, id: &str, failure: Failure) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let (State::Creating(origin) | State::Starting(origin)) = container.state else { return };
        let reported = match &failure {
            Failure::Init(failure) => Some(failure.clone()),
            _ => None,
        };
        container.state = State::Failed(reported);
        process::kill(container.child.pidfd.as_fd());
        self.answer(origin, Err(failure), Vec::new());
        self.container_gate_closed(id);
    }

    pub(crate) fn close_gate(&mut self, id: &str) {
        if let Some(container) = self.containers.get(id) {
            self.watch.remove(container.child.gate.as_fd(), &EventSource::ContainerGate(id.to_owned()));
        }
    }

    fn reached_gate(&mut self, id: &str) -> Result<Outcome, Failure> {
        let Some(container) = self.containers.get(id) else { return Err(vanished()) };
        let pid = container.child.pid;
        self.watch_outputs(id).map_err(|error| system(&error))?;
        Ok(Outcome::Created { pid })
    }

    fn pidfd_of(&self, id: &str) -> Vec<OwnedFd> {
        self.containers.get(id).and_then(|c| c.child.pidfd.try_clone().ok()).into_iter().collect()
    }

    /// Handles one report of an exec. Returns whether there was one.
    fn exec_gate(&mut self, id: &str) -> bool {
        let Some(exec) = self.execs.get_mut(id) else { return false };
        let Some(event) = read_gate(exec.child.gate.as_fd()) else { return false };
        match event {
            GateEvent::Report(Report::Terminal, Some(master)) => exec.set_terminal(master),
            GateEvent::Moved(sender) => {
                if let Err(error) = exec.child.moved(sender) {
                    self.exec_started(id, Err(system(&error)));
                }
            }
            GateEvent::Report(Report::Listener, Some(descriptor)) => self.supervise_exec(id, &descriptor),
            GateEvent::Report(report, _) => self.exec_started(id, Err(failure_of(report))),
            GateEvent::End => {
                let started = if exec.child.awaits_move() { Err(vanished()) } else { Ok(()) };
                self.exec_started(id, started);
            }
        }
        true
    }

    /// Handles the start of an exec's command, or its failure. After a failure the process is killed if it still
    /// runs.
    fn exec_started(&mut self, id: &str, started: Result<(), Failure>) {
        let Some(exec) = self.execs.get_mut(id) else { return };
        let (pid, origin, master) = (exec.child.pid, exec.starting.take(), exec.master.take());
        let (pidfd, ended) = (exec.child.pidfd.try_clone().ok(), exec.child.take_exit());
        if started.is_err() {
            process::kill(exec.child.pidfd.as_fd());
        }
        self.watch.remove(exec.child.gate.as_fd(), &EventSource::ExecGate(id.to_owned()));
        match (started, origin) {
            (Ok(()), Some(origin)) => {
                let descriptors = pidfd.into_iter().chain(master).collect();
                self.answer(origin, Ok(Outcome::ExecStarted { pid }), descriptors);
            }
            (Err(failure), Some(origin)) => self.answer(origin, Err(failure), Vec::new()),
            (_, None) => {}
        }
        if let Some(ended) = ended {
            self.report_exec_exit(id, ended);
        }
    }

    fn reap(&mut self) {
        let mut signals = [0_u8; 1024];
        while rustix::io::read(&self.children, &mut signals).is_ok_and(|read| read > 0) {}
        while let Some(pid) = process::peek_ended() {
            self.child_ended(pid);
            // Reaps an orphan, or a child whose exit status was already read.
            process::reap_pid(pid);
        }
    }

    fn child_ended(&mut self, pid: i32) {
        let child = self.child_of(pid).or_else(|| {
            // A child that continues in the place of another may have ended before its report was read.
            self.drain_gates();
            self.child_of(pid)
        });
        match child {
            Some(EventSource::PauseGate) => self.pause_ended(),
            Some(EventSource::ContainerGate(id)) => self.container_ended(&id, pid),
            Some(EventSource::ExecGate(id)) => self.exec_ended(&id, pid),
            _ => {}
        }
    }

    /// Finds the owner of a child. Returns the event source of its gate.
    fn child_of(&self, pid: i32) -> Option<EventSource> {
        let pause = self.pause.iter().filter(|pause| pause.child.is(pid)).map(|_| EventSource::PauseGate);
        let container = self.containers.iter().filter(|(_, container)| container.is_child(pid));
        let exec = self.execs.iter().filter(|(_, exec)| exec.child.is(pid));
        pause
            .chain(container.map(|(id, _)| EventSource::ContainerGate(id.clone())))
            .chain(exec.map(|(id, _)| EventSource::ExecGate(id.clone())))
            .next()
    }

    /// Handles all pending reports of children that have not started yet.
    fn drain_gates(&mut self) {
        let creating = self.containers.iter().filter(|(_, c)| matches!(c.state, State::Creating(_)));
        for id in creating.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            while self.container_gate(&id) {}
        }
        let starting = self.execs.iter().filter(|(_, exec)| exec.starting.is_some());
        for id in starting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            while self.watch.contains(&EventSource::ExecGate(id.clone())) && self.exec_gate(&id) {}
        }
    }

    fn pause_ended(&mut self) {
        let Some(pause) = &self.pause else { return };
        let Ok(Some(ended)) = process::reap(pause.child.pidfd.as_fd()) else { return };
        // Reports that it sent before it ended are handled first.
        if self.watch.contains(&EventSource::PauseGate) {
            self.pause_gate();
        }
        self.pause = None;
        self.broadcast(&Event::PauseExited { code: ended.code() });
    }

    fn container_ended(&mut self, id: &str, pid: i32) {
        // It may have reported before that another process continues.
        let gate = EventSource::ContainerGate(id.to_owned());
        while self.watch.contains(&gate) && self.container_gate(id) {}
        let Some(container) = self.containers.get_mut(id).filter(|container| container.is_child(pid)) else {
            return;
        };
        let Ok(Some(ended)) = process::reap(container.child.pidfd.as_fd()) else { return };
        if self.watch.contains(&gate) {
            return container.child.store_exit(ended);
        }
        self.begin_ending(id, ended);
    }

    fn exec_ended(&mut self, id: &str, pid: i32) {
        // It may have reported before that another process continues.
        let gate = EventSource::ExecGate(id.to_owned());
        while self.watch.contains(&gate) && self.exec_gate(id) {}
        let Some(exec) = self.execs.get_mut(id).filter(|exec| exec.child.is(pid)) else { return };
        let Ok(Some(ended)) = process::reap(exec.child.pidfd.as_fd()) else { return };
        if self.watch.contains(&gate) {
            return exec.child.store_exit(ended);
        }
        self.report_exec_exit(id, ended);
    }

    fn report_exec_exit(&mut self, id: &str, ended: Ended) {
        self.execs.remove(id);
        self.broadcast(&Event::ExecExited { exec: id.to_owned(), code: ended.code() });
    }

    pub(crate) fn set_protocol(&mut self, connection: u64, protocol: u32) {
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.protocol = protocol;
        }
    }

    /// Unregisters a container from the event loop, before it is dropped.
    pub(crate) fn unwatch_container(&mut self, id: &str) {
        self.drop_ending(id);
        if !self.drain(id) {
            // No call waits for its log: the rest is dropped.
            let _all = self.drain(id);
        }
        self.detach_all(id);
        self.end_runner(id);
        self.close_gate(id);
        if let Some(container) = self.containers.get(id) {
            self.writer.close(&container.log, &mut self.watch);
        }
    }
}

/// An event of a child's socket.
pub(crate) enum GateEvent {
    Report(Report, Option<OwnedFd>),
    /// Another child, the sender, continues.
    Moved(Option<i32>),
    /// The child's end is closed: the child has executed its command, or has ended.
    End,
}

/// Reads a child's socket. Returns `None` if there is no event.
pub(crate) fn read_gate(gate: BorrowedFd<'_>) -> Option<GateEvent> {
    let mut record = [0_u8; RECORD];
    match sys::socket::receive_from(gate, &mut record) {
        Ok(packet) => match Report::decode(record.get(..packet.length).unwrap_or_default()) {
            Some(Report::Moved) => Some(GateEvent::Moved(packet.sender)),
            Some(report) => Some(GateEvent::Report(report, packet.descriptors.into_iter().next())),
            None => Some(GateEvent::End),
        },
        Err(error) if error.errno == Errno::AGAIN || error.errno == Errno::INTR => None,
        // ECONNRESET: the child has ended before it read everything that was sent to it.
        Err(_) => Some(GateEvent::End),
    }
}

fn failure_of(report: Report) -> Failure {
    match report {
        Report::Failed(failure) => Failure::Init(failure),
        Report::Ready | Report::Terminal | Report::Listener | Report::Moved | Report::Hooks => vanished(),
    }
}

pub(crate) fn vanished() -> Failure {
    Failure::Init(InitFailure { step: Step::Vanished, errno: 0, index: None, detail: String::new() })
}

/// Converts the failure of a system call of the keeper.
pub(crate) fn system(error: &sys::Error) -> Failure {
    let action = format!("{} {}", error.call, error.object).trim_end().to_owned();
    Failure::System { action, errno: error.raw() }
}
