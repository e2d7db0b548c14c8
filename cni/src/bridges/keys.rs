//! The keys of `bridge`.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use crate::keys;
use crate::names::is_link_name;

/// The highest VLAN id (IEEE 802.1Q).
const HIGHEST_VLAN: u16 = 4094;

/// The configuration of a bridge and its ports.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Keys {
    pub(crate) bridge: String,
    pub(crate) is_gateway: bool,
    pub(crate) is_default_gateway: bool,
    pub(crate) force_address: bool,
    pub(crate) ip_masq: bool,
    mtu: u32,
    pub(crate) hairpin_mode: bool,
    pub(crate) promisc_mode: bool,
    pub(crate) vlan: u16,
    vlan_trunk: Vec<Trunk>,
    pub(crate) preserve_default_vlan: bool,
    pub(crate) macspoofchk: bool,
    #[serde(rename = "enabledad")]
    pub(crate) enable_dad: bool,
    pub(crate) disable_container_interface: bool,
    pub(crate) port_isolation: bool,
    /// The VLAN ids of `vlanTrunk`.
    #[serde(skip)]
    pub(crate) trunk: BTreeSet<u16>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: Vec::new(),
            preserve_default_vlan: false,
            macspoofchk: false,
            enable_dad: false,
            disable_container_interface: false,
            port_isolation: false,
            trunk: BTreeSet::new(),
        }
    }
}

/// VLAN ids that a port allows: one id, a range, or both.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Trunk {
    id: Option<u16>,
    #[serde(rename = "minID")]
    min_id: Option<u16>,
    #[serde(rename = "maxID")]
    max_id: Option<u16>,
}

impl Keys {
    pub(crate) fn compile(config: &Value) -> Result<Self, String> {
        let mut keys: Self = keys::parse(config)?;
        keys.is_gateway |= keys.is_default_gateway;
        if !is_link_name(&keys.bridge) {
            return Err(format!("bridge: invalid link name {:?}", keys.bridge));
        }
        if keys.vlan > HIGHEST_VLAN {
            return Err(format!("vlan: {} is more than {HIGHEST_VLAN}", keys.vlan));
        }
        if keys.hairpin_mode && keys.promisc_mode {
            return Err("hairpinMode: cannot be combined with promiscMode".to_owned());
        }
        keys.trunk = trunk(&keys.vlan_trunk)?;
        Ok(keys)
    }

    pub(crate) fn has_vlans(&self) -> bool {
        self.vlan != 0 || !self.trunk.is_empty()
    }

    /// Whether a pod's port must be protected before the pod may send.
    pub(crate) fn is_guarded(&self) -> bool {
        self.macspoofchk || self.port_isolation || self.has_vlans()
    }

    pub(crate) fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu != 0)
    }

    /// The link through which the host is in the pods' VLAN.
    pub(crate) fn vlan_link(&self) -> String {
        format!("{}.{}", self.bridge, self.vlan)
    }
}

fn trunk(parts: &[Trunk]) -> Result<BTreeSet<u16>, String> {
    let valid = |id: u16| (1..=HIGHEST_VLAN).contains(&id);
    let mut all = BTreeSet::new();
    for (place, part) in parts.iter().enumerate() {
        match (part.min_id, part.max_id) {
            (Some(first), Some(last)) if valid(first) && valid(last) && first <= last => {
                all.extend(first..=last);
            }
            (None, None) => {}
            _ => {
                return Err(format!("vlanTrunk[{place}]: minID and maxID are not a valid range of VLAN ids"));
            }
        }
        match part.id {
            Some(id) if !valid(id) => return Err(format!("vlanTrunk[{place}].id: invalid VLAN id {id}")),
            id => all.extend(id),
        }
    }
    Ok(all)
}
