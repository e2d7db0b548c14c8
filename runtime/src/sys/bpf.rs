//! bpf(2), for the only kind of program that berth uses: the device filter of a cgroup.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::{Context, Result, checked};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a device filter. Each `u64` is one instruction.
///
/// # Errors
/// The kernel's verifier rejects the filter, or the caller lacks the privilege.
pub fn load_device_filter(instructions: &[u64]) -> Result<OwnedFd> {
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        insns: u64::try_from(instructions.as_ptr().expose_provenance()).unwrap_or(0),
        license: u64::try_from(c"Apache-2.0".as_ptr().expose_provenance()).unwrap_or(0),
        ..Load::default()
    };
    // SAFETY: `load` is a live struct of the given size. Its pointers refer to the live array of instructions and
    // to a static C string, which the kernel only reads.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = checked(fd).on("bpf(BPF_PROG_LOAD)", "device filter")?;
    // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) })
}

/// Attaches a device filter to a cgroup. It exists as long as the cgroup.
///
/// # Errors
/// The caller lacks the privilege.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    let attach = Attach {
        target_fd: u32::try_from(cgroup.as_raw_fd()).unwrap_or(u32::MAX),
        attach_bpf_fd: u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: `attach` is a live struct of the given size, which the kernel only reads.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<Attach>()) };
    checked(result).map(drop).on("bpf(BPF_PROG_ATTACH)", "device filter")
}
