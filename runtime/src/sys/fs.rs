//! Sealed memory files, and paths of descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::{Context, Result};

/// `F_SEAL_EXEC` (memfd_create(2), Linux 6.3): the executable bits of the mode cannot change.
const SEAL_EXEC: u32 = 0x20;

/// The permission bits of a new memory file (memfd_create(2)).
const NEW_MODE: u32 = 0o777;

/// Creates a memory file with this content. Nobody can change the content afterwards, not even the owner: a
/// program that is executed from it is the original (CVE-2019-5736).
///
/// # Errors
/// The kernel does not support memory files, or has no memory left.
pub fn sealed(name: &str, content: &[u8], executable: bool) -> Result<OwnedFd> {
    let base = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = base | if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    // Kernels before 6.3 support neither flag (memfd_create(2)). There, every memory file can be executed.
    let file = match rustix::fs::memfd_create(name, flags) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, base),
        created => created,
    }
    .on("memfd_create", name)?;
    let mut rest = content;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest).on("write", name)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    let content = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let mode = SealFlags::from_bits_retain(SEAL_EXEC);
    match rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | content | mode) {
        // Before 6.3, a process that can open the file as its owner can change its mode: see `is_unmodified`.
        Err(Errno::INVAL) => rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | content),
        sealed => sealed,
    }
    .on("fcntl(F_ADD_SEALS)", name)?;
    Ok(file)
}

/// Returns whether a program's memory file still has its initial mode and owner. A container that runs the program
/// can open the file through `/proc/self/exe`. It can change the mode if that is not sealed, the owner, or the
/// access control list, which no seal protects.
///
/// # Errors
/// The file's status cannot be read.
pub fn is_unmodified(program: impl AsFd) -> Result<bool> {
    let stat = rustix::fs::fstat(&program).on("fstat", "a program")?;
    Ok(stat.st_mode & 0o7777 == NEW_MODE && stat.st_uid == 0)
}

/// Reads a whole file from its start.
///
/// # Errors
/// The file cannot be read, or is longer than `limit` bytes (`EFBIG`).
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

/// Returns a path of a descriptor of this process, for calls that take only paths.
#[must_use]
pub fn descriptor_path(fd: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_program_stays_executable_or_the_change_is_detected() {
        let program = sealed("program", b"#!/bin/sh\n", true).unwrap();
        assert!(is_unmodified(&program).unwrap());
        let file = std::fs::File::from(program);
        let changed = file.set_permissions(std::fs::Permissions::from_mode(0o0));
        // The seal exists since Linux 6.3. On older kernels the change is detected.
        assert!(changed.is_err() || !is_unmodified(&file).unwrap());
        assert!(file.set_len(0).is_err(), "content is sealed");
    }

    #[test]
    fn a_change_that_no_seal_prevents_is_detected() {
        let program = sealed("program", b"#!/bin/sh\n", true).unwrap();
        rustix::fs::fchmod(&program, rustix::fs::Mode::from_raw_mode(0o333)).unwrap();
        assert!(!is_unmodified(&program).unwrap());
    }
}
