//! The plugin `loopback`: brings the loopback interface of the pod's namespace up.

use crate::call::Call;
use crate::result::{CniResult, Interface, Ip};
use crate::{Error, Result};

const NAME: &str = "lo";

/// Brings the interface up. Passes the previous result on; without one, the result is the interface itself.
pub(super) async fn add(call: &Call<'_>, previous: CniResult) -> Result<CniResult> {
    let inside = call.inside().await?;
    let link = inside.existing(NAME).await?;
    inside.set_up(link.index, false).await?;
    if previous != CniResult::default() {
        return Ok(previous);
    }
    let interface = Interface { mtu: 0, ..call.interface_of(&link) };
    let addresses = inside.addresses(link.index).await?;
    let ips = addresses.into_iter().map(|address| Ip { address, gateway: None, interface: Some(0) });
    Ok(CniResult { interfaces: vec![interface], ips: ips.collect(), ..CniResult::default() })
}

pub(super) async fn del(call: &Call<'_>) -> Result<()> {
    if call.netns.is_none() {
        return Ok(());
    }
    let inside = call.inside().await?;
    match inside.link(NAME).await? {
        Some(link) => inside.change(link.index, "set the state", |link| link.down()).await,
        None => Ok(()),
    }
}

pub(super) async fn check(call: &Call<'_>) -> Result<()> {
    match call.inside().await?.existing(NAME).await?.up {
        true => Ok(()),
        false => Err(Error::Invalid("interface lo is down".to_owned())),
    }
}
