//! `loopback`: the interface that every network namespace has comes up.

use crate::call::Call;
use crate::result::{CniResult, Interface, Ip};
use crate::{Error, Result};

const NAME: &str = "lo";

/// Passes the result of those before on; alone it tells the interface.
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
        false => Err(Error::Invalid("lo: is down".to_owned())),
    }
}
