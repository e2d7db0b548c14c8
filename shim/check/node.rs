//! The settings of a node that Kubernetes and pods depend on: sysctls, swap, disks, the clock, and other runtimes. They can
//! change at any time, so that only `berth check` reads them. Every row of a setting has the command that fixes it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfsMountFlags;

use super::{Availability, HostFeature};
use crate::checkpoint::criu;
use crate::config::{Config, HandlersConfig};
use crate::handlers::{features, programs};

/// The file to which hints write sysctls, so that they survive a reboot.
const SYSCTL_FILE: &str = "/etc/sysctl.d/99-kubernetes.conf";

/// The share of a disk that must be free, in percent: below it, the kubelet removes images or evicts pods
/// (`imagefs.available<15%`, `nodefs.inodesFree<5%`).
const FREE_SPACE: u64 = 15;
const FREE_INODES: u64 = 5;

/// The CRI sockets and the API sockets of other runtimes, with the units that serve them.
const RUNTIMES: [(&str, &str, &str); 4] = [
    ("containerd", "/run/containerd/containerd.sock", "containerd"),
    ("CRI-O", "/run/crio/crio.sock", "crio"),
    ("docker", "/run/docker.sock", "docker.socket docker"),
    ("cri-dockerd", "/run/cri-dockerd.sock", "cri-docker.socket cri-docker"),
];

/// Names in the files of networks that other runtimes bring along.
const OTHER_NETWORKS: [&str; 4] = ["containerd", "crio", "podman", "docker"];

/// Reads the settings of this node.
pub(super) fn rows(config: &Config) -> Vec<HostFeature> {
    let root = Path::new("/");
    let mut rows = sysctls(root);
    rows.push(swap(root));
    for folder in [&config.root, &config.state, Path::new("/var/log")] {
        rows.extend(disk(folder));
    }
    rows.push(clock());
    rows.push(runtimes(root, &config.socket));
    rows.push(networks(&config.cni_conf_dir));
    rows.push(checkpoints(config.criu_path.as_deref()));
    rows.extend(handlers(&config.handlers));
    rows
}

/// A sysctl, the least value that it needs, the value to set, and what does not work below the least.
struct Sysctl {
    what: &'static str,
    name: &'static str,
    least: u64,
    value: u64,
    without: &'static str,
    /// A command that must run before the sysctl can be set.
    before: &'static str,
}

/// CRIU is optional: `--strict` accepts a node without it, and no command is shown that would install it.
fn checkpoints(criu_path: Option<&Path>) -> HostFeature {
    let report = criu::report(criu_path, super::files::kernel_version());
    let found = match (report.program, report.version) {
        (Some(program), Some(version)) => Ok(format!("CRIU {version} ({})", program.display())),
        _ => Err(report.why),
    };
    HostFeature::tried("checkpoints", found).without("CheckpointContainer is refused")
}

/// The OCI runtimes of handlers. No command is shown that would install one.
fn handlers(handlers: &HandlersConfig) -> Vec<HostFeature> {
    let row = |(name, program): (&str, &Path)| {
        let found = features::version(program)
            .map(|version| format!("{version} ({})", program.display()))
            .map_err(|error| format!("{}: {error}", program.display()));
        HostFeature::tried(format!("runtime handler {name}"), found)
            .without("containers of pods with this handler are not created")
    };
    programs(handlers).map(row).collect()
}

const SYSCTLS: [Sysctl; 7] = [
    Sysctl {
        what: "IPv4 forwarding",
        name: "net.ipv4.ip_forward",
        least: 1,
        value: 1,
        without: "pods do not reach other hosts until the bridge of the built-in network switches it on",
        before: "",
    },
    Sysctl {
        what: "rules for bridged IPv4 packets",
        name: "net.bridge.bridge-nf-call-iptables",
        least: 1,
        value: 1,
        without: "Services do not work between pods of this node if kube-proxy uses iptables",
        before: "modprobe br_netfilter && ",
    },
    Sysctl {
        what: "inotify instances",
        name: "fs.inotify.max_user_instances",
        least: 1024,
        value: 8192,
        without: "programs of many pods fail with \"too many open files\"",
        before: "",
    },
    Sysctl {
        what: "inotify watches",
        name: "fs.inotify.max_user_watches",
        least: 65_536,
        value: 524_288,
        without: "programs of many pods fail with \"no space left on device\"",
        before: "",
    },
    Sysctl {
        what: "process ids",
        name: "kernel.pid_max",
        least: 65_536,
        value: 4_194_304,
        without: "nodes with many threads run out of process ids",
        before: "",
    },
    Sysctl {
        what: "user namespaces allowed",
        name: "user.max_user_namespaces",
        least: 1024,
        value: 65_536,
        without: "pods with a user namespace are refused",
        before: "",
    },
    Sysctl {
        what: "open files",
        name: "fs.file-max",
        least: 262_144,
        value: 1_048_576,
        without: "nodes with many pods run out of open files",
        before: "",
    },
];

fn sysctls(root: &Path) -> Vec<HostFeature> {
    SYSCTLS.iter().map(|sysctl| sysctl.row(root)).collect()
}

impl Sysctl {
    fn row(&self, root: &Path) -> HostFeature {
        let Self { what, name, least, value, without, before } = self;
        let file = root.join("proc/sys").join(name.replace('.', "/"));
        let (found, detail) = match fs::read_to_string(&file) {
            Ok(text) => match text.trim().parse::<u64>() {
                Ok(number) => (Availability::from(number >= *least), format!("{name} is {number}")),
                Err(_) => (Availability::Unknown, format!("{name} is {:?}", text.trim())),
            },
            Err(_) => (Availability::No, format!("{name} does not exist")),
        };
        let fix = format!("{before}echo '{name} = {value}' >> {SYSCTL_FILE} && sysctl --system");
        HostFeature::new(*what, found, detail).without(without).fix(fix)
    }
}

/// Reads the devices of swap (proc_swaps(5)); the first line is a header.
fn swap(root: &Path) -> HostFeature {
    let row = match fs::read_to_string(root.join("proc/swaps")) {
        Ok(text) => {
            let devices: Vec<_> =
                text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
            let detail = if devices.is_empty() { "no swap".to_owned() } else { devices.join(", ") };
            HostFeature::new("swap off", devices.is_empty(), detail)
        }
        // The kernel has no swap at all.
        Err(_) => HostFeature::new("swap off", true, "no swap"),
    };
    row.without("the kubelet does not start, unless its failSwapOn is false")
        .fix("swapoff -a && sed -i '/[[:space:]]swap[[:space:]]/s/^/#/' /etc/fstab")
}

/// Checks the disk of a folder, which may not exist yet: whether it can be written, its free space and inodes.
fn disk(folder: &Path) -> Vec<HostFeature> {
    let existing = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let (space, inodes) =
        (format!("space of {}", folder.display()), format!("inodes of {}", folder.display()));
    let found = rustix::fs::statvfs(existing);
    let read_only = found.as_ref().is_ok_and(|disk| disk.f_flag.contains(StatVfsMountFlags::RDONLY));
    let mut rows = match found {
        Ok(disk) => {
            let bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
            vec![
                free(space, disk.f_bavail, disk.f_blocks, FREE_SPACE, &format!("{} MiB free", bytes >> 20)),
                // Filesystems such as btrfs report no inodes: they have no limit.
                free(inodes, disk.f_favail, disk.f_files, FREE_INODES, &format!("{} free", disk.f_favail)),
            ]
        }
        Err(errno) => [space, inodes]
            .map(|what| HostFeature::new(what, Availability::Unknown, format!("failed to stat: {errno}")))
            .into(),
    };
    rows = rows
        .into_iter()
        .map(|row| row.without("the kubelet removes images and evicts pods").fix("berth image prune"))
        .collect();
    if read_only {
        rows.push(read_only_disk(folder, existing));
    }
    rows
}

fn read_only_disk(folder: &Path, existing: &Path) -> HostFeature {
    HostFeature::new(format!("{} writable", folder.display()), false, "the filesystem is read-only")
        .without("new pods, containers and pulls fail")
        .fix(format!("mount -o remount,rw \"$(findmnt -no TARGET -T {})\"", existing.display()))
}

fn free(what: String, free: u64, total: u64, least: u64, detail: &str) -> HostFeature {
    match free.saturating_mul(100).checked_div(total) {
        Some(percent) => HostFeature::new(what, percent >= least, format!("{percent} %, {detail}")),
        None => HostFeature::new(what, true, "no limit"),
    }
}

fn clock() -> HostFeature {
    let (found, detail) = match berth_runtime::sys::clock::is_synchronized() {
        Ok(true) => (Availability::Yes, "by a time service".to_owned()),
        Ok(false) => (Availability::No, "no time service adjusts the clock".to_owned()),
        Err(error) => (Availability::Unknown, error.to_string()),
    };
    HostFeature::new("clock synchronized", found, detail)
        .without("certificates and tokens can be rejected")
        .fix("timedatectl set-ntp true")
}

/// Looks for other runtimes that answer on their socket. A socket without a listener is left over.
fn runtimes(root: &Path, own: &Path) -> HostFeature {
    let running: Vec<_> = RUNTIMES
        .iter()
        .map(|(name, socket, units)| (name, root.join(socket.trim_start_matches('/')), units))
        .filter(|(_, socket, _)| socket != own && UnixStream::connect(socket).is_ok())
        .collect();
    let names: Vec<_> =
        running.iter().map(|(name, socket, _)| format!("{name} ({})", socket.display())).collect();
    let units: Vec<_> = running.iter().map(|(.., units)| **units).collect();
    let detail = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    HostFeature::new("no other runtime", running.is_empty(), detail)
        .without("a kubelet that uses the other runtime does not see berth's pods")
        .fix(format!("systemctl disable --now {}", units.join(" ")))
}

/// Looks for networks of other runtimes in the folder of CNI configurations. berth uses the first one that it finds there
/// instead of the built-in network.
fn networks(folder: &Path) -> HostFeature {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        OTHER_NETWORKS.iter().any(|other| name.contains(other))
            && [".conf", ".conflist", ".json"].iter().any(|suffix| name.ends_with(suffix))
    });
    files.sort();
    let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    let detail = if files.is_empty() { "none".to_owned() } else { files.join(", ") };
    HostFeature::new("no network of another runtime", files.is_empty(), detail)
        .without("pods get that network, which can lack its plugins")
        .fix(
            files
                .iter()
                .map(|file| format!("mv '{file}' '{file}.disabled'"))
                .collect::<Vec<_>>()
                .join(" && "),
        )
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_sysctl_below_the_least_value_has_a_command_that_sets_it() {
        let root = root(&[
            ("proc/sys/net/ipv4/ip_forward", "0\n"),
            ("proc/sys/fs/inotify/max_user_watches", "99999\n"),
        ]);
        let rows = sysctls(root.path());
        let row = |what: &str| rows.iter().find(|row| row.what == what).unwrap();
        let forwarding = row("IPv4 forwarding");
        assert_eq!(
            (forwarding.found, forwarding.detail.as_str()),
            (Availability::No, "net.ipv4.ip_forward is 0")
        );
        let expected =
            "echo 'net.ipv4.ip_forward = 1' >> /etc/sysctl.d/99-kubernetes.conf && sysctl --system";
        assert_eq!(forwarding.hint(), Some(expected));
        assert_eq!(row("inotify watches").found, Availability::Yes);
        assert_eq!(row("inotify watches").hint(), None, "nothing to fix");
        let bridge = row("rules for bridged IPv4 packets");
        assert!(bridge.hint().unwrap().starts_with("modprobe br_netfilter && echo"), "{bridge:?}");
    }

    #[test]
    fn swap_devices_are_listed() {
        let off = root(&[("proc/swaps", "Filename\tType\tSize\n")]);
        assert_eq!(swap(off.path()).found, Availability::Yes);
        let on = root(&[("proc/swaps", "Filename\tType\tSize\n/dev/sda2   partition\t1\n/swap file 2\n")]);
        assert_eq!(swap(on.path()).detail, "/dev/sda2, /swap");
        assert_eq!(swap(on.path()).found, Availability::No);
    }

    #[test]
    fn only_a_runtime_that_listens_counts() {
        let root = root(&[("run/containerd/x", "")]);
        let socket = root.path().join("run/containerd/containerd.sock");
        let other = Path::new("/run/berth/berth.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let row = runtimes(root.path(), other);
        assert_eq!(row.hint(), Some("systemctl disable --now containerd"));
        assert_eq!(runtimes(root.path(), &socket).found, Availability::Yes, "berth's own socket");
        drop(listener);
        assert_eq!(runtimes(root.path(), other).found, Availability::Yes, "a socket that is left over");
    }

    #[test]
    fn networks_of_other_runtimes_are_found_by_name() {
        let root = root(&[
            ("net.d/10-containerd-net.conflist", ""),
            ("net.d/10-calico.conflist", ""),
            ("net.d/87-podman.conflist.disabled", ""),
        ]);
        let row = networks(&root.path().join("net.d"));
        assert!(row.detail.ends_with("/10-containerd-net.conflist"), "{row:?}");
        assert_eq!(row.found, Availability::No);
        assert_eq!(networks(&root.path().join("none")).found, Availability::Yes);
    }

    #[test]
    fn shares_of_a_disk() {
        assert_eq!(free(String::new(), 14, 100, 15, "").found, Availability::No);
        assert_eq!(free(String::new(), 15, 100, 15, "").found, Availability::Yes);
        assert_eq!(free(String::new(), 0, 0, 5, "").found, Availability::Yes, "no limit");
        assert!(disk(Path::new("/nonexistent/folder")).iter().all(|row| row.found != Availability::Unknown));
    }

    #[test]
    fn a_read_only_disk_has_the_command_that_fixes_it() {
        let row = read_only_disk(Path::new("/var/lib/berth"), Path::new("/var/lib"));
        assert_eq!(row.hint(), Some("mount -o remount,rw \"$(findmnt -no TARGET -T /var/lib)\""));
        assert_eq!(row.found, Availability::No);
    }
}
