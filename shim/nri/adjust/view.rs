//! A container as plugins see it: the parts that come from its spec.

use berth_proto::nri::{
    Container, Hook, Hooks, LinuxContainer, LinuxDevice, LinuxNamespace, Mount, OptionalFileMode,
    OptionalInt, OptionalUInt32, PosixRlimit, User,
};
use oci_spec::runtime::{Hook as OciHook, Linux, Process, Spec};

use super::resources;

/// Returns a container with the parts that come from its spec.
#[must_use]
pub fn container_of(spec: &Spec) -> Container {
    let mut container = Container {
        annotations: spec.annotations().clone().unwrap_or_default(),
        mounts: spec.mounts().iter().flatten().map(mount_of).collect(),
        hooks: spec.hooks().as_ref().map(hooks_of),
        linux: spec.linux().as_ref().map(linux_of),
        ..Container::default()
    };
    if let Some(process) = spec.process() {
        add_process(&mut container, process);
    }
    container
}

fn add_process(container: &mut Container, process: &Process) {
    container.args = process.args().clone().unwrap_or_default();
    container.env = process.env().clone().unwrap_or_default();
    let limits = process.rlimits().iter().flatten().map(|limit| PosixRlimit {
        r#type: limit.typ().to_string(),
        hard: limit.hard(),
        soft: limit.soft(),
    });
    container.rlimits = limits.collect();
    let user = process.user();
    container.user = Some(User {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
    });
    if let Some(linux) = &mut container.linux {
        linux.oom_score_adj = process.oom_score_adj().map(|score| OptionalInt { value: score.into() });
    }
}

fn mount_of(mount: &oci_spec::runtime::Mount) -> Mount {
    Mount {
        destination: mount.destination().display().to_string(),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_ref().map(|source| source.display().to_string()).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

#[allow(deprecated, reason = "prestart hooks are deprecated in the specification, but still valid")]
fn hooks_of(hooks: &oci_spec::runtime::Hooks) -> Hooks {
    let list = |list: &Option<Vec<OciHook>>| list.iter().flatten().map(hook_of).collect();
    Hooks {
        prestart: list(hooks.prestart()),
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook_of(hook: &OciHook) -> Hook {
    Hook {
        path: hook.path().display().to_string(),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| OptionalInt { value }),
    }
}

fn linux_of(linux: &Linux) -> LinuxContainer {
    let namespaces = linux.namespaces().iter().flatten().map(|namespace| LinuxNamespace {
        r#type: namespace.typ().to_string(),
        path: namespace.path().as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
    });
    let devices = linux.devices().iter().flatten().map(|device| LinuxDevice {
        path: device.path().display().to_string(),
        r#type: device.typ().as_str().to_owned(),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
        uid: device.uid().map(|value| OptionalUInt32 { value }),
        gid: device.gid().map(|value| OptionalUInt32 { value }),
    });
    LinuxContainer {
        namespaces: namespaces.collect(),
        devices: devices.collect(),
        resources: linux.resources().as_ref().map(resources::view),
        cgroups_path: linux
            .cgroups_path()
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        sysctl: linux.sysctl().clone().unwrap_or_default(),
        ..LinuxContainer::default()
    }
}
