//! All system calls that need `unsafe` or that no crate offers, as safe functions. The functions own their
//! descriptors and return errors that name the call and its object.
//!
//! Calls that `rustix` offers safely are used directly; this module only adds the error type.
//!
//! * [`bpf`]: bpf(2), for the only kind of program that berth uses
//! * [`clock`]: the state of the kernel's clock
//! * [`fs`]: sealed memory files, files that the kernel generates, and paths of descriptors
//! * [`keys`]: session keyrings (keyrings(7), session-keyring(7))
//! * [`memory`]: settings of the memory allocator, for the daemon and the keeper
//! * [`mount`]: mounts by descriptor
//! * [`namespaces`]: joins and creates namespaces
//! * [`process`]: waits for processes, sends signals by pidfd, and sets the signal state of a new program
//! * [`program`]: the data that a process needs to execute another program after all its descriptors are closed
//! * [`pty`]: pseudo terminals
//! * [`quota`]: project quotas
//! * [`scheduling`]: scheduler, I/O priority and memory policy of this process
//! * [`security`]: credentials and security attributes of a process
//! * [`socket`]: unix packet sockets, with descriptors beside the bytes (unix(7))
//! * [`spawn`]: clones this process
//! * [`sysv`]: System V shared memory, semaphores and message queues

#![allow(unsafe_code, reason = "this is the one folder of the crate that makes raw system calls")]

#[cfg(feature = "daemon")]
pub mod bpf;
#[cfg(feature = "daemon")]
pub mod clock;
pub mod fs;
pub mod keys;
pub mod memory;
pub mod mount;
pub mod namespaces;
pub mod process;
pub mod program;
pub mod pty;
#[cfg(feature = "daemon")]
pub mod quota;
pub mod scheduling;
pub mod security;
pub mod socket;
pub mod spawn;
#[cfg(feature = "daemon")]
pub mod sysv;

use std::fmt;

use rustix::io::Errno;

/// A system call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The name of the call, such as `move_mount`.
    pub call: &'static str,
    /// The object of the call; empty if the call needs no explanation.
    pub object: String,
    /// The kernel's error.
    pub errno: Errno,
}

impl Error {
    /// Returns the number of the error.
    #[must_use]
    pub fn raw(&self) -> i32 {
        self.errno.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.object.is_empty() {
            write!(f, "{}: {}", self.call, self.errno)
        } else {
            write!(f, "{} {}: {}", self.call, self.object, self.errno)
        }
    }
}

impl std::error::Error for Error {}

/// The result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

/// Adds the call and its object to an error.
pub trait Context<T> {
    /// Adds `call` and `object` to the error.
    ///
    /// # Errors
    /// The call's.
    fn on(self, call: &'static str, object: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn on(self, call: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|errno| Error { call, object: object.to_string(), errno })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn on(self, call: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            Error { call, object: object.to_string(), errno }
        })
    }
}

/// Converts the result of a raw system call. -1 means that the error is in `errno`.
fn checked(result: libc::c_long) -> std::result::Result<libc::c_long, Errno> {
    if result == -1 {
        let error = std::io::Error::last_os_error();
        return Err(error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error));
    }
    Ok(result)
}
