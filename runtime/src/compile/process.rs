//! The process of a container or an exec, with its credentials.

use oci_spec::runtime::{Box, Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process};

use super::{CompileError, Result, invalid, path_text, scheduling, text};
use crate::plan::{CapabilityMasks, ProcessPlan, Rlimit, SchedulingPlan};

/// The capabilities in the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Compiles a process of the spec.
///
/// # Errors
/// It has no command, or an invalid value.
pub fn compile_process(process: &Process) -> Result<ProcessPlan> {
    let args = process.args().as_ref().filter(|args| !args.is_empty());
    let args = args.ok_or(CompileError::Missing("process.args"))?;
    let texts = |field: &str, values: &[String]| -> Result<Vec<String>> {
        values.iter().map(|value| text(field, value)).collect()
    };
    let user = process.user();
    let cwd = path_text("process.cwd", process.cwd())?;
    if !cwd.starts_with('/') {
        return Err(invalid("process.cwd", cwd, "is not absolute"));
    }
    let label = |field: &'static str, value: &Option<String>| -> Result<Option<String>> {
        value.as_deref().filter(|value| !value.is_empty()).map(|value| text(field, value)).transpose()
    };
    Ok(ProcessPlan {
        args: texts("process.args", args)?,
        env: texts("process.env", process.env().as_deref().unwrap_or_default())?,
        cwd,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask(),
        capabilities: process.capabilities().as_ref().map(masks).unwrap_or_default(),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        oom_score_adj: process.oom_score_adj(),
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect::<Result<_>>()?,
        seccomp: None,
        apparmor: label("process.apparmorProfile", process.apparmor_profile())?,
        selinux: label("process.selinuxLabel", process.selinux_label())?,
        scheduling: SchedulingPlan {
            scheduler: process.scheduler().as_ref().map(scheduling::scheduler).transpose()?,
            io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
            memory_policy: None,
        },
        terminal_size: process.console_size().filter(|_| process.terminal() == Some(true)).map(terminal_size),
    })
}

/// Returns the terminal's size. A size that is too large is limited to the maximum.
fn terminal_size(size: Box) -> (u16, u16) {
    let side = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
    (side(size.width()), side(size.height()))
}

fn masks(sets: &LinuxCapabilities) -> CapabilityMasks {
    let of = |set: &Option<Capabilities>| set.as_ref().map(mask).unwrap_or_default();
    let ambient = of(sets.ambient());
    CapabilityMasks {
        bounding: of(sets.bounding()),
        effective: of(sets.effective()),
        permitted: of(sets.permitted()),
        // Only an inheritable capability can be ambient (capabilities(7)). Files with inheritable capabilities
        // would grant any others (CVE-2022-24769).
        inheritable: of(sets.inheritable()) & ambient,
        ambient,
    }
}

fn mask(set: &Capabilities) -> u64 {
    let number = |name: String| CAPABILITIES.iter().position(|capability| *capability == name);
    set.iter().filter_map(|capability| number(capability.to_string())).fold(0, |mask, bit| mask | 1 << bit)
}

fn rlimit(limit: &PosixRlimit) -> Result<Rlimit> {
    if limit.soft() > limit.hard() {
        return Err(invalid(
            format!("rlimit {}", limit.typ()),
            limit.soft().to_string(),
            "is above its hard limit",
        ));
    }
    Ok(Rlimit { resource: resource(limit.typ()), soft: limit.soft(), hard: limit.hard() })
}

/// Returns the number of a resource (asm-generic/resource.h).
fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Capability, LinuxCapabilitiesBuilder, ProcessBuilder};

    use super::*;

    fn process(args: &[&str], cwd: &str) -> Process {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        ProcessBuilder::default().args(args).cwd(cwd).build().unwrap()
    }

    #[test]
    fn every_capability_of_the_spec_has_a_number() {
        let all = [
            (Capability::Chown, 0),
            (Capability::SysAdmin, 21),
            (Capability::CheckpointRestore, 40),
            (Capability::NetBindService, 10),
            (Capability::Bpf, 39),
        ];
        for (capability, number) in all {
            assert_eq!(mask(&[capability].into()), 1 << number, "{capability}");
        }
    }

    #[test]
    fn only_ambient_capabilities_are_inheritable() {
        let sets = LinuxCapabilitiesBuilder::default()
            .inheritable(Capabilities::from([Capability::Chown, Capability::Kill]))
            .ambient(Capabilities::from([Capability::Kill]))
            .build()
            .unwrap();
        assert_eq!(masks(&sets).inheritable, 1 << 5);
    }

    #[test]
    fn errors_name_the_invalid_field() {
        assert_eq!(compile_process(&process(&[], "/")), Err(CompileError::Missing("process.args")));
        let error = compile_process(&process(&["a\0b"], "/")).unwrap_err();
        assert!(error.to_string().contains("process.args"), "{error}");
        assert!(compile_process(&process(&["a"], "relative")).is_err());
    }
}
