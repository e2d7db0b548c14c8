//! Duplicate address detection (RFC 4862, section 5.4). The kernel performs it; if the configuration requests it, an
//! attachment waits for the result.

use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::Netlink;
use super::addresses::address_of;
use super::monitor::Monitor;
use crate::{Context, Error, Result};

/// The time limit of the detection. It takes one or two seconds (`dad_transmits`, `retrans_time` of ip-sysctl).
const PATIENCE: Duration = Duration::from_secs(10);

impl Netlink {
    /// Waits until the kernel has verified the addresses of a link.
    ///
    /// # Errors
    /// Another host in the network has one of them, or the detection does not end in time.
    pub(crate) async fn wait_for_addresses(&self, index: u32, changes: &Monitor) -> Result<()> {
        let verified = tokio::time::timeout(PATIENCE, async {
            while self.has_tentative(index).await? {
                changes.next().await.doing(format!("receive address changes of link {index}"))?;
            }
            Ok(())
        });
        verified.await.unwrap_or_else(|_late| {
            let waited = PATIENCE.as_secs();
            Err(Error::Invalid(format!("addresses of link {index} are still tentative after {waited} s")))
        })
    }

    async fn has_tentative(&self, index: u32) -> Result<bool> {
        let mut tentative = false;
        for message in self.address_messages(index).await? {
            let flags = flags_of(&message);
            if flags.contains(AddressFlags::Dadfailed) {
                let address = address_of(&message).map_or_else(String::new, |address| address.to_string());
                return Err(Error::Invalid(format!("address {address} is already in use in the network")));
            }
            tentative |= flags.contains(AddressFlags::Tentative);
        }
        Ok(tentative)
    }
}

fn flags_of(message: &AddressMessage) -> AddressFlags {
    let long = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    long.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())))
}
