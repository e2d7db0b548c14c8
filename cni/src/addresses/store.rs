//! The store of allocated addresses of a network: a file per address, named after the address, which contains its
//! owner.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use rustix::fs::FlockOperation;

use super::free::next_free;
use super::index::{Index, Indexes, lock};
use super::owner::Owner;
use super::ranges::{contains, gateway};
use crate::result::Ip;
use crate::runtime_config::RangeEntry as Range;
use crate::{Context, Error, Result};

/// The name of a file that is being written. Under the lock there is only one.
const TEMPORARY: &str = ".unfinished";

/// The addresses of one network.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    index: Arc<Mutex<Index>>,
}

impl Store {
    pub(crate) fn new(folder: PathBuf, indexes: &Indexes) -> Self {
        let index = indexes.of(&folder);
        Self { folder, index }
    }

    /// Runs `work` with exclusive access to the folder among all processes and threads, and with an up-to-date index.
    fn with_lock<T>(&self, work: impl FnOnce(&mut Index) -> Result<T>) -> Result<T> {
        let mut index = lock(&self.index);
        let _lock = self.lock()?;
        index.refresh(&self.folder)?;
        work(&mut index)
    }

    /// Allocates one address of every set of ranges, the requested addresses first. Allocates all or none.
    ///
    /// # Errors
    /// No address is free, a requested address is not available, or the folder cannot be written.
    pub(crate) fn allocate(
        &self,
        sets: &[Vec<Range>],
        owner: &Owner,
        requested: &[IpAddr],
    ) -> Result<Vec<Ip>> {
        fs::create_dir_all(&self.folder).doing(format!("create {}", self.folder.display()))?;
        self.with_lock(|index| {
            // An attachment allocates once: leftover addresses of an earlier one are not reused silently.
            if !index.of(owner).is_empty() {
                let again = format!("{} {} already has an address", owner.container, owner.interface);
                return Err(Error::Invalid(again));
            }
            match self.allocate_all(index, sets, owner, requested) {
                Ok(ips) => Ok(ips),
                Err(error) => {
                    self.free(index, index.of(owner))?;
                    Err(error)
                }
            }
        })
    }

    fn allocate_all(
        &self,
        index: &mut Index,
        sets: &[Vec<Range>],
        owner: &Owner,
        requested: &[IpAddr],
    ) -> Result<Vec<Ip>> {
        let mut requested: Vec<IpAddr> = requested.to_vec();
        let mut ips = Vec::new();
        for (set, ranges) in sets.iter().enumerate() {
            let at = requested.iter().position(|ip| ranges.iter().any(|range| contains(range, *ip)));
            ips.push(match at.map(|at| requested.swap_remove(at)) {
                Some(address) => self.allocate_requested(index, set, ranges, owner, address)?,
                None => self.allocate_next(index, set, ranges, owner)?,
            });
        }
        match requested.first() {
            Some(address) => {
                Err(Error::Invalid(format!("requested address {address} is in none of the ranges")))
            }
            None => Ok(ips),
        }
    }

    fn allocate_requested(
        &self,
        index: &mut Index,
        set: usize,
        ranges: &[Range],
        owner: &Owner,
        address: IpAddr,
    ) -> Result<Ip> {
        let range = ranges.iter().find(|range| contains(range, address));
        let range = range.ok_or_else(|| Error::NoAddress(address.to_string()))?;
        if gateway(range) == address {
            return Err(Error::Invalid(format!(
                "invalid requested address {address}: it is the address of the gateway"
            )));
        }
        match self.reserve(index, address, owner)? {
            true => self.write_last(set, address).and_then(|()| ip(address, range)),
            false => Err(Error::Invalid(format!("requested address {address} is already allocated"))),
        }
    }

    fn last_file(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }

    fn write_last(&self, set: usize, address: IpAddr) -> Result<()> {
        fs::write(self.last_file(set), address.to_string()).doing("write the last allocated address")
    }

    fn allocate_next(&self, index: &mut Index, set: usize, ranges: &[Range], owner: &Owner) -> Result<Ip> {
        let last = fs::read_to_string(self.last_file(set)).ok().and_then(|text| text.trim().parse().ok());
        while let Some((address, range)) = next_free(ranges, last, index) {
            if self.reserve(index, address, owner)? {
                self.write_last(set, address)?;
                return ip(address, range);
            }
        }
        let subnets: Vec<_> = ranges.iter().map(|range| range.subnet.to_string()).collect();
        Err(Error::NoAddress(subnets.join(", ")))
    }

    /// Reserves an address. link(2) creates the file with its owner atomically, if no other file has the name: whenever
    /// this process is killed, no file without an owner remains, which would block the address forever. In both cases
    /// the index contains the address afterwards.
    fn reserve(&self, index: &mut Index, address: IpAddr, owner: &Owner) -> Result<bool> {
        let name = address.to_string();
        let (path, temporary) = (self.folder.join(&name), self.folder.join(TEMPORARY));
        let text = format!("{}\r\n{}", owner.container, owner.interface);
        fs::write(&temporary, text).doing("write an address file")?;
        let linked = match fs::hard_link(&temporary, &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).doing(format!("reserve {address}")),
        };
        fs::remove_file(&temporary).doing("remove a temporary address file")?;
        let linked = linked?;
        let owner = if linked { owner.clone() } else { Owner::unknown() };
        index.insert(address, &name, owner);
        Ok(linked)
    }

    /// Releases the addresses of an attachment.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release(&self, owner: &Owner) -> Result<()> {
        if !self.folder.is_dir() {
            return Ok(());
        }
        self.with_lock(|index| self.free(index, index.of(owner))).map(drop)
    }

    /// Releases the addresses of all owners that fulfil the condition. Returns the addresses.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release_where(&self, gone: impl Fn(&Owner) -> bool) -> Result<Vec<String>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        self.with_lock(|index| self.free(index, index.all_where(gone)))
    }

    fn free(&self, index: &mut Index, addresses: Vec<(IpAddr, String)>) -> Result<Vec<String>> {
        let mut released = Vec::new();
        for (address, name) in addresses {
            match fs::remove_file(self.folder.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                removed => removed.doing(format!("release {name}"))?,
            }
            index.remove(address);
            released.push(name);
        }
        Ok(released)
    }

    pub(crate) fn has(&self, owner: &Owner) -> Result<bool> {
        if !self.folder.is_dir() {
            return Ok(false);
        }
        self.with_lock(|index| Ok(!index.of(owner).is_empty()))
    }

    /// Takes the lock, which the reference plugin takes, too.
    fn lock(&self) -> Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join("lock"));
        let file = file.doing("open the lock file of addresses")?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).doing("lock the addresses")?;
        Ok(file)
    }
}

fn ip(address: IpAddr, range: &Range) -> Result<Ip> {
    let address = IpNet::new(address, range.subnet.prefix_len());
    let address = address.map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(Ip { address, gateway: Some(gateway(range)), interface: None })
}

#[cfg(test)]
mod tests;
