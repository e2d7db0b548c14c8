//! The expressions of rules (nft(8); their attributes are those of linux/netfilter/nf_tables.h).
//!
//! An expression loads a value into a register of four bytes. A longer value, or one of several parts, occupies the
//! following registers, too.

use std::net::IpAddr;

use ipnet::IpNet;

use super::uapi::{
    NF_DROP, NFPROTO_IPV4, NFPROTO_IPV6, NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CT_STATUS, NFT_FIB_RESULT_ADDRTYPE,
    NFT_JUMP, NFT_LOOKUP_F_INV, NFT_META_IIFNAME, NFT_META_L4PROTO, NFT_META_NFPROTO, NFT_NAT_DNAT,
    NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER, NFT_REG_VERDICT,
    NFT_REG32_00, NFT_RETURN, NFTA_BITWISE_DREG, NFTA_BITWISE_LEN, NFTA_BITWISE_MASK, NFTA_BITWISE_SREG,
    NFTA_BITWISE_XOR, NFTA_CMP_DATA, NFTA_CMP_OP, NFTA_CMP_SREG, NFTA_CT_DREG, NFTA_CT_KEY, NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_FIB_DREG, NFTA_FIB_F_DADDR, NFTA_FIB_FLAGS,
    NFTA_FIB_RESULT, NFTA_IMMEDIATE_DATA, NFTA_IMMEDIATE_DREG, NFTA_LIST_ELEM, NFTA_LOOKUP_DREG,
    NFTA_LOOKUP_FLAGS, NFTA_LOOKUP_SET, NFTA_LOOKUP_SREG, NFTA_META_DREG, NFTA_META_KEY, NFTA_NAT_FAMILY,
    NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_TYPE, NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_DREG,
    NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};
use crate::netlink::attributes::Attributes;

/// The packet metadata that `meta` loads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meta {
    /// The name of the input link: 16 bytes.
    InName,
    /// 2 for IPv4, 10 for IPv6: one byte.
    Nfproto,
    /// 6 for TCP, 17 for UDP: one byte.
    L4proto,
}

/// The header that contains a field.
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

    pub(super) fn number(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
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
            Self::Drop => (NF_DROP, None),
            Self::Return => (NFT_RETURN, None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
        };
        data.nested(NFTA_DATA_VERDICT, |verdict| {
            verdict.bytes(NFTA_VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                verdict.text(NFTA_VERDICT_CHAIN, chain);
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
        self.list.nested(NFTA_LIST_ELEM, |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, data);
        });
        self
    }

    /// Allocates registers after the loaded ones, for a key of several parts.
    fn next_register(&mut self, length: u32) -> u32 {
        let register = NFT_REG32_00 + self.used;
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
            Meta::InName => NFT_META_IIFNAME,
            Meta::Nfproto => NFT_META_NFPROTO,
            Meta::L4proto => NFT_META_L4PROTO,
        };
        self.add("meta", |e| {
            e.number(NFTA_META_DREG, register);
            e.number(NFTA_META_KEY, key);
        })
    }

    pub(super) fn field(mut self, field: Field) -> Self {
        let register = self.next_register(field.length);
        let base = match field.base {
            Base::Link => NFT_PAYLOAD_LL_HEADER,
            Base::Network => NFT_PAYLOAD_NETWORK_HEADER,
            Base::Transport => NFT_PAYLOAD_TRANSPORT_HEADER,
        };
        self.add("payload", |e| {
            e.number(NFTA_PAYLOAD_DREG, register);
            e.number(NFTA_PAYLOAD_BASE, base);
            e.number(NFTA_PAYLOAD_OFFSET, field.offset);
            e.number(NFTA_PAYLOAD_LEN, field.length);
        })
    }

    /// Matches packets whose destination address belongs to this host: `fib daddr type local` (rtnetlink(7), `RTN_*`).
    pub(super) fn destination_is_local(mut self) -> Self {
        /// The route type of the host's own addresses (linux/rtnetlink.h).
        const RTN_LOCAL: u32 = 2;
        let register = self.next_register(4);
        self.add("fib", |e| {
            e.number(NFTA_FIB_DREG, register);
            e.number(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
            e.number(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
        })
        .is(&RTN_LOCAL.to_ne_bytes())
    }

    /// Matches if any of `bits` is set in the connection's state or status.
    fn connection(mut self, key: u32, bits: u32) -> Self {
        let register = self.next_register(4);
        self.add("ct", |e| {
            e.number(NFTA_CT_DREG, register);
            e.number(NFTA_CT_KEY, key);
        })
        .masked(&bits.to_ne_bytes())
        .compare(false, &[0; 4])
    }

    /// Matches connections whose destination was rewritten (`ct status dnat`).
    pub(super) fn redirected(self) -> Self {
        /// A bit of linux/netfilter/nf_conntrack_common.h.
        const IPS_DST_NAT: u32 = 1 << 5;
        self.connection(NFT_CT_STATUS, IPS_DST_NAT)
    }

    fn masked(self, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        let register = NFT_REG32_00 + self.used - length.div_ceil(4);
        self.add("bitwise", |e| {
            e.number(NFTA_BITWISE_SREG, register);
            e.number(NFTA_BITWISE_DREG, register);
            e.number(NFTA_BITWISE_LEN, length);
            e.nested(NFTA_BITWISE_MASK, |data| data.bytes(NFTA_DATA_VALUE, mask));
            e.nested(NFTA_BITWISE_XOR, |data| data.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]));
        })
    }

    fn compare(mut self, equal: bool, value: &[u8]) -> Self {
        self.used = 0;
        self.add("cmp", |e| {
            e.number(NFTA_CMP_SREG, NFT_REG32_00);
            e.number(NFTA_CMP_OP, if equal { NFT_CMP_EQ } else { NFT_CMP_NEQ });
            e.nested(NFTA_CMP_DATA, |data| data.bytes(NFTA_DATA_VALUE, value));
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
            e.text(NFTA_LOOKUP_SET, set);
            e.number(NFTA_LOOKUP_SREG, NFT_REG32_00);
            e.number(NFTA_LOOKUP_FLAGS, if is { 0 } else { NFT_LOOKUP_F_INV });
        })
    }

    /// Applies the verdict of a map for the loaded value. Continues if the map has none.
    pub(super) fn verdict_of(mut self, map: &str) -> Self {
        self.used = 0;
        self.add("lookup", |e| {
            e.text(NFTA_LOOKUP_SET, map);
            e.number(NFTA_LOOKUP_SREG, NFT_REG32_00);
            e.number(NFTA_LOOKUP_DREG, NFT_REG_VERDICT);
        })
    }

    /// Rewrites the destination to the address and port that a map has for the loaded value. Continues if the map has
    /// none.
    pub(super) fn redirect_by(mut self, map: &str, version: IpVersion) -> Self {
        self.used = 0;
        let port = NFT_REG32_00 + version.destination().length.div_ceil(4);
        self.add("lookup", |e| {
            e.text(NFTA_LOOKUP_SET, map);
            e.number(NFTA_LOOKUP_SREG, NFT_REG32_00);
            e.number(NFTA_LOOKUP_DREG, NFT_REG32_00);
        })
        .add("nat", |e| {
            e.number(NFTA_NAT_TYPE, NFT_NAT_DNAT);
            e.number(NFTA_NAT_FAMILY, u32::from(version.number()));
            e.number(NFTA_NAT_REG_ADDR_MIN, NFT_REG32_00);
            e.number(NFTA_NAT_REG_PROTO_MIN, port);
        })
    }

    pub(super) fn masquerade(self) -> Self {
        self.add("masq", |_| {})
    }

    pub(super) fn verdict(self, verdict: Verdict<'_>) -> Self {
        self.add("immediate", |e| {
            e.number(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            e.nested(NFTA_IMMEDIATE_DATA, |data| verdict.write(data));
        })
    }
}
