//! The plugin `firewall`: accepts packets to and from a pod. With the policy `same-bridge`, packets from pods on other
//! such bridges are dropped.
//!
//! A rule of berth's table can drop packets, but cannot accept what another table drops. If the host's forwarding is
//! closed (by docker with iptables, or by firewalld), the rule that accepts pods must be in that other table. In this
//! case the reference plugin runs, which can add it.

use std::fs;
use std::path::PathBuf;

use netlink_packet_route::link::InfoKind;
use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::{Program, Search, find};
use crate::files::blocking;
use crate::nftables::guard;
use crate::result::CniResult;
use crate::{Context, Error, Result, keys};

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FirewallKeys {
    backend: String,
    ingress_policy: String,
}

/// A compiled configuration of `firewall`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Firewall {
    same_bridge: bool,
    /// The reference plugin, if it is installed.
    program: Option<Program>,
}

impl Firewall {
    /// Compiles and checks the keys. A configured backend other than nftables requires the program, which is returned.
    pub(super) fn compile(
        config: &Value,
        search: &Search,
    ) -> std::result::Result<std::result::Result<Self, Program>, String> {
        let keys: FirewallKeys = keys::parse(config)?;
        let same_bridge = match keys.ingress_policy.as_str() {
            "" | "open" => false,
            "same-bridge" => true,
            other => return Err(format!("ingressPolicy: {other:?} is not one of open, same-bridge")),
        };
        match keys.backend.as_str() {
            "" | "nftables" => Ok(Ok(Self { same_bridge, program: find("firewall", search).ok() })),
            "iptables" | "firewalld" => {
                find("firewall", search).map(Err).map_err(|why| format!("backend: {why}"))
            }
            other => Err(format!("backend: {other:?} is not one of nftables, iptables, firewalld")),
        }
    }
}

impl Commands for Firewall {
    fn read(_kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        Ok(match Self::compile(config, search)? {
            Ok(firewall) => Choice::BuiltIn(firewall),
            Err(program) => Choice::Program(program),
        })
    }

    async fn add(&self, call: &Call<'_>, config: &Value, previous: CniResult) -> Result<CniResult> {
        if let Some(chain) = guard::foreign_closing_chain().await? {
            let Some(program) = &self.program else {
                let why = format!("{chain} drops packets that no rule accepts");
                let missing = "the plugin program firewall, which could add a rule, is not installed";
                return Err(Error::Unsupported(format!("firewall: {why}, and {missing}")));
            };
            // The program must also remove its rules, even if the host's firewall has changed by then.
            let marker = marker(call);
            let folder = marker.parent().unwrap_or(call.state()).to_owned();
            blocking(move || {
                fs::create_dir_all(&folder).doing(format!("create {}", folder.display()))?;
                fs::write(&marker, "").doing(format!("write {}", marker.display()))
            })
            .await?;
            let before = previous.to_value(call.version);
            program.run(call, "ADD", config, Some(&before)).await?;
            return Ok(previous);
        }
        self.restore(call, &previous).await?;
        Ok(previous)
    }

    async fn restore(&self, call: &Call<'_>, result: &CniResult) -> Result<bool> {
        // The program's rules are not in berth's table.
        if !self.same_bridge || marker(call).exists() {
            return Ok(false);
        }
        let bridge = bridge_of(call, result).await?;
        let addresses = result.ips.iter().map(|ip| ip.address.addr()).collect();
        guard::apply(&call.rules(), &bridge, addresses).await?;
        Ok(true)
    }

    async fn del(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        let isolation = if self.same_bridge { guard::remove(&call.rules(), previous).await } else { Ok(()) };
        let marker = marker(call);
        if let Some(program) = self.program.as_ref().filter(|_| marker.exists()) {
            let before = previous.to_value(call.version);
            let recorded = (*previous != CniResult::default()).then_some(&before);
            program.run(call, "DEL", config, recorded).await?;
            blocking(move || fs::remove_file(&marker).doing(format!("remove {}", marker.display()))).await?;
        }
        isolation
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        match self.program.as_ref().filter(|_| marker(call).exists()) {
            Some(program) => {
                let before = previous.to_value(call.version);
                program.run(call, "CHECK", config, Some(&before)).await.map(drop)
            }
            None => Ok(()),
        }
    }

    fn is_chained(&self) -> bool {
        true
    }
}

/// The file that records that the program was run for an attachment.
fn marker(call: &Call<'_>) -> PathBuf {
    let name = format!("{}-{}-{}", call.network, call.container, call.interface);
    call.state().join("firewall").join(name)
}

/// Returns the bridge that the pod is attached to.
async fn bridge_of(call: &Call<'_>, result: &CniResult) -> Result<String> {
    for interface in result.interfaces.iter().filter(|interface| interface.sandbox.is_empty()) {
        let link = call.host.links.link(&interface.name).await?;
        if link.is_some_and(|link| link.kind == Some(InfoKind::Bridge)) {
            return Ok(interface.name.clone());
        }
    }
    Err(Error::Invalid("invalid ingressPolicy: same-bridge requires a pod on a bridge".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_checked() {
        let compile = |config: Value| Firewall::compile(&config, &Search::default());
        assert!(compile(json!({ "ingressPolicy": "closed" })).unwrap_err().contains("ingressPolicy"));
        assert!(compile(json!({ "backend": "pf" })).unwrap_err().contains("backend"));
        assert!(compile(json!({ "backend": "iptables" })).unwrap_err().contains("not found"));
        assert!(compile(json!({ "ingressPolicy": "same-bridge" })).unwrap().is_ok());
    }
}
