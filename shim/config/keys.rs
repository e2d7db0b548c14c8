//! What keys there are, each with a sentence: what `berth config default` prints, and where the nearest known key is
//! looked for when a file has an unknown one.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its table; empty for the main one.
    pub table: &'static str,
    /// Its name in the table.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// What to show as an example of a key that has no default.
    pub example: Option<&'static str>,
}

const fn key(table: &'static str, name: &'static str, about: &'static str) -> Key {
    Key { table, name, about, example: None }
}

/// Every key, in the order in which they are shown.
pub const KEYS: [Key; 37] = [
    key("", "socket", "The socket that the kubelet and crictl connect to."),
    key("", "root", "Persistent state: images, containers, addresses."),
    key("", "state", "Volatile state: the pods' keepers and their sockets."),
    key(
        "",
        "cni_conf_dir",
        "Where CNI configuration is looked for; without any, pods get the built-in network.",
    ),
    key("", "cni_bin_dirs", "Where CNI plugins are looked for that berth has not built in."),
    key(
        "",
        "cni_data_dir",
        "Where taken addresses are noted, as the reference plugin host-local does it: a node that used that keeps them.",
    ),
    Key {
        table: "",
        name: "cni_conf_template",
        about: "What is written to cni_conf_dir when the kubelet names the pods' subnets, in the form of containerd's conf_template.",
        example: Some("\"/etc/berth/cni.conflist.tmpl\""),
    },
    key("", "cni_external_plugins", "Types of plugins that are built in and yet run from cni_bin_dirs."),
    key("", "cni_plugin_timeout", "How many seconds a plugin from cni_bin_dirs may take."),
    key("", "cdi_spec_dirs", "Where vendors' CDI files are looked for; a later folder wins."),
    key(
        "",
        "certs_dir",
        "Where <registry>/hosts.toml or certificates are looked for: one folder or several; the first that has any wins.",
    ),
    key(
        "",
        "registries_conf",
        "Mirrors and short names as podman and CRI-O have them, for registries without a hosts.toml.",
    ),
    key(
        "",
        "auth_file",
        "Credentials for registries in the form of docker's config.json, for requests that bring none: one file or several.",
    ),
    key("", "signature_policy", "Which images may come in (containers-policy.json); without the file, all."),
    Key {
        table: "",
        name: "import_dir",
        about: "Where archives and layouts are imported from as they appear; without it, <root>/import.",
        example: Some("\"/var/lib/berth/import\""),
    },
    key("", "pinned_images", "Images that the kubelet's garbage collection leaves alone, by their names."),
    key(
        "",
        "parallel_pulls",
        "How many layers are downloaded at once, beside one of each pull and those that are slow.",
    ),
    key("", "max_image_size", "The largest image that is pulled or loaded, unpacked."),
    key("", "max_image_files", "The most files, folders and links of an image."),
    key("", "max_image_depth", "The most folders in one another."),
    key(
        "",
        "max_compression_ratio",
        "The most bytes that one byte of a layer may become, beyond the first 4 GiB.",
    ),
    key(
        "",
        "stream_address",
        "Where exec, attach and port-forward sessions connect to; port 0 picks a free one.",
    ),
    Key {
        table: "",
        name: "stream_certificate",
        about: "The certificate of these sessions, with those above it, in PEM; without it they are plain HTTP.",
        example: Some("\"/etc/berth/stream.crt\""),
    },
    Key {
        table: "",
        name: "stream_key",
        about: "The key of that certificate, in PEM.",
        example: Some("\"/etc/berth/stream.key\""),
    },
    Key {
        table: "",
        name: "metrics_address",
        about: "Where metrics are served; without it, not at all.",
        example: Some("\"127.0.0.1:9470\""),
    },
    key("", "log_level", "off, error, warn, info, debug or trace; or by module: \"info,berth_image=debug\"."),
    key("", "log_format", "text or json."),
    key("", "cgroup_driver", "auto, systemd or cgroupfs; the kubelet asks for it."),
    key(
        "",
        "restrict_oom_score_adj",
        "Give containers no lower oom_score_adj than the daemon's, instead of failing.",
    ),
    key(
        "",
        "default_ulimits",
        "Resource limits of every container: \"nofile=1024:524288\" is soft and hard, \"core=0\" both.",
    ),
    key("", "shm_size", "The size of a pod's /dev/shm."),
    key(
        "",
        "device_ownership_from_security_context",
        "Give devices to the user and group that their container asks to run as.",
    ),
    key("", "runtime_handlers", "The RuntimeClass handlers that pods may name, besides none."),
    key("network", "bridge", "The bridge of the built-in network."),
    key("network", "subnets", "The ranges of its pods' addresses, at most one of each family."),
    Key {
        table: "network",
        name: "mtu",
        about: "The MTU of its pods' interfaces; without it, that of the bridge.",
        example: Some("1450"),
    },
    key("", "network", "The network that pods get when cni_conf_dir has no configuration."),
];

/// The known key of a table that is nearest to a name, if any is near.
#[must_use]
pub fn nearest(table: &str, name: &str) -> Option<&'static str> {
    KEYS.iter()
        .filter(|key| key.table == table)
        .map(|key| (distance(key.name, name), key.name))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .map(|(_, known)| known)
}

/// How many letters have to be added, removed or changed to get from one text to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        let mut left = i + 1;
        for ((above_left, above), other) in row.iter().zip(row.iter().skip(1)).zip(&b) {
            left = (left + 1).min(above + 1).min(above_left + usize::from(letter != *other));
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, wanted) in
            [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), wanted, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_key_is_of_the_same_table_and_near() {
        assert_eq!(nearest("", "sokcet"), Some("socket"));
        assert_eq!(nearest("", "cni_bin_dir"), Some("cni_bin_dirs"));
        assert_eq!(nearest("network", "subnet"), Some("subnets"));
        assert_eq!(nearest("network", "socket"), None);
        assert_eq!(nearest("", "plugins_io_containerd"), None);
    }
}
