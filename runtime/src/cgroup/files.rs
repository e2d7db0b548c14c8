//! Reads the files of a cgroup. A value is `None` if its controller or file does not exist.
//!
//! Statistics read about ten files of every container, so a file costs three system calls: open, read, close.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{read as read_once, retry_on_intr};

/// The length up to which a file is read at once. The longest common one, `memory.stat`, has about 2 KiB.
const USUAL: usize = 8 << 10;

/// Returns the text of a file that the kernel shows as one record, as it does all counters and limits: a read that does
/// not fill the buffer has reached the end. Lists such as `cgroup.procs` have many records, and are not read here.
pub(super) fn read(path: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
    let mut buffer = [0_u8; USUAL];
    let mut text = Vec::new();
    loop {
        let length = retry_on_intr(|| read_once(&file, &mut buffer)).ok()?;
        text.extend_from_slice(buffer.get(..length)?);
        if length < USUAL {
            return String::from_utf8(text).ok();
        }
    }
}

/// Returns the number in a file. `max` and -1, which mean that there is no limit, become `None`.
pub(super) fn number(path: &Path) -> Option<u64> {
    read(path)?.trim().parse().ok()
}

/// Returns the value of a line `key value`.
pub(super) fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Creates a folder with these files, in place of a cgroup.
#[cfg(test)]
pub(super) fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_every_length_are_read_completely() {
        for length in [0, 1, USUAL - 1, USUAL, USUAL + 1, 3 * USUAL] {
            let text = "x".repeat(length);
            let folder = folder_with(&[("file", &text)]);
            assert_eq!(read(&folder.path().join("file")), Some(text), "{length} bytes");
        }
        assert_eq!(read(Path::new("/nonexistent")), None);
        assert_eq!(read(Path::new("/")), None, "a folder has no text");
    }
}
