//! The expressions of which rules are made (nft(8); their attributes are those of linux/netfilter/nf_tables.h).
//!
//! What an expression loads goes to a register of four bytes; a longer value, and one that is put together of several,
//! takes those that follow.

use std::net::IpAddr;

use ipnet::IpNet;

use super::message::Attributes;

/// The first register of four bytes (`NFT_REG32_00`).
const FIRST: u32 = 8;

/// What `meta` tells of a packet (`NFT_META_*`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// The name of the link that it came by: 16 bytes.
    InName,
    /// 2 for IPv4, 10 for IPv6: one byte.
    Nfproto,
    /// 6 for TCP, 17 for UDP: one byte.
    L4proto,
}

/// Which header a field is in (`NFT_PAYLOAD_*`).
#[derive(Clone, Copy, Debug)]
enum Base {
    Link,
    Network,
    Transport,
}

/// Where something is in a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    base: Base,
    offset: u32,
    length: u32,
}

/// The port that a packet is for: at the same place for TCP, UDP and SCTP.
pub(super) const DESTINATION_PORT: Field = Field { base: Base::Transport, offset: 2, length: 2 };

/// The hardware address that a frame is from.
pub(super) const SOURCE_MAC: Field = Field { base: Base::Link, offset: 6, length: 6 };

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

impl Version {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(super) fn source(self) -> Field {
        match self {
            Self::V4 => Field { base: Base::Network, offset: 12, length: 4 },
            Self::V6 => Field { base: Base::Network, offset: 8, length: 16 },
        }
    }

    pub(super) fn destination(self) -> Field {
        match self {
            Self::V4 => Field { base: Base::Network, offset: 16, length: 4 },
            Self::V6 => Field { base: Base::Network, offset: 24, length: 16 },
        }
    }

    /// Addresses of groups.
    pub(super) fn multicast(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4)),
            Self::V6 => {
                IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8))
            }
        }
    }
}

/// An address as bytes.
pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    Drop,
    Return,
    Jump(&'a str),
}

impl Verdict<'_> {
    /// Into the value of an element or of a rule.
    pub(super) fn write(self, data: &mut Attributes) {
        let (code, chain) = match self {
            Self::Drop => (0_i32, None),
            Self::Return => (-5, None),
            Self::Jump(chain) => (-3, Some(chain)),
        };
        data.nested(2, |verdict| {
            verdict.bytes(1, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.text(2, chain);
            }
        });
    }
}

/// The expressions of one rule, in order.
#[derive(Debug, Default)]
pub(super) struct Expressions {
    list: Attributes,
    /// How many registers a value that is being put together has taken.
    taken: u32,
}

impl Expressions {
    /// A rule for packets of one IP version.
    pub(super) fn of(version: Version) -> Self {
        Self::default().meta(Meta::Nfproto).is(&[version.number()])
    }

    pub(super) fn as_attributes(&self) -> &Attributes {
        &self.list
    }

    fn add(mut self, name: &str, data: impl FnOnce(&mut Attributes)) -> Self {
        self.list.nested(1, |element| {
            element.text(1, name);
            element.nested(2, data);
        });
        self
    }

    /// Loads behind what is loaded already, for a key of several parts.
    fn next_register(&mut self, length: u32) -> u32 {
        let register = FIRST + self.taken;
        self.taken += length.div_ceil(4);
        register
    }

    pub(super) fn meta(mut self, key: Meta) -> Self {
        let length = match key {
            Meta::InName => 16,
            Meta::Nfproto | Meta::L4proto => 1,
        };
        let register = self.next_register(length);
        let key = match key {
            Meta::InName => 6,
            Meta::Nfproto => 15,
            Meta::L4proto => 16,
        };
        self.add("meta", |e| {
            e.number(1, register);
            e.number(2, key);
        })
    }

    pub(super) fn field(mut self, field: Field) -> Self {
        let register = self.next_register(field.length);
        let base = match field.base {
            Base::Link => 0,
            Base::Network => 1,
            Base::Transport => 2,
        };
        self.add("payload", |e| {
            e.number(1, register);
            e.number(2, base);
            e.number(3, field.offset);
            e.number(4, field.length);
        })
    }

    /// Of what kind a packet's destination is to this host: `fib daddr type` (rtnetlink(7), `RTN_*`).
    pub(super) fn destination_is_local(mut self) -> Self {
        /// `RTN_LOCAL`.
        const LOCAL: u32 = 2;
        let register = self.next_register(4);
        // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
        self.add("fib", |e| {
            e.number(1, register);
            e.number(2, 3);
            e.number(3, 2);
        })
        .is(&LOCAL.to_ne_bytes())
    }

    /// Bits of the connection's state or status: any of `bits` is set.
    fn connection(mut self, key: u32, bits: u32) -> Self {
        let register = self.next_register(4);
        self.add("ct", |e| {
            e.number(1, register);
            e.number(2, key);
        })
        .masked(&bits.to_ne_bytes())
        .compare(false, &[0; 4])
    }

    /// The connection was sent to another destination (`ct status dnat`).
    pub(super) fn redirected(self) -> Self {
        /// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
        const DESTINATION_NAT: u32 = 1 << 5;
        self.connection(2, DESTINATION_NAT)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let register = FIRST + self.taken - length.div_ceil(4);
        self.add("bitwise", |e| {
            e.number(1, register);
            e.number(2, register);
            e.number(3, length);
            e.nested(4, |data| data.bytes(1, mask));
            e.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
        })
    }

    fn compare(mut self, equal: bool, value: &[u8]) -> Self {
        self.taken = 0;
        self.add("cmp", |e| {
            e.number(1, FIRST);
            e.number(2, u32::from(!equal));
            e.nested(3, |data| data.bytes(1, value));
        })
    }

    /// Goes on if what is loaded is this.
    pub(super) fn is(self, value: &[u8]) -> Self {
        self.compare(true, value)
    }

    /// Goes on if what is loaded is not this.
    pub(super) fn unless(self, value: &[u8]) -> Self {
        self.compare(false, value)
    }

    /// Goes on if the address that is loaded is in a subnet.
    pub(super) fn within(self, subnet: IpNet) -> Self {
        self.masked(&bytes(subnet.netmask())).is(&bytes(subnet.network()))
    }

    /// Goes on if what is loaded is in a set, or is not.
    pub(super) fn in_set(mut self, set: &str, is: bool) -> Self {
        self.taken = 0;
        self.add("lookup", |e| {
            e.text(1, set);
            e.number(2, FIRST);
            e.number(5, u32::from(!is));
        })
    }

    /// What a map of verdicts says of what is loaded; goes on if it says nothing.
    pub(super) fn verdict_of(mut self, map: &str) -> Self {
        self.taken = 0;
        self.add("lookup", |e| {
            e.text(1, map);
            e.number(2, FIRST);
            e.number(3, 0);
        })
    }

    /// Sends the packet to the address and port that a map has for what is loaded; goes on if it has none.
    pub(super) fn redirect_by(mut self, map: &str, version: Version) -> Self {
        self.taken = 0;
        let port = FIRST + version.destination().length.div_ceil(4);
        self.add("lookup", |e| {
            e.text(1, map);
            e.number(2, FIRST);
            e.number(3, FIRST);
        })
        .add("nat", |e| {
            // NFT_NAT_DNAT.
            e.number(1, 1);
            e.number(2, u32::from(version.number()));
            e.number(3, FIRST);
            e.number(5, port);
        })
    }

    pub(super) fn masquerade(self) -> Self {
        self.add("masq", |_| {})
    }

    pub(super) fn verdict(self, verdict: Verdict<'_>) -> Self {
        self.add("immediate", |e| {
            e.number(1, 0);
            e.nested(2, |data| verdict.write(data));
        })
    }
}
