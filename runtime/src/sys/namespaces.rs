//! Namespaces (namespaces(7)): joining existing ones and creating new ones.

use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

use super::{Context, Result};

/// A set of kinds of namespaces: `CLONE_NEW*` flags of clone(2), and no other flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces(u32);

impl Namespaces {
    /// No namespace.
    pub const NONE: Self = Self(0);
    /// Monotonic and boot-time clocks (time_namespaces(7)).
    pub const TIME: Self = Self(0x80);
    /// Mount namespace.
    pub const MOUNT: Self = Self(0x0002_0000);
    /// Cgroup namespace.
    pub const CGROUP: Self = Self(0x0200_0000);
    /// Host name.
    pub const UTS: Self = Self(0x0400_0000);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(0x0800_0000);
    /// User namespace.
    pub const USER: Self = Self(0x1000_0000);
    /// PID namespace.
    pub const PID: Self = Self(0x2000_0000);
    /// Network namespace.
    pub const NET: Self = Self(0x4000_0000);

    /// Returns the flags for clone(2).
    pub(super) fn bits(self) -> u64 {
        self.0.into()
    }

    /// Returns whether this is the empty set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }
}

impl std::ops::BitOr for Namespaces {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<Namespaces> for Namespaces {
    fn from_iter<I: IntoIterator<Item = Self>>(all: I) -> Self {
        all.into_iter().fold(Self::NONE, std::ops::BitOr::bitor)
    }
}

impl std::fmt::Display for Namespaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "namespaces {:#x}", self.0)
    }
}

/// Joins namespaces of the process of a pidfd, all in one call (setns(2)). If a PID namespace is among them, the
/// caller's children join it, not the caller itself.
///
/// # Errors
/// The process has ended, or the caller lacks the privilege.
pub fn join_of(process: BorrowedFd<'_>, namespaces: Namespaces) -> Result<()> {
    let kinds = ThreadNameSpaceType::from_bits_retain(namespaces.0);
    rustix::thread::move_into_thread_name_spaces(process, kinds).on("setns", namespaces)
}

/// Joins a user namespace by a descriptor of `/proc/PID/ns/user`.
///
/// # Errors
/// The descriptor is of another kind, or the caller lacks the privilege.
pub fn join_users(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::User)).on("setns", "user")
}

/// Joins a mount namespace by a descriptor of `/proc/PID/ns/mnt`.
///
/// # Errors
/// The descriptor is of another kind, or the caller lacks the privilege.
pub fn join_mounts(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount)).on("setns", "mnt")
}

/// Makes the following children of this process join a PID namespace, by a descriptor of `/proc/PID/ns/pid`.
///
/// # Errors
/// The descriptor is of another kind, or of a namespace that is not this process's or below it.
pub fn join_pids(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))
        .on("setns", "pid")
}

/// Moves this process to new namespaces (unshare(2)).
///
/// # Errors
/// The caller lacks the privilege.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    unshare_flags(UnshareFlags::from_bits_retain(namespaces.0))
}

/// Gives only this thread a new mount namespace, and separates its root and working directory from the other
/// threads' (unshare(2), `CLONE_FS`).
///
/// # Errors
/// The caller lacks the privilege.
pub fn unshare_mounts_of_thread() -> Result<()> {
    unshare_flags(UnshareFlags::NEWNS | UnshareFlags::FS)
}

fn unshare_flags(flags: UnshareFlags) -> Result<()> {
    // SAFETY: the callers above pass only namespaces and `CLONE_FS`. Neither affects descriptors or memory of
    // another thread (unshare(2)). `CLONE_FILES` and `CLONE_VM` cannot be among them.
    unsafe { rustix::thread::unshare_unsafe(flags) }.on("unshare", format_args!("{flags:?}"))
}
