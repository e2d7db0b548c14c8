//! The list of configuration keys with a description of each. `berth config default` prints it, and the suggestion
//! for an unknown key comes from it.

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The table that contains the key; empty for the top level.
    pub table: &'static str,
    /// The name of the key in its table.
    pub name: &'static str,
    /// The description of the key.
    pub about: &'static str,
    /// An example value for a key without a default.
    pub example: Option<&'static str>,
}

const fn key(table: &'static str, name: &'static str, about: &'static str) -> Key {
    Key { table, name, about, example: None }
}

/// All keys, in the order in which they are printed.
pub const KEYS: [Key; 38] = [
    key("", "socket", "Socket for the kubelet and crictl."),
    key("", "root", "Folder for persistent state: images, containers, addresses."),
    key("", "state", "Folder for volatile state: the pods' keepers and their sockets."),
    key(
        "",
        "cni_conf_dir",
        "Folder of CNI configuration files; if it has none, pods get the built-in network.",
    ),
    key("", "cni_bin_dirs", "Folders of CNI plugins that are not built in."),
    key(
        "",
        "cni_data_dir",
        "Folder of allocated addresses, in the format of the plugin host-local; its allocations stay valid.",
    ),
    Key {
        table: "",
        name: "cni_conf_template",
        about: "Template of the file that is written to cni_conf_dir when the kubelet sets the pod subnets, in the format of containerd's conf_template.",
        example: Some("\"/etc/berth/cni.conflist.tmpl\""),
    },
    key("", "cni_external_plugins", "Types of built-in plugins that are run from cni_bin_dirs instead."),
    key("", "cni_plugin_timeout", "Time limit in seconds for a call of a plugin from cni_bin_dirs."),
    key("", "cdi_spec_dirs", "Folders of vendors' CDI files; a later folder takes precedence."),
    key("", "hooks_dirs", "Folders of OCI hooks (oci-hooks(5)); a file of a later folder takes precedence."),
    key(
        "",
        "certs_dir",
        "Folders of <registry>/hosts.toml or certificates, one or several; the first folder that has any is used.",
    ),
    key(
        "",
        "registries_conf",
        "Mirrors and short names in the format of podman and CRI-O, for registries without a hosts.toml.",
    ),
    key(
        "",
        "auth_file",
        "Credentials for registries in the format of docker's config.json, for requests without any: one file or several.",
    ),
    key(
        "",
        "signature_policy",
        "Policy for accepted images (containers-policy.json); without the file, all.",
    ),
    Key {
        table: "",
        name: "import_dir",
        about: "Folder from which archives and layouts are imported as they appear; the default is <root>/import.",
        example: Some("\"/var/lib/berth/import\""),
    },
    key("", "pinned_images", "References of images that the kubelet's garbage collection must keep."),
    key(
        "",
        "parallel_pulls",
        "Number of layers that are downloaded in parallel, in addition to one per pull and to slow transfers.",
    ),
    key("", "max_image_size", "Largest unpacked size of an image that is pulled or loaded."),
    key("", "max_image_files", "Largest number of files, folders and links in an image."),
    key("", "max_image_depth", "Deepest nesting of folders in an image."),
    key(
        "",
        "max_compression_ratio",
        "Largest ratio of unpacked to compressed bytes of a layer, beyond the first 4 GiB.",
    ),
    key(
        "",
        "stream_address",
        "Address for exec, attach and port-forward sessions; port 0 selects a free port.",
    ),
    Key {
        table: "",
        name: "stream_certificate",
        about: "Certificate for these sessions, followed by its chain, in PEM; without it they use plain HTTP.",
        example: Some("\"/etc/berth/stream.crt\""),
    },
    Key {
        table: "",
        name: "stream_key",
        about: "Key of that certificate, in PEM.",
        example: Some("\"/etc/berth/stream.key\""),
    },
    Key {
        table: "",
        name: "metrics_address",
        about: "Address for metrics; without it, metrics are not served.",
        example: Some("\"127.0.0.1:9470\""),
    },
    key(
        "",
        "log_level",
        "Log level: off, error, warn, info, debug or trace; or by module: \"info,berth_image=debug\".",
    ),
    key("", "log_format", "Log format: text or json."),
    key("", "cgroup_driver", "Cgroup driver: auto, systemd or cgroupfs; the kubelet uses the same."),
    key(
        "",
        "restrict_oom_score_adj",
        "Raise the oom_score_adj of containers to the daemon's if it is lower, instead of failing.",
    ),
    key(
        "",
        "default_ulimits",
        "Resource limits of every container: \"nofile=1024:524288\" sets soft and hard, \"core=0\" sets both.",
    ),
    key("", "shm_size", "Size of a pod's /dev/shm."),
    key(
        "",
        "device_ownership_from_security_context",
        "Give devices to the user and group of their container's security context.",
    ),
    key(
        "",
        "runtime_handlers",
        "RuntimeClass handlers that pods may name; pods without a handler always run.",
    ),
    key("network", "bridge", "Bridge of the built-in network."),
    key("network", "subnets", "Address ranges of its pods, at most one per address family."),
    Key {
        table: "network",
        name: "mtu",
        about: "MTU of its pods' interfaces; the default is the bridge's.",
        example: Some("1450"),
    },
    key("", "network", "Network of pods when cni_conf_dir has no configuration."),
];

/// Returns the key of a table that is nearest to a name, if one is near.
#[must_use]
pub fn nearest(table: &str, name: &str) -> Option<&'static str> {
    KEYS.iter()
        .filter(|key| key.table == table)
        .map(|key| (distance(key.name, name), key.name))
        .min()
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .map(|(_, known)| known)
}

/// Returns how many letters must be added, removed or changed to get from one text to the other (Levenshtein
/// distance).
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
        for (a, b, expected) in
            [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
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
