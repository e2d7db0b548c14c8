//! Clones this process. Everything that is only sound in a process with one thread is in this file, behind
//! functions that are safe to call.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use super::namespaces::Namespaces;
use super::process::exit_now;
use super::program::Program;
use super::{Context, Result, checked};

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The number of the descriptor that [`SingleThread::close_all_but`] keeps, if the program gets no others.
const PLACE: RawFd = 3;

/// The flags of the `clone` call of [`SingleThread::continue_as_sibling`], to check whether a seccomp filter
/// allows it.
pub const SIBLING_FLAGS: u64 = CLONE_PARENT;

/// The link count of `/proc/self/task` in a process with one thread: two, and one for the thread (fs/proc/base.c,
/// `proc_task_getattr`).
const LINKS_OF_ONE_THREAD: u32 = 3;

/// Proof that this process has one thread. The child of a clone has it. A process that starts a thread gives it
/// up.
///
/// In a child of a process with several threads any lock may be held forever, first of all the allocator's
/// (fork(2)). A child may continue as a normal program only with this proof.
#[derive(Debug)]
pub struct SingleThread(());

/// A child, from its parent's view.
#[derive(Debug)]
pub struct Child {
    /// The pid in the parent's process namespace.
    pub pid: i32,
    /// The pidfd, which never refers to another process.
    pub pidfd: OwnedFd,
}

/// The arguments of clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Clones this process, as fork(2) does, into new namespaces and, on cgroup v2, directly into a cgroup. The child
/// gets the second end of a socket and calls `run`. When `run` returns, the child ends. The parent keeps the first
/// end.
///
/// # Errors
/// The clone fails, or this process has several threads (`EBUSY`). Then there is no child.
pub fn spawn(
    namespaces: Namespaces,
    cgroup: Option<BorrowedFd<'_>>,
    (ours, theirs): (OwnedFd, OwnedFd),
    run: impl FnOnce(OwnedFd, SingleThread),
) -> Result<(Child, OwnedFd)> {
    let single = SingleThread::prove()?;
    if let Some(child) = single.clone3(namespaces, cgroup)? {
        return Ok((child, ours));
    }
    // The parent detects the child's end by the end of the socket, so the child must not hold both ends.
    drop(ours);
    run(theirs, single);
    exit_now(1);
}

impl SingleThread {
    /// Checks that this process has one thread.
    ///
    /// # Errors
    /// It has several (`EBUSY`).
    pub fn prove() -> Result<Self> {
        let task = "/proc/self/task";
        let stat = rustix::fs::statx(CWD, task, AtFlags::empty(), StatxFlags::NLINK).on("statx", task)?;
        match stat.stx_nlink {
            LINKS_OF_ONE_THREAD => Ok(Self(())),
            links => Err(Errno::BUSY).on("clone3", format_args!("{} threads", links.saturating_sub(2))),
        }
    }

    /// Returns `None` in the child.
    fn clone3(&self, namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>> {
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: namespaces.bits() | CLONE_PIDFD,
            pidfd: u64::try_from((&raw mut pidfd).expose_provenance()).unwrap_or(0),
            exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
            ..CloneArgs::default()
        };
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(0);
        }
        // SAFETY: without CLONE_VM and without a stack the child continues with a copy of this memory, as after
        // fork(2). `self` proves that no other thread holds a lock that would never be released in the copy.
        // `args` is a live struct of the given size, and `pidfd` outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
        let pid = checked(result).on("clone3", namespaces)?;
        if pid == 0 {
            return Ok(None);
        }
        // SAFETY: the kernel has just opened this descriptor for this process, and no other code owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Some(Child { pid: i32::try_from(pid).unwrap_or(0), pidfd }))
    }

    /// Clones a child into a new user namespace. It only waits to be killed.
    ///
    /// # Errors
    /// The clone fails. Then there is no child.
    pub fn spawn_userns_holder(&self) -> Result<Child> {
        match self.clone3(Namespaces::USER, None)? {
            Some(child) => Ok(child),
            None => loop {
                rustix::event::pause();
            },
        }
    }

    /// Clones this process as a child of its parent (clone(2), `CLONE_PARENT`), into new namespaces and into
    /// the PID namespace that was joined before. The parent is notified of the end of both. The old process exits;
    /// only the new one returns.
    ///
    /// # Errors
    /// The clone fails. Then there is no new process.
    pub fn continue_as_sibling(&self, namespaces: Namespaces) -> Result<()> {
        // Seccomp filters check the flags of clone(2). They cannot see those of clone3(2), so most of them reject
        // it. With CLONE_PARENT the exit signal is this process's, and none may be specified.
        let flags = SIBLING_FLAGS | namespaces.bits();
        // SAFETY: without CLONE_VM and without a stack the child continues with a copy of this memory, as after
        // fork(2). `self` proves that there are no other threads. No pointer is passed.
        let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) };
        match checked(result).on("clone", format_args!("{namespaces}, for the parent"))? {
            0 => Ok(()),
            _ => exit_now(0),
        }
    }

    /// Closes every descriptor of this process except for the standard streams, those after them that the program gets,
    /// and `keep`, which becomes the next one: descriptor 3 if the program gets none. Then calls `next`, which never
    /// returns, so nothing that owns a descriptor is used or dropped afterwards. The descriptors that the program gets lose
    /// their close-on-exec flag.
    ///
    /// # Errors
    /// Descriptors cannot be closed. Then the process is unchanged except for that descriptor.
    pub fn close_all_but(
        self,
        keep: OwnedFd,
        program: Program,
        next: fn(OwnedFd, Program, Self) -> !,
    ) -> Result<std::convert::Infallible> {
        let place = PLACE.saturating_add(RawFd::try_from(program.preserved).unwrap_or(RawFd::MAX));
        // SAFETY: `next` takes no reference, and `Program` contains no descriptor. Neither `next` nor this
        // function returns afterwards.
        let keep = unsafe { close_others(keep, place) }?;
        for number in PLACE..place {
            // SAFETY: the flags of a descriptor are changed, and no memory.
            let result = unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
            checked(result.into()).on("fcntl", number)?;
        }
        next(keep, program, self)
    }

    /// Like [`Self::close_all_but`], for a child that needs only the descriptor.
    ///
    /// # Errors
    /// Those of [`Self::close_all_but`].
    pub fn keep_only(self, keep: OwnedFd, next: fn(OwnedFd) -> !) -> Result<std::convert::Infallible> {
        // SAFETY: `next` takes no reference, and neither `next` nor this function returns after that.
        next(unsafe { close_others(keep, PLACE) }?)
    }
}

/// Closes all descriptors from `place` on except for `keep`, which becomes descriptor `place`.
///
/// # Safety
/// After a success, nothing that owns a descriptor from `place` on may be used or dropped.
///
/// # Errors
/// A system call failed. Then only descriptor `place` may have changed, and the caller may only report the error and
/// exit.
unsafe fn close_others(keep: OwnedFd, place: RawFd) -> Result<OwnedFd> {
    let keep = match keep.as_raw_fd() {
        number if number == place => keep,
        // SAFETY: the caller never uses or drops what owns this descriptor.
        number => match checked(unsafe { libc::dup3(number, place, libc::O_CLOEXEC) }.into()) {
            Ok(_) => {
                std::mem::forget(keep);
                // SAFETY: dup3 has just opened this descriptor, and the former owner of its number is never used
                // again.
                unsafe { OwnedFd::from_raw_fd(place) }
            }
            Err(errno) => return Err(errno).on("dup3", place),
        },
    };
    // SAFETY: the caller never uses or drops what owns one of these.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, place.saturating_add(1), libc::c_uint::MAX, 0) };
    checked(closed).on("close_range", place.saturating_add(1))?;
    Ok(keep)
}

/// Returns a duplicate of the descriptor that [`SingleThread::close_all_but`] kept, in a program that was executed with it. Both
/// are closed on exec.
///
/// # Errors
/// There is no such descriptor (`EBADF`).
pub fn inherited_gate() -> Result<OwnedFd> {
    // SAFETY: the call only reads the descriptor table, and fails if the number is not open.
    let number = unsafe { libc::fcntl(PLACE, libc::F_DUPFD_CLOEXEC, PLACE + 1) };
    checked(number.into()).on("fcntl(F_DUPFD_CLOEXEC)", PLACE)?;
    // SAFETY: the call only changes a flag of the descriptor.
    let flagged = unsafe { libc::fcntl(PLACE, libc::F_SETFD, libc::FD_CLOEXEC) };
    checked(flagged.into()).on("fcntl(F_SETFD)", PLACE)?;
    // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test harness has at least two.
        let pair = crate::sys::socket::pair().unwrap();
        let error = spawn(Namespaces::NONE, None, pair, |_, _| {}).unwrap_err();
        assert_eq!((error.errno, error.call), (Errno::BUSY, "clone3"), "{error}");
    }
}
