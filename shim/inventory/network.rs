//! Objects of the network: links, nftables elements, addresses, leases, attachments, pinned network namespaces.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use berth_cni::inventory::Object as NetworkObject;

use super::{InventoryError, Object, ObjectKind, Owner, Place, Scope};

/// Lists the objects of pods. Links and nftables elements are those of the calling thread's network namespace.
///
/// # Errors
/// The network cannot be read.
pub async fn objects(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let objects = berth_cni::inventory::objects(&scope.network).await?;
    Ok(objects.into_iter().map(object).collect())
}

/// Lists the pinned network namespaces.
///
/// # Errors
/// Their folder cannot be read.
pub fn pins(scope: &Scope) -> Result<Vec<Object>, InventoryError> {
    let pins = berth_cni::inventory::pins(&scope.network)?;
    Ok(pins.into_iter().map(object).collect())
}

/// Returns the interfaces of this network namespace. /sys/class/net is not used: it shows those of the namespace in
/// which sysfs was mounted.
///
/// # Errors
/// procfs cannot be read.
pub fn interfaces() -> io::Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/self/net/dev")?;
    // The table has two heading lines.
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    Ok(names.map(|(name, _)| name.trim().to_owned()).collect())
}

fn object(place: NetworkObject) -> Object {
    let (kind, name) = match &place {
        NetworkObject::Link { name, .. } => (ObjectKind::Link, name.clone()),
        NetworkObject::Rules { network, pod, interface } => {
            (ObjectKind::Rules, format!("{network} {pod} {interface}"))
        }
        NetworkObject::Address { folder, address, .. } => {
            (ObjectKind::Address, folder.join(address).display().to_string())
        }
        NetworkObject::Lease { network, interface, address, .. } => {
            (ObjectKind::Lease, format!("{address} of {interface} in {network}"))
        }
        NetworkObject::Attachment { file, .. } => (ObjectKind::Attachment, file.display().to_string()),
        NetworkObject::Pin { path, .. } => (ObjectKind::Pin, path.display().to_string()),
    };
    let certain = !matches!(place, NetworkObject::Pin { certain: false, .. });
    Object { kind, owner: Owner::Pod(place.pod().to_owned()), name, place: Place::Network(place), certain }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_namespace_has_a_loopback_interface() {
        assert!(super::interfaces().unwrap().contains("lo"));
    }
}
