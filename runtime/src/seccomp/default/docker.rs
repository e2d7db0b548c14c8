//! Compares the default profile with Docker's, call by call: both must allow the same. The environment variable
//! `BERTH_DOCKER_PROFILE` contains the path of Docker's profile (`tests/run` gets it from the module
//! github.com/moby/profiles/seccomp). Without it nothing is compared.

use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};
use serde_json::{Value, json};

use super::super::machine::{self, ARM_PRIVATE, Abi};
use super::super::tests::{instructions_on, run};
use super::*;

/// The capabilities that a profile's conditions can test, by Docker's names.
const CAPABILITIES: [(&str, u32); 15] = [
    ("CAP_DAC_READ_SEARCH", DAC_READ_SEARCH),
    ("CAP_SYS_MODULE", SYS_MODULE),
    ("CAP_SYS_RAWIO", SYS_RAWIO),
    ("CAP_SYS_CHROOT", SYS_CHROOT),
    ("CAP_SYS_PTRACE", SYS_PTRACE),
    ("CAP_SYS_PACCT", SYS_PACCT),
    ("CAP_SYS_ADMIN", SYS_ADMIN),
    ("CAP_SYS_BOOT", SYS_BOOT),
    ("CAP_SYS_NICE", SYS_NICE),
    ("CAP_SYS_TIME", SYS_TIME),
    ("CAP_SYS_TTY_CONFIG", SYS_TTY_CONFIG),
    ("CAP_SYSLOG", SYSLOG),
    ("CAP_PERFMON", PERFMON),
    ("CAP_BPF", BPF),
    ("CAP_NET_ADMIN", 12),
];

/// A kind of machine with its ABIs and Docker's names of them.
struct Kind {
    machine: Machine,
    abis: &'static [Abi],
    names: &'static [&'static str],
}

/// All kinds. Compiling a filter does not need a machine of its kind.
const KINDS: [Kind; 3] = [
    Kind { machine: X86_64, abis: &machine::x86_64::ABIS, names: &["amd64", "x86", "x32"] },
    Kind { machine: AARCH64, abis: &machine::aarch64::ABIS, names: &["arm64", "arm"] },
    Kind { machine: RISCV64, abis: &machine::riscv64::ABIS, names: &["riscv64"] },
];

/// Returns whether the container or machine has one of the values in a condition's field. Returns `None` if the
/// field is absent.
fn any(condition: &Value, field: &str, has: impl Fn(&str) -> bool) -> Option<bool> {
    let list = condition.get(field)?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).any(has))
}

/// Converts Docker's profile for a container with these capabilities to the OCI spec.
fn dockers(docker: &Value, kind: &Kind, capabilities: u64) -> LinuxSeccomp {
    let has = |name: &str| {
        let entry = CAPABILITIES.iter().find(|(capability, _)| *capability == name);
        let (_, number) =
            entry.unwrap_or_else(|| panic!("{name} is not among the capabilities of this test"));
        capabilities >> number & 1 == 1
    };
    let applies = |rule: &&Value| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        any(includes, "caps", has).unwrap_or(true)
            && any(includes, "arches", |arch| kind.names.contains(&arch)).unwrap_or(true)
            && !any(excludes, "caps", has).unwrap_or(false)
            && !any(excludes, "arches", |arch| kind.names.contains(&arch)).unwrap_or(false)
    };
    let rules: Vec<LinuxSyscall> = docker["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(applies)
        .map(|rule| serde_json::from_value(rule.clone()).unwrap())
        .collect();
    let mut profile: LinuxSeccomp = serde_json::from_value(json!({
        "defaultAction": docker["defaultAction"],
        "defaultErrnoRet": docker["defaultErrnoRet"],
    }))
    .unwrap();
    profile.set_architectures(Some(kind.machine.architectures.to_vec())).set_syscalls(Some(rules));
    profile
}

/// Returns values of an argument at which the result of either profile may change.
fn samples(profiles: [&LinuxSeccomp; 2]) -> BTreeSet<u64> {
    let rules = profiles.into_iter().flat_map(|profile| profile.syscalls().iter().flatten());
    let arguments = rules.flat_map(|rule| rule.args().iter().flatten());
    let around = |value: u64| [value.wrapping_sub(1), value, value.wrapping_add(1), value | 1 << 40];
    let mut samples: BTreeSet<u64> = arguments
        .flat_map(|argument| {
            around(argument.value()).into_iter().chain(around(argument.value_two().unwrap_or(0)))
        })
        .collect();
    samples.extend((0..64).map(|bit| 1_u64 << bit));
    samples
}

fn compare(docker: &Value, kind: &Kind, capabilities: u64) -> usize {
    let (ours, theirs) =
        (profile_on(&kind.machine, capabilities).unwrap(), dockers(docker, kind, capabilities));
    let programs = [&ours, &theirs].map(|profile| instructions_on(profile, kind.abis).unwrap());
    let answers = |abi: &Abi, number: u32, argument: u64| {
        let [ours, dockers] =
            programs.each_ref().map(|program| run(program, abi.audit, number, [argument, 0, 0, 0, 0, 0]));
        (ours, dockers)
    };
    let samples = samples([&ours, &theirs]);
    let mut compared = 0;
    for abi in kind.abis {
        let start = if abi.arch == Arch::ScmpArchX32 { machine::X32 } else { 0 };
        for number in (start..start + 600).chain(start + ARM_PRIVATE..start + ARM_PRIVATE + 8) {
            for argument in &samples {
                let (ours, dockers) = answers(abi, number, *argument);
                assert_eq!(
                    ours, dockers,
                    "{:?} call {number} of {argument:#x}, capabilities {capabilities:#x}",
                    abi.arch
                );
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn it_allows_exactly_what_dockers_profile_allows() {
    let Some(file) = std::env::var_os("BERTH_DOCKER_PROFILE") else {
        eprintln!("BERTH_DOCKER_PROFILE is not set: nothing is compared");
        return;
    };
    let docker: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let single = CAPABILITIES.iter().map(|(_, number)| 1 << number);
    let all = CAPABILITIES.iter().fold(0, |all, (_, number)| all | 1 << number);
    let capabilities: Vec<u64> = single.chain([0, all]).collect();
    for kind in &KINDS {
        let compared: usize =
            capabilities.iter().map(|capabilities| compare(&docker, kind, *capabilities)).sum();
        assert!(compared > 1_000_000, "{compared} of {:?}", kind.names);
    }
}
