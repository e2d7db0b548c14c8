//! The keeper's event loop. It waits for events and passes each one to its owner.

use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::procfs::Proc;
use berth_runtime::sys;
use berth_runtime::sys::{memory, process};
use berth_runtime::wire::{Call, Event, Failure, Outcome, PROTOCOL, Snapshot};
use rustix::event::epoll::EventFlags;

use crate::attachments::StreamSlots;
use crate::buffers::Buffers;
use crate::connections::{Connections, IncomingCall};
use crate::container::Container;
use crate::containers::{Containers, CreateCall};
use crate::execs::Execs;
use crate::failure::{Origin, not_found, state};
use crate::orphans::Orphans;
use crate::pause::{Pause, PauseProgram};
use crate::services::Services;
use crate::watch::{EventSource, Watch};
use crate::writer::Writer;

/// The keeper.
#[derive(Debug)]
pub(crate) struct Keeper {
    services: Services,
    /// Signals of ended children.
    children: OwnedFd,
    pause_program: PauseProgram,
    pause: Option<Pause>,
    containers: Containers,
    execs: Execs,
    /// Whether the memory of a large call is free: a container or an exec has started.
    has_free_memory: bool,
    shutting_down: bool,
}

/// The process whose end was reported.
enum Child {
    Pause,
    Container(String),
    Exec(String),
}

impl Keeper {
    pub(crate) fn new(listener: OwnedFd, pause_program: PauseProgram, proc: Proc) -> sys::Result<Self> {
        let mut watch = Watch::new()?;
        let connections = Connections::new(listener, &mut watch)?;
        let children = process::child_signals()?;
        watch.add(children.as_fd(), EventSource::Children)?;
        let (writer, buffers, orphans) = (Writer::default(), Buffers::default(), Orphans::default());
        Ok(Self {
            services: Services { watch, connections, writer, buffers, proc, orphans },
            children,
            pause_program,
            pause: None,
            containers: Containers::default(),
            execs: Execs::default(),
            has_free_memory: false,
            shutting_down: false,
        })
    }

    /// Runs until the daemon ends it.
    pub(crate) fn run(mut self) -> sys::Result<()> {
        let mut events = Vec::with_capacity(16);
        while !self.shutting_down {
            let deadlines = [self.containers.endings_at(), self.services.writer.check_at()];
            let until = deadlines.into_iter().flatten().min();
            self.services.watch.wait(&mut events, until)?;
            for event in &events {
                if let Some((source, flags)) = self.services.watch.source_of(event) {
                    self.on_event(source, flags);
                }
            }
            // Plans are large. Their memory would otherwise stay with the keeper for as long as the pod runs.
            if mem::take(&mut self.has_free_memory) {
                memory::trim();
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                self.containers.continue_endings(&mut self.services);
                self.services.writer.check_idle(&mut self.services.watch);
            }
        }
        Ok(())
    }

    fn on_event(&mut self, source: EventSource, flags: EventFlags) {
        let Self { services, containers, execs, has_free_memory, .. } = self;
        match source {
            EventSource::Listener => services.connections.on_listener(&mut services.watch),
            EventSource::Connection(id) => {
                if let Some(call) = services.connections.on_event(id, flags, &mut services.watch) {
                    self.on_call(call);
                }
            }
            EventSource::Children => self.on_children(),
            EventSource::PauseGate => {
                if let Some(pause) = &mut self.pause {
                    pause.on_gate(services);
                }
            }
            EventSource::ExecGate(id) => *has_free_memory |= execs.on_gate(&id, services),
            EventSource::Writer => {
                services.writer.on_event(&mut services.watch);
                containers.on_writer(services);
            }
            EventSource::ContainerGate(id) => {
                containers.on_event(&id, services, |container, services| {
                    container.on_gate(services);
                });
                // Not before the start: the memory is needed again for it.
                *has_free_memory |= containers.running(&id).is_ok();
            }
            EventSource::Hooks(id) => containers.on_event(&id, services, Container::on_hooks),
            EventSource::Starter(id) => containers.on_event(&id, services, Container::on_starter),
            EventSource::Input(id) => containers.on_event(&id, services, Container::on_input),
            EventSource::Output(id, place) => {
                containers
                    .on_event(&id, services, |container, services| container.on_output(place, services));
            }
            EventSource::Client(id, client, stream) => {
                containers.on_event(&id, services, |container, services| {
                    container.on_client(&client, stream, services);
                });
            }
        }
    }

    fn on_call(&mut self, incoming: IncomingCall) {
        let IncomingCall { origin, call, descriptors } = incoming;
        KeeperStep::of(&call).reach();
        match self.call(origin, call, descriptors) {
            Ok(None) => {}
            Ok(Some(outcome)) => self.services.answer(origin, Ok(outcome)),
            Err(failure) => self.services.answer(origin, Err(failure)),
        }
    }

    /// Handles a call. Returns `None` if it is answered later, when the child that it concerns has reached its goal.
    fn call(
        &mut self,
        origin: Origin,
        call: Call,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Outcome>, Failure> {
        let Self { services, containers, execs, .. } = self;
        match call {
            Call::Hello { protocol } => {
                services.connections.set_protocol(origin.connection, protocol);
                Ok(Some(Outcome::Hello(self.snapshot())))
            }
            Call::Sandbox(_) if self.pause.is_some() => Err(state("the pause", "started already")),
            Call::Sandbox(plan) => {
                let started = Pause::start(&plan, &descriptors, &self.pause_program, origin, services)?;
                self.pause = Some(started);
                Ok(None)
            }
            Call::Namespaces => {
                let pause = self.pause.as_ref().ok_or_else(|| not_found("the pause"))?;
                pause.answer_namespaces(origin, services);
                Ok(None)
            }
            Call::Create { container: id, folder, plan } => {
                let call = CreateCall { id, folder, plan: &plan, descriptors: &descriptors };
                containers.create(origin, call, self.pause.as_ref(), services).map(|()| None)
            }
            Call::Start { container } => containers.find(&container)?.start(origin, services).map(|()| None),
            Call::Signal { container, signal } => containers.find(&container)?.signal(signal).map(Some),
            Call::Exec { container, exec, plan } => {
                let target = containers.running(&container)?;
                execs.start(origin, exec, target, (&plan, &descriptors), services).map(|()| None)
            }
            Call::SignalExec { exec, signal } => execs.signal(&exec, signal).map(Some),
            Call::ReopenLog { container, log } => {
                containers.find(&container)?.reopen_log(log, &descriptors, services).map(Some)
            }
            Call::Attach { container, client, stdin, stdout, stderr } => {
                let streams = StreamSlots { slots: [stdin, stdout, stderr], descriptors };
                containers.find(&container)?.attach(origin, &client, streams, services).map(Some)
            }
            Call::Resize { container, width, height } => {
                containers.find(&container)?.resize(width, height).map(Some)
            }
            Call::Forget { container } => containers.remove(origin, &container, services),
            Call::Shutdown => Ok(Some(self.shut_down())),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            protocol: PROTOCOL,
            keeper_pid: rustix::process::getpid().as_raw_nonzero().get(),
            pause: self.pause.as_ref().map(Pause::pid),
            containers: self.containers.snapshots(),
            execs: self.execs.ids(),
        }
    }

    fn shut_down(&mut self) -> Outcome {
        self.containers.kill_all();
        self.execs.kill_all();
        if let Some(pause) = &self.pause {
            pause.kill();
        }
        self.shutting_down = true;
        KeeperStep::Killed.reach();
        Outcome::Done
    }

    fn on_children(&mut self) {
        let mut signals = [0_u8; 1024];
        while rustix::io::read(&self.children, &mut signals).is_ok_and(|read| read > 0) {}
        while let Some(pid) = process::peek_ended() {
            self.on_child_end(pid);
            // Reaps an orphan, or a child whose exit status was already read.
            if let Some(ended) = process::reap_pid(pid) {
                self.services.orphans.note(pid, ended);
            }
        }
        self.containers.exclude_oom_kills();
    }

    fn on_child_end(&mut self, pid: i32) {
        let child = self.child_of(pid).or_else(|| {
            // A child that continues in the place of another may have ended before its report was read.
            self.containers.drain_gates(&mut self.services);
            self.execs.drain_gates(&mut self.services);
            self.child_of(pid)
        });
        match child {
            Some(Child::Pause) => self.pause_ended(),
            Some(Child::Container(id)) => {
                self.containers.on_event(&id, &mut self.services, |container, services| {
                    container.on_child_end(pid, services);
                });
            }
            Some(Child::Exec(id)) => self.execs.on_child_end(&id, pid, &mut self.services),
            None => {}
        }
    }

    fn child_of(&self, pid: i32) -> Option<Child> {
        if self.pause.as_ref().is_some_and(|pause| pause.is_child(pid)) {
            return Some(Child::Pause);
        }
        let container = self.containers.of_child(pid).map(Child::Container);
        container.or_else(|| self.execs.of_child(pid).map(Child::Exec))
    }

    fn pause_ended(&mut self) {
        let ended = self.pause.as_mut().and_then(|pause| pause.reap(&mut self.services));
        if let Some(ended) = ended {
            self.pause = None;
            self.services.broadcast(&Event::PauseExited { code: ended.code() });
        }
    }
}
