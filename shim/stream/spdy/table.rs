//! The streams of a session and their flow control windows: plain state behind a lock that is never held
//! across an await.
//!
//! Flow control (draft 3.1, section 2.6.8): the peer's windows limit what is sent only after the peer has
//! changed a window or its initial size. The only library in wide use (moby/spdystream: kubectl, the kubelet,
//! crictl) never does, and would otherwise receive only the first 64 KiB and then wait forever. With such a
//! peer, the TCP connection provides the flow control. The peer receives window updates as consumers take its
//! data.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::super::inbox::{Consumed, Inbox};
use super::super::outgoing::{Gone, SendWindows};
use super::frame::{INITIAL_WINDOW, StreamId};

/// The number of consumed bytes after which a window update is sent: half a window, so that the window never
/// runs out.
const CREDIT: u32 = INITIAL_WINDOW / 2;

/// The largest window (draft 3.1, section 2.6.8).
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The number is not the client's next: the session must end.
    Number,
    /// The limit of streams is reached.
    TooMany,
}

/// The state of a stream.
#[derive(Clone, Debug)]
pub enum StreamState {
    /// It is open; its data goes to this inbox.
    Open(Inbox),
    /// The peer has ended its direction.
    HalfClosed,
    /// It has ended in both directions.
    Closed,
    /// It was never opened.
    NeverOpened,
}

#[derive(Debug)]
struct StreamEntry {
    inbox: Inbox,
    window: i64,
    finished_local: bool,
    finished_remote: bool,
}

#[derive(Debug)]
struct TableState {
    streams: HashMap<StreamId, StreamEntry>,
    last: StreamId,
    window: i64,
    initial: i64,
    peer_has_flow_control: bool,
    credits: BTreeMap<StreamId, u32>,
    lost: bool,
}

/// The streams of a session.
#[derive(Debug)]
pub struct StreamTable {
    state: Mutex<TableState>,
    window_changed: Notify,
    credit: Notify,
    max_streams: usize,
}

impl StreamTable {
    /// Creates an empty table.
    #[must_use]
    pub fn new(max_streams: usize) -> Self {
        let window = i64::from(INITIAL_WINDOW);
        let state = TableState {
            streams: HashMap::new(),
            last: StreamId::SESSION,
            window,
            initial: window,
            peer_has_flow_control: false,
            credits: BTreeMap::new(),
            lost: false,
        };
        Self { state: Mutex::new(state), window_changed: Notify::new(), credit: Notify::new(), max_streams }
    }

    fn lock(&self) -> MutexGuard<'_, TableState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a stream that the peer opens.
    ///
    /// # Errors
    /// The stream may not be opened.
    pub fn open(&self, stream: StreamId, fin: bool, inbox: Inbox) -> Result<(), OpenError> {
        let mut state = self.lock();
        if !stream.is_clients() || stream <= state.last {
            return Err(OpenError::Number);
        }
        state.last = stream;
        if state.streams.len() >= self.max_streams {
            return Err(OpenError::TooMany);
        }
        if fin {
            inbox.finish();
        }
        let entry = StreamEntry { inbox, window: state.initial, finished_local: false, finished_remote: fin };
        state.streams.insert(stream, entry);
        Ok(())
    }

    /// Returns the last stream that was opened.
    #[must_use]
    pub fn last(&self) -> StreamId {
        self.lock().last
    }

    /// Returns the state of a stream.
    #[must_use]
    pub fn find(&self, stream: StreamId) -> StreamState {
        let state = self.lock();
        match state.streams.get(&stream) {
            Some(entry) if entry.finished_remote => StreamState::HalfClosed,
            Some(entry) => StreamState::Open(entry.inbox.clone()),
            None if stream <= state.last && stream.is_clients() => StreamState::Closed,
            None => StreamState::NeverOpened,
        }
    }

    /// Ends the peer's direction of a stream.
    pub fn finish_remote(&self, stream: StreamId) {
        let mut state = self.lock();
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.finished_remote = true;
            entry.inbox.finish();
            let over = entry.finished_local;
            if over {
                state.streams.remove(&stream);
            }
        }
    }

    /// Ends the local direction of a stream. Returns whether the stream exists.
    pub fn finish_local(&self, stream: StreamId) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.streams.get_mut(&stream) else { return false };
        entry.finished_local = true;
        if entry.finished_remote {
            state.streams.remove(&stream);
        }
        true
    }

    /// Removes a stream that either side has reset. Returns whether it existed.
    pub fn remove(&self, stream: StreamId) -> bool {
        let entry = self.lock().streams.remove(&stream);
        self.window_changed.notify_waiters();
        entry.inspect(|entry| entry.inbox.break_off()).is_some()
    }

    /// Resets all streams, since the connection is lost.
    pub fn close_all(&self) {
        let mut state = self.lock();
        state.lost = true;
        for (_, entry) in state.streams.drain() {
            entry.inbox.break_off();
        }
        drop(state);
        self.window_changed.notify_waiters();
    }

    /// Widens a window at the peer's request. Returns whether it is still in its range.
    pub fn widen(&self, stream: StreamId, delta: u32) -> bool {
        let mut state = self.lock();
        state.peer_has_flow_control = true;
        let window = match stream {
            StreamId::SESSION => Some(&mut state.window),
            stream => state.streams.get_mut(&stream).map(|entry| &mut entry.window),
        };
        let fits = window.is_none_or(|window| {
            *window += i64::from(delta);
            *window <= MAX_WINDOW
        });
        drop(state);
        self.window_changed.notify_waiters();
        fits
    }

    /// Sets the initial window of streams at the peer's request. The windows of open streams change by the
    /// difference. Returns whether all are in their range.
    pub fn set_initial(&self, window: u32) -> bool {
        let mut state = self.lock();
        let difference = i64::from(window) - state.initial;
        state.peer_has_flow_control = true;
        state.initial = i64::from(window);
        for entry in state.streams.values_mut() {
            entry.window += difference;
        }
        let fits = state.streams.values().all(|entry| entry.window <= MAX_WINDOW);
        drop(state);
        self.window_changed.notify_waiters();
        fits && i64::from(window) <= MAX_WINDOW
    }

    /// Records that this many bytes of a stream were consumed or dropped, so that the peer may send as many
    /// more. If the stream has ended, only the session's window is credited.
    pub fn credit(&self, stream: StreamId, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let mut state = self.lock();
        let mut ready = false;
        for stream in [stream, StreamId::SESSION] {
            if stream == StreamId::SESSION || state.streams.contains_key(&stream) {
                let credit = state.credits.entry(stream).or_default();
                *credit = credit.saturating_add(bytes);
                ready |= *credit >= CREDIT;
            }
        }
        drop(state);
        if ready {
            self.credit.notify_one();
        }
    }

    /// Waits until a window update is ready.
    pub async fn credited(&self) {
        self.credit.notified().await;
    }

    /// Returns the window updates to send and marks them as sent.
    #[must_use]
    pub fn credits(&self) -> Vec<(StreamId, u32)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let streams = &state.streams;
        state.credits.retain(|stream, _| *stream == StreamId::SESSION || streams.contains_key(stream));
        let ready: Vec<_> = state.credits.iter().filter(|(_, credit)| **credit >= CREDIT).collect();
        let ready: Vec<_> = ready.into_iter().map(|(stream, credit)| (*stream, *credit)).collect();
        for (stream, _) in &ready {
            state.credits.remove(stream);
        }
        ready
    }
}

impl SendWindows for StreamTable {
    fn try_reserve(&self, stream: u32, length: usize) -> Result<Option<usize>, Gone> {
        let mut state = self.lock();
        let (peer_has_flow_control, session) = (state.peer_has_flow_control, state.window);
        let entry = state
            .streams
            .get_mut(&StreamId::new(stream))
            .filter(|entry| !entry.finished_local)
            .ok_or(Gone)?;
        let room = match peer_has_flow_control {
            true => usize::try_from(entry.window.min(session)).unwrap_or(0).min(length),
            false => length,
        };
        let taken = i64::try_from(room).unwrap_or(i64::MAX);
        entry.window = entry.window.saturating_sub(taken);
        state.window = state.window.saturating_sub(taken);
        Ok((room > 0).then_some(room))
    }

    fn changed(&self) -> Notified<'_> {
        self.window_changed.notified()
    }
}

/// Reports to the table what the consumer of a stream takes.
#[derive(Debug)]
pub(super) struct Credit {
    pub(super) table: std::sync::Arc<StreamTable>,
    pub(super) stream: StreamId,
}

impl Consumed for Credit {
    fn consumed(&self, bytes: usize) {
        self.table.credit(self.stream, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::inbox::inbox;
    use super::super::super::outgoing::reserve;
    use super::*;

    fn table() -> StreamTable {
        let table = StreamTable::new(2);
        table.open(StreamId::new(1), false, inbox(None).0).unwrap();
        table
    }

    const FIRST: StreamId = StreamId::new(1);

    #[test]
    fn streams_are_opened_in_order_up_to_the_limit() {
        let table = table();
        let open = |number| table.open(StreamId::new(number), false, inbox(None).0);
        for wrong in [0, 1, 2] {
            assert_eq!(open(wrong), Err(OpenError::Number), "{wrong}");
        }
        assert_eq!(open(7), Ok(()));
        assert_eq!(open(9), Err(OpenError::TooMany));
        assert!(matches!(table.find(StreamId::new(5)), StreamState::Closed));
        assert!(matches!(table.find(StreamId::new(11)), StreamState::NeverOpened));
        table.finish_remote(FIRST);
        assert!(matches!(table.find(FIRST), StreamState::HalfClosed));
        assert_eq!(open(11), Err(OpenError::TooMany));
        table.finish_local(FIRST);
        assert!(matches!(table.find(FIRST), StreamState::Closed));
        assert_eq!(open(13), Ok(()));
    }

    #[test]
    fn a_peer_without_flow_control_is_not_waited_for() {
        let table = table();
        assert_eq!(table.try_reserve(FIRST.get(), 1 << 20), Ok(Some(1 << 20)));
        assert_eq!(table.try_reserve(FIRST.get(), 1 << 20), Ok(Some(1 << 20)));
    }

    #[test]
    fn both_windows_limit_a_sender() {
        let table = table();
        assert!(table.widen(FIRST, 100));
        let window = 64 << 10;
        assert_eq!(table.try_reserve(FIRST.get(), window + 200), Ok(Some(window)), "the session's window");
        assert!(table.widen(StreamId::SESSION, 1000));
        assert_eq!(table.try_reserve(FIRST.get(), 200), Ok(Some(100)), "the stream's window");
        assert_eq!(table.try_reserve(FIRST.get(), 200), Ok(None));
        assert!(table.set_initial(INITIAL_WINDOW + 50));
        assert_eq!(table.try_reserve(FIRST.get(), 200), Ok(Some(50)));
        assert!(!table.widen(FIRST, 0x7fff_ffff) || !table.widen(FIRST, 1));
    }

    #[tokio::test]
    async fn a_reset_wakes_a_waiting_sender() {
        let table = std::sync::Arc::new(table());
        assert!(table.set_initial(0));
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { reserve(table.as_ref(), 1, 1).await }
        });
        tokio::task::yield_now().await;
        assert!(table.remove(FIRST));
        assert_eq!(waiting.await.unwrap(), Err(Gone));
    }

    #[test]
    fn credits_are_sent_from_half_a_window_on() {
        let table = table();
        table.credit(FIRST, 30_000);
        assert_eq!(table.credits(), []);
        table.credit(FIRST, 3_000);
        assert_eq!(table.credits(), [(StreamId::SESSION, 33_000), (FIRST, 33_000)]);
        assert_eq!(table.credits(), []);
        table.remove(FIRST);
        table.credit(FIRST, 40_000);
        assert_eq!(table.credits(), [(StreamId::SESSION, 40_000)], "a stream that is over");
    }
}
