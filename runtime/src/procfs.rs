//! Writes to procfs through a private mount of it, which is attached nowhere. A container therefore cannot replace
//! one of its files by another file (CVE-2025-52881 and its predecessors).

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, FsContext};
use crate::sys::{Context, Result};

/// `PROC_SUPER_MAGIC` (statfs(2)).
pub const PROC_MAGIC: u64 = 0x9fa0;

/// A private procfs of the caller's process namespace. The processes that the caller clones use it as well: `self`
/// and the sysctls of namespaces are those of the process that accesses them.
///
/// Keep it open for as long as possible: when a mount that is attached nowhere is closed, the kernel waits for all
/// processors (0.6 ms, fs/namespace.c, `namespace_unlock`).
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
}

impl Proc {
    /// Mounts a procfs.
    ///
    /// # Errors
    /// The caller is not permitted to mount.
    pub fn mount() -> Result<Self> {
        let root = FsContext::open("proc")?.mount(ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?;
        Ok(Self { root })
    }

    /// Writes a file of procfs in a single write(2), as procfs requires.
    ///
    /// # Errors
    /// The file does not exist, or the kernel rejects the value.
    pub fn write(&self, path: &str, value: &str) -> Result<()> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve).on("openat2", path)?;
        let magic = rustix::fs::fstatfs(&file).on("fstatfs", path)?.f_type;
        if u64::try_from(magic).ok() != Some(PROC_MAGIC) {
            return Err(Errno::XDEV).on("write", format_args!("{path}, which is not on procfs"));
        }
        let written = rustix::io::write(&file, value.as_bytes()).on("write", path)?;
        if written != value.len() {
            return Err(Errno::IO).on("write", format_args!("{path}, which was written only in part"));
        }
        Ok(())
    }

    /// Opens a namespace of a process, by the name of its file in `/proc/PID/ns`.
    ///
    /// # Errors
    /// The process does not exist.
    pub fn namespace(&self, pid: i32, kind: &str) -> Result<OwnedFd> {
        let path = format!("{pid}/ns/{kind}");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, &path, flags, Mode::empty()).on("open", path)
    }

    /// Sets a sysctl. Its name has dots (`net.ipv4.ip_forward`) or, if a component itself contains dots, slashes.
    ///
    /// # Errors
    /// Those of [`Proc::write`], or `EINVAL` if the name is invalid.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name).ok_or(Errno::INVAL).on("sysctl", name)?;
        self.write(&path, value)
    }
}

/// Returns the path of a sysctl's file. The first separator in the name decides which character separates
/// components, as in sysctl(8).
fn sysctl_path(name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '/' | '_' | '-' | ':' | '@');
    if !name.chars().all(allowed) {
        return None;
    }
    let with_slashes = match name.find(['.', '/']).and_then(|at| name.get(at..=at)) {
        Some("/") => name.to_owned(),
        Some(_) => name.chars().map(swap).collect(),
        None => return None,
    };
    let valid = |part: &str| !part.is_empty() && part != "." && part != "..";
    with_slashes.split('/').all(valid).then(|| format!("sys/{with_slashes}"))
}

fn swap(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_have_dots_or_slashes() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").unwrap(), "sys/net/ipv4/ip_forward");
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/rp_filter").unwrap(),
            "sys/net/ipv4/conf/eth0.1/rp_filter"
        );
        assert_eq!(
            sysctl_path("net.ipv4.conf.eth0/1.rp_filter").unwrap(),
            "sys/net/ipv4/conf/eth0.1/rp_filter"
        );
    }

    #[test]
    fn no_sysctl_leads_outside_of_its_folder() {
        for name in ["", "kernel", "kernel/../../x", "kernel..core", "/kernel/x", "kernel.core\n.x", "a/./b"]
        {
            assert_eq!(sysctl_path(name), None, "{name:?}");
        }
    }
}
