//! Sysctls of a pod that belong to one of its interfaces (Documentation/networking/ip-sysctl.rst, `conf/interface/*`,
//! `neigh/interface/*`). They exist once the network has created the interface.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result, netns};

/// Values of the interface component that exist from the beginning.
const ALWAYS_THERE: [&str; 3] = ["all", "default", "lo"];

/// Whether a sysctl belongs to an interface that the pod's network creates. The components of its name are separated by
/// dots or, if a component contains dots, by slashes (sysctl(8)).
#[must_use]
pub fn is_of_interface(name: &str) -> bool {
    let Some(parts) = parts(name) else { return false };
    match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["net", _, "conf" | "neigh", interface, _, ..] => !ALWAYS_THERE.contains(interface),
        _ => false,
    }
}

/// Sets sysctls in a network namespace.
///
/// # Errors
/// The first sysctl that cannot be set, with its name and value.
pub async fn set(netns: BorrowedFd<'_>, sysctls: Vec<(String, String)>) -> Result<()> {
    netns::within(netns, move || {
        for (name, value) in &sysctls {
            let failed =
                |why: String| Error::Invalid(format!("failed to set sysctl {name} to {value:?}: {why}"));
            let file = file(name).ok_or_else(|| failed("it is not a network sysctl".to_owned()))?;
            fs::write(file, value).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    })
    .await
}

fn file(name: &str) -> Option<PathBuf> {
    let parts = parts(name).filter(|parts| parts.first().is_some_and(|first| first == "net"))?;
    Some(Path::new("/proc/sys").join(parts.iter().collect::<PathBuf>()))
}

/// Splits a name. The first separator determines which one the name uses.
fn parts(name: &str) -> Option<Vec<String>> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let part = |text: &str| match separator {
        '.' => text.replace('/', "."),
        _ => text.to_owned(),
    };
    let parts: Vec<String> = name.split(separator).map(part).collect();
    let valid = |part: &String| {
        !matches!(part.as_str(), "" | "." | "..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c))
    };
    parts.iter().all(valid).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_interfaces_are_recognized() {
        for name in [
            "net.ipv4.conf.eth0.rp_filter",
            "net/ipv6/conf/eth0/accept_ra",
            "net.ipv4.neigh.net1.gc_stale_time",
            "net/ipv4/conf/eth0.100/arp_ignore",
            "net.ipv4.conf.eth0/100.arp_ignore",
            "net.mpls.conf.eth0.input",
        ] {
            assert!(is_of_interface(name), "{name}");
        }
        for name in [
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.default.rp_filter",
            "net.ipv6.conf.lo.disable_ipv6",
            "net.ipv4.ip_forward",
            "net.ipv4.conf.eth0",
            "kernel.shm_rmid_forced",
            "",
        ] {
            assert!(!is_of_interface(name), "{name}");
        }
        let dotted = file("net/ipv4/conf/eth0.100/arp_ignore").unwrap();
        assert_eq!(dotted, Path::new("/proc/sys/net/ipv4/conf/eth0.100/arp_ignore"));
        assert_eq!(file("net.ipv4.conf.eth0/100.arp_ignore").unwrap(), dotted);
        for name in ["kernel.core_pattern", "net..x", "net/../kernel/core_pattern", "net"] {
            assert_eq!(file(name), None, "{name}");
        }
    }
}
