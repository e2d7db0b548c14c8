//! IP forwarding of the host (ip-sysctl).

use crate::{Context, Result};

/// Enables forwarding on the host (`ip_forward`).
pub(crate) fn enable(v4: bool) -> Result<()> {
    switch_on(match v4 {
        true => "/proc/sys/net/ipv4/ip_forward",
        false => "/proc/sys/net/ipv6/conf/all/forwarding",
    })
}

/// Enables forwarding of packets from one link, in case it was disabled for that link.
pub(crate) fn enable_from(link: &str, v4: bool) -> Result<()> {
    let family = if v4 { "ipv4" } else { "ipv6" };
    switch_on(&format!("/proc/sys/net/{family}/conf/{link}/forwarding"))
}

fn switch_on(file: &str) -> Result<()> {
    // A sysctl that is already set may be on a read-only mount.
    if std::fs::read_to_string(file).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    std::fs::write(file, "1").doing(format!("write {file}"))
}
