//! Addresses, one file each in a folder of their network, in the form of the reference plugin host-local: a node that
//! used that keeps its addresses.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::FlockOperation;

use crate::conflist::{Ipam, Range, nth};
use crate::{Context, Error, Result};

/// An address that is taken, with its subnet's length and the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) address: IpNet,
    pub(crate) gateway: IpAddr,
}

/// The addresses of one network.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    /// The folder of a network: the configuration's own, or below `default`.
    pub(crate) fn new(default: &Path, network: &str, ipam: &Ipam) -> Self {
        Self { folder: ipam.data_dir.as_deref().unwrap_or(default).join(network) }
    }

    /// Takes one address of every set of ranges; all or none.
    ///
    /// # Errors
    /// No address is free, or the folder cannot be written.
    pub(crate) fn allocate(&self, ipam: &Ipam, id: &str, interface: &str) -> Result<Vec<Lease>> {
        fs::create_dir_all(&self.folder).doing(format!("make {}", self.folder.display()))?;
        let _lock = self.lock()?;
        let mut leases = Vec::new();
        for (set, ranges) in ipam.ranges.iter().enumerate() {
            match self.allocate_in(set, ranges, id, interface) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    self.release_locked(|owner| owner == id)?;
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    fn allocate_in(&self, set: usize, ranges: &[Range], id: &str, interface: &str) -> Result<Lease> {
        let last_file = self.folder.join(format!("last_reserved_ip.{set}"));
        let last: Option<IpAddr> =
            fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse().ok());
        // After the last one, around to it: an address is used again as late as possible.
        let all = || ranges.iter().flat_map(addresses);
        let start =
            last.and_then(|last| all().position(|(address, _)| address == last)).map_or(0, |at| at + 1);
        for (address, range) in all().skip(start).chain(all().take(start)) {
            if self.reserve(address, id, interface)? {
                fs::write(&last_file, address.to_string()).doing("write the last address")?;
                let address = IpNet::new(address, range.subnet.prefix_len())
                    .map_err(|error| Error::Invalid(error.to_string()))?;
                return Ok(Lease { address, gateway: range.gateway() });
            }
        }
        let subnets: Vec<_> = ranges.iter().map(|range| range.subnet.to_string()).collect();
        Err(Error::NoAddress(subnets.join(", ")))
    }

    /// The file is made, never opened: who makes it has the address.
    fn reserve(&self, address: IpAddr, id: &str, interface: &str) -> Result<bool> {
        let path = self.folder.join(file_name(address));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(mut file) => {
                file.write_all(format!("{id}\r\n{interface}").as_bytes()).doing("write an address")?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).doing(format!("reserve {address}")),
        }
    }

    /// Gives back the addresses of a pod.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release(&self, id: &str) -> Result<()> {
        self.release_where(|owner| owner == id).map(drop)
    }

    /// Gives back the addresses of everyone of whom `gone` says so; the addresses.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release_where(&self, gone: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.release_locked(gone)
    }

    fn release_locked(&self, gone: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut released = Vec::new();
        let entries = fs::read_dir(&self.folder).doing(format!("read {}", self.folder.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.replace('_', ":").parse::<IpAddr>().is_err() {
                continue;
            }
            let Ok(content) = fs::read_to_string(entry.path()) else { continue };
            if gone(content.lines().next().unwrap_or_default().trim()) {
                fs::remove_file(entry.path()).doing(format!("release {name}"))?;
                released.push(name);
            }
        }
        Ok(released)
    }

    fn lock(&self) -> Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join("lock"));
        let file = file.doing("open the lock of addresses")?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).doing("lock the addresses")?;
        Ok(file)
    }
}

/// An address as a file name; the reference plugin writes colons as underscores only on Windows.
fn file_name(address: IpAddr) -> String {
    address.to_string()
}

/// The addresses of a range that pods can have.
fn addresses(range: &Range) -> impl Iterator<Item = (IpAddr, &Range)> {
    let subnet = range.subnet;
    let first = range.range_start.unwrap_or_else(|| nth(subnet, 1));
    // Of IPv4 the last address is for all, and is nobody's.
    let last = range.range_end.unwrap_or_else(|| match subnet.broadcast() {
        IpAddr::V4(all) => IpAddr::V4(u32::from(all).saturating_sub(1).into()),
        v6 => v6,
    });
    let gateway = range.gateway();
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let (network, first, last) = (number(subnet.network()), number(first), number(last));
    (first..=last)
        .map(move |address| nth(subnet, address - network))
        .filter(move |address| *address != gateway && *address != subnet.network())
        .map(move |address| (address, range))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ipam(ranges: &[&[(&str, Option<&str>)]]) -> Ipam {
        let range = |(subnet, end): &(&str, Option<&str>)| Range {
            subnet: subnet.parse().unwrap(),
            range_start: None,
            range_end: end.map(|end| end.parse().unwrap()),
            gateway: None,
        };
        Ipam { ranges: ranges.iter().map(|set| set.iter().map(range).collect()).collect(), ..Ipam::default() }
    }

    fn store(folder: &Path) -> Store {
        Store::new(folder, "net", &Ipam::default())
    }

    #[test]
    fn addresses_are_taken_in_a_circle_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let ipam = ipam(&[&[("10.0.0.0/29", None)]]);
        let take = |id: &str| store.allocate(&ipam, id, "eth0").map(|leases| leases[0].address.to_string());
        let taken: Vec<_> = (0..5).map(|n| take(&n.to_string()).unwrap()).collect();
        assert_eq!(taken, ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"]);
        assert!(matches!(take("x"), Err(Error::NoAddress(_))));
        store.release("1").unwrap();
        store.release("3").unwrap();
        assert_eq!(take("y").unwrap(), "10.0.0.3/29");
        assert_eq!(fs::read_to_string(folder.path().join("net/10.0.0.3")).unwrap(), "y\r\neth0");
        assert_eq!(store.release_where(|id| id != "y").unwrap().len(), 3);
    }

    #[test]
    fn both_families_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let both = ipam(&[&[("10.0.0.0/29", None)], &[("fd00::/64", Some("fd00::2"))]]);
        let leases = store.allocate(&both, "a", "eth0").unwrap();
        assert_eq!(leases[1].address.to_string(), "fd00::2/64");
        assert!(store.allocate(&both, "b", "eth0").is_err());
        let again = store.allocate(&ipam(&[&[("10.0.0.0/29", Some("10.0.0.3"))]]), "c", "eth0").unwrap();
        assert_eq!(
            again[0].address.to_string(),
            "10.0.0.3/29",
            "what b could not have whole it does not have"
        );
    }

    #[test]
    fn no_address_is_taken_twice() {
        let folder = tempfile::tempdir().unwrap();
        let ipam = ipam(&[&[("10.0.0.0/22", None)]]);
        let take = |thread: usize| {
            let store = store(folder.path());
            let ids = (0..50).map(|n| format!("{thread}-{n}"));
            ids.map(|id| store.allocate(&ipam, &id, "eth0").unwrap()[0].address).collect::<Vec<_>>()
        };
        let all: Vec<IpNet> = std::thread::scope(|scope| {
            let take = &take;
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || take(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 400);
    }
}
