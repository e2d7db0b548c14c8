//! Tests that compile profiles and run the filters as the kernel does.

use oci_spec::runtime::{Arch, LinuxSeccomp};
use proptest::prelude::*;

use super::program::{AND, Instruction, JUMP, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_OR_EQUAL, LOAD, RETURN};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// Interprets a filter as the kernel does.
pub(super) fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = [0_u8; 64];
    data[..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (index, argument) in arguments.iter().enumerate() {
        data[16 + index * 8..24 + index * 8].copy_from_slice(&argument.to_ne_bytes());
    }
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let Instruction { code, jump_true, jump_false, value } = program[at];
        at += 1;
        let holds = match code {
            RETURN => return value,
            LOAD => {
                let offset = usize::try_from(value).unwrap();
                accumulator = u32::from_ne_bytes(data[offset..offset + 4].try_into().unwrap());
                continue;
            }
            AND => {
                accumulator &= value;
                continue;
            }
            JUMP => {
                at += usize::try_from(value).unwrap();
                continue;
            }
            JUMP_EQUAL => accumulator == value,
            JUMP_GREATER => accumulator > value,
            JUMP_GREATER_OR_EQUAL => accumulator >= value,
            other => panic!("instruction {other:#x}"),
        };
        at += usize::from(if holds { jump_true } else { jump_false });
    }
}

fn native() -> machine::Abi {
    machine::abis().remove(0)
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn instructions(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, SeccompError> {
    instructions_on(profile, &machine::abis())
}

/// Compiles a profile for a machine with these ABIs.
pub(super) fn instructions_on(
    profile: &LinuxSeccomp,
    abis: &[machine::Abi],
) -> Result<Vec<Instruction>, SeccompError> {
    super::instructions(&rules::groups(profile, abis)?)
}

/// Returns the action of a profile for a call of the native ABI.
fn answer(profile: &LinuxSeccomp, name: &str, arguments: [u64; 6]) -> u32 {
    let program = instructions(profile).unwrap();
    run(&program, native().audit, (native().number)(name).unwrap(), arguments)
}

#[test]
fn each_action_is_translated_to_the_kernels() {
    let profile = profile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["swapon"], "action": "SCMP_ACT_KILL"},
            {"names": ["getpid"], "action": "SCMP_ACT_LOG"},
            {"names": ["ptrace"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["no_such_call", "bpf"], "action": "SCMP_ACT_TRAP"}
        ]}"#,
    );
    for (name, action) in [
        ("read", ALLOW),
        ("chroot", EPERM),
        ("mount", ENOSYS),
        ("reboot", 0x8000_0000),
        ("swapon", 0),
        ("getpid", 0x7ffc_0000),
        ("ptrace", 0x7ff0_0007),
        ("bpf", 0x0003_0000),
    ] {
        assert_eq!(answer(&profile, name, [0; 6]), action, "{name}");
    }
}

#[test]
fn calls_newer_than_the_profile_fail_with_enosys() {
    let strict = profile(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["read", "openat2"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    assert_eq!(answer(&strict, "read", [0; 6]), ALLOW);
    assert_eq!(answer(&strict, "write", [0; 6]), EPERM);
    assert_eq!(answer(&strict, "openat2", [0; 6]), ALLOW);
    assert_eq!(answer(&strict, "mseal", [0; 6]), ENOSYS);
    let nothing = profile(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
    assert_eq!(answer(&nothing, "mseal", [0; 6]), EPERM, "a profile without rules");
}

#[test]
fn a_rule_without_conditions_overrides_rules_with_conditions() {
    let rules = profile(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["clone"], "action": "SCMP_ACT_KILL", "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}
        ]}"#,
    );
    assert_eq!(answer(&rules, "clone", [7, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(
        answer(&rules, "socket", [2, 0, 0, 0, 0, 0]),
        ALLOW,
        "a rule with the default action is ignored"
    );
    assert_eq!(answer(&rules, "socket", [3, 0, 0, 0, 0, 0]), EPERM);
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_others_must_all_hold() {
    let rules = profile(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
        {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
        {"names": ["mprotect"], "action": "SCMP_ACT_ALLOW", "args": [
            {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 4, "op": "SCMP_CMP_NE"}]}
        ]}"#,
    );
    for (domain, action) in [(1, ALLOW), (2, ALLOW), (3, EPERM)] {
        assert_eq!(answer(&rules, "socket", [domain, 0, 0, 0, 0, 0]), action, "{domain}");
    }
    for (arguments, action) in [([1, 5], ALLOW), ([1, 4], EPERM), ([2, 5], EPERM)] {
        assert_eq!(
            answer(&rules, "mprotect", [arguments[0], 0, arguments[1], 0, 0, 0]),
            action,
            "{arguments:?}"
        );
    }
}

#[test]
fn private_calls_of_arm_are_not_newer_than_others() {
    let (arm, private) = (0x4000_0028, machine::ARM_PRIVATE);
    let strict = profile(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_ARM"], "syscalls": [
        {"names": ["read", "openat2", "set_tls"], "action": "SCMP_ACT_ALLOW"}]}"#,
    );
    let program = instructions_on(&strict, &machine::aarch64::ABIS).unwrap();
    for (number, action) in
        [(3, ALLOW), (4, EPERM), (437, ALLOW), (438, ENOSYS), (private + 2, ENOSYS), (private + 5, ALLOW)]
    {
        assert_eq!(run(&program, arm, number, [0; 6]), action, "{number:#x}");
    }
    assert_eq!(run(&program, 0xc000_00b7, 63, [0; 6]), ALLOW, "the native ABI is always included");
    assert_eq!(run(&program, 0xc000_003e, 0, [0; 6]), 0, "another machine's ABI");
}

#[test]
fn abis_that_are_not_listed_are_killed() {
    let (x86_64, x86, x32) = (0xc000_003e, 0x4000_0003, machine::X32);
    let allow_all = |architectures: &str| {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "architectures": [{architectures}]}}"#);
        instructions_on(&profile(&json), &machine::x86_64::ABIS).unwrap()
    };
    let native_only = allow_all("");
    assert_eq!(run(&native_only, x86_64, 1, [0; 6]), ALLOW, "the native ABI is always included");
    assert_eq!(run(&native_only, x86, 1, [0; 6]), 0);
    assert_eq!(run(&native_only, x86_64, x32 + 1, [0; 6]), 0);
    assert_eq!(run(&native_only, x86_64, u32::MAX, [0; 6]), ALLOW, "a call that a tracer skips");
    assert_eq!(run(&native_only, 0xc000_00b7, 1, [0; 6]), 0, "another machine's ABI");
    let all = allow_all(r#""SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_MIPS""#);
    assert_eq!(run(&all, x86, 1, [0; 6]), ALLOW);
    assert_eq!(run(&all, x86_64, x32 + 1, [0; 6]), ALLOW);
}

#[test]
fn contradictory_profiles_are_rejected() {
    for (json, why) in [
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "default action"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}"#,
            "listenerPath",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_KILL",
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
            "argument 6",
        ),
    ] {
        let error = compile(&profile(json)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(serde_json::from_str::<LinuxSeccomp>(r#"{"defaultAction": "SCMP_ACT_NONSENSE"}"#).is_err());
}

#[test]
fn flags_are_translated_to_the_kernels() {
    let with =
        |flags: &str| compile(&profile(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW"{flags}}}"#))).unwrap();
    assert_eq!(with("").flags, FLAG_SPEC_ALLOW);
    assert_eq!(with(r#", "flags": []"#).flags, 0);
    assert_eq!(
        with(r#", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"]"#).flags,
        FLAG_LOG
    );
    let notify = r#", "listenerPath": "/run/agent.sock", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]"#;
    assert_eq!(with(notify).flags, FLAG_SPEC_ALLOW | FLAG_NEW_LISTENER);
    assert_eq!(with(notify).listener.unwrap().path, std::path::Path::new("/run/agent.sock"));
}

#[test]
fn a_profile_that_blocks_failure_reports_is_detected() {
    let mute = |json: &str| compile(&profile(json)).unwrap().mute;
    assert!(!mute(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#));
    assert!(mute(r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#));
    let no_exit = r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["exit_group"], "action": "SCMP_ACT_KILL"}]}"#;
    assert!(mute(no_exit));
    assert!(!compile(&default::profile(0).unwrap()).unwrap().mute);
}

#[test]
fn the_kernel_accepts_the_default_profile() {
    let filter = compile(&default::profile(0).unwrap()).unwrap();
    let program = sys::fs::read_all(&filter.program, MOST_INSTRUCTIONS * 8).unwrap();
    let loading = move || {
        sys::security::no_new_privs()?;
        sys::security::load_seccomp(&program, filter.flags)?;
        // The filter applies only to this thread.
        Ok::<_, sys::Error>(rustix::system::sethostname(b"x"))
    };
    let refused = std::thread::spawn(loading).join().unwrap().unwrap();
    assert_eq!(refused, Err(rustix::io::Errno::PERM));
}

/// Returns whether a condition holds, as documented in seccomp_rule_add(3).
fn holds(operator: &str, argument: u64, value: u64, value_two: u64) -> bool {
    match operator {
        "SCMP_CMP_NE" => argument != value,
        "SCMP_CMP_LT" => argument < value,
        "SCMP_CMP_LE" => argument <= value,
        "SCMP_CMP_EQ" => argument == value,
        "SCMP_CMP_GE" => argument >= value,
        "SCMP_CMP_GT" => argument > value,
        _ => argument & value == value_two,
    }
}

/// Generates numbers with halves that often equal those of others.
fn number() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0_u64..3, Just(0xffff_ffff), any::<u32>().prop_map(u64::from)];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    fn conditions_compare_all_64_bits(
        operator in prop::sample::select(vec![
            "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
        ]),
        index in 0_usize..6,
        argument in number(),
        value in number(),
        value_two in number(),
    ) {
        let json = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "args": [
                {{"index": {index}, "value": {value}, "valueTwo": {value_two}, "op": "{operator}"}}]}}]}}"#
        );
        let mut arguments = [7; 6];
        arguments[index] = argument;
        let expected = if holds(operator, argument, value, value_two) { ALLOW } else { EPERM };
        prop_assert_eq!(answer(&profile(&json), "mmap", arguments), expected);
    }

    /// Each call is found, for any number of listed calls and jumps of any length.
    #[test]
    fn every_listed_call_gets_its_action(errnos in prop::collection::btree_map(0_u32..450, 1_u32..4000, 0..400)) {
        let named: Vec<(u32, &'static str)> = syscalls::Sysno::iter()
            .map(|call| (u32::try_from(call.id()).unwrap(), call.name()))
            .filter(|(number, _)| errnos.contains_key(number))
            .collect();
        let rules: Vec<String> = named
            .iter()
            .map(|(number, name)| {
                format!(r#"{{"names": ["{name}"], "action": "SCMP_ACT_ERRNO", "errnoRet": {}}}"#, errnos[number])
            })
            .collect();
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{}]}}"#, rules.join(", "));
        let program = instructions(&profile(&json)).unwrap();
        for number in 0..500 {
            let listed = named.iter().any(|(known, _)| *known == number);
            let expected = if listed { 0x0005_0000 | errnos[&number] } else { ALLOW };
            prop_assert_eq!(run(&program, native().audit, number, [0; 6]), expected, "{}", number);
        }
    }
}

/// The architectures of the default profile are this machine's.
#[test]
fn the_default_profile_covers_this_machine() {
    let profile = default::profile(0).unwrap();
    assert!(profile.architectures().iter().flatten().any(|arch: &Arch| *arch == native().arch));
    assert_eq!(answer(&profile, "read", [0; 6]), ALLOW);
    assert_eq!(answer(&profile, "mount", [0; 6]), EPERM);
    assert_eq!(answer(&profile, "clone3", [0; 6]), ENOSYS);
    assert_eq!(answer(&profile, "clone", [0x1000_0000, 0, 0, 0, 0, 0]), EPERM, "CLONE_NEWUSER");
    assert_eq!(answer(&profile, "clone", [0x0001_0f00, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(answer(&profile, "socket", [38, 0, 0, 0, 0, 0]), EPERM, "AF_ALG");
    assert_eq!(answer(&default::profile(1 << 21).unwrap(), "mount", [0; 6]), ALLOW);
}
