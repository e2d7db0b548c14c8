use std::collections::HashSet;
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

/// A store as in a process that has just started.
fn store(folder: &Path) -> Store {
    Store::new(folder.join("net"), &Indexes::default())
}

/// Returns the owners on disk and their addresses.
fn owners(store: &Store) -> std::collections::HashMap<String, String> {
    let all = |name: String| {
        let owner = Owner::parse(&fs::read_to_string(store.folder.join(&name)).unwrap());
        name.parse::<IpAddr>().ok().map(|_| (owner.container, name))
    };
    let names = fs::read_dir(&store.folder).unwrap().flatten();
    names.map(|entry| entry.file_name().into_string().unwrap()).filter_map(all).collect()
}

fn owner(container: &str) -> Owner {
    Owner { container: container.to_owned(), interface: "eth0".to_owned() }
}

#[test]
fn addresses_are_allocated_in_a_circle_and_released() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let sets = sets(&[&[("10.0.0.0/29", None)]]);
    let allocate = |id: &str| store.allocate(&sets, &owner(id), &[]).map(|ips| ips[0].address.to_string());
    let taken: Vec<_> = (0..5).map(|n| allocate(&n.to_string()).unwrap()).collect();
    assert_eq!(taken, ["10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29", "10.0.0.5/29", "10.0.0.6/29"]);
    assert!(matches!(allocate("x"), Err(Error::NoAddress(_))));
    store.release(&owner("1")).unwrap();
    store.release(&owner("3")).unwrap();
    assert_eq!(allocate("y").unwrap(), "10.0.0.3/29");
    assert_eq!(fs::read_to_string(folder.path().join("net/10.0.0.3")).unwrap(), "y\r\neth0");
    assert!(allocate("y").is_err(), "an attachment allocates once");
    assert_eq!(store.release_where(|owner| owner.container != "y").unwrap().len(), 3);
}

#[test]
fn ranges_of_a_set_are_used_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let sets = sets(&[&[("10.0.0.0/29", Some("10.0.0.3")), ("10.0.1.0/29", Some("10.0.1.2"))]]);
    let allocate = |id: &str| store.allocate(&sets, &owner(id), &[]).map(|ips| ips[0].address.to_string());
    assert_eq!([allocate("a").unwrap(), allocate("b").unwrap()], ["10.0.0.2/29", "10.0.0.3/29"]);
    assert_eq!(allocate("c").unwrap(), "10.0.1.2/29");
    store.release(&owner("a")).unwrap();
    assert_eq!(allocate("d").unwrap(), "10.0.0.2/29", "around to the first range");
}

#[test]
fn a_requested_address_is_allocated_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let sets = sets(&[&[("10.0.0.0/24", None)], &[("fd00::/64", None)]]);
    let requested = ["fd00::77".parse().unwrap()];
    let ips = store.allocate(&sets, &owner("a"), &requested).unwrap();
    assert_eq!([ips[0].address.to_string(), ips[1].address.to_string()], ["10.0.0.2/24", "fd00::77/64"]);
    for (requested, why) in [
        ("fd00::77", "is already allocated"),
        ("10.0.0.1", "the gateway"),
        ("10.9.0.1", "in none of the ranges"),
    ] {
        let error = store.allocate(&sets, &owner("b"), &[requested.parse().unwrap()]).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(owners(&store).len(), 1, "a refused attachment has no address");
    assert!(!folder.path().join("net/10.0.0.3").exists(), "a refused attachment has no address");
}

#[test]
fn both_families_are_allocated_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let both = sets(&[&[("10.0.0.0/29", None)], &[("fd00::/64", Some("fd00::2"))]]);
    let ips = store.allocate(&both, &owner("a"), &[]).unwrap();
    assert_eq!(ips[1].address.to_string(), "fd00::2/64");
    assert!(store.allocate(&both, &owner("b"), &[]).is_err());
    let again = store.allocate(&sets(&[&[("10.0.0.0/29", Some("10.0.0.3"))]]), &owner("c"), &[]).unwrap();
    let why = "the failed allocation of b left no address";
    assert_eq!(again[0].address.to_string(), "10.0.0.3/29", "{why}");
}

/// Fails a test that would never end. The duration must not depend on the size of a range.
fn with_time_limit<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(std::time::Duration::from_secs(60)).expect("an answer")
}

#[test]
fn a_last_address_outside_all_ranges_is_ignored() {
    let six = ("fd00:2::/64", None);
    let high = ("fd00:2::/64", Some("fd00:2::ffff"));
    for (ranges, last, expected) in [
        (&[&[six][..]][..], "fd00:1::5", "fd00:2::2/64"),
        (&[&[six][..]], "10.244.0.2", "fd00:2::2/64"),
        (&[&[six][..]], "fd00:3::", "fd00:2::2/64"),
        (&[&[six][..]], "::", "fd00:2::2/64"),
        (&[&[six][..]], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fd00:2::2/64"),
        (&[&[six][..]], "not an address", "fd00:2::2/64"),
        (&[&[six][..]], "", "fd00:2::2/64"),
        (&[&[six][..]], "fd00:2::ffff:ffff:ffff:ffff", "fd00:2::2/64"),
        (&[&[high][..]], "fd00:2::1:0", "fd00:2::2/64"),
        (&[&[high][..]], "fd00:2::ffff", "fd00:2::2/64"),
        (&[&[("10.0.0.0/24", None), six][..]], "fd00:1::5", "10.0.0.2/24"),
        (&[&[("10.0.0.0/24", None), six][..]], "fd00:2::9", "fd00:2::a/64"),
        (&[&[six, ("10.0.0.0/24", None)][..]], "fd00:2::ffff:ffff:ffff:ffff", "10.0.0.2/24"),
        (&[&[("::/1", None)][..]], "fd00:1::5", "::2/1"),
        (&[&[("8000::/1", None)][..]], "10.0.0.1", "8000::2/1"),
        (&[&[("8000::/1", None)][..]], "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "8000::2/1"),
        (&[&[("0.0.0.0/0", None)][..]], "fd00:2::1", "0.0.0.2/0"),
        (&[&[("10.0.0.0/8", None)][..]], "10.255.255.254", "10.0.0.2/8"),
        (&[&[("10.0.0.0/8", None)][..]], "192.0.2.7", "10.0.0.2/8"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (store, sets) = (store(folder.path()), sets(ranges));
        fs::create_dir_all(&store.folder).unwrap();
        fs::write(store.folder.join("last_reserved_ip.0"), last).unwrap();
        let ips = with_time_limit(move || store.allocate(&sets, &owner("a"), &[]).unwrap());
        assert_eq!(ips[0].address.to_string(), expected, "{ranges:?} after {last:?}");
    }
}

#[test]
fn allocation_in_a_full_subnet_wraps_around() {
    let folder = tempfile::tempdir().unwrap();
    let (store, sets) = (store(folder.path()), sets(&[&[("10.0.0.0/16", None)]]));
    fs::create_dir_all(&store.folder).unwrap();
    // Two addresses are free: one below and one above the last allocated one.
    let (low, high) = ("10.0.3.7".parse().unwrap(), "10.0.200.9".parse().unwrap());
    for number in 2..65535_u32 {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        if address != low && address != high {
            fs::write(store.folder.join(address.to_string()), format!("{number}\r\neth0")).unwrap();
        }
    }
    fs::write(store.folder.join("last_reserved_ip.0"), "10.0.100.0").unwrap();
    let allocate = |id: &str| store.allocate(&sets, &owner(id), &[]).map(|ips| ips[0].address.addr());
    assert_eq!([allocate("a").unwrap(), allocate("b").unwrap()], [IpAddr::V4(high), IpAddr::V4(low)]);
    assert!(matches!(allocate("c"), Err(Error::NoAddress(_))));
    store.release(&owner("5")).unwrap();
    assert_eq!(allocate("c").unwrap().to_string(), "10.0.0.5");
}

#[test]
fn changes_of_the_files_by_others_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (store(folder.path()), store(folder.path()));
    let sets = sets(&[&[("10.0.0.0/24", None)], &[("fd00::/64", None)]]);
    let allocate = |store: &Store, id: &str| {
        let ips = store.allocate(&sets, &owner(id), &[]).unwrap();
        [ips[0].address.addr().to_string(), ips[1].address.addr().to_string()]
    };
    assert_eq!(allocate(&one, "a"), ["10.0.0.2", "fd00::2"]);
    assert_eq!(allocate(&other, "b"), ["10.0.0.3", "fd00::3"]);
    assert!(one.has(&owner("b")).unwrap());
    one.release(&owner("b")).unwrap();
    assert!(!other.has(&owner("b")).unwrap());
    // Files as the reference plugin writes them, also with underscores.
    fs::write(one.folder.join("10.0.0.4"), "c\r\neth0").unwrap();
    fs::write(one.folder.join("fd00__4"), "c\r\neth0").unwrap();
    assert_eq!(allocate(&one, "d"), ["10.0.0.5", "fd00::5"]);
    fs::rename(one.folder.join("10.0.0.5"), one.folder.join("10.0.0.6")).unwrap();
    other.release(&owner("d")).unwrap();
    other.release(&owner("c")).unwrap();
    assert_eq!(
        fs::read_dir(&one.folder).unwrap().count(),
        2 + 1 + 2,
        "a's addresses, the lock, the last ones"
    );
    // The whole folder is removed.
    fs::remove_dir_all(&one.folder).unwrap();
    assert!(!one.has(&owner("a")).unwrap());
    assert_eq!(allocate(&one, "e"), ["10.0.0.2", "fd00::2"]);
    assert!(other.has(&owner("e")).unwrap());
}

#[test]
fn no_address_is_allocated_twice() {
    let folder = tempfile::tempdir().unwrap();
    let sets = sets(&[&[("10.0.0.0/22", None)]]);
    let allocate = |thread: usize| {
        let store = store(folder.path());
        let ids = (0..50).map(|n| format!("{thread}-{n}"));
        ids.map(|id| store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address).collect::<Vec<_>>()
    };
    let all: Vec<IpNet> = std::thread::scope(|scope| {
        let allocate = &allocate;
        let threads: Vec<_> = (0..8).map(|thread| scope.spawn(move || allocate(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 400);
}

/// The code of a child of the next test: it allocates addresses and prints them until it is killed or done.
fn allocate_until_killed(folder: &Path, name: &str) {
    let (store, sets) = (store(folder), thousand());
    for number in 0..100 {
        let id = format!("{name}-{number}");
        // Some are released immediately, as by a pod that fails to start.
        if number % 10 == 0 {
            store.allocate(&sets, &owner(&format!("{id}-gone")), &[]).unwrap();
            store.release(&owner(&format!("{id}-gone"))).unwrap();
        }
        let ip = store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address.addr();
        // One write: the line is complete or absent.
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
            .args(["--exact", "addresses::store::tests::a_thousand_addresses_survive_kills", "--nocapture"])
            .env(FOLDER, folder.path())
            .env(NAME, name)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (store, sets) = (store(folder.path()), thousand());
    let mut reported = std::collections::HashMap::new();
    // Ten concurrent children, of which every other one is killed at some point.
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
            assert_eq!(reported.insert(id.to_owned(), ip.to_owned()), None);
        }
    }
    // All reported addresses are still allocated.
    let owners = owners(&store);
    for (id, ip) in &reported {
        assert_eq!(owners.get(id), Some(ip), "{id}");
    }
    // A runtime releases the addresses of unfinished attachments and allocates again.
    store.release_where(|owner| !reported.contains_key(&owner.container)).unwrap();
    for number in 0..10 {
        for place in 0..100 {
            let id = format!("{number}-{place}");
            reported.entry(id.clone()).or_insert_with(|| {
                store.allocate(&sets, &owner(&id), &[]).unwrap()[0].address.addr().to_string()
            });
        }
    }
    assert_eq!(reported.values().collect::<HashSet<_>>().len(), 1000, "no address twice, none lost");
    assert!(matches!(store.allocate(&sets, &owner("one more"), &[]), Err(Error::NoAddress(_))));
    assert_eq!(store.release_where(|_| true).unwrap().len(), 1000);
    let rest: Vec<_> =
        fs::read_dir(&store.folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(
        rest.iter().all(|name| name == "lock" || name.to_string_lossy().starts_with("last_reserved_ip")),
        "{rest:?}"
    );
}
