//! Whether the kernel has killed processes of a container for lack of memory.

use std::os::fd::OwnedFd;

use berth_runtime::oom_kills;
use berth_runtime::sys;

/// The counters of OOM kills of a container's cgroup and of the cgroup above.
///
/// On v2 the counter of a cgroup includes those below it (cgroup-v2.rst, `memory.events`). systemd removes the cgroup of
/// a scope as soon as it is empty: the container's own counter may be gone before the end of its first process is
/// noticed. The counter of the parent still includes its kills, and those of other containers.
#[derive(Debug)]
pub(crate) struct OomKills {
    own: Option<OwnedFd>,
    above: Option<OwnedFd>,
    /// The kills in the cgroup above that are not this container's.
    of_others: u64,
}

impl OomKills {
    pub(super) fn new(own: Option<OwnedFd>, above: Option<OwnedFd>) -> Self {
        let mut kills = Self { own, above, of_others: 0 };
        kills.exclude();
        kills
    }

    /// Returns whether a process of the container was killed.
    pub(super) fn any(&self) -> bool {
        match (&self.own, &self.above) {
            (Some(own), above) => match (read(own), above) {
                (Some(kills), _) => kills > 0,
                (None, Some(above)) => read(above).is_some_and(|kills| kills > self.of_others),
                (None, None) => false,
            },
            (None, _) => false,
        }
    }

    /// Excludes the kills until now: another container, which has ended, was their target.
    pub(crate) fn exclude(&mut self) {
        let above = self.above.as_ref().and_then(read);
        self.of_others = above.unwrap_or(self.of_others);
    }
}

fn read(counters: &OwnedFd) -> Option<u64> {
    let text = sys::fs::read_all(counters, 4096).ok()?;
    Some(oom_kills::parse(&String::from_utf8_lossy(&text)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn counter(folder: &Path, name: &str, kills: u64) -> Option<OwnedFd> {
        let path = folder.join(name);
        fs::write(&path, format!("oom 9\noom_kill {kills}\n")).unwrap();
        Some(fs::File::open(path).unwrap().into())
    }

    /// The file of a removed cgroup. Reading from it fails, as from a folder.
    fn removed() -> Option<OwnedFd> {
        Some(fs::File::open("/").unwrap().into())
    }

    #[test]
    fn the_own_counter_decides_while_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let count = |name: &str, kills| counter(folder.path(), name, kills);
        assert!(OomKills::new(count("own", 1), count("above", 1)).any());
        let kills = OomKills::new(count("own", 0), count("above", 0));
        let _other_container = count("above", 5);
        assert!(!kills.any());
        assert!(!OomKills::new(None, None).any());
    }

    #[test]
    fn kills_are_found_in_the_cgroup_above_after_the_own_cgroup_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let count = |kills| counter(folder.path(), "above", kills);
        let mut kills = OomKills::new(removed(), count(3));
        assert!(!kills.any(), "they are older than the container");
        let _grown = count(4);
        assert!(kills.any());
        kills.exclude();
        assert!(!kills.any(), "another container was killed");
        assert!(!OomKills::new(removed(), None).any());
    }
}
