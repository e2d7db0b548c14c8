//! The addresses of a network that are taken: a file each, named for the address, in which its owner is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use rustix::fs::FlockOperation;

use super::ranges::{addresses, contains, gateway};
use crate::call::{Call, RangeEntry as Range};
use crate::result::Ip;
use crate::{Context, Error, Result};

/// A file that is about to be an address's: the lock makes it one at a time.
const UNFINISHED: &str = ".unfinished";

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) container: String,
    pub(crate) interface: String,
}

impl Owner {
    pub(super) fn of(call: &Call<'_>) -> Self {
        Self { container: call.container.to_owned(), interface: call.interface.to_owned() }
    }

    /// As it is in a file. The oldest files have no interface.
    fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim);
        let container = lines.next().unwrap_or_default().to_owned();
        Self { container, interface: lines.next().unwrap_or_default().to_owned() }
    }

    fn is(&self, found: &Self) -> bool {
        self.container == found.container && (found.interface.is_empty() || self.interface == found.interface)
    }
}

/// The addresses of one network.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Takes one address of every set of ranges, those that are wanted first; all or none.
    ///
    /// # Errors
    /// No address is free, a wanted one is not, or the folder cannot be written.
    pub(super) fn allocate(&self, sets: &[Vec<Range>], owner: &Owner, wanted: &[IpAddr]) -> Result<Vec<Ip>> {
        fs::create_dir_all(&self.folder).doing(format!("make {}", self.folder.display()))?;
        let _lock = self.lock()?;
        let mut wanted: Vec<IpAddr> = wanted.to_vec();
        let mut ips = Vec::new();
        let mut take = || {
            for (set, ranges) in sets.iter().enumerate() {
                let at = wanted.iter().position(|ip| ranges.iter().any(|range| contains(range, *ip)));
                ips.push(match at.map(|at| wanted.swap_remove(at)) {
                    Some(address) => self.take(set, ranges, owner, address)?,
                    None => self.next(set, ranges, owner)?,
                });
            }
            match wanted.first() {
                Some(address) => Err(Error::Invalid(format!("address {address} is in none of the ranges"))),
                None => Ok(()),
            }
        };
        // An attachment has addresses once: what an earlier one has left is not found again by chance.
        if self.find(|found| owner.is(found))?.is_some() {
            let again = format!("{} {} has an address already", owner.container, owner.interface);
            return Err(Error::Invalid(again));
        }
        match take() {
            Ok(()) => Ok(ips),
            Err(error) => {
                self.release_locked(|found| owner.is(found))?;
                Err(error)
            }
        }
    }

    fn take(&self, set: usize, ranges: &[Range], owner: &Owner, address: IpAddr) -> Result<Ip> {
        let range = ranges.iter().find(|range| contains(range, address));
        let range = range.ok_or_else(|| Error::NoAddress(address.to_string()))?;
        if gateway(range) == address {
            return Err(Error::Invalid(format!("address {address} is that of the gateway")));
        }
        match self.reserve(address, owner)? {
            true => self.note_last(set, address).and_then(|()| ip(address, range)),
            false => Err(Error::Invalid(format!("address {address} is taken"))),
        }
    }

    fn note_last(&self, set: usize, address: IpAddr) -> Result<()> {
        let file = self.folder.join(format!("last_reserved_ip.{set}"));
        fs::write(file, address.to_string()).doing("write the last address")
    }

    fn next(&self, set: usize, ranges: &[Range], owner: &Owner) -> Result<Ip> {
        let last_file = self.folder.join(format!("last_reserved_ip.{set}"));
        let last: Option<IpAddr> =
            fs::read_to_string(&last_file).ok().and_then(|text| text.trim().parse().ok());
        let taken = self.taken()?;
        // After the last one, around to it: an address is used again as late as possible.
        let after = last
            .into_iter()
            .flat_map(|last| ranges.iter().flat_map(move |range| addresses(range, Some(last))));
        let in_last = ranges.iter().position(|range| last.is_some_and(|last| contains(range, last)));
        let after = after.filter(|(_, range)| {
            // Ranges before that of the last address come around.
            in_last.is_some_and(|at| ranges.iter().skip(at).any(|later| std::ptr::eq(later, *range)))
        });
        let all = ranges.iter().flat_map(|range| addresses(range, None));
        for (address, range) in after.chain(all) {
            if !taken.contains(&address) && self.reserve(address, owner)? {
                self.note_last(set, address)?;
                return ip(address, range);
            }
        }
        let subnets: Vec<_> = ranges.iter().map(|range| range.subnet.to_string()).collect();
        Err(Error::NoAddress(subnets.join(", ")))
    }

    /// The addresses that have a file.
    fn taken(&self) -> Result<HashSet<IpAddr>> {
        let entries = fs::read_dir(&self.folder).doing(format!("read {}", self.folder.display()))?;
        Ok(entries.flatten().filter_map(|entry| address_of(&entry.file_name().to_string_lossy())).collect())
    }

    /// The file is there with its owner or not at all, whenever this is killed: else an address could be nobody's for
    /// ever. link(2) makes it under the address's name if nobody else has that.
    fn reserve(&self, address: IpAddr, owner: &Owner) -> Result<bool> {
        let (path, beside) = (self.folder.join(address.to_string()), self.folder.join(UNFINISHED));
        let text = format!("{}\r\n{}", owner.container, owner.interface);
        fs::write(&beside, text).doing("write an address")?;
        let linked = match fs::hard_link(&beside, &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error).doing(format!("reserve {address}")),
        };
        fs::remove_file(&beside).doing("write an address")?;
        linked
    }

    /// Gives back the addresses of an attachment.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release(&self, owner: &Owner) -> Result<()> {
        self.release_where(|found| owner.is(found)).map(drop)
    }

    /// Gives back the addresses of everyone of whom `gone` says so; the addresses.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn release_where(&self, gone: impl Fn(&Owner) -> bool) -> Result<Vec<String>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let _lock = self.lock()?;
        self.release_locked(gone)
    }

    fn release_locked(&self, gone: impl Fn(&Owner) -> bool) -> Result<Vec<String>> {
        let mut released = Vec::new();
        for (name, owner) in self.owners()? {
            if gone(&owner) {
                fs::remove_file(self.folder.join(&name)).doing(format!("release {name}"))?;
                released.push(name);
            }
        }
        Ok(released)
    }

    pub(super) fn has(&self, owner: &Owner) -> Result<bool> {
        if !self.folder.is_dir() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        Ok(self.find(|found| owner.is(found))?.is_some())
    }

    fn find(&self, wanted: impl Fn(&Owner) -> bool) -> Result<Option<String>> {
        Ok(self.owners()?.into_iter().find(|(_, owner)| wanted(owner)).map(|(name, _)| name))
    }

    fn owners(&self) -> Result<Vec<(String, Owner)>> {
        let mut owners = Vec::new();
        let entries = fs::read_dir(&self.folder).doing(format!("read {}", self.folder.display()))?;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if address_of(&name).is_none() {
                continue;
            }
            if let Ok(text) = fs::read_to_string(entry.path()) {
                owners.push((name, Owner::parse(&text)));
            }
        }
        Ok(owners)
    }

    /// The lock that the reference plugin takes, too.
    fn lock(&self) -> Result<File> {
        let file = File::options().create(true).truncate(false).write(true).open(self.folder.join("lock"));
        let file = file.doing("open the lock of addresses")?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).doing("lock the addresses")?;
        Ok(file)
    }
}

/// A file's name as an address; the reference plugin writes underscores for colons on some systems.
fn address_of(name: &str) -> Option<IpAddr> {
    name.replace('_', ":").parse().ok()
}

fn ip(address: IpAddr, range: &Range) -> Result<Ip> {
    let address = IpNet::new(address, range.subnet.prefix_len());
    let address = address.map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(Ip { address, gateway: Some(gateway(range)), interface: None })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sets(ranges: &[&[(&str, Option<&str>)]]) -> Vec<Vec<Range>> {
        let range = |(subnet, end): &(&str, Option<&str>)| Range {
            subnet: subnet.parse().unwrap(),
            range_start: None,
            range_end: end.map(|end| end.parse().unwrap()),
            gateway: None,
        };
        ranges.iter().map(|set| set.iter().map(range).collect()).collect()
    }

    fn store(folder: &Path) -> Store {
        Store::new(folder.join("net"))
    }

    fn owner(container: &str) -> Owner {
        Owner { container: container.to_owned(), interface: "eth0".to_owned() }
    }

    #[test]
    fn addresses_are_taken_in_a_circle_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let sets = sets(&[&[("10.0.0.0/29", None)]]);
        let take = |id: &str| store.allocate(&sets, &owner(id), &[]).map(|ips| ips[0].address.to_string());
        let taken: Vec<_> = (0..5).map(|n| take(&n.to_string()).unwrap()).collect();
        assert_eq!(taken, ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"]);
        assert!(matches!(take("x"), Err(Error::NoAddress(_))));
        store.release(&owner("1")).unwrap();
        store.release(&owner("3")).unwrap();
        assert_eq!(take("y").unwrap(), "10.0.0.3/29");
        assert_eq!(fs::read_to_string(folder.path().join("net/10.0.0.3")).unwrap(), "y\r\neth0");
        assert!(take("y").is_err(), "an attachment has addresses once");
        assert_eq!(store.release_where(|owner| owner.container != "y").unwrap().len(), 3);
    }

    #[test]
    fn ranges_of_a_set_follow_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let sets = sets(&[&[("10.0.0.0/29", Some("10.0.0.3")), ("10.0.1.0/29", Some("10.0.1.2"))]]);
        let take = |id: &str| store.allocate(&sets, &owner(id), &[]).map(|ips| ips[0].address.to_string());
        assert_eq!([take("a").unwrap(), take("b").unwrap()], ["10.0.0.2/29", "10.0.0.3/29"]);
        assert_eq!(take("c").unwrap(), "10.0.1.2/29");
        store.release(&owner("a")).unwrap();
        assert_eq!(take("d").unwrap(), "10.0.0.2/29", "around to the first range");
    }

    #[test]
    fn a_wanted_address_is_taken_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let sets = sets(&[&[("10.0.0.0/24", None)], &[("fd00::/64", None)]]);
        let wanted = ["fd00::77".parse().unwrap()];
        let ips = store.allocate(&sets, &owner("a"), &wanted).unwrap();
        assert_eq!([ips[0].address.to_string(), ips[1].address.to_string()], ["10.0.0.2/24", "fd00::77/64"]);
        for (wanted, why) in
            [("fd00::77", "is taken"), ("10.0.0.1", "the gateway"), ("10.9.0.1", "in none of the ranges")]
        {
            let error = store.allocate(&sets, &owner("b"), &[wanted.parse().unwrap()]).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        assert_eq!(store.owners().unwrap().len(), 2, "a refused attachment has nothing");
    }

    #[test]
    fn both_families_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let both = sets(&[&[("10.0.0.0/29", None)], &[("fd00::/64", Some("fd00::2"))]]);
        let ips = store.allocate(&both, &owner("a"), &[]).unwrap();
        assert_eq!(ips[1].address.to_string(), "fd00::2/64");
        assert!(store.allocate(&both, &owner("b"), &[]).is_err());
        let again = store.allocate(&sets(&[&[("10.0.0.0/29", Some("10.0.0.3"))]]), &owner("c"), &[]).unwrap();
        let why = "what b could not have whole it does not have";
        assert_eq!(again[0].address.to_string(), "10.0.0.3/29", "{why}");
    }

    #[test]
    fn no_address_is_taken_twice() {
        let folder = tempfile::tempdir().unwrap();
        let sets = sets(&[&[("10.0.0.0/22", None)]]);
        let take = |thread: usize| {
            let store = store(folder.path());
            let ids = (0..50).map(|n| format!("{thread}-{n}"));
            ids.map(|id| store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address).collect::<Vec<_>>()
        };
        let all: Vec<IpNet> = std::thread::scope(|scope| {
            let take = &take;
            let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || take(thread))).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 400);
    }

    /// What a child of the next test does: it takes addresses, and says which, until it is killed or done.
    fn allocate_until_killed(folder: &Path, name: &str) {
        let (store, sets) = (store(folder), thousand());
        for number in 0..100 {
            let id = format!("{name}-{number}");
            // A few are given back at once, as by a pod whose start fails.
            if number % 10 == 0 {
                store.allocate(&sets, &owner(&format!("{id}-gone")), &[]).unwrap();
                store.release(&owner(&format!("{id}-gone"))).unwrap();
            }
            let ip = store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address.addr();
            // One write: the line is there whole or not at all.
            io::Write::write_all(&mut io::stdout(), format!("got {id} {ip}\n").as_bytes()).unwrap();
        }
    }

    fn thousand() -> Vec<Vec<Range>> {
        let range = Range {
            subnet: "10.0.0.0/16".parse().unwrap(),
            range_start: Some("10.0.1.0".parse().unwrap()),
            range_end: Some("10.0.4.231".parse().unwrap()),
            gateway: None,
        };
        vec![vec![range]]
    }

    #[test]
    fn a_thousand_addresses_survive_kills() {
        const FOLDER: &str = "BERTH_TEST_ADDRESSES";
        const NAME: &str = "BERTH_TEST_NAME";
        if let (Some(folder), Ok(name)) = (std::env::var_os(FOLDER), std::env::var(NAME)) {
            return allocate_until_killed(Path::new(&folder), &name);
        }
        let folder = tempfile::tempdir().unwrap();
        let start = |name: &str| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "ipam::host_local::store::tests::a_thousand_addresses_survive_kills",
                    "--nocapture",
                ])
                .env(FOLDER, folder.path())
                .env(NAME, name)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        };
        let (store, sets) = (store(folder.path()), thousand());
        let mut known = std::collections::HashMap::new();
        // Ten at once, of which every other one is killed somewhere on its way.
        let children: Vec<_> = (0..10).map(|number| (number, start(&number.to_string()))).collect();
        let outputs = children.into_iter().map(|(number, mut child)| {
            if number % 2 == 0 {
                let mut some = [0_u8; 300];
                let read = io::Read::read(child.stdout.as_mut().unwrap(), &mut some).unwrap();
                child.kill().unwrap();
                let mut text = String::from_utf8_lossy(&some[..read]).into_owned();
                io::Read::read_to_string(child.stdout.as_mut().unwrap(), &mut text).unwrap();
                child.wait().unwrap();
                return text;
            }
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        });
        for line in outputs.collect::<Vec<_>>().iter().flat_map(|text| text.lines()) {
            if let Some((id, ip)) = line.find("got ").and_then(|at| line[at + 4..].split_once(' ')) {
                assert_eq!(known.insert(id.to_owned(), ip.to_owned()), None);
            }
        }
        // What was told is still so.
        let owners: std::collections::HashMap<_, _> =
            store.owners().unwrap().into_iter().map(|(ip, owner)| (owner.container, ip)).collect();
        for (id, ip) in &known {
            assert_eq!(owners.get(id), Some(ip), "{id}");
        }
        // A runtime gives back what it does not know the end of, and takes again.
        store.release_where(|owner| !known.contains_key(&owner.container)).unwrap();
        for number in 0..10 {
            for place in 0..100 {
                let id = format!("{number}-{place}");
                known.entry(id.clone()).or_insert_with(|| {
                    store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address.addr().to_string()
                });
            }
        }
        assert_eq!(known.values().collect::<HashSet<_>>().len(), 1000, "no address twice, none lost");
        assert!(matches!(store.allocate(&sets, &owner("one more"), &[]), Err(Error::NoAddress(_))));
        assert_eq!(store.release_where(|_| true).unwrap().len(), 1000);
        let rest: Vec<_> =
            fs::read_dir(&store.folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(
            rest.iter().all(|name| name == "lock" || name.to_string_lossy().starts_with("last_reserved_ip")),
            "{rest:?}"
        );
    }
}
