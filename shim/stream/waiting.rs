//! Limits of connections that are not a session yet. Any process that reaches the server may open connections
//! and send nothing; they must not block others. A new connection is always accepted; if there are too many,
//! an older one is closed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::source::ClientSource;

/// Limit of all sources together.
const MAX_PENDING: usize = 256;

/// Limit of one source. A well-behaved client sends its request immediately, and has one connection per
/// session that it opens.
const MAX_PER_SOURCE: usize = 64;

/// Root on this host (the kubelet, crictl) is only limited by the total.
const ROOT: ClientSource = ClientSource::User(0);

/// The connections that are not a session yet, by age.
#[derive(Clone, Debug, Default)]
pub(super) struct PendingConnections {
    table: Arc<Mutex<ConnectionTable>>,
}

#[derive(Debug, Default)]
struct ConnectionTable {
    next: u64,
    connections: BTreeMap<u64, Entry>,
    of_source: HashMap<ClientSource, usize>,
}

#[derive(Debug)]
struct Entry {
    source: ClientSource,
    closed: CancellationToken,
}

/// The registration of a connection until it becomes a session or is closed.
#[derive(Debug)]
pub(super) struct PendingConnection {
    all: PendingConnections,
    number: u64,
    closed: CancellationToken,
}

impl PendingConnections {
    /// Registers a new connection. If its source has too many, closes the source's oldest. If there are too
    /// many in total, closes the oldest of the source with the most.
    pub(super) fn add(&self, source: ClientSource) -> PendingConnection {
        let closed = CancellationToken::new();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.connections.insert(number, Entry { source, closed: closed.clone() });
        *table.of_source.entry(source).or_default() += 1;
        if source != ROOT && table.count(source) > MAX_PER_SOURCE {
            table.close_oldest(source);
        }
        if table.connections.len() > MAX_PENDING
            && let Some(largest) = table.largest()
        {
            table.close_oldest(largest);
        }
        PendingConnection { all: self.clone(), number, closed }
    }

    fn lock(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionTable {
    fn count(&self, source: ClientSource) -> usize {
        self.of_source.get(&source).copied().unwrap_or(0)
    }

    fn largest(&self) -> Option<ClientSource> {
        self.of_source.iter().max_by_key(|(_, count)| **count).map(|(source, _)| *source)
    }

    fn close_oldest(&mut self, source: ClientSource) {
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

impl PendingConnection {
    /// Removes the connection when it becomes a session, so that it is not closed in favour of others.
    pub(super) fn leave(&self) {
        self.all.lock().remove(self.number);
    }

    /// Waits until the connection is to be closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for PendingConnection {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const NOBODY: ClientSource = ClientSource::User(65_534);

    fn host(number: u32) -> ClientSource {
        ClientSource::Host(IpAddr::V4(Ipv4Addr::from(number)))
    }

    fn open(places: &[PendingConnection]) -> usize {
        places.iter().filter(|place| !place.closed.is_cancelled()).count()
    }

    #[test]
    fn a_source_over_its_limit_loses_only_its_own_oldest() {
        let waiting = PendingConnections::default();
        let root = waiting.add(ROOT);
        let other = waiting.add(host(1));
        let many: Vec<_> = (0..1200).map(|_| waiting.add(NOBODY)).collect();
        assert_eq!(open(&many), MAX_PER_SOURCE);
        assert!(many[..1200 - MAX_PER_SOURCE].iter().all(|place| place.closed.is_cancelled()));
        assert!(!root.closed.is_cancelled() && !other.closed.is_cancelled());
    }

    #[test]
    fn over_the_total_limit_the_largest_source_loses_its_oldest() {
        let waiting = PendingConnections::default();
        let old = waiting.add(host(0));
        let root: Vec<_> = (0..2 * MAX_PENDING).map(|_| waiting.add(ROOT)).collect();
        assert_eq!(open(&root), MAX_PENDING - 1);
        let others: Vec<_> = (1..100).map(|number| waiting.add(host(number))).collect();
        assert_eq!((open(&root), open(&others)), (MAX_PENDING - 100, 99));
        assert!(!old.closed.is_cancelled());
        assert_eq!(waiting.lock().connections.len(), MAX_PENDING);
    }

    #[test]
    fn a_session_is_not_closed_and_a_drop_frees_its_slot() {
        let waiting = PendingConnections::default();
        let session = waiting.add(NOBODY);
        session.leave();
        let many: Vec<_> = (0..MAX_PER_SOURCE).map(|_| waiting.add(NOBODY)).collect();
        assert_eq!((session.closed.is_cancelled(), open(&many)), (false, MAX_PER_SOURCE));
        drop((session, many));
        assert!(waiting.lock().connections.is_empty() && waiting.lock().of_source.is_empty());
    }
}
