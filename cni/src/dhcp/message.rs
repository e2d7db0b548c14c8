//! A DHCP message on the wire (RFC 2131, section 2; options: RFC 2132 and RFC 3396). Received messages are untrusted:
//! all lengths in them are checked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The magic cookie before the options (RFC 2131, section 3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Old relays and servers drop shorter messages (RFC 1542, section 2.1).
const MIN_LENGTH: usize = 300;
const PAD: u8 = 0;
const END: u8 = 255;
/// The hardware type of Ethernet (RFC 1700).
const ETHERNET: u8 = 1;

/// Option codes (RFC 2132; 119: RFC 3397; 121: RFC 3442).
pub(crate) mod option {
    pub(crate) const SUBNET_MASK: u8 = 1;
    pub(crate) const ROUTER: u8 = 3;
    pub(crate) const NAME_SERVER: u8 = 6;
    pub(crate) const HOST_NAME: u8 = 12;
    pub(crate) const DOMAIN_NAME: u8 = 15;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const STATIC_ROUTE: u8 = 33;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const PARAMETERS: u8 = 55;
    pub(crate) const ERROR: u8 = 56;
    pub(crate) const LARGEST_MESSAGE: u8 = 57;
    pub(crate) const RENEWAL_TIME: u8 = 58;
    pub(crate) const REBINDING_TIME: u8 = 59;
    pub(crate) const VENDOR_CLASS: u8 = 60;
    pub(crate) const CLIENT: u8 = 61;
    pub(crate) const USER_CLASS: u8 = 77;
    pub(crate) const CLASSLESS_ROUTE: u8 = 121;
}

/// The message type (RFC 2132, section 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MessageType {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

const KINDS: [MessageType; 8] = [
    MessageType::Discover,
    MessageType::Offer,
    MessageType::Request,
    MessageType::Decline,
    MessageType::Ack,
    MessageType::Nak,
    MessageType::Release,
    MessageType::Inform,
];

impl MessageType {
    fn number(self) -> u8 {
        KINDS.iter().zip(1..).find(|(kind, _)| **kind == self).map_or(0, |(_, number)| number)
    }

    fn of(number: u8) -> Option<Self> {
        KINDS.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// The sender of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// A message between a client on Ethernet and a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DhcpMessage {
    pub(crate) from: Sender,
    /// `xid`: an answer has the transaction of its request.
    pub(crate) transaction: u32,
    /// Seconds since the client began.
    pub(crate) seconds: u16,
    /// The client cannot yet receive an answer at its own address.
    pub(crate) broadcast: bool,
    /// `ciaddr`: the client's address, if it has one.
    pub(crate) client: Ipv4Addr,
    /// `yiaddr`: the address that the server gives to the client.
    pub(crate) yours: Ipv4Addr,
    /// `siaddr`: the server that the client boots from.
    pub(crate) boot: Ipv4Addr,
    /// `giaddr`: the relay.
    pub(crate) relay: Ipv4Addr,
    /// `chaddr`: the client's hardware address.
    pub(crate) hardware: [u8; 6],
    /// The options without padding. The parts of a split option are joined.
    pub(crate) options: BTreeMap<u8, Vec<u8>>,
}

/// Why bytes are not a DHCP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("DHCP message is too short")]
    Short,
    #[error("DHCP message is from neither a client nor a server")]
    Sender,
    #[error("DHCP message is not from an Ethernet host")]
    Hardware,
    #[error("BOOTP message without DHCP options")]
    Cookie,
}

impl DhcpMessage {
    /// A client's message whose only option is its type.
    pub(crate) fn of_client(kind: MessageType, transaction: u32, hardware: [u8; 6]) -> Self {
        Self {
            from: Sender::Client,
            transaction,
            seconds: 0,
            broadcast: false,
            client: Ipv4Addr::UNSPECIFIED,
            yours: Ipv4Addr::UNSPECIFIED,
            boot: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            hardware,
            options: BTreeMap::from([(option::MESSAGE_TYPE, vec![kind.number()])]),
        }
    }

    /// The message type. BOOTP messages have none.
    pub(crate) fn kind(&self) -> Option<MessageType> {
        match self.options.get(&option::MESSAGE_TYPE)?.as_slice() {
            [number] => MessageType::of(*number),
            _ => None,
        }
    }

    /// Returns an option's bytes.
    pub(crate) fn option(&self, number: u8) -> Option<&[u8]> {
        self.options.get(&number).map(Vec::as_slice)
    }

    /// Returns the value of a 32-bit option.
    pub(crate) fn number(&self, number: u8) -> Option<u32> {
        self.option(number)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Returns the addresses of an option. Empty if the option is absent or shorter than an address.
    pub(crate) fn addresses(&self, number: u8) -> Vec<Ipv4Addr> {
        let (whole, _rest) = self.option(number).unwrap_or_default().as_chunks::<4>();
        whole.iter().map(|bytes| Ipv4Addr::from(*bytes)).collect()
    }

    /// Encodes the message.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let op = match self.from {
            Sender::Client => 1,
            Sender::Server => 2,
        };
        let mut bytes = vec![op, ETHERNET, 6, 0];
        bytes.extend(self.transaction.to_be_bytes());
        bytes.extend(self.seconds.to_be_bytes());
        bytes.extend(if self.broadcast { [0x80, 0] } else { [0, 0] });
        for address in [self.client, self.yours, self.boot, self.relay] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.hardware);
        // The rest of chaddr, sname and file.
        bytes.extend([0; 10 + 64 + 128]);
        bytes.extend(COOKIE);
        // The type comes first: some servers expect it there.
        let first = self.options.get_key_value(&option::MESSAGE_TYPE);
        let others = self.options.iter().filter(|(number, _)| **number != option::MESSAGE_TYPE);
        for (number, value) in first.into_iter().chain(others) {
            // A long option is split (RFC 3396, section 5). An empty option is sent, too.
            let mut parts: Vec<&[u8]> = value.chunks(255).collect();
            if parts.is_empty() {
                parts.push(&[]);
            }
            for part in parts {
                bytes.push(*number);
                bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
                bytes.extend(part);
            }
        }
        bytes.push(END);
        bytes.resize(bytes.len().max(MIN_LENGTH), PAD);
        bytes
    }

    /// Parses a received message.
    ///
    /// # Errors
    /// The bytes are not a DHCP message over Ethernet. A truncated option ends the options without an error.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let [op, hardware_type, hardware_length, _hops] = read_array(&mut rest)?;
        let transaction = u32::from_be_bytes(read_array(&mut rest)?);
        let seconds = u16::from_be_bytes(read_array(&mut rest)?);
        let [flags, _] = read_array(&mut rest)?;
        let [client, yours, boot, relay] = {
            let mut address = || read_array(&mut rest).map(|bytes: [u8; 4]| Ipv4Addr::from(bytes));
            [address()?, address()?, address()?, address()?]
        };
        let hardware: [u8; 6] = read_array(&mut rest)?;
        let _: [u8; 10] = read_array(&mut rest)?;
        let server_name: [u8; 64] = read_array(&mut rest)?;
        let file: [u8; 128] = read_array(&mut rest)?;
        let from = match op {
            1 => Sender::Client,
            2 => Sender::Server,
            _ => return Err(Malformed::Sender),
        };
        if (hardware_type, hardware_length) != (ETHERNET, 6) {
            return Err(Malformed::Hardware);
        }
        if read_array(&mut rest)? != COOKIE {
            return Err(Malformed::Cookie);
        }
        let mut options = BTreeMap::new();
        collect(rest, &mut options);
        // Further options are in these fields, in this order (RFC 2132, section 9.3; RFC 3396, section 5).
        let overload = match options.get(&option::OVERLOAD).map(Vec::as_slice) {
            Some([fields]) => *fields,
            _ => 0,
        };
        if overload & 1 != 0 {
            collect(&file, &mut options);
        }
        if overload & 2 != 0 {
            collect(&server_name, &mut options);
        }
        let broadcast = flags & 0x80 != 0;
        Ok(Self { from, transaction, seconds, broadcast, client, yours, boot, relay, hardware, options })
    }
}

fn read_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, left) = rest.split_first_chunk().ok_or(Malformed::Short)?;
    *rest = left;
    Ok(*taken)
}

/// Collects options. A code that occurs more than once is one option in parts.
fn collect(mut rest: &[u8], options: &mut BTreeMap<u8, Vec<u8>>) {
    while let Some((&number, after)) = rest.split_first() {
        rest = after;
        match number {
            PAD => {}
            END => return,
            _ => {
                let Some((&length, after)) = rest.split_first() else { return };
                let Some((value, after)) = after.split_at_checked(usize::from(length)) else { return };
                options.entry(number).or_default().extend(value);
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer of dnsmasq 2.90 as captured, up to the end of its options.
    const OFFER: &str = "02010600deadbeef0000000000000000 0a05006f0a05000100000000020000000001\
        00000000000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)?.try_into().ok()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn an_answer_is_parsed() {
        let mut offer = bytes(OFFER);
        offer.resize(236, 0);
        offer.extend(bytes(
            "63825363 350102 36040a050001 33040000003c 3a040000001e 3b0400000034 0104ffffff00",
        ));
        offer.extend(bytes("03040a050001 060400000000 ff"));
        let message = DhcpMessage::parse(&offer).unwrap();
        assert_eq!(
            (message.from, message.transaction, message.kind()),
            (Sender::Server, 0xdead_beef, Some(MessageType::Offer))
        );
        assert_eq!(message.yours, Ipv4Addr::new(10, 5, 0, 111));
        assert_eq!(message.hardware, [2, 0, 0, 0, 0, 1]);
        assert_eq!(message.number(option::LEASE_TIME), Some(60));
        assert_eq!(message.addresses(option::ROUTER), [Ipv4Addr::new(10, 5, 0, 1)]);
    }

    #[test]
    fn options_continue_in_other_fields() {
        let mut message = DhcpMessage::of_client(MessageType::Request, 7, [2; 6]);
        message.options.insert(option::OVERLOAD, vec![3]);
        message.options.insert(option::HOST_NAME, b"be".to_vec());
        let mut sent = message.to_bytes();
        sent[108..112].copy_from_slice(&[option::HOST_NAME, 2, b'r', b't']);
        sent[112] = END;
        sent[44..47].copy_from_slice(&[option::HOST_NAME, 1, b'h']);
        sent[47] = END;
        assert_eq!(DhcpMessage::parse(&sent).unwrap().option(option::HOST_NAME), Some(&b"berth"[..]));
    }

    #[test]
    fn invalid_messages_are_rejected() {
        let sent = DhcpMessage::of_client(MessageType::Discover, 7, [2; 6]).to_bytes();
        assert_eq!(sent.len(), MIN_LENGTH);
        let changed = |place: usize, value: u8| {
            let mut changed = sent.clone();
            changed[place] = value;
            DhcpMessage::parse(&changed)
        };
        assert_eq!(changed(0, 3), Err(Malformed::Sender));
        assert_eq!(changed(1, 6), Err(Malformed::Hardware));
        assert_eq!(changed(2, 16), Err(Malformed::Hardware));
        assert_eq!(changed(236, 0), Err(Malformed::Cookie));
        assert_eq!(DhcpMessage::parse(&sent[..239]), Err(Malformed::Short));
    }

    proptest! {
        #[test]
        fn messages_survive_a_round_trip(
            transaction: u32, seconds: u16, broadcast: bool, addresses: [u32; 4], hardware: [u8; 6],
            server: bool,
            options in proptest::collection::btree_map(
                // An overload would mean that other fields contain options.
                (1_u8..255).prop_filter("overload", |number| *number != option::OVERLOAD),
                proptest::collection::vec(any::<u8>(), 0..600), 0..8),
        ) {
            let [client, yours, boot, relay] = addresses.map(Ipv4Addr::from);
            let from = if server { Sender::Server } else { Sender::Client };
            let message =
                DhcpMessage { from, transaction, seconds, broadcast, client, yours, boot, relay, hardware, options };
            prop_assert_eq!(DhcpMessage::parse(&message.to_bytes()), Ok(message));
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), plausible: bool) {
            if plausible && bytes.len() > 240 {
                bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
                bytes[236..240].copy_from_slice(&COOKIE);
            }
            if let Ok(message) = DhcpMessage::parse(&bytes) {
                prop_assert_eq!(DhcpMessage::parse(&message.to_bytes()).map(|again| again.hardware), Ok(message.hardware));
            }
        }
    }
}
