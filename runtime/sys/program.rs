//! What a process needs to become another program when all its descriptors are closed: memory alone.

use std::ffi::CString;

use rustix::io::Errno;

use super::checked;
use crate::plan::CapabilityMasks;

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

    pub(super) fn pointers(&self) -> Vec<*const libc::c_char> {
        self.strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// A filter of system calls, read from its descriptor.
#[derive(Debug)]
pub struct FilterProgram {
    /// An array of `struct sock_filter`.
    pub bytes: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    /// It hands calls over to a supervisor.
    pub notifies: bool,
    /// It may refuse the calls by which a process tells that it could not exec.
    pub mute: bool,
    /// It allows all that a process does after it has loaded the filter, up to its exec.
    pub early: bool,
}

/// The last part of the way to a program. It holds no descriptor, owned or borrowed, and no number of one: it outlives them
/// (`SingleThread::close_all_but`).
#[derive(Debug)]
pub struct Program {
    /// Where the program may be, in the order in which the paths are tried.
    pub paths: CStrings,
    /// Its arguments, the name first.
    pub arguments: CStrings,
    /// `NAME=value`.
    pub environment: CStrings,
    /// Loaded before the exec.
    pub filter: Option<FilterProgram>,
    /// What the process may do when the filter is loaded.
    pub capabilities: CapabilityMasks,
    /// Soft and hard limit of processes of the user (`RLIMIT_NPROC`), which counts the process that sets it.
    pub processes: Option<(u64, u64)>,
    /// Standard input is a terminal, which becomes the controlling one.
    pub terminal: bool,
    /// The process namespace of another process has been joined: a new process goes on there.
    pub joins_processes: bool,
    /// It tells that it is ready and waits for leave to exec.
    pub waits: bool,
}

impl Program {
    /// Becomes the program (execve(2)), trying one path after the other as execvp(3) does. Returns only on failure.
    #[must_use]
    pub fn exec(&self) -> Errno {
        let mut worst = Errno::NOENT;
        let (arguments, environment) = (self.arguments.pointers(), self.environment.pointers());
        for path in &self.paths.strings {
            // SAFETY: the path is a C string, both arrays hold pointers to C strings that live on, and end with a null.
            let result = unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            match checked(result.into()).err().unwrap_or(Errno::IO) {
                Errno::NOENT | Errno::NOTDIR => {}
                // The search goes on, and the refusal is remembered.
                Errno::ACCESS => worst = Errno::ACCESS,
                errno => return errno,
            }
        }
        worst
    }
}
