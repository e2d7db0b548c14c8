//! The log of a container. Its file contains only whole records, so rotation loses, duplicates and splits none.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use berth_runtime::{logs, sys};

/// A log. Without a file, output is dropped.
#[derive(Debug)]
pub(crate) struct Log {
    /// Its number, which is unique in the keeper.
    pub(crate) number: u32,
    pub(crate) file: Option<Rc<OwnedFd>>,
    path: Option<String>,
    /// The number of dropped records that the writer has not been informed of.
    pub(crate) lost: u32,
}

impl Log {
    /// Takes the file that the daemon has opened. An older daemon sends only the path, which has no symbolic links. Without
    /// either, output is dropped.
    pub(crate) fn open(number: u32, path: Option<String>, opened: Option<OwnedFd>) -> sys::Result<Self> {
        let mut log = Self { number, file: opened.map(Rc::new), path, lost: 0 };
        if log.file.is_none() {
            log.reopen(None)?;
        }
        Ok(log)
    }

    /// Returns whether output is written to a file.
    pub(crate) fn keeps(&self) -> bool {
        self.file.is_some()
    }

    /// Switches to another file: the one that the daemon has opened, or the one at the path now. On an error the old one stays
    /// in use.
    pub(crate) fn reopen(&mut self, opened: Option<OwnedFd>) -> sys::Result<()> {
        let path = self.path.as_deref();
        match opened {
            Some(opened) => self.file = Some(Rc::new(opened)),
            None => self.file = path.map(logs::open_file).transpose()?.map(Rc::new),
        }
        Ok(())
    }
}
