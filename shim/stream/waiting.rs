//! Connections that have not become a session yet. Anybody who reaches the server may open some and say nothing: such
//! a connection costs no other its place. A new one is always taken; where there are too many, an older one is closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::source::Source;

/// Of all sources together.
const MOST: usize = 256;

/// Of one source. An honest client sends its request at once, and has one for each session that it is about to open.
const MOST_OF_ONE: usize = 64;

/// Root on this host (the kubelet, crictl) is limited by the total alone.
const ROOT: Source = Source::User(0);

/// The connections, by their age.
#[derive(Clone, Debug, Default)]
pub(super) struct Waiting {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    connections: BTreeMap<u64, Entry>,
    of_source: HashMap<Source, usize>,
}

#[derive(Debug)]
struct Entry {
    source: Source,
    closed: CancellationToken,
}

/// A connection's place among them, until it becomes a session or ends.
#[derive(Debug)]
pub(super) struct Place {
    waiting: Waiting,
    number: u64,
    closed: CancellationToken,
}

impl Waiting {
    /// Takes a new connection. Where its source has too many, the oldest of that source is closed; where there are too
    /// many of all, the oldest of the source that has the most.
    pub(super) fn enter(&self, source: Source) -> Place {
        let closed = CancellationToken::new();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.connections.insert(number, Entry { source, closed: closed.clone() });
        *table.of_source.entry(source).or_default() += 1;
        if source != ROOT && table.count(source) > MOST_OF_ONE {
            table.close_oldest(source);
        }
        if table.connections.len() > MOST
            && let Some(largest) = table.largest()
        {
            table.close_oldest(largest);
        }
        Place { waiting: self.clone(), number, closed }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn count(&self, source: Source) -> usize {
        self.of_source.get(&source).copied().unwrap_or(0)
    }

    fn largest(&self) -> Option<Source> {
        self.of_source.iter().max_by_key(|(_, count)| **count).map(|(source, _)| *source)
    }

    fn close_oldest(&mut self, source: Source) {
        let oldest = self.connections.iter().find(|(_, entry)| entry.source == source);
        if let Some(number) = oldest.map(|(number, _)| *number)
            && let Some(entry) = self.remove(number)
        {
            entry.closed.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.connections.remove(&number)?;
        match self.of_source.get_mut(&entry.source) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.of_source.remove(&entry.source)),
        }
        Some(entry)
    }
}

impl Place {
    /// The connection becomes a session: it is not closed for the sake of others any more.
    pub(super) fn leave(&self) {
        self.waiting.lock().remove(self.number);
    }

    /// Waits until the connection is to be closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const NOBODY: Source = Source::User(65_534);

    fn host(number: u32) -> Source {
        Source::Host(IpAddr::V4(Ipv4Addr::from(number)))
    }

    fn open(places: &[Place]) -> usize {
        places.iter().filter(|place| !place.closed.is_cancelled()).count()
    }

    #[test]
    fn a_source_with_too_many_loses_its_oldest_and_nobody_elses() {
        let waiting = Waiting::default();
        let root = waiting.enter(ROOT);
        let other = waiting.enter(host(1));
        let many: Vec<_> = (0..1200).map(|_| waiting.enter(NOBODY)).collect();
        assert_eq!(open(&many), MOST_OF_ONE);
        assert!(many[..1200 - MOST_OF_ONE].iter().all(|place| place.closed.is_cancelled()));
        assert!(!root.closed.is_cancelled() && !other.closed.is_cancelled());
    }

    #[test]
    fn among_many_sources_the_one_with_the_most_gives_way() {
        let waiting = Waiting::default();
        let old = waiting.enter(host(0));
        let root: Vec<_> = (0..2 * MOST).map(|_| waiting.enter(ROOT)).collect();
        assert_eq!(open(&root), MOST - 1);
        let others: Vec<_> = (1..100).map(|number| waiting.enter(host(number))).collect();
        assert_eq!((open(&root), open(&others)), (MOST - 100, 99));
        assert!(!old.closed.is_cancelled());
        assert_eq!(waiting.lock().connections.len(), MOST);
    }

    #[test]
    fn a_session_is_not_closed_and_an_end_makes_room() {
        let waiting = Waiting::default();
        let session = waiting.enter(NOBODY);
        session.leave();
        let many: Vec<_> = (0..MOST_OF_ONE).map(|_| waiting.enter(NOBODY)).collect();
        assert_eq!((session.closed.is_cancelled(), open(&many)), (false, MOST_OF_ONE));
        drop((session, many));
        assert!(waiting.lock().connections.is_empty() && waiting.lock().of_source.is_empty());
    }
}
