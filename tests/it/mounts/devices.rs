//! Devices of the host in containers.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn devices_allow_only_the_requested_access() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("devices")).await;
    let device = |host: &str, inside: &str, permissions: &str| Device {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    let script = "head -c 0 /dev/log-of-kernel && echo readable; (echo x >/dev/log-of-kernel) 2>&1; head -c1 /dev/kmsg";
    let mut config = with_security(shell("c", script), |security| {
        let add = vec!["SYSLOG".to_owned()];
        security.capabilities = Some(Capability { add_capabilities: add, ..Capability::default() });
    });
    config.devices = vec![device("/dev/kmsg", "/dev/log-of-kernel", "r")];
    let (code, log) = berth.run_to_end(&pod, config).await;
    assert!(code != 0 && log.contains("readable") && log.contains("not permitted"), "{log}");
    let mut config = shell("nothing", "true");
    config.devices = vec![device("/etc/passwd", "/dev/x", "rwm")];
    let error = berth.try_create(&pod, config).await.unwrap_err();
    assert!(error.message().contains("/etc/passwd"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_replaces_only_special_files() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("places")).await;
    let host = berth.path("volume");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("data"), "precious").unwrap();
    std::os::unix::fs::symlink("data", host.join("link")).unwrap();
    run("mkfifo", &[host.join("pipe").to_str().unwrap()]);
    let with_device_at = |name: &str, inside: &str| {
        let mut config = shell(name, &format!("head -c 3 {inside} | wc -c"));
        config.mounts = vec![volume(&host, "/volume")];
        config.devices = vec![Device {
            host_path: "/dev/zero".to_owned(),
            container_path: inside.to_owned(),
            permissions: "rw".to_owned(),
        }];
        config
    };
    assert_eq!(berth.run_to_end(&pod, with_device_at("pipe", "/volume/pipe")).await, (0, "3\n".to_owned()));
    for name in ["data", "link"] {
        let path = format!("/volume/{name}");
        let error = berth.try_create(&pod, with_device_at(name, &path)).await.unwrap_err();
        assert!(error.message().contains(&path), "{error}");
    }
    assert_eq!(fs::read_to_string(host.join("link")).unwrap(), "precious");
    assert_eq!(berth.clean().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_path_may_be_a_link_or_a_folder_of_devices() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("nodes")).await;
    let folder = berth.path("nodes");
    fs::create_dir_all(folder.join("deep")).unwrap();
    fs::write(folder.join("text"), "no device").unwrap();
    let node = |path: PathBuf, minor: &str| run("mknod", &[path.to_str().unwrap(), "c", "1", minor]);
    node(folder.join("kernel"), "11");
    node(folder.join("deep/zero"), "5");
    std::os::unix::fs::symlink("/dev/full", berth.path("link")).unwrap();
    let device = |host: &Path, inside: &str, permissions: &str| Device {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        permissions: permissions.to_owned(),
    };
    let mut config = shell(
        "c",
        "cd /dev/things && find . -type c | sort; stat -c %t:%T kernel deep/zero /dev/linked; \
         head -c 2 deep/zero | wc -c; head -c 1 kernel 2>&1 | grep -c 'not permitted'",
    );
    // One request allows the creation of the node of the kernel's log. No request allows to read it.
    config.devices =
        vec![device(&folder, "/dev/things", "m"), device(&berth.path("link"), "/dev/linked", "rw")];
    let (_, log) = berth.run_to_end(&pod, config).await;
    let expected = "./deep/zero\n./kernel\n1:b\n1:5\n1:7\n2\n1\n";
    assert_eq!(log, expected);
    assert!(berth.clean().await.is_empty());
}
