//! The log of a container. Only whole records are ever in its file: a file that is renamed and opened anew loses, doubles and
//! splits nothing.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use berth_runtime::{logs, sys};

/// A log, or nowhere.
#[derive(Debug)]
pub(crate) struct Log {
    /// Its number among those of the keeper.
    pub(crate) number: u32,
    pub(crate) file: Option<Rc<OwnedFd>>,
    path: Option<String>,
    /// Records that nobody could take since the last that were taken.
    pub(crate) lost: u32,
}

impl Log {
    /// Takes the file that the daemon has opened. A daemon of before that leaves it to the keeper, by a path without symbolic
    /// links. Without either everything is dropped.
    pub(crate) fn open(number: u32, path: Option<String>, opened: Option<OwnedFd>) -> sys::Result<Self> {
        let mut log = Self { number, file: opened.map(Rc::new), path, lost: 0 };
        if log.file.is_none() {
            log.reopen(None)?;
        }
        Ok(log)
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.file.is_some()
    }

    /// Goes on in another file: the one that the daemon has opened, or what is at the path now. The old one stays in use when
    /// that fails.
    pub(crate) fn reopen(&mut self, opened: Option<OwnedFd>) -> sys::Result<()> {
        let path = self.path.as_deref();
        match opened {
            Some(opened) => self.file = Some(Rc::new(opened)),
            None => self.file = path.map(logs::open_file).transpose()?.map(Rc::new),
        }
        Ok(())
    }
}
