//! The conversations with servers: finding one that lends an address, making the lease longer, giving it back (RFC 2131,
//! section 3).

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::channel::Channel;
use super::message::{Kind, Message, option};
use super::wanted::Wanted;
use crate::{Error, Result};

/// How long a pod waits for an address: less than the kubelet waits for the pod.
const PATIENCE: Duration = Duration::from_secs(100);
/// How long an answer is waited for at first; then twice as long each time, to [`LONGEST`], give or take a random part
/// (RFC 2131, section 4.1, begins at four seconds: a pod that starts is not kept so long by one lost packet).
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(16);
/// The largest message that every host can take (RFC 791), which servers may exceed by nothing.
const LARGEST: u16 = 1472;

/// Who asks, and for what.
#[derive(Clone, Debug)]
pub(super) struct Client<'a> {
    /// Option 61: its first byte says that it is no hardware address.
    pub(super) id: &'a [u8],
    pub(super) wanted: &'a Wanted,
}

/// An answer to a request for a known address.
#[derive(Debug)]
pub(super) enum Answer {
    Granted(Message),
    /// The address must not be used any more; the server's words.
    Refused(String),
    /// Nobody has said anything.
    Silence,
}

impl Client<'_> {
    /// Finds a server and gets an address of it.
    ///
    /// # Errors
    /// None has given one in time, or the interface fails.
    pub(super) async fn find(&self, channel: &Channel) -> Result<Message> {
        let began = Instant::now();
        let until = began + PATIENCE;
        let mut last = "no DHCP server answered".to_owned();
        let mut wait = FIRST;
        for attempt in 0_u32.. {
            let mut discover = self.message(Kind::Discover, channel);
            discover.seconds = u16::try_from(began.elapsed().as_secs()).unwrap_or(u16::MAX);
            // A server may be unable to reach an interface that has no address but by a broadcast; not all networks like
            // broadcasts, so every second time.
            discover.broadcast = attempt % 2 == 1;
            channel.send(&discover, Ipv4Addr::BROADCAST).await?;
            let patience = around(wait).min(until.saturating_duration_since(Instant::now()));
            if let Some(offer) = answer(channel, &discover, &[Kind::Offer], patience).await? {
                match self.accept(channel, &offer, discover.broadcast, until).await? {
                    Answer::Granted(ack) => return Ok(ack),
                    Answer::Refused(why) => last = why,
                    Answer::Silence => last = "the DHCP server made an offer and then was silent".to_owned(),
                }
            }
            if Instant::now() >= until {
                break;
            }
            wait = (wait * 2).min(LONGEST);
        }
        Err(Error::Invalid(format!("{last} ({} s)", began.elapsed().as_secs())))
    }

    /// Takes an offer (SELECTING, RFC 2131, section 4.3.2).
    async fn accept(
        &self,
        channel: &Channel,
        offer: &Message,
        broadcast: bool,
        until: Instant,
    ) -> Result<Answer> {
        let mut request = self.message(Kind::Request, channel);
        request.transaction = offer.transaction;
        request.seconds = offer.seconds;
        request.broadcast = broadcast;
        request.options.insert(option::REQUESTED_ADDRESS, offer.yours.octets().to_vec());
        if let Some(server) = offer.option(option::SERVER) {
            request.options.insert(option::SERVER, server.to_vec());
        }
        let mut wait = FIRST;
        for _ in 0..3 {
            channel.send(&request, Ipv4Addr::BROADCAST).await?;
            let patience = around(wait).min(until.saturating_duration_since(Instant::now()));
            if let Some(message) = answer(channel, &request, &[Kind::Ack, Kind::Nak], patience).await? {
                return Ok(granted(message));
            }
            wait *= 2;
        }
        Ok(Answer::Silence)
    }

    /// Asks once to keep an address (RENEWING and REBINDING): its server, or all.
    ///
    /// # Errors
    /// The interface fails.
    pub(super) async fn extend(
        &self,
        channel: &Channel,
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
        patience: Duration,
    ) -> Result<Answer> {
        let mut request = self.message(Kind::Request, channel);
        request.client = address;
        channel.send(&request, server.unwrap_or(Ipv4Addr::BROADCAST)).await?;
        let message = answer(channel, &request, &[Kind::Ack, Kind::Nak], patience).await?;
        Ok(message.map_or(Answer::Silence, granted))
    }

    /// Gives an address back; there is no answer to this.
    ///
    /// # Errors
    /// The interface fails.
    pub(super) async fn give_back(
        &self,
        channel: &Channel,
        address: Ipv4Addr,
        server: Ipv4Addr,
    ) -> Result<()> {
        let mut release = Message::of_client(Kind::Release, rand::random(), channel.hardware);
        release.client = address;
        release.options.insert(option::CLIENT, self.id.to_vec());
        release.options.insert(option::SERVER, server.octets().to_vec());
        channel.send(&release, server).await
    }

    fn message(&self, kind: Kind, channel: &Channel) -> Message {
        let mut message = Message::of_client(kind, rand::random(), channel.hardware);
        message.options.insert(option::CLIENT, self.id.to_vec());
        message.options.insert(option::LARGEST_MESSAGE, LARGEST.to_be_bytes().to_vec());
        if !self.wanted.requested.is_empty() {
            message.options.insert(option::PARAMETERS, self.wanted.requested.clone());
        }
        // What the configuration provides goes before all that, the client's id too.
        let provided = self.wanted.provided.iter().filter(|(number, _)| **number != option::MESSAGE_TYPE);
        message.options.extend(provided.map(|(number, value)| (*number, value.clone())));
        message
    }
}

/// The first answer to a message of one of these kinds, from the server that was named.
async fn answer(
    channel: &Channel,
    to: &Message,
    kinds: &[Kind],
    patience: Duration,
) -> Result<Option<Message>> {
    let wait = timeout(patience, async {
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

fn granted(message: Message) -> Answer {
    if message.kind() == Some(Kind::Ack) {
        return Answer::Granted(message);
    }
    let words =
        message.option(option::ERROR).map(|text| String::from_utf8_lossy(text).escape_debug().to_string());
    Answer::Refused(match words {
        Some(words) => format!("the DHCP server refused: {words}"),
        None => "the DHCP server refused".to_owned(),
    })
}

/// A time with a random part, so that pods that start together do not ask together.
fn around(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.75..1.25))
}

/// Sleeps until a moment or the end of the world of this clock.
pub(super) async fn sleep_until(moment: Instant) {
    let _elapsed = timeout_at(moment, std::future::pending::<()>()).await;
}
