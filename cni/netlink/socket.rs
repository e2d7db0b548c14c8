//! One netlink socket, which is one user's at a time: whoever asks has it whole until all answers are there (`&mut`). So a
//! list is never begun beside another, which the kernel refuses (`EBUSY`: one dump a socket), and no answer is another's.
//!
//! The kernel has answered when the send returns, and does several requests of one datagram in their order (rtnetlink(7)):
//! what is not there then will never come, so nothing is waited for here.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

/// How many requests are sent at once: all their answers have room in the socket's buffer.
const TOGETHER: usize = 64;

/// The kernel could not give a whole answer while others changed what was asked for: it is asked again so often, and waits
/// longer each time.
const ATTEMPTS: u32 = 12;

/// What a request is for: which flags it has. That it asks for a list cannot be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// One thing as it is.
    Get,
    /// A thing that is not there yet.
    Create,
    /// A thing, whether it is there or not.
    Put,
    /// A change of a thing that is there.
    Change,
    /// That it goes.
    Delete,
}

impl Ask {
    fn flags(self) -> u16 {
        NLM_F_REQUEST
            | match self {
                Self::Get => 0,
                Self::Create => NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
                Self::Put => NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
                Self::Change | Self::Delete => NLM_F_ACK,
            }
    }
}

/// What the kernel says to one request: the thing that was asked for, or that it is done.
pub(crate) type Answer = io::Result<Option<RouteNetlinkMessage>>;

/// A socket in the network namespace of the thread that has opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    /// Answers may be left that belong to nobody any more.
    pub(super) confused: bool,
}

/// One message of an answer.
struct Part {
    header: NetlinkHeader,
    /// `None` where it says something that is not understood here.
    payload: Option<NetlinkPayload<RouteNetlinkMessage>>,
}

impl Socket {
    /// In the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Without a copy of the request in each error answer (netlink(7), NETLINK_CAP_ACK).
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, confused: false })
    }

    /// Asks for one thing.
    pub(super) fn ask(&mut self, ask: Ask, message: RouteNetlinkMessage) -> Answer {
        let none = || io::Error::from(io::ErrorKind::InvalidData);
        self.ask_all(vec![(ask, message)])?.pop().unwrap_or_else(|| Err(none()))
    }

    /// Asks for several things, in this order; an answer to each. Those behind one that is refused are done all the same.
    pub(super) fn ask_all(&mut self, requests: Vec<(Ask, RouteNetlinkMessage)>) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(TOGETHER));
            let some = std::mem::replace(&mut rest, later);
            let only_looks = some.iter().all(|(ask, _)| *ask == Ask::Get);
            // Looking twice changes nothing.
            let answered = match only_looks {
                true => repeated(|| self.exchange(&some).and_then(without_transient)),
                false => self.exchange(&some),
            };
            answers.extend(answered?);
        }
        Ok(answers)
    }

    fn exchange(&mut self, requests: &[(Ask, RouteNetlinkMessage)]) -> io::Result<Vec<Answer>> {
        self.confused = true;
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (ask, message) in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, message.clone(), ask.flags(), self.sequence);
        }
        self.socket.send(&datagram, 0)?;
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
        while answers.iter().any(Option::is_none) {
            for part in self.receive()? {
                let place = usize::try_from(part.header.sequence_number.wrapping_sub(first)).ok();
                let Some(answer) = place.and_then(|place| answers.get_mut(place)) else { continue };
                *answer = Some(match part.payload {
                    Some(NetlinkPayload::InnerMessage(message)) => Ok(Some(message)),
                    Some(NetlinkPayload::Error(error)) if error.code.is_some() => Err(error.to_io()),
                    Some(_) => Ok(None),
                    None => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not understood")),
                });
            }
        }
        self.confused = false;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Everything of a kind. What is not understood of it is left out.
    pub(super) fn list(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        repeated(|| self.list_once(message))
    }

    fn list_once(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        /// Something has changed meanwhile (`NLM_F_DUMP_INTR`): what was listed may lack things, and have others twice.
        const INTERRUPTED: u16 = 0x10;
        self.confused = true;
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        append(&mut datagram, message.clone(), NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.socket.send(&datagram, 0)?;
        let (mut found, mut transient) = (Vec::new(), None);
        loop {
            let parts = match self.receive() {
                // A message has found no room; the list goes on, and ends.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    transient = Some(error);
                    continue;
                }
                parts => parts?,
            };
            for part in parts.into_iter().filter(|part| part.header.sequence_number == self.sequence) {
                if part.header.flags & INTERRUPTED != 0 {
                    transient = Some(io::ErrorKind::Interrupted.into());
                }
                match part.payload {
                    Some(NetlinkPayload::InnerMessage(message)) => found.push(message),
                    Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                        self.confused = false;
                        return Err(error.to_io());
                    }
                    Some(NetlinkPayload::Done(done)) => {
                        self.confused = false;
                        return match (done.code, transient) {
                            (code, _) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                            (_, Some(error)) => Err(error),
                            (_, None) => Ok(found),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<Part>> {
        /// More than any message (`SKB_WITH_OVERHEAD(32768)` is the most that the kernel fills at once).
        const LARGEST: usize = 64 << 10;
        let mut buffer = Vec::with_capacity(LARGEST);
        match self.socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("the kernel's answer is lost"));
            }
            received => received?,
        };
        Ok(parts(&buffer))
    }
}

/// The messages of a datagram.
fn parts(mut buffer: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    while let Some(header) = header(buffer) {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let Some(message) = buffer.get(..length) else { break };
        let payload = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
        if let Err(error) = &payload {
            tracing::debug!(%error, kind = header.message_type, "a message of the kernel is not understood");
        }
        parts.push(Part { header, payload: payload.ok().map(|message| message.payload) });
        buffer = buffer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    parts
}

/// `struct nlmsghdr` (netlink(7)).
pub(super) fn header(buffer: &[u8]) -> Option<NetlinkHeader> {
    let word = |at: usize| Some(u32::from_ne_bytes(buffer.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(buffer.get(at..at + 2)?.try_into().ok()?));
    let mut header = NetlinkHeader::default();
    header.length = word(0).filter(|length| *length >= 16)?;
    header.message_type = half(4)?;
    header.flags = half(6)?;
    header.sequence_number = word(8)?;
    header.port_number = word(12)?;
    Some(header)
}

fn append(datagram: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len().next_multiple_of(4)];
    message.serialize(&mut bytes);
    datagram.extend_from_slice(&bytes);
}

/// Whether the same request may go well when it is repeated.
fn is_transient(error: &io::Error) -> bool {
    let transient = [Errno::BUSY, Errno::INTR, Errno::NOBUFS, Errno::AGAIN].map(Errno::raw_os_error);
    error.kind() == io::ErrorKind::Interrupted
        || error.raw_os_error().is_some_and(|code| transient.contains(&code))
}

fn without_transient(answers: Vec<Answer>) -> io::Result<Vec<Answer>> {
    match answers.iter().any(|answer| answer.as_ref().is_err_and(is_transient)) {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(answers),
    }
}

fn repeated<T>(mut once: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut wait = Duration::from_micros(100);
    for _attempt in 1..ATTEMPTS {
        match once() {
            Err(error) if is_transient(&error) => std::thread::sleep(wait),
            done => return done,
        }
        wait *= 2;
    }
    once()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn what_is_transient_is_repeated_and_nothing_else() {
        let count = |code: Errno, until: u32| {
            let mut times = 0;
            let done = repeated(|| {
                times += 1;
                match times <= until {
                    true => Err(io::Error::from_raw_os_error(code.raw_os_error())),
                    false => Ok(()),
                }
            });
            (done.is_ok(), times)
        };
        for code in [Errno::BUSY, Errno::INTR, Errno::NOBUFS] {
            assert_eq!(count(code, 3), (true, 4), "{code}");
        }
        assert_eq!(count(Errno::BUSY, 1000), (false, ATTEMPTS));
        assert_eq!(count(Errno::NODEV, 1000), (false, 1));
    }

    #[test]
    fn requests_and_lists_of_many_threads_have_their_own_answers() {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut socket = Socket::open().unwrap();
                    for _ in 0..50 {
                        let mut first = LinkMessage::default();
                        first.header.index = 1;
                        let asked = socket.ask(Ask::Get, RouteNetlinkMessage::GetLink(first)).unwrap();
                        let Some(RouteNetlinkMessage::NewLink(link)) = asked else { panic!("{asked:?}") };
                        assert_eq!(link.header.index, 1);
                        assert!(!socket.list(&all).unwrap().is_empty());
                    }
                });
            }
        });
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reader_fail(bytes: Vec<u8>) {
            proptest::prop_assert!(parts(&bytes).len() <= bytes.len());
        }
    }
}
