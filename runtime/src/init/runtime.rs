//! The steps of the caller: a child of the keeper that calls the OCI runtime of a container, so that a runtime that hangs does
//! not stop the keeper. It ends after the call, and reports the process that the runtime has created. That process becomes
//! a child of the keeper, which is the subreaper, when the runtime has ended.
//!
//! The caller has a private mount namespace. The root filesystem and the mounts that come from outside of the container are
//! attached in the bundle there, and the runtime finds them by their paths. A folder in memory covers the daemon's folder, so that
//! root of a user namespace may enter the bundle, and the runtime does not see other containers. The container's mount namespace
//! is a copy of it. With the caller, all of that is gone.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;

use super::container::{self, ContainerStart};
use super::mounts::{self, MountSource};
use super::restore::{attach_by_kind, make_folder};
use super::{At, Descriptors, Gate, StepResult, Streams};
use crate::path::Root;
use crate::plan::{CgroupJoin, ExecPlan, FdSlot, MountKind, MountOp, RuntimeExec, RuntimePlan};
use crate::runtime_call::{RuntimeCall, RuntimeCallError};
use crate::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, FsContext};
use crate::sys::namespaces::{self, Namespaces};
use crate::sys::process::{default_signals, exit_now};
use crate::sys::{self, Context, pty, security};
use crate::wire::transport::Report;
use crate::wire::{InitFailure, Step};

/// The spec, in the bundle.
const CONFIG: &str = "config.json";
/// The root filesystem, in the bundle.
const ROOT: &str = "rootfs";
/// The folder of the caller's files, in the bundle.
const RUN: &str = "run";
/// The mounts of the plan that come from outside of the container, by their index in the plan, in the bundle.
pub const MOUNTS: &str = "run/mounts";

/// The file with the processes of a cgroup.
const PROCS: &str = "cgroup.procs";

/// The longest path of a socket (unix(7)).
const SOCKET_PATH: usize = 107;

/// How long a terminal may arrive after the runtime has ended.
const TERMINAL_DELAY: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Creates a container. The process ends after its report.
pub fn create(start: ContainerStart<'_>, runtime: &RuntimePlan) -> ! {
    let place = CallPlace::of(runtime);
    let created = prepare(&start, &place).and_then(|()| {
        let bundle = [Path::new("--bundle"), &place.bundle];
        let call = place.call("create").args(bundle);
        let terminal = start.plan.stdio.tty.then_some(start.plan.process.terminal_size);
        place.call_for_process(call, terminal, &start.streams, &start.gate)
    });
    end(start.gate, created)
}

/// Lets the command of a created container run. The process ends after its report.
pub fn start(runtime: &RuntimePlan, gate: Gate) -> ! {
    let place = CallPlace::of(runtime);
    let started = place.enter().and_then(|()| {
        let call = place.call("start").args([&runtime.id]);
        call.run(Some(gate.socket.as_fd())).map_err(call_failure)
    });
    match started {
        Ok(()) => gate.report(&Report::Ready, None),
        Err(failure) => gate.report_at_length(&failure),
    }
    exit_now(0)
}

/// The arguments of [`exec`].
#[derive(Debug)]
pub struct RuntimeExecStart<'a> {
    /// The container's runtime.
    pub runtime: &'a RuntimePlan,
    /// The exec's plan.
    pub plan: &'a ExecPlan,
    /// The part of the plan that the runtime reads.
    pub exec: &'a RuntimeExec,
    /// The descriptors that the plan's slots refer to.
    pub descriptors: Descriptors<'a>,
    /// The standard streams. A terminal replaces them.
    pub streams: Streams<'a>,
    /// The socket to the keeper.
    pub gate: Gate,
}

/// Starts a further process in a container. The process ends after its report.
pub fn exec(start: RuntimeExecStart<'_>) -> ! {
    let RuntimeExecStart { runtime, plan, exec, descriptors, streams, gate } = start;
    let place = CallPlace::of(runtime);
    let started = place.enter().and_then(|()| {
        let process = place.run.join("process.json");
        std::fs::write(&process, &exec.process)
            .map_err(|error| caller_failure("write the process", &error))?;
        let call = place.call("exec").args([Path::new("--detach"), Path::new("--process"), &process]);
        let terminal = plan.tty.then_some(plan.process.terminal_size);
        let cgroup = exec.cgroup.iter().flat_map(|cgroup| ["--cgroup", cgroup]);
        let pid = place.call_for_process(call.args(cgroup), terminal, &streams, &gate)?;
        if exec.cgroup.is_none() {
            move_to_cgroup(&plan.cgroup, descriptors, pid)?;
        }
        Ok(pid)
    });
    end(gate, started)
}

/// Moves a process to its cgroup, if it has not ended. Processes that it has started before stay in the container's cgroup.
fn move_to_cgroup(cgroup: &CgroupJoin, descriptors: Descriptors<'_>, pid: i32) -> StepResult<()> {
    let v2 = cgroup.directory.map(|slot| descriptors.get(slot).map(|folder| folder_of(folder).join(PROCS)));
    let tasks = |slot: &FdSlot| descriptors.get(*slot).map(|tasks| folder_of(tasks).with_file_name(PROCS));
    for file in v2.into_iter().chain(cgroup.tasks.iter().map(tasks)) {
        match std::fs::write(file.at(Step::Cgroup)?, pid.to_string()) {
            Err(error) if Errno::from_io_error(&error) != Some(Errno::SRCH) => {
                return Err(caller_failure("move the process to its cgroup", &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns the path of a descriptor.
fn folder_of(fd: BorrowedFd<'_>) -> PathBuf {
    std::fs::read_link(sys::fs::descriptor_path(fd)).unwrap_or_default()
}

/// Reports the process that the runtime has created, or the failure.
fn end(gate: Gate, created: StepResult<i32>) -> ! {
    match created {
        Ok(pid) => gate.report(&Report::Created { pid }, None),
        Err(failure) => gate.report_at_length(&failure),
    }
    exit_now(0)
}

/// Attaches the root filesystem and the mounts.
fn prepare(start: &ContainerStart<'_>, place: &CallPlace<'_>) -> StepResult<()> {
    let ContainerStart { plan, descriptors, joined, .. } = start;
    let pod_mounts = container::open_pod_mounts(plan, *joined)?;
    let userns = joined.userns.filter(|_| plan.userns.is_some());
    let opener =
        mounts::Opener { descriptors: *descriptors, pod_mounts: &pod_mounts, userns, single: &start.single };
    // Clones that are made here stay in the peer groups of the host's mounts, for propagation.
    let sources = opener.open_all(&plan.mounts)?;
    place.enter()?;
    let rootfs = descriptors.get(plan.rootfs).at(Step::AttachRootfs)?;
    let attached = mount::place(&place.path(ROOT)).and_then(|root| mount::attach(rootfs, root.as_fd()));
    attached.at(Step::AttachRootfs)?;
    let root = Root::new(mount::same_place(rootfs).at(Step::AttachRootfs)?);
    container::make_folders(plan, &root)?;
    let folder = place.path(MOUNTS);
    make_folder(&folder).at(Step::Runtime)?;
    for (index, (op, source)) in plan.mounts.iter().zip(sources).enumerate() {
        attach_mount(op, source, &format!("{folder}/{index}"), index)?;
    }
    Ok(())
}

/// Attaches a mount that comes from outside of the container. The runtime creates all others.
fn attach_mount(op: &MountOp, source: MountSource, path: &str, index: usize) -> StepResult<()> {
    match source {
        MountSource::Tree(tree) if !matches!(op.kind, MountKind::Filesystem { .. }) => {
            mounts::set_attributes(tree.as_fd(), op).at_index(Step::MountAttributes, index)?;
            attach_by_kind(&tree, path).at_index(Step::Mount, index)
        }
        _ => Ok(()),
    }
}

/// The place of a call: the bundle in the caller's mount namespace.
struct CallPlace<'a> {
    runtime: &'a RuntimePlan,
    bundle: PathBuf,
    run: PathBuf,
}

impl<'a> CallPlace<'a> {
    fn of(runtime: &'a RuntimePlan) -> Self {
        // The keeper ignores signals, and its children inherit that.
        default_signals();
        drop(security::set_dumpable(false));
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let bundle = PathBuf::from(&runtime.bundle);
        Self { runtime, run: bundle.join(RUN), bundle }
    }

    /// Enters a new mount namespace, which receives the host's mounts and sends none, with the bundle in memory.
    fn enter(&self) -> StepResult<()> {
        namespaces::unshare(Namespaces::MOUNT).at(Step::Unshare)?;
        let root = mount::place("/").at(Step::PrivateMounts)?;
        mount::set_attributes(root.as_fd(), 0, 0, mount::SLAVE, true).at(Step::PrivateMounts)?;
        let config = self.bundle.join(CONFIG);
        let text = std::fs::read(&config).map_err(|error| caller_failure("read the spec", &error))?;
        self.cover().at(Step::Runtime)?;
        let fill = || {
            std::fs::create_dir_all(&self.run)?;
            std::fs::create_dir(self.bundle.join(ROOT))?;
            std::fs::write(&config, &text)
        };
        fill().map_err(|error| caller_failure("create the bundle", &error))
    }

    fn cover(&self) -> sys::Result<()> {
        let context = FsContext::open("tmpfs")?;
        context.set("source", Some("runtime"))?;
        context.set("mode", Some("755"))?;
        let tree = context.mount(ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?;
        mount::attach(tree.as_fd(), mount::place(&self.runtime.covered)?.as_fd())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.runtime.bundle)
    }

    fn call(&self, command: &str) -> RuntimeCall {
        let (program, root) = (Path::new(&self.runtime.program), Path::new(&self.runtime.root));
        let allowed = Duration::from_secs(self.runtime.seconds);
        RuntimeCall::about_container(program, root, command, Some(&self.run.join("log")), allowed)
            .current_dir(&self.bundle)
    }

    /// Makes a call that creates a process, with a terminal, whose size may be known, or with streams. Returns its pid.
    fn call_for_process(
        &self,
        call: RuntimeCall,
        terminal: Option<Option<(u16, u16)>>,
        streams: &Streams<'_>,
        gate: &Gate,
    ) -> StepResult<i32> {
        let pid_file = self.run.join("pid");
        let call = call.args([Path::new("--pid-file"), &pid_file]);
        let cancel = Some(gate.socket.as_fd());
        if let Some(size) = terminal {
            let socket = sys::socket::listen_stream(&self.run, "tty").at(Step::Terminal)?;
            let call = call.args([Path::new("--console-socket"), &self.console()]).args([&self.runtime.id]);
            call.run(cancel).map_err(call_failure)?;
            let master = receive_terminal(socket.as_fd()).at(Step::Terminal)?;
            // Some runtimes ignore the size in the spec.
            if let Some((width, height)) = size {
                pty::resize(master.as_fd(), width, height).at(Step::Terminal)?;
            }
            gate.report(&Report::Terminal, Some(master.as_fd()));
        } else {
            let streams = [streams.stdin, streams.stdout, streams.stderr];
            let [stdin, stdout, stderr] = streams.map(stream);
            let streams = [stdin.at(Step::Stdio)?, stdout.at(Step::Stdio)?, stderr.at(Step::Stdio)?];
            call.args([&self.runtime.id]).run_with(streams, cancel).map_err(call_failure)?;
        }
        let text =
            std::fs::read_to_string(&pid_file).map_err(|error| caller_failure("read the pid", &error))?;
        text.trim().parse().map_err(|_| runtime_failure(0, format!("its pid file contains {text:?}")))
    }

    /// Returns the path of the socket for the terminal. A long one is relative to the bundle, where the runtime runs.
    fn console(&self) -> PathBuf {
        let whole = self.run.join("tty");
        match whole.as_os_str().len() > SOCKET_PATH {
            true => Path::new(RUN).join("tty"),
            false => whole,
        }
    }
}

/// Returns a standard stream of the runtime.
fn stream(fd: Option<BorrowedFd<'_>>) -> sys::Result<Stdio> {
    match fd {
        Some(fd) => Ok(Stdio::from(fd.try_clone_to_owned().on("dup", "a standard stream")?)),
        None => {
            let null = File::options().read(true).write(true).open("/dev/null");
            let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Ok(Stdio::from(null.map_err(errno).on("open", "/dev/null")?))
        }
    }
}

/// Receives the master of a terminal that the runtime has sent.
fn receive_terminal(socket: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    wait_for(socket)?;
    let connection = sys::socket::accept(socket)?;
    wait_for(connection.as_fd())?;
    let mut name = [0_u8; 4096];
    let packet = sys::socket::receive_from(connection.as_fd(), &mut name)?;
    packet.descriptors.into_iter().next().ok_or(Errno::BADF).on("recvmsg", "the terminal of the runtime")
}

fn wait_for(socket: BorrowedFd<'_>) -> sys::Result<()> {
    let mut watched = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    match poll(&mut watched, Some(&TERMINAL_DELAY)).on("poll", "the console socket")? {
        0 => Err(Errno::TIMEDOUT).on("poll", "the console socket"),
        _ => Ok(()),
    }
}

fn call_failure(error: RuntimeCallError) -> InitFailure {
    runtime_failure(0, error.to_string())
}

fn caller_failure(action: &str, error: &std::io::Error) -> InitFailure {
    runtime_failure(error.raw_os_error().unwrap_or_default(), action.to_owned())
}

fn runtime_failure(errno: i32, detail: String) -> InitFailure {
    InitFailure { step: Step::Runtime, errno, index: None, detail }
}
