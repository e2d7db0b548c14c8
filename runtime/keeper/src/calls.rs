//! The daemon's calls.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::container::JoinTargets;
use berth_runtime::init::{Descriptors, START};
use berth_runtime::plan::{ContainerPlan, ExecPlan, FdSlot, PidNamespace, SandboxPlan};
use berth_runtime::sys::{self, Context, process};
use berth_runtime::wire::{Call, ContainerSnapshot, Failure, Outcome, PROTOCOL, Snapshot};

use crate::container::{Container, State};
use crate::exec::Exec;
use crate::keeper::{Keeper, Origin, system, vanished};
use crate::pause::Pause;
use crate::spawn::Spawned;
use crate::watch::EventSource;

pub(crate) type Answer = Result<Outcome, Failure>;

impl Keeper {
    /// Handles a call. The answer is sent immediately, or when the child that the call concerns has reached its
    /// goal.
    pub(crate) fn call(&mut self, origin: Origin, call: Call, descriptors: Vec<OwnedFd>) {
        let now = match call {
            Call::Hello { protocol } => {
                self.set_protocol(origin.connection, protocol);
                Some(Ok(Outcome::Hello(self.snapshot())))
            }
            Call::Sandbox(plan) => self.sandbox(origin, &plan, &descriptors).err().map(Err),
            Call::Namespaces => return self.answer_namespaces(origin),
            Call::Create { container, folder, plan } => {
                self.create(origin, container, folder, &plan, &descriptors).err().map(Err)
            }
            Call::Start { container } => self.start(origin, &container).err().map(Err),
            Call::Signal { container, signal } => Some(self.signal(&container, signal)),
            Call::Exec { container, exec, plan } => {
                self.exec(origin, &container, exec, &plan, &descriptors).err().map(Err)
            }
            Call::SignalExec { exec, signal } => Some(self.signal_exec(&exec, signal)),
            Call::ReopenLog { container, log } => Some(self.reopen_log(&container, log, &descriptors)),
            Call::Attach { container, client, stdin, stdout, stderr } => {
                let slots = [stdin, stdout, stderr];
                Some(self.attach(origin, (&container, &client), slots, descriptors))
            }
            Call::Resize { container, width, height } => Some(self.resize(&container, width, height)),
            Call::Forget { container } if self.removal_waits(origin, &container) => None,
            Call::Forget { container } => Some(self.forget(&container)),
            Call::Shutdown => Some(self.shut_down()),
        };
        if let Some(result) = now {
            self.answer(origin, result, Vec::new());
        }
    }

    fn snapshot(&self) -> Snapshot {
        let containers = self.containers.iter().map(|(id, container)| ContainerSnapshot {
            id: id.clone(),
            pid: container.child.pid,
            phase: container.phase(),
            poststop_failure: container.hooks.poststop_failure(),
        });
        Snapshot {
            protocol: PROTOCOL,
            keeper_pid: rustix::process::getpid().as_raw_nonzero().get(),
            pause: self.pause.as_ref().map(|pause| pause.child.pid),
            containers: containers.collect(),
            execs: self.execs.keys().cloned().collect(),
        }
    }

    fn sandbox(
        &mut self,
        origin: Origin,
        plan: &SandboxPlan,
        descriptors: &[OwnedFd],
    ) -> Result<(), Failure> {
        if self.pause.is_some() {
            return Err(state("the pause", "started already"));
        }
        let pause =
            Pause::start(plan, Descriptors(descriptors), &self.pause_program, &self.null, &self.proc, origin);
        let pause = pause.map_err(|error| system(&error))?;
        let watched = self.watch.add(pause.child.gate.as_fd(), EventSource::PauseGate);
        watched.map_err(|error| kill_unwatched(&pause.child, &error))?;
        self.pause = Some(pause);
        Ok(())
    }

    /// Answers with the pause's pidfd, the pod's network namespace and, if the pod has one, its user namespace.
    pub(crate) fn answer_namespaces(&mut self, origin: Origin) {
        let Some(pause) = &self.pause else {
            return self.answer(origin, Err(not_found("the pause")), Vec::new());
        };
        let pid = pause.child.pid;
        let Some(netns) = &pause.netns else {
            return self.answer(origin, Err(vanished()), Vec::new());
        };
        let userns = pause.userns.as_ref().map(OwnedFd::try_clone).transpose();
        match (pause.child.pidfd.try_clone(), netns.try_clone(), userns) {
            (Ok(pidfd), Ok(netns), Ok(userns)) => {
                let descriptors = [pidfd, netns].into_iter().chain(userns).collect();
                self.answer(origin, Ok(Outcome::Sandbox { pid }), descriptors);
            }
            _ => self.answer(origin, Err(state("the keeper", "out of descriptors")), Vec::new()),
        }
    }

    fn create(
        &mut self,
        origin: Origin,
        id: String,
        folder: String,
        plan: &ContainerPlan,
        descriptors: &[OwnedFd],
    ) -> Result<(), Failure> {
        if self.containers.contains_key(&id) {
            return Err(state(&format!("container {id}"), "created already"));
        }
        let pause = self.pause.as_ref();
        let pid_target = match &plan.pid {
            PidNamespace::New | PidNamespace::Host => None,
            PidNamespace::Pod => match pause {
                Some(pause) if pause.shares_pids => Some(pause.child.pidfd.as_fd()),
                // The pause is in the host's process namespace, which the plan did not request.
                _ => return Err(state("the pod", "without a process namespace")),
            },
            PidNamespace::Container(target) => Some(self.running(target)?.child.pidfd.as_fd()),
        };
        let joined = JoinTargets {
            pause: pause.map(|pause| pause.child.pidfd.as_fd()),
            userns: pause.and_then(|pause| pause.userns.as_ref()).map(AsFd::as_fd),
            pid_target,
        };
        let number = self.next_log;
        let place = (folder, number);
        let container = Container::create(plan, Descriptors(descriptors), place, joined, &self.proc, origin);
        let container = container.map_err(|error| system(&error))?;
        let watched = self.watch.add(container.child.gate.as_fd(), EventSource::ContainerGate(id.clone()));
        watched.map_err(|error| kill_unwatched(&container.child, &error))?;
        self.next_log = number.wrapping_add(1);
        self.containers.insert(id, container);
        Ok(())
    }

    fn start(&mut self, origin: Origin, id: &str) -> Result<(), Failure> {
        let what = format!("container {id}");
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(&what))?;
        match container.state {
            State::Created => {}
            State::Creating(_) => return Err(state(&what, "being created")),
            State::Starting(_) | State::Running { .. } => return Err(state(&what, "running")),
            State::Failed(_) | State::Exited(_) => return Err(state(&what, "ended")),
        }
        if let Err(errno) = rustix::io::write(&container.child.gate, &[START]) {
            let action = format!("let {what} through its gate");
            return Err(Failure::System { action, errno: errno.raw_os_error() });
        }
        container.state = State::Starting(origin);
        Ok(())
    }

    pub(crate) fn running(&self, id: &str) -> Result<&Container, Failure> {
        let what = format!("container {id}");
        let container = self.containers.get(id).ok_or_else(|| not_found(&what))?;
        match container.state {
            State::Running { .. } => Ok(container),
            State::Exited(_) | State::Failed(_) => Err(state(&what, "ended")),
            _ => Err(state(&what, "not running")),
        }
    }

    fn signal(&self, id: &str, signal: i32) -> Answer {
        let container = self.containers.get(id).ok_or_else(|| not_found(&format!("container {id}")))?;
        process::signal(container.child.pidfd.as_fd(), signal).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    fn exec(
        &mut self,
        origin: Origin,
        container: &str,
        id: String,
        plan: &ExecPlan,
        descriptors: &[OwnedFd],
    ) -> Result<(), Failure> {
        if self.execs.contains_key(&id) {
            return Err(state(&format!("exec {id}"), "started already"));
        }
        let target = self.running(container)?;
        let exec = Exec::start(plan, container, target, Descriptors(descriptors), &self.proc, origin);
        let exec = exec.map_err(|error| system(&error))?;
        let watched = self.watch.add(exec.child.gate.as_fd(), EventSource::ExecGate(id.clone()));
        watched.map_err(|error| kill_unwatched(&exec.child, &error))?;
        self.execs.insert(id, exec);
        Ok(())
    }

    fn signal_exec(&self, id: &str, signal: i32) -> Answer {
        let exec = self.execs.get(id).ok_or_else(|| not_found(&format!("exec {id}")))?;
        process::signal(exec.child.pidfd.as_fd(), signal).map_err(|error| system(&error))?;
        Ok(Outcome::Done)
    }

    fn reopen_log(&mut self, id: &str, log: Option<FdSlot>, descriptors: &[OwnedFd]) -> Answer {
        let container = self.containers.get_mut(id).ok_or_else(|| not_found(&format!("container {id}")))?;
        let opened = log.map(|slot| Descriptors(descriptors).get(slot)).transpose();
        let opened =
            opened.and_then(|fd| fd.map(|fd| fd.try_clone_to_owned().on("dup", "the log")).transpose());
        opened.and_then(|opened| container.log.reopen(opened)).map_err(|error| system(&error))?;
        self.writer.reopened(&mut container.log, &mut self.watch);
        Ok(Outcome::Done)
    }

    /// Removes a container. If its process still runs, it is killed; it is reaped as an orphan, and its end is not
    /// reported. Pending calls to create or start it are answered first.
    pub(crate) fn forget(&mut self, id: &str) -> Answer {
        if !self.containers.contains_key(id) {
            return Err(not_found(&format!("container {id}")));
        }
        self.fail_container(id, state(&format!("container {id}"), "being removed"));
        self.unwatch_container(id);
        if let Some(container) = self.containers.remove(id) {
            process::kill(container.child.pidfd.as_fd());
        }
        Ok(Outcome::Done)
    }

    fn shut_down(&mut self) -> Answer {
        for container in self.containers.values() {
            process::kill(container.child.pidfd.as_fd());
        }
        for exec in self.execs.values() {
            process::kill(exec.child.pidfd.as_fd());
        }
        if let Some(pause) = &self.pause {
            process::kill(pause.child.pidfd.as_fd());
        }
        self.shutting_down = true;
        Ok(Outcome::Done)
    }
}

/// Kills a child that cannot be watched.
fn kill_unwatched(child: &Spawned, error: &sys::Error) -> Failure {
    process::kill(child.pidfd.as_fd());
    system(error)
}

pub(crate) fn not_found(what: &str) -> Failure {
    Failure::NotFound { what: what.to_owned() }
}

pub(crate) fn state(what: &str, state: &str) -> Failure {
    Failure::State { what: what.to_owned(), state: state.to_owned() }
}
