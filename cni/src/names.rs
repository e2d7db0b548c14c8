//! Names of networks, plugins and links: which are valid, and those that berth gives to the links of pods.

/// Whether a text is a valid name of the specification: letters, digits, dots, dashes and underscores. Names become
/// file names.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 200
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// Whether a link can have this name (the kernel's `dev_valid_name`).
pub(crate) fn is_link_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 15
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// The prefix of the names of the host ends of pods' veth pairs.
pub(crate) const HOST_LINK_PREFIX: &str = "bv";

/// The name of the host's end of a pod's veth. A link's name has at most 15 characters (IFNAMSIZ): the name for a pod's
/// first interface contains the beginning of the pod's id.
pub(crate) fn host_link(container: &str, interface: &str) -> String {
    match interface {
        "eth0" if container.len() >= 13 && container.is_char_boundary(13) => {
            format!("{HOST_LINK_PREFIX}{}", container.get(..13).unwrap_or(container))
        }
        _ => format!("{HOST_LINK_PREFIX}{:013x}", hash(&[container, interface]) >> 12),
    }
}

/// FNV-1a. Unlike the standard library's hash it never changes.
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The alias of a pod's links on the host (`ip link` shows it as `alias`). It identifies the attachment that owns the
/// link.
pub(crate) fn alias(network: &str, container: &str) -> String {
    format!("berth {network} {container}")
}

/// Returns the pod of a link's alias. Neither a network's name nor a pod's id contains a space.
pub(crate) fn pod_of_alias(alias: &str) -> Option<&str> {
    alias.strip_prefix("berth ")?.split_once(' ').map(|(_, container)| container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_host_links_fit_and_differ() {
        let id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(host_link(id, "eth0"), "bv0123456789abc");
        let others = [host_link(id, "net1"), host_link(id, "net2"), host_link("short", "eth0")];
        assert!(others.iter().all(|name| name.len() == 15), "{others:?}");
        assert!(others[0] != others[1] && others[1] != others[2], "{others:?}");
    }
}
