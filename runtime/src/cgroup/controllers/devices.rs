//! The devices that a container may create, read and write. On v1 they are files
//! (Documentation/admin-guide/cgroup-v1/devices.rst). v2 has no such files; a BPF program decides.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use crate::cgroup::{CgroupError, Result};
use crate::sys::{self, Context};

/// Writes the rules of v1 in order. The last rule that matches a device decides.
pub(in crate::cgroup) fn apply_v1(folder: &Path, resources: &LinuxResources) -> Result<()> {
    let mut opened: Option<(bool, fs::File)> = None;
    for rule in resources.devices().iter().flatten() {
        let path = folder.join(if rule.allow() { "devices.allow" } else { "devices.deny" });
        // "a" alone means all devices. The kernel would reject it with numbers.
        let line = if is_all(rule) { "a".to_owned() } else { rule_line(rule) };
        let file = match opened.take().filter(|(allow, _)| *allow == rule.allow()) {
            Some((_, file)) => Ok(file),
            None => fs::OpenOptions::new().write(true).open(&path),
        };
        // The kernel takes each write(2) as one rule.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()).map(|()| file));
        let file = written.map_err(|source| CgroupError::File { action: "write", path, source })?;
        opened = Some((rule.allow(), file));
    }
    Ok(())
}

fn is_all(rule: &LinuxDeviceCgroup) -> bool {
    rule.typ().unwrap_or_default() == LinuxDeviceType::A && number(rule.major()).is_none()
}

/// Returns a number of a rule. -1 or an absent number matches any.
fn number(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

fn rule_line(rule: &LinuxDeviceCgroup) -> String {
    let any = |value: Option<i64>| number(value).map_or("*".to_owned(), |number| number.to_string());
    let access = rule.access().as_deref().unwrap_or("rwm");
    format!(
        "{} {}:{} {access}",
        rule.typ().unwrap_or_default().as_str(),
        any(rule.major()),
        any(rule.minor())
    )
}

/// Compiles the rules to a program and attaches it to a folder of v2.
pub(in crate::cgroup) fn apply_v2(folder: &Path, resources: &LinuxResources) -> Result<()> {
    let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) else { return Ok(()) };
    if rules.last().is_some_and(|rule| rule.allow() && is_all(rule)) {
        return Ok(());
    }
    let program = sys::bpf::load_device_filter(&compile(rules))?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let cgroup = rustix::fs::openat(rustix::fs::CWD, folder, flags, rustix::fs::Mode::empty())
        .on("open", folder.display())?;
    Ok(sys::bpf::attach_device_filter(cgroup.as_fd(), program.as_fd())?)
}

// Instructions of BPF (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT_32: u8 = 0x74;
const MOVE_32: u8 = 0xbc;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_NOT_EQUAL_REGISTER: u8 = 0x5d;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;

// Registers: the result, the context (`struct bpf_cgroup_dev_ctx`), and the values that are read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: u16, value: u32) -> u64 {
    u64::from(code) | u64::from(from << 4 | to) << 8 | u64::from(offset) << 16 | u64::from(value) << 32
}

/// Compiles the filter. The last rule that matches decides, so the rules are tested from the last to the first. A
/// device that no rule matches is denied.
fn compile(rules: &[LinuxDeviceCgroup]) -> Vec<u64> {
    let mut program = vec![
        // `access_type` contains the access in its upper half and the type in its lower half.
        instruction(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        instruction(AND_32, TYPE, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
        // Instructions after a rule for all devices are never reached, and the verifier would reject them.
        if is_all(rule) && access_mask(rule.access().as_deref().unwrap_or("rwm")) == 7 {
            return program;
        }
    }
    program.extend([instruction(SET, RESULT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

fn compile_rule(rule: &LinuxDeviceCgroup) -> Vec<u64> {
    // Each test jumps behind the rule if it fails. The distances are known when all tests are complete.
    let mut tests: Vec<(u8, u8, u8, u32)> = Vec::new();
    match rule.typ().unwrap_or_default() {
        LinuxDeviceType::B => tests.push((JUMP_NOT_EQUAL, TYPE, 0, 1)),
        LinuxDeviceType::C | LinuxDeviceType::U => tests.push((JUMP_NOT_EQUAL, TYPE, 0, 2)),
        LinuxDeviceType::A | LinuxDeviceType::P => {}
    }
    let access = access_mask(rule.access().as_deref().unwrap_or("rwm"));
    if access != 7 {
        // The requested access must be a subset of the rule's access.
        tests.push((MOVE_32, SCRATCH, ACCESS, 0));
        tests.push((AND_32, SCRATCH, 0, access));
        tests.push((JUMP_NOT_EQUAL_REGISTER, SCRATCH, ACCESS, 0));
    }
    for (register, value) in [(MAJOR, number(rule.major())), (MINOR, number(rule.minor()))] {
        if let Some(value) = value {
            tests.push((JUMP_NOT_EQUAL, register, 0, value));
        }
    }
    let length = tests.len();
    let mut program: Vec<u64> = Vec::with_capacity(length + 2);
    for (place, (code, to, from, value)) in tests.into_iter().enumerate() {
        let jumps = matches!(code, JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER);
        let offset = if jumps { u16::try_from(length - place + 1).unwrap_or(0) } else { 0 };
        program.push(instruction(code, to, from, offset, value));
    }
    program.push(instruction(SET, RESULT, 0, 0, u32::from(rule.allow())));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// `BPF_DEVCG_ACC_*`.
fn access_mask(access: &str) -> u32 {
    access.chars().fold(0, |mask, c| {
        mask | match c {
            'm' => 1,
            'r' => 2,
            'w' => 4,
            _ => 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    fn rule(allow: bool, typ: LinuxDeviceType, numbers: (i64, i64), access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .typ(typ)
            .major(numbers.0)
            .minor(numbers.1)
            .access(access)
            .build()
            .unwrap()
    }

    /// Interprets a program as the kernel does.
    fn run(program: &[u64], typ: u64, access: u64, major: u64, minor: u64) -> u64 {
        let context = [access << 16 | typ, major, minor];
        let (mut registers, mut at) = ([0_u64; 11], 0_usize);
        loop {
            let word = program[at];
            let index = |shift: u32, mask: u64| usize::try_from(word >> shift & mask).unwrap();
            let (to, from, offset, value) = (index(8, 0xf), index(12, 0xf), index(16, 0xffff), word >> 32);
            at += 1;
            match u8::try_from(word & 0xff).unwrap() {
                LOAD_WORD => registers[to] = context[offset / 4],
                AND_32 => registers[to] &= value,
                SHIFT_RIGHT_32 => registers[to] >>= value,
                MOVE_32 => registers[to] = registers[from],
                JUMP_NOT_EQUAL if registers[to] != value => at += offset,
                JUMP_NOT_EQUAL_REGISTER if registers[to] != registers[from] => at += offset,
                JUMP_NOT_EQUAL | JUMP_NOT_EQUAL_REGISTER => {}
                SET => registers[to] = value,
                EXIT => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_last_matching_rule_decides() {
        let program = compile(&[
            rule(false, LinuxDeviceType::A, (-1, -1), "rwm"),
            rule(true, LinuxDeviceType::C, (-1, -1), "m"),
            rule(true, LinuxDeviceType::C, (1, 3), "rw"),
            rule(true, LinuxDeviceType::B, (8, -1), "r"),
        ]);
        assert_eq!(run(&program, 2, 1, 9, 9), 1, "mknod of any character device");
        assert_eq!(run(&program, 2, 2, 9, 9), 0, "read of one that is not listed");
        assert_eq!(run(&program, 2, 6, 1, 3), 1, "read and write of null");
        assert_eq!(run(&program, 2, 6, 1, 4), 0);
        assert_eq!(run(&program, 1, 2, 8, 5), 1, "read of a disk");
        assert_eq!(run(&program, 1, 6, 8, 5), 0, "write of a disk");
        assert_eq!(run(&program, 1, 1, 8, 5), 0, "mknod of a disk");
    }

    #[test]
    fn v1_rules_are_formatted() {
        assert_eq!(rule_line(&rule(true, LinuxDeviceType::C, (136, -1), "rwm")), "c 136:* rwm");
        assert!(is_all(&rule(false, LinuxDeviceType::A, (-1, -1), "rwm")));
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let rules = [
            rule(false, LinuxDeviceType::A, (-1, -1), "rwm"),
            rule(true, LinuxDeviceType::C, (-1, -1), "m"),
            rule(true, LinuxDeviceType::C, (1, 3), "rw"),
        ];
        sys::bpf::load_device_filter(&compile(&rules)).unwrap();
    }
}
