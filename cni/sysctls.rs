//! Sysctls of a pod that are about one of its interfaces (Documentation/networking/ip-sysctl.rst, `conf/interface/*`,
//! `neigh/interface/*`): they exist from the moment on that the network has made the interface.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::{Error, Result, netns};

/// What is in the place of an interface's name and is there from the beginning.
const ALWAYS_THERE: [&str; 3] = ["all", "default", "lo"];

/// Whether a sysctl is one of an interface that the pod's network makes. Its name has dots or, where a part itself has
/// dots, slashes (sysctl(8)).
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
/// The first that cannot be set, with its name and value.
pub async fn set(netns: BorrowedFd<'_>, sysctls: Vec<(String, String)>) -> Result<()> {
    netns::within(netns, move || {
        for (name, value) in &sysctls {
            let failed =
                |why: String| Error::Invalid(format!("failed to set sysctl {name} to {value:?}: {why}"));
            let file = file(name).ok_or_else(|| failed("it is not a sysctl of the network".to_owned()))?;
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

/// The parts of a name: its first separator is the one that is meant.
fn parts(name: &str) -> Option<Vec<String>> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'))?;
    let part = |text: &str| match separator {
        '.' => text.replace('/', "."),
        _ => text.to_owned(),
    };
    let parts: Vec<String> = name.split(separator).map(part).collect();
    let sound = |part: &String| {
        !matches!(part.as_str(), "" | "." | "..")
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c))
    };
    parts.iter().all(sound).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_interfaces_are_known_by_their_place() {
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
