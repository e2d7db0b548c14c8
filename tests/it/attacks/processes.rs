//! Processes that enter a container, attacked by processes that are already in it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::*;
use sha2::Digest as _;

use crate::attacks::lab::{
    Lab, PROGRAMS, SECRET, STOP, armed, attack, capable, eventually, masked, of_image, programs,
    sharing_pids, times, volume, with,
};
use crate::attacks::lab::{Layer, among};
use crate::support::{container, leftovers, shell, sleeper, with_security};

/// Adds the default seccomp profile.
fn filtered(config: ContainerConfig) -> ContainerConfig {
    let profile = SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
    with_security(config, |security| security.seccomp = Some(profile))
}

/// Returns a container that can trace every process in its view.
fn spy(name: &str, canary: &Path) -> ContainerConfig {
    let secret = canary.join("secret").display().to_string();
    filtered(capable(attack(name, "spy", &[&secret]), &["SYS_PTRACE"]))
}

fn assert_nothing_seen(output: &str, at_least: usize) {
    assert!(output.contains(" hits 0\n"), "{output}");
    let seen = output.lines().find_map(|line| line.strip_prefix("seen "));
    let seen: usize = seen.and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    assert!(seen >= at_least, "the spy saw only {seen} processes: {output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2016_9962_a_container_cannot_inspect_an_exec() {
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
    let output = lab.stop_attacker(&spy).await;
    assert_nothing_seen(&output, execs / 20);
    lab.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2016_9962_a_container_cannot_inspect_the_start_of_another() {
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
        lab.wait_exited(&id).await;
        lab.remove_container(&id).await;
        let id = lab.run(&other, among(plain, &target)).await;
        lab.wait_exited(&id).await;
        lab.remove_container(&id).await;
    }
    for spy in [spy_of_pod, target] {
        let output = lab.stop_attacker(&spy).await;
        assert_nothing_seen(&output, starts / 10);
    }
    lab.finish().await;
}

fn sum(path: &Path) -> [u8; 32] {
    sha2::Sha256::digest(fs::read(path).unwrap()).into()
}

/// Through `/proc/self/exe` the runtime's own program becomes a process of the container, which another process there
/// can open.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_5736_a_container_cannot_change_the_runtimes_program() {
    let (mut lab, pod) = Lab::with_pod().await;
    let program = Path::new("/proc").join(lab.keeper(&pod).to_string()).join("exe");
    let daemon = Path::new("/proc").join(lab.pid().as_raw_nonzero().to_string()).join("exe");
    let before = (sum(&program), sum(&daemon), fs::metadata(&daemon).unwrap().mode());
    let config = capable(attack("attacker", "overwrite", &[]), &["SYS_PTRACE", "DAC_OVERRIDE", "FOWNER"]);
    let attacker = lab.attacker(&pod, config).await;
    for path in ["/proc/self/exe", "/proc/1/exe", "/proc/thread-self/exe"] {
        for _ in 0..times(40, 8) {
            // The result does not matter, but the exec ends: the program has no connection to the daemon.
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
    let output = lab.stop_attacker(&attacker).await;
    assert!(output.contains(" writes 0 "), "{output}");
    assert_eq!((sum(&program), sum(&daemon), fs::metadata(&daemon).unwrap().mode()), before, "{output}");
    // Even if its mode or owner was changed: new pods start, with the same program.
    let next = lab.pod("next").await;
    let id = lab.run(&next, sleeper("c")).await;
    assert_eq!(lab.sh(&id, "echo works").await, "works");
    assert_eq!(sum(&Path::new("/proc").join(lab.keeper(&next).to_string()).join("exe")), before.0);
    lab.finish().await;
}

/// Prints the working folder and the open files of a process, as it sees them.
const LOOK: &str =
    "ls -l /proc/self/fd 2>/dev/null | sed -n 's/.* -> //p'; echo at $(readlink /proc/self/cwd)";

fn assert_only_own_files(output: &str, canary: &str) {
    for line in output.lines() {
        let own = ["/proc/", "pipe:", "/dev/null", "at /"].iter().any(|start| line.starts_with(start));
        assert!(own && !line.contains(canary), "{line:?} is open in {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_21626_no_descriptor_or_working_folder_of_the_host_leaks() {
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
        // The container may be refused, or it may start in a folder inside the container.
        let Ok(id) = lab.try_create(&pod, config).await else { continue };
        if lab.try_start_container(&id).await.is_ok() {
            lab.wait_exited(&id).await;
            let output = lab.log(&id).await;
            assert!(!output.contains(SECRET), "{folder}: {output}");
            assert_only_own_files(&output, &canary);
        }
        // The streams of this container would change the descriptor numbers of the next one.
        lab.remove_container(&id).await;
    }
    // The working folder of a running container becomes such a link. An exec must not leave the container.
    let mut config = sleeper("running");
    config.working_dir = "/work".to_owned();
    let id = lab.run(&pod, config).await;
    assert_only_own_files(&lab.sh(&id, LOOK).await, &canary);
    for number in 0..16 {
        let link = format!("cd /; rm -rf /work; ln -s /proc/self/fd/{number} /work");
        // The shell of an exec would already start in the link's target, so nsenter changes the folder.
        let pid = lab.info(&id).await["pid"].to_string();
        let entered = Command::new("nsenter").args(["-t", &pid, "-m", "-r", "sh", "-c", &link]).status();
        assert!(entered.unwrap().success());
        if let Ok(answer) = lab.exec(&id, &["sh", "-c", &read], 20).await {
            let output = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert!(!output.contains(SECRET), "{output}");
            assert_only_own_files(&output, &canary);
        }
    }
    lab.finish().await;
}

/// Neither the daemon nor a keeper loads libraries of a container or uses its environment.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_14271_the_host_loads_no_libraries_of_an_image() {
    let mut lab = Lab::start().await;
    let pod = lab.pod("pod").await;
    let mut image = Layer::default().folder("lib").file("etc/nsswitch.conf", "passwd: evil\ngroup: evil\n");
    for name in ["lib/libnss_evil.so.2", "lib/libnss_files.so.2", "lib/evil.so"] {
        image = image.file(name, "not a library, so loading it would fail");
    }
    let config =
        serde_json::json!({ "Env": ["PATH=/bin", "LD_LIBRARY_PATH=/lib", "GCONV_PATH=/lib"], "User": "web" });
    let image = lab.load("evil", image, config).await;
    let id = lab.run(&pod, of_image(sleeper("c"), &image)).await;
    assert_eq!(lab.sh(&id, "id -u").await, "1000", "user names must be looked up without NSS libraries");
    for pid in [lab.keeper(&pod), lab.pid().as_raw_nonzero().get()] {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let root = lab.path("root").display().to_string();
        assert!(!maps.contains(&root) && !maps.contains("evil"), "{maps}");
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("GCONV_PATH"));
    }
    lab.finish().await;
}

/// A device hook is a program of the host. The image's environment must not reach it (NVIDIA Container Toolkit).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_23266_a_hook_does_not_have_the_environment_of_the_image() {
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

/// A session keyring belongs to the processes of one container: not to other pods, and not to the runtime.
#[tokio::test(flavor = "multi_thread")]
async fn session_keyrings_are_separate_for_each_container() {
    let (mut lab, pod) = Lab::with_pod().await;
    let program = format!("{PROGRAMS}/keyring");
    let owner = container("owner", &[&program, "add", "of-the-owner", "value-of-the-key"]);
    let owner = lab.run(&pod, armed(owner)).await;
    lab.wait_for_log(&owner, "added").await;
    let host = Command::new(programs().join("keyring")).arg("id").output().unwrap();
    let host = String::from_utf8_lossy(&host.stdout).trim().to_owned();
    assert!(host.parse::<i64>().unwrap() > 0, "{host}");

    let other = lab.pod("other").await;
    for (pod, name) in [(&pod, "beside"), (&other, "elsewhere")] {
        let script = format!("{program} look of-the-owner; {program} id");
        let (_, output) = lab.run_to_end(pod, armed(shell(name, &script))).await;
        assert!(output.starts_with("none: "), "a container of {name} has the key: {output}");
        assert!(!output.lines().any(|line| line == host), "{name} has the session keyring of the host");
    }
    // An exec of the container has the same keyring.
    let found = lab.exec(&owner, &[&program, "look", "of-the-owner"], 0).await.unwrap();
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.contains("found: value-of-the-key"), "{found}");
    lab.finish().await;
}

/// A process with the same user can stop an exec that enters the PID namespace. The exec must end nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn an_exec_stopped_by_the_container_leaves_nothing() {
    let (mut lab, pod) = Lab::with_pod().await;
    let stopper = lab.attacker(&pod, capable(attack("stopper", "stopper", &[]), &["KILL"])).await;
    let keeper = lab.keeper(&pod);
    let cgroup = lab.info(&stopper).await["cgroup"].as_str().unwrap().to_owned();
    let execs = || {
        let folders = leftovers::cgroup_folders(&cgroup);
        folders.iter().filter(|folder| folder.to_string_lossy().contains("/exec-")).count()
    };
    drop(lab.exec(&stopper, &["true"], 1).await);
    eventually("the cgroup of the first exec is left", || execs() == 0).await;
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
    let output = lab.stop_attacker(&stopper).await;
    assert!(output.contains("stopped "), "{output}");
    eventually("cgroups of execs are left", || execs() == 0).await;
    let left = || (Lab::descriptors(keeper), Lab::descriptors(lab.pid().as_raw_nonzero().get()));
    eventually("descriptors of execs are left", || left().0 <= before.0 && left().1 <= before.1).await;
    lab.finish().await;
}

/// The first process of a container exits while another process enters its PID namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exits_during_an_exec_leaves_nothing() {
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
        lab.wait_exited(&id).await;
        lab.remove_container(&id).await;
    }
    let left = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sleep\x005779\0"))
    });
    assert_eq!(left.count(), 0, "processes of an ended container are left");
    assert!(!Path::new(STOP).exists(), "the stop file must not be created on the host");
    lab.finish().await;
}
