//! Notifications of OOM kills in cgroups. A kill need not end the container: the kernel may select a process other than
//! its first one. The kernel wakes the watcher; nothing is polled.
//!
//! * v2: one inotify instance with a watch on `memory.events` of each cgroup (Documentation/admin-guide/cgroup-v2.rst:
//!   "generates a file modified event"). Other counters of the file cause notifications, too.
//! * v1: an eventfd for each cgroup, registered for `memory.oom_control` (Documentation/admin-guide/cgroup-v1/memory.rst,
//!   10). The kernel notifies before it selects the process, so the counter increases shortly afterwards. A kill because
//!   the whole host lacks memory causes no notification.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use super::{Cgroup, Hierarchies};

/// The size of the buffer for inotify events. Events for files that are watched directly have no name.
const EVENTS: usize = 4096;

/// A watcher of cgroups, each with a name of the caller. Its descriptor is readable if [`Self::notified`] has something
/// to return.
#[derive(Debug)]
pub struct OomWatcher {
    source: Source,
    /// By the number of the watch (v2) or of the event (v1).
    watched: Mutex<Watched>,
}

#[derive(Debug)]
enum Source {
    Inotify(OwnedFd),
    Epoll(OwnedFd),
}

#[derive(Debug, Default)]
struct Watched {
    next: u64,
    by_number: BTreeMap<u64, Registration>,
}

#[derive(Debug)]
struct Registration {
    name: String,
    /// v1: the descriptor that the kernel signals. The registration ends when it is closed.
    eventfd: Option<OwnedFd>,
}

impl OomWatcher {
    /// Creates a watcher of cgroups in these hierarchies.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(hierarchies: &Hierarchies) -> io::Result<Self> {
        let source = match hierarchies.is_v2() {
            true => Source::Inotify(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?),
            false => Source::Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?),
        };
        Ok(Self { source, watched: Mutex::default() })
    }

    /// Watches a cgroup from now on. Without a memory controller there are no OOM kills to count.
    ///
    /// # Errors
    /// The cgroup does not exist, or a limit of the kernel is reached.
    pub fn watch(&self, cgroup: &Cgroup, name: &str) -> io::Result<()> {
        let Some(file) = cgroup.oom_file() else { return Ok(()) };
        let mut watched = self.lock();
        let name = name.to_owned();
        match &self.source {
            Source::Inotify(instance) => {
                let number = inotify::add_watch(instance, &file, WatchFlags::MODIFY)?;
                watched.by_number.insert(number_of(number), Registration { name, eventfd: None });
            }
            Source::Epoll(instance) => {
                let eventfd = register(&file)?;
                let number = watched.next;
                watched.next += 1;
                epoll::add(instance, &eventfd, EventData::new_u64(number), EventFlags::IN)?;
                watched.by_number.insert(number, Registration { name, eventfd: Some(eventfd) });
            }
        }
        Ok(())
    }

    /// Stops watching a cgroup. A cgroup that is not watched is ignored.
    pub fn forget(&self, name: &str) {
        let mut watched = self.lock();
        let numbers = watched.by_number.iter().filter(|(_, registration)| registration.name == name);
        for number in numbers.map(|(number, _)| *number).collect::<Vec<_>>() {
            let registration = watched.by_number.remove(&number);
            match (&self.source, registration.and_then(|registration| registration.eventfd)) {
                (Source::Inotify(instance), _) => {
                    let number = i32::try_from(number).unwrap_or(-1);
                    // EINVAL: the cgroup was removed, and the watch with it.
                    let _gone = inotify::remove_watch(instance, number);
                }
                (Source::Epoll(instance), Some(eventfd)) => drop(epoll::delete(instance, &eventfd)),
                (Source::Epoll(_), None) => {}
            }
        }
    }

    /// Returns the names of the cgroups with notifications since the last call: their counters may have increased, or
    /// they were removed.
    pub fn notified(&self) -> Vec<String> {
        let numbers = match &self.source {
            Source::Inotify(instance) => modified(instance),
            Source::Epoll(instance) => signalled(instance),
        };
        let mut watched = self.lock();
        let mut names = Vec::new();
        for (number, has_ended) in numbers {
            if let Some(Registration { eventfd: Some(eventfd), .. }) = watched.by_number.get(&number) {
                // The read resets the counter (eventfd(2)).
                let _again = rustix::io::read(eventfd, &mut [0_u8; 8]);
            }
            match has_ended {
                true => drop(watched.by_number.remove(&number)),
                false => names.extend(watched.by_number.get(&number).map(|found| found.name.clone())),
            }
        }
        names.sort();
        names.dedup();
        names
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for OomWatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Inotify(instance) | Source::Epoll(instance) => instance.as_fd(),
        }
    }
}

impl AsRawFd for OomWatcher {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// Registers an eventfd for the OOM notifications of a cgroup on v1.
fn register(control: &Path) -> io::Result<OwnedFd> {
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let file = fs::File::open(control)?;
    let line = format!("{} {}", eventfd.as_raw_fd(), file.as_raw_fd());
    fs::OpenOptions::new()
        .write(true)
        .open(control.with_file_name("cgroup.event_control"))
        .and_then(|mut target| io::Write::write_all(&mut target, line.as_bytes()))?;
    Ok(eventfd)
}

fn number_of(watch: i32) -> u64 {
    u64::try_from(watch).unwrap_or_default()
}

/// Reads inotify events. Returns the watches, and whether each has ended.
fn modified(instance: &OwnedFd) -> Vec<(u64, bool)> {
    let mut buffer = [MaybeUninit::uninit(); EVENTS];
    let mut reader = inotify::Reader::new(instance, &mut buffer);
    let mut numbers = Vec::new();
    // EAGAIN: everything is read.
    while let Ok(event) = reader.next() {
        numbers.push((number_of(event.wd()), event.events().contains(ReadFlags::IGNORED)));
    }
    numbers
}

/// Reads which eventfds are signalled. The removal of a cgroup signals its eventfd, too.
fn signalled(instance: &OwnedFd) -> Vec<(u64, bool)> {
    let mut events = Vec::with_capacity(64);
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match epoll::wait(instance, spare_capacity(&mut events), Some(&now)) {
        Ok(_) => events.iter().map(|event| (event.data.u64(), false)).collect(),
        Err(Errno::INTR | _) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use crate::cgroup::interface::Interface;
    use std::time::{Duration, Instant};

    use super::*;

    fn is_readable(watcher: &OomWatcher) -> bool {
        let mut fds = [rustix::event::PollFd::new(watcher, rustix::event::PollFlags::IN)];
        let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap() > 0
    }

    /// inotify reports changes of ordinary files as it does those of cgroup files.
    #[test]
    fn a_change_of_the_counters_is_notified_once() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let cgroup = |path: &Path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("memory.events"), "oom_kill 0\n").unwrap();
            Cgroup { process_folder: path.to_owned(), folders: Vec::new(), interface: Interface::V2 }
        };
        let (first, second) = (cgroup(&one), cgroup(&two));
        let instance = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        let watcher = OomWatcher { source: Source::Inotify(instance), watched: Mutex::default() };
        watcher.watch(&first, "first").unwrap();
        watcher.watch(&second, "second").unwrap();
        assert!(!is_readable(&watcher) && watcher.notified().is_empty());
        fs::write(one.join("memory.events"), "oom_kill 1\n").unwrap();
        assert!(is_readable(&watcher));
        assert_eq!(watcher.notified(), ["first"]);
        assert_eq!(first.counted_oom_kills(), Some(1));
        watcher.forget("first");
        fs::write(one.join("memory.events"), "oom_kill 2\n").unwrap();
        fs::remove_dir_all(&two).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while !watcher.lock().by_number.is_empty() {
            assert!(Instant::now() < until, "a watch is left");
            assert_eq!(watcher.notified(), Vec::<String>::new(), "a removed cgroup has no kills");
        }
        assert_eq!(second.counted_oom_kills(), None);
        let missing = watcher.watch(&second, "second").unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
