//! A DHCP message on the wire (RFC 2131, section 2; options by RFC 2132 and 3396). What comes in is from a stranger: it is
//! read or refused, never believed in its lengths.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Options begin with it (RFC 2131, section 3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Relays and servers of old drop what is shorter (RFC 1542, section 2.1).
const SHORTEST: usize = 300;
const PAD: u8 = 0;
const END: u8 = 255;
/// Ethernet, as the hardware type is named in RFC 1700.
const ETHERNET: u8 = 1;

/// Numbers of options (RFC 2132; 119: RFC 3397; 121: RFC 3442).
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

/// What a message is for (RFC 2132, section 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Discover,
    Offer,
    Request,
    Decline,
    Ack,
    Nak,
    Release,
    Inform,
}

const KINDS: [Kind; 8] = [
    Kind::Discover,
    Kind::Offer,
    Kind::Request,
    Kind::Decline,
    Kind::Ack,
    Kind::Nak,
    Kind::Release,
    Kind::Inform,
];

impl Kind {
    fn number(self) -> u8 {
        KINDS.iter().zip(1..).find(|(kind, _)| **kind == self).map_or(0, |(_, number)| number)
    }

    fn of(number: u8) -> Option<Self> {
        KINDS.get(usize::from(number).checked_sub(1)?).copied()
    }
}

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// A message between a client on Ethernet and a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) from: Sender,
    /// `xid`: an answer has that of its question.
    pub(crate) transaction: u32,
    /// Seconds since the client began.
    pub(crate) seconds: u16,
    /// The client cannot have its answer by its address yet.
    pub(crate) broadcast: bool,
    /// `ciaddr`: the client's address, if it has one.
    pub(crate) client: Ipv4Addr,
    /// `yiaddr`: the address that the client is to have.
    pub(crate) yours: Ipv4Addr,
    /// `siaddr`: where the client boots from.
    pub(crate) boot: Ipv4Addr,
    /// `giaddr`: the relay.
    pub(crate) relay: Ipv4Addr,
    /// `chaddr`: the client's hardware address.
    pub(crate) hardware: [u8; 6],
    /// Without padding; what came in parts is one.
    pub(crate) options: BTreeMap<u8, Vec<u8>>,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a DHCP message that ends too early")]
    Short,
    #[error("a DHCP message of neither a client nor a server")]
    Sender,
    #[error("a DHCP message of no Ethernet host")]
    Hardware,
    #[error("a BOOTP message without DHCP's options")]
    Cookie,
}

impl Message {
    /// A client's message without options but its kind.
    pub(crate) fn of_client(kind: Kind, transaction: u32, hardware: [u8; 6]) -> Self {
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

    /// What it is for; none of BOOTP.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self.options.get(&option::MESSAGE_TYPE)?.as_slice() {
            [number] => Kind::of(*number),
            _ => None,
        }
    }

    /// An option's bytes.
    pub(crate) fn option(&self, number: u8) -> Option<&[u8]> {
        self.options.get(&number).map(Vec::as_slice)
    }

    /// An option of a whole number.
    pub(crate) fn number(&self, number: u8) -> Option<u32> {
        self.option(number)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// An option of addresses, of which there is one at least.
    pub(crate) fn addresses(&self, number: u8) -> Vec<Ipv4Addr> {
        let (whole, _rest) = self.option(number).unwrap_or_default().as_chunks::<4>();
        whole.iter().map(|bytes| Ipv4Addr::from(*bytes)).collect()
    }

    /// As it is sent.
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
        // The type comes first: some servers look nowhere else.
        let first = self.options.get_key_value(&option::MESSAGE_TYPE);
        let others = self.options.iter().filter(|(number, _)| **number != option::MESSAGE_TYPE);
        for (number, value) in first.into_iter().chain(others) {
            // Longer ones in parts (RFC 3396, section 5); an empty one is there, too.
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
        bytes.resize(bytes.len().max(SHORTEST), PAD);
        bytes
    }

    /// Reads what has come.
    ///
    /// # Errors
    /// It is no message of DHCP over Ethernet. Options that are broken off end the options.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut rest = bytes;
        let [op, hardware_type, hardware_length, _hops] = take(&mut rest)?;
        let transaction = u32::from_be_bytes(take(&mut rest)?);
        let seconds = u16::from_be_bytes(take(&mut rest)?);
        let [flags, _] = take(&mut rest)?;
        let [client, yours, boot, relay] = {
            let mut address = || take(&mut rest).map(|bytes: [u8; 4]| Ipv4Addr::from(bytes));
            [address()?, address()?, address()?, address()?]
        };
        let hardware: [u8; 6] = take(&mut rest)?;
        let _: [u8; 10] = take(&mut rest)?;
        let server_name: [u8; 64] = take(&mut rest)?;
        let file: [u8; 128] = take(&mut rest)?;
        let from = match op {
            1 => Sender::Client,
            2 => Sender::Server,
            _ => return Err(Malformed::Sender),
        };
        if (hardware_type, hardware_length) != (ETHERNET, 6) {
            return Err(Malformed::Hardware);
        }
        if take(&mut rest)? != COOKIE {
            return Err(Malformed::Cookie);
        }
        let mut options = BTreeMap::new();
        collect(rest, &mut options);
        // Where they do not fit they go on in these fields, in this order (RFC 2132, section 9.3; RFC 3396, section 5).
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

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (taken, left) = rest.split_first_chunk().ok_or(Malformed::Short)?;
    *rest = left;
    Ok(*taken)
}

/// One number more than once is one option in parts.
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

    /// An answer of dnsmasq 2.90, as it was on the wire, to its options' end.
    const OFFER: &str = "02010600deadbeef0000000000000000 0a05006f0a05000100000000020000000001\
        00000000000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)?.try_into().ok()).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    #[test]
    fn an_answer_is_read() {
        let mut offer = bytes(OFFER);
        offer.resize(236, 0);
        offer.extend(bytes(
            "63825363 350102 36040a050001 33040000003c 3a040000001e 3b0400000034 0104ffffff00",
        ));
        offer.extend(bytes("03040a050001 060400000000 ff"));
        let message = Message::parse(&offer).unwrap();
        assert_eq!(
            (message.from, message.transaction, message.kind()),
            (Sender::Server, 0xdead_beef, Some(Kind::Offer))
        );
        assert_eq!(message.yours, Ipv4Addr::new(10, 5, 0, 111));
        assert_eq!(message.hardware, [2, 0, 0, 0, 0, 1]);
        assert_eq!(message.number(option::LEASE_TIME), Some(60));
        assert_eq!(message.addresses(option::ROUTER), [Ipv4Addr::new(10, 5, 0, 1)]);
    }

    #[test]
    fn options_go_on_in_other_fields() {
        let mut message = Message::of_client(Kind::Request, 7, [2; 6]);
        message.options.insert(option::OVERLOAD, vec![3]);
        message.options.insert(option::HOST_NAME, b"be".to_vec());
        let mut sent = message.to_bytes();
        sent[108..112].copy_from_slice(&[option::HOST_NAME, 2, b'r', b't']);
        sent[112] = END;
        sent[44..47].copy_from_slice(&[option::HOST_NAME, 1, b'h']);
        sent[47] = END;
        assert_eq!(Message::parse(&sent).unwrap().option(option::HOST_NAME), Some(&b"berth"[..]));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let sent = Message::of_client(Kind::Discover, 7, [2; 6]).to_bytes();
        assert_eq!(sent.len(), SHORTEST);
        let changed = |place: usize, value: u8| {
            let mut changed = sent.clone();
            changed[place] = value;
            Message::parse(&changed)
        };
        assert_eq!(changed(0, 3), Err(Malformed::Sender));
        assert_eq!(changed(1, 6), Err(Malformed::Hardware));
        assert_eq!(changed(2, 16), Err(Malformed::Hardware));
        assert_eq!(changed(236, 0), Err(Malformed::Cookie));
        assert_eq!(Message::parse(&sent[..239]), Err(Malformed::Short));
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read_again(
            transaction: u32, seconds: u16, broadcast: bool, addresses: [u32; 4], hardware: [u8; 6],
            server: bool,
            options in proptest::collection::btree_map(
                // An overload would say that other fields have options.
                (1_u8..255).prop_filter("overload", |number| *number != option::OVERLOAD),
                proptest::collection::vec(any::<u8>(), 0..600), 0..8),
        ) {
            let [client, yours, boot, relay] = addresses.map(Ipv4Addr::from);
            let from = if server { Sender::Server } else { Sender::Client };
            let message =
                Message { from, transaction, seconds, broadcast, client, yours, boot, relay, hardware, options };
            prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
        }

        #[test]
        fn anything_is_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..700), plausible: bool) {
            if plausible && bytes.len() > 240 {
                bytes[..4].copy_from_slice(&[2, 1, 6, 0]);
                bytes[236..240].copy_from_slice(&COOKIE);
            }
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(Message::parse(&message.to_bytes()).map(|again| again.hardware), Ok(message.hardware));
            }
        }
    }
}
