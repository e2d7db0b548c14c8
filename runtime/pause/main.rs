//! The process that holds a pod's namespaces and, where the pod's processes share one, is their first process and reaps
//! what is left to it. It does nothing else: no allocation, no libc, no stack but its own.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

const SIGINT: u64 = 2;
const SIGTERM: u64 = 15;
const SIGCHLD: u64 = 17;
const SIG_BLOCK: u64 = 0;
const WNOHANG: u64 = 1;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: u64 = 14;
    pub const WAIT4: u64 = 61;
    pub const RT_SIGTIMEDWAIT: u64 = 128;
    pub const EXIT_GROUP: u64 = 231;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: u64 = 135;
    pub const WAIT4: u64 = 260;
    pub const RT_SIGTIMEDWAIT: u64 = 137;
    pub const EXIT_GROUP: u64 = 94;
}

// The kernel enters with the stack pointer 16-byte aligned and no return address; a call restores what the ABI expects.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {run}", "ud2", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "bl {run}", "brk #1", run = sym run);

/// A system call with four arguments.
///
/// # Safety
/// The arguments must be what the call expects.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: u64, args: [u64; 4]) -> i64 {
    let answer: i64;
    // SAFETY: the caller vouches for the arguments; the kernel changes rcx, r11 and rax only.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

/// A system call with four arguments.
///
/// # Safety
/// The arguments must be what the call expects.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: u64, args: [u64; 4]) -> i64 {
    let answer: i64;
    // SAFETY: the caller vouches for the arguments; the kernel changes x0 only.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0] => answer, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], options(nostack));
    }
    answer
}

extern "C" fn run() -> ! {
    let wanted: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
    let set = &raw const wanted;
    // SAFETY: `set` points to eight readable bytes, which is the size given (rt_sigprocmask(2)).
    unsafe { syscall(number::RT_SIGPROCMASK, [SIG_BLOCK, set as u64, 0, 8]) };
    loop {
        // SAFETY: as above; no siginfo and no timeout are asked for (rt_sigtimedwait(2)).
        let signal = unsafe { syscall(number::RT_SIGTIMEDWAIT, [set as u64, 0, 0, 8]) };
        if signal == SIGINT as i64 || signal == SIGTERM as i64 {
            // SAFETY: takes a plain number and does not return.
            unsafe { syscall(number::EXIT_GROUP, [0; 4]) };
        }
        // SAFETY: neither status nor usage is asked for (wait4(2)).
        while unsafe { syscall(number::WAIT4, [u64::MAX, 0, WNOHANG, 0]) } > 0 {}
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
