//! The ABIs of this machine: the kinds of programs that it can run, and the numbers of their system calls. A
//! filter need not cover other ABIs, because their system calls cannot happen here.

use std::str::FromStr;

use oci_spec::runtime::Arch;

/// The bit that is set in the number of an x32 system call (syscall(2), asm/unistd.h `__X32_SYSCALL_BIT`).
pub(super) const X32: u32 = 0x4000_0000;

/// The first number of the calls that only the kernel of 32-bit ARM has (asm/unistd.h `__ARM_NR_BASE`). Other calls have
/// numbers far below.
pub(super) const ARM_PRIVATE: u32 = 0xf_0000;

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
    kinds::ABIS.to_vec()
}

#[cfg(target_arch = "aarch64")]
use aarch64 as kinds;
#[cfg(target_arch = "riscv64")]
use riscv64 as kinds;
#[cfg(target_arch = "x86_64")]
use x86_64 as kinds;

macro_rules! table {
    ($function:ident, $arch:ident) => {
        fn $function(name: &str) -> Option<u32> {
            let call = syscalls::$arch::Sysno::from_str(name).ok()?;
            u32::try_from(call.id()).ok()
        }
    };
}

/// The ABIs of an x86-64 machine.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) mod x86_64 {
    use super::{Abi, Arch, FromStr, X32};

    table!(of_x86_64, x86_64);
    table!(of_x86, x86);

    pub(in super::super) const ABIS: [Abi; 3] = [
        Abi { audit: 0xc000_003e, arch: Arch::ScmpArchX86_64, native: true, wide: true, number: of_x86_64 },
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
#[cfg(any(test, target_arch = "aarch64"))]
pub(super) mod aarch64 {
    use super::{ARM_PRIVATE, Abi, Arch, FromStr};

    table!(in_aarch64s_table, aarch64);
    table!(in_arms_table, arm);

    pub(in super::super) const ABIS: [Abi; 2] = [
        Abi { audit: 0xc000_00b7, arch: Arch::ScmpArchAarch64, native: true, wide: true, number: of_aarch64 },
        Abi { audit: 0x4000_0028, arch: Arch::ScmpArchArm, native: false, wide: false, number: of_arm },
    ];

    /// The table has the name `fstatat`, of `__NR3264_fstatat`; the call is `newfstatat` on machines with 64 bits
    /// (asm-generic/unistd.h).
    fn of_aarch64(name: &str) -> Option<u32> {
        match name {
            "newfstatat" => in_aarch64s_table("fstatat"),
            "fstatat" => None,
            name => in_aarch64s_table(name),
        }
    }

    /// The private calls are not in the table of calls (arch/arm/include/uapi/asm/unistd.h). The last name is a second
    /// one of `arm_sync_file_range`.
    fn of_arm(name: &str) -> Option<u32> {
        match name {
            "breakpoint" => Some(ARM_PRIVATE + 1),
            "cacheflush" => Some(ARM_PRIVATE + 2),
            "usr26" => Some(ARM_PRIVATE + 3),
            "usr32" => Some(ARM_PRIVATE + 4),
            "set_tls" => Some(ARM_PRIVATE + 5),
            "get_tls" => Some(ARM_PRIVATE + 6),
            "sync_file_range2" => in_arms_table("arm_sync_file_range"),
            name => in_arms_table(name),
        }
    }
}

/// The ABI of a 64-bit RISC-V machine.
#[cfg(any(test, target_arch = "riscv64"))]
pub(super) mod riscv64 {
    use super::{Abi, Arch, FromStr};

    table!(of_riscv64, riscv64);

    pub(in super::super) const ABIS: [Abi; 1] = [Abi {
        audit: 0xc000_00f3,
        arch: Arch::ScmpArchRiscv64,
        native: true,
        wide: true,
        number: of_riscv64,
    }];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(arch: Arch, name: &str) -> Option<u32> {
        let mut abis = x86_64::ABIS.iter().chain(&aarch64::ABIS).chain(&riscv64::ABIS);
        (abis.find(|abi| abi.arch == arch).unwrap().number)(name)
    }

    /// Calls with two names in asm-generic/unistd.h: those of machines with 64 bits.
    const GENERIC: [(&str, u32); 11] = [
        ("fcntl", 25),
        ("statfs", 43),
        ("fstatfs", 44),
        ("truncate", 45),
        ("ftruncate", 46),
        ("lseek", 62),
        ("sendfile", 71),
        ("newfstatat", 79),
        ("fstat", 80),
        ("mmap", 222),
        ("fadvise64", 223),
    ];

    #[test]
    fn numbers_match_the_kernels_headers() {
        assert_eq!(number(Arch::ScmpArchX86_64, "openat2"), Some(437));
        assert_eq!(number(Arch::ScmpArchX86, "socketcall"), Some(102));
        assert_eq!(number(Arch::ScmpArchX86_64, "socketcall"), None);
        // asm/unistd_x32.h
        assert_eq!(number(Arch::ScmpArchX32, "pwritev2"), Some(X32 + 547));
        assert_eq!(number(Arch::ScmpArchX32, "setsockopt"), Some(X32 + 541));
        assert_eq!(number(Arch::ScmpArchX32, "openat2"), Some(X32 + 437));
        // asm-generic/unistd.h
        assert_eq!(number(Arch::ScmpArchAarch64, "clone"), Some(220));
        assert_eq!(number(Arch::ScmpArchAarch64, "openat2"), Some(437));
        assert_eq!(number(Arch::ScmpArchAarch64, "open"), None);
        assert_eq!(number(Arch::ScmpArchRiscv64, "clone"), Some(220));
        for arch in [Arch::ScmpArchAarch64, Arch::ScmpArchRiscv64] {
            for (name, expected) in GENERIC {
                assert_eq!(number(arch, name), Some(expected), "{name} on {arch:?}");
            }
        }
        // arch/arm/include/uapi/asm/unistd.h
        assert_eq!(number(Arch::ScmpArchArm, "open"), Some(5));
        assert_eq!(number(Arch::ScmpArchArm, "sync_file_range2"), Some(341));
        assert_eq!(number(Arch::ScmpArchArm, "set_tls"), Some(0xf_0005));
    }

    #[test]
    fn the_daemons_own_calls_are_known() {
        let native = abis().remove(0);
        assert!(native.native);
        assert_eq!((native.number)("getpid"), u32::try_from(libc::SYS_getpid).ok());
        assert_eq!((native.number)("clone3"), u32::try_from(libc::SYS_clone3).ok());
    }
}
