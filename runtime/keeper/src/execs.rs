//! Execs: further processes in containers. Their output goes directly to the daemon, not through the keeper.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::{Descriptors, Streams, exec, runtime};
use berth_runtime::keeper_step::KeeperStep;
use berth_runtime::plan::{CgroupJoin, ExecPlan, FdSlot};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::process::{self, Ended};
use berth_runtime::sys::{self, namespaces::Namespaces};
use berth_runtime::wire::transport::Report;
use berth_runtime::wire::{Event, Failure, Outcome};

use crate::container::{Container, caller_options};
use crate::failure::{Answer, Origin, not_found, state, system, vanished};
use crate::gate::{GateEvent, failure_of, read_gate};
use crate::services::Services;
use crate::spawn::{SpawnOptions, Spawned, kill_unwatched, spawn};
use crate::supervisor::Supervisor;
use crate::watch::EventSource;

/// The execs, by id.
#[derive(Debug, Default)]
pub(crate) struct Execs {
    entries: BTreeMap<String, Exec>,
}

/// An exec.
#[derive(Debug)]
struct Exec {
    child: Spawned,
    /// The call that waits for the start.
    starting: Option<Origin>,
    /// Whether the report with the terminal is still expected.
    awaits_terminal: bool,
    /// The terminal's master, until it is sent with the answer.
    master: Option<OwnedFd>,
    /// The first process of its container.
    init: i32,
    /// The supervisor of its system calls, if its filter has one.
    supervisor: Option<Supervisor>,
    /// Whether the OCI runtime has not started the exec yet.
    awaits_creation: bool,
}

impl Execs {
    /// Starts an exec in a running container. The call is answered when its command runs, or has failed.
    pub(crate) fn start(
        &mut self,
        origin: Origin,
        id: String,
        container: &Container,
        (plan, descriptors): (&ExecPlan, &[OwnedFd]),
        services: &mut Services,
    ) -> Result<(), Failure> {
        if self.entries.contains_key(&id) {
            return Err(state(&format!("exec {id}"), "started already"));
        }
        if plan.runtime.is_some() != container.runtime().is_some() {
            return Err(state(&format!("container {}", container.id()), "that of another runtime"));
        }
        let exec = Exec::spawn(plan, container, Descriptors(descriptors), &services.proc, origin);
        let exec = exec.map_err(|error| system(&error))?;
        let watched = services.watch.add(exec.child.gate.as_fd(), EventSource::ExecGate(id.clone()));
        watched.map_err(|error| kill_unwatched(&exec.child, &error))?;
        self.entries.insert(id, exec);
        Ok(())
    }

    /// Sends a signal to an exec's process.
    pub(crate) fn signal(&self, id: &str, signal: i32) -> Answer {
        let exec = self.entries.get(id).ok_or_else(|| not_found(&format!("exec {id}")))?;
        match exec.awaits_creation {
            true => exec.kill(),
            false => process::signal(exec.child.pidfd.as_fd(), signal).map_err(|error| system(&error))?,
        }
        Ok(Outcome::Done)
    }

    /// Handles one report of an exec. Returns whether there was one.
    pub(crate) fn on_gate(&mut self, id: &str, services: &mut Services) -> bool {
        let Some(exec) = self.entries.get_mut(id) else { return false };
        let Some(event) = read_gate(exec.child.gate.as_fd()) else { return false };
        match event {
            GateEvent::Report(Report::Terminal, Some(master)) => exec.set_terminal(master),
            GateEvent::Moved(sender) => {
                if let Err(error) = exec.child.moved(sender) {
                    self.started(id, Err(system(&error)), services);
                }
            }
            GateEvent::Report(Report::Listener, Some(descriptor)) => exec.supervise(&descriptor, services),
            GateEvent::Report(Report::Created { pid }, _) if exec.awaits_creation => {
                exec.awaits_creation = false;
                if let Err(error) = exec.child.adopt(pid, &mut services.orphans) {
                    self.started(id, Err(system(&error)), services);
                }
            }
            GateEvent::Report(report, _) => self.started(id, Err(failure_of(report)), services),
            GateEvent::End => {
                let ended = exec.child.awaits_move() || exec.awaits_creation;
                let started = if ended { Err(vanished()) } else { Ok(()) };
                self.started(id, started, services);
            }
        }
        true
    }

    /// Handles the start of an exec's command, or its failure. After a failure the process is killed if it still
    /// runs.
    fn started(&mut self, id: &str, started: Result<(), Failure>, services: &mut Services) {
        let Some(exec) = self.entries.get_mut(id) else { return };
        if started.is_err() {
            exec.kill();
        }
        services.watch.remove(exec.child.gate.as_fd(), &EventSource::ExecGate(id.to_owned()));
        KeeperStep::ExecRuns.reach();
        let (origin, ended) = (exec.starting.take(), exec.child.take_exit());
        let pidfd = exec.child.pidfd.try_clone().ok();
        let descriptors = pidfd.into_iter().chain(exec.master.take()).collect();
        match (started, origin) {
            (Ok(()), Some(origin)) => {
                let outcome = Outcome::ExecStarted { pid: exec.child.pid };
                services.answer_with(origin, Ok(outcome), descriptors);
            }
            (Err(failure), Some(origin)) => services.answer(origin, Err(failure)),
            (_, None) => {}
        }
        if let Some(ended) = ended {
            self.report_exit(id, ended, services);
        }
    }

    /// Handles the end of a child with its pid.
    pub(crate) fn on_child_end(&mut self, id: &str, pid: i32, services: &mut Services) {
        // It may have reported before that another process continues.
        let gate = EventSource::ExecGate(id.to_owned());
        while services.watch.contains(&gate) && self.on_gate(id, services) {}
        let Some(exec) = self.entries.get_mut(id).filter(|exec| exec.child.is(pid)) else { return };
        let Ok(Some(ended)) = process::reap(exec.child.pidfd.as_fd()) else { return };
        if services.watch.contains(&gate) {
            return exec.child.store_exit(ended);
        }
        self.report_exit(id, ended, services);
    }

    fn report_exit(&mut self, id: &str, ended: Ended, services: &mut Services) {
        KeeperStep::ExecEnded.reach();
        self.entries.remove(id);
        services.broadcast(&Event::ExecExited { exec: id.to_owned(), code: ended.code() });
    }

    /// Finds the exec whose process has this pid.
    pub(crate) fn of_child(&self, pid: i32) -> Option<String> {
        let (id, _) = self.entries.iter().find(|(_, exec)| exec.child.is(pid))?;
        Some(id.clone())
    }

    /// Handles all pending reports of execs that have not started yet.
    pub(crate) fn drain_gates(&mut self, services: &mut Services) {
        let starting = self.entries.iter().filter(|(_, exec)| exec.starting.is_some());
        for id in starting.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            let gate = EventSource::ExecGate(id.clone());
            while services.watch.contains(&gate) && self.on_gate(&id, services) {}
        }
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }

    /// Kills their processes.
    pub(crate) fn kill_all(&self) {
        self.entries.values().for_each(Exec::kill);
    }
}

impl Exec {
    fn spawn(
        plan: &ExecPlan,
        container: &Container,
        descriptors: Descriptors<'_>,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let options = SpawnOptions {
            namespaces: Namespaces::NONE,
            cgroup: &plan.cgroup,
            userns: None,
            oom_score_adj: None,
            moves: true,
            descriptors,
        };
        let stream = |slot: Option<FdSlot>| slot.map(|slot| descriptors.get(slot)).transpose();
        let streams = Streams {
            stdin: stream(plan.stdin)?,
            stdout: stream(plan.stdout)?,
            stderr: stream(plan.stderr)?,
        };
        let (init, keyring) = (container.pidfd(), container.keyring());
        let no_cgroup = CgroupJoin::default();
        let child = match (container.runtime(), &plan.runtime) {
            (Some(other), Some(exec)) => spawn(caller_options(&no_cgroup, descriptors), |gate, _single| {
                runtime::exec(runtime::RuntimeExecStart {
                    runtime: other,
                    plan,
                    exec,
                    descriptors,
                    streams,
                    gate,
                })
            })?,
            _ => spawn(options, |gate, single| {
                exec::run(exec::ExecStart {
                    plan,
                    descriptors,
                    init,
                    keyring,
                    proc,
                    streams,
                    gate,
                    preserved: 0,
                    single,
                })
            })?,
        };
        KeeperStep::ExecCloned.reach();
        Ok(Self {
            child,
            starting: Some(origin),
            awaits_terminal: plan.tty,
            master: None,
            init: container.pid(),
            supervisor: Supervisor::of(&plan.process, container.id(), container.folder()),
            awaits_creation: plan.runtime.is_some(),
        })
    }

    /// Stores the terminal's master. Only the first one is accepted: other processes may get access to the socket
    /// of a child that has moved.
    fn set_terminal(&mut self, master: OwnedFd) {
        if self.awaits_terminal {
            self.awaits_terminal = false;
            self.master = Some(master);
        }
    }

    /// Sends the descriptor of the filter that the process has loaded to the supervisor.
    fn supervise(&mut self, descriptor: &OwnedFd, services: &mut Services) {
        let Some(supervisor) = &self.supervisor else { return };
        let Err(failure) = supervisor.hand_over(self.init, self.child.pid, descriptor) else { return };
        self.kill();
        if let Some(origin) = self.starting.take() {
            services.answer(origin, Err(Failure::Init(failure)));
        }
    }

    fn kill(&self) {
        if self.awaits_creation {
            // The child then kills the runtime. If it has ended, there is nothing to cancel.
            let _ended = rustix::net::shutdown(&self.child.gate, rustix::net::Shutdown::Both);
        } else {
            process::kill(self.child.pidfd.as_fd());
        }
    }
}
