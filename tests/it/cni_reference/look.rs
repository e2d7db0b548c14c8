//! The visible state of a network: links, addresses, routes, rules, bridge ports, queues and sysctls, in the
//! namespaces of the host and the pod. Random values (hardware addresses, names of links, numbers) are replaced by
//! placeholders, so that two runs can be compared.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::support::net::Namespace;

/// Prints sections that begin with `@@ NAME`. `$run` runs a command in a namespace.
const SCRIPT: &str = r#"
section() { echo "@@ $1"; }
for place in host pod; do
  run=; [ $place = host ] || run="ip netns exec pod"
  section "$place links"; $run ip -json -details addr
  section "$place routes"; $run ip -json -details -4 route show table all
  section "$place routes6"; $run ip -json -details -6 route show table all
  section "$place rules"; $run ip -json -4 rule
  section "$place rules6"; $run ip -json -6 rule
  section "$place ports"; $run bridge -json -details link
  section "$place vlans"; $run bridge -json vlan
  section "$place qdiscs"; $run tc -json qdisc
  for link in $($run ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/\1/'); do
    section "$place classes $link"; $run tc -json class show dev $link
    for parent in root ingress; do
      section "$place filters $link $parent"; $run tc -json filter show dev $link $parent 2>/dev/null || :
    done
  done
  section "$place sysctl"
  $run sh -c 'cd /proc/sys/net
    for name in ipv4/ip_forward ipv6/conf/all/forwarding ipv6/conf/all/disable_ipv6; do echo $name=$(cat $name); done
    for folder in ipv4/conf/* ipv6/conf/*; do
      for name in forwarding proxy_arp arp_filter arp_notify rp_filter route_localnet accept_local \
          accept_ra accept_dad dad_transmits disable_ipv6 ndisc_notify proxy_ndp keep_addr_on_down; do
        if [ -r $folder/$name ]; then echo $folder/$name=$(cat $folder/$name); fi
      done
    done'
done
section files
if cd /var/lib/cni/networks 2>/dev/null; then
  find . -type f ! -name lock | sort | while read -r file; do echo "$file=$(tr '\r\n' '  ' < "$file")"; done
fi
"#;

/// Keys that are ignored: their values are counters, numbers of links or rules, derived from hardware addresses, or
/// states of duplicate address detection.
const IGNORED_KEYS: [&str; 32] = [
    "flowid",
    "tentative",
    "nodad",
    "control_action",
    "index",
    "bind",
    "ref",
    "order",
    "ifindex",
    "link_index",
    "link_netnsid",
    "gc_timer",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "bridge_id",
    "root_id",
    "designated_bridge",
    "root_port",
    "no",
    "id",
    "forward_delay_timer",
    "hold_timer",
    "message_age_timer",
    "valid_life_time",
    "preferred_life_time",
    "permaddr",
    "parentbus",
    "parentdev",
    "designated_root",
    "group_fwd_mask_timer",
    "pref64",
];

/// The placeholders for random names and hardware addresses.
pub type Placeholders = BTreeMap<String, String>;

/// Returns the visible state of a network, and its placeholders. Hardware addresses in `kept` are not replaced.
pub fn snapshot(host: &Namespace, kept: &str) -> (Value, Placeholders) {
    let sections = sections(&host.sh(SCRIPT));
    let placeholders = placeholders(&sections, kept);
    let mut seen = Map::new();
    for (name, value) in sections {
        // The name of a section can contain the name of a link. Empty sections are left out.
        let name: Vec<&str> =
            name.split(' ').map(|part| placeholders.get(part).map_or(part, String::as_str)).collect();
        if !is_empty(&value) {
            seen.insert(name.join(" "), normalized(&value, &placeholders));
        }
    }
    (Value::Object(seen), placeholders)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|entry| entry == &json!({}))) || value.is_null()
}

fn sections(text: &str) -> Vec<(String, Value)> {
    let mut sections = Vec::new();
    for section in text.split("@@ ").skip(1) {
        let (name, content) = section.split_once('\n').unwrap_or((section.trim(), ""));
        let value = match name {
            "files" | "host sysctl" | "pod sysctl" => {
                let pairs = content.lines().filter_map(|line| line.split_once('='));
                pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect::<Map<_, _>>().into()
            }
            _ if content.trim().is_empty() => Value::Null,
            // Some output of tc is not JSON.
            _ if name.contains("classes") => {
                serde_json::from_str(content).unwrap_or_else(|_| content.lines().collect())
            }
            _ => serde_json::from_str(content).unwrap_or_else(|error| panic!("{name}: {error}: {content}")),
        };
        sections.push((name.to_owned(), value));
    }
    sections
}

fn text<'a>(link: &'a Value, key: &str) -> &'a str {
    link.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Finds the placeholders. A link of the host with its other end in the pod is named after that end; so is the device
/// of a limit. A hardware address is named after its link, unless the configuration contains it.
fn placeholders(sections: &[(String, Value)], kept: &str) -> Placeholders {
    let links = |place: &str| {
        let found = sections.iter().find(|(name, _)| name == place);
        found.and_then(|(_, links)| links.as_array().cloned()).unwrap_or_default()
    };
    let (host, pod) = (links("host links"), links("pod links"));
    let mut placeholders = Placeholders::new();
    for link in &host {
        let kind = link.pointer("/linkinfo/info_kind").and_then(Value::as_str).unwrap_or_default();
        let peer = pod.iter().find(|peer| {
            let known = peer.get("ifindex").is_some() && link.get("link_netnsid").is_some();
            let mutual = peer.get("link_index") == link.get("ifindex");
            known && kind == "veth" && mutual && peer.get("ifindex") == link.get("link_index")
        });
        // A veth on the host itself, as a port of a bridge, is named after its other end, which has the VLAN in its
        // name.
        let own = host.iter().find(|other| {
            let mutual = other.get("ifname") == link.get("link") && other.get("link") == link.get("ifname");
            mutual && kind == "veth" && text(other, "ifname").contains('.')
        });
        if let Some(peer) = peer.or(own) {
            placeholders.insert(text(link, "ifname").to_owned(), format!("peer-of-{}", text(peer, "ifname")));
        } else if kind == "ifb" {
            placeholders.insert(text(link, "ifname").to_owned(), "ifb-of-pod".to_owned());
        }
    }
    for (place, link) in host.iter().map(|link| ("host", link)).chain(pod.iter().map(|link| ("pod", link))) {
        let (mac, name) = (text(link, "address"), text(link, "ifname"));
        let random = mac.contains(':') && mac != "00:00:00:00:00:00" && !kept.contains(mac);
        if random {
            let name = placeholders.get(name).cloned().unwrap_or_else(|| name.to_owned());
            placeholders.entry(mac.to_owned()).or_insert_with(|| format!("mac-of-{place}-{name}"));
        }
    }
    placeholders
}

/// Replaces the random parts of a value and sorts lists of objects.
pub fn normalized(value: &Value, placeholders: &Placeholders) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(|entry| normalized(entry, placeholders)).collect();
            if list.iter().any(Value::is_object) {
                list.retain(|entry| entry != &json!({}));
                list.sort_by_key(Value::to_string);
                if list.iter().any(|entry| entry.get("mirred_action").is_some()) {
                    // The reference redirects a packet twice.
                    list.dedup();
                }
            }
            keyed(list)
        }
        Value::Object(object) => {
            let known = object.iter().filter(|(key, _)| !IGNORED_KEYS.contains(&key.as_str()));
            let known = known.filter(|(key, value)| !(*key == "action" && *value == "to_tbl"));
            let pairs = known
                .map(|(key, value)| (word(key, placeholders), settled(key, normalized(value, placeholders))));
            pairs.collect::<Map<_, _>>().into()
        }
        Value::String(text) => Value::String(word(text, placeholders)),
        other => other.clone(),
    }
}

/// The operational state depends on timing and not on a plugin. The flags show whether a link is up.
fn settled(key: &str, value: Value) -> Value {
    match value.as_str() {
        Some("LOWERLAYERDOWN") if key == "operstate" => json!("DOWN"),
        Some("UNKNOWN") if key == "operstate" => json!("UP"),
        _ => value,
    }
}

/// Turns a list of links into a map by name, so that a difference contains the name of the link.
fn keyed(list: Vec<Value>) -> Value {
    let names: Vec<_> = list.iter().map(|entry| text(entry, "ifname").to_owned()).collect();
    let unique = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
    if !names.is_empty() && unique && names.iter().all(|name| !name.is_empty()) {
        return names.into_iter().zip(list).collect::<Map<_, _>>().into();
    }
    Value::Array(list)
}

/// Random names can be parts of a path. A link-local address is derived from a hardware address.
fn word(text: &str, placeholders: &Placeholders) -> String {
    if let Some(word) = placeholders.get(text) {
        return word.clone();
    }
    if text.starts_with("fe80::") && text.len() > "fe80::/64".len() {
        let length = text.split_once('/').map(|(_, length)| format!("/{length}")).unwrap_or_default();
        return format!("link-local{length}");
    }
    if text.contains('/') {
        let parts = text.split('/').map(|part| placeholders.get(part).map_or(part, String::as_str));
        return parts.collect::<Vec<_>>().join("/");
    }
    text.to_owned()
}

/// Collects every difference between two values.
pub fn differences(path: &str, reference: &Value, own: &Value, found: &mut Vec<String>) {
    match (reference, own) {
        (Value::Object(one), Value::Object(other)) => {
            let keys: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
            for key in keys {
                let of = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or(Value::Null);
                differences(&format!("{path}/{key}"), &of(one), &of(other), found);
            }
        }
        (Value::Array(one), Value::Array(other))
            if one.iter().any(Value::is_object) || other.iter().any(Value::is_object) =>
        {
            let only = |these: &[Value], those: &[Value]| -> Vec<Value> {
                these.iter().filter(|entry| !those.contains(entry)).cloned().collect()
            };
            for entry in only(one, other) {
                found.push(format!("{path}: only the reference has {entry}"));
            }
            for entry in only(other, one) {
                found.push(format!("{path}: only berth has {entry}"));
            }
            if one.len() != other.len() && only(one, other).is_empty() && only(other, one).is_empty() {
                found.push(format!(
                    "{path}: {} entries of the reference, {} of berth",
                    one.len(),
                    other.len()
                ));
            }
        }
        (one, other) if one == other => {}
        (one, other) => found.push(format!("{path}: reference {one}, berth {other}")),
    }
}
