//! The metrics of a pod's interfaces.

use super::collector::Collector;
use super::descriptors::{
    RECEIVE_DROPS, RECEIVE_ERRORS, RECEIVED_BYTES, RECEIVED_PACKETS, SEND_DROPS, SEND_ERRORS, SENT_BYTES,
    SENT_PACKETS,
};
use crate::stats::network;

/// Adds the metrics of the interfaces in the network namespace of a process, without `lo`.
pub(super) fn add(collector: &mut Collector, pid: i32) {
    for interface in network::interfaces(pid).unwrap_or_default() {
        let name = [interface.name.as_str()];
        let (received, sent) = (interface.received, interface.sent);
        collector.add_with(&RECEIVED_BYTES, name, received.bytes);
        collector.add_with(&RECEIVED_PACKETS, name, received.packets);
        collector.add_with(&RECEIVE_DROPS, name, received.drops);
        collector.add_with(&RECEIVE_ERRORS, name, received.errors);
        collector.add_with(&SENT_BYTES, name, sent.bytes);
        collector.add_with(&SENT_PACKETS, name, sent.packets);
        collector.add_with(&SEND_DROPS, name, sent.drops);
        collector.add_with(&SEND_ERRORS, name, sent.errors);
    }
}
