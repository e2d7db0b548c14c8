//! Addresses that somebody else in the network has already (duplicate address detection, RFC 4862, section 5.4). The kernel
//! looks for them; where a configuration wants it, an attachment waits for what it finds.

use std::time::Duration;

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};

use super::Netlink;
use super::monitor::Monitor;
use super::routes::address_of;
use crate::{Context, Error, Result};

/// How long the kernel may look. It takes one or two seconds (`dad_transmits`, `retrans_time` of ip-sysctl).
const PATIENCE: Duration = Duration::from_secs(10);

impl Netlink {
    /// Waits until the addresses of a link are its own.
    ///
    /// # Errors
    /// Another in the network has one of them, or the kernel does not come to an end.
    pub(crate) async fn settle(&self, index: u32, changes: &Monitor) -> Result<()> {
        let settled = tokio::time::timeout(PATIENCE, async {
            while self.is_unsettled(index).await? {
                changes.next().await.doing(format!("hear of addresses of link {index}"))?;
            }
            Ok(())
        });
        settled.await.unwrap_or_else(|_late| {
            let waited = PATIENCE.as_secs();
            Err(Error::Invalid(format!("link {index}: its addresses are tentative for {waited} seconds")))
        })
    }

    async fn is_unsettled(&self, index: u32) -> Result<bool> {
        let mut unsettled = false;
        for message in self.address_messages(index).await? {
            let flags = flags_of(&message);
            if flags.contains(AddressFlags::Dadfailed) {
                let address = address_of(&message).map_or_else(String::new, |address| address.to_string());
                return Err(Error::Invalid(format!(
                    "address {address}: another in the network has it already"
                )));
            }
            unsettled |= flags.contains(AddressFlags::Tentative);
        }
        Ok(unsettled)
    }
}

fn flags_of(message: &AddressMessage) -> AddressFlags {
    let long = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    long.unwrap_or_else(|| AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())))
}
