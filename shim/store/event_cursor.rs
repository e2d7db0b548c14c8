//! The event cursor: which events of an object were already sent.

use std::sync::{Mutex, PoisonError};

use berth_proto::v1::ContainerEventType;

/// How far an object is in its life cycle, as far as events are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not visible to clients yet.
    #[default]
    Nothing,
    /// The object was created.
    Created,
    /// The container was started.
    Started,
    /// Ended without ever having run.
    NeverStarted,
    /// Ended after it ran.
    Stopped,
    /// The object was removed.
    Deleted,
}

/// The level up to which the events of an object were sent.
#[derive(Debug, Default)]
pub struct EventCursor {
    level: Mutex<Level>,
}

impl EventCursor {
    /// Creates a cursor for an object whose events up to `level` were sent by an earlier daemon.
    #[must_use]
    pub fn at(level: Level) -> Self {
        Self { level: Mutex::new(level) }
    }

    /// Moves the cursor to `level` and returns the events to send, in order. If the cursor is already at
    /// `level` or beyond, returns none.
    pub fn advance_to(&self, level: Level) -> Vec<ContainerEventType> {
        use ContainerEventType::{
            ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
        };
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if level <= *current {
            return Vec::new();
        }
        let before = std::mem::replace(&mut *current, level);
        let mut events = Vec::new();
        if before < Level::Created {
            events.push(ContainerCreatedEvent);
        }
        if before < Level::Started && matches!(level, Level::Started | Level::Stopped) {
            events.push(ContainerStartedEvent);
        }
        let has_ended = matches!(level, Level::NeverStarted | Level::Stopped);
        if has_ended && !matches!(before, Level::NeverStarted | Level::Stopped) {
            events.push(ContainerStoppedEvent);
        }
        if level == Level::Deleted {
            events.push(ContainerDeletedEvent);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events_of(before: Level, levels: &[Level]) -> Vec<&'static str> {
        let cursor = EventCursor::at(before);
        let events = levels.iter().flat_map(|level| cursor.advance_to(*level));
        events.map(|event| event.as_str_name()).collect()
    }

    #[test]
    fn every_event_is_sent_once_and_in_order() {
        use Level::{Created, Deleted, NeverStarted, Nothing, Started, Stopped};
        let (created, started) = ("CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT");
        let (stopped, deleted) = ("CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT");
        let all = [created, started, stopped, deleted];
        assert_eq!(events_of(Nothing, &[Created, Started, Stopped, Deleted]), all);
        assert_eq!(
            events_of(Nothing, &[Created, Stopped, Started, Stopped]),
            &all[..3],
            "reports arrived out of order"
        );
        assert_eq!(events_of(Nothing, &[Created, NeverStarted, Deleted]), [created, stopped, deleted]);
        assert_eq!(events_of(Created, &[Deleted, Stopped]), [deleted]);
        assert_eq!(events_of(Started, &[Started, Stopped]), [stopped]);
        assert!(events_of(Stopped, &[Created, Started, Stopped]).is_empty());
    }

    proptest! {
        #[test]
        fn reports_in_any_order_give_no_duplicate_or_unordered_event(
            levels in prop::collection::vec(0..6_usize, 0..20),
        ) {
            use Level::{Created, Deleted, NeverStarted, Nothing, Started, Stopped};
            let all = [Nothing, Created, Started, NeverStarted, Stopped, Deleted];
            let levels: Vec<Level> = levels.into_iter().filter_map(|level| all.get(level).copied()).collect();
            let events = events_of(Nothing, &levels);
            let order = ["CREATED", "STARTED", "STOPPED", "DELETED"];
            let places: Vec<_> =
                events.iter().map(|event| order.iter().position(|word| event.contains(word)).unwrap()).collect();
            prop_assert!(places.is_sorted_by(|one, next| one < next), "{:?} of {:?}", events, levels);
            prop_assert_eq!(events.last().is_some_and(|last| last.contains("DELETED")), levels.contains(&Deleted));
        }
    }
}
