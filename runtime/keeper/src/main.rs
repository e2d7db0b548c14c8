//! The keeper: the parent of all processes of one pod. It has one thread and one epoll. With or without a running
//! daemon, it reaps processes, records how containers end, writes their logs and owns their terminals.
//!
//! Its descriptors at the start are a listening socket (0), the pause's program (1) and its own log (2).
//!
//! * [`keeper`]: the event loop, which passes events and calls on; [`watch`]: the descriptors that it waits for
//! * [`services`]: used by all parts: [`connections`] of daemons, the [`writer`], [`buffers`], the watched descriptors
//! * [`pause`], [`containers`], [`execs`]: the children; [`gate`]: their reports; [`supervisor`]: supervisors of their
//!   system calls
//! * [`container`]: the life of one container, with its [`output`] and [`log`], its [`attachments`] ([`client`],
//!   [`input`]), and its [`hooks`] of the host, which run in a child
//! * [`orphans`]: the ends of processes that an OCI runtime leaves
//! * [`lines`], [`stamp`]: conversion of output to lines of a CRI log
//! * [`writer`], [`write_process`]: a child that writes to disks, which may hang
//! * [`connection`]: a daemon's connection
//! * [`failure`]: answers to calls, and the failures that they report
//! * [`spawn`]: clones a child into its cgroup, with a socket between it and the keeper

#![forbid(unsafe_code)]

mod attachments;
mod buffers;
mod client;
mod connection;
mod connections;
mod container;
mod containers;
mod execs;
mod failure;
mod gate;
mod hooks;
mod input;
mod keeper;
mod lines;
mod log;
mod orphans;
mod output;
mod pause;
mod services;
mod spawn;
mod stamp;
mod supervisor;
mod watch;
mod write_process;
mod writer;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;

use berth_runtime::procfs::Proc;
use berth_runtime::sys::{self, keys, memory, process, security};
use rustix::fs::{CWD, Mode, OFlags};

use crate::keeper::Keeper;
use crate::pause::PauseProgram;

/// Lower than every container's score, so that the kernel kills containers first when memory is short.
const OOM_SCORE_ADJ: &str = "-999";

/// SIGHUP, SIGINT, SIGPIPE, SIGTERM. Only a call on its socket, or SIGKILL, ends a keeper.
const IGNORED: [i32; 4] = [1, 2, 13, 15];

fn main() -> ExitCode {
    match start().and_then(Keeper::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn start() -> sys::Result<Keeper> {
    use sys::Context;
    // A child of the keeper starts with a copy of its memory, and a container may trace it before its exec. The
    // copy must not contain another container's environment.
    memory::wipe_freed_memory();
    let listener = above_streams(rustix::stdio::stdin())?;
    let program = above_streams(rustix::stdio::stdout())?;
    // Descriptors that the daemon inherited must not be inherited by a pause or a container.
    process::close_on_exec_from(3)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = rustix::fs::openat(CWD, "/dev/null", flags, Mode::empty()).on("open", "/dev/null")?;
    rustix::stdio::dup2_stdin(&null).on("dup2", "/dev/null")?;
    rustix::stdio::dup2_stdout(&null).on("dup2", "/dev/null")?;
    keys::leave_session()?;
    process::ignore_signals(&IGNORED);
    rustix::process::setsid().on("setsid", "")?;
    rustix::process::chdir("/").on("chdir", "/")?;
    security::set_name(c"berth-keeper")?;
    security::set_dumpable(false)?;
    security::become_subreaper()?;
    // Without CAP_SYS_RESOURCE the score cannot be lowered, and stays the daemon's.
    let proc = Proc::mount()?;
    let _kept = proc.write("self/oom_score_adj", OOM_SCORE_ADJ);
    Keeper::new(listener, PauseProgram { program, null }, proc)
}

/// Duplicates a descriptor to one that is not a standard stream.
fn above_streams(fd: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    use sys::Context;
    rustix::io::fcntl_dupfd_cloexec(fd, 3).on("fcntl(F_DUPFD_CLOEXEC)", "a standard stream")
}

/// Writes a line to the keeper's own log.
fn report(line: &str) {
    let stamp = stamp::Stamp::of(stamp::now());
    let text = format!("{} {line}\n", stamp.as_str());
    let _no_log = rustix::io::write(std::io::stderr(), text.as_bytes());
}
