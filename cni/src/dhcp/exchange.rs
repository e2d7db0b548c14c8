//! The exchanges with servers: get, extend and release a lease (RFC 2131, section 3).

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::channel::Channel;
use super::message::{DhcpMessage, MessageType, option};
use super::request_options::RequestOptions;
use crate::{Error, Result};

/// The time limit for getting an address: less than the kubelet's time limit for the pod.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(100);
/// The first wait for an answer. It doubles each time, up to [`MAX_WAIT`], with a random deviation. RFC 2131, section
/// 4.1, begins at four seconds, but one lost packet must not delay a pod that long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(16);
/// The largest message that the client accepts (RFC 2132, section 9.10): an Ethernet packet of 1,500 bytes without the
/// headers of IP and UDP.
const MAX_MESSAGE_SIZE: u16 = 1472;

/// The identity and the configuration of a client.
#[derive(Clone, Debug)]
pub(super) struct Client<'a> {
    /// Option 61. Its first byte marks it as not being a hardware address.
    pub(super) id: &'a [u8],
    pub(super) options: &'a RequestOptions,
}

/// An answer to a request for a known address.
#[derive(Debug)]
pub(super) enum DhcpAnswer {
    Granted(DhcpMessage),
    /// The address must not be used further. Contains the server's message.
    Refused(String),
    /// No server answered.
    Silence,
}

impl Client<'_> {
    /// Finds a server and gets a lease.
    ///
    /// # Errors
    /// No server has granted one in time, or the interface fails.
    pub(super) async fn find(&self, channel: &Channel) -> Result<DhcpMessage> {
        let began = Instant::now();
        let until = began + ACQUIRE_TIMEOUT;
        let mut last = "no DHCP server answered".to_owned();
        let mut wait = FIRST_WAIT;
        for attempt in 0_u32.. {
            let mut discover = self.message(MessageType::Discover, channel);
            discover.seconds = u16::try_from(began.elapsed().as_secs()).unwrap_or(u16::MAX);
            // A server may be able to reach an interface without an address only by broadcast. Some networks drop
            // broadcasts, so only every second message requests one.
            discover.broadcast = attempt % 2 == 1;
            channel.send(&discover, Ipv4Addr::BROADCAST).await?;
            let limit = around(wait).min(until.saturating_duration_since(Instant::now()));
            if let Some(offer) = answer(channel, &discover, &[MessageType::Offer], limit).await? {
                match self.accept(channel, &offer, discover.broadcast, until).await? {
                    DhcpAnswer::Granted(ack) => return Ok(ack),
                    DhcpAnswer::Refused(why) => last = why,
                    DhcpAnswer::Silence => {
                        last = "the DHCP server did not answer the request for its offer".to_owned()
                    }
                }
            }
            if Instant::now() >= until {
                break;
            }
            wait = (wait * 2).min(MAX_WAIT);
        }
        Err(Error::Invalid(format!("{last} ({} s)", began.elapsed().as_secs())))
    }

    /// Accepts an offer (SELECTING, RFC 2131, section 4.3.2).
    async fn accept(
        &self,
        channel: &Channel,
        offer: &DhcpMessage,
        broadcast: bool,
        until: Instant,
    ) -> Result<DhcpAnswer> {
        let mut request = self.message(MessageType::Request, channel);
        request.transaction = offer.transaction;
        request.seconds = offer.seconds;
        request.broadcast = broadcast;
        request.options.insert(option::REQUESTED_ADDRESS, offer.yours.octets().to_vec());
        if let Some(server) = offer.option(option::SERVER) {
            request.options.insert(option::SERVER, server.to_vec());
        }
        let mut wait = FIRST_WAIT;
        for _ in 0..3 {
            channel.send(&request, Ipv4Addr::BROADCAST).await?;
            let limit = around(wait).min(until.saturating_duration_since(Instant::now()));
            if let Some(message) =
                answer(channel, &request, &[MessageType::Ack, MessageType::Nak], limit).await?
            {
                return Ok(granted(message));
            }
            wait *= 2;
        }
        Ok(DhcpAnswer::Silence)
    }

    /// Sends one request to extend a lease (RENEWING and REBINDING), to its server or to all servers.
    ///
    /// # Errors
    /// The interface fails.
    pub(super) async fn extend(
        &self,
        channel: &Channel,
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
        limit: Duration,
    ) -> Result<DhcpAnswer> {
        let mut request = self.message(MessageType::Request, channel);
        request.client = address;
        channel.send(&request, server.unwrap_or(Ipv4Addr::BROADCAST)).await?;
        let message = answer(channel, &request, &[MessageType::Ack, MessageType::Nak], limit).await?;
        Ok(message.map_or(DhcpAnswer::Silence, granted))
    }

    /// Releases a lease. Servers do not answer a release.
    ///
    /// # Errors
    /// The interface fails.
    pub(super) async fn give_back(
        &self,
        channel: &Channel,
        address: Ipv4Addr,
        server: Ipv4Addr,
    ) -> Result<()> {
        let mut release = DhcpMessage::of_client(MessageType::Release, rand::random(), channel.hardware);
        release.client = address;
        release.options.insert(option::CLIENT, self.id.to_vec());
        release.options.insert(option::SERVER, server.octets().to_vec());
        channel.send(&release, server).await
    }

    fn message(&self, kind: MessageType, channel: &Channel) -> DhcpMessage {
        let mut message = DhcpMessage::of_client(kind, rand::random(), channel.hardware);
        message.options.insert(option::CLIENT, self.id.to_vec());
        message.options.insert(option::LARGEST_MESSAGE, MAX_MESSAGE_SIZE.to_be_bytes().to_vec());
        if !self.options.requested.is_empty() {
            message.options.insert(option::PARAMETERS, self.options.requested.clone());
        }
        // Options that the configuration provides override all others, including the client id.
        let provided = self.options.provided.iter().filter(|(number, _)| **number != option::MESSAGE_TYPE);
        message.options.extend(provided.map(|(number, value)| (*number, value.clone())));
        message
    }
}

/// Returns the first answer to a message that has one of these kinds and comes from the server that the message names.
async fn answer(
    channel: &Channel,
    to: &DhcpMessage,
    kinds: &[MessageType],
    limit: Duration,
) -> Result<Option<DhcpMessage>> {
    let wait = timeout(limit, async {
        loop {
            let message = channel.receive().await?;
            let expected = message.kind().is_some_and(|kind| kinds.contains(&kind));
            let of_server =
                to.option(option::SERVER).is_none_or(|server| message.option(option::SERVER) == Some(server));
            if message.transaction == to.transaction && expected && of_server {
                return Ok(message);
            }
        }
    });
    wait.await.map_or(Ok(None), |message| message.map(Some))
}

fn granted(message: DhcpMessage) -> DhcpAnswer {
    if message.kind() == Some(MessageType::Ack) {
        return DhcpAnswer::Granted(message);
    }
    let reason =
        message.option(option::ERROR).map(|text| String::from_utf8_lossy(text).escape_debug().to_string());
    DhcpAnswer::Refused(match reason {
        Some(reason) => format!("the DHCP server refused: {reason}"),
        None => "the DHCP server refused".to_owned(),
    })
}

/// A duration with a random deviation: pods that start together do not send requests together.
fn around(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.75..1.25))
}

/// Sleeps until an instant.
pub(super) async fn sleep_until(moment: Instant) {
    let _elapsed = timeout_at(moment, std::future::pending::<()>()).await;
}
