//! Queues and filters of links (tc(8)), which limit a pod's traffic.

use netlink_packet_core::{DefaultNla, Nla as _, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle, TcMessage, TcMirror,
    TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::socket::Operation;
use super::{Netlink, NetlinkContext as _};
use crate::{Error, Result};

/// The longest time that a packet waits in the queue.
const LATENCY_MILLISECONDS: u64 = 25;

/// `ETH_P_ALL` (linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 0x0003;

/// A limit: the rate in bytes per second and the burst in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) rate: u64,
    pub(crate) burst: u32,
}

impl Netlink {
    /// Limits the traffic that a link sends: a token bucket (tc-tbf(8)) replaces its queue.
    pub(crate) async fn limit_sending(&self, index: u32, limit: Limit) -> Result<()> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).unwrap_or_default();
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
        message.attributes.push(TcAttribute::Options(options(limit)));
        let limited = self.request(Operation::Put, RouteNetlinkMessage::NewQueueDiscipline(message)).await;
        limited.map(drop).doing_netlink(format!("limit link {index}"))
    }

    /// Checks that a link's sent traffic is limited to this rate.
    pub(crate) async fn check_limit(&self, index: u32, limit: Limit) -> Result<()> {
        let filter = TcMessage::with_index(i32::try_from(index).unwrap_or_default());
        let request = RouteNetlinkMessage::GetQueueDiscipline(filter.clone());
        let all = self.list(request).await.doing_netlink(format!("list the queues of link {index}"))?;
        let queues = all.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(queue) => Some(queue),
            _ => None,
        });
        let mut queues = queues.filter(|queue| queue.header.index == filter.header.index);
        let matches = |queue: &TcMessage| {
            let rate = queue.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Options(options) => options.iter().find_map(rate_of),
                _ => None,
            });
            queue.header.parent == TcHandle::ROOT && rate == Some(limit.rate)
        };
        match queues.any(|queue| matches(&queue)) {
            true => Ok(()),
            false => {
                Err(Error::Invalid(format!("bandwidth: link {index} is not limited to {} B/s", limit.rate)))
            }
        }
    }

    /// Redirects the traffic that a link receives through another link and back.
    pub(crate) async fn redirect_received(&self, from: u32, through: u32) -> Result<()> {
        let from = i32::try_from(from).unwrap_or_default();
        let action = format!("redirect the traffic that link {from} receives");
        let mut queue = TcMessage::with_index(from);
        queue.header.parent = TcHandle::INGRESS;
        queue.header.handle = TcHandle::from(0xffff_0000);
        queue.attributes.push(TcAttribute::Kind("ingress".to_owned()));
        let queued = self.request(Operation::Put, RouteNetlinkMessage::NewQueueDiscipline(queue)).await;
        queued.doing_netlink(action.clone())?;
        let filter = redirect_all(from, through);
        let filtered = self.request(Operation::Create, RouteNetlinkMessage::NewTrafficFilter(filter)).await;
        filtered.map(drop).doing_netlink(action)
    }
}

/// A filter of received traffic (tc-u32(8)) that matches everything and redirects it to another link (tc-mirred(8)).
fn redirect_all(from: i32, through: u32) -> TcMessage {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = through;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
    ];
    let mut filter = TcMessage::with_index(from);
    filter.header.parent = TcHandle::from(0xffff_0000);
    filter.header.info = u32::from(TcHandle { major: 1, minor: ALL_PROTOCOLS.to_be() });
    filter.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
    filter.attributes.push(TcAttribute::Options(vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ]));
    filter
}

/// Returns the rate of a token bucket. The options arrive as one attribute that contains all of them. The rate is in
/// `struct tc_ratespec` at the start of `struct tc_tbf_qopt`, after eight bytes of other fields, or in a separate
/// option if it exceeds 32 bits.
fn rate_of(option: &TcOption) -> Option<u64> {
    let TcOption::Other(options) = option else { return None };
    let mut value = vec![0; options.value_len()];
    options.emit_value(&mut value);
    NlasIterator::new(value.as_slice()).flatten().find_map(|option| match option.kind() {
        PARMS => {
            let rate = u32::from_ne_bytes(option.value().get(8..12)?.try_into().ok()?);
            (rate != u32::MAX).then_some(u64::from(rate))
        }
        RATE64 => Some(u64::from_ne_bytes(option.value().get(..8)?.try_into().ok()?)),
        _ => None,
    })
}

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const PARMS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;

/// Builds `struct tc_tbf_qopt` and the options beside it (linux/pkt_sched.h, `TCA_TBF_*`).
fn options(limit: Limit) -> Vec<TcOption> {
    /// `TC_LINKLAYER_ETHERNET`.
    const ETHERNET: u8 = 1;
    let rate = u32::try_from(limit.rate).unwrap_or(u32::MAX);
    let waiting = limit.rate.saturating_mul(LATENCY_MILLISECONDS) / 1000;
    let queue = u32::try_from(waiting.saturating_add(u64::from(limit.burst))).unwrap_or(u32::MAX);
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend_from_slice(&rate.to_ne_bytes());
    // No peak rate.
    parameters.extend_from_slice(&[0; 12]);
    for number in [queue, 0, 0] {
        parameters.extend_from_slice(&number.to_ne_bytes());
    }
    let mut options = vec![
        TcOption::Other(DefaultNla::new(PARMS, parameters)),
        TcOption::Other(DefaultNla::new(BURST, limit.burst.to_ne_bytes().to_vec())),
    ];
    if limit.rate > u64::from(u32::MAX) {
        options.push(TcOption::Other(DefaultNla::new(RATE64, limit.rate.to_ne_bytes().to_vec())));
    }
    options
}
