//! Processes on their way into a container: what those that are there already can do to them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::*;
use sha2::Digest as _;

use crate::lab::{
    Lab, PROGRAMS, SECRET, STOP, armed, attack, capable, eventually, masked, of_image, programs,
    sharing_pids, times, volume, with,
};
use crate::lab::{Layer, among};
use crate::support::{container, leftovers, secured, shell, sleeper};

/// With a filter of system calls.
fn filtered(config: ContainerConfig) -> ContainerConfig {
    let profile = SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
    secured(config, |security| security.seccomp = Some(profile))
}

/// May trace whatever it sees.
fn spy(name: &str, canary: &Path) -> ContainerConfig {
    let secret = canary.join("secret").display().to_string();
    filtered(capable(attack(name, "spy", &[&secret]), &["SYS_PTRACE"]))
}

fn has_seen_nothing(said: &str, at_least: usize) {
    assert!(said.contains(" hits 0\n"), "{said}");
    let seen = said.lines().find_map(|line| line.strip_prefix("seen "));
    let seen: usize = seen.and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!(seen >= at_least, "the spy has seen {seen} processes only: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2016_9962_a_container_looks_into_an_exec() {
    let (mut lab, pod) = Lab::with_pod().await;
    let config = spy("spy", &lab.canary());
    let spy = lab.attacker(&pod, config).await;
    let execs = times(2000, 500);
    for _ in 0..execs / 5 {
        let client = lab.runtime.clone();
        let runs = (0..5).map(|_| {
            let (mut client, container_id) = (client.clone(), spy.clone());
            async move {
                let cmd = vec!["true".to_owned()];
                let request = ExecSyncRequest { container_id, cmd, timeout: 0 };
                client.exec_sync(request).await.unwrap().into_inner().exit_code
            }
        });
        let codes = futures_util::future::join_all(runs).await;
        assert_eq!(codes, [0; 5]);
    }
    let said = lab.call_off(&spy).await;
    has_seen_nothing(&said, execs / 20);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2016_9962_a_container_looks_into_the_start_of_others() {
    let mut lab = Lab::start().await;
    let mut config = lab.pod_config("shared");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    let pod = lab.run_pod(config).await;
    let config = sharing_pids(spy("spy", &lab.canary()));
    let spy_of_pod = lab.attacker(&pod, config).await;
    let other = lab.pod("target").await;
    let config = spy("target", &lab.canary());
    let target = lab.attacker(&other, config).await;
    let starts = times(200, 30);
    for number in 0..starts {
        let name = format!("c{number}");
        let plain = filtered(masked(shell(&name, "true")));
        let id = lab.run(&pod, sharing_pids(plain.clone())).await;
        lab.ended(&id).await;
        lab.remove_container(&id).await;
        let id = lab.run(&other, among(plain, &target)).await;
        lab.ended(&id).await;
        lab.remove_container(&id).await;
    }
    for spy in [spy_of_pod, target] {
        let said = lab.call_off(&spy).await;
        has_seen_nothing(&said, starts / 10);
    }
    lab.finish().await;
}

fn sum(path: &Path) -> [u8; 32] {
    sha2::Sha256::digest(fs::read(path).unwrap()).into()
}

/// By `/proc/self/exe` the runtime's own program becomes one of the container, which can then be opened there.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_5736_a_container_changes_the_runtimes_program() {
    let (mut lab, pod) = Lab::with_pod().await;
    let program = Path::new("/proc").join(lab.keeper(&pod).to_string()).join("exe");
    let daemon = Path::new("/proc").join(lab.pid().as_raw_nonzero().to_string()).join("exe");
    let before = (sum(&program), sum(&daemon), fs::metadata(&daemon).unwrap().mode());
    let config = capable(attack("attacker", "overwrite", &[]), &["SYS_PTRACE", "DAC_OVERRIDE", "FOWNER"]);
    let attacker = lab.attacker(&pod, config).await;
    for path in ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"] {
        for _ in 0..times(40, 8) {
            // Whatever becomes of it, it ends: the runtime's program finds nothing there that it could talk to.
            drop(lab.exec(&attacker, &[path], 5).await);
        }
    }
    let image = Layer::default().symlink("entry", "/proc/self/exe");
    let image = lab.load("self", image, serde_json::json!({ "Entrypoint": ["/entry"] })).await;
    for number in 0..4 {
        let config = among(of_image(container(&format!("self{number}"), &[]), &image), &attacker);
        if let Ok(id) = lab.try_create(&pod, config).await {
            drop(lab.try_start_container(&id).await);
            lab.stop_container(&id, 0).await;
        }
    }
    let said = lab.call_off(&attacker).await;
    assert!(said.contains(" writes 0 "), "{said}");
    assert_eq!((sum(&program), sum(&daemon), fs::metadata(&daemon).unwrap().mode()), before, "{said}");
    // Whatever it has done to its mode or its owner: the next pods start, and with the same program.
    let next = lab.pod("next").await;
    let id = lab.run(&next, sleeper("c")).await;
    assert_eq!(lab.sh(&id, "echo works").await, "works");
    assert_eq!(sum(&Path::new("/proc").join(lab.keeper(&next).to_string()).join("exe")), before.0);
    lab.finish().await;
}

/// Where a process is, and what it has open, as it sees it itself.
const LOOK: &str =
    "ls -l /proc/self/fd 2>/dev/null | sed -n 's/.* -> //p'; echo at $(readlink /proc/self/cwd)";

fn has_only_its_own(said: &str, canary: &str) {
    for line in said.lines() {
        let own = ["/proc/", "pipe:", "/dev/null", "at /"].iter().any(|start| line.starts_with(start));
        assert!(own && !line.contains(canary), "{line:?} is open in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_21626_leaked_descriptors_and_working_folders() {
    let (mut lab, pod) = Lab::with_pod().await;
    let canary = lab.canary_text();
    let read = format!("{LOOK}; cat ./{canary}/secret ../../../../../../..{canary}/secret 2>/dev/null");
    let links = (0..48).map(|number| format!("/proc/self/fd/{number}"));
    let others = ["/proc/self/cwd", "/proc/1/cwd", "/proc/self/root/..", "/link", "/proc/thread-self/fd/7"];
    let image = Layer::default().symlink("link", "/proc/self/fd/8");
    let image = lab.load("link", image, serde_json::json!({ "Env": ["PATH=/bin"] })).await;
    for (number, folder) in links.chain(others.map(str::to_owned)).enumerate() {
        let mut config = of_image(shell(&format!("c{number}"), &read), &image);
        config.working_dir = folder.clone();
        // Refused, or in a folder of the container: both are sound.
        let Ok(id) = lab.try_create(&pod, config).await else { continue };
        if lab.try_start_container(&id).await.is_ok() {
            lab.ended(&id).await;
            let said = lab.log(&id).await;
            assert!(!said.contains(SECRET), "{folder}: {said}");
            has_only_its_own(&said, &canary);
        }
        // Its streams would move the descriptors of the next one to other numbers.
        lab.remove_container(&id).await;
    }
    // The folder of a running container becomes such a link: what is executed there goes nowhere else.
    let mut config = sleeper("running");
    config.working_dir = "/work".to_owned();
    let id = lab.run(&pod, config).await;
    has_only_its_own(&lab.sh(&id, LOOK).await, &canary);
    for number in 0..16 {
        let link = format!("cd /; rm -rf /work; ln -s /proc/self/fd/{number} /work");
        // Its shell is already where the link may lead: by its init.
        let pid = lab.info(&id).await["pid"].to_string();
        let entered = Command::new("nsenter").args(["-t", &pid, "-m", "-r", "sh", "-c", &link]).status();
        assert!(entered.unwrap().success());
        if let Ok(answer) = lab.exec(&id, &["sh", "-c", &read], 20).await {
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(!said.contains(SECRET), "{said}");
            has_only_its_own(&said, &canary);
        }
    }
    lab.finish().await;
}

/// The libraries and the environment of a container are its own: neither the daemon nor a keeper loads any of them.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_14271_the_host_loads_libraries_of_an_image() {
    let mut lab = Lab::start().await;
    let pod = lab.pod("pod").await;
    let mut image = Layer::default().folder("lib").file("etc/nsswitch.conf", "passwd: evil\ngroup: evil\n");
    for name in ["lib/libnss_evil.so.2", "lib/libnss_files.so.2", "lib/evil.so"] {
        image = image.file(name, "no library, which is told where it is loaded");
    }
    let config =
        serde_json::json!({ "Env": ["PATH=/bin", "LD_LIBRARY_PATH=/lib", "GCONV_PATH=/lib"], "User": "web" });
    let image = lab.load("evil", image, config).await;
    let id = lab.run(&pod, of_image(sleeper("c"), &image)).await;
    assert_eq!(lab.sh(&id, "id -u").await, "1000", "names are looked up without them");
    for pid in [lab.keeper(&pod), lab.pid().as_raw_nonzero().get()] {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let root = lab.path("root").display().to_string();
        assert!(!maps.contains(&root) && !maps.contains("evil"), "{maps}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("GCONV_PATH"));
    }
    lab.finish().await;
}

/// A hook of a device is a program of the host: the image's environment must not be its own (NVIDIA Container Toolkit).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_23266_a_hook_has_the_environment_of_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let mut lab = Lab::start_with(&format!("cdi_spec_dirs = [{:?}]", folder.path())).await;
    lab.load_image().await;
    let pod = lab.pod("pod").await;
    let seen = lab.path("seen");
    let device = format!(
        "cdiVersion: 0.6.0\nkind: vendor.example/gpu\ndevices:\n- name: one\n  containerEdits:\n    hooks:\n    \
         - {{hookName: createContainer, path: /bin/sh, args: [sh, -c, 'tr \"\\\\0\" \"\\\\n\" </proc/self/environ >{}'], \
         env: ['VENDOR=yes']}}\n",
        seen.display()
    );
    fs::write(folder.path().join("vendor.yaml"), device).unwrap();
    let image = Layer::default().file("evil.so", "no library");
    let image = lab.load("evil", image, serde_json::json!({ "Env": ["LD_PRELOAD=/proc/self/cwd/evil.so"] }));
    let image = image.await;
    let mut config = of_image(container("c", &["/bin/sh", "-c", "true"]), &image);
    config.envs = vec![KeyValue { key: "LD_AUDIT".to_owned(), value: b"/evil.so".to_vec() }];
    config.cdi_devices = vec![CdiDevice { name: "vendor.example/gpu=one".to_owned() }];
    lab.try_create(&pod, config).await.unwrap();
    let environment = fs::read_to_string(&seen).unwrap();
    assert!(environment.contains("VENDOR=yes") && !environment.contains("LD_"), "{environment}");
    fs::remove_file(&seen).unwrap();
    lab.finish().await;
}

/// A key in a session keyring is for the processes of one container: not for another pod's, not for the runtime.
#[tokio::test(flavor = "multi_thread")]
async fn session_keyrings_of_containers_are_their_own() {
    let (mut lab, pod) = Lab::with_pod().await;
    let program = format!("{PROGRAMS}/keyring");
    let owner = container("owner", &[&program, "add", "of-the-owner", "value-of-the-key"]);
    let owner = lab.run(&pod, armed(owner)).await;
    lab.logged(&owner, "added").await;
    let host = Command::new(programs().join("keyring")).arg("id").output().unwrap();
    let host = String::from_utf8_lossy(&host.stdout).trim().to_owned();
    assert!(host.parse::<i64>().unwrap() > 0, "{host}");

    let other = lab.pod("other").await;
    for (pod, name) in [(&pod, "beside"), (&other, "elsewhere")] {
        let script = format!("{program} look of-the-owner; {program} id");
        let (_, said) = lab.run_to_end(pod, armed(shell(name, &script))).await;
        assert!(said.starts_with("none: "), "a container of {name} has the key: {said}");
        assert!(!said.lines().any(|line| line == host), "{name} has the session keyring of the host");
    }
    // Whom it executes belongs to it.
    let found = lab.exec(&owner, &[&program, "look", "of-the-owner"], 0).await.unwrap();
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("found: value-of-the-key"), "{found}");
    lab.finish().await;
}

/// Whoever has the same user may stop a process on its way into its PID namespace: its exec must end all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_on_its_way_leaves_nothing() {
    let (mut lab, pod) = Lab::with_pod().await;
    let stopper = lab.attacker(&pod, capable(attack("stopper", "stopper", &[]), &["KILL"])).await;
    let keeper = lab.keeper(&pod);
    let cgroup = lab.info(&stopper).await["cgroup"].as_str().unwrap().to_owned();
    let execs = || {
        let folders = leftovers::cgroup_folders(&cgroup);
        folders.iter().filter(|folder| folder.to_string_lossy().contains("/exec-")).count()
    };
    drop(lab.exec(&stopper, &["true"], 1).await);
    eventually("the first exec is over", || execs() == 0).await;
    let before = (Lab::descriptors(keeper), Lab::descriptors(lab.pid().as_raw_nonzero().get()));
    let client = lab.runtime.clone();
    for _ in 0..times(20, 4) {
        let runs = (0..5).map(|_| {
            let (mut client, container_id) = (client.clone(), stopper.clone());
            async move {
                let request = ExecSyncRequest { container_id, cmd: vec!["true".to_owned()], timeout: 1 };
                drop(client.exec_sync(request).await);
            }
        });
        futures_util::future::join_all(runs).await;
    }
    let said = lab.call_off(&stopper).await;
    assert!(said.contains("stopped "), "{said}");
    eventually("no exec is left", || execs() == 0).await;
    let left = || (Lab::descriptors(keeper), Lab::descriptors(lab.pid().as_raw_nonzero().get()));
    eventually("no descriptor is left", || left().0 <= before.0 && left().1 <= before.1).await;
    lab.finish().await;
}

/// A process of a container that ends while another enters its PID namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_under_an_exec_leaves_nothing() {
    let (mut lab, pod) = Lab::with_pod().await;
    for number in 0..times(50, 8) {
        let folder = lab.folder("flag");
        let script = "until [ -e /flag/go ]; do :; done; rm /flag/go";
        let config = with(shell(&format!("c{number}"), script), volume(&folder, "/flag"));
        let id = lab.run(&pod, config).await;
        let runs = (0..4).map(|_| {
            let (mut client, container_id) = (lab.runtime.clone(), id.clone());
            async move {
                let cmd = ["sh", "-c", "sleep 5779 & exec sleep 5779"].map(str::to_owned).to_vec();
                let request = ExecSyncRequest { container_id, cmd, timeout: 1 };
                drop(client.exec_sync(request).await);
            }
        });
        let end = async { fs::write(folder.join("go"), "").unwrap() };
        futures_util::future::join(futures_util::future::join_all(runs), end).await;
        lab.ended(&id).await;
        lab.remove_container(&id).await;
    }
    let left = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x005779\0"))
    });
    assert_eq!(left.count(), 0, "processes of a container that has ended");
    assert!(!Path::new(STOP).exists(), "attackers are stopped in their containers");
    lab.finish().await;
}
