//! Seccomp: which system calls a container may make (seccomp(2)). A profile of the OCI spec is compiled to one filter
//! for every kind of program that this machine runs, once for each content.
//!
//! * [`default`]: the profile that containers have when they ask for the runtime's own
//! * [`machine`]: the kinds of programs, and the numbers of their system calls
//! * [`rules`]: a profile as decisions by number
//! * [`program`]: decisions as instructions of BPF
//! * [`cache`]: filters by the content of their profile

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

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
const MOST_INSTRUCTIONS: usize = 4096;

/// `SECCOMP_FILTER_FLAG_LOG`.
const FLAG_LOG: u64 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`.
const FLAG_SPEC_ALLOW: u64 = 1 << 2;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub const FLAG_NEW_LISTENER: u64 = 1 << 3;
/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`.
const FLAG_WAIT_KILLABLE: u64 = 1 << 5;

/// The calls by which a process tells that it could not exec, and ends.
const TELLING: [&str; 2] = ["sendmsg", "exit_group"];

/// What a process calls beside [`TELLING`] and the clone between loading a filter early and its exec (`init/last.rs`).
const LAST_CALLS: [&str; 8] = ["brk", "capset", "ioctl", "mmap", "prctl", "prlimit64", "read", "setsid"];

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// More instructions than the kernel takes.
    #[error(
        "the seccomp profile makes {0} instructions; {MOST_INSTRUCTIONS} are the most that the kernel takes"
    )]
    TooLong(usize),
    /// A rule about an argument that no system call has.
    #[error("seccomp rule of {call}: there is no argument {index}")]
    Argument {
        /// Which system call.
        call: String,
        /// The number of the argument, from 0.
        index: usize,
    },
    /// Calls are to be handed to a supervisor, and nothing says to which.
    #[error("the seccomp profile has SCMP_ACT_NOTIFY and no listenerPath")]
    NoListener,
    /// The supervisor's socket is no absolute path.
    #[error("seccomp listenerPath {0:?} is not an absolute path")]
    Listener(PathBuf),
    /// Every call is to be handed to a supervisor: the command would wait before its first instruction.
    #[error("SCMP_ACT_NOTIFY cannot be the default action of a seccomp profile")]
    NotifyByDefault,
    /// The filter cannot be kept.
    #[error(transparent)]
    System(#[from] sys::Error),
}

/// Who answers for the system calls with the action `SCMP_ACT_NOTIFY` (OCI runtime spec, "Container Process State").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The supervisor's socket.
    pub path: PathBuf,
    /// Data for it.
    pub metadata: String,
}

/// A compiled filter.
#[derive(Debug)]
pub struct Filter {
    /// An array of `struct sock_filter` in a sealed memory file.
    pub program: OwnedFd,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u64,
    /// It may refuse the calls by which a process tells that it could not exec.
    pub mute: bool,
    /// It allows all that a process does between loading it and its exec, a clone among that.
    pub early: bool,
    /// Where the filter's notifications go.
    pub listener: Option<Listener>,
}

/// Compiles a profile.
///
/// # Errors
/// It contradicts itself or is too long, with its reason.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let groups = rules::groups(profile, &machine::abis())?;
    let instructions = instructions(&groups)?;
    let bytes: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.bytes()).collect();
    let listener = listener(profile)?;
    let free = |calls: &[&str]| calls.iter().all(|name| rules::is_free(&groups, name, None));
    let clones = rules::is_free(&groups, "clone", Some(SIBLING_FLAGS));
    Ok(Filter {
        program: sys::fs::sealed("seccomp", &bytes, false)?,
        flags: flags(profile, listener.is_some()),
        mute: !free(&TELLING),
        early: listener.is_none() && clones && free(&TELLING) && free(&LAST_CALLS),
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

/// A profile without a word on flags does not ask for the slow mitigation of speculative stores, as runc has it.
fn flags(profile: &LinuxSeccomp, notifies: bool) -> u64 {
    let Some(asked) = profile.flags() else {
        return FLAG_SPEC_ALLOW | if notifies { FLAG_NEW_LISTENER } else { 0 };
    };
    asked.iter().fold(if notifies { FLAG_NEW_LISTENER } else { 0 }, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
                // The process that loads the filter has one thread.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                // The kernel takes it only together with a listener (seccomp(2)).
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => FLAG_WAIT_KILLABLE,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

#[cfg(test)]
mod tests;
