//! The expressions of rules (nft(8); their attributes are those of linux/netfilter/nf_tables.h).
//!
//! An expression loads a value into a register of four bytes. A longer value, or one of several parts, occupies the
//! following registers, too.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::attributes::Attributes;

/// The first register of four bytes (`NFT_REG32_00`).
const FIRST: u32 = 8;

/// The packet metadata that `meta` loads (`NFT_META_*`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// The name of the input link: 16 bytes.
    InName,
    /// 2 for IPv4, 10 for IPv6: one byte.
    Nfproto,
    /// 6 for TCP, 17 for UDP: one byte.
    L4proto,
}

/// The header that contains a field (`NFT_PAYLOAD_*`).
#[derive(Clone, Copy, Debug)]
enum Base {
    Link,
    Network,
    Transport,
}

/// The location of a field in a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    base: Base,
    offset: u32,
    length: u32,
}

/// The destination port, which has the same location in TCP, UDP and SCTP.
pub(super) const DESTINATION_PORT: Field = Field { base: Base::Transport, offset: 2, length: 2 };

/// The source hardware address of a frame.
pub(super) const SOURCE_MAC: Field = Field { base: Base::Link, offset: 6, length: 6 };

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
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

    /// The multicast addresses.
    pub(super) fn multicast(self) -> IpNet {
        match self {
            Self::V4 => IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4)),
            Self::V6 => {
                IpNet::V6(ipnet::Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8))
            }
        }
    }
}

/// Returns the bytes of an address.
pub(super) fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The verdict on a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    Drop,
    Return,
    Jump(&'a str),
}

impl Verdict<'_> {
    /// Writes the verdict into the value of an element or of a rule.
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
    /// The number of registers that the value in progress occupies.
    used: u32,
}

impl Expressions {
    /// Starts a rule for packets of one IP version.
    pub(super) fn of(version: IpVersion) -> Self {
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

    /// Allocates registers after the loaded ones, for a key of several parts.
    fn next_register(&mut self, length: u32) -> u32 {
        let register = FIRST + self.used;
        self.used += length.div_ceil(4);
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

    /// Matches packets whose destination address belongs to this host: `fib daddr type local` (rtnetlink(7), `RTN_*`).
    pub(super) fn destination_is_local(mut self) -> Self {
        /// The route type of the host's own addresses (`RTN_LOCAL`).
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

    /// Matches if any of `bits` is set in the connection's state or status.
    fn connection(mut self, key: u32, bits: u32) -> Self {
        let register = self.next_register(4);
        self.add("ct", |e| {
            e.number(1, register);
            e.number(2, key);
        })
        .masked(&bits.to_ne_bytes())
        .compare(false, &[0; 4])
    }

    /// Matches connections whose destination was rewritten (`ct status dnat`).
    pub(super) fn redirected(self) -> Self {
        /// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
        const DESTINATION_NAT: u32 = 1 << 5;
        self.connection(2, DESTINATION_NAT)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let register = FIRST + self.used - length.div_ceil(4);
        self.add("bitwise", |e| {
            e.number(1, register);
            e.number(2, register);
            e.number(3, length);
            e.nested(4, |data| data.bytes(1, mask));
            e.nested(5, |data| data.bytes(1, &vec![0; mask.len()]));
        })
    }

    fn compare(mut self, equal: bool, value: &[u8]) -> Self {
        self.used = 0;
        self.add("cmp", |e| {
            e.number(1, FIRST);
            e.number(2, u32::from(!equal));
            e.nested(3, |data| data.bytes(1, value));
        })
    }

    /// Matches if the loaded value is equal to `value`.
    pub(super) fn is(self, value: &[u8]) -> Self {
        self.compare(true, value)
    }

    /// Matches if the loaded value differs from `value`.
    pub(super) fn unless(self, value: &[u8]) -> Self {
        self.compare(false, value)
    }

    /// Matches if the loaded address is in a subnet.
    pub(super) fn within(self, subnet: IpNet) -> Self {
        self.masked(&bytes(subnet.netmask())).is(&bytes(subnet.network()))
    }

    /// Matches if the loaded value is in a set, or is not in it.
    pub(super) fn in_set(mut self, set: &str, is: bool) -> Self {
        self.used = 0;
        self.add("lookup", |e| {
            e.text(1, set);
            e.number(2, FIRST);
            e.number(5, u32::from(!is));
        })
    }

    /// Applies the verdict of a map for the loaded value. Continues if the map has none.
    pub(super) fn verdict_of(mut self, map: &str) -> Self {
        self.used = 0;
        self.add("lookup", |e| {
            e.text(1, map);
            e.number(2, FIRST);
            e.number(3, 0);
        })
    }

    /// Rewrites the destination to the address and port that a map has for the loaded value. Continues if the map has
    /// none.
    pub(super) fn redirect_by(mut self, map: &str, version: IpVersion) -> Self {
        self.used = 0;
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
