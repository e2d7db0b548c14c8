//! The plugin `host-device`: moves a device of the host into a pod and renames it, for the pod's lifetime.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::commands::{Choice, Commands};
use super::interface;
use super::with_undo;
use crate::call::Call;
use crate::external::Search;
use crate::ipam::{self, Ipam};
use crate::names::is_link_name;
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Context, Error, Result, keys, pod_link};

/// The plugin's keys. One of them identifies the device.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct HostDeviceKeys {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci: String,
}

/// A compiled configuration of `host-device`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostDevice {
    keys: HostDeviceKeys,
    pub(super) ipam: Option<Ipam>,
}

impl HostDevice {
    pub(super) fn compile(config: &Value, search: &Search) -> std::result::Result<Self, String> {
        let keys: HostDeviceKeys = keys::parse(config)?;
        let named = [&keys.device, &keys.hwaddr, &keys.kernelpath, &keys.pci];
        let by_runtime = config.pointer("/capabilities/deviceID") == Some(&Value::Bool(true));
        if named.iter().all(|name| name.is_empty()) && !by_runtime {
            return Err("device: one of device, hwaddr, kernelpath and pciBusID is required".to_owned());
        }
        if !keys.device.is_empty() && !is_link_name(&keys.device) {
            return Err(format!("device: invalid link name {:?}", keys.device));
        }
        Ok(Self { keys, ipam: Ipam::compile(config, search)? })
    }

    async fn configure(&self, call: &Call<'_>, config: &Value, mut result: CniResult) -> Result<CniResult> {
        for ip in &mut result.ips {
            ip.interface = Some(0);
        }
        let link = pod_link::configure(call.pod_netns()?, call.interface, &result).await?.link;
        let interface =
            crate::result::Interface { pci_id: self.pci(call).to_owned(), ..call.interface_of(&link) };
        result.interfaces = vec![interface];
        result.dns = interface::dns(config, result.dns);
        Ok(result)
    }

    fn pci<'a>(&'a self, call: &'a Call<'_>) -> &'a str {
        call.runtime.device_id.as_deref().unwrap_or(&self.keys.pci)
    }

    /// Returns the device that the configuration or the runtime identifies.
    async fn device(&self, call: &Call<'_>) -> Result<Link> {
        let host = &call.host.links;
        let keys = &self.keys;
        let pci = self.pci(call);
        if !pci.is_empty() {
            let folder = Path::new("/sys/bus/pci/devices").join(pci_name(pci)?).join("net");
            return host.existing(&link_in(&folder)?).await;
        }
        if !keys.device.is_empty() {
            return host.existing(&keys.device).await;
        }
        if !keys.hwaddr.is_empty() {
            let mac = crate::mac::parse_mac(&keys.hwaddr)?;
            let link = host.links().await?.into_iter().find(|link| link.mac == mac);
            return link.ok_or_else(|| {
                Error::Invalid(format!("invalid hwaddr: link with address {} not found", keys.hwaddr))
            });
        }
        let path = fs::canonicalize(&keys.kernelpath).doing(format!("resolve {}", keys.kernelpath))?;
        if !path.starts_with("/sys/devices") {
            let why = format!("{} is not in /sys/devices", keys.kernelpath);
            return Err(Error::Invalid(format!("invalid kernelpath: {why}")));
        }
        host.existing(&link_in(&path.join("net"))?).await
    }

    /// Moves the device into the pod. Its alias records its name on the host: it can be returned when all other state
    /// is lost.
    async fn move_to_pod(&self, call: &Call<'_>, device: &Link) -> Result<Netlink> {
        let host = &call.host.links;
        let name = device.name.clone();
        host.change(device.index, "set the alias", |link| link.alias(name)).await?;
        host.move_to(device.index, call.pod_netns()?, call.interface).await?;
        pod_link::open_with(call.pod_netns()?, call.interface).await
    }
}

impl Commands for HostDevice {
    fn read(_kind: &str, config: &Value, search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config, search).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, _previous: CniResult) -> Result<CniResult> {
        let device = self.device(call).await?;
        let inside = self.move_to_pod(call, &device).await?;
        let added = match ipam::allocate(self.ipam.as_ref(), call, config, &inside).await {
            Ok(result) => self.configure(call, config, result).await,
            Err(error) => Err(error),
        };
        match added {
            Ok(result) => Ok(result),
            Err(error) => {
                let addresses = ipam::release(self.ipam.as_ref(), call, config).await;
                Err(with_undo(error, [return_to_host(call).await, addresses]))
            }
        }
    }

    async fn del(&self, call: &Call<'_>, config: &Value, _previous: &CniResult) -> Result<()> {
        let addresses = ipam::release(self.ipam.as_ref(), call, config).await;
        // The kernel returns a physical device at the end of the namespace, but with the pod's name for it, and deletes
        // virtual devices (veth, VLAN).
        return_to_host(call).await.and(addresses)
    }

    async fn check(&self, call: &Call<'_>, config: &Value, previous: &CniResult) -> Result<()> {
        if let Some(ipam) = &self.ipam {
            ipam.check(call, config, previous).await?;
        }
        interface::check(call, previous).await.map(drop)
    }

    fn ipam(&self) -> Option<&Ipam> {
        self.ipam.as_ref()
    }
}

/// Moves the pod's interface back to the host and restores its name.
async fn return_to_host(call: &Call<'_>) -> Result<()> {
    if call.netns.is_none() {
        return Ok(());
    }
    let inside = call.inside().await?;
    let Some(link) = inside.link(call.interface).await? else { return Ok(()) };
    let Some(name) = link.alias.clone().filter(|alias| is_link_name(alias)) else { return Ok(()) };
    let host = fs::File::open("/proc/thread-self/ns/net").doing("open the host's network namespace")?;
    inside.change(link.index, "clear the alias", |link| link.alias("")).await?;
    inside.move_to(link.index, std::os::fd::AsFd::as_fd(&host), &name).await
}

/// Returns the only link in a folder of sysfs.
fn link_in(folder: &Path) -> Result<String> {
    let mut entries = fs::read_dir(folder).doing(format!("read {}", folder.display()))?;
    let first = entries.next().and_then(std::result::Result::ok);
    let name = first.map(|entry| entry.file_name().to_string_lossy().into_owned());
    name.ok_or_else(|| Error::Invalid(format!("no link found in {}", folder.display())))
}

/// Checks a bus address (`0000:00:1f.6`), which becomes a file name.
fn pci_name(text: &str) -> Result<&str> {
    let valid = text.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.')) && !text.contains("..");
    match valid {
        true => Ok(text),
        false => Err(Error::Invalid(format!("invalid pciBusID {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_key_identifies_the_device() {
        let compile = |config: Value| HostDevice::compile(&config, &Search::default());
        assert!(compile(json!({})).unwrap_err().contains("device"));
        assert!(compile(json!({ "device": "../x" })).unwrap_err().contains("device"));
        assert!(compile(json!({ "capabilities": { "deviceID": true } })).is_ok());
        assert!(pci_name("0000:00:1f.6").is_ok());
        assert!(pci_name("../../etc").is_err() && pci_name("..").is_err());
    }
}
