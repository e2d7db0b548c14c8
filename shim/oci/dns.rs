//! The resolv.conf of a pod (resolv.conf(5)).

use berth_proto::v1::DnsConfig;

/// Returns the requested resolv.conf, or the host's file if the client requests nothing. [`super::validate`] has
/// refused values with line breaks.
#[must_use]
pub fn resolv_conf(dns: Option<&DnsConfig>, host: &str) -> String {
    let Some(dns) =
        dns.filter(|dns| !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()))
    else {
        return host.to_owned();
    };
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_or_the_hosts_file_is_used() {
        let list = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
        let dns = DnsConfig {
            servers: list(&["10.96.0.10", "8.8.8.8"]),
            searches: list(&["ns.svc", "svc"]),
            options: list(&["ndots:5"]),
        };
        let text = "search ns.svc svc\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:5\n";
        assert_eq!(resolv_conf(Some(&dns), "host"), text);
        assert_eq!(resolv_conf(None, "host"), "host");
        assert_eq!(resolv_conf(Some(&DnsConfig::default()), "host"), "host");
    }
}
