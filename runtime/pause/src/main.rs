//! The pause: the process that holds a pod's namespaces. If the pod's processes share a PID namespace, it is their
//! process 1 and reaps orphans. It does nothing else. It allocates nothing and does not use libc.
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

// At entry the stack pointer is 16-byte aligned and there is no return address. A call establishes what the ABI
// requires.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {run}", "ud2", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "bl {run}", "brk #1", run = sym run);

/// Makes a system call with four arguments.
///
/// # Safety
/// The arguments must be valid for the call.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall(number: u64, args: [u64; 4]) -> i64 {
    let answer: i64;
    // SAFETY: the caller guarantees valid arguments. The kernel changes only rcx, r11 and rax.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer
}

/// Makes a system call with four arguments.
///
/// # Safety
/// The arguments must be valid for the call.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall(number: u64, args: [u64; 4]) -> i64 {
    let answer: i64;
    // SAFETY: the caller guarantees valid arguments. The kernel changes only x0.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0] => answer, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], options(nostack));
    }
    answer
}

extern "C" fn run() -> ! {
    let signals: u64 = (1 << (SIGINT - 1)) | (1 << (SIGTERM - 1)) | (1 << (SIGCHLD - 1));
    let set = &raw const signals;
    // SAFETY: `set` points to eight readable bytes, which is the given size (rt_sigprocmask(2)).
    unsafe { syscall(number::RT_SIGPROCMASK, [SIG_BLOCK, set as u64, 0, 8]) };
    loop {
        // SAFETY: as above. Neither siginfo nor a timeout is requested (rt_sigtimedwait(2)).
        let signal = unsafe { syscall(number::RT_SIGTIMEDWAIT, [set as u64, 0, 0, 8]) };
        if signal == SIGINT as i64 || signal == SIGTERM as i64 {
            // SAFETY: the call takes a plain number and does not return.
            unsafe { syscall(number::EXIT_GROUP, [0; 4]) };
        }
        // SAFETY: neither status nor usage is requested (wait4(2)).
        while unsafe { syscall(number::WAIT4, [u64::MAX, 0, WNOHANG, 0]) } > 0 {}
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
