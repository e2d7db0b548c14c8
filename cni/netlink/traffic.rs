//! Queues and filters of links (tc(8)): limits of a pod's traffic.

use futures_util::{StreamExt, TryStreamExt};
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    Nla as _, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::Netlink;
use crate::{Context, Error, Result};

/// How long a packet may wait in the queue.
const LATENCY_MILLISECONDS: u64 = 25;

/// `ETH_P_ALL` (linux/if_ether.h).
const ALL_PROTOCOLS: u16 = 0x0003;

/// A limit: bytes a second, and bytes that may go at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) rate: u64,
    pub(crate) burst: u32,
}

impl Netlink {
    /// Limits what a link sends: a token bucket (tc-tbf(8)) in the place of its queue.
    pub(crate) async fn limit_sending(&self, index: u32, limit: Limit) -> Result<()> {
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(index).unwrap_or_default();
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes.push(TcAttribute::Kind("tbf".to_owned()));
        message.attributes.push(TcAttribute::Options(options(limit)));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).doing(format!("limit link {index}"))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(Error::Netlink {
                    action: format!("limit link {index}"),
                    source: rtnetlink::Error::NetlinkError(error),
                });
            }
        }
        Ok(())
    }

    /// Whether what a link sends is limited so.
    pub(crate) async fn check_limit(&self, index: u32, limit: Limit) -> Result<()> {
        let found = self.handle.qdisc().get().index(i32::try_from(index).unwrap_or_default()).execute();
        let queues: Vec<TcMessage> =
            found.try_collect().await.doing(format!("list the queues of link {index}"))?;
        let is_it = |queue: &TcMessage| {
            let rate = queue.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Options(options) => options.iter().find_map(rate_of),
                _ => None,
            });
            queue.header.parent == TcHandle::ROOT && rate == Some(limit.rate)
        };
        match queues.iter().any(is_it) {
            true => Ok(()),
            false => {
                Err(Error::Invalid(format!("bandwidth: link {index} is not limited to {} B/s", limit.rate)))
            }
        }
    }

    /// Sends what a link receives through another one, and back.
    pub(crate) async fn redirect_received(&self, from: u32, through: u32) -> Result<()> {
        let from = i32::try_from(from).unwrap_or_default();
        let words = format!("redirect what link {from} receives");
        self.handle.qdisc().replace(from).ingress().execute().await.doing(words.clone())?;
        let mut filters = self.handle.traffic_filter(from);
        // In this order: the priority's setter overwrites the protocol.
        let filter = filters.add().parent(0xffff_0000).priority(1).protocol(ALL_PROTOCOLS.to_be());
        filter.redirect(through).doing(words.clone())?.execute().await.doing(words)
    }
}

/// The rate of a token bucket, whose options come as one attribute with all of them in it: at the start of `struct tc_ratespec` behind eight bytes of other things, or by itself
/// where it does not fit in there.
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

/// `struct tc_tbf_qopt` and what goes with it (linux/pkt_sched.h, `TCA_TBF_*`).
fn options(limit: Limit) -> Vec<TcOption> {
    /// `TC_LINKLAYER_ETHERNET`.
    const ETHERNET: u8 = 1;
    let rate = u32::try_from(limit.rate).unwrap_or(u32::MAX);
    let waiting = limit.rate.saturating_mul(LATENCY_MILLISECONDS) / 1000;
    let queue = u32::try_from(waiting.saturating_add(u64::from(limit.burst))).unwrap_or(u32::MAX);
    let mut parameters = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend_from_slice(&rate.to_ne_bytes());
    // No second rate.
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
