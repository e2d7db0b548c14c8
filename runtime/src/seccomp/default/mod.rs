//! The profile of `RuntimeDefault`. It allows what Docker's default profile allows, so that programs that run
//! there run here (a test compares the two call by call). It allows what ordinary programs need. It does not allow
//! calls to parts of the kernel that programs in containers do not need and that have been used for escapes.
//! Rejected and unknown calls fail with EPERM. Calls that are newer than all known ones fail with ENOSYS.
//!
//! Some calls require a capability anyway. The profile allows them to containers with this capability, so that
//! adding the capability is enough.

mod calls;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

// Capabilities by number (linux/capability.h).
const DAC_READ_SEARCH: u32 = 2;
const SYS_MODULE: u32 = 16;
const SYS_RAWIO: u32 = 17;
const SYS_CHROOT: u32 = 18;
const SYS_PTRACE: u32 = 19;
const SYS_PACCT: u32 = 20;
const SYS_ADMIN: u32 = 21;
const SYS_BOOT: u32 = 22;
const SYS_NICE: u32 = 23;
const SYS_TIME: u32 = 25;
const SYS_TTY_CONFIG: u32 = 26;
const SYSLOG: u32 = 34;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The calls that each capability adds.
const BY_CAPABILITY: [(u32, &[&str]); 14] = [
    (DAC_READ_SEARCH, &["open_by_handle_at"]),
    (SYS_MODULE, &["delete_module", "finit_module", "init_module"]),
    (SYS_RAWIO, &["ioperm", "iopl"]),
    (SYS_CHROOT, &["chroot"]),
    (SYS_PTRACE, &["kcmp", "pidfd_getfd", "process_madvise"]),
    (SYS_PACCT, &["acct"]),
    (
        SYS_ADMIN,
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "lsm_get_self_attr",
            "lsm_list_modules",
            "lsm_set_self_attr",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "quotactl_fd",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    (SYS_BOOT, &["reboot"]),
    (SYS_NICE, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (SYS_TIME, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (SYS_TTY_CONFIG, &["vhangup"]),
    (SYSLOG, &["syslog"]),
    (PERFMON, &["perf_event_open"]),
    (BPF, &["bpf"]),
];

/// The properties of the profile that depend on the kind of machine.
struct Machine {
    /// Calls that only this machine has.
    calls: &'static [&'static str],
    /// The allowed ABIs: the native one and the older ones that the machine supports.
    architectures: &'static [Arch],
}

#[cfg(any(test, target_arch = "x86_64"))]
const X86_64: Machine = Machine {
    calls: &["arch_prctl", "modify_ldt"],
    architectures: &[Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
};
#[cfg(any(test, target_arch = "aarch64"))]
const AARCH64: Machine = Machine {
    calls: &[
        "arm_fadvise64_64",
        "arm_sync_file_range",
        "breakpoint",
        "cacheflush",
        "set_tls",
        "sync_file_range2",
    ],
    architectures: &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
};
#[cfg(any(test, target_arch = "riscv64"))]
const RISCV64: Machine = Machine { calls: &["riscv_flush_icache"], architectures: &[Arch::ScmpArchRiscv64] };

/// This machine.
#[cfg(target_arch = "x86_64")]
const THIS: Machine = X86_64;
#[cfg(target_arch = "aarch64")]
const THIS: Machine = AARCH64;
#[cfg(target_arch = "riscv64")]
const THIS: Machine = RISCV64;

/// The families of sockets (linux/socket.h, `AF_*`) that may be created: those below 3 (unix and IPv4), then
/// these. Not included are obsolete networks, the kernel's cryptography (38) and virtual machines (40), through
/// which containers have reached the host.
const FAMILIES_BELOW: u64 = 3;
const FAMILIES: [u64; 29] = [
    7, 8, 9, 10, 13, 14, 15, 16, 17, 18, 21, 22, 24, 26, 27, 28, 29, 30, 31, 32, 33, 35, 36, 39, 41, 42, 43,
    44, 45,
];

/// The permitted arguments of personality(2): Linux, or BSD-like signals (8), each with or without UNAME26, and
/// the value that only reads the current one.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// `CLONE_NEW*` of all namespaces (clone(2)) except for time namespaces, which clone cannot create.
const NAMESPACES: u64 = 0x7e02_0000;

/// Returns the profile for a container with these capabilities in its bounding set, as a mask.
///
/// # Errors
/// None: all required fields are set.
pub fn profile(capabilities: u64) -> oci_spec::Result<LinuxSeccomp> {
    profile_on(&THIS, capabilities)
}

fn profile_on(machine: &Machine, capabilities: u64) -> oci_spec::Result<LinuxSeccomp> {
    let has = |number: u32| capabilities >> number & 1 == 1;
    let mut allowed: Vec<&str> = calls::ALLOWED.concat();
    allowed.extend(machine.calls);
    for (_, calls) in BY_CAPABILITY.iter().filter(|(capability, _)| has(*capability)) {
        allowed.extend(*calls);
    }
    let mut rules = vec![allow(&allowed, Vec::new())];
    rules.push(allow(&["socket"], vec![argument(Operator::ScmpCmpLt, FAMILIES_BELOW, None)?]));
    for family in FAMILIES {
        rules.push(allow(&["socket"], vec![argument(Operator::ScmpCmpEq, family, None)?]));
    }
    for personality in PERSONALITIES {
        rules.push(allow(&["personality"], vec![argument(Operator::ScmpCmpEq, personality, None)?]));
    }
    if !has(SYS_ADMIN) {
        rules.push(allow(&["clone"], vec![argument(Operator::ScmpCmpMaskedEq, NAMESPACES, Some(0))?]));
        // The flags of clone3 are in memory, which filters cannot read. Programs fall back to clone.
        rules.push(rule(&["clone3"], Vec::new(), Action::ScmpActErrno, Some(ENOSYS)));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(machine.architectures.to_vec()))
        .set_syscalls(Some(rules));
    Ok(profile)
}

/// The system calls of the pause, and of its init until it runs the pause or reports an error.
const PAUSE_CALLS: [&str; 8] = [
    "rt_sigprocmask",
    "rt_sigtimedwait",
    "rt_sigreturn",
    "wait4",
    "exit_group",
    "restart_syscall",
    "execveat",
    "sendmsg",
];

/// Returns the profile of a pod's pause, which holds the pod's namespaces. It can only wait and exit.
#[must_use]
pub fn pause_profile() -> LinuxSeccomp {
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActKillProcess)
        .set_syscalls(Some(vec![allow(&PAUSE_CALLS, Vec::new())]));
    profile
}

fn allow(names: &[&str], conditions: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    rule(names, conditions, Action::ScmpActAllow, None)
}

fn rule(
    names: &[&str],
    conditions: Vec<LinuxSeccompArg>,
    action: Action,
    errno: Option<u32>,
) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|&name| name.to_owned()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(Some(conditions).filter(|conditions| !conditions.is_empty()));
    rule
}

/// Returns a condition on the first argument.
fn argument(operator: Operator, value: u64, value_two: Option<u64>) -> oci_spec::Result<LinuxSeccompArg> {
    let argument = LinuxSeccompArgBuilder::default().index(0_usize).op(operator).value(value);
    match value_two {
        Some(value_two) => argument.value_two(value_two).build(),
        None => argument.build(),
    }
}

#[cfg(test)]
mod docker;
