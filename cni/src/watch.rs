//! Watches the folder of configuration files with inotify(7): a change is detected without reading the folder.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

/// A watched folder. The watch starts when the folder exists.
#[derive(Debug)]
pub(crate) struct FolderWatch {
    folder: PathBuf,
    events: Option<OwnedFd>,
}

impl FolderWatch {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), events: None }
    }

    /// Whether something may have changed since the last call. A folder that cannot be watched may always have changed.
    pub(crate) fn has_changed(&mut self) -> bool {
        match &self.events {
            Some(events) => match drain(events) {
                Drained::Nothing => false,
                Drained::Changes => true,
                Drained::End => {
                    self.events = changes_in(&self.folder).ok();
                    true
                }
            },
            None => {
                self.events = changes_in(&self.folder).ok();
                true
            }
        }
    }
}

/// Watches a folder for changes of its entries (inotify(7)). The descriptor is non-blocking.
///
/// # Errors
/// The folder does not exist, or the limit of watches is reached.
pub(crate) fn changes_in(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let kinds = WatchFlags::CREATE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, folder, kinds)?;
    Ok(changes)
}

enum Drained {
    Nothing,
    Changes,
    /// The folder was replaced or removed.
    End,
}

fn drain(events: &OwnedFd) -> Drained {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(events, &mut buffer);
    let mut drained = Drained::Nothing;
    loop {
        match reader.next() {
            Ok(event) => {
                let end =
                    ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT;
                if event.events().intersects(end) {
                    drained = Drained::End;
                } else if matches!(drained, Drained::Nothing) {
                    drained = Drained::Changes;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return drained,
            Err(_) => return Drained::End,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_reported_once() {
        let top = tempfile::tempdir().unwrap();
        let folder = top.path().join("net.d");
        let mut watch = FolderWatch::new(&folder);
        assert!(watch.has_changed() && watch.has_changed(), "the folder does not exist yet");
        std::fs::create_dir(&folder).unwrap();
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        std::fs::write(folder.join("a"), "x").unwrap();
        assert!(watch.has_changed());
        assert!(!watch.has_changed());
        std::fs::rename(folder.join("a"), folder.join("b")).unwrap();
        assert!(watch.has_changed());
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(watch.has_changed());
        std::fs::create_dir(&folder).unwrap();
        assert!(watch.has_changed());
        std::fs::write(folder.join("c"), "x").unwrap();
        assert!(watch.has_changed());
    }
}
