//! An index of a folder of addresses and their owners in memory: a folder of thousands of files is read once. Other
//! processes may write to the folder (the reference plugin, another process of berth) under its lock: inotify(7)
//! reports the files that they change.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, ReadFlags};
use rustix::io::Errno;

use super::owner::Owner;
use super::ranges::number;
use super::runs::Runs;
use crate::watch::changes_in;
use crate::{Context, Result};

/// The indexes of all folders of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Indexes {
    by_folder: Arc<Mutex<HashMap<PathBuf, Arc<Mutex<Index>>>>>,
}

impl Indexes {
    pub(super) fn of(&self, folder: &Path) -> Arc<Mutex<Index>> {
        let mut all = self.by_folder.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(folder.to_owned()).or_default().clone()
    }
}

/// Locks an index.
pub(super) fn lock(index: &Mutex<Index>) -> MutexGuard<'_, Index> {
    index.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of the folder. Its name is an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct IndexEntry {
    owner: Owner,
    /// The file name. The reference plugin writes underscores for colons on some systems.
    name: String,
}

/// The index of one folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<IpAddr, IndexEntry>,
    /// A container has few addresses, one per interface and family.
    by_container: HashMap<String, Vec<IpAddr>>,
    v4: Runs,
    v6: Runs,
    /// `None` if changes cannot be watched: the folder is read each time.
    changes: Option<OwnedFd>,
}

impl Index {
    /// Updates the index with the changes in the folder. The caller holds the folder's lock: no change is in progress.
    pub(super) fn refresh(&mut self, folder: &Path) -> Result<()> {
        let changed = match &self.changes {
            Some(changes) => names_of(changes),
            None => Changed::Anything,
        };
        match changed {
            Changed::Files(names) => {
                names.iter().for_each(|name| self.update(folder, name));
                Ok(())
            }
            Changed::Anything => self.read(folder),
        }
    }

    /// Reads the whole folder. The watch starts first: a concurrent change is read twice.
    fn read(&mut self, folder: &Path) -> Result<()> {
        *self = Self { changes: changes_in(folder).ok(), ..Self::default() };
        let entries = fs::read_dir(folder).doing(format!("read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.doing(format!("read {}", folder.display()))?;
            self.update(folder, &entry.file_name().to_string_lossy());
        }
        Ok(())
    }

    /// Updates the index from one file, if its name is an address.
    fn update(&mut self, folder: &Path, name: &str) {
        let Some(address) = address_of(name) else { return };
        match fs::read(folder.join(name)) {
            Ok(text) => self.insert(address, name, Owner::parse(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.entries.get(&address).is_some_and(|entry| entry.name == name) {
                    self.remove(address);
                }
            }
            // The address is allocated even if its owner is unreadable.
            Err(_) => self.insert(address, name, Owner::unknown()),
        }
    }

    pub(super) fn insert(&mut self, address: IpAddr, name: &str, owner: Owner) {
        self.remove(address);
        self.by_container.entry(owner.container.clone()).or_default().push(address);
        self.runs(address).insert(number(address));
        self.entries.insert(address, IndexEntry { owner, name: name.to_owned() });
    }

    pub(super) fn remove(&mut self, address: IpAddr) {
        let Some(entry) = self.entries.remove(&address) else { return };
        self.runs(address).remove(number(address));
        if let Some(addresses) = self.by_container.get_mut(&entry.owner.container) {
            addresses.retain(|other| *other != address);
            if addresses.is_empty() {
                self.by_container.remove(&entry.owner.container);
            }
        }
    }

    fn runs(&mut self, address: IpAddr) -> &mut Runs {
        if address.is_ipv4() { &mut self.v4 } else { &mut self.v6 }
    }

    /// The allocated numbers of a family.
    pub(super) fn allocated(&self, v4: bool) -> &Runs {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// Returns the addresses of an owner and the names of their files.
    pub(super) fn of(&self, owner: &Owner) -> Vec<(IpAddr, String)> {
        let addresses = self.by_container.get(&owner.container).into_iter().flatten();
        let own = addresses.filter_map(|address| Some((*address, self.entries.get(address)?)));
        own.filter(|(_, entry)| owner.matches(&entry.owner))
            .map(|(address, entry)| (address, entry.name.clone()))
            .collect()
    }

    /// Returns the addresses whose owner fulfils the condition, and the names of their files.
    pub(super) fn all_where(&self, condition: impl Fn(&Owner) -> bool) -> Vec<(IpAddr, String)> {
        let entries = self.entries.iter().filter(|(_, entry)| condition(&entry.owner));
        entries.map(|(address, entry)| (*address, entry.name.clone())).collect()
    }
}

/// Parses a file name as an address.
pub(super) fn address_of(name: &str) -> Option<IpAddr> {
    name.replace('_', ":").parse().ok()
}

/// The changes in a folder.
enum Changed {
    Files(Vec<String>),
    /// Events were lost, or the folder was replaced.
    Anything,
}

fn names_of(changes: &OwnedFd) -> Changed {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    let mut names = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let lost = ReadFlags::IGNORED
                    | ReadFlags::DELETE_SELF
                    | ReadFlags::MOVE_SELF
                    | ReadFlags::UNMOUNT
                    | ReadFlags::QUEUE_OVERFLOW;
                if event.events().intersects(lost) {
                    return Changed::Anything;
                }
                names.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Changed::Files(names),
            Err(_) => return Changed::Anything,
        }
    }
}
