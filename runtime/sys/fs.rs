//! Files: sealed memory files, and descriptors that travel between processes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::{Context, Result};

/// A memory file with this content that nobody can change any more, not even its owner: what is executed from it is
/// what was put in (CVE-2019-5736).
///
/// # Errors
/// The kernel has no memory files, or no memory.
pub fn sealed(name: &str, content: &[u8], executable: bool) -> Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let wanted = base | if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    // Kernels before 6.3 know neither flag (memfd_create(2)): there every memory file can be executed.
    let file = match rustix::fs::memfd_create(name, wanted) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, base),
        created => created,
    }
    .on("memfd_create", name)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).on("write", name)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals).on("fcntl(F_ADD_SEALS)", name)?;
    Ok(file)
}

/// Reads a file from its start, at most `limit` bytes.
///
/// # Errors
/// It cannot be read, or is longer (`EFBIG`).
pub fn read_all(file: impl AsFd, limit: usize) -> Result<Vec<u8>> {
    let file = file.as_fd();
    let mut content = Vec::new();
    let mut piece = [0_u8; 8192];
    loop {
        let offset = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let read = rustix::io::pread(file, &mut piece, offset).on("pread", "")?;
        if read == 0 {
            return Ok(content);
        }
        content.extend_from_slice(piece.get(..read).unwrap_or_default());
        if content.len() > limit {
            return Err(Errno::FBIG).on("pread", format_args!("more than {limit} bytes"));
        }
    }
}

/// The path by which a descriptor of this process can be named, for calls that know only paths.
#[must_use]
pub fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
