//! A container: its first process, its streams and how it ends.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::container::{self, Joined};
use berth_runtime::init::{Descriptors, Streams};
use berth_runtime::plan::{ContainerPlan, PidNamespace, SeccompListener};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::Ended;
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::{ExitRecord, InitFailure, Phase};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::attach::{Client, Input};
use crate::keeper::Origin;
use crate::lines::{Lines, Stream};
use crate::log::Log;
use crate::spawn::{Place, Spawned, spawn};
use crate::stamp::now;

/// Where a container is in its life.
#[derive(Debug)]
pub(crate) enum State {
    /// Its first process walks towards the gate.
    Creating(Origin),
    /// It waits at the gate.
    Created,
    /// It has been let through, and has not yet become its command.
    Starting(Origin),
    /// The command runs.
    Running { started_at: i64 },
    /// The first process has failed and told so; its end is awaited.
    Failed(Option<InitFailure>),
    /// It has ended.
    Exited(ExitRecord),
}

/// A stream that is read into the log.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) fd: OwnedFd,
    pub(crate) lines: Lines,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) child: Spawned,
    pub(crate) state: State,
    pub(crate) log: Log,
    /// By their place in the epoll: 0 and 1.
    pub(crate) outputs: [Option<Output>; 2],
    /// For attached clients.
    pub(crate) input: Input,
    /// Has standard input, which the terminal is when it comes.
    stdin: bool,
    pub(crate) clients: Vec<Client>,
    /// The terminal's master.
    pub(crate) terminal: Option<OwnedFd>,
    /// A terminal is expected with the report of the gate.
    tty: bool,
    pub(crate) folder: String,
    oom: Option<OwnedFd>,
    /// The session keyring of its processes.
    pub(crate) keyring: KeyringName,
    /// Who answers for its system calls, where its filter hands some over.
    pub(crate) supervisor: Option<SeccompListener>,
}

/// The ends of a container's standard streams: the child's and the keeper's. With a terminal there are none, until it has
/// come.
#[derive(Default)]
struct Ends {
    child: [Option<OwnedFd>; 3],
    stdin: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
}

impl Container {
    /// Clones the first process. `number` is that of its log.
    pub(crate) fn create(
        plan: &ContainerPlan,
        descriptors: Descriptors<'_>,
        (folder, number): (String, u32),
        joined: Joined<'_>,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let opened = plan.stdio.log.map(|slot| descriptors.get(slot)).transpose()?;
        let opened = opened.map(|fd| fd.try_clone_to_owned().on("dup", "the log")).transpose()?;
        let log = Log::open(number, plan.stdio.log_path.clone(), opened)?;
        let ends = Ends::open(plan)?;
        let keyring = KeyringName::new()?;
        let oom = plan.cgroup.oom.map(|slot| descriptors.get(slot)).transpose()?;
        let oom = oom.map(|fd| fd.try_clone_to_owned().on("dup", "")).transpose()?;
        // In a user namespace the first process clones another one there, whose process namespace belongs to it.
        let clones_at_once = plan.pid == PidNamespace::New && plan.userns.is_none();
        let place = Place {
            namespaces: match clones_at_once {
                true => Namespaces::PID,
                false => Namespaces::NONE,
            },
            moves: joined.processes_of.is_some() || (plan.pid == PidNamespace::New && !clones_at_once),
            cgroup: &plan.cgroup,
            userns: None,
            oom_score_adj: None,
            descriptors,
        };
        let [stdin, stdout, stderr] = ends.child.each_ref().map(|end| end.as_ref().map(AsFd::as_fd));
        let child = spawn(place, |gate, single| {
            let streams = Streams { stdin, stdout, stderr };
            let keyring = &keyring;
            container::run(container::Start {
                plan,
                descriptors,
                joined,
                keyring,
                proc,
                streams,
                gate,
                single,
            })
        })?;
        Ok(Self {
            child,
            state: State::Creating(origin),
            log,
            outputs: ends.outputs,
            input: Input::new(ends.stdin, plan.stdio.stdin_once),
            stdin: plan.stdio.stdin,
            clients: Vec::new(),
            terminal: None,
            tty: plan.stdio.tty,
            folder,
            oom,
            keyring,
            supervisor: plan.process.seccomp.as_ref().and_then(|seccomp| seccomp.listener.clone()),
        })
    }

    /// The terminal's master has come: its output is the container's only stream. Others may get hold of the socket of a
    /// first process that has moved: what comes after the first is not from it.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd) -> sys::Result<()> {
        if !self.tty {
            return Ok(());
        }
        self.tty = false;
        rustix::io::ioctl_fionbio(&master, true).on("ioctl(FIONBIO)", "")?;
        self.terminal = Some(master.try_clone().on("dup", "")?);
        self.input.fd = self.stdin.then(|| master.try_clone().on("dup", "")).transpose()?;
        self.outputs = [Some(Output { fd: master, lines: Lines::new(Stream::Stdout) }), None];
        Ok(())
    }

    /// Whether a child of the keeper is its first process. The pid of one that has ended may be another's.
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        self.child.is(pid) && !matches!(self.state, State::Exited(_))
    }

    /// How far it is, for a daemon that comes (back).
    pub(crate) fn phase(&self) -> Phase {
        match &self.state {
            State::Creating(_) => Phase::Creating,
            State::Created | State::Starting(_) | State::Failed(_) => Phase::Created,
            State::Running { started_at } => Phase::Running { started_at: *started_at },
            State::Exited(record) => Phase::Exited(record.clone()),
        }
    }

    /// How it has ended.
    pub(crate) fn record(&self) -> Option<ExitRecord> {
        match &self.state {
            State::Exited(record) => Some(record.clone()),
            _ => None,
        }
    }

    /// Its first process has ended: the record of that.
    pub(crate) fn exited(&mut self, ended: Ended) -> ExitRecord {
        let started_at = match self.state {
            State::Running { started_at } => started_at,
            _ => 0,
        };
        let failure = match &mut self.state {
            State::Failed(failure) => failure.take(),
            _ => None,
        };
        let signal = match ended {
            Ended::Signal(signal) => Some(signal),
            Ended::Code(_) => None,
        };
        let code = ended.code();
        let record = ExitRecord {
            code,
            signal,
            // A container whose helper was killed for memory, and which then ended by itself, was not.
            oom_killed: code == 137 && self.oom_kills() > 0,
            started_at,
            finished_at: now(),
            failure,
        };
        self.state = State::Exited(record.clone());
        record
    }

    /// How often the kernel has killed in this cgroup for lack of memory: `oom_kill N` is a line of both
    /// memory.events (v2) and memory.oom_control (v1).
    fn oom_kills(&self) -> u64 {
        let Some(oom) = &self.oom else { return 0 };
        let Ok(text) = sys::fs::read_all(oom, 4096) else { return 0 };
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).map(str::trim);
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

impl Ends {
    fn open(plan: &ContainerPlan) -> sys::Result<Self> {
        if plan.stdio.tty {
            return Ok(Self::default());
        }
        let (stdin, held) = if plan.stdio.stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).on("pipe2", "stdin")?;
            rustix::io::ioctl_fionbio(&write, true).on("ioctl(FIONBIO)", "")?;
            (Some(read), Some(write))
        } else {
            (None, None)
        };
        let (stdout, out) = output_pipe(Stream::Stdout)?;
        let (stderr, err) = output_pipe(Stream::Stderr)?;
        let child = [stdin, Some(stdout), Some(stderr)];
        Ok(Self { child, stdin: held, outputs: [Some(out), Some(err)] })
    }
}

fn output_pipe(stream: Stream) -> sys::Result<(OwnedFd, Output)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).on("pipe2", "output")?;
    rustix::io::ioctl_fionbio(&read, true).on("ioctl(FIONBIO)", "")?;
    Ok((write, Output { fd: read, lines: Lines::new(stream) }))
}
