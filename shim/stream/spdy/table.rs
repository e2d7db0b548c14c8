//! The streams of a session and their windows: plain state behind one lock that is never held while anything waits.
//!
//! Windows (draft 3.1, section 2.6.8). What we send is held back by the peer's windows from the moment on that the peer
//! takes part in flow control, by changing a window or its initial size. The only library in wide use (moby/spdystream: kubectl,
//! the kubelet, crictl) never does, and would wait forever for what is behind the first 64 KiB; there the TCP connection
//! holds us back. What the peer may send is told as consumers take it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::super::inbox::{Consumed, Inbox};
use super::super::outgoing::Gone;
use super::frame::{INITIAL_WINDOW, StreamId};

/// From how many bytes on a peer is told that they were consumed: half a window, so that it never runs dry.
const CREDIT: u32 = INITIAL_WINDOW / 2;

/// The largest window (draft 3.1, section 2.6.8).
const MAX_WINDOW: i64 = 0x7fff_ffff;

/// Why a stream is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The number is not the client's next: the session cannot go on.
    Number,
    /// There are as many as there may be.
    TooMany,
}

/// Whether there is such a stream.
#[derive(Clone, Debug)]
pub enum Found {
    /// Its data goes here.
    Open(Inbox),
    /// The peer had said that nothing follows.
    Finished,
    /// It is over on both sides.
    Over,
    /// It was never opened.
    Never,
}

#[derive(Debug)]
struct Entry {
    inbox: Inbox,
    window: i64,
    finished_here: bool,
    finished_there: bool,
}

#[derive(Debug)]
struct State {
    streams: HashMap<StreamId, Entry>,
    last: StreamId,
    window: i64,
    initial: i64,
    peer_flows: bool,
    credits: BTreeMap<StreamId, u32>,
    lost: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    state: Mutex<State>,
    opened: Notify,
    credit: Notify,
    max_streams: usize,
}

impl Table {
    /// No streams yet.
    #[must_use]
    pub fn new(max_streams: usize) -> Self {
        let window = i64::from(INITIAL_WINDOW);
        let state = State {
            streams: HashMap::new(),
            last: StreamId::SESSION,
            window,
            initial: window,
            peer_flows: false,
            credits: BTreeMap::new(),
            lost: false,
        };
        Self { state: Mutex::new(state), opened: Notify::new(), credit: Notify::new(), max_streams }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer opens a stream.
    ///
    /// # Errors
    /// It may not.
    pub fn open(&self, stream: StreamId, fin: bool, inbox: Inbox) -> Result<(), Refused> {
        let mut state = self.lock();
        if !stream.is_clients() || stream <= state.last {
            return Err(Refused::Number);
        }
        state.last = stream;
        if state.streams.len() >= self.max_streams {
            return Err(Refused::TooMany);
        }
        if fin {
            inbox.finish();
        }
        let entry = Entry { inbox, window: state.initial, finished_here: false, finished_there: fin };
        state.streams.insert(stream, entry);
        Ok(())
    }

    /// The last stream that was opened.
    #[must_use]
    pub fn last(&self) -> StreamId {
        self.lock().last
    }

    /// Where data of a stream goes.
    #[must_use]
    pub fn find(&self, stream: StreamId) -> Found {
        let state = self.lock();
        match state.streams.get(&stream) {
            Some(entry) if entry.finished_there => Found::Finished,
            Some(entry) => Found::Open(entry.inbox.clone()),
            None if stream <= state.last && stream.is_clients() => Found::Over,
            None => Found::Never,
        }
    }

    /// The peer has said that nothing follows.
    pub fn finish_there(&self, stream: StreamId) {
        let mut state = self.lock();
        if let Some(entry) = state.streams.get_mut(&stream) {
            entry.finished_there = true;
            entry.inbox.finish();
            let over = entry.finished_here;
            if over {
                state.streams.remove(&stream);
            }
        }
    }

    /// We say that nothing follows. Tells whether there is such a stream.
    pub fn finish_here(&self, stream: StreamId) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.streams.get_mut(&stream) else { return false };
        entry.finished_here = true;
        if entry.finished_there {
            state.streams.remove(&stream);
        }
        true
    }

    /// A stream is broken off, by either side. Tells whether there was one.
    pub fn remove(&self, stream: StreamId) -> bool {
        let entry = self.lock().streams.remove(&stream);
        self.opened.notify_waiters();
        entry.inspect(|entry| entry.inbox.break_off()).is_some()
    }

    /// The connection is lost: nobody waits for it any more.
    pub fn lose(&self) {
        let mut state = self.lock();
        state.lost = true;
        for (_, entry) in state.streams.drain() {
            entry.inbox.break_off();
        }
        drop(state);
        self.opened.notify_waiters();
    }

    /// Takes up to `wanted` bytes of the windows of a stream and the session, as soon as there is any room.
    ///
    /// # Errors
    /// The stream is over.
    pub async fn take(&self, stream: u32, wanted: usize) -> Result<usize, Gone> {
        loop {
            // Before the look, so that a change in between is not missed.
            let opened = self.opened.notified();
            if let Some(taken) = self.take_now(StreamId::new(stream), wanted)? {
                return Ok(taken);
            }
            opened.await;
        }
    }

    fn take_now(&self, stream: StreamId, wanted: usize) -> Result<Option<usize>, Gone> {
        let mut state = self.lock();
        let (peer_flows, session) = (state.peer_flows, state.window);
        let entry = state.streams.get_mut(&stream).filter(|entry| !entry.finished_here).ok_or(Gone)?;
        let room = match peer_flows {
            true => usize::try_from(entry.window.min(session)).unwrap_or(0).min(wanted),
            false => wanted,
        };
        let taken = i64::try_from(room).unwrap_or(i64::MAX);
        entry.window = entry.window.saturating_sub(taken);
        state.window = state.window.saturating_sub(taken);
        Ok((room > 0).then_some(room))
    }

    /// The peer opens a window. Tells whether that leaves it in its range.
    pub fn widen(&self, stream: StreamId, delta: u32) -> bool {
        let mut state = self.lock();
        state.peer_flows = true;
        let window = match stream {
            StreamId::SESSION => Some(&mut state.window),
            stream => state.streams.get_mut(&stream).map(|entry| &mut entry.window),
        };
        let fits = window.is_none_or(|window| {
            *window += i64::from(delta);
            *window <= MAX_WINDOW
        });
        drop(state);
        self.opened.notify_waiters();
        fits
    }

    /// The peer says with which window streams begin; those that have begun are changed by the difference. Tells whether
    /// that is in its range.
    pub fn set_initial(&self, window: u32) -> bool {
        let mut state = self.lock();
        let difference = i64::from(window) - state.initial;
        state.peer_flows = true;
        state.initial = i64::from(window);
        for entry in state.streams.values_mut() {
            entry.window += difference;
        }
        let fits = state.streams.values().all(|entry| entry.window <= MAX_WINDOW);
        drop(state);
        self.opened.notify_waiters();
        fits && i64::from(window) <= MAX_WINDOW
    }

    /// That many bytes of a stream are out of our way, and as many more may come. Of a stream that is over, the session's
    /// window still counts.
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

    /// Waits until there is something to tell the peer.
    pub async fn credited(&self) {
        self.credit.notified().await;
    }

    /// What the peer is to be told, and is told with that.
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

/// Tells the table what the consumer of one stream takes.
#[derive(Debug)]
pub(super) struct Credit {
    pub(super) table: std::sync::Arc<Table>,
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
    use super::*;

    fn table() -> Table {
        let table = Table::new(2);
        table.open(StreamId::new(1), false, inbox(None).0).unwrap();
        table
    }

    const FIRST: StreamId = StreamId::new(1);

    #[test]
    fn streams_are_opened_in_order_and_not_without_end() {
        let table = table();
        let open = |number| table.open(StreamId::new(number), false, inbox(None).0);
        for wrong in [0, 1, 2] {
            assert_eq!(open(wrong), Err(Refused::Number), "{wrong}");
        }
        assert_eq!(open(7), Ok(()));
        assert_eq!(open(9), Err(Refused::TooMany));
        assert!(matches!(table.find(StreamId::new(5)), Found::Over));
        assert!(matches!(table.find(StreamId::new(11)), Found::Never));
        table.finish_there(FIRST);
        assert!(matches!(table.find(FIRST), Found::Finished));
        assert_eq!(open(11), Err(Refused::TooMany));
        table.finish_here(FIRST);
        assert!(matches!(table.find(FIRST), Found::Over));
        assert_eq!(open(13), Ok(()));
    }

    #[test]
    fn a_peer_without_flow_control_is_not_waited_for() {
        let table = table();
        assert_eq!(table.take_now(FIRST, 1 << 20), Ok(Some(1 << 20)));
        assert_eq!(table.take_now(FIRST, 1 << 20), Ok(Some(1 << 20)));
    }

    #[test]
    fn both_windows_hold_a_sender_back() {
        let table = table();
        assert!(table.widen(FIRST, 100));
        let window = 64 << 10;
        assert_eq!(table.take_now(FIRST, window + 200), Ok(Some(window)), "the session's window");
        assert!(table.widen(StreamId::SESSION, 1000));
        assert_eq!(table.take_now(FIRST, 200), Ok(Some(100)), "the stream's window");
        assert_eq!(table.take_now(FIRST, 200), Ok(None));
        assert!(table.set_initial(INITIAL_WINDOW + 50));
        assert_eq!(table.take_now(FIRST, 200), Ok(Some(50)));
        assert!(!table.widen(FIRST, 0x7fff_ffff) || !table.widen(FIRST, 1));
    }

    #[tokio::test]
    async fn who_waits_for_a_window_hears_of_the_end() {
        let table = std::sync::Arc::new(table());
        assert!(table.set_initial(0));
        let waiting = tokio::spawn({
            let table = table.clone();
            async move { table.take(1, 1).await }
        });
        tokio::task::yield_now().await;
        assert!(table.remove(FIRST));
        assert_eq!(waiting.await.unwrap(), Err(Gone));
    }

    #[test]
    fn credits_are_told_from_half_a_window_on() {
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
