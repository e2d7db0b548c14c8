//! The recent events of the node, for clients that connect after them. The number and the memory are limited; a daemon
//! starts without any.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::Arc;

use berth_proto::admin::NodeEvent;

/// The most events that are kept.
const MAX_EVENTS: usize = 1024;

/// The most memory of the events that are kept, in bytes.
const MAX_BYTES: usize = 512 << 10;

/// The recent events, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<Arc<NodeEvent>>,
    bytes: usize,
}

impl Recent {
    /// Adds an event, and drops the oldest ones if there are too many.
    pub(super) fn push(&mut self, event: Arc<NodeEvent>) {
        self.bytes += bytes_of(&event);
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.events.pop_front() else { return };
            self.bytes = self.bytes.saturating_sub(bytes_of(&oldest));
        }
    }

    /// Returns the events from a time on, in nanoseconds since the epoch.
    pub(super) fn since(&self, time: i64) -> Vec<Arc<NodeEvent>> {
        self.events.iter().filter(|event| event.at >= time).cloned().collect()
    }
}

/// Returns the memory of an event: the structure and its strings.
fn bytes_of(event: &NodeEvent) -> usize {
    let NodeEvent { pod_id, namespace, pod, container_id, container, image, reason, message, .. } = event;
    let strings = [pod_id, namespace, pod, container_id, container, image, reason, message];
    size_of::<NodeEvent>() + strings.iter().map(|text| text.capacity()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: i64, message: &str) -> Arc<NodeEvent> {
        Arc::new(NodeEvent { at, message: message.to_owned(), ..NodeEvent::default() })
    }

    #[test]
    fn the_oldest_events_are_dropped() {
        let mut recent = Recent::default();
        for at in 0..2000 {
            recent.push(event(at, "short"));
        }
        assert_eq!(recent.since(0).len(), MAX_EVENTS);
        assert_eq!(
            recent.since(1990).iter().map(|event| event.at).collect::<Vec<_>>(),
            (1990..2000).collect::<Vec<_>>()
        );
        assert!(recent.since(2000).is_empty());
        let long = "x".repeat(100 << 10);
        for at in 2000..2010 {
            recent.push(event(at, &long));
        }
        assert_eq!(recent.since(0).first().unwrap().at, 2006, "the memory is limited");
        recent.push(event(2010, &"x".repeat(MAX_BYTES)));
        assert!(recent.since(0).is_empty() && recent.bytes == 0, "an event that is too large is not kept");
    }
}
