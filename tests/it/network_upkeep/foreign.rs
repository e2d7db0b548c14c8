//! Rules of other programs: firewalls, and the services of kube-proxy.

use crate::support::node::{Node, bridge, ports};
use serde_json::json;

use super::{NamedServer, is_answered, network_condition, until, with_ports};

#[tokio::test(flavor = "multi_thread")]
async fn firewall_rules_that_drop_pod_traffic_are_reported() {
    let mut node = Node::with(json!([bridge(&json!({})), ports()])).await;
    let outside = node.outside();
    let pod = node.pod("pod").await;
    let chain = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 0; policy drop; }'";
    let iptables = "iptables -P FORWARD DROP; iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                    iptables -A FORWARD -i docker0 -j ACCEPT";
    // iptables-legacy does not use nftables.
    let legacy = "iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    // The rules that dockerd leaves.
    let docker = "iptables -P FORWARD DROP; iptables -N DOCKER; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
                  iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
                  iptables -A FORWARD -o docker0 -j DOCKER; iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT; \
                  iptables -A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT";
    let reject = "nft add table inet other; nft add chain inet other forward '{ type filter hook forward priority 10; }'; \
                  nft add rule inet other forward ct state '{ established, related }' accept; \
                  nft add chain inet other zone; nft add rule inet other zone iifname docker0 accept; \
                  nft add rule inet other forward jump zone; nft add rule inet other forward counter reject with icmpx admin-prohibited";
    for (block, unblock) in [
        (
            chain,
            "nft add rule inet other forward iifname paths0 accept; nft add rule inet other forward oifname paths0 accept",
        ),
        (
            chain,
            "nft add rule inet other forward ip saddr 10.66.0.0/16 accept; nft add rule inet other forward ct state established accept; \
                 nft add rule inet other forward ip6 saddr fd66::/64 accept",
        ),
        (iptables, "iptables -I FORWARD -i paths0 -j ACCEPT"),
        (legacy, "iptables-legacy -I FORWARD -i paths0 -j ACCEPT"),
        (docker, "iptables -I DOCKER-USER -i paths0 -j ACCEPT; iptables -I DOCKER-USER -o paths0 -j ACCEPT"),
        (reject, "nft add rule inet other zone iifname 'paths*' accept"),
    ] {
        assert!(is_answered(&pod.netns, "198.51.100.2"));
        node.netns.sh(block);
        assert!(!is_answered(&pod.netns, "198.51.100.2"), "{block}");
        until(block, async || {
            let (ready, why) = network_condition(&mut node.berth).await;
            !ready
                && why.contains("drops forwarded packets from 10.66.0.0/24")
                && why.to_lowercase().contains("forward")
        })
        .await;
        node.netns.sh(unblock);
        assert!(is_answered(&pod.netns, "198.51.100.2"), "{unblock}");
        until(unblock, async || network_condition(&mut node.berth).await.0).await;
        node.netns.sh(
            "nft delete table inet other 2>/dev/null || true
             for tables in iptables iptables-legacy; do $tables -P FORWARD ACCEPT; $tables -F; $tables -X; done",
        );
    }
    drop(outside);
    node.clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kube_proxy_services_and_host_ports_work_together() {
    let mut node = Node::with(json!([bridge(&json!({ "hairpinMode": true })), ports()])).await;
    let outside = node.outside();
    outside.sh("ip route add 10.96.0.0/24 via 198.51.100.1");
    // No link has the service addresses, so packets to them are routed to the default gateway.
    node.netns.sh("ip route add default via 198.51.100.2");
    let config = with_ports(&node.berth, "pod", [20000]);
    let (pod, other) = (node.pod_of(config).await, node.pod("other").await);
    let server = NamedServer::start(&pod.netns, "0.0.0.0", 80, "pod");
    let ip = pod.ip(false);
    // The rules that kube-proxy creates for a service at 10.96.0.10:443 and the node port 30443, in each of its
    // modes.
    let nftables = format!(
        "nft add table ip kube-proxy
         for hook in prerouting output; do
           nft add chain ip kube-proxy nat-$hook \"{{ type nat hook $hook priority -100; }}\"
           nft add rule ip kube-proxy nat-$hook ip daddr 10.96.0.10 tcp dport 443 meta mark set 0x4000 dnat to {ip}:80
           nft add rule ip kube-proxy nat-$hook fib daddr type local tcp dport 30443 meta mark set 0x4000 dnat to {ip}:80
         done
         nft add chain ip kube-proxy nat-postrouting '{{ type nat hook postrouting priority 100; }}'
         nft add rule ip kube-proxy nat-postrouting meta mark and 0x4000 != 0 masquerade fully-random"
    );
    let iptables = format!(
        "iptables -t nat -N KUBE-SERVICES; iptables -t nat -N KUBE-MARK-MASQ; iptables -t nat -N KUBE-SEP
         iptables -t nat -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
         iptables -t nat -A KUBE-SEP -j KUBE-MARK-MASQ
         iptables -t nat -A KUBE-SEP -p tcp -j DNAT --to-destination {ip}:80
         iptables -t nat -A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 443 -j KUBE-SEP
         iptables -t nat -A KUBE-SERVICES -m addrtype --dst-type LOCAL -p tcp --dport 30443 -j KUBE-SEP
         iptables -t nat -A PREROUTING -j KUBE-SERVICES; iptables -t nat -A OUTPUT -j KUBE-SERVICES
         iptables -t nat -A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully
         iptables -N KUBE-FORWARD; iptables -A FORWARD -j KUBE-FORWARD
         iptables -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
         iptables -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"
    );
    for (mode, rules, away) in [
        ("nftables", &nftables, "nft delete table ip kube-proxy"),
        ("iptables", &iptables, "iptables -F; iptables -X; iptables -t nat -F; iptables -t nat -X"),
        ("iptables-legacy", &iptables.replace("iptables ", "iptables-legacy "), "true"),
    ] {
        node.netns.sh(rules);
        for (who, client) in
            [("outside", &*outside), ("node", &node.netns), ("other", &other.netns), ("itself", &pod.netns)]
        {
            for (address, port) in [("10.96.0.10", 443), ("198.51.100.1", 30443), ("198.51.100.1", 20000)] {
                let answer = server.answers(client, address, port);
                assert_eq!(answer, "pod", "{mode}: {address}:{port} from {who}");
            }
        }
        assert!(network_condition(&mut node.berth).await.0, "{mode}");
        node.netns.sh(away);
    }
    drop((server, outside));
    node.clean().await;
}
