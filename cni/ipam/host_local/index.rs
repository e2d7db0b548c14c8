//! Who has which address of a folder, in memory: a folder of thousands is read once. Others may write to it (the reference
//! plugin, another process of berth), under its lock: the kernel tells which files they have changed (inotify(7)).

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

use super::ranges::number;
use super::runs::Runs;
use super::store::Owner;
use crate::watch::changes_in;
use crate::{Context, Result};

/// The indexes of all folders of a process.
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

/// A file of the folder: its name is an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    owner: Owner,
    /// The reference plugin writes underscores for colons on some systems.
    name: String,
}

/// The addresses of one folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: HashMap<IpAddr, Entry>,
    /// A container has a few, of its interfaces and families.
    by_container: HashMap<String, Vec<IpAddr>>,
    v4: Runs,
    v6: Runs,
    /// `None`: nobody would tell of changes, so that the folder is read each time.
    changes: Option<OwnedFd>,
}

impl Index {
    /// Takes in what has changed in the folder. The folder's lock is held: nobody is in the middle of a change.
    pub(super) fn refresh(&mut self, folder: &Path) -> Result<()> {
        let changed = match &self.changes {
            Some(changes) => names_of(changes),
            None => Changed::Anything,
        };
        match changed {
            Changed::Files(names) => {
                names.iter().for_each(|name| self.take_in(folder, name));
                Ok(())
            }
            Changed::Anything => self.read(folder),
        }
    }

    /// Everything anew. Changes are watched before the folder is read: what comes meanwhile is read twice.
    fn read(&mut self, folder: &Path) -> Result<()> {
        *self = Self { changes: changes_in(folder).ok(), ..Self::default() };
        let entries = fs::read_dir(folder).doing(format!("read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.doing(format!("read {}", folder.display()))?;
            self.take_in(folder, &entry.file_name().to_string_lossy());
        }
        Ok(())
    }

    /// A file as it is now, if it is an address's.
    fn take_in(&mut self, folder: &Path, name: &str) {
        let Some(address) = address_of(name) else { return };
        match fs::read(folder.join(name)) {
            Ok(text) => self.insert(address, name, Owner::parse(&String::from_utf8_lossy(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.entries.get(&address).is_some_and(|entry| entry.name == name) {
                    self.remove(address);
                }
            }
            // It is somebody's, even if nobody can say whose.
            Err(_) => self.insert(address, name, Owner::unknown()),
        }
    }

    pub(super) fn insert(&mut self, address: IpAddr, name: &str, owner: Owner) {
        self.remove(address);
        self.by_container.entry(owner.container.clone()).or_default().push(address);
        self.runs(address).insert(number(address));
        self.entries.insert(address, Entry { owner, name: name.to_owned() });
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

    /// The numbers that are taken of a family.
    pub(super) fn taken(&self, v4: bool) -> &Runs {
        if v4 { &self.v4 } else { &self.v6 }
    }

    /// The addresses of an owner, with their files' names.
    pub(super) fn of(&self, owner: &Owner) -> Vec<(IpAddr, String)> {
        let addresses = self.by_container.get(&owner.container).into_iter().flatten();
        let own = addresses.filter_map(|address| Some((*address, self.entries.get(address)?)));
        own.filter(|(_, entry)| owner.is(&entry.owner))
            .map(|(address, entry)| (address, entry.name.clone()))
            .collect()
    }

    /// All addresses whose owner is so, with their files' names.
    pub(super) fn all_where(&self, is: impl Fn(&Owner) -> bool) -> Vec<(IpAddr, String)> {
        let found = self.entries.iter().filter(|(_, entry)| is(&entry.owner));
        found.map(|(address, entry)| (*address, entry.name.clone())).collect()
    }
}

/// A file's name as an address.
fn address_of(name: &str) -> Option<IpAddr> {
    name.replace('_', ":").parse().ok()
}

/// What has changed in a folder.
enum Changed {
    Files(Vec<String>),
    /// More than the kernel has kept, or the folder is another one.
    Anything,
}

fn names_of(changes: &OwnedFd) -> Changed {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    let mut names = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => {
                let anew = ReadFlags::IGNORED
                    | ReadFlags::DELETE_SELF
                    | ReadFlags::MOVE_SELF
                    | ReadFlags::UNMOUNT
                    | ReadFlags::QUEUE_OVERFLOW;
                if event.events().intersects(anew) {
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
