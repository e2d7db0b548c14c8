//! A netlink socket with one user at a time: a request has the socket exclusively until all its answers are received
//! (`&mut`). No two dumps overlap on a socket, which the kernel refuses (`EBUSY`), and answers are not mixed up.
//!
//! The kernel has answered when the send returns, and processes several requests of one datagram in order
//! (rtnetlink(7)). An answer that is not there then never arrives, so this code does not wait.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use super::messages::{RawMessage, messages};
use super::{answer_lost, is_transient};
use crate::trace;

/// How many requests are sent in one datagram: all their answers fit into the socket's buffer.
const MAX_BATCH: usize = 64;

/// How often a request is sent when the kernel cannot answer completely because of concurrent changes. The wait between
/// attempts doubles.
const ATTEMPTS: u32 = 12;

/// The operation of a request, which determines its flags. Dumps have a separate function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Returns an object.
    Get,
    /// Creates an object that does not exist.
    Create,
    /// Creates an object or replaces it.
    Put,
    /// Changes an existing object.
    Change,
    /// Deletes an object.
    Delete,
}

impl Operation {
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

/// The kernel's answer to one request: the requested object, or an acknowledgement.
pub(crate) type Answer = io::Result<Option<RouteNetlinkMessage>>;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
    /// Whether unread answers of an earlier request may remain.
    pub(super) out_of_sync: bool,
}

/// One message of an answer.
struct Part {
    header: NetlinkHeader,
    /// `None` if the payload cannot be parsed.
    payload: Option<NetlinkPayload<RouteNetlinkMessage>>,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Errors do not contain a copy of the request (netlink(7), NETLINK_CAP_ACK).
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, out_of_sync: false })
    }

    /// Sends one request.
    pub(crate) fn request(&mut self, operation: Operation, message: RouteNetlinkMessage) -> Answer {
        let none = || io::Error::from(io::ErrorKind::InvalidData);
        self.request_all(vec![(operation, message)])?.pop().unwrap_or_else(|| Err(none()))
    }

    /// Sends several requests in this order and returns an answer for each. A refused request does not stop those after
    /// it.
    pub(super) fn request_all(
        &mut self,
        requests: Vec<(Operation, RouteNetlinkMessage)>,
    ) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(MAX_BATCH));
            let batch = std::mem::replace(&mut rest, later);
            let read_only = batch.iter().all(|(operation, _)| *operation == Operation::Get);
            // A read can be repeated.
            let answered = match read_only {
                true => retry_transient(|| self.exchange(&batch).and_then(without_transient)),
                false => self.exchange(&batch),
            };
            answers.extend(answered?);
        }
        Ok(answers)
    }

    /// Sends requests in one datagram and receives their answers, as one span of the trace.
    fn exchange(&mut self, requests: &[(Operation, RouteNetlinkMessage)]) -> io::Result<Vec<Answer>> {
        let span = trace::netlink(requests.len(), requests.iter().map(|(_, message)| message));
        let answers = span.in_scope(|| self.exchange_untraced(requests));
        trace::end(&span, &answers);
        for answer in answers.iter().flatten() {
            trace::end(&span, answer);
        }
        answers
    }

    fn exchange_untraced(
        &mut self,
        requests: &[(Operation, RouteNetlinkMessage)],
    ) -> io::Result<Vec<Answer>> {
        self.out_of_sync = true;
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for (operation, message) in requests {
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut datagram, message.clone(), operation.flags(), self.sequence);
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
                    None => Err(io::Error::new(io::ErrorKind::InvalidData, "unsupported answer")),
                });
            }
        }
        self.out_of_sync = false;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Lists all objects of a kind. Objects that cannot be parsed are omitted.
    pub(super) fn list(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        retry_transient(|| self.list_once(message))
    }

    fn list_once(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.out_of_sync = true;
        self.sequence = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        append(&mut datagram, message.clone(), NLM_F_REQUEST | NLM_F_DUMP, self.sequence);
        self.socket.send(&datagram, 0)?;
        let (mut objects, mut transient) = (Vec::new(), None);
        loop {
            let parts = match self.receive() {
                // A message did not fit into the socket's buffer. The dump continues to its end.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    transient = Some(error);
                    continue;
                }
                parts => parts?,
            };
            for part in parts.into_iter().filter(|part| part.header.sequence_number == self.sequence) {
                // The dump was concurrent with a change: objects may be missing or listed twice.
                if part.header.flags & NLM_F_DUMP_INTR != 0 {
                    transient = Some(io::ErrorKind::Interrupted.into());
                }
                match part.payload {
                    Some(NetlinkPayload::InnerMessage(message)) => objects.push(message),
                    Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                        self.out_of_sync = false;
                        return Err(error.to_io());
                    }
                    Some(NetlinkPayload::Done(done)) => {
                        self.out_of_sync = false;
                        return match (done.code, transient) {
                            (code, _) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                            (_, Some(error)) => Err(error),
                            (_, None) => Ok(objects),
                        };
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<Part>> {
        /// Larger than any message (the kernel fills at most `SKB_WITH_OVERHEAD(32768)`).
        const BUFFER_SIZE: usize = 64 << 10;
        let mut buffer = Vec::with_capacity(BUFFER_SIZE);
        match self.socket.recv(&mut buffer, 0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(answer_lost());
            }
            received => received?,
        };
        Ok(parts(&buffer))
    }
}

/// Parses the messages of a datagram.
fn parts(datagram: &[u8]) -> Vec<Part> {
    let parse = |RawMessage { header, whole, .. }: RawMessage<'_>| {
        let payload = NetlinkMessage::<RouteNetlinkMessage>::deserialize(whole);
        if let Err(error) = &payload {
            tracing::debug!(%error, kind = header.message_type, "failed to parse a netlink message");
        }
        Part { header, payload: payload.ok().map(|message| message.payload) }
    };
    messages(datagram).map(parse).collect()
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

fn without_transient(answers: Vec<Answer>) -> io::Result<Vec<Answer>> {
    match answers.iter().any(|answer| answer.as_ref().is_err_and(is_transient)) {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(answers),
    }
}

fn retry_transient<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut wait = Duration::from_micros(100);
    for _attempt in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_transient(&error) => std::thread::sleep(wait),
            result => return result,
        }
        wait *= 2;
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn only_transient_errors_are_retried() {
        let count = |code: Errno, until: u32| {
            let mut times = 0;
            let done = retry_transient(|| {
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
    fn concurrent_requests_and_dumps_receive_their_own_answers() {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut socket = Socket::open().unwrap();
                    for _ in 0..50 {
                        let mut first = LinkMessage::default();
                        first.header.index = 1;
                        let answer =
                            socket.request(Operation::Get, RouteNetlinkMessage::GetLink(first)).unwrap();
                        let Some(RouteNetlinkMessage::NewLink(link)) = answer else { panic!("{answer:?}") };
                        assert_eq!(link.header.index, 1);
                        assert!(!socket.list(&all).unwrap().is_empty());
                    }
                });
            }
        });
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            proptest::prop_assert!(parts(&bytes).len() <= bytes.len());
        }
    }
}
