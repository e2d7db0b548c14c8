//! How much of an object's life has been told.

use std::sync::{Mutex, PoisonError};

use berth_proto::v1::ContainerEventType;

use crate::store::{ContainerState, PodState};

/// How far an object is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing that concerns anyone.
    #[default]
    Nothing,
    /// It is there.
    Created,
    /// It runs.
    Started,
    /// It has never run, and will not.
    NeverStarted,
    /// It has run.
    Stopped,
    /// It is gone.
    Deleted,
}

impl Level {
    /// By the state of a container.
    #[must_use]
    pub fn of_container(state: &ContainerState) -> Self {
        match state {
            ContainerState::Creating => Self::Nothing,
            ContainerState::Created { .. } => Self::Created,
            ContainerState::Running { .. } => Self::Started,
            ContainerState::Exited(exit) if exit.started_at == 0 => Self::NeverStarted,
            ContainerState::Exited(_) => Self::Stopped,
        }
    }

    /// By the state of a pod that is found on disk: the end of one that still holds something may not have been told.
    #[must_use]
    pub fn of_found_pod(state: &PodState) -> Self {
        match state {
            PodState::Creating => Self::Nothing,
            PodState::Ready { .. } | PodState::Lost | PodState::NotReady { released: false } => Self::Started,
            PodState::NotReady { released: true } => Self::Stopped,
        }
    }
}

/// What has been told of an object.
#[derive(Debug, Default)]
pub struct Told {
    level: Mutex<Level>,
}

impl Told {
    /// So much has been told, by a former daemon.
    #[must_use]
    pub fn already(level: Level) -> Self {
        Self { level: Mutex::new(level) }
    }

    /// The object has come to `level`: what is to be told, in order. Nothing where that has been told before.
    pub fn up_to(&self, level: Level) -> Vec<ContainerEventType> {
        use ContainerEventType::{
            ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
        };
        let mut told = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if level <= *told {
            return Vec::new();
        }
        let before = std::mem::replace(&mut *told, level);
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

    fn told(before: Level, levels: &[Level]) -> Vec<&'static str> {
        let told = Told::already(before);
        let events = levels.iter().flat_map(|level| told.up_to(*level));
        events.map(|event| event.as_str_name()).collect()
    }

    #[test]
    fn everything_is_told_once_and_in_order() {
        use Level::{Created, Deleted, NeverStarted, Nothing, Started, Stopped};
        let (created, started) = ("CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT");
        let (stopped, deleted) = ("CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT");
        let all = [created, started, stopped, deleted];
        assert_eq!(told(Nothing, &[Created, Started, Stopped, Deleted]), all);
        assert_eq!(told(Nothing, &[Created, Stopped, Started, Stopped]), &all[..3], "the news have crossed");
        assert_eq!(told(Nothing, &[Created, NeverStarted, Deleted]), [created, stopped, deleted]);
        assert_eq!(told(Created, &[Deleted, Stopped]), [deleted]);
        assert_eq!(told(Started, &[Started, Stopped]), [stopped]);
        assert!(told(Stopped, &[Created, Started, Stopped]).is_empty());
    }

    proptest! {
        #[test]
        fn however_the_news_cross_nothing_is_told_twice_or_out_of_order(
            levels in prop::collection::vec(0..6_usize, 0..20),
        ) {
            use Level::{Created, Deleted, NeverStarted, Nothing, Started, Stopped};
            let all = [Nothing, Created, Started, NeverStarted, Stopped, Deleted];
            let levels: Vec<Level> = levels.into_iter().filter_map(|level| all.get(level).copied()).collect();
            let events = told(Nothing, &levels);
            let order = ["CREATED", "STARTED", "STOPPED", "DELETED"];
            let places: Vec<_> =
                events.iter().map(|event| order.iter().position(|word| event.contains(word)).unwrap()).collect();
            prop_assert!(places.is_sorted_by(|one, next| one < next), "{:?} of {:?}", events, levels);
            prop_assert_eq!(events.last().is_some_and(|last| last.contains("DELETED")), levels.contains(&Deleted));
        }
    }
}
