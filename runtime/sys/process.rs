//! Processes: clone3(2), exec, waiting by pidfd, namespaces.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

use super::{Context, Result, checked};

/// `CLONE_NEWNS` and the other namespaces (clone(2)).
pub mod namespace {
    /// Mounts.
    pub const MOUNT: u64 = 0x0002_0000;
    /// Cgroups.
    pub const CGROUP: u64 = 0x0200_0000;
    /// Host name.
    pub const UTS: u64 = 0x0400_0000;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = 0x0800_0000;
    /// Users.
    pub const USER: u64 = 0x1000_0000;
    /// Processes.
    pub const PID: u64 = 0x2000_0000;
    /// Network.
    pub const NET: u64 = 0x4000_0000;
}

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

const CLONE_PARENT: u64 = 0x8000;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child as its parent sees it.
#[derive(Debug)]
pub struct Child {
    /// In the parent's process namespace.
    pub pid: i32,
    /// The process by descriptor: it never means another one.
    pub pidfd: OwnedFd,
}

/// Clones this process, which must have a single thread, as fork(2) does, into new namespaces (`namespace::*`) and, on
/// cgroup v2, straight into a cgroup. In the child `run` is called; when that returns, the child ends.
///
/// # Errors
/// The kernel refuses; there is no child then.
pub fn clone_child(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, run: impl FnOnce()) -> Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: namespaces | CLONE_PIDFD,
        pidfd: u64::try_from((&raw mut pidfd).addr()).unwrap_or(0),
        exit_signal: u64::try_from(libc::SIGCHLD).unwrap_or(0),
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(0);
    }
    // SAFETY: without CLONE_VM and without a stack the child goes on with a copy of this memory, as after fork(2). The
    // caller has one thread, so that no lock of the allocator is held by a thread that the copy lacks. `args` is
    // valid for the size given and `pidfd` outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    let pid = checked(result).on("clone3", format_args!("flags {namespaces:#x}"))?;
    if pid == 0 {
        run();
        exit_now(1);
    }
    // SAFETY: the kernel has just opened this descriptor for this process and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: i32::try_from(pid).unwrap_or(0), pidfd })
}

/// Clones this process as [`clone_child`] does, but for its parent, and goes on in both: `None` is the new one, whose end
/// is told to that parent as this one's is (clone(2), `CLONE_PARENT`).
///
/// # Errors
/// The kernel refuses; there is no new process then.
pub fn clone_sibling(namespaces: u64) -> Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    // With CLONE_PARENT the signal is that of this process, and none may be named.
    let mut args = CloneArgs {
        flags: namespaces | CLONE_PARENT | CLONE_PIDFD,
        pidfd: u64::try_from((&raw mut pidfd).addr()).unwrap_or(0),
        ..CloneArgs::default()
    };
    // SAFETY: as in `clone_child`.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    let pid = checked(result).on("clone3", format_args!("flags {namespaces:#x}, for the parent"))?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has just opened this descriptor for this process and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child { pid: i32::try_from(pid).unwrap_or(0), pidfd }))
}

/// Ends this process at once: no destructors, no buffers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) is safe at any point of a process.
    unsafe { libc::_exit(code) }
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// The exit code, or 128 plus the signal, as shells and the CRI count.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        }
    }
}

/// Reaps a child by its pidfd if it has ended.
///
/// # Errors
/// It is no child of this process.
pub fn reap(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), options).on("waitid", "pidfd")?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended::Code(code),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    }))
}

/// Waits for the end of a child and reaps it.
///
/// # Errors
/// It is no child of this process.
pub fn wait(pidfd: BorrowedFd<'_>) -> Result<()> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            waited => return waited.map(drop).on("waitid", "pidfd"),
        }
    }
}

/// A child that has ended, without reaping it; its pid.
#[must_use]
pub fn peek_ended() -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    // SAFETY: siginfo_t is plain data for which all zeroes are valid, and the call only writes to it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = i32::try_from(options.bits()).unwrap_or(0);
    // SAFETY: `info` is a live siginfo_t.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) };
    if result != 0 {
        return None;
    }
    // SAFETY: after a successful waitid the pid is valid; it is 0 where no child has ended.
    let pid = unsafe { info.si_pid() };
    (pid > 0).then_some(pid)
}

/// Reaps a child by its pid if it has ended.
pub fn reap_pid(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // One that is no child or has not ended leaves nothing to do.
        let _nothing = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}

/// Sends a signal to the process that a pidfd stands for. One that has ended is a success.
///
/// # Errors
/// The signal is not one, or the caller may not.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<()> {
    // SAFETY: the arguments are a live descriptor, a number, no siginfo and no flags.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match checked(result) {
        Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno).on("pidfd_send_signal", number),
    }
}

/// Kills the process that a pidfd stands for. One that has ended is a success.
pub fn kill(pidfd: BorrowedFd<'_>) {
    // The only other error is that of a process which is gone.
    let _gone = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

/// Joins namespaces of the process that a pidfd stands for, all in one call (setns(2)).
///
/// # Errors
/// The process has ended, or the caller may not.
pub fn join_namespaces_of(pidfd: BorrowedFd<'_>, namespaces: u64) -> Result<()> {
    let kinds = ThreadNameSpaceType::from_bits_retain(u32::try_from(namespaces).unwrap_or(0));
    rustix::thread::move_into_thread_name_spaces(pidfd, kinds)
        .on("setns", format_args!("namespaces {namespaces:#x}"))
}

/// Joins the namespace that a descriptor of `/proc/PID/ns/*` stands for; its kind is checked.
///
/// # Errors
/// It is of another kind, or the caller may not.
pub fn join_namespace(namespace: BorrowedFd<'_>, kind: u64) -> Result<()> {
    let kind = match kind {
        namespace::MOUNT => LinkNameSpaceType::Mount,
        namespace::PID => LinkNameSpaceType::ProcessID,
        namespace::NET => LinkNameSpaceType::Network,
        namespace::IPC => LinkNameSpaceType::InterProcessCommunication,
        namespace::UTS => LinkNameSpaceType::HostNameAndNISDomainName,
        namespace::CGROUP => LinkNameSpaceType::ControlGroup,
        _ => LinkNameSpaceType::User,
    };
    rustix::thread::move_into_link_name_space(namespace, Some(kind)).on("setns", format_args!("{kind:?}"))
}

/// Leaves namespaces for new ones (unshare(2)).
///
/// # Errors
/// The caller may not.
pub fn unshare(namespaces: u64) -> Result<()> {
    let flags = UnshareFlags::from_bits_retain(u32::try_from(namespaces).unwrap_or(0));
    // SAFETY: none of the namespace flags takes descriptors or memory away from another thread (unshare(2)):
    // CLONE_FILES and CLONE_VM are not among them.
    unsafe { rustix::thread::unshare_unsafe(flags) }.on("unshare", format_args!("{namespaces:#x}"))
}

/// Strings as execve(2) takes them.
#[derive(Debug)]
pub struct CStrings {
    strings: Vec<CString>,
}

impl CStrings {
    /// Takes strings over; a NUL byte in one ends it, since the compiler of plans has refused those.
    #[must_use]
    pub fn new(strings: &[String]) -> Self {
        let terminated = |text: &String| {
            let bytes = text.as_bytes();
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            CString::new(bytes.get(..end).unwrap_or_default()).unwrap_or_default()
        };
        Self { strings: strings.iter().map(terminated).collect() }
    }

    fn pointers(&self) -> Vec<*const libc::c_char> {
        self.strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// Becomes another program (execve(2)). Returns only on failure.
#[must_use]
pub fn exec(path: &str, arguments: &CStrings, environment: &CStrings) -> rustix::io::Errno {
    let Ok(path) = CString::new(path) else { return rustix::io::Errno::INVAL };
    let (arguments, environment) = (arguments.pointers(), environment.pointers());
    // SAFETY: the path is a C string, both arrays hold pointers to C strings that live on, and end with a null.
    let result = unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    checked(result.into()).err().unwrap_or(rustix::io::Errno::IO)
}

/// Becomes the program in a descriptor (execveat(2)). Returns only on failure.
#[must_use]
pub fn exec_descriptor(program: BorrowedFd<'_>, name: &str) -> rustix::io::Errno {
    let arguments = CStrings::new(&[name.to_owned()]);
    let (arguments, environment) = (arguments.pointers(), [std::ptr::null::<libc::c_char>()]);
    // SAFETY: as in `exec`; the path is empty, which AT_EMPTY_PATH allows.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    checked(result).err().unwrap_or(rustix::io::Errno::IO)
}

/// Marks every descriptor from `first` on to be closed by exec (close_range(2)).
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: no descriptor is closed here, only marked.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    checked(result).map(drop).on("close_range", first)
}

/// Gives every signal its default action and blocks none: what an exec'd program expects. Rust's runtime ignores
/// SIGPIPE, the keeper more, and ignored signals stay ignored over exec (signal(7)).
pub fn default_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL is a valid action for every signal; those that cannot be changed answer an error.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: an empty set made by sigemptyset is valid, and no old mask is asked for.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Ignores signals.
pub fn ignore_signals(numbers: &[i32]) {
    for number in numbers {
        // SAFETY: SIG_IGN is a valid action; signals that cannot be ignored answer an error.
        unsafe { libc::signal(*number, libc::SIG_IGN) };
    }
}

/// Closes every descriptor but 0, 1, 2 and `keep`, which becomes 3, closed on exec. For a process that will exec or
/// end, and that uses no other descriptor any more.
///
/// # Errors
/// The kernel is older than 5.9.
pub fn keep_alone(keep: OwnedFd) -> Result<OwnedFd> {
    const PLACE: RawFd = 3;
    if keep.as_raw_fd() != PLACE {
        // SAFETY: dup3 closes what is at 3; this process uses no descriptor but 0 to 2 and `keep` any more, and never
        // drops the others: it execs or ends by _exit.
        let moved = unsafe { libc::dup3(keep.as_raw_fd(), PLACE, libc::O_CLOEXEC) };
        checked(moved.into()).on("dup3", PLACE)?;
    }
    std::mem::forget(keep);
    // SAFETY: as above.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, PLACE + 1, libc::c_uint::MAX, 0) };
    checked(closed).on("close_range", PLACE + 1)?;
    // SAFETY: the descriptor is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(PLACE) })
}

/// A descriptor that is readable when a child has ended: SIGCHLD is blocked and comes by it (signalfd(2)).
///
/// # Errors
/// No more descriptors.
pub fn child_signals() -> Result<OwnedFd> {
    // SAFETY: the set is made by sigemptyset and sigaddset before it is used, and no old mask is asked for.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    checked(fd.into()).on("signalfd", "")?;
    // SAFETY: the kernel has just opened this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes descriptor `number` over, which this process was started with, and moves it above the standard streams.
///
/// # Errors
/// It is not open.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: the descriptor is only copied here; what stands at `number` is replaced by the caller (`put_at`).
    let moved = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    checked(moved.into()).on("fcntl(F_DUPFD_CLOEXEC)", number)?;
    // SAFETY: the kernel has just opened this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Closes a descriptor that another owner in this process still stands for: only for a child that never drops that
/// owner, since it execs or ends by `_exit`.
///
/// # Errors
/// It is not open.
pub fn close(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the caller is a child that uses the descriptor's owner no more, nor drops it.
    let result = unsafe { libc::close(fd.as_raw_fd()) };
    checked(result.into()).map(drop).on("close", "")
}
