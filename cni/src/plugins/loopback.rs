//! The plugin `loopback`: brings the loopback interface of the pod's namespace up.

use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::Search;
use crate::result::{CniResult, Interface, Ip};
use crate::{Error, Result};

const NAME: &str = "lo";

/// A compiled configuration of `loopback`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loopback;

impl Commands for Loopback {
    fn read(_kind: &str, _config: &Value, _search: &Search) -> std::result::Result<Choice<Self>, String> {
        Ok(Choice::BuiltIn(Self))
    }

    /// Brings the interface up. Passes the previous result on; without one, the result is the interface itself.
    async fn add(&self, call: &Call<'_>, _config: &Value, previous: CniResult) -> Result<CniResult> {
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

    async fn del(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        if call.netns.is_none() {
            return Ok(());
        }
        let inside = call.inside().await?;
        match inside.link(NAME).await? {
            Some(link) => inside.change(link.index, "set the state", |link| link.down()).await,
            None => Ok(()),
        }
    }

    async fn check(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        match call.inside().await?.existing(NAME).await?.up {
            true => Ok(()),
            false => Err(Error::Invalid("interface lo is down".to_owned())),
        }
    }
}
