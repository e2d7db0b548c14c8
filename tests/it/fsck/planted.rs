//! Leftovers of every kind, as a daemon that was killed could leave them.

use super::*;

/// The id of a pod and container that does not exist.
pub(super) fn stranger() -> String {
    "ab".repeat(32)
}

/// Creates a folder with a file of 10 kB.
pub(super) fn folder(path: PathBuf) {
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), vec![7; 10_000]).unwrap();
}

/// Plants files of a pod and a container without a record. Returns the kinds.
pub(super) fn plant_files(berth: &Berth) -> Vec<&'static str> {
    let id = stranger();
    for name in ["root/pods", "run/pods", "root/containers", "root/image/containers"] {
        folder(berth.path(&format!("{name}/{id}")));
    }
    for name in
        [&format!("layers/sha256-{id}"), &format!("images/sha256-{id}"), "tmp/unfinished", "trash/removed"]
    {
        folder(berth.path(&format!("root/image/{name}")));
    }
    fs::write(berth.path("addresses/testbr0/10.77.0.99"), format!("{id}\r\neth0")).unwrap();
    fs::write(berth.path(&format!("root/network/pods/{id}.json")), "{").unwrap();
    let lease = serde_json::json!({
        "owner": { "container": id, "network": "testbr0", "interface": "eth0" },
        "lease": {
            "address": "10.0.0.2/24", "gateway": null, "routes": [], "name_servers": [], "domain": null, "mtu": null,
            "server": "10.0.0.1",
        },
        "times": null, "given": { "secs": 0, "nanos": 0 }, "provided": [], "requested": [],
    });
    fs::write(berth.path(&format!("root/network/dhcp/{id}@testbr0@eth0.json")), lease.to_string()).unwrap();
    let temporary = berth.path("root/network/pods/interrupted.tmp");
    fs::write(&temporary, "{").unwrap();
    let old = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(&temporary).unwrap().set_modified(old).unwrap();
    vec![
        "pod-folder",
        "state-folder",
        "container-folder",
        "writable-layer",
        "layer",
        "image-folder",
        "staging-folder",
        "trash",
        "address",
        "attachment",
        "dhcp-lease",
        "temporary-file",
    ]
}

/// Plants objects of the kernel. Returns the kinds.
pub(super) fn plant_in_kernel(berth: &Berth, pod: &str) -> Vec<&'static str> {
    let id = stranger();
    let script = format!(
        "ip link add bvleft type veth peer name bvright; ip link set bvleft alias 'berth testbr0 {id}'; \
         nft add element inet berth ports4 '{{ tcp . 9090 comment \"testbr0 {id} eth0\" : 10.77.0.99 . 90 }}'; \
         ip link add others type veth peer name others1; ip link set others alias 'berth elsewhere {id}'"
    );
    let planted = berth.on_host(&["sh", "-ec", &script]);
    assert!(planted.status.success(), "{planted:?}");
    for folder in cgroup_folders(&berth.cgroup_parent).iter().filter(|folder| folder.ends_with(pod)) {
        let (marked, unmarked) = (folder.with_file_name(&id), folder.with_file_name("cd".repeat(32)));
        fs::create_dir(&marked).unwrap();
        fs::create_dir(&unmarked).unwrap();
        // Another daemon on this host may have an object with the same id.
        let foreign = unmarked.join(&id);
        fs::create_dir(&foreign).unwrap();
        rustix::fs::setxattr(&foreign, "trusted.berth", b"1:1 /elsewhere", XattrFlags::empty()).unwrap();
        let mut mark = [0; 4200];
        let length = rustix::fs::getxattr(folder, "trusted.berth", &mut mark[..]).unwrap();
        rustix::fs::setxattr(&marked, "trusted.berth", &mark[..length], XattrFlags::empty()).unwrap();
    }
    let state = berth.path("root/network");
    pin(&id, &format!("berth {}\n", state.display()));
    vec!["link", "nft-elements", "cgroup", "netns-pin"]
}

/// Removes a folder in which the daemon may create a file at the same time: it reads layers in the background.
pub(super) fn remove_folder(folder: &Path) {
    let until = Instant::now() + support::PATIENCE;
    while let Err(error) = fs::remove_dir_all(folder) {
        assert!(error.kind() == std::io::ErrorKind::DirectoryNotEmpty && Instant::now() < until, "{error}");
    }
}

pub(super) fn pin(id: &str, content: &str) {
    fs::create_dir_all("/run/netns").unwrap();
    let path = format!("/run/netns/berth-{id}");
    // A test that failed has left its own, perhaps without the mount, which was in another mount namespace.
    if Path::new(&path).exists() {
        let _not_mounted = Command::new("umount").arg(&path).status();
    }
    fs::write(&path, content).unwrap();
    let bound = Command::new("mount").args(["--bind", "/proc/self/ns/net", &path]).status().unwrap();
    assert!(bound.success());
}

pub(super) fn unpin(id: &str) {
    let path = format!("/run/netns/berth-{id}");
    assert!(Command::new("umount").arg(&path).status().unwrap().success());
    fs::remove_file(path).unwrap();
}
