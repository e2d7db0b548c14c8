//! Project quotas for the image store, by the system calls of the runtime.

use std::io;
use std::os::fd::BorrowedFd;

use berth_image::ProjectQuotas;
use berth_runtime::sys::{self, quota};

/// The project quotas of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelQuotas;

impl ProjectQuotas for KernelQuotas {
    fn project(&self, folder: BorrowedFd<'_>) -> io::Result<u32> {
        quota::project(folder).map_err(errno)
    }

    fn assign(&self, folder: BorrowedFd<'_>, project: u32) -> io::Result<()> {
        quota::set_project(folder, project).map_err(errno)
    }

    fn usage(&self, folder: BorrowedFd<'_>, project: u32) -> io::Result<(u64, u64)> {
        let usage = quota::project_usage(folder, project).map_err(errno)?;
        Ok((usage.bytes, usage.inodes))
    }
}

fn errno(error: sys::Error) -> io::Error {
    io::Error::other(error)
}
