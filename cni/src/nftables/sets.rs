//! The sets and maps of the tables, and the types of their elements.

use super::message::Family;

/// The type of a set's elements as nft(8) shows them (`TYPE_*` of its datatype.h; six bits for each part of a
/// concatenation), and its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    pub(super) number: u32,
    pub(super) length: u32,
}

impl Type {
    pub(super) const IPV4: Self = Self { number: 7, length: 4 };
    pub(super) const IPV6: Self = Self { number: 8, length: 16 };
    pub(super) const MAC: Self = Self { number: 9, length: 8 };
    pub(super) const PROTOCOL: Self = Self { number: 12, length: 4 };
    pub(super) const PORT: Self = Self { number: 13, length: 4 };
    pub(super) const LINK: Self = Self { number: 41, length: 16 };
    /// The data of a verdict map (`NFT_DATA_VERDICT`).
    pub(super) const VERDICT: Self = Self { number: 0xffff_ff00, length: 0 };

    pub(super) fn is_text(self) -> bool {
        self.number == Self::LINK.number
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self { number: (self.number << 6) | other.number, length: self.length + other.length }
    }
}

/// A set, or a map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key: Type,
    pub(super) value: Option<Type>,
}

const fn port() -> Type {
    Type::PROTOCOL.with(Type::PORT)
}

const fn link_and_mac() -> Type {
    Type::LINK.with(Type::MAC)
}

/// Of [`super::masquerade`]: the maps from a pod's address to the chain of its subnet.
pub(super) const MASQUERADE: [Set; 2] = [
    Set { name: "masquerade4", key: Type::IPV4, value: Some(Type::VERDICT) },
    Set { name: "masquerade6", key: Type::IPV6, value: Some(Type::VERDICT) },
];

/// Of [`super::ports`], in this order: all addresses, one address, hairpin; each for IPv4 and for IPv6.
pub(super) const PORTS: [Set; 6] = [
    Set { name: "ports4", key: port(), value: Some(Type::IPV4.with(Type::PORT)) },
    Set { name: "ports6", key: port(), value: Some(Type::IPV6.with(Type::PORT)) },
    Set {
        name: "ports4-at",
        key: Type::IPV4.with(Type::PROTOCOL).with(Type::PORT),
        value: Some(Type::IPV4.with(Type::PORT)),
    },
    Set {
        name: "ports6-at",
        key: Type::IPV6.with(Type::PROTOCOL).with(Type::PORT),
        value: Some(Type::IPV6.with(Type::PORT)),
    },
    Set { name: "hairpin4", key: Type::IPV4, value: Some(Type::VERDICT) },
    Set { name: "hairpin6", key: Type::IPV6, value: Some(Type::VERDICT) },
];

/// The isolated bridges. A bridge stays in the set after its last pod is gone, which has no effect.
pub(super) const GUARD_BRIDGES: Set = Set { name: "isolating", key: Type::LINK, value: None };

/// Of [`super::guard`]: the isolated bridges; per IP version, the isolated pods and the pairs of bridge and pod.
pub(super) const GUARD: [Set; 5] = [
    GUARD_BRIDGES,
    Set { name: "isolated4", key: Type::IPV4, value: None },
    Set { name: "isolated6", key: Type::IPV6, value: None },
    Set { name: "same-bridge4", key: Type::LINK.with(Type::IPV4), value: None },
    Set { name: "same-bridge6", key: Type::LINK.with(Type::IPV6), value: None },
];

/// Of [`super::spoof`]: the guarded bridge ports, and the pairs of port and allowed hardware address.
pub(super) const SPOOF: [Set; 2] = [
    Set { name: "guarded", key: Type::LINK, value: None },
    Set { name: "senders", key: link_and_mac(), value: None },
];

/// All sets and maps, and the family of their table.
pub(super) fn all() -> impl Iterator<Item = (Family, Set)> {
    let inet = MASQUERADE.iter().chain(&PORTS).chain(&GUARD).map(|set| (Family::Inet, *set));
    inet.chain(SPOOF.iter().map(|set| (Family::Bridge, *set)))
}
