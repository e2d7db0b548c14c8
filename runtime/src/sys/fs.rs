//! Sealed memory files, files that the kernel generates, and paths of descriptors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::{Context, Result};

/// `F_SEAL_EXEC` (memfd_create(2), Linux 6.3): the executable bits of the mode cannot change.
const SEAL_EXEC: u32 = 0x20;

/// The size of the buffer for files that the kernel generates. The longest common one, `memory.stat`, has about 2 KiB.
const GENERATED: usize = 8 << 10;

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

/// Reads a file that the kernel generates as one record, such as a counter or limit of a cgroup: a read that does not
/// fill the buffer has reached the end. This takes three system calls, and a relative path none for its folder.
///
/// # Errors
/// The file cannot be opened or read, or is not text (`EILSEQ`).
pub fn read_record(folder: impl AsFd, file: impl Arg) -> rustix::io::Result<String> {
    read_generated(folder, file, |length| length < GENERATED)
}

/// Reads a file that the kernel generates as many records, such as the processes of a cgroup: only an empty read has
/// reached the end (proc(5) and cgroup files return whole records of at most a page).
///
/// # Errors
/// The file cannot be opened or read, or is not text (`EILSEQ`).
pub fn read_records(folder: impl AsFd, file: impl Arg) -> rustix::io::Result<String> {
    read_generated(folder, file, |length| length == 0)
}

fn read_generated(
    folder: impl AsFd,
    file: impl Arg,
    is_end: impl Fn(usize) -> bool,
) -> rustix::io::Result<String> {
    let file = rustix::fs::openat(folder, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0_u8; GENERATED];
    let mut text = Vec::new();
    loop {
        let length = retry_on_intr(|| rustix::io::read(&file, &mut buffer))?;
        text.extend_from_slice(buffer.get(..length).unwrap_or_default());
        if is_end(length) {
            return String::from_utf8(text).map_err(|_| Errno::ILSEQ);
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
    fn generated_files_of_every_length_are_read_completely() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for length in [0, 1, GENERATED - 1, GENERATED, GENERATED + 1, 3 * GENERATED] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_record(rustix::fs::CWD, &path).as_ref(), Ok(&text), "{length} bytes");
            assert_eq!(read_records(rustix::fs::CWD, &path).as_ref(), Ok(&text), "{length} bytes");
        }
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_record(rustix::fs::CWD, &path), Err(Errno::ILSEQ));
        assert_eq!(read_records(rustix::fs::CWD, "/nonexistent"), Err(Errno::NOENT));
        assert_eq!(read_record(rustix::fs::CWD, "/"), Err(Errno::ISDIR), "a folder has no text");
    }

    #[test]
    fn a_change_that_no_seal_prevents_is_detected() {
        let program = sealed("program", b"#!/bin/sh\n", true).unwrap();
        rustix::fs::fchmod(&program, rustix::fs::Mode::from_raw_mode(0o333)).unwrap();
        assert!(!is_unmodified(&program).unwrap());
    }
}
