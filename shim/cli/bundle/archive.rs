//! The archive: a tar file, compressed with gzip, that only its owner can read.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive that is being written. Its parts are texts below one folder.
pub(super) struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    folder: PathBuf,
    time: u64,
}

impl Archive {
    /// Creates the file, which must not exist. `time` is in seconds since the epoch.
    pub(super) fn create(path: &Path, folder: &str, time: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Self { tar, folder: PathBuf::from(folder), time })
    }

    pub(super) fn add(&mut self, name: &str, text: &str) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(self.time);
        self.tar.append_data(&mut header, self.folder.join(name), text.as_bytes())
    }

    pub(super) fn finish(self) -> io::Result<()> {
        let mut file = self.tar.into_inner()?.finish()?;
        file.flush()
    }
}
