//! Seccomp: the system calls that a container may make (seccomp(2)). A profile of the OCI spec is compiled to one
//! filter for all ABIs of this machine. Each content is compiled once.
//!
//! * [`default`]: the profile of containers that request `RuntimeDefault`
//! * [`machine`]: the ABIs, and the numbers of their system calls
//! * [`rules`]: translates a profile to decisions by number
//! * [`program`]: compiles decisions to BPF instructions
//! * [`cache`]: caches filters by the content of their profile

mod cache;
pub mod default;
mod machine;
mod program;
mod rules;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};

pub use cache::Cache;

use crate::sys;
use crate::sys::spawn::SIBLING_FLAGS;

/// The kernel's maximum number of instructions (`BPF_MAXINSNS`).
const MOST_INSTRUCTIONS: usize = 4096;

/// Actions other than "allow" are logged (`SECCOMP_FILTER_FLAG_LOG`, seccomp(2)).
const FLAG_LOG: u64 = 1 << 1;
/// The mitigation of Speculative Store Bypass stays off (`SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
const FLAG_SPEC_ALLOW: u64 = 1 << 2;
/// seccomp(2) returns a descriptor for notifications (`SECCOMP_FILTER_FLAG_NEW_LISTENER`).
pub const FLAG_NEW_LISTENER: u64 = 1 << 3;
/// While its notification is handled, only fatal signals interrupt a process (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`).
const FLAG_WAIT_KILLABLE: u64 = 1 << 5;

/// The system calls with which a process reports that its exec failed, and exits.
const REPORT_CALLS: [&str; 2] = ["sendmsg", "exit_group"];

/// The system calls, other than [`REPORT_CALLS`] and the clone, that a process makes between the early loading of
/// a filter and its exec (`init/last.rs`).
const LAST_CALLS: [&str; 8] = ["brk", "capset", "ioctl", "mmap", "prctl", "prlimit64", "read", "setsid"];

/// An error of compiling a profile.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The filter has more instructions than the kernel accepts.
    #[error(
        "invalid seccomp profile: it compiles to {0} instructions, the kernel's limit is {MOST_INSTRUCTIONS}"
    )]
    TooLong(usize),
    /// A rule has a condition on an argument that no system call has.
    #[error("invalid seccomp rule of {call}: there is no argument {index}")]
    Argument {
        /// The system call.
        call: String,
        /// The number of the argument, from 0.
        index: usize,
    },
    /// A rule has the action `SCMP_ACT_NOTIFY`, but the profile specifies no supervisor.
    #[error("invalid seccomp profile: SCMP_ACT_NOTIFY requires a listenerPath")]
    NoListener,
    /// The path of the supervisor's socket is not absolute.
    #[error("invalid seccomp listenerPath: {0:?} is not an absolute path")]
    Listener(PathBuf),
    /// `SCMP_ACT_NOTIFY` is the default action: the process would block before it executes its command.
    #[error("invalid seccomp profile: SCMP_ACT_NOTIFY cannot be the default action")]
    NotifyByDefault,
    /// The filter cannot be stored in a memory file.
    #[error(transparent)]
    System(#[from] sys::Error),
}

/// The supervisor of system calls with the action `SCMP_ACT_NOTIFY` (OCI runtime spec, "Container Process State").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The supervisor's socket.
    pub path: PathBuf,
    /// Data for the supervisor.
    pub metadata: String,
}

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// An array of `struct sock_filter` in a sealed memory file.
    pub program: OwnedFd,
    /// The flags of seccomp(2) (`SECCOMP_FILTER_FLAG_*`).
    pub flags: u64,
    /// Whether the filter may reject the system calls with which a process reports that its exec failed.
    pub mute: bool,
    /// Whether the filter allows every system call between its loading and the exec, including the clone.
    pub early: bool,
    /// The supervisor that receives the filter's notifications.
    pub listener: Option<Listener>,
}

/// Compiles a profile.
///
/// # Errors
/// The profile is invalid or too long.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let groups = rules::groups(profile, &machine::abis())?;
    let instructions = instructions(&groups)?;
    let bytes: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.bytes()).collect();
    let listener = listener(profile)?;
    let allowed = |calls: &[&str]| calls.iter().all(|name| rules::is_always_allowed(&groups, name, None));
    let clones = rules::is_always_allowed(&groups, "clone", Some(SIBLING_FLAGS));
    Ok(Filter {
        program: sys::fs::sealed("seccomp", &bytes, false)?,
        flags: flags(profile, listener.is_some()),
        mute: !allowed(&REPORT_CALLS),
        early: listener.is_none() && clones && allowed(&REPORT_CALLS) && allowed(&LAST_CALLS),
        listener,
    })
}

fn instructions(groups: &[rules::Group]) -> Result<Vec<program::Instruction>, SeccompError> {
    let instructions = program::assemble(groups);
    match instructions.len() {
        length if length > MOST_INSTRUCTIONS => Err(SeccompError::TooLong(length)),
        _ => Ok(instructions),
    }
}

fn listener(profile: &LinuxSeccomp) -> Result<Option<Listener>, SeccompError> {
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(SeccompError::NotifyByDefault);
    }
    let mut rules = profile.syscalls().iter().flatten();
    if !rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify) {
        return Ok(None);
    }
    match profile.listener_path() {
        Some(path) if path.is_absolute() => Ok(Some(Listener {
            path: path.clone(),
            metadata: profile.listener_metadata().clone().unwrap_or_default(),
        })),
        Some(path) if !path.as_os_str().is_empty() => Err(SeccompError::Listener(path.clone())),
        _ => Err(SeccompError::NoListener),
    }
}

/// Returns the flags. A profile that specifies none disables the slow mitigation of speculative stores, as in
/// runc.
fn flags(profile: &LinuxSeccomp, notifies: bool) -> u64 {
    let Some(requested) = profile.flags() else {
        return FLAG_SPEC_ALLOW | if notifies { FLAG_NEW_LISTENER } else { 0 };
    };
    requested.iter().fold(if notifies { FLAG_NEW_LISTENER } else { 0 }, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                // The process that loads the filter has one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                // The kernel accepts this flag only together with a listener (seccomp(2)).
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => FLAG_WAIT_KILLABLE,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

#[cfg(test)]
mod tests;
