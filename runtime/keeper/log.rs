//! The log file of a container. Only whole records are ever in it: a file that is renamed and opened anew loses, doubles
//! and splits nothing.

use std::os::fd::OwnedFd;

use berth_runtime::{logs, sys};
use rustix::io::Errno;

use crate::lines::{Lines, Stream};
use crate::stamp::{Stamp, now};

/// A log, or nowhere.
#[derive(Debug)]
pub(crate) struct Log {
    path: Option<String>,
    file: Option<OwnedFd>,
    /// Records that could not be written since the last that could.
    lost: usize,
}

impl Log {
    /// Opens the file at `path`, which has no symbolic link in it; without one everything is dropped.
    pub(crate) fn open(path: Option<String>) -> sys::Result<Self> {
        let file = path.as_deref().map(logs::open_file).transpose()?;
        Ok(Self { path, file, lost: 0 })
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.path.is_some()
    }

    /// Opens the file anew by its path; the old one stays in use when that fails.
    pub(crate) fn reopen(&mut self) -> sys::Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(logs::open_file(path)?);
        }
        Ok(())
    }

    /// Writes whole records. What a full disk does not take is dropped and counted: the container goes on, and the log
    /// says how much is missing as soon as there is room again.
    pub(crate) fn write(&mut self, records: &[u8]) {
        let Some(file) = &self.file else { return };
        if self.lost > 0 {
            let mut marker = Vec::new();
            let text = format!("[berth: {} log records could not be written]\n", self.lost);
            Lines::new(Stream::Stderr).push(text.as_bytes(), &Stamp::of(now()), &mut marker);
            if write_whole(file, &marker) < marker.len() {
                self.lost += count(records);
                return;
            }
            self.lost = 0;
        }
        let written = write_whole(file, records);
        self.lost += count(records.get(written..).unwrap_or_default());
    }
}

/// Writes as many whole records as possible; the bytes of these. A record that was written in part is taken back.
fn write_whole(file: &OwnedFd, records: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = records.get(written..).filter(|rest| !rest.is_empty()) {
        match rustix::io::write(file, rest) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    if written == records.len() {
        return written;
    }
    let done = records.get(..written).unwrap_or_default();
    let whole = memchr::memrchr(b'\n', done).map_or(0, |end| end + 1);
    let torn = u64::try_from(written - whole).unwrap_or(0);
    if torn > 0 {
        let size = rustix::fs::fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        if let Some(size) = size.and_then(|size| size.checked_sub(torn)) {
            // A file that cannot even be cut keeps the torn record; the marker that follows tells.
            let _stays = rustix::fs::ftruncate(file, size);
        }
    }
    whole
}

fn count(records: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', records).count()
}
