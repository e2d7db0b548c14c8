//! A container: its first process, its streams and its exit.

use std::os::fd::{AsFd, OwnedFd};

use berth_runtime::init::container::{self, JoinTargets};
use berth_runtime::init::{Descriptors, Streams};
use berth_runtime::plan::{ContainerPlan, PidNamespace, SeccompListener};
use berth_runtime::procfs::Proc;
use berth_runtime::sys::keys::KeyringName;
use berth_runtime::sys::namespaces::Namespaces;
use berth_runtime::sys::process::Ended;
use berth_runtime::sys::{self, Context};
use berth_runtime::wire::{ExitRecord, InitFailure, Phase};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::attach::{AttachedClient, Input};
use crate::hooks::ContainerHooks;
use crate::keeper::Origin;
use crate::lines::{Lines, Stream};
use crate::log::Log;
use crate::spawn::{SpawnOptions, Spawned, spawn};
use crate::stamp::now;

/// The state of a container.
#[derive(Debug)]
pub(crate) enum State {
    /// Its first process has not reached the gate yet.
    Creating(Origin),
    /// It waits at the gate.
    Created,
    /// It has left the gate, but has not executed its command yet.
    Starting(Origin),
    /// The command runs.
    Running { started_at: i64 },
    /// The first process has failed and reported it, but has not ended yet.
    Failed(Option<InitFailure>),
    /// It has ended.
    Exited(ExitRecord),
}

/// A stream that the keeper reads and logs.
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
    /// By their index: standard output and standard error.
    pub(crate) outputs: [Option<Output>; 2],
    /// Standard input, for attached clients.
    pub(crate) input: Input,
    /// Whether the container has standard input. If it has a terminal, the terminal is its input.
    stdin: bool,
    pub(crate) clients: Vec<AttachedClient>,
    /// The terminal's master.
    pub(crate) terminal: Option<OwnedFd>,
    /// Whether the report with the terminal is still expected.
    tty: bool,
    pub(crate) folder: String,
    oom: Option<OwnedFd>,
    /// The session keyring of its processes.
    pub(crate) keyring: KeyringName,
    /// The supervisor of its system calls, if its filter has one.
    pub(crate) supervisor: Option<SeccompListener>,
    pub(crate) hooks: ContainerHooks,
}

/// The child's and the keeper's ends of a container's standard streams. Empty with a terminal, which arrives
/// later.
#[derive(Default)]
struct StdioEnds {
    child: [Option<OwnedFd>; 3],
    stdin: Option<OwnedFd>,
    outputs: [Option<Output>; 2],
}

impl Container {
    /// Clones the first process. `number` is its log's number.
    pub(crate) fn create(
        plan: &ContainerPlan,
        descriptors: Descriptors<'_>,
        (folder, number): (String, u32),
        joined: JoinTargets<'_>,
        proc: &Proc,
        origin: Origin,
    ) -> sys::Result<Self> {
        let opened = plan.stdio.log.map(|slot| descriptors.get(slot)).transpose()?;
        let opened = opened.map(|fd| fd.try_clone_to_owned().on("dup", "the log")).transpose()?;
        let log = Log::open(number, plan.stdio.log_path.clone(), opened)?;
        let ends = StdioEnds::open(plan)?;
        let keyring = KeyringName::new()?;
        let oom = plan.cgroup.oom.map(|slot| descriptors.get(slot)).transpose()?;
        let oom = oom.map(|fd| fd.try_clone_to_owned().on("dup", "")).transpose()?;
        // In a user namespace the first process clones another one, so that the new process namespace belongs to
        // the user namespace.
        let clones_directly = plan.pid == PidNamespace::New && plan.userns.is_none();
        let options = SpawnOptions {
            namespaces: match clones_directly {
                true => Namespaces::PID,
                false => Namespaces::NONE,
            },
            moves: joined.pid_target.is_some() || (plan.pid == PidNamespace::New && !clones_directly),
            cgroup: &plan.cgroup,
            userns: None,
            oom_score_adj: None,
            descriptors,
        };
        let [stdin, stdout, stderr] = ends.child.each_ref().map(|end| end.as_ref().map(AsFd::as_fd));
        let child = spawn(options, |gate, single| {
            let streams = Streams { stdin, stdout, stderr };
            let keyring = &keyring;
            container::run(container::ContainerStart {
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
            hooks: ContainerHooks::new(plan.hooks.as_ref()),
        })
    }

    /// Stores the terminal's master. Its output is the container's only stream. Only the first master is accepted:
    /// other processes may get access to the socket of a first process that has moved.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) -> sys::Result<()> {
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

    /// Returns whether a pid is that of its first process. If that has ended, another process may have the pid.
    pub(crate) fn is_child(&self, pid: i32) -> bool {
        self.child.is(pid) && !matches!(self.state, State::Exited(_))
    }

    /// Returns its phase, for a daemon that connects.
    pub(crate) fn phase(&self) -> Phase {
        match &self.state {
            State::Creating(_) => Phase::Creating,
            State::Created | State::Starting(_) | State::Failed(_) => Phase::Created,
            State::Running { started_at } => Phase::Running { started_at: *started_at },
            State::Exited(record) => Phase::Exited(record.clone()),
        }
    }

    /// Returns its exit record, if it has ended.
    pub(crate) fn record(&self) -> Option<ExitRecord> {
        match &self.state {
            State::Exited(record) => Some(record.clone()),
            _ => None,
        }
    }

    /// Records the end of its first process. Returns the exit record.
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
            // If only another process of the container was killed for lack of memory, and its first process ended
            // by itself, this is false.
            oom_killed: code == 137 && self.oom_kills() > 0,
            started_at,
            finished_at: now(),
            failure,
        };
        self.state = State::Exited(record.clone());
        record
    }

    /// Returns the number of OOM kills in the container's cgroup: `oom_kill N` is a line of both memory.events
    /// (v2) and memory.oom_control (v1).
    fn oom_kills(&self) -> u64 {
        let Some(oom) = &self.oom else { return 0 };
        let Ok(text) = sys::fs::read_all(oom, 4096) else { return 0 };
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix("oom_kill ")).map(str::trim);
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

impl StdioEnds {
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
