//! The data that a process needs to execute another program after all its descriptors are closed.

use std::ffi::CString;

use rustix::io::Errno;

use super::checked;
use crate::plan::{CapabilityMasks, Hooks};

/// Strings in the form that execve(2) requires.
#[derive(Debug)]
pub struct CStrings {
    strings: Vec<CString>,
}

impl CStrings {
    /// Converts strings. A string is cut at a NUL byte; the compiler of plans rejects such strings.
    #[must_use]
    pub fn new(strings: &[String]) -> Self {
        let terminated = |text: &String| {
            let bytes = text.as_bytes();
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            CString::new(bytes.get(..end).unwrap_or_default()).unwrap_or_default()
        };
        Self { strings: strings.iter().map(terminated).collect() }
    }

    pub(super) fn pointers(&self) -> Vec<*const libc::c_char> {
        self.strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// A seccomp filter, read from its descriptor.
#[derive(Debug)]
pub struct FilterProgram {
    /// An array of `struct sock_filter`.
    pub bytes: Vec<u8>,
    /// The flags of seccomp(2) (`SECCOMP_FILTER_FLAG_*`).
    pub flags: u64,
    /// Whether it passes system calls to a supervisor.
    pub notifies: bool,
    /// Whether it may reject the system calls with which a process reports that its exec failed.
    pub mute: bool,
    /// Whether it allows every system call between its loading and the exec.
    pub early: bool,
}

/// The parameters of the last steps before the exec. They contain no descriptor, neither owned nor borrowed nor as
/// a number, because they outlive all descriptors (`SingleThread::close_all_but`).
#[derive(Debug)]
pub struct Program {
    /// The possible paths of the program, in the order in which they are tried.
    pub paths: CStrings,
    /// The arguments, starting with the name.
    pub arguments: CStrings,
    /// The environment, as `NAME=value`.
    pub environment: CStrings,
    /// The filter that is loaded before the exec.
    pub filter: Option<FilterProgram>,
    /// The capabilities of the process when the filter is loaded.
    pub capabilities: CapabilityMasks,
    /// The soft and the hard limit on the user's processes (`RLIMIT_NPROC`). The process that sets it counts as
    /// well.
    pub processes: Option<(u64, u64)>,
    /// Whether standard input is a terminal, which becomes the controlling terminal.
    pub terminal: bool,
    /// Whether the process has joined another process's PID namespace, in which a new process continues.
    pub joins_processes: bool,
    /// Whether the process reports that it is ready, and waits for the keeper before it calls exec.
    pub waits: bool,
    /// Whether the program gets the socket to the keeper.
    pub keeps_gate: bool,
    /// The number of descriptors after the standard streams that the program gets.
    pub preserved: u32,
    /// Hooks that run in the container before the program.
    pub start_hooks: Option<Hooks>,
}

impl Program {
    /// Executes the program (execve(2)). Tries one path after the other, as execvp(3) does. Returns only on
    /// failure.
    #[must_use]
    pub fn exec(&self) -> Errno {
        let mut worst = Errno::NOENT;
        let (arguments, environment) = (self.arguments.pointers(), self.environment.pointers());
        for path in &self.paths.strings {
            // SAFETY: the path is a C string. Both arrays contain pointers to live C strings and end with a null
            // pointer.
            let result = unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            match checked(result.into()).err().unwrap_or(Errno::IO) {
                Errno::NOENT | Errno::NOTDIR => {}
                // The search continues. If it finds nothing, this is the error.
                Errno::ACCESS => worst = Errno::ACCESS,
                errno => return errno,
            }
        }
        worst
    }
}
