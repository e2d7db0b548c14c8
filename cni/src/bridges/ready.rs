//! The state of bridges. The kernel reports every change of a link, an address or a setting, so neither an attachment
//! nor an idle daemon reads unchanged state: an attachment applies the notifications received until then, and a task of
//! the daemon repairs what other programs have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Mutex;

use super::keys::Keys;
use super::make::ReadyBridge;
use crate::netlink::Netlink;
use crate::netlink::monitor::{Change, Group, Monitor, Notification};
use crate::{Context, Result, forwarding};

/// The interval between repairs after a failure, when the network's status is requested.
const AGAIN: Duration = Duration::from_secs(5);

/// The bridges and the forwarding that are set up on the host.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    /// `None` if changes are not monitored: a bridge is then read each time.
    monitor: Option<Monitor>,
    state: Mutex<State>,
    trouble: StdMutex<Option<Trouble>>,
}

#[derive(Debug, Default)]
struct State {
    bridges: BTreeMap<String, WatchedBridge>,
    /// The IP versions that the host forwards; `true` is version 4.
    forwarding: BTreeSet<bool>,
    /// Links of pods that are disconnected from their bridge, with the pod's id.
    disconnected: BTreeMap<u32, String>,
}

#[derive(Debug)]
struct WatchedBridge {
    keys: Keys,
    made: ReadyBridge,
    gateways: BTreeSet<IpNet>,
    /// A link of the bridge is down or was renamed.
    down: bool,
    /// Something of the bridge is missing, or may be missing.
    incomplete: bool,
    /// Ports of pods may be on no bridge: the bridge was created again, or changes of links were lost.
    ports_lost: bool,
}

/// Why a bridge is not in its configured state.
#[derive(Debug)]
struct Trouble {
    bridge: String,
    why: String,
    since: Instant,
}

impl WatchedBridge {
    fn is_sound(&self) -> bool {
        !self.down && !self.incomplete
    }

    fn apply(&mut self, change: &Change) {
        let (bridge, gateway) = (self.made.bridge.index, self.made.gateway.index);
        match change {
            Change::Link(link) if link.index == bridge => {
                self.down = !link.up || link.name != self.keys.bridge;
                self.made.bridge.mac.clone_from(&link.mac);
                self.made.bridge.mtu = link.mtu;
            }
            Change::Link(link) if link.index == gateway => self.incomplete |= !link.up,
            Change::LinkGone(index) | Change::AddressGone(index) if *index == bridge || *index == gateway => {
                self.incomplete = true;
            }
            Change::NotForwarding { link, .. } if *link == Some(bridge) || *link == Some(gateway) => {
                self.incomplete = true;
            }
            _ => {}
        }
    }
}

impl State {
    fn apply(&mut self, notification: Notification) {
        let Notification::Messages(messages) = notification else {
            // Unknown changes: each bridge is checked, and so are the ports on it.
            for known in self.bridges.values_mut() {
                (known.incomplete, known.ports_lost) = (true, true);
            }
            self.disconnected.clear();
            self.forwarding.clear();
            return;
        };
        let links = |index: u32| {
            let mut of_bridges = self.bridges.values().map(|known| &known.made);
            of_bridges.any(|made| made.bridge.index == index || made.gateway.index == index)
        };
        for change in Change::all(&messages, links) {
            if let Change::NotForwarding { link: None, v4 } = change {
                self.forwarding.remove(&v4);
                let has =
                    |known: &&mut WatchedBridge| known.gateways.iter().any(|ip| ip.addr().is_ipv4() == v4);
                self.bridges.values_mut().filter(has).for_each(|known| known.incomplete = true);
            }
            match change {
                Change::PortDisconnected { index, pod } if !self.bridges.is_empty() => {
                    self.disconnected.insert(index, pod);
                }
                Change::PortConnected(index) | Change::LinkGone(index) => {
                    self.disconnected.remove(&index);
                    self.bridges.values_mut().for_each(|known| known.apply(&change));
                }
                _ => self.bridges.values_mut().for_each(|known| known.apply(&change)),
            }
        }
    }
}

impl Ready {
    /// Opens the monitor in the network namespace of the calling thread. Needs a tokio runtime.
    pub(crate) fn watching() -> Result<Self> {
        let groups = [Group::Links, Group::Addresses4, Group::Addresses6, Group::Settings4, Group::Settings6];
        let monitor = Monitor::open(&groups).doing("subscribe to changes of links")?;
        Ok(Self { monitor: Some(monitor), ..Self::default() })
    }

    fn apply(&self, state: &mut State) {
        let notification = self.monitor.iter().flat_map(|monitor| std::iter::from_fn(|| monitor.receive()));
        notification.for_each(|notification| state.apply(notification));
    }

    /// Returns the bridge of a configuration in its configured state, with some gateways. `again` ignores the known
    /// state.
    pub(crate) async fn bridge(
        &self,
        host: &Netlink,
        keys: &Keys,
        gateways: &BTreeSet<IpNet>,
        again: bool,
    ) -> Result<ReadyBridge> {
        let mut state = self.state.lock().await;
        self.apply(&mut state);
        let known = state.bridges.get(&keys.bridge).filter(|known| known.keys == *keys);
        if let Some(known) = known
            && self.monitor.is_some()
            && !again
            && known.is_sound()
            && known.gateways.is_superset(gateways)
        {
            return Ok(known.made.clone());
        }
        let before = known.map(|known| known.gateways.clone()).unwrap_or_default();
        let all = before.union(gateways).copied().collect();
        let made = keys.make(host, &all).await;
        self.note(&keys.bridge, made.as_ref().err().map(ToString::to_string));
        let made = made?;
        state.forwarding.extend(all.iter().map(|gateway: &IpNet| gateway.addr().is_ipv4()));
        let index = made.bridge.index;
        let former = state.bridges.get(&keys.bridge);
        let ports_lost = former.is_some_and(|former| former.ports_lost || former.made.bridge.index != index);
        let known = WatchedBridge {
            keys: keys.clone(),
            made: made.clone(),
            gateways: all,
            down: false,
            incomplete: false,
            ports_lost,
        };
        state.bridges.insert(keys.bridge.clone(), known);
        Ok(made)
    }

    /// Enables forwarding of an IP version on the host.
    pub(crate) async fn forward(&self, v4: bool) -> Result<()> {
        let mut state = self.state.lock().await;
        self.apply(&mut state);
        if self.monitor.is_none() || !state.forwarding.contains(&v4) {
            forwarding::enable(v4)?;
            state.forwarding.insert(v4);
        }
        Ok(())
    }

    /// Discards the state of a bridge that is to be removed.
    pub(crate) async fn forget(&self, bridge: &str) {
        self.state.lock().await.bridges.remove(bridge);
        self.note(bridge, None);
    }

    /// Waits until something has changed.
    ///
    /// # Errors
    /// The monitor failed.
    pub(crate) async fn changed(&self) -> Result<()> {
        match &self.monitor {
            Some(monitor) => monitor.changed().await.doing("receive changes of links"),
            None => std::future::pending().await,
        }
    }

    /// Whether all bridges are in their configured state.
    pub(crate) async fn is_sound(&self) -> bool {
        let mut state = self.state.lock().await;
        self.apply(&mut state);
        state.bridges.values().all(|known| known.is_sound())
    }

    /// Repairs what other programs have changed. Returns whether a bridge was created again: pods must then be
    /// attached to it again. A bridge that is gone and not `in_use` is not recreated.
    pub(crate) async fn repair(&self, host: &Netlink, in_use: impl Fn(&str) -> bool) -> bool {
        let mut state = self.state.lock().await;
        let had_forwarding = state.forwarding.clone();
        self.apply(&mut state);
        for v4 in had_forwarding {
            if !state.forwarding.contains(&v4) && forwarding::enable(v4).is_ok() {
                tracing::warn!(ipv4 = v4, "IP forwarding was disabled: enabled it again");
                state.forwarding.insert(v4);
            }
        }
        let mut ports_lost = false;
        for (name, known) in &mut state.bridges {
            if known.is_sound() {
                ports_lost |= std::mem::take(&mut known.ports_lost);
                continue;
            }
            if host.link(name).await.is_ok_and(|link| link.is_none()) && !in_use(name) {
                continue;
            }
            let before = (known.made.bridge.index, known.down);
            match known.keys.make(host, &known.gateways).await {
                Ok(made) => {
                    self.note(name, None);
                    if made.bridge.index != before.0 || before.1 {
                        tracing::warn!(bridge = name, "repaired bridge after a change by another program");
                    } else {
                        tracing::info!(bridge = name, "checked bridge after a change by another program");
                    }
                    ports_lost |= std::mem::take(&mut known.ports_lost) || made.bridge.index != before.0;
                    known.made = made;
                    (known.down, known.incomplete) = (false, false);
                }
                Err(error) => self.note(name, Some(error.to_string())),
            }
        }
        ports_lost
    }

    /// The pods whose port has lost its bridge since the last call. A port that is being set up or removed is among them only
    /// if the kernel has not reported the rest of it yet.
    pub(crate) async fn disconnected(&self) -> BTreeSet<String> {
        let mut state = self.state.lock().await;
        self.apply(&mut state);
        std::mem::take(&mut state.disconnected).into_values().collect()
    }

    fn note(&self, bridge: &str, why: Option<String>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => {
                if trouble.as_ref().is_none_or(|known| known.why != why) {
                    tracing::warn!(bridge, why, "failed to repair bridge");
                }
                *trouble = Some(Trouble { bridge: bridge.to_owned(), why, since: Instant::now() });
            }
            None if trouble.as_ref().is_some_and(|known| known.bridge == bridge) => *trouble = None,
            None => {}
        }
    }

    /// Returns why pods would have no network on one of these bridges.
    pub(crate) fn trouble<'a>(&self, mut bridges: impl Iterator<Item = &'a str>) -> Option<String> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let known = trouble.as_ref().filter(|known| bridges.any(|name| name == known.bridge))?;
        Some(format!("failed to repair bridge {}: {}", known.bridge, known.why))
    }

    /// Whether a failed repair is to be retried now. Returns `true` once per interval.
    pub(crate) fn is_to_be_tried_again(&self) -> bool {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *trouble {
            Some(known) if known.since.elapsed() >= AGAIN => {
                known.since = Instant::now();
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let keys: Keys = serde_json::from_value(serde_json::json!({ "bridge": "br0" })).unwrap();
        let link = crate::netlink::Link { index: 3, name: "br0".to_owned(), up: true, ..Default::default() };
        let known = WatchedBridge {
            keys,
            made: ReadyBridge { bridge: link.clone(), gateway: link },
            gateways: BTreeSet::new(),
            down: false,
            incomplete: false,
            ports_lost: false,
        };
        State { bridges: BTreeMap::from([("br0".to_owned(), known)]), ..State::default() }
    }

    #[test]
    fn lost_notifications_cause_a_check_of_bridges_and_ports() {
        let mut state = state();
        assert!(state.bridges["br0"].is_sound());
        state.apply(Notification::Lost);
        assert!(!state.bridges["br0"].is_sound());
        assert!(state.bridges["br0"].ports_lost);
    }
}
