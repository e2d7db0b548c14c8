//! Seccomp: the system calls that a container can make under the profile in its pod spec. Runs as root.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::support::{Berth, container, shell, sleeper, with_security};
use berth_proto::v1::security_profile::ProfileType;
use berth_proto::v1::{Capability, ContainerConfig, Int64Value, PodSandboxStatusRequest, SecurityProfile};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tonic::Code;

fn profile(kind: ProfileType, reference: &Path) -> Option<SecurityProfile> {
    let localhost_ref = reference.display().to_string();
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref })
}

fn with_default(config: ContainerConfig) -> ContainerConfig {
    with_security(config, |security| security.seccomp = profile(ProfileType::RuntimeDefault, Path::new("")))
}

fn with_file(config: ContainerConfig, path: &Path) -> ContainerConfig {
    with_security(config, |security| security.seccomp = profile(ProfileType::Localhost, path))
}

fn write(berth: &Berth, json: &str) -> std::path::PathBuf {
    let path = berth.path("profile.json");
    std::fs::write(&path, json).unwrap();
    path
}

/// Allows everything except a change of file modes.
const NO_CHMOD: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_default_profile_applies_to_every_user() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("seccomp")).await;
    let script =
        "grep -E '^(Seccomp|CapEff|CapPrm|NoNewPrivs):' /proc/self/status; unshare -U true 2>&1; echo $?";
    let plain = with_default(shell("root", script));
    let (_, text) = berth.run_to_end(&pod, plain).await;
    assert!(text.contains("Seccomp:\t2"), "{text}");
    // The default capabilities, without CAP_SYS_ADMIN (bit 21).
    assert!(text.contains("CapEff:\t00000000a80425fb") && text.contains("NoNewPrivs:\t0"), "{text}");
    assert!(text.ends_with("1\n"), "{text}");

    let user = |name, no_new_privs| {
        with_default(with_security(shell(name, script), |security| {
            security.run_as_user = Some(Int64Value { value: 1000 });
            security.no_new_privs = no_new_privs;
        }))
    };
    for (name, no_new_privs) in [("user", false), ("nnp", true)] {
        let (_, text) = berth.run_to_end(&pod, user(name, no_new_privs)).await;
        assert!(text.contains("Seccomp:\t2") && text.contains("CapPrm:\t0000000000000000"), "{text}");
        assert!(text.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privs))), "{text}");
    }
    let (_, text) = berth.run_to_end(&pod, shell("unset", script)).await;
    assert!(text.contains("Seccomp:\t0"), "without a profile there must be no filter: {text}");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_added_capability_allows_its_system_calls() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("caps")).await;
    let script = "mount -t tmpfs none /mnt 2>&1 || mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounted";
    let (code, text) = berth.run_to_end(&pod, with_default(shell("without", script))).await;
    assert!(code != 0 && !text.contains("mounted"), "{text}");
    let added = with_default(with_security(shell("with", script), |security| {
        let add = vec!["SYS_ADMIN".to_owned()];
        security.capabilities = Some(Capability { add_capabilities: add, ..Capability::default() });
        // On a host with AppArmor the default profile forbids mounts.
        security.apparmor = profile(ProfileType::Unconfined, Path::new(""));
    }));
    let (code, text) = berth.run_to_end(&pod, added).await;
    assert_eq!((code, text.contains("mounted")), (0, true), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_localhost_profile_applies_to_execs_and_after_a_restart() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("localhost")).await;
    let path = write(&berth, NO_CHMOD);
    let id = berth.run(&pod, with_file(sleeper("no-chmod"), &path)).await;
    let try_chmod = "touch /f; chmod 600 /f 2>&1; grep Seccomp: /proc/self/status";
    let text = berth.sh(&id, try_chmod).await;
    assert!(text.contains("not supported") && text.ends_with('2'), "{text}");
    berth.kill();
    // The container keeps the profile that it was started with.
    std::fs::remove_file(&path).unwrap();
    berth.restart().await;
    assert_eq!(berth.sh(&id, try_chmod).await, text);

    let missing = with_file(shell("missing", "true"), &path);
    let error = berth.try_create(&pod, missing).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("profile.json"), "{error}");
    let path = write(&berth, r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#);
    let error = berth.try_create(&pod, with_file(shell("broken", "true"), &path)).await.unwrap_err();
    assert!(error.message().contains("SCMP_ACT_MAYBE"), "{error}");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_can_kill_the_process() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("kill")).await;
    let json = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    let path = write(&berth, json);
    let (code, _) = berth.run_to_end(&pod, with_file(container("killed", &["mkdir", "/x"]), &path)).await;
    assert_eq!(code, 128 + 31, "SIGSYS");
    let nothing = write(&berth, r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
    let id = berth.try_create(&pod, with_file(shell("nothing", "true"), &nothing)).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("not permitted"), "execve itself must be refused: {error}");
    assert!(berth.clean().await.is_empty());
}

/// Returns the message that the agent receives about a process, and the descriptor of the filter.
fn receive(agent: &UnixListener) -> (serde_json::Value, std::os::fd::OwnedFd) {
    let (stream, _) = agent.accept().unwrap();
    let mut bytes = [0_u8; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    (serde_json::from_slice(&bytes[..received.bytes]).unwrap(), descriptors.next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notify_agent_receives_the_filter_descriptor() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("notify")).await;
    let socket = berth.path("agent.sock");
    // The profile also covers the calls that would send a descriptor.
    let json = format!(
        r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "{}", "listenerMetadata": "m", "syscalls": [
        {{"names": ["mkdir", "mkdirat", "sendmsg", "sendto"], "action": "SCMP_ACT_NOTIFY"}}]}}"#,
        socket.display()
    );
    let path = write(&berth, &json);
    let id = berth.try_create(&pod, with_file(sleeper("early"), &path)).await.unwrap();
    let error = berth.try_start_container(&id).await.unwrap_err();
    assert!(error.message().contains("agent.sock"), "the start must fail without an agent: {error}");

    let agent = UnixListener::bind(&socket).unwrap();
    let first = std::thread::spawn({
        let agent = agent.try_clone().unwrap();
        move || receive(&agent)
    });
    let id = berth.run(&pod, with_file(sleeper("notified"), &path)).await;
    let (state, _descriptor) = first.join().unwrap();
    assert_eq!((&state["state"]["id"], &state["metadata"]), (&id.as_str().into(), &"m".into()), "{state}");
    let pid = state["pid"].as_i64().unwrap();
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&id), "{cgroup}");

    // An exec has a separate filter. If the agent exits without an answer, the call fails with ENOSYS
    // (seccomp_unotify(2)).
    let exec = std::thread::spawn(move || receive(&agent).0);
    let text = berth.sh(&id, "mkdir /made 2>&1").await;
    let state = exec.join().unwrap();
    assert_eq!(state["state"]["status"], "running");
    assert!(text.contains("not implemented"), "{text}");
    assert!(berth.clean().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_has_a_seccomp_filter_and_no_new_privs() {
    let mut berth = Berth::start().await;
    let pod = berth.run_pod(berth.pod_config("pause")).await;
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod, verbose: true };
    let info = berth.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", info["pid"])).unwrap();
    assert!(status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(berth.clean().await.is_empty());
}
