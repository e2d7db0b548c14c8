//! The keeper: parent of everything that runs in one pod. One thread, one epoll, no daemon needed: it reaps, records how
//! containers end, writes their logs and owns their terminals, whether a daemon is there or not.
//!
//! It is started with a listening socket as descriptor 0, the pause's program as 1 and its own log as 2.
//!
//! * [`keeper`], [`watch`]: the event loop
//! * [`connection`]: daemons that come and go
//! * [`calls`]: what they ask
//! * [`pause`], [`container`], [`exec`]: the children; [`supervisor`]: who answers for their system calls
//! * [`attach`]: clients of a container's streams
//! * [`output`], [`lines`], [`log`], [`stamp`]: output, as lines of a CRI log
//! * [`writer`], [`write_process`]: a child that writes to disks, which may hang
//! * [`ending`]: the exit of a container is reported when its log is written

#![forbid(unsafe_code)]

mod attach;
mod calls;
mod connection;
mod container;
mod ending;
mod exec;
mod keeper;
mod lines;
mod log;
mod output;
mod pause;
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

/// Below every container's own score, so that the kernel takes a container first when memory is short.
const OOM_SCORE_ADJ: &str = "-999";

/// SIGHUP, SIGINT, SIGPIPE, SIGTERM: a keeper ends when it is told to over its socket, or by SIGKILL.
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
    // A child of the keeper starts with a copy of its memory, and may be traced by a container before its exec: the
    // environment of another container must not be in it.
    memory::wipe_what_is_freed();
    let listener = above_streams(rustix::stdio::stdin())?;
    let pause_program = above_streams(rustix::stdio::stdout())?;
    // Nothing that whoever started the daemon had open goes on to a pause or a container.
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
    // Without CAP_SYS_RESOURCE the score cannot go down: then it stays what the daemon has.
    let proc = Proc::mount()?;
    let _kept = proc.write("self/oom_score_adj", OOM_SCORE_ADJ);
    Keeper::new(listener, pause_program, null, proc)
}

/// The same file by a descriptor that is no standard stream.
fn above_streams(fd: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    use sys::Context;
    rustix::io::fcntl_dupfd_cloexec(fd, 3).on("fcntl(F_DUPFD_CLOEXEC)", "a standard stream")
}

/// A line in the keeper's own log.
fn report(line: &str) {
    let stamp = stamp::Stamp::of(stamp::now());
    let text = format!("{} {line}\n", stamp.as_str());
    let _no_log = rustix::io::write(std::io::stderr(), text.as_bytes());
}
