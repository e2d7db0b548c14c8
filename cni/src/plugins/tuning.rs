//! The plugin `tuning`: sysctls of the pod's network, and properties of its interface.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::commands::{Choice, Commands};
use crate::call::Call;
use crate::external::Search;
use crate::files::blocking;
use crate::mac::{first_mac, parse_mac};
use crate::netlink::{Link, Netlink};
use crate::result::CniResult;
use crate::{Context, Error, Result, keys, netns};

/// The allowed sysctls, one regular expression per line, if the file exists (the reference plugin's path).
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// The plugin's keys.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Tuning {
    sysctl: BTreeMap<String, String>,
    mac: Option<String>,
    promisc: bool,
    mtu: u32,
    #[serde(rename = "txQLen")]
    queue_length: Option<u32>,
    #[serde(rename = "allmulti")]
    all_multicast: Option<bool>,
}

/// The previous properties of an interface, which are restored if it outlives the attachment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Original {
    mac: Option<Vec<u8>>,
    promisc: Option<bool>,
    mtu: Option<u32>,
    queue_length: Option<u32>,
    all_multicast: Option<bool>,
}

/// Returns the configuration with the values of `args.cni`, which take precedence over its keys (CNI conventions, "args
/// in network config"). The hardware address has a separate order of precedence.
fn with_arguments(config: &Value) -> Value {
    let mut config = config.clone();
    let Some(arguments) = config.pointer("/args/cni").and_then(Value::as_object).cloned() else {
        return config;
    };
    for (key, value) in arguments {
        match key.as_str() {
            "sysctl" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    config["sysctl"][name] = value.clone();
                }
            }
            "promisc" | "mtu" | "allmulti" | "txQLen" => config[key] = value,
            _ => {}
        }
    }
    config
}

impl Tuning {
    pub(super) fn compile(config: &Value) -> std::result::Result<Self, String> {
        let keys: Self = keys::parse(&with_arguments(config))?;
        for name in keys.sysctl.keys() {
            sysctl_file(name, "eth0").map_err(|why| format!("sysctl.{why}"))?;
        }
        if let Some(mac) = keys.mac.as_deref().filter(|mac| !mac.is_empty()) {
            parse_mac(mac).map_err(|error| format!("mac: {error}"))?;
        }
        Ok(keys)
    }

    fn requested_mac(&self, call: &Call<'_>, config: &Value) -> Result<Option<Vec<u8>>> {
        let of_args = config.pointer("/args/cni/mac").and_then(Value::as_str);
        first_mac([of_args, call.runtime.mac.as_deref(), call.argument_mac(), self.mac.as_deref()])
    }

    async fn change(&self, inside: &Netlink, link: &Link) -> Result<()> {
        let mtu = Some(self.mtu).filter(|mtu| *mtu != 0);
        let (promisc, queue, multicast) = (self.promisc, self.queue_length, self.all_multicast);
        if mtu.is_none() && !promisc && queue.is_none() && multicast.is_none() {
            return Ok(());
        }
        inside
            .change(link.index, "tune the properties", |mut link| {
                if let Some(mtu) = mtu {
                    link = link.mtu(mtu);
                }
                if promisc {
                    link = link.promiscuous(true);
                }
                if let Some(queue) = queue {
                    link = link.txqueuelen(queue);
                }
                if let Some(multicast) = multicast {
                    link = link.allmulticast(multicast);
                }
                link
            })
            .await
    }

    /// Sets the sysctls in the pod's namespace: `/proc/sys/net` shows the namespace of the thread.
    async fn set_sysctls(&self, call: &Call<'_>) -> Result<()> {
        if self.sysctl.is_empty() {
            return Ok(());
        }
        let allowed = allowed()?;
        let files: Vec<(PathBuf, String)> = self
            .sysctl
            .iter()
            .map(|(name, value)| {
                if !allowed.iter().all(|list| list.iter().any(|pattern| pattern.is_match(name))) {
                    return Err(Error::Invalid(format!("sysctl {name:?} is not allowed by {ALLOWED}")));
                }
                let file = sysctl_file(name, call.interface).map_err(Error::Invalid)?;
                Ok((file, value.clone()))
            })
            .collect::<Result<_>>()?;
        netns::within(call.pod_netns()?, move || {
            for (file, value) in &files {
                fs::write(file, value).doing(format!("write {value:?} to {}", file.display()))?;
            }
            Ok(())
        })
        .await
    }

    async fn record_original(&self, call: &Call<'_>, link: &Link, with_mac: bool) -> Result<()> {
        let original = Original {
            mac: with_mac.then(|| link.mac.clone()),
            promisc: self.promisc.then_some(link.promiscuous),
            mtu: (self.mtu != 0).then_some(link.mtu),
            queue_length: self.queue_length.map(|_| link.queue_length),
            all_multicast: self.all_multicast.map(|_| link.all_multicast),
        };
        if original == Original::default() {
            return Ok(());
        }
        let file = file(call);
        let text = serde_json::to_vec(&original)
            .map_err(std::io::Error::from)
            .doing("encode the properties of a link")?;
        blocking(move || {
            let folder = file.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder).doing(format!("create {}", folder.display()))?;
            fs::write(&file, text).doing(format!("write {}", file.display()))
        })
        .await
    }
}

impl Commands for Tuning {
    fn read(_kind: &str, config: &Value, _search: &Search) -> std::result::Result<Choice<Self>, String> {
        Self::compile(config).map(Choice::BuiltIn)
    }

    async fn add(&self, call: &Call<'_>, config: &Value, mut previous: CniResult) -> Result<CniResult> {
        self.set_sysctls(call).await?;
        let mac = self.requested_mac(call, config)?;
        let inside = call.inside().await?;
        let Some(link) = inside.link(call.interface).await? else {
            return match mac.is_none() && self.mtu == 0 && !self.promisc {
                true => Ok(previous),
                false => Err(Error::Invalid(format!("tuning: interface {} not found", call.interface))),
            };
        };
        self.record_original(call, &link, mac.is_some()).await?;
        if let Some(mac) = &mac {
            set_mac(&inside, &link, mac).await?;
        }
        self.change(&inside, &link).await?;
        for interface in previous.interfaces.iter_mut().filter(|interface| is_pod_interface(interface, call))
        {
            if let Some(mac) = &mac {
                interface.mac = Link { mac: mac.clone(), ..Link::default() }.mac_text();
            }
            if self.mtu != 0 {
                interface.mtu = self.mtu;
            }
        }
        Ok(previous)
    }

    async fn del(&self, call: &Call<'_>, _config: &Value, _previous: &CniResult) -> Result<()> {
        let file = file(call);
        let original = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Original>(&text).ok());
        // The interface is removed with the namespace, unless it is a device of the host.
        if let (Some(original), true) = (original, call.netns.is_some()) {
            let inside = call.inside().await?;
            if let Some(link) = inside.link(call.interface).await? {
                restore(&inside, &link, &original).await?;
            }
        }
        blocking(move || match fs::remove_file(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.doing(format!("remove {}", file.display())),
        })
        .await
    }

    async fn check(&self, call: &Call<'_>, config: &Value, _previous: &CniResult) -> Result<()> {
        let failed = |why: String| Err(Error::Invalid(format!("tuning: {why}")));
        for (name, value) in &self.sysctl {
            let file = sysctl_file(name, call.interface).map_err(Error::Invalid)?;
            let read = move || fs::read_to_string(&file).doing(format!("read {}", file.display()));
            let actual = netns::within(call.pod_netns()?, read).await?;
            let same = actual.split_whitespace().eq(value.split_whitespace());
            if !same {
                return failed(format!("sysctl {name} is {:?}, not {value:?}", actual.trim()));
            }
        }
        let Some(link) = call.inside().await?.link(call.interface).await? else { return Ok(()) };
        match self.requested_mac(call, config)? {
            Some(mac) if mac != link.mac => return failed(format!("the address is {}", link.mac_text())),
            _ => {}
        }
        if self.mtu != 0 && self.mtu != link.mtu {
            return failed(format!("the MTU is {}, not {}", link.mtu, self.mtu));
        }
        if self.promisc && !link.promiscuous {
            return failed("the interface is not promiscuous".to_owned());
        }
        Ok(())
    }

    fn is_chained(&self) -> bool {
        true
    }
}

fn is_pod_interface(interface: &crate::result::Interface, call: &Call<'_>) -> bool {
    interface.name == call.interface && !interface.sandbox.is_empty()
}

/// Sets the hardware address. Some devices allow this only while the link is down, which removes its routes: they are
/// added again.
async fn set_mac(inside: &Netlink, link: &Link, mac: &[u8]) -> Result<()> {
    if link.mac == mac {
        return Ok(());
    }
    let routes: Vec<_> =
        inside.routes().await?.into_iter().filter(|route| route.link == Some(link.index)).collect();
    let mac = mac.to_vec();
    if link.up {
        inside.change(link.index, "set the state", |link| link.down()).await?;
    }
    inside.change(link.index, "set the hardware address", |link| link.address(mac)).await?;
    if link.up {
        inside.set_up(link.index, false).await?;
        for route in routes {
            inside.add_route_message(route.message).await?;
        }
    }
    Ok(())
}

async fn restore(inside: &Netlink, link: &Link, original: &Original) -> Result<()> {
    if let Some(mac) = &original.mac {
        set_mac(inside, link, mac).await?;
    }
    let original = original.clone();
    inside
        .change(link.index, "restore the properties", move |mut link| {
            if let Some(mtu) = original.mtu {
                link = link.mtu(mtu);
            }
            if let Some(promisc) = original.promisc {
                link = link.promiscuous(promisc);
            }
            if let Some(queue) = original.queue_length {
                link = link.txqueuelen(queue);
            }
            if let Some(multicast) = original.all_multicast {
                link = link.allmulticast(multicast);
            }
            link
        })
        .await
}

fn file(call: &Call<'_>) -> PathBuf {
    let name = format!("{}-{}-{}.json", call.network, call.container, call.interface);
    call.state().join("tuning").join(name)
}

/// Returns the file of a network sysctl. The name's parts are separated by dots, or all by slashes; `IFNAME` is
/// replaced by the interface.
fn sysctl_file(name: &str, interface: &str) -> std::result::Result<PathBuf, String> {
    let separator = if name.contains('/') { '/' } else { '.' };
    let parts: Vec<&str> = name.split(separator).collect();
    let valid = |part: &&str| {
        !part.is_empty()
            && *part != ".."
            && *part != "."
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@".contains(c))
    };
    if parts.first() != Some(&"net") || parts.len() < 2 || !parts.iter().all(valid) {
        return Err(format!("{name}: not a network sysctl"));
    }
    let parts = parts.iter().map(|part| if *part == "IFNAME" { interface } else { part });
    Ok(Path::new("/proc/sys").join(parts.collect::<PathBuf>()))
}

fn allowed() -> Result<Option<Vec<regex_lite::Regex>>> {
    let text = match fs::read_to_string(ALLOWED) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.doing(format!("read {ALLOWED}"))?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let compile = |line: &str| {
        regex_lite::Regex::new(line)
            .map_err(|error| Error::Invalid(format!("invalid line {line:?} of {ALLOWED}: {error}")))
    };
    lines.map(compile).collect::<Result<_>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_network_can_be_set() {
        let file = |name: &str| sysctl_file(name, "net1").map(|path| path.display().to_string());
        assert_eq!(file("net.core.somaxconn").unwrap(), "/proc/sys/net/core/somaxconn");
        assert_eq!(
            file("net/ipv4/conf/IFNAME/arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/net1/arp_filter"
        );
        assert_eq!(
            file("net/ipv4/conf/eth0.5/rp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.5/rp_filter"
        );
        for wrong in
            ["kernel.core_pattern", "net/../kernel/core_pattern", "net", "net..core", "net/a b", "/net/x"]
        {
            assert!(file(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_checked() {
        let compile = |config: Value| Tuning::compile(&config);
        let config = serde_json::json!({
            "sysctl": { "net.a": "1", "net.b": "1" }, "mtu": 1400,
            "args": { "cni": { "sysctl": { "net.b": "2" }, "promisc": true, "x": 1 } },
        });
        let keys = compile(config).unwrap();
        assert_eq!(keys.sysctl.into_values().collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!((keys.mtu, keys.promisc), (1400, true));
        let sysctl = serde_json::json!({ "sysctl": { "kernel.x": "1" } });
        assert!(compile(sysctl).unwrap_err().contains("kernel.x"));
        assert!(compile(serde_json::json!({ "mac": "zz" })).unwrap_err().contains("mac"));
        assert!(compile(serde_json::json!({ "mtu": "big" })).unwrap_err().contains("mtu"));
    }
}
