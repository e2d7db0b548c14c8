//! Project quotas: the filesystem counts the blocks and inodes of all files that carry a project's number (quotactl(2),
//! `PRJQUOTA`; ext4 and XFS, mounted with `prjquota`).

use std::os::fd::{AsFd, AsRawFd as _};

use super::{Context as _, Result, checked};

/// `Q_GETQUOTA` of linux/quota.h.
const GET: u32 = 0x80_0007;
/// `PRJQUOTA` of linux/quota.h.
const PROJECT: u32 = 2;
/// `FS_IOC_FSGETXATTR` of linux/fs.h: `_IOR('X', 31, struct fsxattr)`.
const GET_ATTRIBUTES: libc::Ioctl = 0x801c_581f;
/// `FS_IOC_FSSETXATTR` of linux/fs.h: `_IOW('X', 32, struct fsxattr)`.
const SET_ATTRIBUTES: libc::Ioctl = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`: new files of the folder get its project.
const INHERIT: u32 = 0x200;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    reserved: [u8; 8],
}

/// `struct if_dqblk` of linux/quota.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Quota {
    block_hard_limit: u64,
    block_soft_limit: u64,
    space: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// The disk usage of a project.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// Bytes of allocated blocks.
    pub bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// The project of a file or folder; 0 is the default of files without one.
///
/// # Errors
/// `ENOTTY` or `EOPNOTSUPP`: the filesystem has no projects.
pub fn project(file: impl AsFd) -> Result<u32> {
    Ok(attributes(file)?.project)
}

fn attributes(file: impl AsFd) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the ioctl writes a `struct fsxattr`, as which `Attributes` is laid out.
    let result =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_ATTRIBUTES, std::ptr::from_mut(&mut attributes)) };
    checked(result.into()).on("ioctl(FS_IOC_FSGETXATTR)", "")?;
    Ok(attributes)
}

/// Gives an empty folder a project. Everything that is created in it later has the same.
///
/// # Errors
/// As [`project`]; `EPERM`: not in the initial user namespace.
pub fn set_project(folder: impl AsFd, project: u32) -> Result<()> {
    let mut attributes = attributes(&folder)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the ioctl reads a `struct fsxattr`, as which `Attributes` is laid out.
    let result =
        unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), SET_ATTRIBUTES, std::ptr::from_ref(&attributes)) };
    checked(result.into()).on("ioctl(FS_IOC_FSSETXATTR)", project).map(drop)
}

/// Returns the usage of a project on the filesystem of a file (quotactl_fd(2), Linux 5.14).
///
/// # Errors
/// `ESRCH`, `ENOSYS` or `EOPNOTSUPP`: the filesystem does not count projects.
pub fn project_usage(file: impl AsFd, project: u32) -> Result<ProjectUsage> {
    let mut quota = Quota::default();
    // SAFETY: `Q_GETQUOTA` writes a `struct if_dqblk`, as which `Quota` is laid out.
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file.as_fd().as_raw_fd(),
            (GET << 8) | PROJECT,
            project,
            std::ptr::from_mut(&mut quota),
        )
    };
    match checked(result) {
        Ok(_) => Ok(ProjectUsage { bytes: quota.space, inodes: quota.inodes }),
        // XFS has no record of such a project yet.
        Err(rustix::io::Errno::NOENT) => Ok(ProjectUsage::default()),
        Err(errno) => Err(errno).on("quotactl_fd(Q_GETQUOTA)", project),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_size() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<Quota>(), 72);
    }
}
