//! The ABIs of this machine: the kinds of programs that it can run, and the numbers of their system calls. A
//! filter need not cover other ABIs, because their system calls cannot happen here.

use std::str::FromStr;

use oci_spec::runtime::Arch;

/// The bit that is set in the number of an x32 system call (syscall(2), asm/unistd.h `__X32_SYSCALL_BIT`).
pub(super) const X32: u32 = 0x4000_0000;

/// An ABI for system calls.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abi {
    /// The value of `seccomp_data.arch` (linux/audit.h, `AUDIT_ARCH_*`).
    pub(super) audit: u32,
    /// Its name in a profile.
    pub(super) arch: Arch,
    /// Whether it is the daemon's own ABI, which every filter covers.
    pub(super) native: bool,
    /// Whether its arguments have 64 bits.
    pub(super) wide: bool,
    /// Returns the number of a system call by its name, if the ABI has it.
    pub(super) number: fn(&str) -> Option<u32>,
}

/// Returns the ABIs of this machine. ABIs with the same audit number are adjacent and ordered by their numbers.
pub(super) fn abis() -> Vec<Abi> {
    std::iter::once(kinds::NATIVE).chain(kinds::OTHERS).collect()
}

macro_rules! table {
    ($function:ident, $arch:ident) => {
        fn $function(name: &str) -> Option<u32> {
            let call = syscalls::$arch::Sysno::from_str(name).ok()?;
            u32::try_from(call.id()).ok()
        }
    };
}

/// The ABIs of an x86-64 machine.
#[cfg(target_arch = "x86_64")]
mod kinds {
    use super::{Abi, Arch, FromStr, X32};

    table!(of_x86_64, x86_64);
    table!(of_x86, x86);

    pub(super) const NATIVE: Abi =
        Abi { audit: 0xc000_003e, arch: Arch::ScmpArchX86_64, native: true, wide: true, number: of_x86_64 };

    pub(super) const OTHERS: [Abi; 2] = [
        Abi { audit: 0xc000_003e, arch: Arch::ScmpArchX32, native: false, wide: true, number: of_x32 },
        Abi { audit: 0x4000_0003, arch: Arch::ScmpArchX86, native: false, wide: false, number: of_x86 },
    ];

    /// System calls with their own numbers in x32, because their arguments contain pointers or sizes
    /// (arch/x86/entry/syscalls).
    const ONLY_X32: [&str; 36] = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];

    fn of_x32(name: &str) -> Option<u32> {
        let number = match ONLY_X32.iter().position(|call| *call == name) {
            Some(place) => u32::try_from(place).ok()? + 512,
            None => of_x86_64(name)?,
        };
        Some(number | X32)
    }
}

/// The ABIs of a 64-bit ARM machine.
#[cfg(target_arch = "aarch64")]
mod kinds {
    use super::{Abi, Arch, FromStr};

    table!(of_aarch64, aarch64);
    table!(of_arm, arm);

    pub(super) const NATIVE: Abi =
        Abi { audit: 0xc000_00b7, arch: Arch::ScmpArchAarch64, native: true, wide: true, number: of_aarch64 };

    pub(super) const OTHERS: [Abi; 1] =
        [Abi { audit: 0x4000_0028, arch: Arch::ScmpArchArm, native: false, wide: false, number: of_arm }];
}

/// The ABI of a 64-bit RISC-V machine.
#[cfg(target_arch = "riscv64")]
mod kinds {
    use super::{Abi, Arch, FromStr};

    table!(of_riscv64, riscv64);

    pub(super) const NATIVE: Abi =
        Abi { audit: 0xc000_00f3, arch: Arch::ScmpArchRiscv64, native: true, wide: true, number: of_riscv64 };

    pub(super) const OTHERS: [Abi; 0] = [];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_match_the_kernels_headers() {
        let number = |arch, name: &str| {
            let abis = abis();
            (abis.iter().find(|abi| abi.arch == arch).unwrap().number)(name)
        };
        assert_eq!(number(Arch::ScmpArchX86_64, "openat2"), Some(437));
        assert_eq!(number(Arch::ScmpArchX86, "socketcall"), Some(102));
        assert_eq!(number(Arch::ScmpArchX86_64, "socketcall"), None);
        // asm/unistd_x32.h
        assert_eq!(number(Arch::ScmpArchX32, "pwritev2"), Some(X32 + 547));
        assert_eq!(number(Arch::ScmpArchX32, "setsockopt"), Some(X32 + 541));
        assert_eq!(number(Arch::ScmpArchX32, "openat2"), Some(X32 + 437));
    }

    #[test]
    fn the_daemons_own_calls_are_known() {
        let native = abis().remove(0);
        assert!(native.native);
        assert_eq!((native.number)("getpid"), u32::try_from(libc::SYS_getpid).ok());
        assert_eq!((native.number)("clone3"), u32::try_from(libc::SYS_clone3).ok());
    }
}
